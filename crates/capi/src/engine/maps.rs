//! The maps by which a server routes.

use std::sync::Arc;

use eplb_engine::engine::Maps as Snapshot;

use super::{Engine, set_of};
use crate::call::{self, Failure};
use crate::status::Status;
use crate::structs::{self, Growing};

/// The maps that were in force at some step. They never change; newer ones are another snapshot.
#[derive(Debug)]
pub struct Maps(Arc<Snapshot>);

/// Where the arrays of maps are; valid until the maps are freed. Shapes stay the same while the engine lives. Set `struct_size` to the size of
/// this structure: an older program gets the fields that it knows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MapsView {
    /// Size of this structure.
    pub struct_size: usize,
    /// Number of these maps on this rank, rising by one with every change.
    pub version: u64,
    /// First step that runs with them on this rank.
    pub first_step: u64,
    /// MoE layers.
    pub layers: usize,
    /// Slots per layer, over all ranks.
    pub slots: usize,
    /// Logical experts per layer.
    pub experts: usize,
    /// Columns of `log2phy`.
    pub columns: usize,
    /// Expert in each slot, -1 = empty or drained; `[layers, slots]`.
    pub phy2log: *const i32,
    /// Slots of each expert, ascending, -1 = no more; `[layers, experts, columns]`.
    pub log2phy: *const i32,
    /// Number of slots of each expert; `[layers, experts]`.
    pub logcnt: *const i32,
    /// Part of its expert's tokens that a slot gets; `[layers, slots]`.
    pub share: *const f32,
}

// SAFETY: repr(C), `struct_size` is first; integers and raw pointers take any bits.
unsafe impl Growing for MapsView {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            version: 0,
            first_step: 0,
            layers: 0,
            slots: 0,
            experts: 0,
            columns: 0,
            phy2log: std::ptr::null(),
            log2phy: std::ptr::null(),
            logcnt: std::ptr::null(),
            share: std::ptr::null(),
        }
    }
}

/// Takes the maps by which the pass of the last `eplb_engine_step` routes its tokens.
///
/// # Safety
/// `engine` is a live handle or null; `maps` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_maps(engine: *const Engine, set: u32, maps: *mut *mut Maps) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let set = set_of(engine, set)?;
        if maps.is_null() {
            return Err(Failure::argument("maps is null"));
        }
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Maps(engine.maps(set)))), maps, "maps") }
    })
}

/// The number of the maps in force: whether they changed, without taking them.
///
/// # Safety
/// `engine` is a live handle or null; `version` is null or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_engine_maps_version(
    engine: *const Engine,
    set: u32,
    version: *mut u64,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let engine = &unsafe { call::handle(engine, "engine") }?.0;
        let set = set_of(engine, set)?;
        // SAFETY: as the caller promises.
        unsafe { call::put(engine.maps(set).version, version, "version") }
    })
}

/// Tells where the arrays are.
///
/// # Safety
/// `maps` is a live handle or null; `view` is null or points to a structure whose `struct_size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_maps_view(maps: *const Maps, view: *mut MapsView) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let maps = &unsafe { call::handle(maps, "maps") }?.0;
        let (layers, experts, columns) = maps.log2phy.dim();
        let told = MapsView {
            struct_size: size_of::<MapsView>(),
            version: maps.version,
            first_step: maps.first_step,
            layers,
            slots: maps.phy2log.ncols(),
            experts,
            columns,
            phy2log: maps.phy2log.as_ptr(),
            log2phy: maps.log2phy.as_ptr(),
            logcnt: maps.logcnt.as_ptr(),
            share: maps.share.as_ptr(),
        };
        // The arrays are made whole, in C order; pointers to any other would mean something else.
        let in_order = maps.phy2log.is_standard_layout()
            && maps.log2phy.is_standard_layout()
            && maps.logcnt.is_standard_layout()
            && maps.share.is_standard_layout();
        if !in_order {
            return Err(Failure::new(Status::Internal, "maps are not in C order"));
        }
        // SAFETY: as the caller promises.
        unsafe { structs::write(told, view, "view") }
    })
}

/// Frees maps. Null does nothing.
///
/// # Safety
/// `maps` is null or a live handle that is not in use, and neither it nor its arrays are used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_maps_free(maps: *mut Maps) {
    // SAFETY: as the caller promises.
    unsafe { call::free(maps) }
}
