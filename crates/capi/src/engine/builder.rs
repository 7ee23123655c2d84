//! Putting an engine together.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

use eplb_core::{Placement, RankId, TensorLayout, Topology};
use eplb_engine::Engine as Started;
use eplb_engine::engine::{Builder as Inner, EngineConfig, SetId, TensorView, World};
use ndarray::Array2;

use super::{Engine, failed};
use crate::call::{self, Failure};
use crate::status::Status;
use crate::store::Store;
use crate::structs::{self, Growing};
use crate::transport::{self as ways, Transport};

/// An engine that is being put together. A second thread that uses one waits for the first.
#[derive(Debug)]
pub struct Builder(Mutex<Option<State>>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) inner: Inner,
    /// Layers, experts and slots of each set.
    shapes: Vec<(usize, usize, usize)>,
    rank: usize,
    ranks: usize,
}

/// One tensor of a layer, from this rank's first slot on. Set `struct_size` to the size of this structure, in every one of an array.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    /// Size of this structure.
    pub struct_size: usize,
    /// Name, for messages and for the comparison over ranks.
    pub name: *const c_char,
    /// Address of the first local slot; not read where the engine lends the memory.
    pub data: *mut c_void,
    /// Rows of a slot.
    pub rows: usize,
    /// Bytes of a row that belong to the expert.
    pub row_bytes: usize,
    /// Bytes from one row to the next; 0: `row_bytes`.
    pub pitch: usize,
    /// Bytes from one slot to the next; 0: `rows * pitch`.
    pub slot_stride: usize,
}

// SAFETY: repr(C), `struct_size` is first; integers and raw pointers take any bits.
unsafe impl Growing for Tensor {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            name: std::ptr::null(),
            data: std::ptr::null_mut(),
            rows: 1,
            row_bytes: 0,
            pitch: 0,
            slot_stride: 0,
        }
    }
}

/// Begins an engine. `config` is a TOML text, or null: the defaults; variables of the environment (`EPLB_..`) then say what they say
/// instead. Keys and variables: `docs/configuration.md`.
///
/// A rank that is alone passes `world_size` 1, and null for `store` and `transport`: it gets no thread, store or communicator. Else all
/// ranks pass the same `world_size`, a store that all reach, and a transport of the same kind; null is that of `eplb_transport_auto`, with Gloo at the
/// loopback address.
///
/// # Safety
/// `config` is null or a text; `store` and `transport` are live handles or null; `builder` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_new(
    config: *const c_char,
    rank: u32,
    world_size: usize,
    store: *const Store,
    transport: *const Transport,
    builder: *mut *mut Builder,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let text = unsafe { call::optional_text(config, "config") }?.unwrap_or("");
        if builder.is_null() {
            return Err(Failure::argument("builder is null"));
        }
        if world_size == 0 || rank as usize >= world_size {
            return Err(Failure::argument(format!(
                "rank {rank} of world_size {world_size}: ranks count from 0"
            )));
        }
        let config =
            EngineConfig::from_toml(text, |name| std::env::var(name).ok()).map_err(Failure::argument)?;
        let world = match world_size {
            1 => World::Alone,
            _ => World::Group {
                rank: RankId(rank),
                world_size,
                // SAFETY: as the caller promises.
                store: unsafe { call::handle(store, "store") }?.0.clone(),
                transport: match transport.is_null() {
                    true => ways::any(),
                    // SAFETY: as the caller promises.
                    false => unsafe { call::handle(transport, "transport") }?.0.clone(),
                },
            },
        };
        let inner = Started::builder(config, world);
        let state = State { inner, shapes: Vec::new(), rank: rank as usize, ranks: world_size };
        let made = Box::new(Builder(Mutex::new(Some(state))));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), builder, "builder") }
    })
}

/// Frees a builder. Null does nothing. An engine that was started from it goes on.
///
/// # Safety
/// `builder` is null or a live handle that is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_free(builder: *mut Builder) {
    // SAFETY: as the caller promises.
    unsafe { call::free(builder) }
}

