//! The best balancedness that any placement and any split can reach.

mod companions;
mod count;
mod crowd;
mod even;
mod fractions;
mod ranks;
mod sorted;

use ndarray::{ArrayView1, ArrayView2};

use self::companions::Companions;
use self::even::Even;
use self::ranks::Ranks;
use self::sorted::SortedLoads;
use crate::metrics::Balance;
use crate::topology::Topology;

/// A proof about one layer: no placement on this topology, with any split over replicas, loads its busiest
/// rank with less than `rank_load`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerBound {
    /// Least possible load of the busiest rank, in tokens per unit of speed.
    pub rank_load: f64,
    /// Largest possible balancedness, 0..1.
    pub balancedness: f64,
}

/// Proves bounds for the layers of one topology; keeps its memory from layer to layer.
#[derive(Debug, Clone)]
pub struct BoundSolver {
    ranks: Ranks,
    loads: SortedLoads,
    companions: Companions,
    even: Even,
}

impl BoundSolver {
    /// Bounds for placements on the live ranks of `topology` with at most `max_replicas` replicas of an expert.
    pub fn new(topology: &Topology, max_replicas: Option<usize>) -> Self {
        Self {
            ranks: Ranks::new(topology, max_replicas),
            loads: SortedLoads::default(),
            companions: Companions::default(),
            even: Even::default(),
        }
    }

    /// Bound of one layer with loads `row` (`[E]`) for any placement and any split; `None` if the layer is idle.
    pub fn layer(&mut self, row: ArrayView1<'_, f64>) -> Option<LayerBound> {
        let rank_load = self.any_split(row)?;
        Some(self.bound(rank_load))
    }

    /// Bound of one layer with loads `row` (`[E]`) for any placement at even split; `None` if the layer is idle.
    pub fn even_layer(&mut self, row: ArrayView1<'_, f64>) -> Option<LayerBound> {
        let any_split = self.any_split(row)?;
        let even = self.even.prove(&self.loads, &self.ranks, any_split);
        Some(self.bound(even))
    }

    /// Least rank load that is proved for any split: 0 if live slots do not suffice, as any expert may be left out then.
    fn any_split(&mut self, row: ArrayView1<'_, f64>) -> Option<f64> {
        self.loads.fill(row);
        let (loads, ranks) = (&self.loads, &self.ranks);
        if loads.total() <= 0.0 {
            return None;
        }
        if ranks.slots < loads.len() {
            return Some(0.0);
        }
        let counted = count::prove(loads, ranks);
        let crowded = crowd::prove(loads, ranks, counted);
        Some(self.companions.prove(loads, ranks, crowded))
    }

    /// Gives the last bits away, so that rounding never puts a bound past a plan that reaches it.
    fn bound(&self, rank_load: f64) -> LayerBound {
        let balancedness = self.ranks.balancedness(self.loads.total(), rank_load) * (1.0 + 1e-12);
        LayerBound { rank_load: rank_load * (1.0 - 1e-12), balancedness: balancedness.min(1.0) }
    }
}

/// Bound of one layer with loads `row` (`[E]`); `None` if the layer is idle.
pub fn layer_bound(row: ArrayView1<'_, f64>, topology: &Topology) -> Option<LayerBound> {
    layer_bound_with(row, topology, None)
}

/// As [`layer_bound`], where no expert has more than `max_replicas` replicas.
pub fn layer_bound_with(
    row: ArrayView1<'_, f64>,
    topology: &Topology,
    max_replicas: Option<usize>,
) -> Option<LayerBound> {
    BoundSolver::new(topology, max_replicas).layer(row)
}

/// Bound of every layer for loads `[L, E]`, summed up as balancedness is.
pub fn bound(loads: ArrayView2<'_, f64>, topology: &Topology) -> Balance {
    let mut solver = BoundSolver::new(topology, None);
    Balance::over_layers(
        loads.rows().into_iter().map(|row| solver.layer(row).map(|b| b.balancedness)).collect(),
    )
}

/// As [`bound`], for plans at even split.
pub fn even_bound(loads: ArrayView2<'_, f64>, topology: &Topology) -> Balance {
    let mut solver = BoundSolver::new(topology, None);
    Balance::over_layers(
        loads.rows().into_iter().map(|row| solver.even_layer(row).map(|b| b.balancedness)).collect(),
    )
}
