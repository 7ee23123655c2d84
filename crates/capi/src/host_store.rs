//! A store that the host has already: its operations as C functions.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

use eplb_comm::store::{CallbackFailure, CallbackStore, Callbacks};

use crate::call::{self, Failure};
use crate::status::Status;
use crate::store::{Store, Value};
use crate::structs::{self, Growing};

/// The operation was done; for `get`, the value was there; for `compare_and_set`, it swapped; for `remove`, the key was there.
pub const EPLB_STORE_DONE: i32 = 0;
/// It was done too: the value was not there, another value was (handed over with `eplb_value_set`, unless the key was absent), or there was
/// nothing to remove.
pub const EPLB_STORE_NOT: i32 = 1;
/// For `compare_and_set`: it did not swap, and the key was absent.
pub const EPLB_STORE_ABSENT: i32 = 2;
/// The time was over.
pub const EPLB_STORE_TIMEOUT: i32 = 3;
/// The store is gone for good; why is handed over with `eplb_value_set`.
pub const EPLB_STORE_LOST: i32 = 4;
/// Anything else went wrong; why is handed over with `eplb_value_set`.
pub const EPLB_STORE_FAILED: i32 = 5;

/// The operations of a host's store, such as a server's own. Keys are texts, values bytes. Every function returns one of the
/// `EPLB_STORE_..` numbers within `timeout_ms`, may be called from several threads at once, and must not call back into this
/// library but for `eplb_value_set`. Compare-and-set is atomic. Set `struct_size` to the size of this structure.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct StoreCallbacks {
    /// Size of this structure.
    pub struct_size: usize,
    /// Name for messages, or null.
    pub name: *const c_char,
    /// Given to every function.
    pub state: *mut c_void,
    /// Writes a value.
    pub set: Option<
        unsafe extern "C" fn(
            state: *mut c_void,
            key: *const c_char,
            bytes: *const u8,
            len: usize,
            timeout_ms: u64,
            out: *mut Value,
        ) -> i32,
    >,
    /// Reads a value into `out`; does not wait for the key to appear.
    pub get: Option<
        unsafe extern "C" fn(state: *mut c_void, key: *const c_char, timeout_ms: u64, out: *mut Value) -> i32,
    >,
    /// Writes the new value if the key holds the expected one (`expected` null: if it is absent).
    pub compare_and_set: Option<
        unsafe extern "C" fn(
            state: *mut c_void,
            key: *const c_char,
            expected: *const u8,
            expected_len: usize,
            bytes: *const u8,
            len: usize,
            timeout_ms: u64,
            out: *mut Value,
        ) -> i32,
    >,
    /// Removes a key.
    pub remove: Option<
        unsafe extern "C" fn(state: *mut c_void, key: *const c_char, timeout_ms: u64, out: *mut Value) -> i32,
    >,
    /// Largest value that it takes, bytes; 0: 1 MiB.
    pub max_value: usize,
}

// SAFETY: repr(C), `struct_size` is first; integers, raw pointers and nullable function pointers take the bits that a C program
// can write there; what is no function is the caller's fault, as with any function pointer.
unsafe impl Growing for StoreCallbacks {
    const LEAST: usize = size_of::<Self>();

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            name: std::ptr::null(),
            state: std::ptr::null_mut(),
            set: None,
            get: None,
            compare_and_set: None,
            remove: None,
            max_value: 0,
        }
    }
}

/// The host's state, which its functions may use from any thread.
#[derive(Clone, Copy)]
struct State(*mut c_void);

// SAFETY: the host promises that its functions may be called with it from several threads at once.
unsafe impl Send for State {}
// SAFETY: as above.
unsafe impl Sync for State {}

impl State {
    /// Closures take the whole of it, and so its `Send`.
    fn get(self) -> *mut c_void {
        self.0
    }
}

