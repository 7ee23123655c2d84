//! What of a wave may go before the wave before it is committed.
//!
//! While wave `n` is decided and committed, links are idle; so the transfers of wave `n + 1` that touch nothing of wave `n` go
//! then. A transfer is *early* if
//!
//! 1. its source slot is written by nothing of wave `n`: it holds the expert already, and goes on holding it;
//! 2. it lands in staging, in the half that wave `n` does not use; or in a slot that wave `n` neither writes nor reads,
//!    and that is empty while wave `n` is under way, or may be drained then;
//! 3. such a drain leaves every expert a slot in service before and after commit `n`, and the layer above the floor.
//!
//! All else is *late*: it goes when every rank has committed wave `n`. Which is which follows from the plan alone, so all ranks
//! cut a wave alike.

use std::collections::HashSet;

use eplb_core::{Fill, Landing, LayerId, SlotId, Topology, Transfer, Wave};
use ndarray::Array2;

use super::service::{Change, Service};
use crate::plan::{ExchangePlan, Planted, Portion, WaveParts, apply_commits, apply_drains};

/// By layer: loads `[E]` and the least balancedness that draining may leave, where loads are known.
pub(super) struct Floors {
    pub(super) layers: Vec<Option<(Vec<f64>, f64)>>,
    pub(super) experts: usize,
}

/// Cuts every wave into what is early and what is late; without `overlap` all is late.
pub(super) fn cut(
    start: &Array2<i32>,
    waves: &[Wave],
    floors: &Floors,
    topology: &Topology,
    overlap: bool,
) -> Vec<WaveParts> {
    cut_with(start, waves, floors, topology, overlap, None)
}

fn cut_with(
    start: &Array2<i32>,
    waves: &[Wave],
    floors: &Floors,
    topology: &Topology,
    overlap: bool,
    planted: Option<Planted>,
) -> Vec<WaveParts> {
    let mut map = start.clone();
    let mut parts = Vec::with_capacity(waves.len());
    for (index, wave) in waves.iter().enumerate() {
        let early = match index.checked_sub(1).filter(|_| overlap) {
            None => HashSet::new(),
            Some(before) => {
                let before = &waves[before];
                let mut during = map.clone();
                apply_drains(&mut during, before);
                apply_commits(&mut map, before);
                let mut cut = Cut::new(before, wave, during, map.clone(), floors, topology);
                match planted {
                    Some(Planted::WrittenSourcesEarly) => cut.changed.clear(),
                    Some(Planted::ReadSlotsEarly) => cut.read.clear(),
                    Some(Planted::OneHalf) | None => {}
                }
                cut.early(wave)
            }
        };
        if index > 0 && !overlap {
            apply_commits(&mut map, &waves[index - 1]);
        }
        parts.push(split(wave, &early));
    }
    parts
}

/// Early transfers by number, with their drains.
fn split(wave: &Wave, early: &HashSet<usize>) -> WaveParts {
    let portion = |wanted: bool| {
        let numbers = (0..wave.transfers.len()).filter(|number| early.contains(number) == wanted);
        let transfers: Vec<Transfer> = numbers.map(|number| wave.transfers[number]).collect();
        let filled: HashSet<_> = early
            .iter()
            .map(|&number| (wave.transfers[number].layer, wave.transfers[number].dest_slot))
            .collect();
        let drains = wave.drains.iter().copied().filter(|cell| filled.contains(cell) == wanted).collect();
        Portion { drains, transfers: transfers.into() }
    };
    WaveParts { early: portion(true), late: portion(false) }
}

/// One wave and the one before it.
struct Cut<'a> {
    /// Slots whose content changes with the wave before: no source yet.
    changed: HashSet<(LayerId, SlotId)>,
    /// The same: nothing else may land there.
    written: HashSet<(LayerId, SlotId)>,
    /// Slots that its transfers or its commit read.
    read: HashSet<(LayerId, SlotId)>,
    drains: HashSet<(LayerId, SlotId)>,
    /// Maps in force while the wave before is under way, and after its commit.
    during: Array2<i32>,
    after: Array2<i32>,
    floors: &'a Floors,
    topology: &'a Topology,
}

impl<'a> Cut<'a> {
    fn new(
        before: &Wave,
        wave: &Wave,
        during: Array2<i32>,
        after: Array2<i32>,
        floors: &'a Floors,
        topology: &'a Topology,
    ) -> Self {
        let mut read: HashSet<_> = before.transfers.iter().map(|t| (t.layer, t.source_slot)).collect();
        read.extend(before.commits.iter().filter_map(|commit| match commit.fill {
            Fill::FromSlot { slot, .. } => Some((commit.layer, slot)),
            _ => None,
        }));
        let written: HashSet<_> = before.commits.iter().map(|commit| (commit.layer, commit.slot)).collect();
        Self {
            changed: written.clone(),
            written,
            read,
            drains: wave.drains.iter().copied().collect(),
            during,
            after,
            floors,
            topology,
        }
    }

