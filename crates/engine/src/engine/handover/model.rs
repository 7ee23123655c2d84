//! The hand-over explored by loom: every order of a server's steps and of an exchange that begins meanwhile, for both ways in which bytes get into a
//! slot. Where it is drained and filled by another thread, nobody writes what a pass reads. Where a commit is agreed on for a step, every pass from
//! that step on, and none before, has the new map and the bytes that belong to it.
//!
//! Planted: either word looked at before the other is stored, no fence, and a slot that is put in service before it is filled.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::loomed::Loomed;
use super::{Handover, began_before};

const EXCHANGE: u32 = 1;
/// Steps of the server; then it idles.
const STEPS: u64 = 3;

/// What is wrong, in tests that want it so.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Planted {
    Nothing,
    /// A step looks for attention before it stores its id.
    StepLooksFirst,
    /// The exchange looks for the last step before it asks for attention.
    ExchangeLooksFirst,
    NoFence,
    /// A drained slot is put in service before it is filled.
    ServesEarly,
}

/// How bytes get into the slot.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Drained at a boundary, filled by the exchange, put in service at a boundary.
    Drained,
    /// Copied in at the boundary of an agreed step.
    Committed,
}

/// What the exchange wants of the next boundary.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Want {
    Nothing,
    Drain,
    Serve,
    /// From this step on.
    Commit(u64),
}

/// What a step and the exchange share under the lock of the slow way.
#[derive(Debug)]
struct Core {
    want: Want,
    /// Last step that the exchange knows of.
    known: Option<u64>,
    /// The expert that the map names: 1 before, none while the slot is drained, 2 after.
    map: u64,
    /// First step with the drained map.
    drained: Option<u64>,
    over: bool,
}

#[derive(Debug)]
struct Scene {
    planted: Planted,
    way: Way,
    hand: Handover<Loomed>,
    core: Mutex<Core>,
    changed: Condvar,
    /// Steps whose pass is over: what an event of the device tells.
    finished: Mutex<u64>,
    passed: Condvar,
    slot: UnsafeCell<u64>,
    /// The map of each pass.
    used: [AtomicU64; STEPS as usize],
}

// SAFETY: the slot is what the model is about: loom fails at accesses that nothing orders.
#[allow(unsafe_code)]
unsafe impl Sync for Scene {}

impl Scene {
    #[allow(unsafe_code)]
    fn fill(&self) {
        // SAFETY: the property under test: nobody else touches the slot now.
        self.slot.with_mut(|slot| unsafe { *slot = 2 });
    }

    /// A boundary before a step, or of an idle rank; the map from then on.
    fn boundary(&self, id: Option<u64>) -> u64 {
        let mut core = self.core.lock().unwrap();
        let first = id.unwrap_or_else(|| self.hand.next_step());
        if core.want == Want::Nothing || id.is_none_or(|id| !began_before(core.known, id)) {
            core.known = core.known.max(id);
            match core.want {
                Want::Drain => (core.map, core.drained) = (0, Some(first)),
                Want::Serve => core.map = 2,
                Want::Commit(step) if first >= step => {
                    self.fill();
                    core.map = 2;
                }
                Want::Commit(_) | Want::Nothing => return core.map,
            }
            core.want = Want::Nothing;
            self.changed.notify_all();
        }
        core.map
    }

    #[allow(unsafe_code)]
    fn pass(&self, id: u64, map: u64) {
        if map > 0 {
            // SAFETY: the property under test: nobody writes a slot that a pass reads.
            let found = self.slot.with(|slot| unsafe { *slot });
            assert_eq!(found, map, "step {id} reads other bytes than its map names");
        }
        self.used[id as usize].store(map, Ordering::Relaxed);
        *self.finished.lock().unwrap() = id + 1;
        self.passed.notify_all();
    }

