//! Which expert lives in which slot.

use ndarray::{Array2, Array3, ArrayView1, ArrayView2, Axis, Slice};

use crate::error::CoreError;
use crate::ids::{ExpertId, LayerId, SlotId};
use crate::topology::Topology;

/// The expert in every slot of every layer, and the inverse maps.
///
/// Invariants, checked on construction: every entry of `phy2log` is -1 (empty) or an expert; the inverse maps
/// are derived from it and so always agree; and, unless made by [`Placement::with_missing`], every expert has
/// at least one slot. Replicas of an expert are listed in ascending slot order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    phy2log: Array2<i32>,
    logcnt: Array2<u32>,
    replica_slots: Vec<SlotId>,
    replica_offset: Vec<u32>,
}

impl Placement {
    /// A placement in which every expert has at least one copy; `phy2log` is `[L, P]`.
    ///
    /// # Errors
    /// An entry outside `-1..experts`, an empty axis, or an expert with no slot.
    pub fn new(experts: usize, phy2log: Array2<i32>) -> Result<Self, CoreError> {
        let placement = Self::with_missing(experts, phy2log)?;
        if let Some((layer, expert)) = placement.missing().next() {
            return Err(CoreError::MissingExpert { layer, expert });
        }
        Ok(placement)
    }

    /// A placement in which experts may have no copy (after the death of a rank); see [`Placement::missing`].
    ///
    /// # Errors
    /// An entry outside `-1..experts`, or an empty axis.
    pub fn with_missing(experts: usize, phy2log: Array2<i32>) -> Result<Self, CoreError> {
        let (layers, slots) = phy2log.dim();
        if layers == 0
            || slots == 0
            || experts == 0
            || experts > i32::MAX as usize
            || slots > i32::MAX as usize
        {
            return Err(CoreError::Shape {
                what: "phy2log",
                found: vec![layers, slots],
                expected: format!("[layers, slots], each 1 or more, for {experts} experts"),
            });
        }
        let phy2log =
            if phy2log.is_standard_layout() { phy2log } else { phy2log.as_standard_layout().to_owned() };
        let mut logcnt = Array2::<u32>::zeros((layers, experts));
        let mut replica_slots = Vec::with_capacity(layers * slots);
        let mut replica_offset = Vec::with_capacity(layers * experts + 1);
        let mut cursor = vec![0u32; experts];
        replica_offset.push(0);
        for (layer, row) in phy2log.rows().into_iter().enumerate() {
            let (row, counts) = (row.to_slice(), logcnt.row_mut(layer).into_slice());
            // Both arrays are in C order, so their rows are slices.
            let (Some(row), Some(counts)) = (row, counts) else { continue };
            for (slot, &entry) in row.iter().enumerate() {
                if let Some(count) = counts.get_mut(entry as u32 as usize) {
                    *count += 1;
                } else if entry != -1 {
                    return Err(CoreError::ExpertOutOfRange {
                        layer: LayerId::at(layer),
                        slot: SlotId::at(slot),
                        value: i64::from(entry),
                        experts,
                    });
                }
            }
            let mut next = replica_slots.len() as u32;
            for (cursor, &count) in cursor.iter_mut().zip(counts.iter()) {
                *cursor = next;
                next += count;
                replica_offset.push(next);
            }
            replica_slots.resize(next as usize, SlotId(0));
            for (slot, &entry) in row.iter().enumerate() {
                if let Some(at) = cursor.get_mut(entry as u32 as usize) {
                    replica_slots[*at as usize] = SlotId::at(slot);
                    *at += 1;
                }
            }
        }
        Ok(Self { phy2log, logcnt, replica_slots, replica_offset })
    }

    /// The placement that a server starts with: slot `p` holds expert `p % experts` in every layer.
    ///
    /// # Errors
    /// Fewer slots than experts, or an empty axis.
    pub fn round_robin(layers: usize, experts: usize, slots: usize) -> Result<Self, CoreError> {
        Self::new(experts, Array2::from_shape_fn((layers, slots), |(_, p)| (p % experts.max(1)) as i32))
    }

    /// Number of layers `L`.
    pub fn layers(&self) -> usize {
        self.phy2log.nrows()
    }

