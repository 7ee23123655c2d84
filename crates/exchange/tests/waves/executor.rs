//! An executor that knows nothing of the planner: it keeps what every slot and every staging range really holds, and who reads and writes it
//! when.

use eplb_core::metrics::{balancedness, changes};
use eplb_core::{Fill, Landing, ModelLayout, Placement, Topology, Wave};
use eplb_exchange::{ExchangePlan, Part, Totals};
use ndarray::Array2;
use proptest::prelude::*;

use crate::case::Case;

/// What a rank's memory holds, by name: the expert whose bytes are there.
struct Memory {
    slots: Array2<i32>,
    staging: Vec<Vec<(usize, usize, i32)>>,
}

/// Runs one wave against the memory and checks the order of reads and writes.
fn run_wave(
    case: &Case,
    memory: &mut Memory,
    map: &mut Array2<i32>,
    wave: &Wave,
    index: usize,
) -> Result<(), TestCaseError> {
    let Case { topology, layout, .. } = case;
    for &(layer, slot) in &wave.drains {
        prop_assert!(map[(layer.index(), slot.index())] >= 0, "an empty slot is drained");
        map[(layer.index(), slot.index())] = -1;
    }
    valid(case, map, &format!("drained for wave {index}"))?;
    let in_service = map.clone();

    let (size, start) = case.limits.staging_part(layout, index);
    let mut used = vec![Vec::<(usize, usize, i32)>::new(); topology.ranks()];
    let mut landed = Vec::new();
    let canonical = wave.transfers.windows(2).all(|t| {
        let key = |t: &eplb_core::Transfer| (t.layer, t.expert, t.dest, t.dest_slot);
        key(&t[0]) < key(&t[1])
    });
    prop_assert!(canonical, "transfers are not in canonical order");
    for t in &wave.transfers {
        let at = (t.layer.index(), t.source_slot.index());
        prop_assert_eq!(topology.rank_of(t.source_slot), t.source);
        prop_assert_eq!(topology.rank_of(t.dest_slot), t.dest);
        prop_assert!(topology.is_alive(t.source) && topology.is_alive(t.dest));
        prop_assert_eq!(memory.slots[at], t.expert.0 as i32, "a source does not hold the expert");
        prop_assert_eq!(in_service[at], t.expert.0 as i32, "a source is drained in its own wave");
        let dest = (t.layer.index(), t.dest_slot.index());
        match t.landing {
            Landing::InPlace => {
                prop_assert_eq!(in_service[dest], -1, "bytes land in a slot that is in service");
                landed.push((dest, t.expert.0 as i32));
            }
            Landing::Staged { offset } => {
                let bytes = layout.layer(t.layer).staged_bytes();
                prop_assert!(
                    offset >= start && offset + bytes <= start + size,
                    "outside its part of staging"
                );
                prop_assert!(offset + bytes <= case.limits.staging_bytes, "staging above budget");
                let ranges = &mut used[t.dest.index()];
                prop_assert!(
                    ranges.iter().all(|&(o, b, _)| offset + bytes <= o || o + b <= offset),
                    "overlap"
                );
                ranges.push((offset, bytes, t.expert.0 as i32));
            }
        }
    }
    // One transfer per (expert, source, destination rank): duplicates inside a rank are sent once.
    let sent = wave.transfers.iter().filter(|t| !t.is_local());
    let mut pairs: Vec<_> = sent.map(|t| (t.layer, t.expert, t.dest)).collect();
    let count = pairs.len();
    pairs.dedup();
    prop_assert_eq!(pairs.len(), count);
    for (dest, expert) in landed {
        memory.slots[dest] = expert;
    }
    memory.staging = used;
    for commit in &wave.commits {
        let at = (commit.layer.index(), commit.slot.index());
        let rank = topology.rank_of(commit.slot);
        match commit.fill {
            Fill::InPlace(expert) => prop_assert_eq!(memory.slots[at], expert.0 as i32),
            Fill::Staged { expert, offset } => {
                let bytes = layout.layer(commit.layer).staged_bytes();
                let staged = (offset, bytes, expert.0 as i32);
                prop_assert!(memory.staging[rank.index()].contains(&staged), "not staged");
                memory.slots[at] = expert.0 as i32;
            }
            Fill::FromSlot { expert, slot } => {
                prop_assert_eq!(topology.rank_of(slot), rank);
                prop_assert_eq!(memory.slots[(at.0, slot.index())], expert.0 as i32, "copied over already");
                memory.slots[at] = expert.0 as i32;
            }
            Fill::Empty => {}
        }
        map[at] = commit.fill.expert().map_or(-1, |e| e.0 as i32);
    }
    // Every drained slot is put in service again, or left empty, by the commit of the same wave.
    for drain in &wave.drains {
        prop_assert!(wave.commits.iter().any(|c| (c.layer, c.slot) == *drain));
    }
    valid(case, map, &format!("after wave {index}"))
}

