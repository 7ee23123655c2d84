//! How bytes travel between the ranks of an engine, as C chooses it.

use std::ffi::c_char;
use std::sync::Arc;

use eplb_comm::store::StoreAddress;
use eplb_comm_nccl::Backend;
use eplb_engine::machine::Reason;
use eplb_engine::process::{
    AutoTransport, DevicePeerTransport, GlooTransport, LocalTransport, NcclTransport, PeerTransport,
    Transport as Carrier,
};

use crate::call::{self, Failure};
use crate::engine::failed;
use crate::status::Status;

/// A way between ranks.
#[derive(Debug)]
pub struct Transport(pub(crate) Arc<dyn Carrier>);

/// For ranks that are threads of this process: all of them are given this one handle. `copy_threads` threads copy bytes, at least 1.
///
/// # Safety
/// `transport` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_local(copy_threads: usize, transport: *mut *mut Transport) -> Status {
    call::run(|| {
        if transport.is_null() || copy_threads == 0 {
            return Err(Failure::argument("transport is null, or copy_threads 0"));
        }
        let made = Box::new(Transport(LocalTransport::new(copy_threads)));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), transport, "transport") }
    })
}

/// For ranks that are processes, on host memory, and on devices by way of pinned host memory: TCP through `libeplb_gloo.so`. `interface_name` is the name of a network interface or an
/// address of this host that the others can reach; null: the one by which this host reaches `store_address`, where the ranks' store
/// is (`tcp://host:port`), and without that the loopback address.
///
/// # Safety
/// Texts are null or texts; `transport` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_gloo(
    interface_name: *const c_char,
    store_address: *const c_char,
    transport: *mut *mut Transport,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let interface = unsafe { call::optional_text(interface_name, "interface_name") }?;
        // SAFETY: as the caller promises.
        let address = unsafe { call::optional_text(store_address, "store_address") }?;
        if transport.is_null() {
            return Err(Failure::argument("transport is null"));
        }
        let place = store_at(address)?;
        let made = GlooTransport::new(interface, &place).map_err(failed)?;
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Transport(Arc::new(made)))), transport, "transport") }
    })
}

/// For slots on CUDA devices of one host, a device per rank: copy engines pull from the memory of the other ranks. `processes` not 0: ranks
/// are processes; 0: they are threads of this one, and all of them are given this one handle.
///
/// # Safety
/// `transport` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_peer(processes: u8, transport: *mut *mut Transport) -> Status {
    call::run(|| {
        if transport.is_null() {
            return Err(Failure::argument("transport is null"));
        }
        let made = match processes {
            0 => DevicePeerTransport::threads(),
            _ => DevicePeerTransport::processes(),
        };
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Transport(made))), transport, "transport") }
    })
}

/// What fits best between ranks that are processes, found out when they meet: they pull from each other's memory where they can open it (slots on
/// devices by copy engines, those that the engine lends in host memory by threads); between others NCCL carries slots on devices, Gloo those in host memory and, where a rank lacks NCCL, on devices;
/// both in one wave where some can and some cannot. `eplb_transport_reasons` tells what was taken and why, the log too. `interface_name` and `store_address`
/// are for Gloo, as with `eplb_transport_gloo`. `in_steps` not 0: waves of NCCL are launched as with `eplb_transport_nccl_in_steps`. NCCL is the copy that
/// `EPLB_NCCL_SO` names, else the one that the process has loaded, else the one that system or Python keep.
///
/// # Safety
/// Texts are null or texts; `transport` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_auto(
    interface_name: *const c_char,
    store_address: *const c_char,
    in_steps: u8,
    transport: *mut *mut Transport,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let interface = unsafe { call::optional_text(interface_name, "interface_name") }?;
        // SAFETY: as the caller promises.
        let address = unsafe { call::optional_text(store_address, "store_address") }?;
        if transport.is_null() {
            return Err(Failure::argument("transport is null"));
        }
        let place = store_at(address)?;
        let nccl = match in_steps {
            0 => NcclTransport::new(Backend::Nccl),
            _ => NcclTransport::in_steps(Backend::Nccl),
        };
        let made = AutoTransport::new(GlooTransport::new(interface, &place)).with_nccl(nccl);
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Transport(Arc::new(made)))), transport, "transport") }
    })
}

