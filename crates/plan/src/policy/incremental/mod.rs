//! `incremental`: starts from the placement in force and makes the changes that buy most balance per move.
//!
//! 1. `layer`: what live ranks hold is the start. A second copy on a rank, and replicas beyond `max_replicas`, are
//!    emptied, which costs nothing (a layer that makes no change keeps its second copies); experts that no live rank holds are put back, whatever that costs.
//! 2. `climb`: again and again the rank with the largest penalty is relieved by the change with the largest drop of the
//!    summed penalty per move (`scan`: `copies` give one more replica to an expert in place of a replica that can be
//!    spared, `exchanges` swap two slots). A rank's penalty is the square of its load above the *aim*, the load that the
//!    bound leaves the busiest rank (`aim`); nothing below. Where no change helps, `escape` forces a replica from a
//!    light expert on a heavy one and pairs ranks anew by exchanges: with few slots per rank that is the only way on.
//! 3. Every change that leaves a layer better balanced than all stops with as few moves is a stop of its `path`.
//!    `spend` goes through the upper envelopes of all paths, the most balance per move first, until the mean over
//!    layers is what was wanted or the budget is spent.
//! 4. Layers climb to the wanted balance. Only where the mean falls short of it do they climb on; where that ends
//!    short as well, a fresh plan of `balanced`, its sets on the ranks that hold most of them, is the last stop.
//! 5. With a budget per rank, layers whose next stop needs a rank that others have used up climb again around it
//!    (`detour`).
//!
//! Invariants of a layer's state (`state`; `apply` keeps them): no rank holds an expert twice; a replica leaves only
//! if the expert has another, so that none is lost on the way; every field but the placement follows from the placement,
//! the loads, the aim and the start, and is the same bit for bit whatever changes led there (lists ascend, ranks
//! are summed in slot order), so that a path can be left and taken up again; loads of ranks are those of
//! [`eplb_core::metrics::rank_loads`] times a power of two. What a change gains is never overestimated (the penalty
//! is convex, and what two experts do to a rank that holds both is counted apart), so each change lowers the summed
//! penalty and the climb ends; escapes, which may not, are counted. Layers do not know of each other until `spend`,
//! which takes them in a total order: threads change nothing. The work per layer is a few dozen changes, each
//! a scan of the layer's slots, and nothing is allocated for a change.

mod aim;
mod apply;
mod climb;
mod copies;
mod detour;
mod escape;
mod exchanges;
mod layer;
mod marks;
mod path;
mod ranks;
mod scan;
mod spend;
mod state;
#[cfg(test)]
mod tests;

use crate::budget::Budget;
use crate::curve::CurvePoint;
use crate::error::PlanError;
use crate::request::Request;
use crate::workers::Workers;
use climb::Goal;
use layer::Task;
use path::{Path, Point};
use ranks::RankTable;
use spend::Market;

pub(in crate::policy) use layer::Scratch;

/// How far layers climb at first and, while their mean falls short of the target, after that: parts of the way from the
/// target to full balance, and whether ways out of local optima, which cost much more than changes one by one, are
/// looked for. Layers overshoot, so that at first a little less than the target is asked of each.
const ROUNDS: [(f64, bool); 4] = [(-0.06, false), (0.25, false), (0.25, true), (1.0, true)];

/// The same where only a budget ends the climb: balancedness, until the layers together have got further than the
/// budget by [`BEYOND`], so that there is a choice.
const BUDGET_ROUNDS: [(f64, bool); 6] =
    [(0.85, false), (0.9, false), (0.95, false), (0.98, false), (0.995, true), (1.0, true)];
const BEYOND: f64 = 1.5;

/// A fresh plan of a layer must be better by this much to be a stop when no target asks for it.
const FRESH_GAIN: f64 = 1e-3;

/// Finds `phy2log`, `[L, P]`.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) -> Result<(), PlanError> {
    let ranks = RankTable::new(request.topology);
    let task = task(request, &ranks)?;
    let mut market = Market::open(task, climb(task, workers));
    market.spend(|_| ());
    market.detour(|_| ());
    for (layer, row) in phy2log.chunks_exact_mut(request.topology.slots()).enumerate() {
        market.write(layer, market.point(layer).way, row);
    }
    Ok(())
}

/// The stops on the way of all layers together, see [`Planner::curve`](crate::Planner::curve).
pub(crate) fn curve(request: &Request<'_>, workers: &Workers) -> Result<Vec<CurvePoint>, PlanError> {
    let ranks = RankTable::new(request.topology);
    let task = task(request, &ranks)?;
    let slots = (request.loads.layers() * request.topology.slots()) as f64;
    let here = |market: &Market<'_>| {
        let (moves, bytes) = market.spent();
        CurvePoint {
            moves,
            moved_fraction: moves as f64 / slots,
            bytes: (!request.options.expert_bytes.is_empty()).then_some(bytes),
            balancedness: market.balancedness(),
        }
    };
    let mut market = Market::open(task, climb(task, workers));
    let mut points = vec![here(&market)];
    market.spend(|market| points.push(here(market)));
    market.detour(|market| {
        // A way around may cost fewer moves than the way before, or no more than the start.
        let (moves, _) = market.spent();
        while points.last().is_some_and(|last: &CurvePoint| last.moves >= moves) {
            points.pop();
        }
        points.push(here(market));
    });
    Ok(points)
}

