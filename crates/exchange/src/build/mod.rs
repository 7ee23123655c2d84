//! Builds the waves of an exchange.
//!
//! Each layer holds the slot changes that are still to be made ([`layer::LayerState`]). A wave takes from every layer
//! what may go together:
//!
//! 1. *In place*: the slot is empty, or its expert stays in service elsewhere; the slot is drained and the bytes land
//!    in it. Only while the drained state keeps the layer above the floor.
//! 2. *Cycles*: changes whose slots hold the only copy of experts that wait for each other. Each visits a rank at most once,
//!    so it costs one staged expert per rank.
//! 3. *Staged alone*: a slot that could be spared, were it not for the floor.
//! 4. *Emptied*: slots with nothing to come.
//!
//! What leaves a layer below the floor between two waves is taken by one layer at a time, the first that is not done: so no
//! more than one passes through such states at once, and as fast as staging allows.
//!
//! 5. *Followers*: where staging and ports have room left, slots whose only copy is brought elsewhere by this very wave. So the
//!    slots of a chain change together, and its ports are busy together, rather than one after the other.
//!
//! A slot that could be drained may keep its expert, as one source more, while its new one goes through staging; which pays where the other
//! holders' ports are busy.
//!
//! No wave carries more than a share of all bytes through any rank's port, so that ports are busy together rather than in turn
//! ([`ports`]). Waves are built in several styles ([`style`]), and those are kept that are predicted to take the least time ([`predict`]). Where waves overlap, a wave takes from layers first that the wave
//! before has not changed: what it moves there depends on nothing of it.
//!
//! Invariants, per layer: in service during a wave, and again after it, every expert has a slot; no slot is both drained and
//! read in one wave; no expert has more than `max_replicas` slots. A source always exists, because an expert keeps an
//! undrained slot throughout the wave. Progress: a change that is not on a cycle can in the end be made in place (the
//! sets are closed under "waits for"), and what the floor forbids can be staged.

mod ahead;
mod exact;
mod layer;
mod ports;
mod predict;
mod service;
mod sources;
mod style;
mod turns;

use eplb_core::metrics::{self, layer_balancedness, rank_loads};
use eplb_core::{ExpertId, LayerId, ModelLayout, Placement, RankId, SlotId, Topology, Wave};
use ndarray::{Array2, ArrayView2};

use crate::assign::keep_in_place;
use crate::error::ExchangeError;
use crate::plan::{ExchangePlan, Limits, Totals, WaveParts, Worst, apply_commits, apply_drains, hash_plan};
use layer::LayerState;
use ports::Ports;
use style::Style;

/// A transfer whose source is still to be chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    pub(crate) layer: LayerId,
    pub(crate) expert: ExpertId,
    pub(crate) dest_slot: SlotId,
    pub(crate) landing: eplb_core::Landing,
}

/// A wave in the making: shared by all layers.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) wave: Wave,
    pub(crate) needs: Vec<Need>,
    staging_used: Vec<usize>,
    staging_size: usize,
    staging_start: usize,
    ports: Ports,
}

impl Draft {
    pub(crate) fn new(ranks: usize, (size, start): (usize, usize), wave_bytes: u64) -> Self {
        Self {
            wave: Wave::default(),
            needs: Vec::new(),
            staging_used: vec![0; ranks],
            staging_size: size,
            staging_start: start,
            ports: Ports::new(ranks, wave_bytes),
        }
    }

    /// Whether a rank can stage `bytes` more in this wave.
    pub(crate) fn has_room(&self, rank: RankId, bytes: usize) -> bool {
        self.staging_used[rank.index()] + bytes <= self.staging_size
    }

    /// Takes `bytes` of a rank's staging and returns their offset; the caller has asked [`Draft::has_room`].
    pub(crate) fn stage(&mut self, rank: RankId, bytes: usize) -> usize {
        let used = &mut self.staging_used[rank.index()];
        let offset = self.staging_start + *used;
        *used += bytes;
        offset
    }
}

