//! The end of an engine explored by loom: the host asks for it when it has run some steps, while the progress thread is anywhere between
//! two rounds and the commit of an agreed step.
//!
//! The crate's own here: [`Desk`] with the machine, its orders, both sides of the end and the life of the thread, and [`Handover`]. The
//! model's own: the exchange (one slot, agreed on with others at once, called off by a cancel until it is decided), and the lock around it, as
//! `Shared::boundary` and `Progress::commit_at_rest` take it. Deadlines pass at any time or never; where the thread looks again after a pause, it
//! waits for a change, so that never to be woken shows as a deadlock. Not explored: the store, communicators and devices, a thread that panics, the
//! other ranks, and a pass under way while the host asks for the end, which the contract of `shutdown` excludes.
//!
//! What holds: the host's call ends, and so does the thread; each pass, those after the end too, has the old map and its bytes, or the new ones.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32 as Uncounted, AtomicUsize, Ordering::SeqCst};

use eplb_exchange::Phase;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
use loom::thread;

use super::*;
use crate::engine::handover::loomed::Loomed as Words;
use crate::engine::handover::{Handover, began_before};
use crate::engine::shared::EXCHANGE;

/// Steps before the host asks for the end: up to as many.
const STEPS: u64 = 2;

/// What is wrong, in tests that want it so.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Planted {
    Nothing,
    /// The end of the thread wakes nobody.
    EndsSilently,
    /// The machine forgets what the host asked for when the exchange is over.
    Forgets,
    /// A decided commit waits for its step, whatever the host has asked for.
    WaitsForStep,
    /// Whether the host is quiet is looked at before the lock of its steps is taken.
    LooksEarly,
}

/// When deadlines pass, and whether a call of the thread returns before the host's.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Time {
    Never,
    Whenever,
    /// At any time, and until then the thread is in a call.
    AndHangs,
}

#[derive(Debug)]
struct Loomed {
    asked: Mutex<Asked>,
    changed: Condvar,
    /// Deadlines that have passed, and that were made.
    passed: AtomicU32,
    made: Uncounted,
    silent: Uncounted,
}

impl Monitor for Loomed {
    type Guard<'a> = MutexGuard<'a, Asked>;
    type Deadline = u32;

    fn new(asked: Asked) -> Self {
        Self {
            asked: Mutex::new(asked),
            changed: Condvar::new(),
            passed: AtomicU32::new(0),
            made: Uncounted::new(0),
            silent: Uncounted::new(0),
        }
    }

    fn lock(&self) -> Self::Guard<'_> {
        self.asked.lock().unwrap()
    }

    fn wake(&self, changed: &Asked) {
        if !changed.over || self.silent.load(SeqCst) == 0 {
            self.changed.notify_all();
        }
    }

    fn deadline(&self, _: Duration) -> u32 {
        self.made.fetch_add(1, SeqCst) + 1
    }

    fn wait<'a>(&'a self, guard: Self::Guard<'a>, deadline: &u32) -> Option<Self::Guard<'a>> {
        (self.passed.load(Ordering::Relaxed) < *deadline).then(|| self.changed.wait(guard).unwrap())
    }
}

/// The exchange, under the lock of the steps.
#[derive(Debug, Default)]
struct Core {
    moving: bool,
    known: Option<u64>,
    /// Decided: new bytes from this step on.
    commit: Option<u64>,
}

#[derive(Debug)]
struct Scene {
    planted: Planted,
    hangs: bool,
    /// Steps that another rank is ahead: the commit is agreed on for as much later.
    lead: u64,
    desk: Desk<Loomed>,
    hand: Handover<Words>,
    core: Mutex<Core>,
    /// What passes route by: 1 before, 2 after.
    map: AtomicU64,
    slot: UnsafeCell<u64>,
    returns: Mutex<bool>,
    returned: Condvar,
}

// SAFETY: the slot is what the model is about: loom fails at accesses that nothing orders.
#[allow(unsafe_code)]
unsafe impl Sync for Scene {}

