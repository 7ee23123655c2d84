//! Charts as SVG: lines over steps, points, stacked bars. Axes start where they say; series differ in colour and in dash or
//! shape, so that neither is needed to tell them apart.

use std::fmt::Write as _;

/// Colours of series: the palette of Okabe and Ito, made for all kinds of colour vision.
const SERIES: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// Dashes of series, in the same order.
const DASHES: [&str; 6] = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"];

/// Colour of a series.
pub(crate) fn colour(series: usize) -> &'static str {
    SERIES[series % SERIES.len()]
}

/// Text that is safe inside SVG and HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 18.0;

/// Values over steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) values: &'a [f64],
    /// Drawn thin and grey: a reference rather than a series.
    pub(crate) reference: bool,
}

/// Where values lie on a vertical axis.
struct Axis {
    low: f64,
    high: f64,
    top: f64,
    bottom: f64,
}

impl Axis {
    /// An axis over all values, with its ends on round numbers; `cap` is the largest value that makes sense.
    fn over(values: impl Iterator<Item = f64>, cap: f64, top: f64, bottom: f64) -> Self {
        let (low, high) =
            values.filter(|v| v.is_finite()).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let step = step_of(high - low);
        let low = (low / step).floor() * step;
        let high = ((high / step).ceil() * step).max(low + step).min(cap.max(low + step));
        Self { low, high, top, bottom }
    }

    fn at(&self, value: f64) -> f64 {
        self.bottom
            - (value.clamp(self.low, self.high) - self.low) / (self.high - self.low)
                * (self.bottom - self.top)
    }

    fn ticks(&self) -> Vec<f64> {
        let step = step_of(self.high - self.low);
        let first = (self.low / step).round() as i64;
        (first..).map(|n| n as f64 * step).take_while(|&t| t <= self.high + step * 1e-6).collect()
    }
}

/// A round distance between ticks: 1, 2 or 5 times a power of ten, for about six of them.
fn step_of(span: f64) -> f64 {
    let raw = span.max(1e-9) / 6.0;
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= raw).unwrap_or(10.0 * power)
}

/// A tick's number with as many digits as its distance needs.
fn label(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}")
}

fn open(height: f64, title: &str) -> String {
    format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\">\n<title>{0}</title>\n",
        escape(title)
    )
}

fn grid(svg: &mut String, axis: &Axis, name: &str) {
    let step = step_of(axis.high - axis.low);
    for tick in axis.ticks() {
        let y = axis.at(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0,
            label(tick, step)
        );
    }
    let middle = (axis.top + axis.bottom) / 2.0;
    let _ = writeln!(
        svg,
        "<text class=\"axis\" transform=\"translate(14 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        escape(name)
    );
}