/// What `eplb_transport_auto` looked at when ranks last met, and why: a line for each backend, the one that was taken last; empty before, and for other
/// transports. `text` and `len` as of `eplb_engine_metrics`.
///
/// # Safety
/// `transport` is a live handle or null; `text` and `len` as of `eplb_engine_metrics`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_reasons(
    transport: *const Transport,
    text: *mut c_char,
    room: usize,
    len: *mut usize,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let reasons = unsafe { call::handle(transport, "transport") }?.0.reasons();
        // SAFETY: as the caller promises.
        unsafe { call::copy_text(&Reason::lines(&reasons).join("\n"), text, room, len) }
    })
}

/// What ranks have that name none: `eplb_transport_auto`, with Gloo at the loopback address.
pub(crate) fn any() -> Arc<dyn Carrier> {
    Arc::new(AutoTransport::new(GlooTransport::new(None, &StoreAddress::File("/".into()))))
}

/// Where a store is, as far as that says how this host reaches others.
fn store_at(address: Option<&str>) -> Result<StoreAddress, Failure> {
    match address {
        Some(address) => address.parse().map_err(Failure::argument),
        // A store in a folder says nothing of the network either.
        None => Ok(StoreAddress::File(std::path::PathBuf::from("/"))),
    }
}

/// For slots on CUDA devices: NCCL over a communicator of its own. `loaded` 0: the library that is found (`EPLB_NCCL_SO`, then the copy
/// that the process has loaded, then where the system and Python keep it); not 0: the copy that the process has loaded, and no other.
///
/// # Safety
/// `transport` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_nccl(loaded: u8, transport: *mut *mut Transport) -> Status {
    call::run(|| {
        if transport.is_null() {
            return Err(Failure::argument("transport is null"));
        }
        let backend = if loaded == 0 { Backend::Nccl } else { Backend::PyNccl };
        let made = Box::new(Transport(Arc::new(NcclTransport::new(backend))));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), transport, "transport") }
    })
}

/// As `eplb_transport_nccl`, with waves launched by `eplb_engine_step` of one agreed id on every rank, on the server's thread: so in one order with
/// the collectives that the server launches itself. For servers that have such in flight. Ranks then run steps in step, at most one apart; while they run
/// none, a wave waits, and its round is broken off. `launch_us` of the report tells what it cost.
///
/// # Safety
/// `transport` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_nccl_in_steps(loaded: u8, transport: *mut *mut Transport) -> Status {
    call::run(|| {
        if transport.is_null() {
            return Err(Failure::argument("transport is null"));
        }
        let backend = if loaded == 0 { Backend::Nccl } else { Backend::PyNccl };
        let made = Box::new(Transport(Arc::new(NcclTransport::in_steps(backend))));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), transport, "transport") }
    })
}

/// For ranks that are processes of one Linux host, on host memory that the engine lends (`eplb_builder_lend_layer`): they pull from each other's, which
/// all of them map.
///
/// # Safety
/// `transport` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_shared_memory(transport: *mut *mut Transport) -> Status {
    call::run(|| {
        if transport.is_null() {
            return Err(Failure::argument("transport is null"));
        }
        let made = Box::new(Transport(Arc::new(PeerTransport)));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), transport, "transport") }
    })
}

/// Frees a transport. Null does nothing. Engines that were started with it keep what they need of it.
///
/// # Safety
/// `transport` is null or a live handle that is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_transport_free(transport: *mut Transport) {
    // SAFETY: as the caller promises.
    unsafe { call::free(transport) }
}
