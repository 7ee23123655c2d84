//! `balanced` and `incremental` where more counts than tokens at even split: the price of crossing nodes, the time of
//! active experts, what the server does with replicas, the hottest experts on every rank.
//!
//! One local search over what a layer is worth (`state`): the worst rank's time under the dispatch, and the price of the
//! crossing.
//! 1. `start`: whole groups go to nodes (`strict`), then, at a price, single experts leave overloaded nodes; each
//!    node's experts are planned by the engine of `balanced`. Or `repair`: what is in place, made to fit the rules.
//! 2. `descend`: changes while they gain, weighed by a `power` mean of the ranks' times (`trial`; `resplit` where the server
//!    splits by share). `find` looks for swaps, replicas in place of others' and replicas given up between the worst
//!    ranks and the lightest; `home` brings replicas back to the node of their group. Only what a change concerns is
//!    computed, a first look (`glance`) spares most of that, and pairs of ranks that have not changed are not tried again.
//! 3. `budget`: for `incremental`, the changes that gain most per move, over all layers; `keep`: none that the final split
//!    makes worse.
//!
//! Times of a layer are multiples of their mean if every expert had one replica, so that no plan is worth less than 1 while
//! replicas cost nothing.

mod budget;
mod descend;
mod facts;
mod find;
mod glance;
mod home;
mod keep;
mod parts;
mod power;
mod repair;
mod resplit;
mod start;
mod state;
mod strict;
#[cfg(test)]
mod tests;
mod trial;

use std::ops::Range;

use eplb_core::metrics::Balance;

use self::descend::Descent;
use self::facts::{Facts, Layer};
use self::repair::Repair;
use self::start::Start;
use self::state::{NONE, State};
use super::balanced::Sets;
use crate::aims::Aim;
use crate::error::PlanError;
use crate::layer::Ranks;
use crate::objective::NodeRule;
use crate::options::Policy;
use crate::request::Request;
use crate::workers::Workers;

pub(super) use self::budget::place_within_budget;
pub(super) use self::keep::keep_better;

/// Memory for one layer.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    layer: Layer,
    state: State,
    start: Start,
    sets: Sets,
    descent: Descent,
    repair: Repair,
    best: Vec<u32>,
}

/// Refuses options that the policy would not obey.
pub(super) fn check(request: &Request<'_>) -> Result<(), PlanError> {
    let (options, policy) = (request.options, request.options.policy);
    let refuse = |option: &str, instead: &str| {
        Err(PlanError::Unsupported {
            policy: policy.name(),
            reason: format!("does not obey {option}; {instead}, or leave it out"),
        })
    };
    if let Some(aim) = Aim::ALL.iter().find(|aim| aim.is_asked(options) && policy.refuses(**aim)) {
        return refuse(aim.name(), aim.instead());
    }
    let limits = options.budget.counts_bytes() || options.budget.counts_ranks() || options.worth.is_some();
    if policy == Policy::Incremental && !options.is_plain() && limits {
        return refuse(
            "budgets in bytes or per rank and the worth of moves together with node prices, other costs, other \
             dispatch or replicate_top",
            "limit the moves of all layers instead",
        );
    }
    Ok(())
}

/// The best that the strict node rule allows: with tokens alone counting, no plan that keeps groups whole on nodes, equally
/// many on each, loads its fullest node less. `None` where the rule cannot be kept.
pub(crate) fn strict_bound(request: &Request<'_>, workers: &Workers) -> Option<Balance> {
    let options = crate::Options { nodes: NodeRule::Strict, replicate_top: 0, ..request.options.clone() };
    let facts = Facts::new(&Request { options: &options, ..*request }, Policy::Balanced.name()).ok()?;
    Some(Balance::over_layers(workers.map_layers(request.loads.layers(), |layer, scratch| {
        let Scratch { layer: read, start, .. } = &mut scratch.priced;
        let idle = read.read(request.layer_loads(layer), &facts);
        (!idle).then(|| (1.0 / start.strict_bound(&facts, read)).min(1.0))
    })))
}

/// Places every layer afresh.
pub(super) fn place(request: &Request<'_>, workers: &Workers, phy2log: &mut [i32]) -> Result<(), PlanError> {
    let facts = Facts::new(request, request.options.policy.name())?;
    let own = own_slots(request, &facts.ranks);
    workers.for_each_layer(phy2log, request.topology.slots(), |at, slots, scratch| {
        let scratch = &mut scratch.priced;
        let current = request.current_row(at);
        scratch.plan(&facts, request.layer_loads(at), &own, current);
        scratch.write(&facts, &own, current, slots);
    });
    Ok(())
}

