//! Counting tokens whose numbers lie on a device.

use eplb_cuda::kernels::{DeviceChoices, IdType};
use eplb_engine::engine::{DeviceCountersView, DeviceSlots, DeviceTokens};

use super::count::{PassOf, pass_of};
use super::{Engine, failed, set_of};
use crate::call::{self, Failure};
use crate::status::Status;
use crate::structs::{self, Growing};

/// The router's choices of one layer, in memory of the engine's device. Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeviceChoicesOf {
    /// Size of this structure.
    pub struct_size: usize,
    /// The layer.
    pub layer: usize,
    /// Address of ids `[tokens, k]`; a negative id is no choice.
    pub ids: u64,
    /// Bytes of an id: 4 or 8, signed.
    pub id_bytes: u32,
    /// Not 0: ids are slots, counted under the experts that the maps of the device name; else experts.
    pub of_slots: u32,
    /// Tokens, padding included; `tokens * k` is below 2^31.
    pub tokens: usize,
    /// Choices of each token.
    pub k: usize,
    /// Ids from one token to the next; 0: `k`.
    pub row_stride: usize,
    /// Address of bytes `[tokens]`, 0 where a token is padding; 0: all count.
    pub mask: u64,
    /// Address of an int32: the tokens that count, from the first on; 0: all do.
    pub valid: u64,
}

// SAFETY: repr(C), `struct_size` is first, integers alone.
unsafe impl Growing for DeviceChoicesOf {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            layer: 0,
            ids: 0,
            id_bytes: 8,
            of_slots: 0,
            tokens: 0,
            k: 0,
            row_stride: 0,
            mask: 0,
            valid: 0,
        }
    }
}

/// Where the slots of choices go, in memory of the engine's device. Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlotsOf {
    /// Size of this structure.
    pub struct_size: usize,
    /// Address of slots `[tokens, k]`, of the size of the ids; may be the ids themselves, at an equal stride.
    pub slots: u64,
    /// Slots from one token to the next; 0: `k`.
    pub row_stride: usize,
    /// Address of a uint64 that is mixed into the choice among replicas; 0: none. A server that counts it up with every step spreads small batches evenly.
    pub salt: u64,
}

// SAFETY: as above.
unsafe impl Growing for DeviceSlotsOf {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self { struct_size: size_of::<Self>(), slots: 0, row_stride: 0, salt: 0 }
    }
}

/// Numbers of tokens of one pass, in memory of the engine's device. Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeviceCountsOf {
    /// Size of this structure.
    pub struct_size: usize,
    /// Address of `[layers, slots]` or `[layers, experts]` numbers, contiguous, none negative.
    pub counts: u64,
    /// Bytes of a number: 4 or 8.
    pub count_bytes: u32,
    /// Not 0: they are of slots, else of experts.
    pub of_slots: u32,
}

// SAFETY: as above.
unsafe impl Growing for DeviceCountsOf {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self { struct_size: size_of::<Self>(), counts: 0, count_bytes: 8, of_slots: 0 }
    }
}

/// Where the sums of a layer set lie on the engine's device, for servers that launch the counting kernels themselves, in graphs for instance.
/// Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeviceCounters {
    /// Size of this structure.
    pub struct_size: usize,
    /// Kinds of passes.
    pub tags: usize,
    /// MoE layers.
    pub layers: usize,
    /// Logical experts per layer.
    pub experts: usize,
    /// Address of uint64 `[tags, layers, experts]`, which only grow.
    pub loads: u64,
    /// Address of uint64 `[2]`: ids out of range, choices of a slot that holds nothing.
    pub faults: u64,
    /// Address of an int32: the tag of passes that name none, 0 at first; the server may write it in the order of its stream.
    pub tag: u64,
}

// SAFETY: as above.
unsafe impl Growing for DeviceCounters {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self { struct_size: size_of::<Self>(), tags: 0, layers: 0, experts: 0, loads: 0, faults: 0, tag: 0 }
    }
}

fn kind(name: &str, bytes: u32) -> Result<IdType, Failure> {
    match bytes {
        4 => Ok(IdType::I32),
        8 => Ok(IdType::I64),
        other => Err(Failure::argument(format!("{name} is {other}; numbers have 4 or 8 bytes"))),
    }
}

/// Enqueues, on a stream of the pass, the counting of the choices of one layer: one launch, which may be captured into a graph (then `pass`
/// says the tag of all replays). A dummy pass enqueues nothing.
///
/// # Safety
/// `engine` is a live handle or null; `pass` and `choices` are null or point to structures whose `struct_size` is set. `stream` is one of those given to
/// `eplb_engine_step_on` for this pass. Every address is of the engine's device, aligned to its type, as large as said, and stays valid and
/// unchanged until the launch, or the last replay of a graph that holds it, has run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_record_topk(
    engine: *const Engine,
    set: u32,
    pass: *const PassOf,
    choices: *const DeviceChoicesOf,
    stream: u64,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let set = set_of(engine, set)?;
        // SAFETY: as the caller promises.
        let given = unsafe { structs::read(choices, "choices") }?;
        // SAFETY: as the caller promises.
        let pass = unsafe { pass_of(pass) }?;
        let Some((kind, choices)) = given.choices()? else { return Ok(()) };
        let of_slots = given.of_slots != 0;
        // SAFETY: as the caller promises.
        unsafe { engine.record_topk(set, &pass, given.layer, (kind, &choices), of_slots, stream) }
            .map_err(failed)
    })
}

