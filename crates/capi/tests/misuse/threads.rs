//! Two threads at one handle, also where one is asked for: results or errors, never a crash.

use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use eplb::*;

use super::engine::{builder, engine};
use super::said;
use super::store::stores;

/// A handle that several threads use.
struct Shared<T>(*mut T);

// SAFETY: handles may be used by several threads at a time, which is what is tested.
unsafe impl<T> Sync for Shared<T> {}

/// Runs the same work on two threads.
fn on_two(work: impl Fn(usize) + Sync) {
    let work = &work;
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || work(thread));
        }
    });
}

#[test]
fn a_builder_starts_one_engine_whoever_asks() {
    for _ in 0..10 {
        let mut weights = [0u8; 32];
        let shared = &Shared(builder(&mut weights));
        let started = AtomicUsize::new(0);
        on_two(|_| {
            let mut engine = null_mut();
            // SAFETY: a live handle, room for a pointer; what was started is freed by who started it.
            unsafe {
                match eplb_builder_start(shared.0, &mut engine) {
                    Status::Ok => {
                        started.fetch_add(1, Ordering::SeqCst);
                        eplb_engine_free(engine);
                    }
                    status => assert_eq!(status, Status::State, "{}", said()),
                }
            }
        });
        assert_eq!(started.load(Ordering::SeqCst), 1);
        // SAFETY: nobody uses it any more.
        unsafe { eplb_builder_free(shared.0) };
    }
}

#[test]
fn a_store_swaps_for_one_thread_at_a_time() {
    let (store, corner) = stores();
    let (shared, won) = (&Shared(corner), AtomicUsize::new(0));
    on_two(|thread| {
        for turn in 0..200 {
            let (key, mut swapped) = (std::ffi::CString::new(format!("turn-{turn}")).unwrap(), 0);
            let mine = [thread as u8];
            // SAFETY: a live handle, a text, arrays as long as said.
            let status = unsafe {
                let new = (mine.as_ptr(), mine.len());
                eplb_store_compare_and_set(
                    shared.0,
                    key.as_ptr(),
                    null(),
                    0,
                    new.0,
                    new.1,
                    60_000,
                    &mut swapped,
                )
            };
            assert_eq!(status, Status::Ok, "{}", said());
            won.fetch_add(usize::from(swapped), Ordering::SeqCst);
        }
    });
    assert_eq!(won.load(Ordering::SeqCst), 200);
    // SAFETY: nobody uses them any more.
    unsafe {
        eplb_store_free(corner);
        eplb_store_free(store);
    }
}

/// `eplb_engine_step` is for one thread at a time: two get an error, or their steps in some order.
#[test]
fn steps_of_two_threads_and_shutdowns_beside_them_do_not_crash() {
    let mut weights = [0u8; 32];
    let (shared, next) = (&Shared(engine(&mut weights)), AtomicU64::new(0));
    on_two(|thread| {
        for turn in 0..500 {
            let id = next.fetch_add(1, Ordering::SeqCst);
            let (mut maps, mut len) = (null_mut(), 0);
            // SAFETY: a live handle, room for results; what was taken is freed.
            unsafe {
                let status = eplb_engine_step(shared.0, id);
                assert!(matches!(status, Status::Ok | Status::InvalidArgument | Status::State), "{}", said());
                if eplb_engine_maps(shared.0, 0, &mut maps) == Status::Ok {
                    let mut view = std::mem::MaybeUninit::<MapsView>::zeroed().assume_init();
                    view.struct_size = size_of::<MapsView>();
                    assert_eq!(eplb_maps_view(maps, &mut view), Status::Ok);
                    assert_eq!(view.slots, 4);
                    eplb_maps_free(maps);
                }
                if thread == 1 && turn == 300 {
                    assert_eq!(eplb_engine_shutdown(shared.0, 60_000), Status::Ok, "{}", said());
                }
                assert_eq!(eplb_engine_round_outcome(shared.0, 0, null_mut(), 0, &mut len), Status::Ok);
            }
        }
        // SAFETY: a live handle.
        assert_eq!(unsafe { eplb_engine_shutdown(shared.0, 60_000) }, Status::Ok, "{}", said());
    });
    // SAFETY: nobody uses it any more.
    unsafe { eplb_engine_free(shared.0) };
}
