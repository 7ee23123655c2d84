//! What planners compute with: loads in whole units, and the live ranks.

use eplb_core::{RankId, Topology};

/// Units that the loads of a layer sum up to, about. Every load, replica and rank is a whole number of units held
/// in an `f64`, far below 2^53: sums are exact in any order, so that plans do not depend on the order of additions,
/// and loads in another unit of measure lead to the same comparisons.
const LAYER_UNITS: f64 = (1u64 << 36) as f64;

/// Adding and taking this away rounds a number below 2^51 to a whole one.
const WHOLE: f64 = (1u64 << 52) as f64;

/// Bits of a sort key that hold an id.
const ID_BITS: u32 = 24;

/// Most experts, and most slots per layer, that planners number.
pub(crate) const MAX_IDS: usize = 1 << ID_BITS;

/// Units of every expert of a layer without load: enough to be divided by any number of replicas.
const IDLE_UNITS: f64 = (1u64 << 20) as f64;

/// The loads `row` (`[E]`) in whole units. Returns whether the layer is idle; then every expert gets the same.
pub(crate) fn whole_units(row: &[f64], units: &mut Vec<f64>) -> bool {
    let total: f64 = row.iter().sum();
    units.clear();
    if total == 0.0 {
        units.resize(row.len(), IDLE_UNITS);
        return true;
    }
    let scale = LAYER_UNITS / total;
    if scale.is_normal() {
        units.extend(row.iter().map(|&load| (load * scale + WHOLE) - WHOLE));
    } else {
        units.extend(row.iter().map(|&load| (load / total * LAYER_UNITS + WHOLE) - WHOLE));
    }
    false
}

/// A number of units as an integer: what is left of its digits when they are pushed to the end of the mantissa.
/// Cheaper than a conversion, which has to think of NaN and overflow.
#[inline]
fn to_bits(units: f64) -> u64 {
    (units + WHOLE).to_bits() & (WHOLE as u64 - 1)
}

/// Load of one of `count` replicas of an expert, in whole units.
#[inline]
pub(crate) fn replica_units(units: f64, count: u32) -> f64 {
    if count <= 1 { units } else { (units / f64::from(count)) as u64 as f64 }
}

/// A key that sorts by units descending, then by id ascending.
#[inline]
pub(crate) fn heaviest_first(units: f64, id: usize) -> u64 {
    (((1u64 << (64 - ID_BITS)) - 1 - to_bits(units)) << ID_BITS) | id as u64
}

/// Exponent and first bits of the units in a [`heaviest_first`] key, descending: what a first sort goes by.
#[inline]
pub(crate) fn coarse_heaviest(key: u64) -> u16 {
    let units = ((1u64 << (64 - ID_BITS)) - 1 - (key >> ID_BITS)) as i64 as f32;
    !((units.to_bits() >> 16) as u16)
}

/// A key that sorts by units ascending, then by id ascending. Parts of units are rounded.
#[inline]
pub(crate) fn lightest_first(units: f64, id: usize) -> u64 {
    (to_bits(units) << ID_BITS) | id as u64
}

/// The id in a key.
#[inline]
pub(crate) fn key_id(key: u64) -> usize {
    key as usize & (MAX_IDS - 1)
}

/// The live ranks of a topology, numbered without gaps, and how many experts each can hold.
#[derive(Debug)]
pub(crate) struct Ranks {
    /// Rank of the topology.
    pub(crate) id: Vec<RankId>,
    /// Slots that can hold different experts: the rank's slots, at most the number of experts.
    pub(crate) room: Vec<usize>,
    /// Time per unit of load relative to the slowest rank: 1 on the slowest, so 1 everywhere if all are equal.
    pub(crate) slowness: Vec<f64>,
    /// Sum of the speeds, `1 / slowness`.
    pub(crate) speed: f64,
}

impl Ranks {
    /// Live ranks for a layer of `experts` experts.
    pub(crate) fn live(topology: &Topology, experts: usize) -> Self {
        let id: Vec<RankId> = topology.live_ranks().collect();
        let room = id.iter().map(|&r| topology.slot_count(r).min(experts)).collect();
        let slowest = id.iter().map(|&r| topology.speed(r)).fold(f64::INFINITY, f64::min);
        let slowness = id.iter().map(|&r| slowest / topology.speed(r)).collect();
        let speed = id.iter().map(|&r| topology.speed(r) / slowest).sum();
        Self { id, room, slowness, speed }
    }

    /// Number of live ranks.
    pub(crate) fn len(&self) -> usize {
        self.id.len()
    }

    /// Speed of the fastest rank relative to the slowest.
    pub(crate) fn fastest(&self) -> f64 {
        1.0 / self.slowness.iter().copied().fold(1.0, f64::min)
    }

    /// Copies that fit if no rank holds two of one expert.
    pub(crate) fn total_room(&self) -> usize {
        self.room.iter().sum()
    }
}