/// Slots of each live rank.
fn own_slots(request: &Request<'_>, ranks: &Ranks) -> Vec<Range<usize>> {
    ranks.id.iter().map(|&rank| request.topology.slots_of(rank)).collect()
}

impl Scratch {
    /// Plans a layer and leaves it in `state`.
    fn plan(&mut self, facts: &Facts, row: &[f64], own: &[Range<usize>], current: Option<&[i32]>) {
        let Self { layer, state, start, sets, descent, repair, best } = self;
        let idle = layer.read(row, facts);
        if let Some(current) = current.filter(|_| idle && facts.rule != NodeRule::Strict) {
            repair.take_over(facts, own, current, state);
            repair.complete(facts, layer, state);
            state.settle(facts, layer);
            return;
        }
        start.fresh(facts, facts.rule, facts.limit, layer, sets, state);
        if idle || !facts.search_pays() {
            return;
        }
        descent.any_moves();
        descent.run(facts, layer, state);
        // At a low price it may be better to think of nodes only afterwards; where experts take time whatever their tokens,
        // to begin with one replica each.
        let (priced, costly) = (facts.price() > 0.0, layer.per_active > 0.0);
        let others = [(priced, NodeRule::Free, facts.limit), (costly, facts.rule, 1)];
        for (_, rule, limit) in others.into_iter().filter(|(tried, ..)| *tried) {
            let worth = state.worth(facts, layer);
            best.clone_from(&state.expert);
            start.fresh(facts, rule, limit, layer, sets, state);
            if limit == 1 || state.worth(facts, layer) < worth {
                descent.run(facts, layer, state);
            }
            if state.worth(facts, layer) >= worth {
                state.expert.clone_from(best);
                state.settle(facts, layer);
            }
        }
    }

    /// Writes the state out so that little changes: where nodes matter, sets stay on their node.
    fn write(&mut self, facts: &Facts, own: &[Range<usize>], current: Option<&[i32]>, slots: &mut [i32]) {
        let Self { state, sets, .. } = self;
        if !facts.nodes_matter() {
            sets.write(|rank| state.set(facts, rank), facts.experts, &facts.ranks, own, current, slots);
            return;
        }
        for of_node in facts.of_node.iter().filter(|of_node| !of_node.is_empty()) {
            let pick = |values: &[f64]| of_node.iter().map(|&rank| values[rank]).collect::<Vec<_>>();
            let slowness = pick(&facts.ranks.slowness);
            let ranks = Ranks {
                id: of_node.iter().map(|&rank| facts.ranks.id[rank]).collect(),
                room: of_node.iter().map(|&rank| facts.ranks.room[rank]).collect(),
                speed: slowness.iter().map(|slowness| 1.0 / slowness).sum(),
                slowness,
            };
            let own: Vec<Range<usize>> = of_node.iter().map(|&rank| own[rank].clone()).collect();
            sets.write(|at| state.set(facts, of_node[at]), facts.experts, &ranks, &own, current, slots);
        }
    }
}

/// Writes places to slots without changing which rank holds what: experts that stay keep their slot.
fn write_in_place(facts: &Facts, expert: &[u32], own: &[Range<usize>], current: &[i32], slots: &mut [i32]) {
    for (rank, own) in own.iter().enumerate() {
        let set = &expert[rank * facts.stride..rank * facts.stride + facts.ranks.room[rank]];
        let kept = |slot: usize, slots: &[i32]| {
            let held = current[slot];
            set.iter().any(|&e| e as i32 == held) && !slots[own.start..slot].contains(&held)
        };
        for slot in own.clone() {
            if current[slot] >= 0 && kept(slot, slots) {
                slots[slot] = current[slot];
            }
        }
        let mut free = own.clone();
        for &expert in set.iter().filter(|&&expert| expert != NONE) {
            if slots[own.clone()].contains(&(expert as i32)) {
                continue;
            }
            // A rank has at least as many slots as places.
            if let Some(slot) = free.find(|&slot| slots[slot] < 0) {
                slots[slot] = expert as i32;
            }
        }
    }
}
