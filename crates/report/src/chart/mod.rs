//! Charts as SVG: lines over steps, points, stacked bars. Axes start where they say; series differ in colour and in dash or
//! shape, so that neither is needed to tell them apart.

mod lines;
mod scatter;
mod stacked;

use std::fmt::Write as _;

pub(crate) use lines::{Line, key, lines};
pub(crate) use scatter::{Point, scatter};
pub(crate) use stacked::stacked;

/// Colours of series: the palette of Okabe and Ito, made for all kinds of colour vision, and the same hues lighter for dark
/// pages. The page's style gives the names their values.
pub(crate) const SERIES: [(&str, &str, &str); 6] = [
    ("var(--s0)", "#0072b2", "#4ba6e0"),
    ("var(--s1)", "#d55e00", "#f58142"),
    ("var(--s2)", "#009e73", "#2fc79a"),
    ("var(--s3)", "#cc79a7", "#e3a2c8"),
    ("var(--s4)", "#e69f00", "#f3bd4a"),
    ("var(--s5)", "#56b4e9", "#a5dcff"),
];

/// Dashes of series, in the same order.
const DASHES: [&str; 6] = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"];

/// Colour of a series.
pub(crate) fn colour(series: usize) -> &'static str {
    SERIES[series % SERIES.len()].0
}

/// Text that is safe inside SVG and HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 18.0;

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
        let line = Line { name: "<b>&\"", values: &[0.5, 0.6], plans: Some(&[0]) };
        let svg = lines("t", "v", 0, &[line]);
        assert!(svg.contains("&lt;b&gt;&amp;&quot;") && !svg.contains("<b>"));
    }
}