/// Every expert in service, maps true to memory, columns enough.
fn valid(case: &Case, map: &Array2<i32>, when: &str) -> Result<(), TestCaseError> {
    let placement = Placement::new(case.new.experts(), map.clone());
    prop_assert!(placement.is_ok(), "{when}: {placement:?}");
    if let Some(max) = case.limits.max_replicas {
        prop_assert!(placement.unwrap().max_replicas() <= max, "{when}: more than {max} replicas");
    }
    Ok(())
}

fn multisets(map: &Array2<i32>, topology: &Topology) -> Vec<Vec<i32>> {
    let mut sets = Vec::new();
    for layer in 0..map.nrows() {
        for rank in topology.all_ranks() {
            let mut set: Vec<i32> = topology.slots_of(rank).map(|s| map[(layer, s)]).collect();
            set.sort_unstable();
            sets.push(set);
        }
    }
    sets
}

/// The parts of wave `index` together are the wave; and what is early in the wave after it touches nothing of it. `map` is
/// the map before wave `index`.
fn check_early(
    case: &Case,
    plan: &ExchangePlan,
    map: &Array2<i32>,
    index: usize,
) -> Result<(), TestCaseError> {
    let wave = &plan.waves()[index];
    let mut transfers = [Part::Early, Part::Late].map(|part| plan.transfers(index, part).to_vec()).concat();
    transfers.sort_by_key(|t| (t.layer, t.expert, t.dest, t.dest_slot));
    prop_assert_eq!(&transfers, &wave.transfers);
    let mut drains = [Part::Early, Part::Late].map(|part| plan.drains(index, part).to_vec()).concat();
    drains.sort_unstable();
    prop_assert_eq!(&drains, &wave.drains);
    if index + 1 == plan.waves().len() {
        return Ok(());
    }
    let early = plan.transfers(index + 1, Part::Early);
    let overlaps = case.limits.overlap && case.limits.overlaps(&case.layout);
    prop_assert!(overlaps || early.is_empty());
    // What is in service meanwhile: every expert that is in service without the overlap, and above the floor.
    let mut during = plan.phy2log_drained(index);
    let mut after = plan.phy2log_after(index + 1);
    let whole = (during.clone(), after.clone());
    plan.apply_drains(&mut during, index + 1, Part::Early);
    plan.apply_drains(&mut after, index + 1, Part::Early);
    for (now, whole) in [(&during, whole.0), (&after, whole.1)] {
        for (layer, row) in now.rows().into_iter().enumerate() {
            let lost = |expert: i32| expert >= 0 && !row.iter().any(|&held| held == expert);
            prop_assert!(!whole.row(layer).iter().any(|&expert| lost(expert)), "layer {layer}: {now}");
        }
        let Some(loads) = &case.loads else { continue };
        let of = |map: &Array2<i32>| {
            let placement = Placement::with_missing(case.new.experts(), map.clone()).unwrap();
            balancedness(loads.view(), &placement, None, &case.topology).unwrap().per_layer
        };
        let (first, last, now) = (of(&plan.phy2log_after(0)), of(&case.new.phy2log().to_owned()), of(now));
        for &(layer, _) in plan.drains(index + 1, Part::Early) {
            let at = layer.index();
            if let (Some(first), Some(last), Some(now)) = (first[at], last[at], now[at]) {
                prop_assert!(now >= first.min(last) - case.limits.drain_floor - 1e-6, "{now} {first} {last}");
            }
        }
    }
    for transfer in early.iter() {
        let written = |slot| wave.commits.iter().any(|c| (c.layer, c.slot) == (transfer.layer, slot));
        prop_assert!(!written(transfer.source_slot));
        prop_assert_eq!(
            map[(transfer.layer.index(), transfer.source_slot.index())],
            transfer.expert.0 as i32
        );
        match transfer.landing {
            Landing::InPlace => {
                let at = (transfer.layer, transfer.dest_slot);
                prop_assert!(!written(transfer.dest_slot));
                prop_assert!(!wave.transfers.iter().any(|t| (t.layer, t.source_slot) == at));
                let copied = |fill| matches!(fill, Fill::FromSlot { slot, .. } if slot == at.1);
                prop_assert!(!wave.commits.iter().any(|c| c.layer == at.0 && copied(c.fill)));
                prop_assert_eq!(during[(at.0.index(), at.1.index())], -1);
            }
            Landing::Staged { offset } => {
                let size = case.layout.layer(transfer.layer).staged_bytes();
                for other in wave.transfers.iter().filter(|t| t.dest == transfer.dest) {
                    if let Landing::Staged { offset: used } = other.landing {
                        let used = used..used + case.layout.layer(other.layer).staged_bytes();
                        prop_assert!(offset >= used.end || offset + size <= used.start);
                    }
                }
            }
        }
    }
    Ok(())
}

