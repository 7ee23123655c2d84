//! Counts of passes whose numbers lie on a device: sums that kernels keep there, and counts of single passes that are copied out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use eplb_comm::kernels::Faults;
use eplb_core::RankId;
use eplb_cuda::kernels::{DeviceChoices, DeviceMaps, IdType, Kernels};
use eplb_cuda::{Context, CudaError, CudaStream, Ring, Tallied, Tally, TallyAddresses, TallyShape};
use ndarray::{Array3, ArrayView2};

use super::maps::Maps;
use super::record::{Pass, RecordError};
use super::shared::{Set, lock};
use super::{Engine, SetId};
use crate::error::EngineError;

/// Passes whose counts may be on their way at a time.
const BLOCKS: usize = 16;

/// Numbers of tokens in device memory, `[L, P]` or `[L, E]`, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct DeviceTokens {
    /// Device address of the first.
    pub data: u64,
    /// Their type; none is negative.
    pub kind: IdType,
    /// Whether they are of slots, not experts.
    pub slots: bool,
}

/// Where the slots of choices are written. Addresses are of device memory.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlots {
    /// `[tokens, k]` slots.
    pub out: u64,
    /// Elements from one token to the next, at least `k`.
    pub out_stride: u64,
    /// A uint64 that is mixed into the choice among replicas; 0 = none. A server that counts it up with every step spreads small batches evenly.
    pub salt: u64,
}

/// Where a layer set's sums lie on the device, for servers that launch the kernels themselves, in graphs for instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceCountersView {
    /// The addresses.
    pub addresses: TallyAddresses,
    /// `tags`, `L` and `E`.
    pub shape: TallyShape,
}

/// What goes with the counts of a pass.
#[derive(Debug)]
struct Counted {
    tag: usize,
    kind: IdType,
    /// The maps that the pass ran with, where slots were counted.
    maps: Option<Arc<Maps>>,
}

/// Of one layer set.
#[derive(Debug)]
pub(super) struct DeviceCounts {
    context: Arc<Context>,
    kernels: Result<Arc<Kernels>, String>,
    tally: Mutex<Tally>,
    ring: Mutex<Ring<Counted>>,
    dropped: AtomicU64,
}

impl DeviceCounts {
    pub(super) fn new(
        context: &Arc<Context>,
        rank: RankId,
        kernels: Result<Arc<Kernels>, String>,
        shape: TallyShape,
        slots: usize,
    ) -> Result<Self, CudaError> {
        let bytes = 8 * shape.layers * shape.experts.max(slots);
        Ok(Self {
            context: context.clone(),
            kernels,
            tally: Mutex::new(Tally::new(context, rank, shape)?),
            ring: Mutex::new(Ring::new(context, rank, BLOCKS, bytes)?),
            dropped: AtomicU64::new(0),
        })
    }

    /// Passes whose counts were left out.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Set {
    /// Takes in what has arrived from the device; with `refresh`, has its sums copied again. Not for the forward path.
    pub(super) fn collect(&self, refresh: bool) -> Result<(), EngineError> {
        let Some(counts) = &self.device_counts else { return Ok(()) };
        loop {
            let Some(arrived) = lock(&counts.ring).take()? else { break };
            let tokens = numbers(arrived.of.kind, arrived.bytes());
            self.counters.add_arrived(arrived.of.tag, &tokens, arrived.of.maps.as_deref());
            lock(&counts.ring).give_back(arrived);
        }
        let mut tally = lock(&counts.tally);
        let copied = tally.take_copy()?;
        if refresh {
            tally.begin_copy()?;
        }
        let TallyShape { tags, layers, experts } = tally.shape();
        drop(tally);
        if let Some(Tallied { sums, faults: [out_of_range, missing] }) = copied {
            let sums = Array3::from_shape_vec((tags, layers, experts), sums);
            // The tally has this shape.
            if let Ok(sums) = sums {
                self.counters.set_device(sums, Faults { out_of_range, missing });
            }
        }
        Ok(())
    }
}

