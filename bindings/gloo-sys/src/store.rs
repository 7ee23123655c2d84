//! The store through which ranks find each other.

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::bindings::{eplb_gloo_store, eplb_gloo_take};

/// A key-value store as Gloo's rendezvous needs it. The implementation keeps deadlines: Gloo asks for what other ranks
/// write, and waits as long as `get` does.
pub trait Rendezvous {
    /// Writes a value.
    ///
    /// # Errors
    /// The words of what failed.
    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), String>;

    /// Waits until a key is there, and gives its value.
    ///
    /// # Errors
    /// The words of what failed, a deadline that passed among them.
    fn get(&mut self, key: &str) -> Result<Vec<u8>, String>;
}

/// What the callbacks work on, for the length of one connect.
pub(crate) struct Session<'a> {
    store: &'a mut dyn Rendezvous,
    /// Why a callback failed.
    pub(crate) failure: Option<String>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(store: &'a mut dyn Rendezvous) -> Self {
        Self { store, failure: None }
    }

    /// The C form. Only while the session is borrowed by nobody else.
    pub(crate) fn callbacks(&mut self) -> eplb_gloo_store {
        eplb_gloo_store { state: std::ptr::from_mut(self).cast(), set: Some(set), get: Some(get) }
    }

    /// Runs a callback's work; 0 if it succeeded. No panic goes through C++.
    fn attempt(&mut self, work: impl FnOnce(&mut dyn Rendezvous) -> Result<(), String>) -> i32 {
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut *self.store)));
        match result.unwrap_or_else(|payload| Err(format!("the store panicked: {}", words(&*payload)))) {
            Ok(()) => 0,
            Err(why) => {
                self.failure = Some(why);
                1
            }
        }
    }
}

fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// # Safety
/// `key` is valid for reads of `bytes` bytes for the length of `'a`.
unsafe fn text<'a>(key: *const c_char, bytes: usize) -> Result<&'a str, String> {
    // SAFETY: by the contract above; a std::string's data is never null.
    let key = unsafe { std::slice::from_raw_parts(key.cast::<u8>(), bytes) };
    std::str::from_utf8(key).map_err(|_| "a key that is no text".to_owned())
}

/// `set` of the header's `eplb_gloo_store`.
///
/// # Safety
/// `state` is that of [`Session::callbacks`] of a live session that nobody else uses; the other pointers are valid for reads.
unsafe extern "C" fn set(
    state: *mut c_void,
    key: *const c_char,
    key_bytes: usize,
    value: *const u8,
    bytes: usize,
) -> i32 {
    // SAFETY: the library hands back the state it was given, during eplb_gloo_connect, on the thread that holds the session.
    let session = unsafe { &mut *state.cast::<Session<'_>>() };
    session.attempt(|store| {
        // SAFETY: the library gives the data of a live string.
        let key = unsafe { text(key, key_bytes) }?;
        let value = match bytes {
            0 => &[],
            // SAFETY: the library gives the data of a live vector of that many bytes.
            _ => unsafe { std::slice::from_raw_parts(value, bytes) },
        };
        store.set(key, value)
    })
}

/// `get` of the header's `eplb_gloo_store`.
///
/// # Safety
/// As [`set`]; `take` may be called with `sink`.
unsafe extern "C" fn get(
    state: *mut c_void,
    key: *const c_char,
    key_bytes: usize,
    sink: *mut c_void,
    take: eplb_gloo_take,
) -> i32 {
    // SAFETY: as in `set`.
    let session = unsafe { &mut *state.cast::<Session<'_>>() };
    session.attempt(|store| {
        // SAFETY: the library gives the data of a live string.
        let value = store.get(unsafe { text(key, key_bytes) }?)?;
        let take = take.ok_or("a get without a taker")?;
        // SAFETY: the library gives `take` and `sink` for each other; it copies the bytes before it returns.
        unsafe { take(sink, value.as_ptr(), value.len()) };
        Ok(())
    })
}