pub(crate) use ahead::plant;

pub(crate) fn build(
    old: &Placement,
    new: &Placement,
    topology: &Topology,
    layout: &ModelLayout,
    loads: Option<ArrayView2<'_, f64>>,
    limits: &Limits,
) -> Result<ExchangePlan, ExchangeError> {
    let start = check(old, new, topology, layout, loads, limits)?;
    let rows: Vec<Vec<i32>> = (0..start.layers()).map(|l| start.layer(LayerId::at(l)).to_vec()).collect();
    let mut layers = Vec::with_capacity(rows.len());
    let mut floors = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let layer = LayerId::at(index);
        let wanted = new.layer(layer).to_vec();
        let target = keep_in_place(row, &wanted, topology);
        let floor = loads.and_then(|loads| {
            let view = loads.row(index);
            let before = layer_balancedness(&rank_loads(view, &start, layer, None, topology), topology)?;
            let after = layer_balancedness(&rank_loads(view, new, layer, None, topology), topology)?;
            Some(before.min(after) - limits.drain_floor)
        });
        let row_loads = loads.map(|loads| loads.row(index).to_vec());
        floors.push(row_loads.clone().zip(floor));
        layers.push(LayerState::new(layer, row.clone(), target, new.experts(), row_loads, floor));
    }

    let map = start.phy2log().to_owned();
    let floors = ahead::Floors { layers: floors, experts: new.experts() };
    let overlap = limits.overlap && limits.overlaps(layout);
    let mut best: Option<(u128, Built, Vec<WaveParts>)> = None;
    for style in Style::all(&layers, topology, layout, limits) {
        let built = waves(&style, layers.clone(), new, topology, layout, limits)?;
        let parts = ahead::cut(&map, &built.waves, &floors, topology, overlap);
        let time = predict::time(&parts, topology, layout, limits, overlap);
        if best.as_ref().is_none_or(|(least, ..)| time < *least) {
            best = Some((time, built, parts));
        }
    }
    let Some((_, Built { waves, layers, sums }, parts)) = best else {
        return Err(stuck(&layers, topology, layout, limits));
    };

    let flat: Vec<i32> = layers.iter().flat_map(|s| s.current().iter().copied()).collect();
    let reached = Array2::from_shape_vec((start.layers(), start.slots()), flat).map_err(|_| {
        eplb_core::CoreError::Shape { what: "phy2log", found: vec![], expected: "one row per layer".into() }
    })?;
    let target = Placement::with_missing(new.experts(), reached)?;
    let mut totals = sums.last().copied().unwrap_or_default();
    if let Some(loads) = loads {
        find_worst(&start, &waves, loads, topology, &mut totals)?;
    }
    let hash = hash_plan(&start, &target, layout, &waves, &parts);
    let owners = topology.rank_of_slots().to_vec();
    Ok(ExchangePlan { old: start, target, waves, totals, sums, hash, owners, parts })
}

/// Waves, and what they lead to.
#[derive(Debug)]
struct Built {
    waves: Vec<Wave>,
    layers: Vec<LayerState>,
    /// What they add up to after each.
    sums: Vec<Totals>,
}

