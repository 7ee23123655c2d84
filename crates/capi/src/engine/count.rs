//! Counting tokens.

use std::ffi::c_void;

use eplb_comm::kernels::{Choices, Faults, RoutedId};
use eplb_engine::engine::{Counts, Pass};
use ndarray::ArrayView2;

use super::{Engine, failed, set_of};
use crate::call::{self, Failure};
use crate::status::Status;
use crate::structs::{self, Growing};

/// Which forward pass counts are of. Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PassOf {
    /// Size of this structure.
    pub struct_size: usize,
    /// Its step: counts of slots are folded with the maps of that step.
    pub step: u64,
    /// Kind of pass: a position in the configuration's `tags` (0 = prefill, 1 = decode by default).
    pub tag: u32,
    /// Not 0: a dummy or warm-up pass; nothing is counted.
    pub dummy: u32,
}

// SAFETY: repr(C), `struct_size` is first, integers alone.
unsafe impl Growing for PassOf {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self { struct_size: size_of::<Self>(), step: 0, tag: 0, dummy: 0 }
    }
}

/// Choices that could not be counted. Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct CountFaults {
    /// Size of this structure.
    pub struct_size: usize,
    /// Tokens counted at slots that the maps leave empty.
    pub missing: u64,
    /// Ids that name no expert or slot.
    pub out_of_range: u64,
}

// SAFETY: as above.
unsafe impl Growing for CountFaults {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self { struct_size: size_of::<Self>(), missing: 0, out_of_range: 0 }
    }
}

/// The pass that a caller names.
///
/// # Safety
/// `pass` is null or points to a structure whose `struct_size` is set.
pub(super) unsafe fn pass_of(pass: *const PassOf) -> Result<Pass, Failure> {
    // SAFETY: as the caller promises.
    let PassOf { step, tag, dummy, .. } = unsafe { structs::read(pass, "pass") }?;
    Ok(Pass { step, tag: tag as usize, dummy: dummy != 0 })
}

/// Hands over what could not be counted, if the caller wants to know.
///
/// # Safety
/// `faults` is null or points to a structure whose `struct_size` is set.
unsafe fn tell(found: Faults, faults: *mut CountFaults) -> Result<(), Failure> {
    if faults.is_null() {
        return Ok(());
    }
    let told =
        CountFaults { missing: found.missing, out_of_range: found.out_of_range, ..CountFaults::defaults() };
    // SAFETY: as the caller promises.
    unsafe { structs::write(told, faults, "faults") }
}

/// # Safety
/// As [`eplb_engine_record_slots`].
unsafe fn counts(
    engine: *const Engine,
    set: u32,
    pass: *const PassOf,
    counts: *const u64,
    len: usize,
    of_slots: bool,
    faults: *mut CountFaults,
) -> Result<(), Failure> {
    // SAFETY: as the caller promises.
    let engine = &unsafe { call::handle(engine, "engine") }?.0;
    let set = set_of(engine, set)?;
    // SAFETY: as the caller promises.
    let pass = unsafe { pass_of(pass) }?;
    let maps = engine.maps(set);
    let (layers, slots) = maps.phy2log.dim();
    let columns = if of_slots { slots } else { maps.logcnt.ncols() };
    // SAFETY: as the caller promises.
    let values = unsafe { call::array(counts, len, "counts") }?;
    let view = ArrayView2::from_shape((layers, columns), values).ok().filter(|_| len == layers * columns);
    let view = view.ok_or_else(|| {
        Failure::argument(format!(
            "counts has {len} values; {layers} layers of {columns} need {}",
            layers * columns
        ))
    })?;
    let counts = if of_slots { Counts::Slots(view) } else { Counts::Experts(view) };
    // SAFETY: as the caller promises. Before anything is counted.
    unsafe { structs::check_out(faults, "faults") }?;
    let found = engine.record(set, &pass, counts).map_err(failed)?;
    // SAFETY: as the caller promises.
    unsafe { tell(found, faults) }
}

/// Counts the tokens that each slot got in a pass on this rank: `counts [layers, slots]`. `faults` may be null.
///
/// # Safety
/// `engine` is a live handle or null; `counts` is null or points to `len` values; `pass` and `faults` are null or point to structures whose
/// `struct_size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_record_slots(
    engine: *const Engine,
    set: u32,
    pass: *const PassOf,
    counts: *const u64,
    len: usize,
    faults: *mut CountFaults,
) -> Status {
    // SAFETY: as the caller promises.
    call::run(|| unsafe { self::counts(engine, set, pass, counts, len, true, faults) })
}