fn task<'a>(request: &'a Request<'a>, ranks: &'a RankTable) -> Result<Task<'a>, PlanError> {
    if request.current.is_none() {
        return Err(PlanError::Unsupported {
            policy: "incremental",
            reason: "needs the placement in force (--current); use `balanced` to make the first".into(),
        });
    }
    let limit = request.options.replica_limit(request.topology.slots()) as u32;
    Ok(Task { request, ranks, limit })
}

/// The paths of all layers.
fn climb(task: Task<'_>, workers: &Workers) -> Vec<Path> {
    let request = task.request;
    let layers = request.loads.layers();
    let rounds: Vec<(f64, bool)> = match request.options.target {
        Some(target) => {
            let level = |(part, escapes): (f64, bool)| ((target + part * (1.0 - target)).max(0.0), escapes);
            ROUNDS.map(level).to_vec()
        }
        None if request.options.budget != Budget::default() => BUDGET_ROUNDS.to_vec(),
        // The best is wanted at once.
        None => vec![(1.0, true)],
    };
    let mut paths: Vec<Path> = Vec::new();
    for (level, escapes) in rounds {
        paths = workers.map_layers(layers, |layer, scratch| {
            let mut path = paths.get(layer).cloned().unwrap_or_default();
            if !path.ended && path.last().is_none_or(|last| last.value < level) {
                let mut caps = Vec::new();
                let goal = goal(task, layer, level, escapes, &mut caps);
                task.climb(layer, &mut path, goal, &mut scratch.incremental);
            }
            path
        });
        if reached(task, &paths) {
            return paths;
        }
    }
    add_fresh(task, workers, &mut paths);
    paths
}

/// How far a layer may climb: no further than the budget could pay.
fn goal<'a>(task: Task<'_>, layer: usize, level: f64, escapes: bool, caps: &'a mut Vec<u32>) -> Goal<'a> {
    let Task { request, ranks, .. } = task;
    let bytes = request.expert_bytes(layer).unwrap_or(0);
    let affordable = |moves: Option<usize>, budget: Option<u64>| {
        let by_bytes = budget.and_then(|budget| budget.checked_div(bytes)).unwrap_or(u64::MAX);
        u32::try_from(by_bytes.min(moves.unwrap_or(usize::MAX) as u64)).unwrap_or(u32::MAX)
    };
    let budget = request.options.budget;
    caps.clear();
    if budget.counts_ranks() {
        caps.resize(ranks.len(), affordable(budget.moves_per_rank, budget.bytes_per_rank));
    }
    Goal { level, escapes, moves: affordable(budget.moves, budget.bytes), caps }
}

/// Whether layers need not climb on: if all go to the ends of their paths, the mean over those that are not idle is
/// what was wanted, or the budget is far behind.
fn reached(task: Task<'_>, paths: &[Path]) -> bool {
    let Task { request, ranks, .. } = task;
    let busy = |layer: usize| request.layer_loads(layer).iter().any(|&w| w > 0.0);
    let ends = || {
        let busy = paths.iter().enumerate().filter(|&(layer, _)| busy(layer));
        busy.filter_map(|(layer, path)| path.last().map(|last| (layer, last)))
    };
    let short = |target: f64| ends().map(|(_, last)| target - last.value).sum::<f64>() > 0.0;
    if request.options.target.is_some_and(|target| !short(target)) {
        return true;
    }
    let budget = request.options.budget;
    let (mut moves, mut bytes) = (0.0, 0.0);
    for (layer, last) in ends() {
        moves += f64::from(last.moves);
        bytes += f64::from(last.moves) * request.expert_bytes(layer).unwrap_or(0) as f64;
    }
    let all = ranks.live().len() as f64;
    let beyond = |spent: f64, most: Option<f64>| most.is_some_and(|most| spent >= BEYOND * most);
    beyond(moves, budget.moves.map(|most| most as f64))
        || beyond(bytes, budget.bytes.map(|most| most as f64))
        || beyond(moves, budget.moves_per_rank.map(|most| most as f64 * all))
        || beyond(bytes, budget.bytes_per_rank.map(|most| most as f64 * all))
}

/// Where changes one after another lead less far than a fresh plan, that is the last stop.
fn add_fresh(task: Task<'_>, workers: &Workers, paths: &mut [Path]) {
    let Task { request, ranks, .. } = task;
    let slots = request.topology.slots();
    let mut fresh = vec![-1; paths.len() * slots];
    super::balanced::place(request, workers, &mut fresh);
    let least_gain = if request.options.target.is_some() { 0.0 } else { FRESH_GAIN };
    let mut start = vec![-1; slots];
    for ((layer, path), row) in paths.iter_mut().enumerate().zip(fresh.chunks_exact(slots)) {
        task.write_kept(layer, &mut start);
        let end = layer::score(request.layer_loads(layer), ranks, row, &start);
        let better = |last: Point| {
            end.value > last.value + least_gain && end.worst <= last.worst && end.moves > last.moves
        };
        if path.last().is_some_and(better) {
            path.end_fresh(row, end);
        }
    }
}
