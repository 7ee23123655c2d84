//! `incremental` with other objectives: from what is in place, the changes that gain most per move, over all layers.

use super::facts::Facts;
use super::power::Power;
use super::state::NONE;
use super::{Scratch, own_slots, write_in_place};
use crate::error::PlanError;
use crate::options::Policy;
use crate::request::Request;
use crate::workers::Workers;

/// Doublings of the powers that changes are weighed by, one after the other.
const DOUBLINGS: [u32; 2] = [6, 9];

/// A change must gain this part of what the layer is worth.
const LEAST_GAIN: f64 = 1e-5;

/// A layer after some changes.
#[derive(Debug)]
struct Stop {
    /// Moves from what is in place.
    moves: usize,
    /// What the layer is worth, the less the better.
    worth: f64,
    /// Mean time of the ranks over that of the worst.
    balance: f64,
    /// Expert in each place.
    expert: Vec<u32>,
}

/// A layer's stops: moves ascending, worth descending. The first has what must be put back, whatever that costs.
#[derive(Debug)]
struct Path {
    idle: bool,
    stops: Vec<Stop>,
}

/// Places every layer, starting from what is in place.
pub(in crate::policy) fn place_within_budget(
    request: &Request<'_>,
    workers: &Workers,
    phy2log: &mut [i32],
) -> Result<(), PlanError> {
    let policy = Policy::Incremental.name();
    if request.current.is_none() {
        return Err(PlanError::Unsupported {
            policy,
            reason:
                "starts from the placement in force; give one (--current), or use balanced to make the first"
                    .into(),
        });
    }
    let facts = Facts::new(request, policy)?;
    let own = own_slots(request, &facts.ranks);
    let options = request.options;
    let most = options.budget.moves.unwrap_or(usize::MAX);
    let paths = workers.map_layers(request.loads.layers(), |layer, scratch| {
        let current = request.current_row(layer).unwrap_or_default();
        scratch.priced.path(&facts, request.layer_loads(layer), &own, current, most)
    });
    let chosen = spend(&paths, options.target, most);
    let slots = request.topology.slots();
    for (layer, row) in phy2log.chunks_exact_mut(slots).enumerate() {
        let current = request.current_row(layer).unwrap_or_default();
        let stop = &paths[layer].stops[chosen[layer]];
        write_in_place(&facts, &stop.expert, &own, current, row);
    }
    Ok(())
}

impl Scratch {
    /// Changes a layer move by move until nothing gains or `most` moves are made.
    fn path(
        &mut self,
        facts: &Facts,
        row: &[f64],
        own: &[std::ops::Range<usize>],
        current: &[i32],
        most: usize,
    ) -> Path {
        let Self { layer, state, descent, repair, .. } = self;
        let idle = layer.read(row, facts);
        repair.take_over(facts, own, current, state);
        descent.limit_moves(facts, state, usize::MAX);
        repair.complete(facts, layer, state);
        state.settle(facts, layer);
        let stop = |state: &super::State, moves: usize| {
            let times = (0..facts.ranks.len()).map(|rank| state.time(facts, layer, rank));
            let (sum, worst) = times.fold((0.0, 0.0f64), |(sum, worst), time| (sum + time, worst.max(time)));
            Stop {
                moves,
                worth: state.worth(facts, layer),
                balance: if worst > 0.0 { sum / facts.ranks.len() as f64 / worst } else { 1.0 },
                expert: state.expert.clone(),
            }
        };
        let first = stop(state, descent.made(facts, state));
        let mut stops = vec![first];
        if idle {
            return Path { idle, stops };
        }
        for doublings in DOUBLINGS {
            let power = Power::new(doublings, state.worst(facts, layer));
            descent.begin(facts, layer, state, power, LEAST_GAIN);
            for _ in 0..4 * state.expert.len() {
                descent.left = most.saturating_sub(descent.made(facts, state)).min(usize::MAX - 1);
                if descent.left == 0 || !descent.step(facts, layer, state) {
                    break;
                }
                let next = stop(state, descent.made(facts, state));
                // A change may undo a move; what is worth less for more moves is then of no use.
                while stops.len() > 1
                    && stops.last().is_some_and(|last| last.moves >= next.moves && last.worth >= next.worth)
                {
                    stops.pop();
                }
                if stops.last().is_some_and(|last| next.worth < last.worth && next.moves > last.moves) {
                    stops.push(next);
                }
            }
        }
        debug_assert!(stops.iter().all(|stop| stop.expert.iter().any(|&expert| expert != NONE)));
        Path { idle, stops }
    }
}

/// The stop to take on each path: segments of the paths' lower envelopes, those that gain most per move first, until the
/// mean balance of the layers that are not idle is `target` or `most` moves are made.
fn spend(paths: &[Path], target: Option<f64>, most: usize) -> Vec<usize> {
    let mut chosen = vec![0; paths.len()];
    let mut segments = Vec::new();
    for (layer, Path { stops, .. }) in paths.iter().enumerate().filter(|(_, path)| !path.idle) {
        let mut at = 0;
        while at + 1 < stops.len() {
            let rate =
                |to: usize| (stops[at].worth - stops[to].worth) / (stops[to].moves - stops[at].moves) as f64;
            // The farthest of those with the best rate.
            let next = (at + 1..stops.len()).max_by(|&a, &b| rate(a).total_cmp(&rate(b)).then(a.cmp(&b)));
            let Some(next) = next else { break };
            segments.push((rate(next), layer, next));
            at = next;
        }
    }
    segments.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut left = most.saturating_sub(paths.iter().map(|path| path.stops[0].moves).sum());
    let busy = paths.iter().filter(|path| !path.idle).count();
    let mut balance: f64 = paths.iter().filter(|path| !path.idle).map(|path| path.stops[0].balance).sum();
    // A layer whose segment did not fit takes what fits of it and is done.
    let mut done = vec![false; paths.len()];
    for (_, layer, to) in segments {
        if target.is_some_and(|target| balance >= target * busy as f64) {
            break;
        }
        let (stops, from) = (&paths[layer].stops, chosen[layer]);
        if done[layer] {
            continue;
        }
        let fits =
            (from..=to).rev().find(|&stop| stops[stop].moves - stops[from].moves <= left).unwrap_or(from);
        left -= stops[fits].moves - stops[from].moves;
        balance += stops[fits].balance - stops[from].balance;
        chosen[layer] = fits;
        done[layer] = fits < to;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(stops: &[(usize, f64)]) -> Path {
        let stop =
            |&(moves, worth): &(usize, f64)| Stop { moves, worth, balance: 1.0 / worth, expert: vec![0] };
        Path { idle: false, stops: stops.iter().map(stop).collect() }
    }

    #[test]
    fn moves_go_where_they_gain_most() {
        let paths = [path(&[(0, 2.0), (2, 1.8), (3, 1.2)]), path(&[(1, 3.0), (2, 2.0), (6, 1.0)])];
        // One move is spent whatever happens; then 1 per move in the second, 0.27 in the first, 0.25 in the second.
        assert_eq!(spend(&paths, None, 2), [0, 1]);
        assert_eq!(spend(&paths, None, 5), [2, 1]);
        assert_eq!(spend(&paths, None, 4), [1, 1]);
        assert_eq!(spend(&paths, None, usize::MAX), [2, 2]);
        // 1/1.2 and 1/2 make a mean of 0.67.
        assert_eq!(spend(&paths, Some(0.66), usize::MAX), [2, 1]);
        assert_eq!(spend(&paths, None, 0), [0, 0]);
    }
}
