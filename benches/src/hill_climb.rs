//! The plain hill climb that planners of few moves are compared with, as one would write it first: it looks at the summed
//! window only, and computes everything again for every change.

/// Climbs one layer, from what is in place, until its balancedness is `target` or nothing helps. `row` are the loads `[E]`;
/// `slots` is `[P]`, equally many per rank, none empty.
///
/// The most loaded rank either gives one more copy of one of its experts to a slot, on another rank, whose expert has a second
/// copy (one move), or swaps two slots with another rank (two moves). The change with the largest drop per move of the sum over
/// ranks of `max(0, load - mean)^2` is made, if it makes no rank the new worst.
pub fn climb_layer(row: &[f64], ranks: usize, target: f64, slots: &mut [i32]) {
    let own = slots.len() / ranks;
    let mean = row.iter().sum::<f64>() / ranks as f64;
    if mean == 0.0 {
        return;
    }
    let loads = |slots: &[i32]| -> Vec<f64> {
        let mut count = vec![0.0; row.len()];
        slots.iter().for_each(|&e| count[e as usize] += 1.0);
        slots.chunks(own).map(|s| s.iter().map(|&e| row[e as usize] / count[e as usize]).sum()).collect()
    };
    let excess = |loads: &[f64]| -> f64 { loads.iter().map(|x| (x - mean).max(0.0).powi(2)).sum() };
    // Every change lowers the excess; the cap is for rounding.
    for _ in 0..4 * slots.len() {
        let before = loads(slots);
        let hot = (0..ranks).fold(0, |hot, r| if before[r] > before[hot] { r } else { hot });
        if mean / before[hot] >= target {
            return;
        }
        let mut best: Option<(f64, Vec<i32>)> = None;
        let mut offer = |changed: Vec<i32>, moves: f64| {
            let after = loads(&changed);
            let worse = (0..ranks).any(|r| after[r] > before[r] && after[r] >= before[hot]);
            let drop = (excess(&before) - excess(&after)) / moves;
            let floor = best.as_ref().map_or(1e-12 * mean * mean, |b| b.0);
            if !worse && drop > floor {
                best = Some((drop, changed));
            }
        };
        let holds = |rank: usize, e: i32| slots[rank * own..][..own].contains(&e);
        for from in hot * own..(hot + 1) * own {
            for to in (0..slots.len()).filter(|&to| to / own != hot && !holds(to / own, slots[from])) {
                if slots.iter().filter(|&&e| e == slots[to]).count() > 1 {
                    let mut changed = slots.to_vec();
                    changed[to] = slots[from];
                    offer(changed, 1.0);
                }
                if !holds(hot, slots[to]) {
                    let mut changed = slots.to_vec();
                    changed.swap(from, to);
                    offer(changed, 2.0);
                }
            }
        }
        let Some((_, changed)) = best else { return };
        slots.copy_from_slice(&changed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_swaps_and_copies_until_the_target_is_reached() {
        // Rank loads 12 and 4: swapping 6 with 2 balances.
        let mut slots = [0, 1, 2, 3];
        climb_layer(&[6.0, 6.0, 2.0, 2.0], 2, 1.0, &mut slots);
        assert_eq!(slots, [2, 1, 0, 3]);
        // Expert 1 has two copies; one of them makes way for a second copy of expert 0: 5 + 2 and 5 + 2.
        let mut slots = [0, 2, 1, 3, 1, 4];
        climb_layer(&[10.0, 1.0, 1.0, 1.0, 1.0], 3, 0.7, &mut slots);
        assert_eq!(slots.iter().filter(|&&e| e == 0).count(), 2);
        let before = slots;
        climb_layer(&[10.0, 1.0, 1.0, 1.0, 1.0], 3, 0.1, &mut slots);
        assert_eq!(slots, before, "what is good enough stays");
    }
}