impl DeviceChoicesOf {
    /// The choices, if there are any.
    fn choices(&self) -> Result<Option<(IdType, DeviceChoices)>, Failure> {
        let kind = kind("id_bytes", self.id_bytes)?;
        let sizes = (u32::try_from(self.tokens), u32::try_from(self.k));
        let (Ok(tokens), Ok(k)) = sizes else {
            return Err(Failure::argument("choices: tokens * k must be below 2^31"));
        };
        if u64::from(tokens) * u64::from(k) >= 1 << 31 {
            return Err(Failure::argument("choices: tokens * k must be below 2^31"));
        }
        let stride = if self.row_stride == 0 { self.k } else { self.row_stride };
        if tokens > 0 && (k == 0 || self.ids == 0 || stride < self.k) {
            return Err(Failure::argument("choices: ids is null, k is 0, or row_stride is less than k"));
        }
        let (row_stride, ids) = (stride as u64, self.ids);
        let choices = DeviceChoices { ids, row_stride, valid: self.valid, mask: self.mask, tokens, k };
        Ok((tokens > 0).then_some((kind, choices)))
    }
}

/// Enqueues, on a stream of the pass, what turns the experts that were chosen in a layer into slots, by the maps of the device for the pass, and counts
/// them: one launch, which may be captured into a graph. Where an expert has several slots, tokens take them by their shares. -1 is written for a token
/// that does not count, and for an id that names no expert. A dummy pass gets its slots, and counts nothing.
///
/// # Safety
/// As for `eplb_engine_record_topk`; `slots` is null or points to a structure whose `struct_size` is set, and its addresses are as those of `choices`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_dispatch_topk(
    engine: *const Engine,
    set: u32,
    pass: *const PassOf,
    choices: *const DeviceChoicesOf,
    slots: *const DeviceSlotsOf,
    stream: u64,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let set = set_of(engine, set)?;
        // SAFETY: as the caller promises.
        let given = unsafe { structs::read(choices, "choices") }?;
        // SAFETY: as the caller promises.
        let to = unsafe { structs::read(slots, "slots") }?;
        // SAFETY: as the caller promises.
        let pass = unsafe { pass_of(pass) }?;
        if given.of_slots != 0 {
            return Err(Failure::argument("choices: ids are slots already; dispatch takes experts"));
        }
        let Some((kind, choices)) = given.choices()? else { return Ok(()) };
        let stride = if to.row_stride == 0 { given.k } else { to.row_stride };
        if to.slots == 0 || stride < given.k {
            return Err(Failure::argument("slots: the address is null, or row_stride is less than k"));
        }
        let to = DeviceSlots { out: to.slots, out_stride: stride as u64, salt: to.salt };
        // SAFETY: as the caller promises.
        unsafe { engine.dispatch_topk(set, &pass, given.layer, (kind, &choices), &to, stream) }
            .map_err(failed)
    })
}

/// Enqueues, on a stream of the pass, a copy of its numbers of tokens to the host, where they are folded with the maps of `pass.step`. It never
/// waits: with too many passes on their way this one is not counted, and `counted` (which may be null) gets 0, else 1. Not for graphs.
///
/// # Safety
/// `engine` is a live handle or null; `pass` and `counts` are null or point to structures whose `struct_size` is set; `counted` is null or points to room
/// for a number. `stream` is one of those given to `eplb_engine_step_on` for this pass; the numbers stay valid and unchanged until the copy has run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_record_counts(
    engine: *const Engine,
    set: u32,
    pass: *const PassOf,
    counts: *const DeviceCountsOf,
    stream: u64,
    counted: *mut u8,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let set = set_of(engine, set)?;
        // SAFETY: as the caller promises.
        let given = unsafe { structs::read(counts, "counts") }?;
        // SAFETY: as the caller promises.
        let pass = unsafe { pass_of(pass) }?;
        let kind = kind("count_bytes", given.count_bytes)?;
        if given.counts == 0 {
            return Err(Failure::argument("counts: the address is null"));
        }
        let tokens = DeviceTokens { data: given.counts, kind, slots: given.of_slots != 0 };
        // SAFETY: as the caller promises.
        let taken = unsafe { engine.record_counts(set, &pass, tokens, stream) }.map_err(failed)?;
        match counted.is_null() {
            true => Ok(()),
            // SAFETY: as the caller promises.
            false => unsafe { call::put(u8::from(taken), counted, "counted") },
        }
    })
}

/// Tells where the sums of a layer set lie on the engine's device.
///
/// # Safety
/// `engine` is a live handle or null; `counters` is null or points to a structure whose `struct_size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_device_counters(
    engine: *const Engine,
    set: u32,
    counters: *mut DeviceCounters,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let set = set_of(engine, set)?;
        let on_host =
            || Failure::new(Status::State, "the engine's slots lie in host memory: it counts there");
        let DeviceCountersView { addresses, shape } = engine.device_counters(set).ok_or_else(on_host)?;
        let told = DeviceCounters {
            struct_size: size_of::<DeviceCounters>(),
            tags: shape.tags,
            layers: shape.layers,
            experts: shape.experts,
            loads: addresses.loads,
            faults: addresses.faults,
            tag: addresses.tag,
        };
        // SAFETY: as the caller promises.
        unsafe { structs::write(told, counters, "counters") }
    })
}
