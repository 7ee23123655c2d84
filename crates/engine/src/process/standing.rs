//! Who holds what, after some ranks may have failed: the placement that ranks go on from.

use eplb_core::{RankId, Topology};
use ndarray::Array2;

/// What a rank says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Waves that it has committed since the start of the run. A rank that has just started has none, and no map.
    pub(crate) version: u64,
    /// Last step that it has begun.
    pub(crate) last_step: Option<u64>,
    /// Its map, `[L, P]`.
    pub(crate) map: Option<Array2<i32>>,
}

impl Standing {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.version.to_le_bytes());
        out.push(u8::from(self.last_step.is_some()));
        out.extend(self.last_step.unwrap_or(0).to_le_bytes());
        for entry in self.map.iter().flatten() {
            out.extend(entry.to_le_bytes());
        }
        out
    }

    /// Reads one for maps of the given shape; `None` if it is none.
    pub(crate) fn decode(bytes: &[u8], shape: (usize, usize)) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk::<8>()?;
        let (&has_step, rest) = rest.split_first()?;
        let (step, rest) = rest.split_first_chunk::<8>()?;
        let map = if rest.is_empty() { None } else { Some(decode_map(rest, shape)?) };
        let last_step = (has_step == 1).then_some(u64::from_le_bytes(*step));
        Some(Self { version: u64::from_le_bytes(*version), last_step, map })
    }
}

/// Reads the entries of a map, `[L, P]` in C order.
pub(super) fn decode_map(bytes: &[u8], shape: (usize, usize)) -> Option<Array2<i32>> {
    let (entries, rest) = bytes.as_chunks::<4>();
    let entries: Vec<i32> = entries.iter().map(|entry| i32::from_le_bytes(*entry)).collect();
    if rest.is_empty() { Array2::from_shape_vec(shape, entries).ok() } else { None }
}

/// The placement that all go on from: its version, its map, and for each rank, in the order given, whether its slots hold
/// what the map says. `start` where nobody has a map.
///
/// The highest version that anyone has committed wins: a wave that one rank has committed was decided. Ranks of that version may
/// hold different views of slots in which an aborted wave may have left bytes; of these, each slot's owner knows. A rank of another
/// version, or none, has to fill its slots anew.
pub(crate) fn reconcile(
    standings: &[(RankId, Standing)],
    topology: &Topology,
    start: &Array2<i32>,
) -> (u64, Array2<i32>, Vec<bool>) {
    let best = standings.iter().filter(|(_, s)| s.map.is_some()).map(|(_, s)| s.version).max();
    let Some(best) = best else {
        return (0, start.clone(), vec![false; standings.len()]);
    };
    let holds = |standing: &Standing| standing.map.is_some() && standing.version == best;
    let mut map =
        standings.iter().find(|(_, s)| holds(s)).and_then(|(_, s)| s.map.clone()).unwrap_or_default();
    for (rank, standing) in standings {
        let Some(own) = standing.map.as_ref().filter(|_| holds(standing)) else { continue };
        for layer in 0..map.nrows() {
            for slot in topology.slots_of(*rank) {
                map[(layer, slot)] = own[(layer, slot)];
            }
        }
    }
    (best, map, standings.iter().map(|(_, standing)| holds(standing)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn standing(version: u64, map: Array2<i32>) -> Standing {
        Standing { version, last_step: Some(5), map: Some(map) }
    }

    #[test]
    fn standings_are_read_as_written() {
        let some = standing(9, array![[0, -1], [1, 0]]);
        assert_eq!(Standing::decode(&some.encode(), (2, 2)), Some(some.clone()));
        let fresh = Standing { version: 0, last_step: None, map: None };
        assert_eq!(Standing::decode(&fresh.encode(), (2, 2)), Some(fresh));
        let bytes = some.encode();
        assert_eq!(Standing::decode(&bytes, (2, 3)), None);
        for end in (0..17).chain(18..bytes.len()) {
            assert_eq!(Standing::decode(&bytes[..end], (2, 2)), None, "{end}");
        }
    }

    #[test]
    fn the_highest_version_wins_and_owners_know_their_slots() {
        let topology = Topology::uniform(3, 6).unwrap();
        let start = array![[0, 1, 2, 0, 1, 2]];
        let fresh = Standing { version: 0, last_step: None, map: None };
        let ranks = |standings: [Standing; 3]| -> Vec<_> { (0..3).map(RankId).zip(standings).collect() };
        let nobody = ranks([fresh.clone(), fresh.clone(), fresh.clone()]);
        assert_eq!(reconcile(&nobody, &topology, &start), (0, start.clone(), vec![false; 3]));
        // Rank 0 has not seen wave 4 committed; rank 1 distrusts a slot of its own that rank 2 believes to be good.
        let standings = ranks([
            standing(3, array![[0, 1, 2, 0, 1, 2]]),
            standing(4, array![[2, 1, 2, -1, 1, 0]]),
            standing(4, array![[2, 1, 2, 0, 1, 0]]),
        ]);
        let expected = array![[2, 1, 2, -1, 1, 0]];
        assert_eq!(reconcile(&standings, &topology, &start), (4, expected, vec![false, true, true]));
        // A rank that is new takes what the others believe of its slots.
        let standings = ranks([standing(4, array![[2, 1, 2, 0, 1, 0]]), fresh, standing(1, start.clone())]);
        let expected = array![[2, 1, 2, 0, 1, 0]];
        assert_eq!(reconcile(&standings, &topology, &start), (4, expected, vec![true, false, false]));
    }
}