impl Scene {
    #[allow(unsafe_code)]
    fn commit(&self, core: &mut Core) {
        if core.commit.take().is_some() {
            // SAFETY: the property under test: nobody else touches the slot now.
            self.slot.with_mut(|slot| unsafe { *slot = 2 });
            self.map.store(2, Ordering::Release);
        }
    }

    #[allow(unsafe_code)]
    fn step(&self, id: u64) {
        assert!(self.hand.begin(id));
        if self.hand.attention() != 0 {
            let mut core = self.core.lock().unwrap();
            if !core.moving || !began_before(core.known, id) {
                core.known = core.known.max(Some(id));
                if core.commit.is_some_and(|step| id >= step) {
                    self.commit(&mut core);
                    drop(core);
                    // In place of the thread's next look.
                    self.desk.0.wake(&self.desk.0.lock());
                }
            }
        }
        let map = self.map.load(Ordering::Acquire);
        // SAFETY: the property under test: nobody writes what a pass reads.
        let found = self.slot.with(|slot| unsafe { *slot });
        assert_eq!(found, map, "step {id} reads other bytes than its map names");
    }
}

/// The scene as a thread holds it; left alone by a panic, in which loom cannot follow what is dropped.
#[derive(Debug)]
struct Held(Option<Arc<Scene>>);

impl Held {
    fn again(&self) -> Self {
        Self(self.0.clone())
    }
}

impl std::ops::Deref for Held {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        self.0.as_ref().expect("held until it is dropped")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::mem::forget(self.0.take());
        }
    }
}

/// Where the exchange of the thread is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Before,
    Armed(u64),
    Decided,
    Over,
}

struct Thread {
    scene: Held,
    stage: Stage,
}

impl Thread {
    fn over(&mut self) {
        let mut core = self.scene.core.lock().unwrap();
        *core = Core { known: core.known, ..Core::default() };
        self.scene.hand.clear(EXCHANGE);
        drop(core);
        self.stage = Stage::Over;
        drop(self.scene.desk.on(Event::Ended));
    }

    fn begin(&mut self) {
        drop(self.scene.desk.on(Event::Begin));
        let mut core = self.scene.core.lock().unwrap();
        core.known = self.scene.hand.raise(EXCHANGE);
        core.moving = true;
        self.stage = Stage::Armed(core.known.map_or(0, |last| last + 1) + self.scene.lead);
        drop(core);
        if !self.scene.desk.state().is_exchanging() {
            self.over();
        }
    }

    /// Whether the decided commit is applied.
    fn commit_at_rest(&self) -> bool {
        let scene = &self.scene;
        let early = scene.desk.host_is_quiet();
        let mut returns = scene.returns.lock().unwrap();
        while scene.hangs && !*returns {
            returns = scene.returned.wait(returns).unwrap();
        }
        drop(returns);
        let mut core = scene.core.lock().unwrap();
        let quiet = match scene.planted {
            Planted::WaitsForStep => false,
            Planted::LooksEarly => early,
            _ => scene.desk.host_is_quiet(),
        };
        if quiet {
            scene.commit(&mut core);
        }
        core.commit.is_none()
    }

    /// Until something has changed that the next look can see.
    fn rest(&self) {
        let Scene { desk, map, planted, .. } = &*self.scene;
        let looks = *planted != Planted::WaitsForStep;
        let mut asked = desk.0.lock();
        let there = |asked: &Asked| {
            !asked.orders.is_empty()
                || *asked.machine.state() == State::Stopped
                || self.stage == Stage::Decided
                    && (map.load(Ordering::Acquire) == 2 || looks && asked.machine.has_wish())
        };
        while !there(&asked) {
            asked = desk.0.changed.wait(asked).unwrap();
        }
    }
}

impl Worker for Thread {
    fn obey(&mut self, order: Order) {
        // What is decided cannot be called off any more.
        if let (Order::Cancel(_), Stage::Armed(_)) = (order, self.stage) {
            self.over();
        }
    }

    fn turn(&mut self) {
        match self.stage {
            Stage::Before => self.begin(),
            Stage::Armed(step) => {
                self.scene.core.lock().unwrap().commit = Some(step);
                self.stage = Stage::Decided;
                let at = Event::Phase { phase: Phase::Committing, wave: 0, agreed: Some(step) };
                drop(self.scene.desk.on(at));
            }
            Stage::Decided if self.commit_at_rest() => self.over(),
            Stage::Decided | Stage::Over => self.rest(),
        }
    }
}

