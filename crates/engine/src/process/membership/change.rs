//! What the members of an epoch want the next one to be.

use eplb_core::{NodeId, RankId, Topology};

use super::error::MembershipError;

/// A change of members. [`Reform::topology`] and [`Reform::mapping`] are the same on all members; whom a member suspects to be dead
/// is its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Reform {
    /// Ranks and slots of the next epoch, if everybody comes.
    pub topology: Topology,
    /// For each rank of this epoch its rank in the next. `None`: it leaves; if it is not suspected, it lives and its experts
    /// move off first. Ranks of the topology that no rank is mapped to join.
    pub mapping: Vec<Option<RankId>>,
    /// Ranks of this epoch that are held for dead: nobody waits for them. One that comes in time all the same, and is
    /// mapped, belongs to the next epoch.
    pub suspects: Vec<RankId>,
}

impl Reform {
    /// The same ranks, as far as they live.
    pub fn survivors(topology: &Topology, suspects: &[RankId]) -> Self {
        Self {
            topology: topology.clone(),
            mapping: topology.all_ranks().map(Some).collect(),
            suspects: suspects.to_vec(),
        }
    }

    /// Without some ranks, which live; those behind them move up.
    ///
    /// # Errors
    /// A rank that does not exist, or nobody left.
    pub fn leave(topology: &Topology, leaving: &[RankId]) -> Result<Self, MembershipError> {
        if let Some(rank) = leaving.iter().find(|rank| rank.index() >= topology.ranks()) {
            let text = format!("{rank} leaves, but ranks are 0..{}", topology.ranks());
            return Err(MembershipError::Change(text));
        }
        let stays: Vec<RankId> = topology.all_ranks().filter(|rank| !leaving.contains(rank)).collect();
        let mapping = topology.all_ranks().map(|rank| stays.binary_search(&rank).ok().map(RankId::at));
        Ok(Self { mapping: mapping.collect(), topology: restrict(topology, &stays)?, suspects: Vec::new() })
    }

    /// With further ranks behind the others, one for each number of slots given, on the node of the last rank.
    ///
    /// # Errors
    /// More slots than there can be.
    pub fn join(topology: &Topology, slots: &[usize]) -> Result<Self, MembershipError> {
        let own = topology.all_ranks().map(|rank| topology.slot_count(rank));
        let counts: Vec<usize> = own.chain(slots.iter().copied()).collect();
        let last = topology.node_of(RankId::at(topology.ranks() - 1));
        let nodes = topology.all_ranks().map(|rank| topology.node_of(rank));
        let nodes = nodes.chain(slots.iter().map(|_| last)).collect();
        let speeds = topology.all_ranks().map(|rank| topology.speed(rank));
        let speeds: Vec<f64> = speeds.chain(slots.iter().map(|_| 1.0)).collect();
        Ok(Self {
            mapping: topology.all_ranks().map(Some).collect(),
            topology: Topology::new(&counts)?.with_node_of_rank(nodes)?.with_speed(&speeds)?,
            suspects: Vec::new(),
        })
    }

    /// Ranks of this epoch that leave while they live, ascending.
    pub fn leaving(&self) -> Vec<RankId> {
        let ranks = (0..self.mapping.len()).map(RankId::at);
        let leaves = |rank: &RankId| self.mapping[rank.index()].is_none() && !self.suspects.contains(rank);
        ranks.filter(leaves).collect()
    }

    /// Ranks of the next epoch that join, ascending.
    pub fn joining(&self) -> Vec<RankId> {
        let mapped = |rank: &RankId| self.mapping.contains(&Some(*rank));
        self.topology.all_ranks().filter(|rank| !mapped(rank)).collect()
    }

    /// Refuses what cannot be, for members with ranks and slots as `old` has them.
    ///
    /// # Errors
    /// [`MembershipError::Change`]: another number of ranks, two ranks with one number, nobody left, or a rank that would have
    /// another number of slots.
    pub fn check(&self, old: &Topology) -> Result<(), MembershipError> {
        let refuse = |text: String| Err(MembershipError::Change(text));
        if self.mapping.len() != old.ranks() {
            return refuse(format!("{} ranks are mapped, but there are {}", self.mapping.len(), old.ranks()));
        }
        if !self.topology.all_alive() {
            return refuse("the topology has dead ranks: leave them out of it".into());
        }
        let mut taken = vec![None; self.topology.ranks()];
        for (rank, new) in old.all_ranks().zip(&self.mapping) {
            let Some(new) = *new else { continue };
            let Some(seat) = taken.get_mut(new.index()) else {
                return refuse(format!(
                    "{rank} becomes {new}, but ranks will be 0..{}",
                    self.topology.ranks()
                ));
            };
            if let Some(other) = seat.replace(rank) {
                return refuse(format!("{other} and {rank} both become {new}"));
            }
            let (had, has) = (old.slot_count(rank), self.topology.slot_count(new));
            if had != has {
                return refuse(format!(
                    "{rank} has {had} slots, but {has} as {new}: its memory does not change"
                ));
            }
        }
        if taken.iter().all(Option::is_none) {
            return refuse("no rank stays".into());
        }
        Ok(())
    }