    /// Number of slots `P` per layer.
    pub fn slots(&self) -> usize {
        self.phy2log.ncols()
    }

    /// Number of logical experts `E`.
    pub fn experts(&self) -> usize {
        self.logcnt.ncols()
    }

    /// Expert in each slot, -1 = empty; `[L, P]`, C order.
    pub fn phy2log(&self) -> ArrayView2<'_, i32> {
        self.phy2log.view()
    }

    /// Expert in each slot of one layer, -1 = empty; `[P]`.
    pub fn layer(&self, layer: LayerId) -> ArrayView1<'_, i32> {
        self.phy2log.row(layer.index())
    }

    /// The expert in a slot, `None` if it is empty.
    pub fn expert_at(&self, layer: LayerId, slot: SlotId) -> Option<ExpertId> {
        u32::try_from(self.phy2log[(layer.index(), slot.index())]).ok().map(ExpertId)
    }

    /// Number of replicas of each expert; `[L, E]`.
    pub fn logcnt(&self) -> ArrayView2<'_, u32> {
        self.logcnt.view()
    }

    /// Slots that hold an expert, ascending.
    pub fn replicas(&self, layer: LayerId, expert: ExpertId) -> &[SlotId] {
        let at = layer.index() * self.experts() + expert.index();
        &self.replica_slots[self.replica_offset[at] as usize..self.replica_offset[at + 1] as usize]
    }

    /// Largest number of replicas of any expert in any layer.
    pub fn max_replicas(&self) -> usize {
        self.logcnt.iter().max().copied().unwrap_or(0) as usize
    }

    /// Slots of each expert, -1 padded; `[L, E, columns]`, where `columns` is at least
    /// [`Placement::max_replicas`] (smaller values are raised to it).
    pub fn log2phy(&self, columns: usize) -> Array3<i32> {
        let columns = columns.max(self.max_replicas());
        let mut map = Array3::from_elem((self.layers(), self.experts(), columns), -1);
        for ((layer, expert), _) in self.logcnt.indexed_iter() {
            for (column, slot) in self.replicas(LayerId::at(layer), ExpertId::at(expert)).iter().enumerate() {
                map[(layer, expert, column)] = slot.0 as i32;
            }
        }
        map
    }

    /// Experts with no copy, in order of layer and expert. Empty for a placement made by [`Placement::new`].
    pub fn missing(&self) -> impl Iterator<Item = (LayerId, ExpertId)> + '_ {
        self.logcnt
            .indexed_iter()
            .filter(|&(_, &count)| count == 0)
            .map(|((layer, expert), _)| (LayerId::at(layer), ExpertId::at(expert)))
    }

    /// This placement with every slot of a dead rank emptied: what the survivors still hold.
    ///
    /// # Errors
    /// A topology with another number of slots.
    pub fn survivors(&self, topology: &Topology) -> Result<Self, CoreError> {
        self.fits(topology)?;
        let mut phy2log = self.phy2log.clone();
        for rank in topology.all_ranks().filter(|&r| !topology.is_alive(r)) {
            phy2log.slice_axis_mut(Axis(1), Slice::from(topology.slots_of(rank))).fill(-1);
        }
        Self::with_missing(self.experts(), phy2log)
    }

    /// This placement on a topology whose last `joined` ranks are new: their slots are empty.
    ///
    /// # Errors
    /// Fewer ranks than `joined`, or other ranks that own another number of slots than the placement has.
    pub fn with_joined(&self, topology: &Topology, joined: usize) -> Result<Self, CoreError> {
        let Some(before) = topology.ranks().checked_sub(joined).filter(|&ranks| ranks > 0) else {
            return Err(CoreError::Topology(format!(
                "{joined} of {} ranks are new; at least one must have been there before",
                topology.ranks()
            )));
        };
        let slots = topology.slot_offsets()[before] as usize;
        if slots != self.slots() {
            return Err(CoreError::Shape {
                what: "phy2log",
                found: vec![self.layers(), self.slots()],
                expected: format!(
                    "{slots} slots per layer, as the {before} ranks before those that joined own"
                ),
            });
        }
        let mut phy2log = Array2::from_elem((self.layers(), topology.slots()), -1);
        phy2log.slice_axis_mut(Axis(1), Slice::from(0..slots)).assign(&self.phy2log);
        Self::with_missing(self.experts(), phy2log)
    }

    /// Checks that the placement has one entry per slot of the topology.
    ///
    /// # Errors
    /// [`CoreError::Shape`] if not.
    pub fn fits(&self, topology: &Topology) -> Result<(), CoreError> {
        if self.slots() == topology.slots() {
            return Ok(());
        }
        Err(CoreError::Shape {
            what: "phy2log",
            found: vec![self.layers(), self.slots()],
            expected: format!("{} slots per layer, as the topology has", topology.slots()),
        })
    }

    /// 64-bit hash of shape and entries, the same on every machine.
    pub fn hash64(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for n in [self.layers(), self.experts(), self.slots()] {
            hasher.update(&(n as u64).to_le_bytes());
        }
        for entry in &self.phy2log {
            hasher.update(&entry.to_le_bytes());
        }
        hasher.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn maps_are_inverse_of_each_other() {
        let placement = Placement::new(3, array![[2, 0, 1, 0], [0, 1, 2, -1]]).unwrap();
        assert_eq!(placement.logcnt(), array![[2, 1, 1], [1, 1, 1]]);
        assert_eq!(placement.replicas(LayerId(0), ExpertId(0)), &[SlotId(1), SlotId(3)]);
        assert_eq!(placement.log2phy(0), array![[[1, 3], [2, -1], [0, -1]], [[0, -1], [1, -1], [2, -1]]]);
        assert_eq!(placement.expert_at(LayerId(1), SlotId(3)), None);
        assert_eq!(placement.log2phy(4).dim(), (2, 3, 4));
    }

    #[test]
    fn invalid_placements_are_refused() {
        assert!(matches!(
            Placement::new(3, array![[0, 1, 1]]),
            Err(CoreError::MissingExpert { layer: LayerId(0), expert: ExpertId(2) })
        ));
        assert!(matches!(
            Placement::new(2, array![[0, 2]]),
            Err(CoreError::ExpertOutOfRange { value: 2, .. })
        ));
        assert!(matches!(Placement::new(2, array![[0, -2]]), Err(CoreError::ExpertOutOfRange { .. })));
        assert!(Placement::new(2, Array2::zeros((0, 2))).is_err());
        assert!(Placement::round_robin(1, 4, 3).is_err());
    }

    #[test]
    fn dead_ranks_hold_nothing() {
        let topology = Topology::uniform(2, 4).unwrap().with_dead(&[crate::ids::RankId(1)]).unwrap();
        let left = Placement::new(3, array![[0, 1, 2, 0]]).unwrap().survivors(&topology).unwrap();
        assert_eq!(left.phy2log(), array![[0, 1, -1, -1]]);
        assert_eq!(left.missing().collect::<Vec<_>>(), [(LayerId(0), ExpertId(2))]);
    }

    #[test]
    fn ranks_join_with_empty_slots() {
        let topology = Topology::new(&[2, 2, 3]).unwrap();
        let placement = Placement::new(3, array![[0, 1, 2, 0]]).unwrap();
        let grown = placement.with_joined(&topology, 1).unwrap();
        assert_eq!(grown.phy2log(), array![[0, 1, 2, 0, -1, -1, -1]]);
        assert_eq!(grown.replicas(LayerId(0), ExpertId(0)), &[SlotId(0), SlotId(3)]);
        assert!(placement.with_joined(&topology, 2).unwrap_err().to_string().contains("2 slots"));
        assert!(placement.with_joined(&topology, 3).unwrap_err().to_string().contains("3 of 3 ranks"));
        assert!(placement.with_joined(&topology, 0).is_err());
    }

    #[test]
    fn hash_sees_every_entry() {
        let a = Placement::new(2, array![[0, 1, 0]]).unwrap();
        let b = Placement::new(2, array![[0, 1, 1]]).unwrap();
        assert_ne!(a.hash64(), b.hash64());
        assert_eq!(a.hash64(), a.clone().hash64());
    }
}
