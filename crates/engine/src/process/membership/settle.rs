//! Which placement is in force in a new epoch. No IO: every member computes it from the same words.

use eplb_core::{RankId, Topology};
use ndarray::Array2;

/// What a member of the new epoch says it holds, in the numbering of the new epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Rises by one with each wave that has taken effect here since the start of the run, and by more with each reform.
    pub version: u64,
    /// Whether a record says that the wave after `version` is committed.
    pub saw_next: bool,
    /// Last step that it has begun.
    pub last_step: Option<u64>,
    /// Its map, `[L, P]`. `None`: it holds nothing, or does not know what.
    pub map: Option<Array2<i32>>,
    /// Its map if the wave after `version` is committed, where its bytes are in and it does not know whether it was.
    pub next: Option<Array2<i32>>,
}

/// What all go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The highest version that any member has committed or seen committed.
    pub version: u64,
    /// The map in force, `[L, P]`; -1 where a slot holds nothing that is known.
    pub map: Array2<i32>,
    /// Members that roll forward: they carry out the commit of the wave after their version from what they have staged.
    pub roll_forward: Vec<RankId>,
}

/// By how much a reform moves the version. By more than the commit of a wave does: a member that has fallen out of an attempt to reform, and
/// still has a wave staged that was not committed, is behind those who got further, and must not take their new version for the commit
/// of its wave.
const OF_A_REFORM: u64 = 2;

impl Settled {
    /// The version of what is in force once all have taken their places in the new epoch: one of its own, since the numbering is another.
    pub(super) fn taken_version(&self) -> u64 {
        self.version + OF_A_REFORM
    }
}

/// The placement in force, from what the members say, ascending by rank. `layers` is the number of layers.
///
/// The highest version wins: a wave that one rank has committed, or seen committed, was decided. Of a rank's own slots its own
/// word counts, so what members believe of slots of a rank that is not among them, or of drained slots of another, does
/// not matter: members that saw an exchange end in different ways compute the same map. A rank that is behind and cannot roll
/// forward holds what its own map and the map in force agree on.
pub fn settle(reports: &[(RankId, Report)], topology: &Topology, layers: usize) -> Settled {
    let reached = |report: &Report| {
        let known = report.map.is_some() || report.next.is_some();
        known.then_some(report.version + u64::from(report.saw_next && report.next.is_some()))
    };
    let version = reports.iter().filter_map(|(_, report)| reached(report)).max().unwrap_or(0);
    // The map of a member in that version, and whether it has to roll forward for it.
    let at_best = |report: &'_ Report| -> Option<(Array2<i32>, bool)> {
        if report.version == version {
            return report.map.clone().map(|map| (map, false));
        }
        let rolls = report.version + 1 == version;
        report.next.clone().filter(|_| rolls).map(|map| (map, true))
    };
    let believed = reports.iter().find_map(|(_, report)| at_best(report)).map(|(map, _)| map);
    let mut map = Array2::from_elem((layers, topology.slots()), -1);
    let mut roll_forward = Vec::new();
    for (rank, report) in reports {
        let own = at_best(report);
        if own.as_ref().is_some_and(|(_, rolls)| *rolls) {
            roll_forward.push(*rank);
        }
        for layer in 0..layers {
            for slot in topology.slots_of(*rank) {
                let at = (layer, slot);
                map[at] = match (&own, &report.map, &believed) {
                    (Some((own, _)), _, _) => own[at],
                    (None, Some(behind), Some(believed)) if behind[at] == believed[at] => behind[at],
                    _ => -1,
                };
            }
        }
    }
    Settled { version, map, roll_forward }
}