/// What a wave does, counted from what it lists.
fn sum_of(wave: &Wave, layout: &ModelLayout) -> Totals {
    let links = || wave.transfers.iter().filter(|transfer| transfer.source != transfer.dest);
    let staged = wave.transfers.iter().filter(|t| matches!(t.landing, Landing::Staged { .. })).count();
    let copies = wave.commits.iter().filter(|commit| matches!(commit.fill, Fill::FromSlot { .. })).count();
    Totals {
        moves: links().count(),
        local_copies: wave.transfers.len() - links().count() + copies,
        link_bytes: links().map(|transfer| layout.layer(transfer.layer).expert_bytes() as u64).sum(),
        in_place: wave.transfers.len() - staged,
        staged,
        ..Totals::default()
    }
}

/// Plans a case, runs its waves, and checks every state on the way.
pub(crate) fn check(case: &Case) -> Result<(), TestCaseError> {
    let Case { topology, layout, old, new, loads, limits } = case;
    let view = loads.as_ref().map(|l| l.view());
    let plan = ExchangePlan::new(old, new, topology, layout, view, limits);
    prop_assert!(plan.is_ok(), "{plan:?}");
    let plan = plan.unwrap();
    let mut map = old.phy2log().to_owned();
    let mut memory = Memory { slots: map.clone(), staging: vec![Vec::new(); topology.ranks()] };
    let mut worst_drained = f64::INFINITY;
    for (index, wave) in plan.waves().iter().enumerate() {
        if let Some(loads) = loads
            && !wave.drains.is_empty()
        {
            let drained = Placement::new(new.experts(), plan.phy2log_drained(index)).unwrap();
            let of = |p: &Placement| balancedness(loads.view(), p, None, topology).unwrap().per_layer;
            let (before, after, now) = (of(old), of(new), of(&drained));
            for layer in 0..now.len() {
                let touched = wave.drains.iter().any(|d| d.0.index() == layer);
                let (Some(before), Some(after), Some(now)) = (before[layer], after[layer], now[layer]) else {
                    continue;
                };
                if touched {
                    prop_assert!(
                        now >= before.min(after) - limits.drain_floor - 1e-6,
                        "{now} {before} {after}"
                    );
                    worst_drained = worst_drained.min(now);
                }
            }
        }
        check_early(case, &plan, &map, index)?;
        run_wave(case, &mut memory, &mut map, wave, index)?;
        // What is in service is what memory holds: stopping after any wave loses nothing.
        for (at, &entry) in map.indexed_iter() {
            if entry >= 0 {
                prop_assert_eq!(memory.slots[at], entry);
            }
        }
        prop_assert_eq!(&map, &plan.phy2log_after(index + 1));
    }
    prop_assert_eq!(&map, &plan.target().phy2log().to_owned());
    prop_assert_eq!(multisets(&map, topology), multisets(&new.phy2log().to_owned(), topology));
    if limits.exact_slots {
        prop_assert_eq!(&map, &new.phy2log().to_owned());
    }
    let mut by_hand = plan.totals_of(0);
    for (before, wave) in plan.waves().iter().enumerate() {
        prop_assert_eq!(plan.totals_of(before), by_hand);
        by_hand += sum_of(wave, layout);
        // Peaks are those of the plan's own book-keeping, which `run_wave` has checked against the limit.
        by_hand.staging_peak = plan.totals_of(before + 1).staging_peak;
        prop_assert!(by_hand.staging_peak >= plan.totals_of(before).staging_peak);
    }
    prop_assert_eq!(by_hand, *plan.totals());
    let totals = plan.totals();
    prop_assert!(totals.staging_peak <= limits.staging_bytes);
    match totals.worst_drained {
        Some(worst) => prop_assert!((worst.balancedness - worst_drained).abs() < 1e-6),
        None => prop_assert!(worst_drained.is_infinite()),
    }
    // Bytes cross a link once per expert that is new to a rank, however many slots it takes there.
    let counted = changes(old, new, topology).unwrap();
    let second_copies = counted.moves - totals.moves;
    let duplicates = eplb_core::metrics::duplicates(new, topology).unwrap();
    prop_assert!(second_copies <= duplicates);
    let hash = |case: &Case| {
        ExchangePlan::new(&case.old, &case.new, topology, layout, view, limits).unwrap().hash64()
    };
    prop_assert_eq!(plan.hash64(), hash(case));
    Ok(())
}
