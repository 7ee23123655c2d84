//! Points of balance against cost, the cost on a logarithmic axis: what counts is how many times less it is.

use std::fmt::Write as _;

use super::{Axis, LEFT, RIGHT, WIDTH, colour, escape, grid, open};

/// A point with a name.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) name: String,
    /// 0 or more.
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Points of one series are joined; the series number also gives colour and shape.
    pub(crate) series: usize,
    /// Whether the point is one of several of its series, drawn smaller.
    pub(crate) minor: bool,
}

/// Distance of the place for 0 from the left end of the axis.
const NONE: f64 = 26.0;

/// Where the logarithmic part starts, from the left end.
const BREAK: f64 = 64.0;

/// A logarithmic axis with a place of its own, left of it, for 0.
struct LogAxis {
    low: f64,
    high: f64,
}

impl LogAxis {
    /// An axis over the positive ones of the values, its ends on 1, 2 or 5 times a power of ten.
    fn over(values: impl Iterator<Item = f64> + Clone) -> Self {
        let positive = values.filter(|v| *v > 0.0 && v.is_finite());
        let low = positive.clone().fold(f64::MAX, f64::min);
        let high = positive.fold(f64::MIN, f64::max);
        if low > high {
            return Self { low: 0.1, high: 1.0 };
        }
        let ends = Self { low: low / 10.0, high: high * 10.0 }.ticks();
        let low = ends.iter().copied().filter(|&t| t <= low * (1.0 + 1e-9)).fold(f64::MIN, f64::max);
        let high = ends.iter().copied().filter(|&t| t >= high * (1.0 - 1e-9)).fold(f64::MAX, f64::min);
        Self { low, high: if high > low { high } else { low * 10.0 } }
    }

    fn at(&self, value: f64) -> f64 {
        if value <= 0.0 {
            return LEFT + NONE;
        }
        let part = (value / self.low).ln() / (self.high / self.low).ln();
        LEFT + BREAK + part.clamp(0.0, 1.0) * (WIDTH - RIGHT - 90.0 - LEFT - BREAK)
    }

    /// 1, 2 and 5 times the powers of ten on the axis.
    fn ticks(&self) -> Vec<f64> {
        let (from, to) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let all = (from..=to).flat_map(|power| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(power)));
        all.filter(|t| (self.low * (1.0 - 1e-9)..=self.high * (1.0 + 1e-9)).contains(t)).collect()
    }
}

/// A tick as a plain decimal number.
fn number(value: f64) -> String {
    let digits = (-value.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.digits$}")
}

/// Points of `y` against `x`; `none` names the place of those with an `x` of 0.
pub(crate) fn scatter(title: &str, horizontal: &str, none: &str, vertical: &str, points: &[Point]) -> String {
    let height = 400.0;
    let axis = Axis::over(points.iter().map(|p| p.y), 1.0, 16.0, height - 54.0);
    let across = LogAxis::over(points.iter().map(|p| p.x));
    let mut svg = open(height, title);
    grid(&mut svg, &axis, vertical);
    for tick in across.ticks() {
        let x = across.at(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><text class=\"tick\" x=\"{x:.1}\" \
             y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            axis.top,
            axis.bottom,
            axis.bottom + 20.0,
            number(tick)
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><line class=\"mark\" x1=\"{3:.1}\" \
         x2=\"{3:.1}\" y1=\"{4:.1}\" y2=\"{5:.1}\" stroke-dasharray=\"2 4\"/>",
        LEFT + NONE,
        axis.bottom + 20.0,
        escape(none),
        LEFT + (NONE + BREAK) / 2.0,
        axis.top,
        axis.bottom
    );
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
        own.sort_by(|a, b| a.x.total_cmp(&b.x).then(a.y.total_cmp(&b.y)));
        if own.len() > 1 {
            let path: Vec<String> =
                own.iter().map(|p| format!("{:.1},{:.1}", across.at(p.x), axis.at(p.y))).collect();
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{}\" stroke-opacity=\"0.5\" stroke-width=\"1.5\" points=\"{}\"/>",
                colour(series),
                path.join(" ")
            );
        }
    }
    let places: Vec<(f64, f64)> = points.iter().map(|p| (across.at(p.x), axis.at(p.y))).collect();
    for (point, label) in points.iter().zip(labels(points, &places)) {
        let (px, py) = (across.at(point.x), axis.at(point.y));
        let _ = writeln!(
            svg,
            "<g><title>{0}: {1:.4} at {2:.4}</title>{3}<text class=\"{4}\" x=\"{5:.1}\" y=\"{6:.1}\" \
             text-anchor=\"{7}\">{0}</text></g>",
            escape(&point.name),
            point.y,
            point.x,
            shape(point, px, py),
            if point.minor { "tick" } else { "axis" },
            label.x,
            label.y,
            label.anchor
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// The mark of a point: series differ in shape as well as in colour.
fn shape(point: &Point, x: f64, y: f64) -> String {
    let fill = colour(point.series);
    let r = if point.minor { 3.5 } else { 6.0 };
    match point.series % 3 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\" fill=\"{fill}\"/>"),
        1 => {
            let (left, top, side) = (x - r * 0.9, y - r * 0.9, r * 1.8);
            format!(
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{side:.1}\" height=\"{side:.1}\" fill=\"{fill}\"/>"
            )
        }
        _ => format!(
            "<path d=\"M{x:.1} {:.1} l{:.1} {:.1} h-{:.1} z\" fill=\"{fill}\"/>",
            y - r * 1.2,
            r * 1.1,
            r * 1.9,
            r * 2.2
        ),
    }
}

