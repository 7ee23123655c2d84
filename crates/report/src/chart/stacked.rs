//! Stacked bars.

use std::fmt::Write as _;

use super::{RIGHT, WIDTH, escape, open};

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
