//! The plan of an exchange: waves, and what they will do.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use eplb_core::metrics::check_same_shape;
use eplb_core::{LayerId, ModelLayout, Placement, RankId, SlotId, Topology, Transfer, Wave};
use ndarray::{Array2, ArrayView2};

use crate::build;
use crate::error::ExchangeError;

/// Default of [`Limits::drain_floor`].
pub const DEFAULT_DRAIN_FLOOR: f64 = 0.02;

/// Default of [`Limits::wave_cost`]: what a fast link carries in 0.3 ms.
pub const DEFAULT_WAVE_COST: u64 = 96 << 20;

/// [`Limits::wave_cost`] of ranks that serve steps meanwhile, for which a wave waits about three times: three of 10 ms.
pub const SERVING_WAVE_COST: u64 = 8 << 30;

/// Default staging budget per rank: 256 MiB, or the largest layer's bytes on a rank if that is less; at least one
/// expert.
pub fn default_staging_bytes(layout: &ModelLayout, topology: &Topology) -> usize {
    let slots = topology.all_ranks().map(|r| topology.slot_count(r)).max().unwrap_or(0);
    let layer = layout.largest_staged().saturating_mul(slots);
    layer.min(256 << 20).max(layout.largest_staged())
}

/// What an exchange may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Staging memory per rank, in bytes. Two parts alternate between waves if it holds two of the largest expert.
    pub staging_bytes: usize,
    /// How far draining may take a layer's planned balancedness below the smaller of before and after, 0..1.
    pub drain_floor: f64,
    /// Most replicas of an expert at any time (`C`, the columns of `log2phy`); `None` = no limit.
    pub max_replicas: Option<usize>,
    /// Reach the slot numbers of the new placement exactly, by copies inside ranks, instead of choosing them.
    pub exact_slots: bool,
    /// Most bytes that one wave carries into a rank, and out of one; at least one expert. Short waves keep the links of all ranks
    /// busy together, long ones cost fewer agreements. `None`: what takes the least predicted time.
    pub wave_bytes: Option<u64>,
    /// What agreeing on a wave takes, from the last byte to the last commit, as bytes that a port could carry meanwhile: the more, the
    /// larger the waves. About three steps where commits wait for steps.
    pub wave_cost: u64,
    /// Whether slots whose bytes could wait for a drain may go through staging where that saves time: a chain of slots changes in one wave
    /// then, and all its ports are busy. Otherwise staging serves only what cannot go without.
    pub followers: bool,
    /// Whether transfers of a wave may run while the wave before moves, is decided and committed, where staging has two halves. For
    /// backends that take a submission while another is under way.
    pub overlap: bool,
}

impl Limits {
    /// The defaults for a layout and topology: [`default_staging_bytes`], [`DEFAULT_DRAIN_FLOOR`], any number of
    /// replicas, free slot numbers, waves that take the least predicted time and overlap.
    pub fn new(layout: &ModelLayout, topology: &Topology) -> Self {
        Self {
            staging_bytes: default_staging_bytes(layout, topology),
            drain_floor: DEFAULT_DRAIN_FLOOR,
            max_replicas: None,
            exact_slots: false,
            wave_bytes: None,
            wave_cost: DEFAULT_WAVE_COST,
            followers: true,
            overlap: true,
        }
    }

    /// Bytes of staging that one wave may fill on a rank, and where the part of wave `wave` begins.
    ///
    /// Two parts alternate where two of the largest experts fit; otherwise there is one. Parts are halves, unless an odd number of
    /// the largest experts fits: then the first has room for one more than the second, and none is lost.
    pub fn staging_part(&self, layout: &ModelLayout, wave: usize) -> (usize, usize) {
        if !self.overlaps(layout) {
            return (self.staging_bytes, 0);
        }
        let (align, expert) = (eplb_core::layout::STAGING_ALIGN, layout.largest_staged().max(1));
        let experts = self.staging_bytes / expert;
        let half = self.staging_bytes / 2 / align * align;
        let first = if experts % 2 == 1 { experts.div_ceil(2) * expert } else { half };
        if wave.is_multiple_of(2) { (first, 0) } else { (half.min(self.staging_bytes - first), first) }
    }

    /// Whether staging has two parts, so that wave `n + 1` may land while wave `n` is committed.
    pub fn overlaps(&self, layout: &ModelLayout) -> bool {
        self.staging_bytes >= 2 * layout.largest_staged()
    }
}

/// The least balanced state on the way from the old to the new placement, at even split on the planned loads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worst {
    /// Balancedness of the layer in that state, 0..1.
    pub balancedness: f64,
    /// The layer.
    pub layer: LayerId,
    /// Number of the wave.
    pub wave: usize,
    /// Balancedness of the layer before the exchange.
    pub before: f64,
    /// Balancedness of the layer after it.
    pub after: f64,
}

