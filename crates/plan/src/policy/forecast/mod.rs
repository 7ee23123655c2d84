//! `forecast`: plans for the steps to come, from a window of steps that are past.
//!
//! A plan is in force for steps that nobody has seen. What is known are the steps of the window, and each of them is taken as
//! a sample of a step to come: the plan is to have the best mean, over these *scenarios*, of the balancedness of the step. Experts that
//! run hot together end up apart, and an expert whose load varies is not counted on to be at its mean, which a plan for the
//! summed window cannot know.
//!
//! - `scenarios`: steps weigh half as much for every [`Window::half_life`] steps of age.
//! - `drift`: with [`Window::drift`], steps are first carried along the lines that loads follow.
//! - `objective`: a smooth stand-in for the worst rank of each scenario, with slopes.
//! - `search`: the change (one more copy in a slot whose expert has another, or a swap of two slots) with the largest gain per
//!   move. Slopes bound gains from above, so that few changes are looked at closely.
//! - `climb`: changes are made while they gain [`Options::move_price`] per move. So a plan is never worse than what is in
//!   place, by its own objective, and where little is to be gained little or nothing moves. Gains of a
//!   short window are partly noise: the price is raised by [`Window::shrinkage`].
//! - `spend`: with a [`Options::budget`], the layers where moves buy most come first.
//!
//! With nothing in place the plan starts from `balanced` and climbs at next to no price.
//!
//! Sums and products are in single precision, in a fixed order, without functions of the host's library: plans are
//! equal on every machine.
//!
//! [`Window::half_life`]: crate::Window::half_life
//! [`Window::drift`]: crate::Window::drift
//! [`Window::shrinkage`]: crate::Window::shrinkage
//! [`Options::move_price`]: crate::Options::move_price
//! [`Options::budget`]: crate::Options::budget

mod climb;
mod drift;
mod holding;
mod objective;
mod scenarios;
mod search;
mod spend;
#[cfg(test)]
mod tests;

use eplb_core::LayerId;

use crate::budget::Budget;
use crate::error::PlanError;
use crate::request::Request;
use crate::workers::Workers;
use climb::{Climber, Path};
use holding::{EMPTY, Places};
use scenarios::Recency;

/// Price per move where moves cost nothing: what is below is rounding.
const FREE: f32 = 1e-5;

/// Memory for one layer.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    climber: Climber,
}

/// Finds `phy2log`, `[L, P]`, all -1.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) -> Result<(), PlanError> {
    let (options, topology, loads) = (request.options, request.topology, request.loads);
    let places = Places::new(topology, loads.experts(), options.replica_limit(topology.slots()));
    let recency = Recency::new(loads.steps(), &options.window);
    let kept = request.current.map(|current| current.survivors(topology)).transpose()?;
    let slots = topology.slots();
    if kept.is_none() {
        super::balanced::place(request, workers, phy2log);
    }
    let fresh = &*phy2log;
    let paths = workers.map_layers(loads.layers(), |layer, scratch| {
        let climber = &mut scratch.forecast.climber;
        let busy = climber.scenarios.fill(loads, layer, &recency, places.ranks());
        let (mut restored, mut price) = (Vec::new(), FREE);
        match &kept {
            None => climber.holding.start(&fresh[layer * slots..][..slots], &places, loads.experts()),
            Some(kept) => {
                // Rows of a placement are in C order.
                let row = kept.layer(LayerId::at(layer)).to_slice().unwrap_or_default();
                climber.holding.start(row, &places, loads.experts());
                restored = climber.restore(&places);
                let noise = options.window.shrinkage as f32 / climber.scenarios.worth();
                price = (options.move_price as f32 * (1.0 + noise)).max(FREE);
            }
        }
        let start = climber.holding.row.clone();
        let steps = if busy { climber.climb(&places, price) } else { Vec::new() };
        Path { start, restored, steps }
    });
    // Nothing moves where nothing is in place.
    let budget = if kept.is_some() { options.budget } else { Budget::default() };
    let bytes: Vec<u64> = (0..loads.layers()).map(|layer| request.expert_bytes(layer).unwrap_or(0)).collect();
    let taken = spend::spend(&paths, &places, &budget, &bytes);
    for ((path, taken), row) in paths.into_iter().zip(taken).zip(phy2log.chunks_exact_mut(slots)) {
        let Path { mut start, steps, .. } = path;
        steps[..taken].iter().for_each(|step| step.change.apply(&mut start));
        row.fill(-1);
        for (&slot, &expert) in places.slot.iter().zip(&start) {
            if expert != EMPTY {
                row[slot] = expert as i32;
            }
        }
    }
    Ok(())
}