/// Works on a builder that has not started its engine.
///
/// # Safety
/// `builder` is a live handle or null.
pub(super) unsafe fn with<T>(
    builder: *const Builder,
    work: impl FnOnce(&mut State) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // SAFETY: as the caller promises.
    let builder = unsafe { call::handle(builder, "builder") }?;
    let mut state = builder.0.lock().unwrap_or_else(PoisonError::into_inner);
    let started = || {
        Failure::new(Status::State, "the engine of this builder was started; make a new builder for another")
    };
    work(state.as_mut().ok_or_else(started)?)
}

/// Names a layer set: `layers` layers of `experts` experts, and `slots` slots per layer over all ranks, or `slots_of_rank` of each rank
/// (`[world_size]`, may be null). Ranks are divided over `nodes` in order. `set` gets its number: 0, 1, ..
///
/// # Safety
/// `builder` is a live handle or null; `name` is null or a text; `slots_of_rank` is null or points to as many values as there are
/// ranks; `set` is null or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_layer_set(
    builder: *const Builder,
    name: *const c_char,
    layers: usize,
    experts: usize,
    slots: usize,
    slots_of_rank: *const u32,
    nodes: usize,
    set: *mut u32,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let name = unsafe { call::text(name, "name") }?;
        if set.is_null() {
            return Err(Failure::argument("set is null"));
        }
        // SAFETY: as the caller promises.
        let id = unsafe {
            with(builder, |state| {
                let topology = match slots_of_rank.is_null() {
                    true => Topology::uniform(state.ranks, slots),
                    false => {
                        let of_rank = call::array(slots_of_rank, state.ranks, "slots_of_rank")?;
                        Topology::new(&of_rank.iter().map(|&slots| slots as usize).collect::<Vec<_>>())
                    }
                };
                let topology =
                    topology.and_then(|topology| topology.with_nodes(nodes)).map_err(Failure::argument)?;
                let total = topology.slots();
                let id = state.inner.layer_set(name, topology, experts, layers).map_err(failed)?;
                state.shapes.push((layers, experts, total));
                Ok(id)
            })
        }?;
        // SAFETY: as the caller promises.
        unsafe { call::put(id.0 as u32, set, "set") }
    })
}

/// # Safety
/// `tensors` is null or points to `count` tensors whose names are null or texts.
unsafe fn tensors<'a>(tensors: *const Tensor, count: usize) -> Result<Vec<(&'a str, Tensor)>, Failure> {
    if count == 0 {
        return Err(Failure::argument("count is 0; a layer has at least one tensor"));
    }
    // SAFETY: as the caller promises.
    let given = unsafe { structs::read_all(tensors, count, "tensors") }?;
    let named = |tensor: &Tensor| {
        // SAFETY: as the caller promises.
        let name = unsafe { call::text(tensor.name, "the name of a tensor") }?;
        let product = |a: usize, b: usize| {
            a.checked_mul(b)
                .ok_or_else(|| Failure::argument(format!("tensor {name:?} is larger than memory")))
        };
        let pitch = if tensor.pitch == 0 { tensor.row_bytes } else { tensor.pitch };
        let whole = product(tensor.rows, pitch)?;
        let slot_stride = if tensor.slot_stride == 0 { whole } else { tensor.slot_stride };
        Ok((name, Tensor { pitch, slot_stride, ..*tensor }))
    };
    given.iter().map(named).collect()
}