/// Builds all waves in one style.
fn waves(
    style: &Style,
    mut layers: Vec<LayerState>,
    new: &Placement,
    topology: &Topology,
    layout: &ModelLayout,
    limits: &Limits,
) -> Result<Built, ExchangeError> {
    let mut waves: Vec<Wave> = Vec::new();
    let mut sums: Vec<Totals> = Vec::new();
    while layers.iter().any(LayerState::has_pending) {
        let staging = limits.staging_part(layout, waves.len());
        let order = order(&layers, waves.last().filter(|_| limits.overlap));
        let draft = style.choose(&mut layers, staging, topology, layout, |layers, draft| {
            let first = layers.iter().position(LayerState::has_pending);
            for &layer in &order {
                let first = Some(layer) == first;
                layers[layer].draft(draft, topology, layout, limits, style.ways, first);
            }
        });
        if draft.wave.commits.is_empty() {
            return Err(stuck(&layers, topology, layout, limits));
        }
        finish_wave(draft, &mut layers, topology, layout, &mut waves, &mut sums);
    }
    if limits.exact_slots {
        while layers.iter().enumerate().any(|(l, s)| s.current() != new.layer(LayerId::at(l)).to_vec()) {
            let staging = limits.staging_part(layout, waves.len());
            let mut draft = Draft::new(topology.ranks(), staging, style.most());
            for (index, state) in layers.iter().enumerate() {
                let wanted = new.layer(LayerId::at(index)).to_vec();
                exact::permute(LayerId::at(index), state.current(), &wanted, topology, layout, &mut draft);
            }
            if draft.wave.commits.is_empty() {
                return Err(stuck(&layers, topology, layout, limits));
            }
            finish_wave(draft, &mut layers, topology, layout, &mut waves, &mut sums);
        }
    }
    Ok(Built { waves, layers, sums })
}

/// Layers that have something to do, in the order in which a wave takes from them: first those that the wave before, where it may still
/// be under way, does not change.
fn order(layers: &[LayerState], before: Option<&Wave>) -> Vec<usize> {
    let mut changed = vec![false; layers.len()];
    for commit in before.into_iter().flat_map(|wave| &wave.commits) {
        changed[commit.layer.index()] = true;
    }
    let pending = || (0..layers.len()).filter(|&layer| layers[layer].has_pending());
    let (again, fresh): (Vec<_>, Vec<_>) = pending().partition(|&layer| changed[layer]);
    [fresh, again].concat()
}

/// Refuses what cannot be exchanged; returns the old placement with the slots of dead ranks emptied.
fn check(
    old: &Placement,
    new: &Placement,
    topology: &Topology,
    layout: &ModelLayout,
    loads: Option<ArrayView2<'_, f64>>,
    limits: &Limits,
) -> Result<Placement, ExchangeError> {
    let start = old.survivors(topology)?;
    if layout.layers() != new.layers() {
        return Err(eplb_core::CoreError::Shape {
            what: "layouts",
            found: vec![layout.layers()],
            expected: format!("one list of tensors for each of {} layers", new.layers()),
        }
        .into());
    }
    if let Some(loads) = loads {
        metrics::check_shapes(loads.dim(), new, topology)?;
    }
    for ((layer, slot), &entry) in new.phy2log().indexed_iter() {
        let rank = topology.rank_of(SlotId::at(slot));
        if entry >= 0 && !topology.is_alive(rank) {
            return Err(ExchangeError::DeadRank { layer: LayerId::at(layer), slot: SlotId::at(slot), rank });
        }
    }
    let held = start.logcnt();
    let missing: Vec<_> = new
        .logcnt()
        .indexed_iter()
        .filter(|&(at, &count)| count > 0 && held[at] == 0)
        .map(|((layer, expert), _)| (LayerId::at(layer), ExpertId::at(expert)))
        .collect();
    if !missing.is_empty() {
        return Err(ExchangeError::MissingExperts { experts: missing });
    }
    if let Some(max) = limits.max_replicas {
        for (which, placement) in [("old", &start), ("new", new)] {
            for ((layer, expert), &count) in placement.logcnt().indexed_iter() {
                if count as usize > max {
                    let (layer, expert) = (LayerId::at(layer), ExpertId::at(expert));
                    return Err(ExchangeError::TooManyReplicas {
                        layer,
                        expert,
                        count: count as usize,
                        max,
                        which,
                    });
                }
            }
        }
    }
    Ok(start)
}

