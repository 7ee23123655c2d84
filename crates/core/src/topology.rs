//! Who owns which slots, and who sits beside whom.

use std::ops::Range;

use crate::error::CoreError;
use crate::ids::{NodeId, RankId, SlotId};

/// Nodes, ranks and the slots that each rank owns, the same for every layer of a layer set.
///
/// Ranks own consecutive slots; counts may differ by rank. A rank has a relative speed (1 unless said) and
/// may be dead: a dead rank keeps its slot numbers, so maps keep their shape, but nothing may be placed there.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    slot_offset: Vec<u32>,
    rank_of_slot: Vec<RankId>,
    node_of_rank: Vec<NodeId>,
    nodes: usize,
    speed: Vec<f64>,
    alive: Vec<bool>,
}

impl Topology {
    /// One node, ranks with the given slot counts, all alive and equally fast.
    ///
    /// # Errors
    /// No rank at all, or more than 2^31 slots.
    pub fn new(slots_per_rank: &[usize]) -> Result<Self, CoreError> {
        if slots_per_rank.is_empty() {
            return Err(CoreError::Topology("there are no ranks; at least one is needed".into()));
        }
        let total = slots_per_rank.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        if !matches!(total, Some(total) if total <= i32::MAX as usize)
            || slots_per_rank.len() > i32::MAX as usize
        {
            return Err(CoreError::Topology("more than 2^31 slots or ranks".into()));
        }
        let mut slot_offset = Vec::with_capacity(slots_per_rank.len() + 1);
        let mut rank_of_slot = Vec::new();
        slot_offset.push(0);
        for (rank, &slots) in slots_per_rank.iter().enumerate() {
            rank_of_slot.resize(rank_of_slot.len() + slots, RankId::at(rank));
            slot_offset.push(rank_of_slot.len() as u32);
        }
        let ranks = slots_per_rank.len();
        Ok(Self {
            slot_offset,
            rank_of_slot,
            node_of_rank: vec![NodeId(0); ranks],
            nodes: 1,
            speed: vec![1.0; ranks],
            alive: vec![true; ranks],
        })
    }

    /// `slots` spread over `ranks`: where they do not divide, the first `slots % ranks` ranks own one more.
    ///
    /// # Errors
    /// As [`Topology::new`]; also fewer slots than ranks.
    pub fn uniform(ranks: usize, slots: usize) -> Result<Self, CoreError> {
        if ranks == 0 || slots < ranks {
            return Err(CoreError::Topology(format!(
                "{slots} slots on {ranks} ranks: every rank needs at least one slot"
            )));
        }
        let (base, extra) = (slots / ranks, slots % ranks);
        Self::new(&(0..ranks).map(|r| base + usize::from(r < extra)).collect::<Vec<_>>())
    }

    /// The same ranks on `nodes` nodes of consecutive ranks; the first `ranks % nodes` nodes hold one more.
    ///
    /// # Errors
    /// No node, or more nodes than ranks.
    pub fn with_nodes(self, nodes: usize) -> Result<Self, CoreError> {
        let ranks = self.ranks();
        if nodes == 0 || nodes > ranks {
            return Err(CoreError::Topology(format!(
                "{nodes} nodes for {ranks} ranks: give between 1 and {ranks} nodes"
            )));
        }
        let (base, extra) = (ranks / nodes, ranks % nodes);
        let node_of_rank = (0..nodes)
            .flat_map(|n| std::iter::repeat_n(NodeId::at(n), base + usize::from(n < extra)))
            .collect::<Vec<_>>();
        self.with_node_of_rank(node_of_rank)
    }

    /// The same ranks, each on the node named for it (shape `[ranks]`).
    ///
    /// # Errors
    /// Another number of entries than ranks, or node numbers that leave one out.
    pub fn with_node_of_rank(mut self, node_of_rank: Vec<NodeId>) -> Result<Self, CoreError> {
        if node_of_rank.len() != self.ranks() {
            return Err(CoreError::Topology(format!(
                "{} node numbers for {} ranks",
                node_of_rank.len(),
                self.ranks()
            )));
        }
        let nodes = node_of_rank.iter().map(|n| n.index() + 1).max().unwrap_or(1);
        if nodes > self.ranks() || (0..nodes).any(|n| !node_of_rank.contains(&NodeId::at(n))) {
            return Err(CoreError::Topology("node numbers must be 0, 1, .. with none left out".into()));
        }
        self.nodes = nodes;
        self.node_of_rank = node_of_rank;
        Ok(self)
    }