impl Report {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.version.to_le_bytes());
        let flags = [self.saw_next, self.last_step.is_some(), self.map.is_some(), self.next.is_some()];
        out.extend(flags.map(u8::from));
        out.extend(self.last_step.unwrap_or(0).to_le_bytes());
        for entry in self.map.iter().chain(&self.next).flatten() {
            out.extend(entry.to_le_bytes());
        }
        out
    }

    /// Reads one for maps of the given shape; `None` if it is none.
    pub(super) fn decode(bytes: &[u8], shape: (usize, usize)) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk::<8>()?;
        let (flags, rest) = rest.split_first_chunk::<4>()?;
        let (step, rest) = rest.split_first_chunk::<8>()?;
        if flags.iter().any(|flag| *flag > 1) {
            return None;
        }
        let [saw_next, has_step, has_map, has_next] = flags.map(|flag| flag == 1);
        let size = shape.0 * shape.1 * 4;
        let maps = usize::from(has_map) + usize::from(has_next);
        if rest.len() != maps * size {
            return None;
        }
        let (first, second) = if has_map { rest.split_at(size) } else { rest.split_at(0) };
        let read = |bytes: &[u8], has: bool| has.then(|| super::super::standing::decode_map(bytes, shape));
        Some(Self {
            version: u64::from_le_bytes(*version),
            saw_next,
            last_step: has_step.then_some(u64::from_le_bytes(*step)),
            map: read(first, has_map).map_or(Some(None), |map| map.map(Some))?,
            next: read(second, has_next).map_or(Some(None), |map| map.map(Some))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn report(version: u64, map: Array2<i32>) -> Report {
        Report { version, saw_next: false, last_step: Some(3), map: Some(map), next: None }
    }

    fn ranks<const N: usize>(reports: [Report; N]) -> Vec<(RankId, Report)> {
        (0..).map(RankId).zip(reports).collect()
    }

    const NOTHING: Report = Report { version: 0, saw_next: false, last_step: None, map: None, next: None };

    #[test]
    fn reports_are_read_as_written() {
        let map = array![[0, -1], [1, 0]];
        for (has_map, has_next) in [(false, false), (true, false), (false, true), (true, true)] {
            let some = Report {
                version: 9,
                saw_next: has_next,
                last_step: has_map.then_some(4),
                map: has_map.then(|| map.clone()),
                next: has_next.then(|| &map + 1),
            };
            let bytes = some.encode();
            assert_eq!(Report::decode(&bytes, (2, 2)), Some(some));
            for end in 0..bytes.len() {
                assert_eq!(Report::decode(&bytes[..end], (2, 2)), None);
            }
        }
    }

    #[test]
    fn of_its_own_slots_each_rank_knows_best() {
        let topology = Topology::uniform(3, 6).unwrap();
        // Ranks 0 and 1 ended an exchange with different lists of silent ranks: of rank 2's slots they believe different things.
        let reports = ranks([
            report(4, array![[2, 1, 2, -1, -1, 0]]),
            report(4, array![[2, 1, 2, 0, 1, -1]]),
            report(4, array![[2, 1, 2, 0, 1, 0]]),
        ]);
        let settled = settle(&reports, &topology, 1);
        assert_eq!((settled.version, settled.map), (4, array![[2, 1, 2, 0, 1, 0]]));
        // Without rank 2, whose slots are no more, they come to the same map as well.
        let topology = Topology::uniform(2, 4).unwrap();
        let reports = ranks([report(4, array![[2, 1, 2, -1]]), report(4, array![[2, 1, 2, 0]])]);
        assert_eq!(settle(&reports, &topology, 1).map, array![[2, 1, 2, 0]]);
    }

    #[test]
    fn who_joins_holds_nothing() {
        let topology = Topology::uniform(2, 4).unwrap();
        let settled = settle(&ranks([report(1, array![[0, 1, 0, 1]]), NOTHING]), &topology, 1);
        assert_eq!(settled.map, array![[0, 1, -1, -1]]);
        let settled = settle(&ranks([NOTHING, NOTHING]), &topology, 1);
        assert_eq!((settled.version, settled.map), (0, array![[-1, -1, -1, -1]]));
    }

    #[test]
    fn the_highest_version_wins_and_who_can_rolls_forward() {
        let topology = Topology::uniform(3, 6).unwrap();
        let (before, after) = (array![[0, 1, 2, 0, 1, 2]], array![[0, 1, 2, 0, 2, 1]]);
        let mut undecided = report(7, before.clone());
        undecided.next = Some(after.clone());
        // Nobody knows that the wave was committed: it was not.
        let settled =
            settle(&ranks([report(7, before.clone()), undecided.clone(), undecided.clone()]), &topology, 1);
        assert_eq!((settled.version, &settled.map, settled.roll_forward.len()), (7, &before, 0));
        // One has committed it.
        let all = ranks([undecided.clone(), report(8, after.clone()), undecided.clone()]);
        let settled = settle(&all, &topology, 1);
        assert_eq!((settled.version, &settled.map), (8, &after));
        assert_eq!(settled.roll_forward, [RankId(0), RankId(2)]);
        // Nobody has, but one has seen that it is.
        let saw = Report { saw_next: true, ..undecided.clone() };
        let settled = settle(&ranks([undecided.clone(), undecided, saw]), &topology, 1);
        assert_eq!((settled.version, &settled.map, settled.roll_forward.len()), (8, &after, 3));
        // One that is behind and has nothing staged keeps what did not change.
        let settled = settle(
            &ranks([report(8, after.clone()), report(8, after.clone()), report(6, before)]),
            &topology,
            1,
        );
        assert_eq!(settled.map, array![[0, 1, 2, 0, -1, -1]]);
    }
    #[test]
    fn a_reform_is_not_taken_for_the_commit_of_a_wave() {
        let topology = Topology::uniform(3, 6).unwrap();
        // The wave moves expert 2 from rank 2 to rank 1, and expert 1 back. Nobody has committed it.
        let (before, after) = (array![[0, 3, 1, 0, 2, 3]], array![[0, 3, 2, 0, 1, 3]]);
        let mut undecided = report(7, before.clone());
        undecided.next = Some(after);
        let settled = settle(&ranks([undecided.clone(), undecided.clone(), undecided.clone()]), &topology, 1);
        assert_eq!((settled.version, &settled.map), (7, &before));
        // Ranks 0 and 1 take their places with that; rank 2 has heard too late what they hold, and all begin anew.
        let gone_on = report(settled.taken_version(), settled.map);
        let settled = settle(&ranks([gone_on.clone(), gone_on, undecided]), &topology, 1);
        assert_eq!(settled.roll_forward, [], "expert 2 would be nowhere");
        assert_eq!(settled.map, before);
    }
}
