//! Who holds what, after some ranks may have failed: the placement that ranks go on from.

use std::ops::Range;

use eplb_core::{CoreError, Placement, RankId, Topology};
use ndarray::Array2;

use super::membership::restore::restore;

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

/// The placement that all go on from, and its version; `start` where nobody has a map. A rank whose own map says something else of
/// one of its slots has to fill that slot anew.
///
/// The highest version that anyone has committed wins: a wave that one rank has committed was decided. Ranks of that version may
/// hold different views of slots in which an aborted wave may have left bytes; of these, each slot's owner knows. An expert that is in no slot
/// then, because a commit failed on a device, gets one that can be spared.
pub(crate) fn reconcile(
    standings: &[(RankId, Standing)],
    topology: &Topology,
    start: &Placement,
) -> Result<(u64, Placement), CoreError> {
    let best = standings.iter().filter(|(_, s)| s.map.is_some()).map(|(_, s)| s.version).max();
    let Some(best) = best else {
        return Ok((0, start.clone()));
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
    let known = Placement::with_missing(start.experts(), map)?;
    let mut map = known.phy2log().to_owned();
    for fetch in restore(&known, start, topology).fetches {
        map[(fetch.layer.index(), fetch.slot.index())] = fetch.expert.0 as i32;
    }
    Ok((best, Placement::with_missing(start.experts(), map)?))
}

/// Places, as layers and slots, of `slots` in which a rank has to put what a placement says: all but those of which its own map says
/// the same.
pub(crate) fn wanting(
    own: Option<&Array2<i32>>,
    placement: &Placement,
    slots: Range<usize>,
) -> Vec<(usize, usize)> {
    let places = (0..placement.layers()).flat_map(|layer| slots.clone().map(move |slot| (layer, slot)));
    let wanted = placement.phy2log();
    places.filter(|&place| wanted[place] >= 0 && own.is_none_or(|own| own[place] != wanted[place])).collect()
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
        let start = Placement::new(3, array![[0, 1, 2, 0, 1, 2]]).unwrap();
        let fresh = Standing { version: 0, last_step: None, map: None };
        let ranks = |standings: [Standing; 3]| -> Vec<_> { (0..3).map(RankId).zip(standings).collect() };
        let agreed = |standings: [Standing; 3]| {
            let (version, placement) = reconcile(&ranks(standings), &topology, &start).unwrap();
            (version, placement.phy2log().to_owned())
        };
        let nobody = [fresh.clone(), fresh.clone(), fresh.clone()];
        assert_eq!(agreed(nobody), (0, start.phy2log().to_owned()));
        // Rank 0 has not seen wave 4 committed; rank 1 distrusts a slot of its own that rank 2 believes to be good.
        let (behind, own) = (array![[0, 1, 2, 0, 1, 2]], array![[2, 1, 2, -1, 1, 0]]);
        let standings =
            [standing(3, behind.clone()), standing(4, own.clone()), standing(4, array![[2, 1, 2, 0, 1, 0]])];
        let (version, map) = agreed(standings);
        assert_eq!((version, &map), (4, &own));
        let placement = Placement::with_missing(3, map).unwrap();
        assert_eq!(wanting(Some(&behind), &placement, 0..2), [(0, 0)]);
        assert_eq!(wanting(Some(&own), &placement, 2..4), []);
        assert_eq!(wanting(None, &placement, 2..4), [(0, 2)]);
        // A rank that is new takes what the others believe of its slots.
        let standings = [standing(4, array![[2, 1, 2, 0, 1, 0]]), fresh, standing(1, behind)];
        assert_eq!(agreed(standings), (4, array![[2, 1, 2, 0, 1, 0]]));
    }

    #[test]
    fn an_expert_that_a_broken_commit_has_left_nowhere_gets_a_slot() {
        let topology = Topology::uniform(2, 4).unwrap();
        let start = Placement::new(3, array![[0, 1, 2, 0]]).unwrap();
        // Expert 2 was to come to slot 0, whose copy failed; slot 2, where it was, has been overwritten.
        let map = array![[-1, 1, 0, 0]];
        let standings = [(RankId(0), standing(4, map.clone())), (RankId(1), standing(4, map.clone()))];
        let (_, placement) = reconcile(&standings, &topology, &start).unwrap();
        assert!(placement.logcnt().iter().all(|&replicas| replicas > 0), "{placement:?}");
        // Whose slot it is knows that it does not hold it.
        let wanted: Vec<_> = [0..2, 2..4].map(|slots| wanting(Some(&map), &placement, slots)).concat();
        assert_eq!(wanted, [(0, 2)], "where it was at the start");
    }
}
