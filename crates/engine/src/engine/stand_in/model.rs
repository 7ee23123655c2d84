//! The word explored by loom: a server's boundaries, and a thread that stands by, comes and goes meanwhile.
//!
//! Every boundary is carried out once, by one of the two, before the step that it belongs to goes on, and each sees what the ones before did, though it is written
//! without any lock. Planted: an asker that goes on when its errand is taken, one that does it too, and a thread that goes away from what it was asked.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// Boundaries of the server.
const BOUNDARIES: u64 = 2;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Planted {
    Nothing,
    /// The step goes on when its boundary has been taken.
    GoesOnEarly,
    /// The step that waits no longer does not look whether its boundary is being carried out.
    DoesItToo,
    /// The thread goes away, whatever it was asked.
    GoesAway,
}

#[derive(Debug, Default)]
struct Loomed(AtomicU32);

impl Word for Loomed {
    fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn store(&self, state: u32) {
        self.0.store(state, Ordering::Release);
    }

    fn swap(&self, from: u32, to: u32) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn pause() {
        loom::thread::yield_now();
    }
}

#[derive(Debug, Default)]
struct Scene {
    stand_in: StandIn<Loomed>,
    /// What the step asks for.
    id: UnsafeCell<u64>,
    /// The last boundary carried out.
    carried: UnsafeCell<u64>,
}

// SAFETY: the cells are what the model is about: loom fails at accesses that nothing orders.
#[allow(unsafe_code)]
unsafe impl Sync for Scene {}

#[allow(unsafe_code)]
impl Scene {
    fn boundary(&self, id: u64) {
        // SAFETY: the property under test: one thread at a time.
        self.carried.with_mut(|carried| unsafe {
            assert_eq!(*carried + 1, id, "boundary {id} after {}", *carried);
            *carried = id;
        });
    }

    fn step(&self, id: u64, planted: Planted, mut patience: u32) {
        let write = || {
            // SAFETY: as above.
            self.id.with_mut(|place| unsafe { *place = id });
        };
        let waits = || {
            patience = patience.saturating_sub(1);
            patience > 0
        };
        let done = match planted {
            Planted::GoesOnEarly => {
                self.stand_in.0.swap(NEAR, WRITING) && {
                    write();
                    self.stand_in.0.store(ASKED);
                    while self.stand_in.0.load() == ASKED {
                        Loomed::pause();
                    }
                    true
                }
            }
            Planted::DoesItToo => {
                self.stand_in.0.swap(NEAR, WRITING) && {
                    write();
                    self.stand_in.0.store(ASKED);
                    Loomed::pause();
                    self.stand_in.0.load() == DONE
                }
            }
            _ => self.stand_in.ask(write, waits),
        };
        if !done {
            self.boundary(id);
        }
        // SAFETY: as above; a pass reads what its boundary wrote.
        let carried = self.carried.with(|carried| unsafe { *carried });
        assert_eq!(carried, id, "step {id} goes on");
    }

    fn serve(&self) -> bool {
        self.stand_in.serve(|| {
            // SAFETY: as above.
            let id = self.id.with(|id| unsafe { *id });
            self.boundary(id);
        })
    }
}

fn explore(planted: Planted, patience: u32) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 20_000;
    model.check(move || {
        let scene = Arc::new(Scene::default());
        let own = scene.clone();
        let thread = loom::thread::spawn(move || {
            for _ in 0..2 {
                own.stand_in.come();
                own.serve();
                loom::thread::yield_now();
                if planted == Planted::GoesAway {
                    own.stand_in.0.store(AWAY);
                    continue;
                }
                while !own.stand_in.go() {
                    own.serve();
                    loom::thread::yield_now();
                }
            }
        });
        (1..=BOUNDARIES).for_each(|id| scene.step(id, planted, patience));
        thread.join().unwrap();
    });
}

#[test]
fn every_boundary_is_carried_out_once_before_its_step_goes_on() {
    for patience in [1, 2, u32::MAX] {
        explore(Planted::Nothing, patience);
    }
}

#[test]
fn planted_faults_are_found() {
    for planted in [Planted::GoesOnEarly, Planted::DoesItToo, Planted::GoesAway] {
        let found = catch_unwind(AssertUnwindSafe(|| explore(planted, u32::MAX)));
        assert!(found.is_err(), "{planted:?} was not found");
    }
}