    /// Numbers of the early transfers of a wave.
    fn early(mut self, wave: &Wave) -> HashSet<usize> {
        let mut early = HashSet::new();
        let mut drainable: Option<(LayerId, Drainable<'a>)> = None;
        for (number, transfer) in wave.transfers.iter().enumerate() {
            let (from, to) = ((transfer.layer, transfer.source_slot), (transfer.layer, transfer.dest_slot));
            if self.changed.contains(&from) {
                continue;
            }
            if transfer.landing == Landing::InPlace {
                if self.written.contains(&to) || self.read.contains(&to) {
                    continue;
                }
                let layer = transfer.layer;
                if self.drains.contains(&to) {
                    // Transfers come layer by layer.
                    if drainable.as_ref().is_none_or(|(of, _)| *of != layer) {
                        drainable = Some((layer, Drainable::new(&self, layer)));
                    }
                    let Some((_, drainable)) = &mut drainable else { continue };
                    if !drainable.drain(&mut self.during, &mut self.after, layer, transfer.dest_slot) {
                        continue;
                    }
                } else if self.during[(layer.index(), transfer.dest_slot.index())] >= 0 {
                    continue;
                }
            }
            early.insert(number);
        }
        early
    }
}

/// What a layer can spare while the wave before is under way, and after its commit. `None`: no loads, so no floor.
struct Drainable<'a> {
    services: Option<[Service<'a>; 2]>,
}

impl<'a> Drainable<'a> {
    fn new(cut: &Cut<'a>, layer: LayerId) -> Self {
        let at = layer.index();
        let services = cut.floors.layers[at].as_ref().map(|(row, floor)| {
            let service = |map: &Array2<i32>| {
                let mut holders = vec![Vec::new(); cut.floors.experts];
                for (slot, &expert) in map.row(at).iter().enumerate() {
                    if let Ok(expert) = usize::try_from(expert) {
                        holders[expert].push(SlotId::at(slot));
                    }
                }
                Service::new(row, *floor, &holders, cut.topology)
            };
            [service(&cut.during), service(&cut.after)]
        });
        Self { services }
    }

    /// Takes a slot out of service in both maps, if that leaves its expert another slot and the layer above the floor.
    fn drain(
        &mut self,
        during: &mut Array2<i32>,
        after: &mut Array2<i32>,
        layer: LayerId,
        slot: SlotId,
    ) -> bool {
        let at = (layer.index(), slot.index());
        let held = during[at];
        let slots = |map: &Array2<i32>| map.row(at.0).iter().filter(|&&expert| expert == held).count();
        if held < 0 || after[at] != held || slots(during) < 2 || slots(after) < 2 {
            return false;
        }
        if let Some(services) = &mut self.services {
            let change = [Change { slot, before: held, after: -1 }];
            services.iter_mut().for_each(|service| service.apply(&change));
            if !services.iter().all(Service::holds) {
                services.iter_mut().for_each(|service| service.revert(&change));
                return false;
            }
        }
        (during[at], after[at]) = (-1, -1);
        true
    }
}

/// Breaks the rules above, for tests of checks.
pub(crate) fn plant(plan: &mut ExchangePlan, fault: Planted, staged_bytes: usize, topology: &Topology) {
    if fault == Planted::OneHalf {
        plan.waves.iter_mut().for_each(|wave| shift(wave, staged_bytes));
    }
    let map = plan.old.phy2log().to_owned();
    let floors = Floors { layers: vec![None; map.nrows()], experts: plan.old.experts() };
    plan.parts = cut_with(&map, &plan.waves, &floors, topology, true, Some(fault));
}

/// Moves what a wave stages to the beginning of staging.
fn shift(wave: &mut Wave, staged_bytes: usize) {
    let least = wave.transfers.iter().filter_map(|t| match t.landing {
        Landing::Staged { offset } => Some(offset),
        Landing::InPlace => None,
    });
    let by = least.min().unwrap_or(0) / staged_bytes * staged_bytes;
    for transfer in &mut wave.transfers {
        if let Landing::Staged { offset } = &mut transfer.landing {
            *offset -= by;
        }
    }
    for commit in &mut wave.commits {
        if let Fill::Staged { offset, .. } = &mut commit.fill {
            *offset -= by;
        }
    }
}