/// What the waves of a plan add up to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Transfers between ranks.
    pub moves: usize,
    /// Copies inside a rank: second copies of an expert, and slot numbers reached on request.
    pub local_copies: usize,
    /// Bytes over links.
    pub link_bytes: u64,
    /// Transfers that land in a slot directly.
    pub in_place: usize,
    /// Transfers that pass through staging.
    pub staged: usize,
    /// Most staging used on any rank by one wave, in bytes.
    pub staging_peak: usize,
    /// The least balanced state with slots drained; `None` if loads were not given or nothing was drained.
    pub worst_drained: Option<Worst>,
    /// The least balanced state between two waves; `None` if loads were not given.
    pub worst_between: Option<Worst>,
}

impl std::ops::AddAssign for Totals {
    /// What one exchange did and another after it: sums, the larger peak, and the worse states.
    fn add_assign(&mut self, other: Self) {
        let worse = |a: Option<Worst>, b: Option<Worst>| match (a, b) {
            (Some(a), Some(b)) => Some(if b.balancedness < a.balancedness { b } else { a }),
            (a, b) => a.or(b),
        };
        *self = Self {
            moves: self.moves + other.moves,
            local_copies: self.local_copies + other.local_copies,
            link_bytes: self.link_bytes + other.link_bytes,
            in_place: self.in_place + other.in_place,
            staged: self.staged + other.staged,
            staging_peak: self.staging_peak.max(other.staging_peak),
            worst_drained: worse(self.worst_drained, other.worst_drained),
            worst_between: worse(self.worst_between, other.worst_between),
        };
    }
}

/// The two parts of a wave: what may go while the wave before is still decided and committed, and what goes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Touches nothing that the wave before touches.
    Early,
    /// All else.
    Late,
}

impl Part {
    /// In the order in which they are submitted.
    pub const ALL: [Part; 2] = [Part::Early, Part::Late];
}

/// Drains and transfers of one part of a wave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Portion {
    pub(crate) drains: Vec<(LayerId, SlotId)>,
    pub(crate) transfers: Arc<[Transfer]>,
}

/// A wave cut in two.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WaveParts {
    pub(crate) early: Portion,
    pub(crate) late: Portion,
}

/// A fault in what is early, for tests of checks.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// Transfers count as early although the wave before writes their sources.
    WrittenSourcesEarly,
    /// Transfers that land in a slot at once count as early although the wave before reads or writes it.
    ReadSlotsEarly,
    /// Staging has one half, and waves overlap.
    OneHalf,
}

/// Waves that lead from one placement to another. The same on every rank, bit for bit.
#[derive(Debug, Clone, PartialEq)]
pub struct ExchangePlan {
    pub(crate) old: Placement,
    pub(crate) target: Placement,
    pub(crate) waves: Vec<Wave>,
    pub(crate) totals: Totals,
    /// What the waves add up to after each.
    pub(crate) sums: Vec<Totals>,
    pub(crate) hash: u64,
    /// Rank of each slot, `[P]`.
    pub(crate) owners: Vec<RankId>,
    /// The parts of each wave.
    pub(crate) parts: Vec<WaveParts>,
}

impl ExchangePlan {
    /// Plans the exchange from `old` to `new`.
    ///
    /// `loads` (`[L, E]`, the loads that `new` was planned for) are needed for the drain floor; without them every slot
    /// whose expert has another replica may be drained. Slots of dead ranks count as empty in `old`. Experts that
    /// `new` leaves out are dropped.
    ///
    /// # Errors
    /// See [`ExchangeError`]. Nothing is partly planned.
    pub fn new(
        old: &Placement,
        new: &Placement,
        topology: &Topology,
        layout: &ModelLayout,
        loads: Option<ArrayView2<'_, f64>>,
        limits: &Limits,
    ) -> Result<Self, ExchangeError> {
        check_same_shape(old, new)?;
        build::build(old, new, topology, layout, loads, limits)
    }

    /// The placement that it starts from; slots of dead ranks are empty.
    pub fn old(&self) -> &Placement {
        &self.old
    }

    /// The placement after the last wave: rank by rank the experts of the new placement.
    pub fn target(&self) -> &Placement {
        &self.target
    }

    /// The waves, in order.
    pub fn waves(&self) -> &[Wave] {
        &self.waves
    }

    /// What they add up to.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// What the first `waves` of them add up to, for an exchange that came no further. The least balanced states are those of the plan.
    pub fn totals_of(&self, waves: usize) -> Totals {
        let none = Totals::default();
        let sum = self.sums[..waves.min(self.sums.len())].last().unwrap_or(&none);
        Totals { worst_drained: self.totals.worst_drained, worst_between: self.totals.worst_between, ..*sum }
    }

    /// The rank that owns a slot.
    pub fn owner(&self, slot: SlotId) -> RankId {
        self.owners[slot.index()]
    }

    fn portion(&self, wave: usize, part: Part) -> &Portion {
        match part {
            Part::Early => &self.parts[wave].early,
            Part::Late => &self.parts[wave].late,
        }
    }

    /// Slots that a part of a wave takes out of service before its bytes land, in order of layer and slot.
    pub fn drains(&self, wave: usize, part: Part) -> &[(LayerId, SlotId)] {
        &self.portion(wave, part).drains
    }