/// Registers the tensors of a layer in the caller's memory. Their slots hold what `eplb_builder_placement` says.
///
/// # Safety
/// `builder` is a live handle or null; `tensors` is null or points to `count` tensors. Until `eplb_engine_shutdown` has returned
/// `EPLB_STATUS_OK`, every tensor's memory is valid for the bytes of all local slots, nobody writes it, and a slot is read only
/// while the maps of the step that runs name it. Freeing an engine shuts it down too, but gives up after 5 s and cannot say so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_register_layer(
    builder: *const Builder,
    set: u32,
    layer: usize,
    tensors: *const Tensor,
    count: usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let given = unsafe { self::tensors(tensors, count) }?;
        let views: Vec<TensorView> = given
            .iter()
            .map(|(name, tensor)| TensorView {
                name: (*name).to_owned(),
                data: tensor.data.cast(),
                rows: tensor.rows,
                row_bytes: tensor.row_bytes,
                pitch: tensor.pitch,
                slot_stride: tensor.slot_stride,
            })
            .collect();
        // SAFETY: as the caller promises, here and for the memory.
        unsafe {
            with(builder, |state| {
                state.inner.register_layer(SetId(set as usize), layer, &views).map_err(failed)
            })
        }
    })
}

/// Has the engine allocate the tensors of a layer, zeroed; `eplb_engine_lent` tells where they are.
///
/// # Safety
/// `builder` is a live handle or null; `tensors` is null or points to `count` tensors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_lend_layer(
    builder: *const Builder,
    set: u32,
    layer: usize,
    tensors: *const Tensor,
    count: usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let given = unsafe { self::tensors(tensors, count) }?;
        let layout = |(name, tensor): &(&str, Tensor)| TensorLayout {
            rows: tensor.rows,
            row_bytes: tensor.row_bytes,
            pitch: tensor.pitch,
            slot_stride: tensor.slot_stride,
            ..TensorLayout::contiguous(*name, tensor.row_bytes)
        };
        let layouts: Vec<TensorLayout> = given.iter().map(layout).collect();
        // SAFETY: as the caller promises.
        unsafe {
            with(builder, |state| {
                state.inner.lend_layer(SetId(set as usize), layer, &layouts).map_err(failed)
            })
        }
    })
}

/// What the slots of a set hold at the start: `phy2log [layers, slots]`, -1 = empty, `len` values. Without it slot `p` holds expert
/// `p % experts`, or what the configuration's `start_plan` says.
///
/// # Safety
/// `builder` is a live handle or null; `phy2log` is null or points to `len` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_placement(
    builder: *const Builder,
    set: u32,
    phy2log: *const i32,
    len: usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let values = unsafe { call::array(phy2log, len, "phy2log") }?;
        // SAFETY: as the caller promises.
        unsafe {
            with(builder, |state| {
                let shape = state.shapes.get(set as usize).copied();
                let (layers, experts, slots) = shape.ok_or_else(|| {
                    Failure::argument(format!("there is no layer set {set}; name it first"))
                })?;
                let map = Array2::from_shape_vec((layers, slots), values.to_vec()).map_err(|_| {
                    Failure::argument(format!(
                        "phy2log has {len} values; {layers} layers of {slots} slots need {}",
                        layers * slots
                    ))
                })?;
                let placement = Placement::with_missing(experts, map).map_err(Failure::argument)?;
                state.inner.placement(SetId(set as usize), placement).map_err(failed)
            })
        }
    })
}

/// Starts the engine; the builder is spent, and to be freed. In a group it returns when all ranks have come, hold the same layouts and
/// options, and are connected.
///
/// # Safety
/// `builder` is a live handle or null; `engine` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_builder_start(builder: *const Builder, engine: *mut *mut Engine) -> Status {
    call::run(|| {
        if engine.is_null() {
            return Err(Failure::argument("engine is null"));
        }
        // SAFETY: as the caller promises.
        unsafe { with(builder, |_| Ok(())) }?;
        // SAFETY: as the caller promises.
        let builder = unsafe { call::handle(builder, "builder") }?;
        let state = builder.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(state) = state else {
            return Err(Failure::new(Status::State, "another thread started the engine of this builder"));
        };
        debug_assert!(state.rank < state.ranks);
        let started = state.inner.start().map_err(failed)?;
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Engine(started))), engine, "engine") }
    })
}
