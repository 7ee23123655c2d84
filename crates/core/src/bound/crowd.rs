//! Second proof: too many large experts for too few ranks (the pigeonhole principle).
//!
//! Suppose no rank is loaded above `T`. Of the spare slots, some go to experts that exceed `T` on any rank; with the `X`
//! that are left at most `X` of the other experts are split, so of the `n` largest of them `n - X` or more are
//! whole. If the ranks cannot hold that many experts as large as the smallest of the `n`, `T` is too small.

use super::count::{last_that_holds, needed};
use super::ranks::Ranks;
use super::sorted::SortedLoads;

/// Raises `known`, a rank load that is proved already, as far as the argument carries.
pub(super) fn prove(loads: &SortedLoads, ranks: &Ranks, known: f64) -> f64 {
    let too_small = |rank_load: f64| {
        let Some(needed) = needed(loads, ranks, rank_load) else { return true };
        let hot = loads.above(rank_load * ranks.top_speed).len();
        let spare = if ranks.max_replicas > 1.0 { ranks.slots as f64 - needed } else { 0.0 };
        spare < 0.0 || crowded(&loads.desc()[hot..], spare as usize, ranks, rank_load * (1.0 + 1e-12))
    };
    // The argument ends where ranks hold as many of the experts as meet: looks for that point upwards.
    let mut high = known;
    while too_small(high * (1.0 + 1e-9)) {
        high *= 1.25;
    }
    if high == known { known } else { last_that_holds(high / 1.25, high, too_small) }
}

/// Whether `rest` (largest first), all but `spare` of them whole, cannot be held by ranks loaded `rank_load` at most.
fn crowded(rest: &[f64], spare: usize, ranks: &Ranks, rank_load: f64) -> bool {
    if let [class] = ranks.classes[..] {
        // Some rank holds `k + 1` of the first `k * ranks + spare + 1`, at least the smallest `k + 1` of them.
        let (most, count) = (rank_load * class.speed, class.ranks as usize);
        return (1..class.slots as usize)
            .take_while(|k| k * count + spare < rest.len())
            .any(|k| rest[k * count + spare - k..=k * count + spare].iter().sum::<f64>() > most);
    }
    let slowest = rank_load * ranks.classes[0].speed;
    let slots = ranks.classes.iter().fold(0.0f64, |most, class| most.max(class.slots));
    (spare..rest.len()).take_while(|&n| rest[n] * slots > slowest).any(|n| {
        let held: f64 = ranks
            .classes
            .iter()
            .map(|class| class.ranks * class.slots.min((rank_load * class.speed / rest[n]).floor()))
            .sum();
        held < (n + 1 - spare) as f64
    })
}
