//! A placement before and after: how loaded each rank is in each layer.

use std::fmt::Write as _;

use eplb_core::metrics::{self, rank_loads};
use eplb_core::{CoreError, ExpertId, LayerId, Placement, Topology};
use ndarray::ArrayView2;

use crate::colour::{LARGEST, is_light, of_load};

/// Heat maps rank x layer of one or two placements on the same loads, at even split.
///
/// A cell's colour is the rank's load in multiples of the layer's mean over ranks; a dot marks replicas: its area grows with
/// the number of the rank's slots whose expert has other replicas. Numbers stand in the cell's title (shown when pointed
/// at) and, on request, in the cells.
#[derive(Debug, Clone, Copy)]
pub struct PlacementPicture<'a> {
    /// Loads, `[L, E]`.
    pub loads: ArrayView2<'a, f64>,
    /// Ranks.
    pub topology: &'a Topology,
    /// The placement before, if there is one.
    pub before: Option<&'a Placement>,
    /// The placement to show.
    pub after: &'a Placement,
    /// Whether loads are written into the cells.
    pub numbers: bool,
}

const MARGIN: f64 = 56.0;
const TOP: f64 = 64.0;
const LEGEND: f64 = 74.0;

struct Cells {
    width: f64,
    height: f64,
}

impl PlacementPicture<'_> {
    /// Draws the picture.
    ///
    /// # Errors
    /// Loads, placements and topology of different shapes.
    pub fn svg(&self) -> Result<String, CoreError> {
        let panels: Vec<(&str, &Placement)> =
            self.before.map(|before| ("before", before)).into_iter().chain([("after", self.after)]).collect();
        let (ranks, layers) = (self.topology.ranks() as f64, self.loads.nrows() as f64);
        let least = if self.numbers { 30.0 } else { 3.0 };
        let cells = Cells {
            width: (460.0 / ranks).clamp(least, 34.0),
            height: (560.0 / layers).clamp(if self.numbers { 13.0 } else { 5.0 }, 20.0),
        };
        let panel = (cells.width * ranks).max(240.0) + MARGIN;
        let (width, height) =
            (panel * panels.len() as f64 + MARGIN / 2.0, TOP + cells.height * layers + LEGEND);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
             <title>Load of each rank in each layer</title>\n<style>\n\
             .paper {{ fill: #ffffff }} .ink {{ fill: #1c2733 }} .dim {{ fill: #5b6b7a }} .edge {{ stroke: #8494a3 }}\n\
             @media (prefers-color-scheme: dark) {{ .paper {{ fill: #12181f }} .ink {{ fill: #e6edf3 }} \
             .dim {{ fill: #9fb0bf }} .edge {{ stroke: #5b6b7a }} }}\n</style>\n\
             <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n"
        );
        for (index, (name, placement)) in panels.iter().enumerate() {
            let left = MARGIN + panel * index as f64;
            self.panel(&mut svg, name, placement, left, &cells)?;
        }
        self.legend(&mut svg, height - LEGEND + 34.0);
        svg.push_str("</svg>\n");
        Ok(svg)
    }

    fn panel(
        &self,
        svg: &mut String,
        name: &str,
        placement: &Placement,
        left: f64,
        cells: &Cells,
    ) -> Result<(), CoreError> {
        let balance = metrics::balancedness(self.loads, placement, None, self.topology)?;
        let mut push = |text: String| {
            svg.push_str(&text);
            svg.push('\n');
        };
        push(format!(
            "<text class=\"ink\" x=\"{left}\" y=\"24\" font-size=\"15\" font-weight=\"600\">{name}: balancedness \
             {:.4}</text>",
            balance.mean
        ));
        push(format!(
            "<text class=\"dim\" x=\"{left}\" y=\"42\">least of a layer {:.4}; columns are ranks, rows are layers</text>",
            balance.min
        ));
        let logcnt = placement.logcnt();
        for layer in 0..placement.layers() {
            let loads = rank_loads(self.loads.row(layer), placement, LayerId::at(layer), None, self.topology);
            let live = self.topology.live_ranks().count().max(1) as f64;
            let mean = loads.iter().sum::<f64>() / live;
            let y = TOP + cells.height * layer as f64;
            if layer % label_every(placement.layers()) == 0 {
                push(format!(
                    "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"10\">{layer}</text>",
                    left - 5.0,
                    y + cells.height / 2.0 + 3.5
                ));
            }
            for rank in self.topology.all_ranks() {
                let ratio = if mean > 0.0 { loads[rank.index()] / mean } else { 1.0 };
                let x = left + cells.width * rank.index() as f64;
                let held: Vec<ExpertId> = self
                    .topology
                    .slots_of(rank)
                    .filter_map(|slot| placement.expert_at(LayerId::at(layer), eplb_core::SlotId::at(slot)))
                    .collect();
                let copies = |expert: &ExpertId| logcnt[(layer, expert.index())];
                let replicated = held.iter().filter(|expert| copies(expert) > 1).count();
                let colour = of_load(ratio);
                let mut title = format!("layer {layer}, rank {}: {ratio:.3} of the mean; experts", rank.0);
                for expert in &held {
                    let _ = match copies(expert) {
                        1 => write!(title, " {}", expert.0),
                        n => write!(title, " {} (1 of {n})", expert.0),
                    };
                }
                push(format!(
                    "<g><title>{title}</title><rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{:.2}\" \
                     fill=\"{colour}\"/>",
                    cells.width, cells.height
                ));
                let ink = if is_light(colour) { "#1c2733" } else { "#ffffff" };
                if self.numbers {
                    push(format!(
                        "<text x=\"{:.2}\" y=\"{:.2}\" text-anchor=\"middle\" font-size=\"9\" fill=\"{ink}\">{ratio:.2}</text>",
                        x + cells.width / 2.0,
                        y + cells.height / 2.0 + 3.0
                    ));
                }
                if replicated > 0 {
                    let most = held.len().max(1) as f64;
                    // In the middle of the cell, or small in its corner where a number stands.
                    let (part, across, down) =
                        if self.numbers { (0.16, 0.88, 0.2) } else { (0.34, 0.5, 0.5) };
                    let radius = part * cells.width.min(cells.height) * (replicated as f64 / most).sqrt();
                    push(format!(
                        "<circle cx=\"{:.2}\" cy=\"{:.2}\" r=\"{radius:.2}\" fill=\"{ink}\" fill-opacity=\"0.45\"/>",
                        x + cells.width * across,
                        y + cells.height * down
                    ));
                }
                push("</g>".into());
            }
        }
        let (wide, high) =
            (cells.width * self.topology.ranks() as f64, cells.height * placement.layers() as f64);
        push(format!(
            "<rect class=\"edge\" x=\"{left}\" y=\"{TOP}\" width=\"{wide:.2}\" height=\"{high:.2}\" fill=\"none\"/>"
        ));
        for rank in (0..self.topology.ranks()).step_by(label_every(self.topology.ranks())) {
            push(format!(
                "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{rank}</text>",
                left + cells.width * (rank as f64 + 0.5),
                TOP - 5.0
            ));
        }
        Ok(())
    }

    fn legend(&self, svg: &mut String, y: f64) {
        const STEPS: usize = 50;
        const WIDTH: f64 = 220.0;
        for step in 0..STEPS {
            let ratio = LARGEST * (step as f64 + 0.5) / STEPS as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"10\" fill=\"{}\"/>",
                MARGIN + WIDTH * step as f64 / STEPS as f64,
                WIDTH / STEPS as f64 + 0.3,
                of_load(ratio)
            );
        }
        for ratio in [0.0, 0.5, 1.0, 1.5, 2.0, LARGEST] {
            let _ = writeln!(
                svg,
                "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{ratio}</text>",
                MARGIN + WIDTH * ratio / LARGEST,
                y + 22.0
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\">load of a rank / mean over ranks; a dot marks replicas</text>",
            MARGIN,
            y - 8.0
        );
    }
}

/// Every how many rows or columns a number is written.
fn label_every(count: usize) -> usize {
    [1, 2, 4, 5, 8, 10, 16, 20, 32, 50].into_iter().find(|step| count / step <= 16).unwrap_or(64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_picture_tells_what_the_metrics_say() {
        let topology = Topology::uniform(2, 4).unwrap();
        let loads = array![[8.0, 6.0, 2.0], [0.0, 0.0, 0.0]];
        let before = Placement::new(3, array![[0, 1, 2, 0], [0, 1, 2, 0]]).unwrap();
        let after = Placement::new(3, array![[0, 2, 1, 0], [0, 1, 2, 0]]).unwrap();
        let picture = PlacementPicture {
            loads: loads.view(),
            topology: &topology,
            before: Some(&before),
            after: &after,
            numbers: false,
        };
        let svg = picture.svg().unwrap();
        assert!(svg.contains("before: balancedness 0.8000"), "{svg}");
        assert!(svg.contains("after: balancedness 0.8000"));
        assert!(svg.contains("layer 0, rank 0: 1.250 of the mean; experts 0 (1 of 2) 1"));
        assert_eq!(svg.matches("<g>").count(), 2 * 2 * 2);
        assert_eq!(svg.matches("<g>").count(), svg.matches("</g>").count());
        let numbers = PlacementPicture { numbers: true, before: None, ..picture }.svg().unwrap();
        assert!(numbers.contains(">1.25</text>") && !numbers.contains("before"));
        assert_eq!(numbers.matches("<circle").count(), 2 * 2, "replicas are marked beside numbers too");
        let three = Topology::uniform(3, 3).unwrap();
        assert!(PlacementPicture { topology: &three, ..picture }.svg().is_err());
    }
}