/// Lines over steps `first..`, with ticks below at which something happened.
pub(crate) fn lines(
    title: &str,
    vertical: &str,
    first: usize,
    lines: &[Line<'_>],
    marks: &[usize],
) -> String {
    let height = 380.0;
    let count = lines.iter().map(|l| l.values.len()).max().unwrap_or(0).max(2);
    let axis = Axis::over(lines.iter().flat_map(|l| l.values.iter().copied()), 1.0, 16.0, height - 54.0);
    let x = |index: f64| LEFT + (WIDTH - LEFT - RIGHT) * index / (count - 1) as f64;
    let mut svg = open(height, title);
    grid(&mut svg, &axis, vertical);
    let step = step_of(count as f64).max(1.0) as usize;
    for index in (0..count).filter(|i| (first + i).is_multiple_of(step)) {
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(index as f64),
            axis.bottom + 24.0,
            first + index
        );
    }
    for &mark in marks {
        let at = x(mark.saturating_sub(first) as f64);
        let _ = writeln!(
            svg,
            "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            axis.bottom + 3.0,
            axis.bottom + 9.0
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        height - 8.0
    );
    let mut series = 0;
    for line in lines {
        let points: Vec<String> = line
            .values
            .iter()
            .enumerate()
            .map(|(i, &v)| format!("{:.1},{:.1}", x(i as f64), axis.at(v)))
            .collect();
        let style = if line.reference {
            "class=\"reference\"".to_owned()
        } else {
            series += 1;
            format!(
                "stroke=\"{}\" stroke-dasharray=\"{}\" stroke-width=\"1.8\"",
                colour(series - 1),
                DASHES[(series - 1) % DASHES.len()]
            )
        };
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" {style} points=\"{}\"><title>{}</title></polyline>",
            points.join(" "),
            escape(line.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The key of a line chart, as HTML.
pub(crate) fn key(lines: &[Line<'_>]) -> String {
    let mut html = String::from("<p class=\"key\">");
    let mut series = 0;
    for line in lines {
        let style = if line.reference {
            "class=\"reference\"".to_owned()
        } else {
            series += 1;
            let dash = DASHES[(series - 1) % DASHES.len()];
            format!("stroke=\"{}\" stroke-dasharray=\"{dash}\" stroke-width=\"2.5\"", colour(series - 1))
        };
        let _ = write!(
            html,
            "<span><svg width=\"34\" height=\"10\"><line x1=\"0\" x2=\"34\" y1=\"5\" y2=\"5\" {style}/></svg> {}</span>",
            escape(line.name)
        );
    }
    html.push_str("</p>\n");
    html
}

/// A point with a name.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Points of one series are joined; the series number also gives colour and shape.
    pub(crate) series: usize,
    /// Whether the name stands above the point instead of at its right.
    pub(crate) above: bool,
}

/// Points of `y` against `x`.
pub(crate) fn scatter(title: &str, horizontal: &str, vertical: &str, points: &[Point]) -> String {
    let height = 380.0;
    let axis = Axis::over(points.iter().map(|p| p.y), 1.0, 16.0, height - 54.0);
    let most = points.iter().map(|p| p.x).fold(0.0, f64::max).max(1e-9);
    let step = step_of(most);
    let end = (most / step).ceil() * step;
    // Room at the right for the name of the last point.
    let x = |value: f64| LEFT + 12.0 + (WIDTH - LEFT - RIGHT - 150.0) * value / end;
    let mut svg = open(height, title);
    grid(&mut svg, &axis, vertical);
    let mut tick = 0.0;
    while tick <= end + step * 1e-6 {
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(tick),
            axis.bottom + 20.0,
            label(tick, step)
        );
        tick += step;
    }
    let _ = writeln!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        height - 8.0,
        escape(horizontal)
    );
    let last = points.iter().map(|p| p.series).max().unwrap_or(0);
    for series in 0..=last {
        let mut own: Vec<&Point> = points.iter().filter(|p| p.series == series).collect();
        own.sort_by(|a, b| a.x.total_cmp(&b.x));
        if own.len() > 1 {
            let path: Vec<String> =
                own.iter().map(|p| format!("{:.1},{:.1}", x(p.x), axis.at(p.y))).collect();
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{}\" stroke-opacity=\"0.5\" points=\"{}\"/>",
                colour(series),
                path.join(" ")
            );
        }
        for point in own {
            let (px, py, fill) = (x(point.x), axis.at(point.y), colour(series));
            let shape = match series % 3 {
                0 => format!("<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"5\" fill=\"{fill}\"/>"),
                1 => format!(
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\" fill=\"{fill}\"/>",
                    px - 4.5,
                    py - 4.5
                ),
                _ => format!("<path d=\"M{px:.1} {:.1} l5.5 9.5 h-11 z\" fill=\"{fill}\"/>", py - 6.0),
            };
            let (dx, dy, anchor) = if point.above { (0.0, -11.0, "middle") } else { (9.0, 4.0, "start") };
            let _ = writeln!(
                svg,
                "<g><title>{0}: {1:.4} at {2:.4}</title>{shape}<text class=\"tick\" x=\"{3:.1}\" y=\"{4:.1}\" text-anchor=\"{anchor}\">{0}</text></g>",
                escape(&point.name),
                point.y,
                point.x,
                px + dx,
                py + dy
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Stacked bars: for each name the counts of the parts; all parts of a bar add up to its whole.
pub(crate) fn stacked(title: &str, parts: &[&str], bars: &[(String, Vec<usize>)]) -> String {
    // Light to dark along one hue, so that the order of the parts shows.
    const SHADES: [(&str, &str); 4] =
        [("#d6e6f2", "#1c2733"), ("#92c0e0", "#1c2733"), ("#3b86bd", "#ffffff"), ("#0a4a7d", "#ffffff")];
    let height = 40.0 * bars.len() as f64 + 44.0;
    let mut svg = open(height, title);
    let left = 120.0;
    for (index, (name, counts)) in bars.iter().enumerate() {
        let total = counts.iter().sum::<usize>().max(1) as f64;
        let y = 8.0 + 40.0 * index as f64;
        let _ = writeln!(
            svg,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 10.0,
            y + 19.0,
            escape(name)
        );
        let mut x = left;
        for (part, &count) in counts.iter().enumerate() {
            let width = (WIDTH - left - RIGHT) * count as f64 / total;
            let (fill, ink) = SHADES[part % SHADES.len()];
            let _ = writeln!(
                svg,
                "<g><title>{}: {count} experts with {}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                 height=\"28\" fill=\"{fill}\"/>",
                escape(name),
                escape(parts[part])
            );
            if width > 44.0 {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{ink}\" font-size=\"12\">{count}</text>",
                    x + width / 2.0,
                    y + 18.5
                );
            }
            svg.push_str("</g>\n");
            x += width;
        }
    }
    let mut x = left;
    for (part, name) in parts.iter().enumerate() {
        let y = height - 22.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"14\" height=\"14\" fill=\"{}\"/><text class=\"tick\" x=\"{:.1}\" \
             y=\"{:.1}\">{}</text>",
            SHADES[part % SHADES.len()].0,
            x + 20.0,
            y + 11.5,
            escape(name)
        );
        x += 150.0;
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let axis = Axis::over([0.612, 0.987].into_iter(), 1.0, 0.0, 100.0);
        assert!(axis.low <= 0.612 && axis.high >= 0.987 && axis.high <= 1.0);
        let ticks = axis.ticks();
        assert!((4..=8).contains(&ticks.len()), "{ticks:?}");
        assert_eq!(axis.at(axis.low), 100.0);
        assert_eq!(axis.at(axis.high), 0.0);
        let flat = Axis::over([0.5, 0.5].into_iter(), 1.0, 0.0, 100.0);
        assert!(flat.high > flat.low);
        assert!(Axis::over(std::iter::empty(), 1.0, 0.0, 100.0).high > 0.0);
    }

    #[test]
    fn names_cannot_break_the_page() {
        let line = Line { name: "<b>&\"", values: &[0.5, 0.6], reference: false };
        let svg = lines("t", "v", 0, &[line], &[]);
        assert!(svg.contains("&lt;b&gt;&amp;&quot;") && !svg.contains("<b>"));
    }
}