/// Where a name stands.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Label {
    x: f64,
    y: f64,
    anchor: &'static str,
}

/// Places for the names, main points first: right (above for minor points), above, below or left of the point, the first
/// that covers neither a point nor a name that has its place; the first of all if there is none.
fn labels(points: &[Point], places: &[(f64, f64)]) -> Vec<Label> {
    let mut taken: Vec<[f64; 4]> =
        places.iter().map(|&(x, y)| [x - 6.0, y - 6.0, x + 6.0, y + 6.0]).collect();
    let mut labels = vec![Label { x: 0.0, y: 0.0, anchor: "start" }; points.len()];
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&i| (points[i].minor, i));
    for i in order {
        let (x, y) = places[i];
        // Letters of 12 pixels are 6.6 wide in the mean.
        let wide = points[i].name.chars().count() as f64 * 6.6;
        let mut sides = [
            (x + 11.0, y + 4.0, "start", x + 11.0),
            (x, y - 11.0, "middle", x - wide / 2.0),
            (x, y + 20.0, "middle", x - wide / 2.0),
            (x - 11.0, y + 4.0, "end", x - 11.0 - wide),
        ];
        if points[i].minor {
            // A line joins these: above it there is room.
            sides.swap(0, 1);
        }
        let box_of = |y: f64, left: f64| [left, y - 10.0, left + wide, y + 3.0];
        let free = |b: [f64; 4]| {
            b[2] <= WIDTH
                && taken.iter().enumerate().all(|(other, t)| {
                    other == i || b[0] >= t[2] || t[0] >= b[2] || b[1] >= t[3] || t[1] >= b[3]
                })
        };
        let side = sides.iter().find(|s| free(box_of(s.1, s.3))).unwrap_or(&sides[0]);
        taken.push(box_of(side.1, side.3));
        labels[i] = Label { x: side.0, y: side.1, anchor: side.2 };
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ratios_are_equal_distances_and_nothing_is_left_of_the_break() {
        let axis = LogAxis::over([0.0, 0.03, 4.2].into_iter());
        assert_eq!((axis.low, axis.high), (0.02, 5.0));
        let ticks = axis.ticks();
        assert_eq!(ticks.len(), 8, "{ticks:?}");
        let one = axis.at(0.5) - axis.at(0.05);
        assert!((axis.at(5.0) - axis.at(0.5) - one).abs() < 1e-9);
        assert!(axis.at(0.0) < axis.at(0.02) - 30.0);
        assert_eq!(number(0.02), "0.02");
        assert_eq!(number(5.0), "5");
        let nothing_moved = LogAxis::over([0.0, 0.0].into_iter());
        assert!(nothing_moved.high > nothing_moved.low);
        let one_value = LogAxis::over([2.0].into_iter());
        assert!(one_value.high > one_value.low && one_value.at(2.0).is_finite());
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let point = |name: &str, minor| Point { name: name.into(), x: 1.0, y: 0.5, series: 0, minor };
        let points = [point("to 0.95", true), point("incremental", false), point("to 0.9", true)];
        let labels = labels(&points, &[(100.0, 100.0), (100.0, 100.0), (104.0, 100.0)]);
        assert_eq!(labels[1].anchor, "start", "the main point comes first");
        assert_ne!(labels[0], labels[1]);
        assert_ne!(labels[0], labels[2]);
    }
}