fn numbers(kind: IdType, bytes: &[u8]) -> Vec<u64> {
    let width = match kind {
        IdType::I32 => 4,
        IdType::I64 => 8,
    };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    bytes.chunks_exact(width).map(number).collect()
}

impl Engine {
    /// Enqueues, on a stream of the pass, the counting of what the router chose in a layer: one launch, which may be captured into a graph (then
    /// the pass of the capture says the tag of all replays). Ids are experts, or with `slots` slots, which are counted under the expert that the
    /// device's maps name for the pass, in the order of the stream. A dummy pass enqueues nothing.
    ///
    /// # Errors
    /// There is no such layer or tag, the set lies in host memory, or there are no kernels; the message says why.
    ///
    /// # Safety
    /// `stream` is one of those of the pass ([`Engine::step_on`]). Every address in `choices` is of the engine's device, as large as the shape says, aligned
    /// to its type, and stays valid and unchanged until the launch, or the last replay of a graph that holds it, has run.
    #[allow(unsafe_code)]
    pub unsafe fn record_topk(
        &self,
        set: SetId,
        pass: &Pass,
        layer: usize,
        (kind, choices): (IdType, &DeviceChoices),
        slots: bool,
        stream: u64,
    ) -> Result<(), EngineError> {
        let (set, counts) = self.counts(set, "record_topk")?;
        set.counters.check(pass, Some(layer))?;
        if pass.dummy {
            return Ok(());
        }
        let kernels = counts.kernels.as_ref().map_err(|why| RecordError::NoKernels { why: why.clone() })?;
        let width = set.topology.slots();
        let map = set.device.as_ref().map(|device| &device.maps).filter(|_| slots).map(|maps| {
            let row = maps.addresses().phy2log + 4 * (layer * width) as u64;
            (row, width as u32)
        });
        // SAFETY: the caller says that the stream lives while the pass does.
        let stream = unsafe { CudaStream::borrow(&counts.context, stream as *mut std::ffi::c_void) };
        let tally = lock(&counts.tally);
        // SAFETY: the map lies as long as the engine and is changed on streams of passes alone; the rest is passed on to the caller.
        unsafe { tally.record(kernels, &stream, (layer, pass.tag), (kind, choices), map) }?;
        Ok(())
    }

    /// Enqueues, on a stream of the pass, what turns the experts that the router chose in a layer into slots, by the device's maps for the pass, and
    /// counts them: one launch, which may be captured into a graph. Where an expert has several slots, tokens take them by their shares; `salt`, the
    /// address of a number on the device or 0, is mixed into that choice. A dummy pass gets its slots, and counts nothing.
    ///
    /// -1 is written for a token that does not count, and for an id that is none or names no expert.
    ///
    /// # Errors
    /// As [`Engine::record_topk`].
    ///
    /// # Safety
    /// As for [`Engine::record_topk`], for `salt` and the output too: `[tokens, k]` slots in the type of the ids, tokens `out_stride` apart; it may
    /// be the ids themselves, at an equal stride.
    #[allow(unsafe_code)]
    pub unsafe fn dispatch_topk(
        &self,
        set: SetId,
        pass: &Pass,
        layer: usize,
        (kind, choices): (IdType, &DeviceChoices),
        slots: &DeviceSlots,
        stream: u64,
    ) -> Result<(), EngineError> {
        let (set, counts) = self.counts(set, "dispatch_topk")?;
        set.counters.check(pass, Some(layer))?;
        let kernels = counts.kernels.as_ref().map_err(|why| RecordError::NoKernels { why: why.clone() })?;
        let Some(device) = &set.device else { return Ok(()) };
        let (at, shape) = (device.maps.addresses(), device.maps.shape());
        let row = |base: u64, entries: usize| base + 4 * (layer * entries) as u64;
        let maps = DeviceMaps {
            log2phy: row(at.log2phy, shape.experts * shape.columns),
            logcnt: row(at.logcnt, shape.experts),
            share: row(at.share, shape.slots),
            salt: slots.salt,
            out: slots.out,
            out_stride: slots.out_stride,
            columns: shape.columns as u32,
            slots: shape.slots as u32,
            layer: layer as u32,
            unused: 0,
        };
        // SAFETY: the caller says that the stream lives while the pass does.
        let stream = unsafe { CudaStream::borrow(&counts.context, stream as *mut std::ffi::c_void) };
        let tally = lock(&counts.tally);
        let tag = (!pass.dummy).then_some(pass.tag);
        // SAFETY: the maps lie as long as the engine and are changed on streams of passes alone; the rest is passed on to the caller.
        unsafe { tally.dispatch(kernels, &stream, (layer, tag), (kind, choices), &maps) }?;
        Ok(())
    }

