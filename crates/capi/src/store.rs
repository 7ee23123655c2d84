//! Stores through which ranks meet, as C sees them.

use std::ffi::c_char;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::{
    CasOutcome, Deadlines, InProcessStore, PrefixStore, ServerOptions, Store as Rendezvous, StoreAddress,
    StoreError, StoreServer, Token,
};

use crate::call::{self, Failure};
use crate::status::Status;

/// A small map through which ranks meet.
#[derive(Debug)]
pub struct Store(pub(crate) Arc<dyn Rendezvous>);

/// A server of a TCP store in this process.
#[derive(Debug)]
pub struct StoreServerHandle(StoreServer);

pub(crate) fn failed(error: StoreError) -> Failure {
    let status = if error.is_timeout() { Status::Timeout } else { Status::Store };
    Failure::new(status, error)
}

fn token() -> Result<Option<Token>, Failure> {
    Token::from_env().map_err(|error| Failure::new(Status::Store, error))
}

/// When a time limit from now is over.
pub(crate) fn deadline(timeout_ms: u64) -> Instant {
    // A hundred years are as good as for ever, and do not overflow.
    Instant::now() + Duration::from_millis(timeout_ms.min(100 * 365 * 24 * 3_600_000))
}

/// Makes a store for ranks that are threads of this process.
///
/// # Safety
/// `store` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_in_process(store: *mut *mut Store) -> Status {
    call::run(|| {
        if store.is_null() {
            return Err(Failure::argument("store is null"));
        }
        let made = Box::new(Store(Arc::new(InProcessStore::new())));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), store, "store") }
    })
}

/// Opens the store at an address: `tcp://host:port` of a server, or `file:///folder` that all ranks share. A server that does not
/// listen yet is tried again until the time is over. A token, where the server wants one, is taken from `EPLB_STORE_TOKEN` or
/// `EPLB_STORE_TOKEN_FILE`.
///
/// # Safety
/// `address` is null or a text; `store` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_open(
    address: *const c_char,
    timeout_ms: u64,
    store: *mut *mut Store,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let address = unsafe { call::text(address, "address") }?;
        if store.is_null() {
            return Err(Failure::argument("store is null"));
        }
        let place: StoreAddress = address.parse().map_err(Failure::argument)?;
        let opened = place.open(token()?.as_ref(), &Deadlines::DEFAULT, deadline(timeout_ms));
        let made = Box::new(Store(opened.map_err(failed)?));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), store, "store") }
    })
}

/// A corner of a store of its own: keys of `store` that begin with `prefix` and a slash. The store may be freed before it.
///
/// # Safety
/// `store` is a live handle or null; `prefix` is null or a text; `corner` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_prefix(
    store: *const Store,
    prefix: *const c_char,
    corner: *mut *mut Store,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let store = unsafe { call::handle(store, "store") }?;
        // SAFETY: as the caller promises.
        let prefix = unsafe { call::text(prefix, "prefix") }?;
        if corner.is_null() {
            return Err(Failure::argument("corner is null"));
        }
        let made = PrefixStore::new(store.0.clone(), prefix).map_err(failed)?;
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(Store(Arc::new(made)))), corner, "corner") }
    })
}

/// Frees a store. Null does nothing. What was made with it keeps what it needs of it.
///
/// # Safety
/// `store` is null or a live handle that is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_free(store: *mut Store) {
    // SAFETY: as the caller promises.
    unsafe { call::free(store) }
}

/// Serves a TCP store in this process at `host:port`; port 0 takes a free one. Anywhere but on the loopback address a token is needed,
/// from `EPLB_STORE_TOKEN` or `EPLB_STORE_TOKEN_FILE`.
///
/// # Safety
/// `address` is null or a text; `server` is null or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_serve(
    address: *const c_char,
    server: *mut *mut StoreServerHandle,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let address = unsafe { call::text(address, "address") }?;
        if server.is_null() {
            return Err(Failure::argument("server is null"));
        }
        let unknown =
            |reason: String| Failure::argument(format!("address {address:?}: {reason}; write host:port"));
        let found: SocketAddr = address
            .to_socket_addrs()
            .map_err(|error| unknown(error.to_string()))?
            .next()
            .ok_or_else(|| unknown("no such host".into()))?;
        let options = ServerOptions { token: token()?, ..ServerOptions::default() };
        let made = StoreServer::bind(found, options).map_err(failed)?;
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(Box::new(StoreServerHandle(made))), server, "server") }
    })
}

/// The port that a server listens at.
///
/// # Safety
/// `server` is a live handle or null; `port` is null or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_server_port(server: *const StoreServerHandle, port: *mut u16) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let server = unsafe { call::handle(server, "server") }?;
        // SAFETY: as the caller promises.
        unsafe { call::put(server.0.local_address().port(), port, "port") }
    })
}

