//! A heat map of loads in characters.

use std::fmt::Write as _;

use ndarray::ArrayView2;

/// Characters of a heat map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Glyphs {
    /// Block elements, lower to full: for terminals with UTF-8.
    #[default]
    Blocks,
    /// ASCII alone.
    Ascii,
}

impl Glyphs {
    /// From no load to the hottest, one for each band between [`BANDS`].
    const fn ramp(self) -> [char; BANDS.len() + 2] {
        match self {
            Self::Blocks => [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            Self::Ascii => [' ', '.', ':', '-', '=', '+', '*', '#', '@'],
        }
    }
}

/// Upper ends of the bands of load, in multiples of the layer's mean expert; beyond the last is the hottest band.
const BANDS: [f64; 7] = [0.25, 0.5, 0.75, 1.0, 1.25, 2.0, 4.0];

/// A picture of loads `[L, E]`: one row per layer (or few layers), one character per expert (or few experts).
///
/// A character says how much its expert has against the mean expert of its layer; where several experts or layers
/// share one, it is that of the hottest, so that no hot expert is hidden by its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeatMap {
    /// Most characters for experts, 1 or more.
    pub width: usize,
    /// Most rows for layers, 1 or more.
    pub height: usize,
    /// What to draw with.
    pub glyphs: Glyphs,
    /// Whether each layer's experts are sorted, hottest first, instead of by number: shows the shape of the skew.
    pub sorted: bool,
}

/// 64 by 32 characters, by expert number.
impl Default for HeatMap {
    fn default() -> Self {
        Self { width: 64, height: 32, glyphs: Glyphs::default(), sorted: false }
    }
}

impl HeatMap {
    /// Draws loads `[L, E]`, with a title, layer numbers, the largest load of each row and a legend. Every line
    /// ends in a line feed.
    pub fn render(&self, loads: ArrayView2<'_, f64>) -> String {
        let (layers, experts) = loads.dim();
        let ratios: Vec<Vec<f64>> = (0..layers).map(|layer| self.ratios(&loads, layer)).collect();
        let rows = bins(layers, self.height);
        let columns = bins(experts, self.width);
        let digits = layers.saturating_sub(1).to_string().len();
        let label = |start: usize, end: usize| match end - start {
            1 => format!("{start:>digits$}"),
            _ => format!("{start:>digits$}-{:<digits$}", end - 1),
        };
        let margin = rows.iter().map(|&(a, b)| label(a, b).len()).max().unwrap_or(0).max("layer".len());

        let mut map = format!("{:>margin$}  {}\n", "layer", self.title(experts, columns.len()));
        for &(start, end) in &rows {
            let label = label(start, end);
            let _ = write!(map, "{label:>margin$} |");
            let mut hottest = 0.0f64;
            for &(left, right) in &columns {
                let cells = ratios[start..end].iter().flat_map(|row| &row[left..right]);
                let ratio = cells.copied().fold(0.0, f64::max);
                hottest = hottest.max(ratio);
                map.push(self.glyph(ratio));
            }
            let _ = match hottest > 0.0 {
                true => writeln!(map, "| {hottest:.2}"),
                false => writeln!(map, "| idle"),
            };
        }
        let _ = writeln!(map, "{:>margin$}  {}", "", self.legend());
        map
    }

    /// Loads of a layer over their mean, in the order of the picture; zeros if the layer is idle.
    fn ratios(&self, loads: &ArrayView2<'_, f64>, layer: usize) -> Vec<f64> {
        let row = loads.row(layer);
        let mean = row.sum() / row.len() as f64;
        let mut ratios: Vec<f64> =
            row.iter().map(|&load| if mean > 0.0 { load / mean } else { 0.0 }).collect();
        if self.sorted {
            ratios.sort_by(|a, b| b.total_cmp(a));
        }
        ratios
    }

    fn glyph(&self, ratio: f64) -> char {
        let ramp = self.glyphs.ramp();
        if ratio <= 0.0 {
            return ramp[0];
        }
        ramp[1 + BANDS.iter().filter(|&&end| ratio > end).count()]
    }

    fn title(&self, experts: usize, columns: usize) -> String {
        let order = if self.sorted { ", hottest first" } else { "" };
        let binned = if columns < experts { format!(", {columns} columns") } else { String::new() };
        format!("experts 0..{experts}{order}{binned}; at the right: hottest / mean")
    }

    fn legend(&self) -> String {
        let ramp = self.glyphs.ramp();
        let mut legend = String::from("x mean:");
        for (glyph, end) in ramp[1..].iter().zip(BANDS) {
            let _ = write!(legend, "  {glyph} <={end}");
        }
        let _ = write!(legend, "  {} more, blank: none", ramp[ramp.len() - 1]);
        legend
    }
}

/// `0..of` in at most `most` ranges whose lengths differ by at most one.
fn bins(of: usize, most: usize) -> Vec<(usize, usize)> {
    let bins = of.min(most.max(1));
    (0..bins).map(|bin| (bin * of / bins, (bin + 1) * of / bins)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    #[test]
    fn a_small_map() {
        let loads = array![[1.0, 8.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]];
        let map = HeatMap { glyphs: Glyphs::Ascii, ..HeatMap::default() }.render(loads.view());
        let expected = "\
layer  experts 0..4; at the right: hottest / mean
    0 |:#= | 2.67
    1 |    | idle
    2 |====| 1.00
       x mean:  . <=0.25  : <=0.5  - <=0.75  = <=1  + <=1.25  * <=2  # <=4  @ more, blank: none
";
        assert_eq!(map, expected);
        let sorted = HeatMap { sorted: true, ..HeatMap::default() }.render(loads.view());
        assert!(sorted.contains("    0 |▇▄▂ | 2.67\n"), "{sorted}");
    }

    #[test]
    fn large_maps_are_binned_and_hide_no_hot_expert() {
        let mut loads = Array2::from_elem((61, 384), 1.0);
        loads[[60, 383]] = 1000.0;
        let map = HeatMap { width: 50, height: 10, ..HeatMap::default() }.render(loads.view());
        let lines: Vec<&str> = map.lines().collect();
        assert_eq!(lines.len(), 12);
        assert!(lines[10].starts_with("54-60 |") && lines[10].contains("█| "), "{map}");
        assert!(lines[1..11].iter().all(|l| l.split('|').nth(1).unwrap().chars().count() == 50));
    }

    #[test]
    fn bins_cover_everything() {
        for (of, most) in [(1, 1), (10, 3), (384, 50), (3, 10), (5, 0)] {
            let bins = bins(of, most);
            assert!(bins.len() <= most.max(1) && bins[0].0 == 0 && bins[bins.len() - 1].1 == of);
            assert!(bins.windows(2).all(|pair| pair[0].1 == pair[1].0) && bins.iter().all(|b| b.0 < b.1));
        }
    }
}
