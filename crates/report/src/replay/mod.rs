//! The report of a replay: one HTML file that explains itself, with nothing fetched.

mod page;

use eplb_core::{CoreError, Placement, Topology};
use ndarray::ArrayView2;

use crate::chart::{self, Line, Point, escape};
use crate::placement::PlacementPicture;

/// One policy in a report.
#[derive(Debug, Clone)]
pub struct Policy<'a> {
    /// Its name.
    pub name: &'a str,
    /// Steps from one plan to the next.
    pub interval: usize,
    /// Balancedness of each scored step.
    pub balancedness: &'a [f64],
    /// Mean over the scored steps.
    pub mean: f64,
    /// What all but the worst hundredth of the steps reach.
    pub p01: f64,
    /// Part of the time that ranks wait for the slowest, 0..1.
    pub waiting: f64,
    /// Moves of all plans but the first.
    pub moves: usize,
    /// Part of all slots that moved, mean per step, 0..1.
    pub moves_fraction: f64,
    /// Bytes that the moves carry over links.
    pub bytes: u64,
    /// Seconds of link time.
    pub link_seconds: f64,
    /// Median time of a plan, milliseconds.
    pub plan_ms: f64,
    /// Shortest and longest time of a plan, milliseconds.
    pub plan_ms_range: (f64, f64),
    /// Steps at which a plan came into force.
    pub rebalances: Vec<usize>,
    /// What crosses nodes; `None` where there is one node.
    pub crossing: Option<Crossing>,
    /// The placement at the end.
    pub last: &'a Placement,
}

/// Tokens that cross nodes under a policy, and what that costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    /// Part of the tokens that cross beyond what whole groups would, mean over the scored steps, 0..1.
    pub part: f64,
    /// What it would cost if all tokens crossed, in times of a perfectly balanced rank.
    pub price: f64,
}

impl Crossing {
    /// The price paid, in times of a perfectly balanced rank.
    pub fn paid(self) -> f64 {
        self.price * self.part
    }
}

/// Balance against moves of a policy with another target or price.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontierPoint {
    /// The policy.
    pub policy: String,
    /// What was asked for, such as `0.95`.
    pub name: String,
    /// Part of all slots that moved, mean per step, 0..1.
    pub moves_fraction: f64,
    /// Mean balancedness.
    pub mean: f64,
}

/// Balancedness below the best one by so much is called near it.
const NEAR: f64 = 0.03;

/// A whole number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            // A thin space that does not break.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a decimal unit.
fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        c if c >= 1e12 => format!("{:.2} TB", c / 1e12),
        c if c >= 1e9 => format!("{:.2} GB", c / 1e9),
        c if c >= 1e6 => format!("{:.2} MB", c / 1e6),
        c => format!("{c} B"),
    }
}

/// Everything that a report shows.
#[derive(Debug, Clone)]
pub struct ReplayReport<'a> {
    /// Name of the trace.
    pub trace: &'a str,
    /// Steps, layers and experts of the trace.
    pub shape: (usize, usize, usize),
    /// Ranks and slots.
    pub topology: &'a Topology,
    /// Most steps that a plan looked back on.
    pub window: usize,
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// Speed of a link, 10^9 bytes per second.
    pub link_gbps: f64,
    /// First scored step.
    pub first_step: usize,
    /// The policies, in the order of the table.
    pub policies: Vec<Policy<'a>>,
    /// Bound of each scored step, if asked for.
    pub oracle: Option<&'a [f64]>,
    /// Policies with other targets or prices.
    pub frontier: Vec<FrontierPoint>,
    /// The placement that a server starts with, for the first heat map.
    pub start: &'a Placement,
    /// Loads of the last window, `[L, E]`: what the heat maps show.
    pub last_loads: ArrayView2<'a, f64>,
}