/// Counts the tokens that chose each expert in a pass on this rank: `counts [layers, experts]`. `faults` may be null.
///
/// # Safety
/// As `eplb_engine_record_slots`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_record_experts(
    engine: *const Engine,
    set: u32,
    pass: *const PassOf,
    counts: *const u64,
    len: usize,
    faults: *mut CountFaults,
) -> Status {
    // SAFETY: as the caller promises.
    call::run(|| unsafe { self::counts(engine, set, pass, counts, len, false, faults) })
}

/// The router's choices of one layer. Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ChoicesOf {
    /// Size of this structure.
    pub struct_size: usize,
    /// The layer.
    pub layer: usize,
    /// Ids `[tokens, k]`, in host memory; a negative id is no choice.
    pub ids: *const c_void,
    /// Bytes of an id: 4 or 8, signed.
    pub id_bytes: u32,
    /// Not 0: ids are slots, else experts.
    pub of_slots: u32,
    /// Tokens.
    pub tokens: usize,
    /// Choices of each token.
    pub k: usize,
    /// Ids from one token to the next; 0: `k`.
    pub row_stride: usize,
    /// 0 where a token is padding, `[tokens]`, or null: all count.
    pub mask: *const u8,
}

// SAFETY: repr(C), `struct_size` is first; integers and raw pointers take any bits.
unsafe impl Growing for ChoicesOf {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            layer: 0,
            ids: std::ptr::null(),
            id_bytes: 8,
            of_slots: 0,
            tokens: 0,
            k: 0,
            row_stride: 0,
            mask: std::ptr::null(),
        }
    }
}

/// Counts the choices of one layer in a pass on this rank. `faults` may be null.
///
/// # Safety
/// `engine` is a live handle or null; `pass`, `choices` and `faults` are null or point to structures whose `struct_size` is set; the pointers of
/// `choices` are null or as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_record_choices(
    engine: *const Engine,
    set: u32,
    pass: *const PassOf,
    choices: *const ChoicesOf,
    faults: *mut CountFaults,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        // SAFETY: as the caller promises.
        let given = unsafe { structs::read(choices, "choices") }?;
        let set = set_of(engine, set)?;
        // SAFETY: as the caller promises.
        let pass = unsafe { pass_of(pass) }?;
        let stride = if given.row_stride == 0 { given.k } else { given.row_stride };
        let len = match given.tokens {
            0 => Some(0),
            tokens => (tokens - 1).checked_mul(stride).and_then(|before| before.checked_add(given.k)),
        };
        let len =
            len.ok_or_else(|| Failure::argument("choices: tokens and row_stride multiply to too much"))?;
        let mask = match given.mask.is_null() || given.tokens == 0 {
            true => None,
            // SAFETY: as the caller promises.
            false => Some(unsafe { call::array(given.mask, given.tokens, "mask") }?),
        };
        let (layer, slots) = (given.layer, given.of_slots != 0);
        // SAFETY: as the caller promises. Before anything is counted.
        unsafe { structs::check_out(faults, "faults") }?;
        let found = match given.id_bytes {
            4 => {
                // SAFETY: as the caller promises.
                let ids = unsafe { ids::<i32>(given.ids, len) }?;
                let choices = masked(Choices::new(ids, given.tokens, given.k, stride), mask)?;
                engine.record(set, &pass, Counts::TopK32 { layer, choices, slots })
            }
            8 => {
                // SAFETY: as the caller promises.
                let ids = unsafe { ids::<i64>(given.ids, len) }?;
                let choices = masked(Choices::new(ids, given.tokens, given.k, stride), mask)?;
                engine.record(set, &pass, Counts::TopK { layer, choices, slots })
            }
            other => return Err(Failure::argument(format!("id_bytes is {other}; ids have 4 or 8 bytes"))),
        };
        // SAFETY: as the caller promises.
        unsafe { tell(found.map_err(failed)?, faults) }
    })
}

/// # Safety
/// `data` is null or points to `len` ids.
unsafe fn ids<'a, I>(data: *const c_void, len: usize) -> Result<&'a [I], Failure> {
    match len {
        0 => Ok(&[]),
        // SAFETY: as the caller promises.
        _ => unsafe { call::array(data.cast(), len, "ids") },
    }
}

fn masked<'a, I: RoutedId>(
    choices: Result<Choices<'a, I>, eplb_comm::kernels::KernelError>,
    mask: Option<&'a [u8]>,
) -> Result<Choices<'a, I>, Failure> {
    let choices = choices.map_err(Failure::argument)?;
    match mask {
        None => Ok(choices),
        Some(mask) => choices.with_mask(mask).map_err(Failure::argument),
    }
}