    /// Transfers of a part of a wave, in canonical order.
    pub fn transfers(&self, wave: usize, part: Part) -> &Arc<[Transfer]> {
        &self.portion(wave, part).transfers
    }

    /// The parts of a wave that are handed to a communicator, in that order: those with transfers, and one in any case.
    pub fn submissions(&self, wave: usize) -> impl Iterator<Item = Part> + '_ {
        let early = self.transfers(wave, Part::Early).len();
        Part::ALL.into_iter().filter(move |&part| match part {
            Part::Early => early > 0,
            Part::Late => early == 0 || !self.transfers(wave, Part::Late).is_empty(),
        })
    }

    /// Plants a fault, for tests of checks: the plan breaks its promises, on all ranks alike.
    #[doc(hidden)]
    pub fn plant(&mut self, fault: Planted, staged_bytes: usize, topology: &Topology) {
        build::plant(self, fault, staged_bytes, topology);
    }

    /// Takes what a part of a wave drains out of a map `[L, P]`.
    pub fn apply_drains(&self, phy2log: &mut Array2<i32>, wave: usize, part: Part) {
        for &(layer, slot) in self.drains(wave, part) {
            phy2log[(layer.index(), slot.index())] = -1;
        }
    }

    /// Hash of everything that ranks must agree on before the first byte: old placement, layout, all waves and their parts.
    pub fn hash64(&self) -> u64 {
        self.hash
    }

    /// Entries of `phy2log` after the first `waves` waves, `[L, P]`.
    pub fn phy2log_after(&self, waves: usize) -> Array2<i32> {
        let mut phy2log = self.old.phy2log().to_owned();
        for wave in &self.waves[..waves] {
            apply_commits(&mut phy2log, wave);
        }
        phy2log
    }

    /// Every map, `[L, P]`, that a rank may run steps with from the drains of a wave on to the drains of the next one: parts of that one may go
    /// ahead. None that stands here already is named twice.
    pub fn maps_of(&self, wave: usize) -> Vec<Array2<i32>> {
        let (drained, committed) = (self.phy2log_drained(wave), self.phy2log_after(wave + 1));
        let mut maps = vec![drained.clone(), committed.clone()];
        if wave + 1 < self.waves.len() {
            for mut map in [drained, committed] {
                self.apply_drains(&mut map, wave + 1, Part::Early);
                maps.push(map);
            }
            maps.push(self.phy2log_drained(wave + 1));
        }
        let mut at = 0;
        while at < maps.len() {
            if maps[..at].contains(&maps[at]) { drop(maps.remove(at)) } else { at += 1 }
        }
        maps
    }

    /// Entries of `phy2log` while the transfers of wave `wave` run: drained slots are empty, `[L, P]`.
    pub fn phy2log_drained(&self, wave: usize) -> Array2<i32> {
        let mut phy2log = self.phy2log_after(wave);
        apply_drains(&mut phy2log, &self.waves[wave]);
        phy2log
    }
}

/// Takes all drained slots of a wave out of a map `[L, P]`.
pub(crate) fn apply_drains(phy2log: &mut Array2<i32>, wave: &Wave) {
    for &(layer, slot) in &wave.drains {
        phy2log[(layer.index(), slot.index())] = -1;
    }
}

/// Puts what a wave commits into a map `[L, P]`.
pub fn apply_commits(phy2log: &mut Array2<i32>, wave: &Wave) {
    for commit in &wave.commits {
        phy2log[(commit.layer.index(), commit.slot.index())] =
            commit.fill.expert().map_or(-1, |e| e.0 as i32);
    }
}

/// Hash of a plan's content; [`Wave`] hashes field by field in order, so the same plan has the same hash anywhere.
pub(crate) fn hash_plan(
    old: &Placement,
    target: &Placement,
    layout: &ModelLayout,
    waves: &[Wave],
    parts: &[WaveParts],
) -> u64 {
    struct Stable(xxhash_rust::xxh3::Xxh3);
    impl Hasher for Stable {
        fn finish(&self) -> u64 {
            self.0.digest()
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        // The integer methods of `Hasher` write native-endian, native-width bytes unless told otherwise.
        fn write_u8(&mut self, n: u8) {
            self.write(&[n]);
        }
        fn write_u32(&mut self, n: u32) {
            self.write(&n.to_le_bytes());
        }
        fn write_u64(&mut self, n: u64) {
            self.write(&n.to_le_bytes());
        }
        fn write_usize(&mut self, n: usize) {
            self.write(&(n as u64).to_le_bytes());
        }
        fn write_isize(&mut self, n: isize) {
            self.write(&(n as i64).to_le_bytes());
        }
    }
    let mut hasher = Stable(xxhash_rust::xxh3::Xxh3::new());
    hasher.write_u64(old.hash64());
    hasher.write_u64(target.hash64());
    hasher.write_u64(layout.hash64());
    waves.hash(&mut hasher);
    // What is late follows from what is early.
    for part in parts {
        part.early.drains.hash(&mut hasher);
        part.early.transfers.hash(&mut hasher);
    }
    hasher.finish()
}
