//! Which slot of a rank gets which of its new experts.

use eplb_core::Topology;

/// Chooses slots inside each rank for one layer: experts that stay keep their slots, arrivals take the freed ones
/// (the slot that `new` names if it is free, else in ascending order). Returns the placement to reach, `[P]`, equal
/// to `new` as a set per rank.
///
/// `old` and `new` are rows of `phy2log`, -1 = empty.
pub(crate) fn keep_in_place(old: &[i32], new: &[i32], topology: &Topology) -> Vec<i32> {
    const OPEN: i32 = i32::MIN;
    let mut target = vec![OPEN; old.len()];
    let mut arrivals = Vec::new();
    for rank in topology.all_ranks() {
        let slots = topology.slots_of(rank);
        // Each entry of `new` is either matched with a slot that holds it already or arrives.
        let mut wanted: Vec<(i32, usize)> =
            slots.clone().filter(|&s| new[s] >= 0).map(|s| (new[s], s)).collect();
        // First the entries that are where `new` wants them, so that as much as possible stays exact.
        wanted.retain(|&(expert, slot)| {
            let stays = old[slot] == expert;
            if stays {
                target[slot] = expert;
            }
            !stays
        });
        arrivals.clear();
        for &(expert, slot) in &wanted {
            match slots.clone().find(|&s| target[s] == OPEN && old[s] == expert) {
                Some(kept) => target[kept] = expert,
                None => arrivals.push((expert, slot)),
            }
        }
        // An arrival that finds the slot that `new` names open takes it; the rest fill up in order.
        arrivals.retain(|&(expert, slot)| {
            let open = target[slot] == OPEN;
            if open {
                target[slot] = expert;
            }
            !open
        });
        let mut left = arrivals.iter();
        for slot in slots {
            if target[slot] == OPEN {
                target[slot] = left.next().map_or(-1, |&(expert, _)| expert);
            }
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_keeps_its_slot() {
        let topology = Topology::uniform(2, 8).unwrap();
        let target = keep_in_place(&[0, 1, 2, -1, 4, 5, 6, 7], &[2, 0, 7, 9, 4, 4, -1, 6], &topology);
        assert_eq!(target, [0, 7, 2, 9, 4, 4, 6, -1]);
    }

    #[test]
    fn duplicates_are_matched_once() {
        let topology = Topology::uniform(1, 4).unwrap();
        assert_eq!(keep_in_place(&[3, 3, 1, 2], &[1, 3, 2, 2], &topology), [2, 3, 1, 2]);
    }
}