    /// Enqueues, on a stream of the pass, a copy of its counts to the host, where they are folded with the maps of `pass.step`. It never waits: with
    /// 16 passes on their way the counts of this one are left out (`false`, and the metric `eplb_counts_dropped_total`). Not for graphs.
    ///
    /// # Errors
    /// There is no such tag, the maps of the step are forgotten, the set lies in host memory, or the driver refused.
    ///
    /// # Safety
    /// `stream` is one of those of the pass. `tokens` are `[L, P]` or `[L, E]` numbers in memory of the engine's device, valid and unchanged until the copy
    /// has run.
    #[allow(unsafe_code)]
    pub unsafe fn record_counts(
        &self,
        set: SetId,
        pass: &Pass,
        tokens: DeviceTokens,
        stream: u64,
    ) -> Result<bool, EngineError> {
        let (set, counts) = self.counts(set, "record_counts")?;
        set.counters.check(pass, None)?;
        if pass.dummy {
            return Ok(true);
        }
        let maps = match tokens.slots {
            true => Some(set.counters.maps_of(pass.step, &set.history)?),
            false => None,
        };
        let columns = if tokens.slots { set.topology.slots() } else { set.experts };
        let width = if tokens.kind == IdType::I32 { 4 } else { 8 };
        // SAFETY: the caller says that the stream lives while the pass does.
        let stream = unsafe { CudaStream::borrow(&counts.context, stream as *mut std::ffi::c_void) };
        let bytes = width * set.layers() * columns;
        for tries in 0..2 {
            let of = Counted { tag: pass.tag, kind: tokens.kind, maps: maps.clone() };
            // SAFETY: passed on to the caller.
            if unsafe { lock(&counts.ring).copy(&stream, tokens.data, bytes, of) }? {
                return Ok(true);
            }
            // Nobody else takes in the counts of a rank that is alone.
            if self.shared.world_size > 1 || tries > 0 {
                break;
            }
            set.collect(false)?;
        }
        counts.dropped.fetch_add(1, Ordering::Relaxed);
        Ok(false)
    }

    /// Where a set's sums lie on the device; `None` if the set lies in host memory.
    pub fn device_counters(&self, set: SetId) -> Option<DeviceCountersView> {
        let tally = lock(&self.shared.sets.get(set.0)?.device_counts.as_ref()?.tally);
        Some(DeviceCountersView { addresses: tally.addresses(), shape: tally.shape() })
    }

    fn counts(&self, set: SetId, call: &'static str) -> Result<(&Set, &DeviceCounts), EngineError> {
        let set = self.set(set, call)?;
        let on_host = || {
            let text = format!("{call}: layer set {:?} lies in host memory; use Engine::record", set.name);
            EngineError::Options(text)
        };
        Ok((set, set.device_counts.as_ref().ok_or_else(on_host)?))
    }
}

/// Counts of a pass as they came, in the shape of the maps or of the experts.
pub(super) fn view(tokens: &[u64], shape: (usize, usize)) -> Option<ArrayView2<'_, u64>> {
    ArrayView2::from_shape(shape, tokens.get(..shape.0 * shape.1)?).ok()
}
