//! Copies of the fake that stop until they are let go.

use std::ffi::{CStr, c_int, c_long, c_void};
use std::time::{Duration, Instant};

/// How long a check watches that nothing happens which must not.
const WATCH: Duration = Duration::from_millis(50);

/// Longest wait for what must happen.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const TO_HOST: c_int = 1;
pub(crate) const TO_DEVICE: c_int = 2;

/// A function of the fake, which is loaded.
fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: both names end with a zero; the library is there since the first use of the driver, and stays.
    let found = unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        assert!(!library.is_null(), "the fake of CUDA is not loaded");
        libc::dlsym(library, name.as_ptr())
    };
    assert!(!found.is_null(), "{name:?}");
    found
}

fn set(which: c_int) {
    // SAFETY: the fake defines it so.
    let hold: extern "C" fn(c_int) = unsafe { std::mem::transmute(symbol(c"eplb_fake_hold")) };
    hold(which);
}

fn count(name: &CStr) -> c_long {
    // SAFETY: the fake defines those that are asked for so.
    let count: extern "C" fn() -> c_long = unsafe { std::mem::transmute(symbol(name)) };
    count()
}

/// How many copies have stopped so far.
fn stopped() -> c_long {
    count(c"eplb_fake_stopped")
}

/// Waits for what must happen.
fn until(what: &str, happens: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !happens() {
        assert!(Instant::now() < limit, "{what} never happened");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// While it lives, copies of one way stop before they move a byte.
pub(crate) struct Hold {
    before: c_long,
}

impl Hold {
    pub(crate) fn on(way: c_int) -> Self {
        let hold = Self { before: stopped() };
        set(way);
        hold
    }

    /// Waits until so many copies have stopped.
    pub(crate) fn wait(&self, copies: c_long) {
        until("a stop of so many copies", || stopped() >= self.before + copies);
    }

    /// Ends it, and waits until nothing is left on any stream.
    pub(crate) fn end(self) {
        drop(self);
        until("the end of all copies", || count(c"eplb_fake_under_way") == 0);
    }

    /// Looks for a while whether something happens.
    pub(crate) fn sees(&self, mut happens: impl FnMut() -> bool) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < WATCH {
            if happens() {
                return true;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        happens()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        set(0);
    }
}