/// Chooses sources, sorts, applies the wave to the layers and adds it up.
fn finish_wave(
    mut draft: Draft,
    layers: &mut [LayerState],
    topology: &Topology,
    layout: &ModelLayout,
    waves: &mut Vec<Wave>,
    sums: &mut Vec<Totals>,
) {
    let mut totals = sums.last().copied().unwrap_or_default();
    draft.wave.drains.sort_unstable();
    draft.wave.transfers = sources::choose(&draft, layers, topology, layout);
    let wave = draft.wave;
    for transfer in &wave.transfers {
        if transfer.is_local() {
            totals.local_copies += 1;
        } else {
            totals.moves += 1;
            totals.link_bytes += layout.layer(transfer.layer).expert_bytes() as u64;
        }
        match transfer.landing {
            eplb_core::Landing::InPlace => totals.in_place += 1,
            eplb_core::Landing::Staged { .. } => totals.staged += 1,
        }
    }
    for commit in &wave.commits {
        if matches!(commit.fill, eplb_core::Fill::FromSlot { .. }) {
            totals.local_copies += 1;
        }
        layers[commit.layer.index()].apply(commit);
    }
    totals.staging_peak = totals.staging_peak.max(draft.staging_used.into_iter().max().unwrap_or(0));
    waves.push(wave);
    sums.push(totals);
}

/// Why nothing more can be done: staging that holds no expert, or limits that contradict each other.
fn stuck(layers: &[LayerState], topology: &Topology, layout: &ModelLayout, limits: &Limits) -> ExchangeError {
    let left = layers.iter().map(LayerState::pending).sum::<usize>();
    let layer = layers.iter().find(|s| s.has_pending()).map_or(LayerId(0), LayerState::layer);
    let needed = layout.layer(layer).staged_bytes();
    let room = Draft::new(topology.ranks(), limits.staging_part(layout, 0), 0);
    if room.has_room(RankId(0), needed) {
        ExchangeError::Stuck { layer, left }
    } else {
        ExchangeError::StagingTooSmall { layer, needed, budget: limits.staging_bytes }
    }
}

/// Replays the waves on the loads and keeps the least balanced states.
fn find_worst(
    start: &Placement,
    waves: &[Wave],
    loads: ArrayView2<'_, f64>,
    topology: &Topology,
    totals: &mut Totals,
) -> Result<(), ExchangeError> {
    let of = |map: &Array2<i32>| -> Result<Vec<Option<f64>>, ExchangeError> {
        let placement = Placement::with_missing(start.experts(), map.clone())?;
        Ok(metrics::balancedness(loads, &placement, None, topology)?.per_layer)
    };
    let mut map = start.phy2log().to_owned();
    let before = of(&map)?;
    let mut last = map.clone();
    waves.iter().for_each(|wave| apply_commits(&mut last, wave));
    let after = of(&last)?;
    let worse = |kept: &mut Option<Worst>, state: Vec<Option<f64>>, wave: usize| {
        for (layer, value) in state.into_iter().enumerate() {
            let (Some(balancedness), Some(before), Some(after)) = (value, before[layer], after[layer]) else {
                continue;
            };
            if kept.is_none_or(|k| balancedness < k.balancedness) {
                *kept = Some(Worst { balancedness, layer: LayerId::at(layer), wave, before, after });
            }
        }
    };
    worse(&mut totals.worst_between, before.clone(), 0);
    for (index, wave) in waves.iter().enumerate() {
        if !wave.drains.is_empty() {
            let mut drained = map.clone();
            apply_drains(&mut drained, wave);
            let touched: Vec<bool> = (0..start.layers())
                .map(|l| wave.drains.iter().any(|(layer, _)| layer.index() == l))
                .collect();
            let state =
                of(&drained)?.into_iter().zip(touched).map(|(v, drained)| v.filter(|_| drained)).collect();
            worse(&mut totals.worst_drained, state, index);
        }
        apply_commits(&mut map, wave);
        worse(&mut totals.worst_between, of(&map)?, index);
    }
    Ok(())
}
