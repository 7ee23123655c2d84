//! `incremental`: starts from the placement in force and makes the changes that buy most balance per move.
//!
//! Each layer climbs by itself ([`layer`]); its stops are balance against moves. Moves are then spent on the layers where they buy
//! most, segment by segment of each layer's upper envelope, until the mean over layers is what was wanted or the budget is
//! spent. The result does not depend on the order in which layers climb.

mod layer;

use eplb_core::LayerId;

use crate::error::PlanError;
use crate::request::Request;
use crate::workers::Workers;
use layer::{Layer, Stop};

/// Finds `phy2log`, `[L, P]`.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) -> Result<(), PlanError> {
    let (options, topology) = (request.options, request.topology);
    let Some(current) = request.current else {
        return Err(PlanError::Unsupported {
            policy: "incremental",
            reason: "needs the placement in force (--current); use `balanced` to make the first".into(),
        });
    };
    let kept = current.survivors(topology)?;
    let limit = options.replica_limit(topology.slots());
    // Beyond the wanted balance, because a layer that is stuck below must be made up for by others.
    let level = options.target.map_or(1.0, |target| target + 0.4 * (1.0 - target));
    let paths: Vec<Vec<Stop>> = workers.map_layers(kept.layers(), |index, _| {
        let row = kept.layer(LayerId::at(index)).to_vec();
        let mut layer = Layer::new(request.layer_loads(index), topology, &row, limit);
        let restored = layer.restore();
        layer.climb(level, restored)
    });
    let slots = topology.slots();
    let mut paths = paths;
    let reached =
        |path: &Vec<Stop>| path.last().is_some_and(|stop| stop.value >= options.target.unwrap_or(1.0));
    if !paths.iter().all(reached) {
        // Where changes one by one lead nowhere, a fresh plan is the last stop.
        let mut fresh = vec![-1; phy2log.len()];
        super::balanced::place(request, workers, &mut fresh);
        for ((index, path), row) in paths.iter_mut().enumerate().zip(fresh.chunks_exact(slots)) {
            let layer = Layer::new(request.layer_loads(index), topology, row, limit);
            let (value, moves) = (layer.value(), layer.moves_from(&kept.layer(LayerId::at(index)).to_vec()));
            if path.last().is_some_and(|last| value > last.value && moves > last.moves) {
                path.push(Stop { moves, value, row: row.to_vec() });
            }
        }
    }
    let idle: Vec<bool> =
        (0..paths.len()).map(|l| request.layer_loads(l).iter().all(|&w| w == 0.0)).collect();
    let chosen = spend(&paths, &idle, options.target, options.max_moves);
    for ((path, stop), row) in paths.iter().zip(chosen).zip(phy2log.chunks_exact_mut(slots)) {
        row.copy_from_slice(&path[stop].row);
    }
    Ok(())
}

/// The stop to take on each path.
fn spend(paths: &[Vec<Stop>], idle: &[bool], target: Option<f64>, max_moves: Option<usize>) -> Vec<usize> {
    let mut chosen = vec![0usize; paths.len()];
    let busy = idle.iter().filter(|&&idle| !idle).count();
    if busy == 0 {
        return chosen;
    }
    // Segments of the upper envelopes: (gain per move, layer, stop at the end).
    let mut segments = Vec::new();
    for (layer, path) in paths.iter().enumerate().filter(|&(layer, _)| !idle[layer]) {
        let mut at = 0;
        while at + 1 < path.len() {
            let rate =
                |to: usize| (path[to].value - path[at].value) / (path[to].moves - path[at].moves) as f64;
            let Some(next) =
                (at + 1..path.len()).max_by(|&a, &b| rate(a).total_cmp(&rate(b)).then(a.cmp(&b)))
            else {
                break;
            };
            segments.push((rate(next), layer, next));
            at = next;
        }
    }
    segments.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    // Experts that no live rank held are put back first, whatever that costs.
    let spent: usize = paths.iter().map(|path| path[0].moves).sum();
    let mut left = max_moves.map_or(usize::MAX, |most| most.saturating_sub(spent));
    let mut sum: f64 =
        paths.iter().zip(idle).filter(|(_, idle)| !**idle).map(|(path, _)| path[0].value).sum();
    // A layer whose segment did not fit is done: later ones build on it.
    let mut closed = vec![false; paths.len()];
    for (_, layer, stop) in segments {
        if target.is_some_and(|target| sum / busy as f64 >= target) {
            break;
        }
        let path = &paths[layer];
        let cost = path[stop].moves - path[chosen[layer]].moves;
        if closed[layer] || cost > left {
            // Part of the segment may fit.
            let fits =
                (chosen[layer]..stop).rev().find(|&s| path[s].moves - path[chosen[layer]].moves <= left);
            if let Some(fits) = fits.filter(|_| !closed[layer]) {
                left -= path[fits].moves - path[chosen[layer]].moves;
                sum += path[fits].value - path[chosen[layer]].value;
                chosen[layer] = fits;
            }
            closed[layer] = true;
            continue;
        }
        left -= cost;
        sum += path[stop].value - path[chosen[layer]].value;
        chosen[layer] = stop;
    }
    chosen
}