    fn serve(&self) {
        let mut map = 1;
        for id in 0..STEPS {
            let early = self.hand.attention();
            assert!(self.hand.begin(id));
            let attention =
                if self.planted == Planted::StepLooksFirst { early } else { self.hand.attention() };
            if attention != 0 {
                map = self.boundary(Some(id));
            }
            self.pass(id, map);
        }
        // Idle: what the exchange wants is done at ticks.
        loop {
            let mut core = self.core.lock().unwrap();
            while core.want == Want::Nothing && !core.over {
                core = self.changed.wait(core).unwrap();
            }
            if core.over {
                return;
            }
            drop(core);
            self.boundary(None);
        }
    }

    /// The step from which on the new map is in force, where one was agreed on.
    fn exchange(&self) -> Option<u64> {
        let early = self.hand.last_step();
        let agreed = {
            let mut core = self.core.lock().unwrap();
            let last = self.hand.raise(EXCHANGE);
            let last = if self.planted == Planted::ExchangeLooksFirst { early } else { last };
            core.known = core.known.max(last);
            // The others are told that this rank has not begun it.
            let step = core.known.map_or(0, |last| last + 1);
            core.want = if self.way == Way::Drained { Want::Drain } else { Want::Commit(step) };
            self.changed.notify_all();
            (self.way == Way::Committed).then_some(step)
        };
        if self.way == Way::Drained {
            let drained = self.until(|core| core.drained);
            let mut finished = self.finished.lock().unwrap();
            while *finished < drained {
                finished = self.passed.wait(finished).unwrap();
            }
            drop(finished);
            if self.planted != Planted::ServesEarly {
                self.fill();
            }
            self.core.lock().unwrap().want = Want::Serve;
            self.changed.notify_all();
        }
        self.until(|core| (core.map == 2).then_some(()));
        if self.planted == Planted::ServesEarly {
            self.fill();
        }
        self.hand.clear(EXCHANGE);
        self.core.lock().unwrap().over = true;
        self.changed.notify_all();
        agreed
    }

    fn until<T>(&self, found: impl Fn(&Core) -> Option<T>) -> T {
        let mut core = self.core.lock().unwrap();
        loop {
            if let Some(found) = found(&core) {
                return found;
            }
            core = self.changed.wait(core).unwrap();
        }
    }
}

fn explore(planted: Planted, way: Way, switches: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.max_branches = 20_000;
    model.check(move || {
        let hand: Handover<Loomed> = Handover::default();
        hand.0.unfenced.set(planted == Planted::NoFence);
        let core = Core { want: Want::Nothing, known: None, map: 1, drained: None, over: false };
        let scene = Arc::new(Scene {
            planted,
            way,
            hand,
            core: Mutex::new(core),
            changed: Condvar::new(),
            finished: Mutex::new(0),
            passed: Condvar::new(),
            slot: UnsafeCell::new(1),
            used: std::array::from_fn(|_| AtomicU64::new(0)),
        });
        let other = scene.clone();
        let exchange = thread::spawn(move || other.exchange());
        scene.serve();
        let Some(agreed) = exchange.join().unwrap() else { return };
        for (id, used) in (0..).zip(&scene.used) {
            let expected = if id >= agreed { 2 } else { 1 };
            assert_eq!(used.load(Ordering::Relaxed), expected, "step {id}, agreed on {agreed}");
        }
    });
}

/// Two forced switches of threads, or three where all faults are wanted.
fn switches() -> usize {
    if std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all") { 3 } else { 2 }
}

#[test]
fn a_slot_is_filled_when_no_pass_reads_it() {
    explore(Planted::Nothing, Way::Drained, switches());
}

#[test]
fn every_pass_from_the_agreed_step_on_has_the_new_map_and_its_bytes() {
    explore(Planted::Nothing, Way::Committed, switches());
}

#[test]
fn planted_faults_are_found() {
    for (planted, way) in [
        (Planted::StepLooksFirst, Way::Committed),
        (Planted::ExchangeLooksFirst, Way::Committed),
        (Planted::NoFence, Way::Committed),
        (Planted::ServesEarly, Way::Drained),
    ] {
        let found = catch_unwind(AssertUnwindSafe(|| explore(planted, way, switches())));
        assert!(found.is_err(), "{planted:?} was not found");
    }
}
