//! Batches of messages between ranks, as C sees them.

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use eplb_comm::{CommError, Message, Pairs};
use eplb_comm_gloo::{Device, GlooError, GlooPairs, Options};
use eplb_comm_nccl::{Backend, NcclCommError, NcclPairs, Options as NcclOptions, Rendezvous};
use eplb_core::RankId;

use crate::call::{self, Failure};
use crate::status::Status;
use crate::store::{self, Store};
use crate::structs::{self, Growing};

/// Connections between all ranks, for messages in batches. A second thread that uses one waits for the first.
#[derive(Debug)]
pub struct PairsHandle(Mutex<Box<dyn Pairs>>);

/// Bytes to or from another rank. Set `struct_size` to the size of this structure, in every one of an array.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PairMessage {
    /// Size of this structure.
    pub struct_size: usize,
    /// The other rank.
    pub peer: u32,
    /// Where the bytes lie, or go.
    pub base: *mut c_void,
    /// How many.
    pub bytes: usize,
}

// SAFETY: repr(C), `struct_size` is first; integers and a raw pointer take any bits.
unsafe impl Growing for PairMessage {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self { struct_size: size_of::<Self>(), peer: 0, base: std::ptr::null_mut(), bytes: 0 }
    }
}

fn failed(error: CommError) -> Failure {
    let status = match error {
        CommError::Timeout { .. } => Status::Timeout,
        _ => Status::Transfer,
    };
    Failure::new(status, error)
}

fn not_connected(error: GlooError) -> Failure {
    let status = match &error {
        GlooError::NotConnected { .. } => Status::Timeout,
        GlooError::Store { .. } => Status::Store,
        GlooError::Options { .. } => Status::InvalidArgument,
        _ => Status::Transfer,
    };
    Failure::new(status, error)
}

/// Connects this rank with the others; every rank calls it with the same store, a corner of its own that nothing else uses, and the
/// same `world_size`, at least 2. Blocks until all are there.
///
/// `backend` is `gloo`: host memory, over TCP through `libeplb_gloo.so`, which must be to be found. `interface_name` is the name
/// of a network interface or an address of this host that the others can reach; null is the loopback address.
///
/// # Safety
/// Texts are null or texts; `store` is a live handle or null; `pairs` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_pairs_connect(
    backend: *const c_char,
    rank: u32,
    world_size: usize,
    store: *const Store,
    interface_name: *const c_char,
    timeout_ms: u64,
    pairs: *mut *mut PairsHandle,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let backend = unsafe { call::text(backend, "backend") }?;
        // SAFETY: as the caller promises.
        let store = unsafe { call::handle(store, "store") }?;
        if pairs.is_null() {
            return Err(Failure::argument("pairs is null"));
        }
        if backend != "gloo" {
            return Err(Failure::argument(format!(
                "backend is {backend:?}; gloo is what there is for host memory, eplb_pairs_connect_device has others"
            )));
        }
        let options = match interface_name.is_null() {
            true => Options::default(),
            false => {
                // SAFETY: as the caller promises.
                let name = unsafe { call::text(interface_name, "interface_name") }?;
                Options::on(match name.parse() {
                    Ok(address) => Device::Address(address),
                    Err(_) => Device::Interface(name.to_owned()),
                })
            }
        };
        let until = store::deadline(timeout_ms);
        let made = GlooPairs::connect(RankId(rank), world_size, store.0.clone(), options, until);
        let made = Box::new(PairsHandle(Mutex::new(Box::new(made.map_err(not_connected)?))));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), pairs, "pairs") }
    })
}

fn device_not_connected(error: NcclCommError) -> Failure {
    let status = match &error {
        _ if error.is_timeout() => Status::Timeout,
        NcclCommError::Store(_) => Status::Store,
        NcclCommError::Peer { .. } => Status::InvalidArgument,
        _ => Status::Transfer,
    };
    Failure::new(status, error)
}

