//! The log.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;
use std::sync::Mutex;
use std::thread::ThreadId;

use eplb::*;

use super::engine::engine;
use super::{is, said};

/// The log is one for the process: tests that set it run one after another.
static TURN: Mutex<()> = Mutex::new(());

/// What a thread said, at which level.
type Lines = Mutex<Vec<(ThreadId, u32, String)>>;

unsafe extern "C" fn keep(state: *mut c_void, level: u32, target: *const c_char, message: *const c_char) {
    // SAFETY: the state that the tests give, and texts.
    let (lines, target, message) =
        unsafe { (&*state.cast::<Lines>(), CStr::from_ptr(target), CStr::from_ptr(message)) };
    assert!(target.to_str().unwrap().starts_with("eplb"));
    let line = (std::thread::current().id(), level, message.to_str().unwrap().to_owned());
    lines.lock().unwrap().push(line);
}

/// Sets the log inside the log.
unsafe extern "C" fn again(state: *mut c_void, _: u32, _: *const c_char, _: *const c_char) {
    // SAFETY: the state that the test gives; null is allowed to be passed.
    unsafe { (*state.cast::<Mutex<Vec<Status>>>()).lock().unwrap().push(eplb_log_set(None, null_mut(), 0)) };
}

/// An engine of this thread that changes its state.
fn speak() {
    let mut weights = [0u8; 32];
    let engine = engine(&mut weights);
    // SAFETY: a live handle.
    unsafe {
        assert_eq!(eplb_engine_quiesce(engine, 60_000), Status::Ok, "{}", said());
        assert_eq!(eplb_engine_reopen(engine, 60_000), Status::Ok, "{}", said());
        eplb_engine_free(engine);
    }
}

#[test]
fn the_log_comes_up_to_its_level_and_ends_when_it_is_told_to() {
    let _turn = TURN.lock().unwrap_or_else(|error| error.into_inner());
    let lines = Lines::default();
    let state = (&raw const lines).cast_mut().cast();
    let mine = || {
        let me = std::thread::current().id();
        let found = std::mem::take(&mut *lines.lock().unwrap());
        found.into_iter().filter(|line| line.0 == me).map(|line| (line.1, line.2)).collect::<Vec<_>>()
    };
    // SAFETY: the function and its state live to the end of the test, when nobody calls it any more.
    unsafe {
        is(eplb_log_set(Some(keep), state, 6), Status::InvalidArgument, "level is 6");
        assert_eq!(eplb_log_set(Some(keep), state, EPLB_LOG_DEBUG), Status::Ok);
        speak();
        let said = mine();
        assert!(
            said.iter().any(|(level, text)| *level == EPLB_LOG_DEBUG && text.contains("to=quiesced")),
            "{said:?}"
        );
        assert_eq!(eplb_log_set(Some(keep), state, EPLB_LOG_ERROR), Status::Ok);
        speak();
        assert_eq!(mine(), []);
        assert_eq!(eplb_log_set(Some(keep), state, EPLB_LOG_DEBUG), Status::Ok);
        assert_eq!(eplb_log_set(None, state, EPLB_LOG_DEBUG), Status::Ok);
        speak();
        assert_eq!(mine(), []);
    }
}

#[test]
fn the_log_is_not_set_inside_the_log() {
    let _turn = TURN.lock().unwrap_or_else(|error| error.into_inner());
    let told = Mutex::new(Vec::<Status>::new());
    // SAFETY: as above.
    unsafe {
        assert_eq!(
            eplb_log_set(Some(again), (&raw const told).cast_mut().cast(), EPLB_LOG_TRACE),
            Status::Ok
        );
        speak();
        assert_eq!(eplb_log_set(None, null_mut(), EPLB_LOG_OFF), Status::Ok);
    }
    let told = told.into_inner().unwrap();
    assert!(!told.is_empty() && told.iter().all(|status| *status == Status::State), "{told:?}");
}

/// After `eplb_log_set` has returned, the state given before may be gone, whoever speaks at the time.
#[test]
fn the_log_is_taken_away_while_others_speak() {
    let _turn = TURN.lock().unwrap_or_else(|error| error.into_inner());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..20).for_each(|_| speak()));
        }
        scope.spawn(|| {
            for _ in 0..50 {
                let lines = Box::new(Lines::default());
                // SAFETY: the lines live until the next call has returned.
                unsafe {
                    let state = (&raw const *lines).cast_mut().cast();
                    assert_eq!(eplb_log_set(Some(keep), state, EPLB_LOG_TRACE), Status::Ok);
                    std::thread::yield_now();
                    assert_eq!(eplb_log_set(None, null_mut(), EPLB_LOG_OFF), Status::Ok);
                }
                let held = lines.lock().unwrap().len();
                drop(lines);
                assert!(held < 1_000_000);
            }
        });
    });
}