    /// The same ranks with relative speeds (shape `[ranks]`; 1 = the others' speed, 0.5 = half as fast).
    ///
    /// # Errors
    /// Another number of speeds than ranks, or a speed that is not finite and above 0.
    pub fn with_speed(mut self, speed: &[f64]) -> Result<Self, CoreError> {
        if speed.len() != self.ranks() {
            return Err(CoreError::Topology(format!("{} speeds for {} ranks", speed.len(), self.ranks())));
        }
        if let Some(rank) = speed.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(CoreError::Speed { rank: RankId::at(rank), value: speed[rank] });
        }
        self.speed = speed.to_vec();
        Ok(self)
    }

    /// The same ranks with the named ones dead.
    ///
    /// # Errors
    /// A rank that does not exist, or no rank left alive.
    pub fn with_dead(mut self, dead: &[RankId]) -> Result<Self, CoreError> {
        for &rank in dead {
            if rank.index() >= self.ranks() {
                return Err(CoreError::Topology(format!(
                    "dead {rank} does not exist: ranks are 0..{}",
                    self.ranks()
                )));
            }
            self.alive[rank.index()] = false;
        }
        if !self.alive.contains(&true) {
            return Err(CoreError::Topology("every rank is dead; at least one must be alive".into()));
        }
        Ok(self)
    }

    /// Number of ranks, dead ones included.
    #[inline]
    pub fn ranks(&self) -> usize {
        self.node_of_rank.len()
    }

    /// Number of nodes.
    #[inline]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Number of slots per layer, those of dead ranks included.
    #[inline]
    pub fn slots(&self) -> usize {
        self.rank_of_slot.len()
    }

    /// Slots per layer on ranks that are alive.
    pub fn live_slots(&self) -> usize {
        self.live_ranks().map(|r| self.slot_count(r)).sum()
    }

    /// The slots that a rank owns.
    #[inline]
    pub fn slots_of(&self, rank: RankId) -> Range<usize> {
        self.slot_offset[rank.index()] as usize..self.slot_offset[rank.index() + 1] as usize
    }

    /// How many slots a rank owns.
    #[inline]
    pub fn slot_count(&self, rank: RankId) -> usize {
        self.slots_of(rank).len()
    }

    /// The rank that owns a slot.
    #[inline]
    pub fn rank_of(&self, slot: SlotId) -> RankId {
        self.rank_of_slot[slot.index()]
    }

    /// Owner of every slot, shape `[slots]`.
    #[inline]
    pub fn rank_of_slots(&self) -> &[RankId] {
        &self.rank_of_slot
    }

    /// First slot of each rank and the number of slots after the last, shape `[ranks + 1]`.
    #[inline]
    pub fn slot_offsets(&self) -> &[u32] {
        &self.slot_offset
    }

    /// The node of a rank.
    #[inline]
    pub fn node_of(&self, rank: RankId) -> NodeId {
        self.node_of_rank[rank.index()]
    }

    /// Ranks of a node, ascending.
    pub fn ranks_of(&self, node: NodeId) -> impl Iterator<Item = RankId> + '_ {
        self.all_ranks().filter(move |&r| self.node_of(r) == node)
    }

    /// All ranks, dead ones included, ascending.
    pub fn all_ranks(&self) -> impl Iterator<Item = RankId> + use<> {
        (0..self.ranks()).map(RankId::at)
    }

    /// Ranks that are alive, ascending.
    pub fn live_ranks(&self) -> impl Iterator<Item = RankId> + '_ {
        self.all_ranks().filter(|&r| self.is_alive(r))
    }

    /// Whether a rank is alive.
    #[inline]
    pub fn is_alive(&self, rank: RankId) -> bool {
        self.alive[rank.index()]
    }

    /// Whether every rank is alive.
    pub fn all_alive(&self) -> bool {
        self.alive.iter().all(|&a| a)
    }

    /// Relative speed of a rank.
    #[inline]
    pub fn speed(&self, rank: RankId) -> f64 {
        self.speed[rank.index()]
    }

    /// Whether all ranks have one speed.
    pub fn equal_speed(&self) -> bool {
        self.speed.iter().all(|&s| s == self.speed[0])
    }

    /// Slots per rank if all ranks own the same number.
    pub fn uniform_slots(&self) -> Option<usize> {
        let first = self.slot_count(RankId(0));
        self.all_ranks().all(|r| self.slot_count(r) == first).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_slots_go_to_the_first_ranks() {
        let topology = Topology::uniform(3, 8).unwrap();
        assert_eq!(topology.slot_offsets(), &[0, 3, 6, 8]);
        assert_eq!(topology.rank_of(SlotId(6)), RankId(2));
        assert_eq!(topology.uniform_slots(), None);
    }

    #[test]
    fn nodes_hold_consecutive_ranks() {
        let topology = Topology::uniform(5, 10).unwrap().with_nodes(2).unwrap();
        let nodes: Vec<u32> = topology.all_ranks().map(|r| topology.node_of(r).0).collect();
        assert_eq!(nodes, [0, 0, 0, 1, 1]);
        assert_eq!(topology.ranks_of(NodeId(1)).collect::<Vec<_>>(), [RankId(3), RankId(4)]);
    }

    #[test]
    fn impossible_topologies_are_refused() {
        assert!(Topology::new(&[]).is_err());
        assert!(Topology::uniform(4, 3).is_err());
        assert!(Topology::uniform(0, 3).is_err());
        let two = Topology::uniform(2, 4).unwrap();
        assert!(two.clone().with_nodes(3).is_err());
        assert!(two.clone().with_nodes(0).is_err());
        assert!(two.clone().with_node_of_rank(vec![NodeId(1), NodeId(1)]).is_err());
        assert!(two.clone().with_speed(&[1.0, 0.0]).is_err());
        assert!(two.clone().with_speed(&[1.0]).is_err());
        assert!(two.clone().with_dead(&[RankId(2)]).is_err());
        assert!(two.clone().with_dead(&[RankId(0), RankId(1)]).is_err());
        assert_eq!(two.with_dead(&[RankId(0)]).unwrap().live_slots(), 2);
    }
}
