//! The best balancedness that any placement can reach, with any split over replicas or at even split.
//!
//! A rank load `T` is ruled out by one of four arguments, each in its own file with its proof; the largest `T` that one
//! of them rules out is the bound:
//! 1. *count*: an expert of `w` tokens needs at least `max(1, ceil(w / T v))` slots, and slots are as many as they are;
//!    `T` is not below the mean;
//! 2. *crowd*: too many experts too large to share a rank with one another (the pigeonhole principle);
//! 3. *companions*: a rank with a piece near `T` must fill its other slots with experts next to nothing, of which there are
//!    only so many: with 2 to 5 slots per rank, or none to spare, this decides;
//! 4. *even*: at even split the gap beside a large piece cannot be filled with crumbs.
//!
//! The first three hold for any split, so for even split too. All are relaxations of bin packing with a cardinality: a
//! plan may still be impossible where no argument rules it out, never the other way round. Numbers are rounded so
//! that a plan which reaches the bound is not above it.

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

/// Proves bounds for the layers of one topology; keeps its memory from layer to layer. The result depends on the loads of the
/// layer alone, whatever was asked before.
///
/// A placement means here: every expert in at least one slot of a live rank, nothing on dead ranks. Several replicas of
/// one expert on one rank are allowed (they gain nothing but at even split, where the bounds allow for them).
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

    /// Bound of one layer with loads `row` (`[E]`, finite, 0 or more) for any placement and any split; `None` if the layer is
    /// idle. About 15 microseconds for 256 experts, up to three times that where more than the mean is proved.
    ///
    /// With fewer live slots than experts some are left out, whichever they are: the bound is then 0 load, balancedness 1.
    pub fn layer(&mut self, row: ArrayView1<'_, f64>) -> Option<LayerBound> {
        let rank_load = self.any_split(row)?;
        Some(self.bound(rank_load))
    }

    /// Bound of one layer with loads `row` (`[E]`, finite, 0 or more) for any placement at even split, each of the `c` replicas
    /// of an expert taking `1/c` of its tokens; `None` if the layer is idle. At least as tight as [`BoundSolver::layer`],
    /// and more so with 2 to 5 slots per rank, for two to five times its cost; the same where speeds differ.
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

/// Bound of one layer with loads `row` (`[E]`, finite, 0 or more) for any placement and any split; `None` if the layer is
/// idle.
///
/// Proof, for equal ranks with `S` slots. Let no rank be loaded above `T`. No piece exceeds `T`, so expert `e` has at least
/// `ceil(w_e / T)` of the slots. For any `s` up to `T / S` let a piece of `x` tokens weigh `h(x) = max(min(x, s), x - D)`,
/// `D = T - S s`. The pieces of one rank weigh `S s` at most: each weighs `s` at most if none exceeds `D + s`; otherwise
/// together they weigh at most their tokens, `T`, less `D` for one that does. So all ranks hold `P s`. An expert in `c`
/// pieces weighs at least `w - c D` while `c (D + s) <= w`, then `k s + min(w - k (D + s), s)` with `k = floor(w / (D + s))`;
/// that is convex in `c`, so handing out the spare slots one by one where they take away most gives the least sum over all
/// counts. If for some `s` it exceeds `P s`, there is no such placement. Unequal speeds and slots: see the source.
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

/// As [`layer_bound_with`], for plans at even split.
///
/// Proof, beyond that of [`layer_bound`]. Fix `m <= s`; a small piece of `y` tokens weighs `min(y, s / ceil(m / y))`. An expert
/// of `w >= m` tokens in `c` small pieces then weighs `min(w, c s / ceil(c m / w))`, at least `min(w, s)` as
/// `ceil(c m / w) <= c`. A piece `x` above `T - (S - 1) s` weighs what `S s` leaves when `S - 1` small pieces of together
/// `T - x` weigh their most, so the pieces of a rank weigh `S s` at most again. That most is `min(T - x, s q)`, `q` the
/// largest sum of `S - 1` unit fractions up to `(T - x) / m`: less than the `T - x` of any split.
pub fn even_layer_bound_with(
    row: ArrayView1<'_, f64>,
    topology: &Topology,
    max_replicas: Option<usize>,
) -> Option<LayerBound> {
    BoundSolver::new(topology, max_replicas).even_layer(row)
}

/// Bound of every layer for loads `[L, E]` for any placement and any split, summed up as balancedness is.
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
