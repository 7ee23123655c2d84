//! The frame of a report: styles for light and dark, and the words that it uses.

use crate::chart::{SERIES, escape};

/// What the report's words mean.
pub(super) const WORDS: &str = "<section><h2>How to read this</h2><dl>\
<dt>balancedness</dt><dd>In each layer, the mean load of the ranks over the largest: 1 is perfect, and 0.8 means that the \
ranks wait for the busiest one a fifth of the time. Averaged over layers that have any load. Replicas of an expert share its tokens \
evenly.</dd>\
<dt>worst 1% of steps</dt><dd>The balancedness that 99 of 100 steps reach.</dd>\
<dt>time lost to stragglers</dt><dd>An estimate: how much of the time of the mixture layers the ranks wait for the slowest, if a layer \
takes as long as its busiest rank has tokens.</dd>\
<dt>tokens across nodes, price paid</dt><dd>Where ranks are on several nodes: the part of the tokens that experts serve on a node that is \
neither where they come from nor the home of their group, and that part times the price that was asked for. A plan is worth the time of its worst rank, \
perfect balance being 1, and the price paid on top.</dd>\
<dt>move</dt><dd>A slot whose expert was not on that rank before: its bytes cross a link.</dd>\
<dt>policies</dt><dd><em>incremental</em> changes what is in place as little as the wanted balance needs; <em>balanced</em> and \
<em>deepseek</em> plan afresh each time; <em>split</em> moves nothing and only divides tokens over replicas anew, which even shares do not \
show; <em>static</em> is what a server starts with; <em>random</em> is what luck gives.</dd>\
<dt>slot, replica, rank</dt><dd>A slot holds one expert of one layer; a rank (one GPU) has several. Experts in more than one slot have \
replicas.</dd>\
<dt>bound</dt><dd>A proof: with this many slots no placement, with any split of tokens over replicas, balances that step \
better.</dd></dl></section>\n";

const STYLE: &str = "\
:root { --paper: #fbfbf9; --card: #ffffff; --ink: #1c2733; --dim: #5b6b7a; --line: #dde3e8; --accent: #0072b2 }\n\
@media (prefers-color-scheme: dark) { :root { --paper: #0f141a; --card: #161d25; --ink: #e6edf3; --dim: #9fb0bf; \
--line: #2a3541; --accent: #56b4e9 } }\n\
* { box-sizing: border-box }\n\
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, sans-serif }\n\
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px }\n\
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 12px; overflow-wrap: anywhere }\n\
h2 { font-size: 19px; margin: 0 0 14px }\n\
.lead { font-size: 19px; margin: 0 0 8px } .facts, .note { color: var(--dim) } .note { font-size: 14px; margin: 10px 0 0 }\n\
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 22px; margin: 22px 0 }\n\
.scroll { overflow-x: auto } .scroll .chart { min-width: 640px }\n\
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums }\n\
th, td { text-align: right; padding: 8px 10px; border-bottom: 1px solid var(--line); white-space: nowrap }\n\
thead th { color: var(--dim); font-weight: 500; white-space: normal; vertical-align: bottom }\n\
tbody th, thead th:first-child { text-align: left } .bound th, .bound td { color: var(--dim); font-style: italic }\n\
.bound td:last-child { text-align: left }\n\
.chip { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px }\n\
details svg { max-width: 100%; height: auto } .chart { width: 100%; height: auto; display: block } .chart text { font-family: inherit; font-size: 12px }\n\
.grid { stroke: var(--line) } .tick { fill: var(--dim) } .axis { fill: var(--ink) } .mark { stroke: var(--dim) }\n\
.reference { stroke: var(--dim); stroke-width: 1.5; stroke-dasharray: 1 3 } .cursor { stroke: var(--dim) }\n\
.key { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 0 0 8px; font-size: 14px }\n\
.key button { font: inherit; color: inherit; background: none; border: 0; border-radius: 6px; padding: 2px 6px; cursor: pointer }\n\
.key button:hover { background: var(--line) } .key button[aria-pressed=false] { opacity: 0.4 }\n\
.key output { display: inline-block; min-width: 3.4em; color: var(--dim); font-variant-numeric: tabular-nums }\n\
details { margin: 6px 0 } summary { cursor: pointer; color: var(--accent) }\n\
dt { font-weight: 600; margin-top: 10px } dd { margin: 0; color: var(--dim) }\n";

/// Shows the values of the step that is pointed at, and hides lines. The page is whole without it.
const SCRIPT: &str = include_str!("page.js");

/// A page with a title and a body.
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{}</title>\n<style>\n{}{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        escape(title),
        series()
    )
}

/// The colours of series on light and on dark pages.
fn series() -> String {
    let variables = |of: fn(&(&str, &str, &str)) -> String| {
        let each = SERIES.iter().enumerate().map(|(index, series)| format!("--s{index}: {}", of(series)));
        each.collect::<Vec<_>>().join("; ")
    };
    format!(
        ":root {{ {} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {} }} }}\n",
        variables(|s| s.1.to_owned()),
        variables(|s| s.2.to_owned())
    )
}