/// Ends a server; its clients then report that the store is lost. Null does nothing.
///
/// # Safety
/// `server` is null or a live handle that is not in use, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_server_free(server: *mut StoreServerHandle) {
    // SAFETY: as the caller promises.
    unsafe { call::free(server) }
}

/// A value that the library takes from a host's callback, or hands to a host. See `eplb_value_set`.
#[derive(Debug, Default)]
pub struct Value(pub(crate) Vec<u8>);

/// Copies bytes into a value: how a callback hands over what it found, or, when it fails, why.
///
/// # Safety
/// `value` is what the library gave to the callback; `bytes` is null with `len` 0, or points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_value_set(value: *mut Value, bytes: *const u8, len: usize) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises; it is the library's own, and nobody else uses it during a callback.
        let value = unsafe { value.as_mut() }.ok_or_else(|| Failure::argument("value is null"))?;
        value.0.clear();
        if len > 0 {
            // SAFETY: as the caller promises.
            value.0.extend_from_slice(unsafe { call::array(bytes, len, "bytes") }?);
        }
        Ok(())
    })
}

/// Writes a value, whatever the key held.
///
/// # Safety
/// `store` is a live handle or null; `key` is null or a text; `bytes` is null with `len` 0, or points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_set(
    store: *const Store,
    key: *const c_char,
    bytes: *const u8,
    len: usize,
    timeout_ms: u64,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let store = unsafe { call::handle(store, "store") }?;
        // SAFETY: as the caller promises.
        let key = unsafe { call::text(key, "key") }?;
        let value = match len {
            0 => &[],
            // SAFETY: as the caller promises.
            _ => unsafe { call::array(bytes, len, "bytes") }?,
        };
        store.0.set(key, value, deadline(timeout_ms)).map_err(failed)
    })
}

/// Waits until a key is there, and copies its value to `bytes`, which has room for `room` bytes. `len` gets the value's length; if that
/// is more than `room` nothing is copied.
///
/// # Safety
/// `store` is a live handle or null; `key` is null or a text; `bytes` is null with `room` 0, or points to `room` bytes; `len` is null
/// or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_wait(
    store: *const Store,
    key: *const c_char,
    bytes: *mut u8,
    room: usize,
    len: *mut usize,
    timeout_ms: u64,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let store = unsafe { call::handle(store, "store") }?;
        // SAFETY: as the caller promises.
        let key = unsafe { call::text(key, "key") }?;
        let until = deadline(timeout_ms);
        let value = loop {
            store.0.wait(&[key], until).map_err(failed)?;
            // It may have been deleted since; then it is waited for again.
            if let Some(value) = store.0.get(key, until).map_err(failed)? {
                break value;
            }
        };
        // SAFETY: as the caller promises.
        unsafe { call::put(value.len(), len, "len") }?;
        if value.is_empty() || value.len() > room {
            return Ok(());
        }
        // SAFETY: as the caller promises: `room` bytes, of which as many as the value has are written.
        unsafe { call::copy_out(value.iter().copied(), bytes, value.len(), "bytes") }
    })
}

/// Writes `new` if the key holds `expected` (null: if it is absent). `swapped` gets 1 if it did, else 0.
///
/// # Safety
/// `store` is a live handle or null; `key` is null or a text; `expected` is null or points to `expected_len` bytes, `new_value` to
/// `new_len` bytes; `swapped` is null or points to room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_compare_and_set(
    store: *const Store,
    key: *const c_char,
    expected: *const u8,
    expected_len: usize,
    new_value: *const u8,
    new_len: usize,
    timeout_ms: u64,
    swapped: *mut u8,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let store = unsafe { call::handle(store, "store") }?;
        // SAFETY: as the caller promises.
        let key = unsafe { call::text(key, "key") }?;
        let expected = match expected.is_null() {
            true => None,
            // SAFETY: as the caller promises.
            false => Some(unsafe { call::array(expected, expected_len, "expected") }?),
        };
        let value = match new_len {
            0 => &[],
            // SAFETY: as the caller promises.
            _ => unsafe { call::array(new_value, new_len, "new_value") }?,
        };
        if swapped.is_null() {
            return Err(Failure::argument("swapped is null"));
        }
        let outcome = store.0.compare_and_set(key, expected, value, deadline(timeout_ms)).map_err(failed)?;
        // SAFETY: as the caller promises.
        unsafe { call::put(u8::from(outcome == CasOutcome::Swapped), swapped, "swapped") }
    })
}