/// Tries all orders up to some switches of threads; how many there were, and how many ended with the old map, the new one, and too late.
fn explore(planted: Planted, time: Time, switches: usize) -> [usize; 4] {
    let found = std::sync::Arc::new(std::array::from_fn::<_, 4, _>(|_| AtomicUsize::new(0)));
    for (steps, lead) in (0..=STEPS).flat_map(|steps| [(steps, 0), (steps, 1)]) {
        let found = found.clone();
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(switches);
        model.max_branches = 20_000;
        model.check(move || {
            let machine = if planted == Planted::Forgets { Machine::forgetful() } else { Machine::new() };
            let desk = Desk(Loomed::new(Asked::new(machine)));
            desk.0.silent.store(u32::from(planted == Planted::EndsSilently), SeqCst);
            let scene = Held(Some(Arc::new(Scene {
                planted,
                lead,
                hangs: time == Time::AndHangs,
                desk,
                hand: Handover::default(),
                core: Mutex::new(Core::default()),
                map: AtomicU64::new(1),
                slot: UnsafeCell::new(1),
                returns: Mutex::new(false),
                returned: Condvar::new(),
            })));
            let own = scene.again();
            let thread = thread::spawn(move || {
                let mut thread = Thread { scene: own.again(), stage: Stage::Before };
                own.desk.work(&mut thread);
                // As an exchange that is abandoned.
                thread.over();
                own.desk.finish();
            });
            let clock = (time != Time::Never).then(|| {
                let own = scene.again();
                thread::spawn(move || {
                    for passed in 1..=2 {
                        let asked = own.desk.0.lock();
                        own.desk.0.passed.store(passed, Ordering::Relaxed);
                        own.desk.0.changed.notify_all();
                        drop(asked);
                    }
                })
            });
            (0..steps).for_each(|id| scene.step(id));
            drop(scene.desk.on(Event::Stop));
            let in_time = scene.desk.end(Duration::from_secs(1), drop);
            assert_eq!(scene.desk.state(), State::Stopped);
            *scene.returns.lock().unwrap() = true;
            scene.returned.notify_all();
            scene.step(steps);
            thread.join().unwrap();
            if let Some(clock) = clock {
                clock.join().unwrap();
            }
            scene.step(steps + 1);
            let map = scene.map.load(Ordering::Acquire) as usize;
            for at in [0, map].into_iter().chain((!in_time).then_some(3)) {
                found[at].fetch_add(1, SeqCst);
            }
        });
    }
    std::array::from_fn(|at| found[at].load(SeqCst))
}

/// One forced switch of threads more where all faults are wanted.
fn switches(few: usize) -> usize {
    few + usize::from(std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all"))
}

#[test]
fn an_orderly_end_comes_without_a_deadline() {
    let [all, old, new, late] = explore(Planted::Nothing, Time::Never, switches(3));
    println!("{all} orders: {old} with the old map, {new} with the new one");
    assert!(old > 0 && new > 0 && late == 0, "{all} orders did not meet both maps");
}

#[test]
fn the_end_comes_whenever_deadlines_pass() {
    for time in [Time::Whenever, Time::AndHangs] {
        let [all, old, new, late] = explore(Planted::Nothing, time, switches(2));
        println!("{time:?}: {all} orders: {old} with the old map, {new} with the new one, {late} too late");
        assert!(old > 0 && new > 0 && late > 0, "{time:?}: {all} orders did not meet all ends");
    }
}

#[test]
fn planted_faults_are_found() {
    for (planted, time) in [
        (Planted::EndsSilently, Time::Never),
        (Planted::Forgets, Time::Never),
        (Planted::WaitsForStep, Time::Never),
        (Planted::LooksEarly, Time::AndHangs),
    ] {
        let found = catch_unwind(AssertUnwindSafe(|| explore(planted, time, 2)));
        assert!(found.is_err(), "{planted:?} was not found");
    }
}