impl ReplayReport<'_> {
    /// The report as an HTML page.
    ///
    /// # Errors
    /// Placements, loads and topology of different shapes.
    pub fn html(&self) -> Result<String, CoreError> {
        let mut body = String::new();
        body.push_str(&self.head());
        body.push_str(&self.table());
        body.push_str(&self.over_time());
        body.push_str(&self.moves());
        body.push_str(&self.heat_maps()?);
        body.push_str(&self.replicas());
        body.push_str(page::WORDS);
        Ok(page::page(&format!("Replay of {}", self.trace), &body))
    }

    fn head(&self) -> String {
        let (steps, layers, experts) = self.shape;
        let nodes = self.topology.nodes();
        format!(
            "<h1>Replay of {}</h1>\n{}<p class=\"facts\">What each policy would have done on this traffic: {steps} steps, \
             {layers} layers of {experts} experts, {} slots on {} ranks, {nodes} {}. Plans from at most {} past steps; steps are \
             scored from step {} on, by plans that have not seen them.</p>\n",
            escape(self.trace),
            self.headline(),
            self.topology.slots(),
            self.topology.ranks(),
            if nodes == 1 { "node" } else { "nodes" },
            self.window,
            self.first_step
        )
    }

    /// Which policy balances best, and which one comes near it with far fewer moves.
    fn headline(&self) -> String {
        let Some(best) = self.policies.iter().max_by(|a, b| a.mean.total_cmp(&b.mean)) else {
            return String::new();
        };
        let mut text = format!(
            "<p class=\"lead\"><strong>{}</strong> balances best: mean balancedness {:.3}, with {} moves.",
            escape(best.name),
            best.mean,
            grouped(best.moves as u64)
        );
        let near = |p: &&Policy<'_>| best.mean - p.mean <= NEAR && p.moves * 2 <= best.moves;
        if let Some(cheap) = self.policies.iter().filter(near).min_by_key(|p| p.moves) {
            text.push_str(&format!(
                " <strong>{}</strong> comes within {:.3} of it with {} moves.",
                escape(cheap.name),
                best.mean - cheap.mean,
                grouped(cheap.moves as u64)
            ));
        }
        text.push_str("</p>");
        text
    }

    fn table(&self) -> String {
        let nodes = self.policies.iter().any(|p| p.crossing.is_some());
        let mut html = format!(
            "<section><h2>Policies side by side</h2><div class=\"scroll\"><table><thead><tr><th>policy</th><th>balancedness, mean\
             </th><th>plans every</th><th>worst 1% of steps</th><th>time lost to stragglers</th>{}<th>moves</th><th>slots moved per step</th><th>bytes moved\
             </th><th>link time</th><th>plan, median (range)</th></tr></thead><tbody>\n",
            if nodes { "<th>tokens across nodes</th><th>price paid</th>" } else { "" }
        );
        for (index, p) in self.policies.iter().enumerate() {
            html.push_str(&format!(
                "<tr><th><span class=\"chip\" style=\"background:{}\"></span>{}</th><td>{:.4}</td><td>{}</td><td>{:.4}</td>\
                 <td>{:.1}%</td>{}<td>{}</td><td>{:.3}%</td><td>{}</td><td>{:.2} s</td><td>{:.2} ms ({:.2}\u{2013}{:.2})</td></tr>\n",
                chart::colour(index),
                escape(p.name),
                p.mean,
                if p.interval == 1 { "step".into() } else { format!("{} steps", p.interval) },
                p.p01,
                p.waiting * 100.0,
                match p.crossing {
                    Some(crossing) =>
                        format!("<td>{:.2}%</td><td>{:.4}</td>", crossing.part * 100.0, crossing.paid()),
                    None if nodes => "<td></td><td></td>".into(),
                    None => String::new(),
                },
                grouped(p.moves as u64),
                p.moves_fraction * 100.0,
                bytes(p.bytes),
                p.link_seconds,
                p.plan_ms,
                p.plan_ms_range.0,
                p.plan_ms_range.1
            ));
        }
        if let Some(oracle) = self.oracle {
            let mean = oracle.iter().sum::<f64>() / oracle.len().max(1) as f64;
            html.push_str(&format!(
                "<tr class=\"bound\"><th>bound</th><td>{mean:.4}</td><td colspan=\"{}\">no placement and no split could be \
                 better, step by step</td></tr>\n",
                if nodes { 10 } else { 8 }
            ));
        }
        html.push_str(&format!(
            "</tbody></table></div><p class=\"note\">Moves of the first plan are not counted. Bytes are moves times {} \
             per expert; link time is what the rank that receives most needs at {} GB/s.</p></section>\n",
            bytes(self.expert_bytes),
            self.link_gbps
        ));
        html
    }

    fn over_time(&self) -> String {
        let mut lines: Vec<Line<'_>> = self
            .policies
            .iter()
            .map(|p| Line { name: p.name, values: p.balancedness, plans: Some(&p.rebalances) })
            .collect();
        if let Some(oracle) = self.oracle {
            lines.push(Line { name: "bound", values: oracle, plans: None });
        }
        format!(
            "<section><h2>Balance over time</h2>{}<div class=\"scroll\">{}</div><p class=\"note\">Balancedness: in each layer the mean load of the ranks \
             over the largest, then the mean over layers; 1 is perfect. Pale lines are single steps, bold ones the mean while one \
             plan was in force; marks below the axis are plans. The axis need not start at 0. Point at the chart for the numbers \
             of a step, click a name to hide its lines.</p></section>\n",
            chart::key(self.first_step, &lines),
            chart::lines("Balancedness of each step", "balancedness", self.first_step, &lines)
        )
    }

    fn moves(&self) -> String {
        let mut points: Vec<Point> = self
            .policies
            .iter()
            .enumerate()
            .map(|(series, p)| Point {
                name: p.name.into(),
                x: p.moves_fraction * 100.0,
                y: p.mean,
                series,
                minor: false,
            })
            .collect();
        points.extend(self.frontier.iter().map(|f| Point {
            name: f.name.clone(),
            x: f.moves_fraction * 100.0,
            y: f.mean,
            series: self.policies.iter().position(|p| p.name == f.policy).unwrap_or(self.policies.len()),
            minor: true,
        }));
        format!(
            "<section><h2>Balance against moves</h2><div class=\"scroll\">{}</div><p class=\"note\">Up is better balance, left is fewer experts moved; \
             mind that a step to the right means many times more moves. {}</p></section>\n",
            chart::scatter(
                "Balance against moves",
                "slots moved per step, % (logarithmic)",
                "none",
                "mean balancedness",
                &points
            ),
            if self.frontier.is_empty() {
                ""
            } else {
                "Joined points are a policy with other settings: <em>incremental</em> with other wanted balances, <em>forecast</em> \
                 with other prices of a move."
            }
        )
    }

    fn heat_maps(&self) -> Result<String, CoreError> {
        let mut html = String::from("<section><h2>Ranks by layers, on the loads of the last window</h2>\n");
        for policy in self.policies.iter().filter(|p| p.name != "static") {
            let picture = PlacementPicture {
                loads: self.last_loads,
                topology: self.topology,
                before: Some(self.start),
                after: policy.last,
                numbers: false,
            };
            html.push_str(&format!(
                "<details{}><summary>{}: the placement that a server starts with, and the one at the end</summary>\n\
                 <div class=\"scroll\">{}</div></details>\n",
                if policy.name == self.first_shown() { " open" } else { "" },
                escape(policy.name),
                picture.svg()?
            ));
        }
        html.push_str(
            "<p class=\"note\">A cell is one rank in one layer: pale where it has the mean load of the layer's ranks, orange \
             above, blue below. A balanced placement is a pale picture. Dots mark ranks with experts that have replicas, the larger the \
             more of them. Point at a cell for its numbers.</p></section>\n",
        );
        Ok(html)
    }

    /// The policy whose heat maps are open at first: the best one that is not `static`.
    fn first_shown(&self) -> &str {
        let others = self.policies.iter().filter(|p| p.name != "static");
        others.max_by(|a, b| a.mean.total_cmp(&b.mean)).map_or("", |p| p.name)
    }

    fn replicas(&self) -> String {
        let bars: Vec<(String, Vec<usize>)> = self
            .policies
            .iter()
            .map(|p| {
                let mut counts = vec![0; 4];
                for &count in p.last.logcnt().iter().filter(|&&count| count > 0) {
                    counts[(count as usize).min(4) - 1] += 1;
                }
                (p.name.to_owned(), counts)
            })
            .collect();
        format!(
            "<section><h2>Replicas at the end</h2><div class=\"scroll\">{}</div><p class=\"note\">Experts of all layers, by how many slots hold \
             them.</p></section>\n",
            chart::stacked("Replicas of experts", &["1 slot", "2 slots", "3 slots", "4 or more"], &bars)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn html(name: &str) -> String {
        html_with(name, None)
    }

    /// A report of two policies; the first crosses nodes as given.
    fn html_with(name: &str, crossing: Option<Crossing>) -> String {
        let topology = Topology::uniform(2, 4).unwrap();
        let start = Placement::new(3, array![[0, 1, 2, 0]]).unwrap();
        let last = Placement::new(3, array![[0, 2, 1, 0]]).unwrap();
        let loads = array![[8.0, 6.0, 2.0]];
        let policy = |name, mean, last| Policy {
            name,
            interval: 10,
            balancedness: &[0.7, 0.8, 0.75],
            mean,
            p01: 0.7,
            waiting: 0.25,
            moves: 2,
            moves_fraction: 0.1,
            bytes: 4_000_000_000,
            link_seconds: 0.5,
            plan_ms: 0.25,
            plan_ms_range: (0.2, 0.9),
            rebalances: vec![20],
            crossing: crossing.filter(|_| name == "incremental"),
            last,
        };
        ReplayReport {
            trace: name,
            shape: (23, 1, 3),
            topology: &topology,
            window: 20,
            expert_bytes: 1000,
            link_gbps: 50.0,
            first_step: 20,
            policies: vec![policy("incremental", 0.75, &last), policy("static", 0.6, &start)],
            oracle: Some(&[0.9, 1.0, 0.95]),
            frontier: vec![FrontierPoint {
                policy: "incremental".into(),
                name: "0.9".into(),
                moves_fraction: 0.05,
                mean: 0.7,
            }],
            start: &start,
            last_loads: loads.view(),
        }
        .html()
        .unwrap()
    }

    #[test]
    fn everything_is_on_the_page_and_nothing_is_fetched() {
        let page = html("day.npz");
        for part in [
            "Policies side by side",
            "0.7500",
            "4.00 GB",
            "0.25 ms (0.20\u{2013}0.90)",
            "data-values=\"0.7000 0.8000 0.7500\"",
            "0.9500",
            "Replicas at the end",
            "How to read this",
        ] {
            assert!(page.contains(part), "{part}");
        }
        // No address but the name space of SVG.
        assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
        assert_eq!(page.matches("<script>").count(), 1, "one script, which stands in the page");
        assert!(!page.contains("src=") && !page.contains("url(") && !page.contains("import"));
    }

    #[test]
    fn the_headline_names_the_best_and_the_cheap() {
        let page = html("day.npz");
        assert!(
            page.contains(
                "<strong>incremental</strong> balances best: mean balancedness 0.750, with 2 moves."
            )
        );
        assert!(!page.contains("comes within"), "static is far from it");
        assert_eq!(grouped(1234567), "1\u{202f}234\u{202f}567");
        assert_eq!((grouped(0), grouped(100)), ("0".into(), "100".into()));
        assert_eq!(
            (bytes(12), bytes(44_040_192), bytes(1_112_460_000_000)),
            ("12 B".into(), "44.04 MB".into(), "1.11 TB".into())
        );
    }

    #[test]
    fn what_crosses_nodes_and_its_price_stand_beside_the_balance() {
        let (one, several) = ("<th>price paid</th>", Crossing { part: 0.125, price: 0.3 });
        assert!(!html("day.npz").contains(one), "with one node nothing crosses");
        let page = html_with("day.npz", Some(several));
        let row = |name: &str| {
            let from = page.split_once(&format!("</span>{name}</th>")).unwrap().1;
            from.split_once("</tr>").unwrap().0.to_owned()
        };
        assert!(page.contains(one) && row("incremental").contains("<td>12.50%</td><td>0.0375</td>"));
        // Every row has as many cells as the head.
        let head = page.split_once("<thead>").unwrap().1.split_once("</thead>").unwrap().0;
        for name in ["incremental", "static"] {
            assert_eq!(row(name).matches("<td>").count() + 1, head.matches("<th>").count(), "{name}");
        }
        assert!(page.contains("<td colspan=\"10\">"));
    }

    #[test]
    fn every_element_that_is_opened_is_closed() {
        let page = html_with("<b>&\".npz", Some(Crossing { part: 0.5, price: 1.0 }));
        assert!(page.contains("&lt;b&gt;&amp;&quot;.npz"));
        let mut open = Vec::new();
        let (before, script) = page.split_once("<script>").unwrap();
        let (_, after) = script.split_once("</script>").unwrap();
        for tag in before.split('<').skip(1).chain(after.split('<').skip(1)) {
            let tag = &tag[..tag.find('>').unwrap()];
            let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap();
            if tag.starts_with('!') || tag.ends_with('/') || name == "meta" {
                continue;
            }
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else {
                open.push(name);
            }
        }
        assert_eq!(open, Vec::<&str>::new());
    }
}