fn millis(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Keys of the library never hold a zero byte; one that does is refused like any other failure.
fn text(key: &str) -> Result<CString, CallbackFailure> {
    CString::new(key).map_err(|_| CallbackFailure::Failed("a key with a zero byte".into()))
}

/// What a function's number means, for those that tell yes or no.
fn told(code: i32, value: &Value) -> Result<bool, CallbackFailure> {
    let why = || match value.0.is_empty() {
        true => "it did not say why".to_owned(),
        false => String::from_utf8_lossy(&value.0).into_owned(),
    };
    match code {
        EPLB_STORE_DONE => Ok(true),
        EPLB_STORE_NOT => Ok(false),
        EPLB_STORE_TIMEOUT => Err(CallbackFailure::Timeout),
        EPLB_STORE_LOST => Err(CallbackFailure::Lost(why())),
        EPLB_STORE_FAILED => Err(CallbackFailure::Failed(why())),
        other => Err(CallbackFailure::Failed(format!(
            "its function returned {other}, which is no EPLB_STORE number"
        ))),
    }
}

/// A store on the host's functions. They and their state must stay valid until the store and everything made with it is freed.
///
/// # Safety
/// `callbacks` is null or points to a structure whose functions do what their documentation says; `store` is null or points to room for
/// a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_store_from_callbacks(
    callbacks: *const StoreCallbacks,
    store: *mut *mut Store,
) -> Status {
    call::run(|| {
        // SAFETY: as the caller promises.
        let given = unsafe { structs::read(callbacks, "callbacks") }?;
        let (Some(set), Some(get), Some(swap), Some(remove)) =
            (given.set, given.get, given.compare_and_set, given.remove)
        else {
            return Err(Failure::argument(
                "callbacks: set, get, compare_and_set and remove must not be null",
            ));
        };
        let name = match given.name.is_null() {
            true => "the host's store".to_owned(),
            // SAFETY: as the caller promises.
            false => unsafe { call::text(given.name, "name") }?.to_owned(),
        };
        if store.is_null() {
            return Err(Failure::argument("store is null"));
        }
        let state = State(given.state);
        let read = move |key: &str, left: Duration| {
            let (key, mut out) = (text(key)?, Value::default());
            // SAFETY: the host's function, with what its documentation says.
            let code = unsafe { get(state.get(), key.as_ptr(), millis(left), &mut out) };
            Ok(told(code, &out)?.then_some(out.0))
        };
        let exchange = move |key: &str, expected: Option<&[u8]>, new: &[u8], left: Duration| {
            let (key, mut out) = (text(key)?, Value::default());
            let (base, len) = expected.map_or((std::ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()));
            // SAFETY: as above; both slices live through the call.
            let code = unsafe {
                swap(state.get(), key.as_ptr(), base, len, new.as_ptr(), new.len(), millis(left), &mut out)
            };
            match code {
                EPLB_STORE_ABSENT => Ok(Err(None)),
                _ => Ok(if told(code, &out)? { Ok(()) } else { Err(Some(out.0)) }),
            }
        };
        let made = Callbacks {
            name,
            set: Box::new(move |key, value, left| {
                let (key, mut out) = (text(key)?, Value::default());
                let (base, len) = (value.as_ptr(), value.len());
                // SAFETY: as above.
                let code = unsafe { set(state.get(), key.as_ptr(), base, len, millis(left), &mut out) };
                told(code, &out).map(drop)
            }),
            get: Box::new(read),
            add: Box::new(move |key, delta, left| add(&read, &exchange, key, delta, left)),
            compare_and_set: Box::new(exchange),
            delete: Box::new(move |key, left| {
                let (key, mut out) = (text(key)?, Value::default());
                // SAFETY: as above.
                let code = unsafe { remove(state.get(), key.as_ptr(), millis(left), &mut out) };
                told(code, &out)
            }),
            wait: None,
            max_value: if given.max_value == 0 { 1 << 20 } else { given.max_value },
        };
        let made = Box::new(Store(Arc::new(CallbackStore::new(made))));
        // SAFETY: as the caller promises.
        unsafe { call::put(Box::into_raw(made), store, "store") }
    })
}

type Read = dyn Fn(&str, Duration) -> Result<Option<Vec<u8>>, CallbackFailure>;
type Exchange = dyn Fn(&str, Option<&[u8]>, &[u8], Duration) -> eplb_comm::store::callback::CallbackCas;

/// A counter by compare-and-set, so that hosts need not have one.
fn add(
    read: &Read,
    exchange: &Exchange,
    key: &str,
    delta: i64,
    left: Duration,
) -> Result<i64, CallbackFailure> {
    let end = std::time::Instant::now() + left;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(CallbackFailure::Timeout);
        }
        let current = read(key, left)?;
        let count = match &current {
            None => Some(0),
            Some(bytes) => std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<i64>().ok()),
        };
        let sum = count.and_then(|count| count.checked_add(delta));
        let sum = sum.ok_or_else(|| CallbackFailure::Failed(format!("{key} is no counter, or too large")))?;
        if exchange(key, current.as_deref(), sum.to_string().as_bytes(), left)?.is_ok() {
            return Ok(sum);
        }
    }
}