    /// Hash of what must be the same on all members.
    pub fn hash64(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for new in &self.mapping {
            hasher.update(&new.map_or(u32::MAX, |rank| rank.0).to_le_bytes());
        }
        hasher.update(&topology_hash(&self.topology).to_le_bytes());
        hasher.digest()
    }
}

/// Hash of ranks, slots, nodes and speeds.
pub(super) fn topology_hash(topology: &Topology) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for rank in topology.all_ranks() {
        hasher.update(&(topology.slot_count(rank) as u64).to_le_bytes());
        hasher.update(&topology.node_of(rank).0.to_le_bytes());
        hasher.update(&topology.speed(rank).to_bits().to_le_bytes());
    }
    hasher.digest()
}

/// The topology of some of the ranks, given ascending, numbered without gaps; so are its nodes.
pub(super) fn restrict(topology: &Topology, ranks: &[RankId]) -> Result<Topology, MembershipError> {
    if ranks.is_empty() {
        return Err(MembershipError::Change("no rank stays".into()));
    }
    let counts: Vec<usize> = ranks.iter().map(|&rank| topology.slot_count(rank)).collect();
    let speeds: Vec<f64> = ranks.iter().map(|&rank| topology.speed(rank)).collect();
    let mut kept: Vec<NodeId> = ranks.iter().map(|&rank| topology.node_of(rank)).collect();
    kept.sort_unstable();
    kept.dedup();
    let node = |&rank: &RankId| NodeId::at(kept.partition_point(|&node| node < topology.node_of(rank)));
    let nodes = ranks.iter().map(node).collect();
    Ok(Topology::new(&counts)?.with_node_of_rank(nodes)?.with_speed(&speeds)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old() -> Topology {
        Topology::new(&[4, 5, 6, 7])
            .unwrap()
            .with_nodes(2)
            .unwrap()
            .with_speed(&[1.0, 2.0, 1.0, 0.5])
            .unwrap()
    }

    #[test]
    fn ranks_behind_those_that_leave_move_up() {
        let reform = Reform::leave(&old(), &[RankId(0), RankId(2)]).unwrap();
        assert_eq!(reform.mapping, [None, Some(RankId(0)), None, Some(RankId(1))]);
        assert_eq!(reform.leaving(), [RankId(0), RankId(2)]);
        assert_eq!(reform.joining(), []);
        let new = &reform.topology;
        assert_eq!((new.slot_offsets(), new.speed(RankId(0)), new.nodes()), (&[0, 5, 12][..], 2.0, 2));
        reform.check(&old()).unwrap();
        assert!(Reform::leave(&old(), &[RankId(4)]).is_err());
        let all: Vec<RankId> = old().all_ranks().collect();
        assert!(Reform::leave(&old(), &all).is_err());
    }

    #[test]
    fn ranks_that_join_come_last() {
        let reform = Reform::join(&old(), &[3, 9]).unwrap();
        assert_eq!(reform.joining(), [RankId(4), RankId(5)]);
        assert_eq!(reform.topology.slot_count(RankId(5)), 9);
        assert_eq!(reform.topology.node_of(RankId(5)), NodeId(1));
        reform.check(&old()).unwrap();
    }

    #[test]
    fn suspects_do_not_leave_they_are_gone() {
        let mut reform = Reform::survivors(&old(), &[RankId(1)]);
        assert_eq!((reform.leaving(), reform.joining()), (vec![], vec![]));
        reform.mapping[1] = None;
        assert_eq!((reform.leaving(), reform.joining()), (vec![], vec![RankId(1)]));
    }

    #[test]
    fn contradictions_are_refused() {
        let refused = |change: fn(&mut Reform), word: &str| {
            let mut reform = Reform::survivors(&old(), &[]);
            change(&mut reform);
            let error = reform.check(&old()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refused(|r| r.mapping.truncate(3), "3 ranks are mapped, but there are 4");
        refused(|r| r.mapping[1] = Some(RankId(0)), "rank 0 and rank 1 both become rank 0");
        refused(|r| r.mapping[1] = Some(RankId(9)), "rank 1 becomes rank 9");
        refused(|r| r.mapping = vec![None; 4], "no rank stays");
        refused(|r| r.mapping.swap(0, 1), "rank 0 has 4 slots, but 5 as rank 1");
        refused(|r| r.topology = old().with_dead(&[RankId(1)]).unwrap(), "dead ranks");
    }

    #[test]
    fn the_hash_sees_what_must_be_the_same_and_nothing_else() {
        let base = Reform::survivors(&old(), &[]);
        assert_eq!(base.hash64(), Reform::survivors(&old(), &[RankId(3)]).hash64());
        let mut other = base.clone();
        other.mapping[2] = None;
        assert_ne!(base.hash64(), other.hash64());
        let other = Reform { topology: old().with_speed(&[1.0; 4]).unwrap(), ..base.clone() };
        assert_ne!(base.hash64(), other.hash64());
        let other = Reform { topology: old().with_nodes(4).unwrap(), ..base.clone() };
        assert_ne!(base.hash64(), other.hash64());
    }
}
