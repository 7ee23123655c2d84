//! Lines over steps: each step thin and pale, and bold the mean while a plan was in force.

use std::fmt::Write as _;

use super::{Axis, DASHES, LEFT, RIGHT, WIDTH, colour, escape, grid, open, step_of};

/// Values over steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    /// One value per step.
    pub(crate) values: &'a [f64],
    /// Steps at which plans came into force, ascending; none for a reference, which is drawn thin and grey.
    pub(crate) plans: Option<&'a [usize]>,
}

impl Line<'_> {
    /// Runs of steps under one plan, as ranges of positions in the values, with the mean of each.
    fn terms(&self, first: usize) -> Vec<(usize, usize, f64)> {
        let count = self.values.len();
        let mut bounds: Vec<usize> =
            self.plans.unwrap_or_default().iter().map(|p| p.saturating_sub(first)).collect();
        bounds.retain(|&b| b < count);
        bounds.push(0);
        bounds.push(count);
        bounds.sort_unstable();
        bounds.dedup();
        let term = |w: &[usize]| {
            let values = &self.values[w[0]..w[1]];
            (w[0], w[1], values.iter().sum::<f64>() / values.len() as f64)
        };
        bounds.windows(2).map(term).collect()
    }
}

/// Lines over steps `first..`, with marks below at which plans came into force.
pub(crate) fn lines(title: &str, vertical: &str, first: usize, lines: &[Line<'_>]) -> String {
    let height = 400.0;
    let count = lines.iter().map(|l| l.values.len()).max().unwrap_or(0).max(2);
    let axis = Axis::over(lines.iter().flat_map(|l| l.values.iter().copied()), 1.0, 16.0, height - 54.0);
    // A step takes room: its value stands in the middle, a plan comes into force at its left edge.
    let x = |position: f64| LEFT + (WIDTH - LEFT - RIGHT) * position / count as f64;
    let mut svg = open(height, title);
    grid(&mut svg, &axis, vertical);
    steps_axis(&mut svg, &axis, first, count, height, &x);
    let marks = lines.iter().filter_map(|l| l.plans).max_by_key(|p| p.len()).unwrap_or_default();
    for &mark in marks {
        let at = x(mark.saturating_sub(first) as f64);
        let _ = writeln!(
            svg,
            "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            axis.bottom + 3.0,
            axis.bottom + 9.0
        );
    }
    let each = |line: &Line<'_>| {
        let points = line.values.iter().enumerate();
        let points: Vec<String> =
            points.map(|(i, &v)| format!("{:.1},{:.1}", x(i as f64 + 0.5), axis.at(v))).collect();
        points.join(" ")
    };
    // All pale lines first, so that none lies on a bold one.
    for (index, line) in lines.iter().enumerate() {
        let style = match line.plans {
            None => "class=\"reference\"".to_owned(),
            Some(_) => format!("stroke=\"{}\" stroke-opacity=\"0.32\"", colour(index)),
        };
        let points = each(line);
        let _ = writeln!(svg, "<polyline fill=\"none\" {style} data-of=\"{index}\" points=\"{points}\"/>");
    }
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.plans.is_some()) {
        let mut points = Vec::new();
        for (from, to, mean) in line.terms(first) {
            let y = axis.at(mean);
            points.push(format!("{:.1},{y:.1} {:.1},{y:.1}", x(from as f64), x(to as f64)));
        }
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-dasharray=\"{}\" stroke-width=\"2.4\" data-of=\"{index}\" \
             points=\"{}\"><title>{}</title></polyline>",
            colour(index),
            DASHES[index % DASHES.len()],
            points.join(" "),
            escape(line.name)
        );
    }
    let _ = writeln!(
        svg,
        "<line class=\"cursor\" x1=\"0\" x2=\"0\" y1=\"{:.1}\" y2=\"{:.1}\" visibility=\"hidden\"/>\n</svg>",
        axis.top, axis.bottom
    );
    svg
}

fn steps_axis(
    svg: &mut String,
    axis: &Axis,
    first: usize,
    count: usize,
    height: f64,
    x: &impl Fn(f64) -> f64,
) {
    let step = step_of(count as f64).max(1.0) as usize;
    for index in (0..count).filter(|i| (first + i).is_multiple_of(step)) {
        let _ = writeln!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(index as f64 + 0.5),
            axis.bottom + 24.0,
            first + index
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        height - 8.0
    );
}

/// The key of a line chart, as HTML, with a place for the values of a step that is pointed at. Buttons, so that the page's
/// script can hide a line; `data-*` is what the script reads: the first step, where the steps lie, and all values.
pub(crate) fn key(first: usize, lines: &[Line<'_>]) -> String {
    let steps = lines.iter().map(|l| l.values.len()).max().unwrap_or(0).max(2);
    let mut html = format!(
        "<p class=\"key\" data-first=\"{first}\" data-steps=\"{steps}\" data-left=\"{:.4}\" data-right=\"{:.4}\">",
        LEFT / WIDTH,
        1.0 - RIGHT / WIDTH
    );
    for (index, line) in lines.iter().enumerate() {
        let style = match line.plans {
            None => "class=\"reference\"".to_owned(),
            Some(_) => {
                let dash = DASHES[index % DASHES.len()];
                format!("stroke=\"{}\" stroke-dasharray=\"{dash}\" stroke-width=\"2.5\"", colour(index))
            }
        };
        let values: Vec<String> = line.values.iter().map(|v| format!("{v:.4}")).collect();
        let _ = write!(
            html,
            "<button type=\"button\" aria-pressed=\"true\" data-line=\"{index}\" data-values=\"{}\"><svg width=\"34\" \
             height=\"10\"><line x1=\"0\" x2=\"34\" y1=\"5\" y2=\"5\" {style}/></svg> {} <output></output></button>",
            values.join(" "),
            escape(line.name)
        );
    }
    html.push_str("<output class=\"step\"></output></p>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bold_line_is_the_mean_of_each_plan() {
        let values = [0.5, 0.7, 0.9, 0.4, 0.6];
        let line = Line { name: "a", values: &values, plans: Some(&[20, 23]) };
        let terms = line.terms(20);
        assert_eq!(terms.iter().map(|t| (t.0, t.1)).collect::<Vec<_>>(), [(0, 3), (3, 5)]);
        assert!((terms[0].2 - 0.7).abs() < 1e-12 && (terms[1].2 - 0.5).abs() < 1e-12);
        // A plan that no step was scored under, or none at all, changes nothing.
        let late = Line { plans: Some(&[20, 23, 25]), ..line };
        assert_eq!(late.terms(20), terms);
        assert_eq!(Line { plans: Some(&[]), ..line }.terms(20).len(), 1);
    }

    #[test]
    fn steps_under_the_pointer_are_those_of_the_picture() {
        let line = Line { name: "a", values: &[0.5, 0.7], plans: Some(&[7]) };
        let key = key(7, &[line]);
        assert!(
            key.contains("data-first=\"7\" data-steps=\"2\"")
                && key.contains("data-values=\"0.5000 0.7000\"")
        );
        assert!(key.contains(&format!("data-left=\"{:.4}\"", LEFT / WIDTH)));
    }
}