/// As `eplb_pairs_connect`, for memory of the CUDA device whose number is `device` (its primary context, which PyTorch and NCCL use too).
///
/// `backend` is `nccl`, over the library that is found (`EPLB_NCCL_SO`, then the copy that the process has loaded, then where the
/// system and Python keep it), or `pynccl`, over the copy that the process has loaded and no other. What is sent must be complete on
/// the device when `eplb_pairs_exchange` is called; the call waits on the host for its own stream alone.
///
/// # Safety
/// `backend` is null or a text; `store` is a live handle or null; `pairs` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_pairs_connect_device(
    backend: *const c_char,
    device: u32,
    rank: u32,
    world_size: usize,
    store: *const Store,
    timeout_ms: u64,
    pairs: *mut *mut PairsHandle,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let name = unsafe { call::text(backend, "backend") }?;
        // SAFETY: as the caller promises.
        let store = unsafe { call::handle(store, "store") }?;
        if pairs.is_null() {
            return Err(Failure::argument("pairs is null"));
        }
        let known = [Backend::Nccl, Backend::PyNccl].into_iter().find(|backend| backend.name() == name);
        let backend = known.ok_or_else(|| {
            Failure::argument(format!("backend is {name:?}; nccl and pynccl are what there is"))
        })?;
        let meeting = Rendezvous { store: store.0.clone(), size: world_size, epoch: 1 };
        let until = store::deadline(timeout_ms);
        let rank = RankId(rank);
        let made =
            NcclPairs::connect(backend, device as usize, rank, &meeting, &NcclOptions::default(), until);
        let made = Box::new(PairsHandle(Mutex::new(Box::new(made.map_err(device_not_connected)?))));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), pairs, "pairs") }
    })
}

/// Sends and receives a batch: returns when what is received is in and what is sent may be written again. Messages from one rank to
/// another match in the order in which both sides give them, batch by batch, and must have equal sizes. After an error the connections
/// are spent: make new ones.
///
/// # Safety
/// `pairs` is a live handle or null; `sends` and `receives` point to as many messages as said, or are null with none. The memory that
/// they name stays valid during the call; nobody writes what is sent, nobody else touches what is received into, and none of
/// that overlaps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_pairs_exchange(
    pairs: *const PairsHandle,
    sends: *const PairMessage,
    send_count: usize,
    receives: *const PairMessage,
    receive_count: usize,
    timeout_ms: u64,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let pairs = unsafe { call::handle(pairs, "pairs") }?;
        // SAFETY: as the caller promises.
        let sends = unsafe { messages(sends, send_count, "sends") }?;
        // SAFETY: as the caller promises.
        let receives = unsafe { messages(receives, receive_count, "receives") }?;
        let mut pairs = pairs.0.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as the caller promises.
        unsafe { pairs.exchange(&sends, &receives, store::deadline(timeout_ms)) }.map_err(failed)
    })
}

/// # Safety
/// `given` is null or points to `count` messages.
unsafe fn messages(given: *const PairMessage, count: usize, name: &str) -> Result<Vec<Message>, Failure> {
    // SAFETY: as the caller promises.
    let given = unsafe { structs::read_all(given, count, name) }?;
    let message = |(at, message): (usize, &PairMessage)| {
        let base = match NonNull::new(message.base.cast::<u8>()) {
            Some(base) => base,
            None if message.bytes == 0 => NonNull::dangling(),
            None => return Err(Failure::argument(format!("{name}[{at}].base is null"))),
        };
        Ok(Message { peer: RankId(message.peer), base, bytes: message.bytes })
    };
    given.iter().enumerate().map(message).collect()
}

/// Bytes received from other ranks so far.
///
/// # Safety
/// `pairs` is a live handle or null; `bytes` is null or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_pairs_received_bytes(pairs: *const PairsHandle, bytes: *mut u64) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let pairs = unsafe { call::handle(pairs, "pairs") }?;
        let received = pairs.0.lock().unwrap_or_else(PoisonError::into_inner).received_bytes();
        // SAFETY: as the caller promises.
        unsafe { call::put(received, bytes, "bytes") }
    })
}

/// Closes the connections; ranks that still use theirs get an error. Null does nothing.
///
/// # Safety
/// `pairs` is null or a live handle that is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_pairs_free(pairs: *mut PairsHandle) {
    // SAFETY: as the caller promises.
    unsafe { call::free(pairs) }
}
