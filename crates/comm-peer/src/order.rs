//! In which order a rank pulls from its sources.
//!
//! Copy engines carry what is enqueued one after another, and two ranks that pull from one source at a time get half as much each while another
//! source idles. Every rank `r` of `n` so begins with rank `r - 1`, goes on with `r - 2`, and so on: as long as they keep in step no two pull from
//! one source. Which way is faster was measured (docs/benchmarks/exchange.md): with the receiver's copy engines runs of pulls from one source, with the
//! sources' a pull from each in turn.

use eplb_core::Transfer;

/// How far behind rank `me` of `ranks` a source is, going round; 0 for itself.
fn behind(me: usize, source: usize, ranks: usize) -> usize {
    (me + ranks - source % ranks) % ranks
}

/// Pulls of rank `me`, source after source.
pub fn source_after_source(mut pulls: Vec<Transfer>, me: usize, ranks: usize) -> Vec<Transfer> {
    // Stable: pulls from one source keep their order.
    pulls.sort_by_key(|pull| behind(me, pull.source.index(), ranks));
    pulls
}

/// Pulls of rank `me`, one from each source in turn.
pub fn sources_in_turn(pulls: Vec<Transfer>, me: usize, ranks: usize) -> Vec<Transfer> {
    let mut taken = vec![0usize; ranks];
    let mut numbered: Vec<((usize, usize), Transfer)> = Vec::with_capacity(pulls.len());
    for pull in pulls {
        let source = behind(me, pull.source.index(), ranks);
        numbered.push(((taken[source], source), pull));
        taken[source] += 1;
    }
    numbered.sort_by_key(|&(key, _)| key);
    numbered.into_iter().map(|(_, pull)| pull).collect()
}

#[cfg(test)]
mod tests {
    use eplb_core::{ExpertId, Landing, LayerId, RankId, SlotId};

    use super::*;

    fn pulls(sources: &[usize]) -> Vec<Transfer> {
        let pull = |(number, &source): (usize, &usize)| Transfer {
            layer: LayerId(0),
            expert: ExpertId::at(number),
            source: RankId::at(source),
            source_slot: SlotId::at(number),
            dest: RankId(1),
            dest_slot: SlotId::at(number),
            landing: Landing::InPlace,
        };
        sources.iter().enumerate().map(pull).collect()
    }

    fn told(pulls: &[Transfer]) -> Vec<(u32, u32)> {
        pulls.iter().map(|pull| (pull.source.0, pull.expert.0)).collect()
    }

    #[test]
    fn a_rank_begins_with_the_one_before_it() {
        let mixed = pulls(&[2, 0, 3, 0, 2, 0, 1]);
        let runs = source_after_source(mixed.clone(), 1, 4);
        assert_eq!(told(&runs), [(1, 6), (0, 1), (0, 3), (0, 5), (3, 2), (2, 0), (2, 4)]);
        let turns = sources_in_turn(mixed, 1, 4);
        assert_eq!(told(&turns), [(1, 6), (0, 1), (3, 2), (2, 0), (0, 3), (2, 4), (0, 5)]);
    }

    #[test]
    fn ranks_that_keep_in_step_never_share_a_source() {
        let from_all =
            |me: usize| -> Vec<usize> { (0..12).map(|n| n % 4).filter(|&source| source != me).collect() };
        for order in [source_after_source, sources_in_turn] {
            let all: Vec<Vec<Transfer>> = (0..4).map(|me| order(pulls(&from_all(me)), me, 4)).collect();
            for step in 0..9 {
                let mut sources: Vec<RankId> = all.iter().map(|pulls| pulls[step].source).collect();
                sources.sort_unstable();
                sources.dedup();
                assert_eq!(sources.len(), 4, "step {step}");
            }
        }
    }
}
