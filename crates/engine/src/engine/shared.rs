//! What the host's threads and the progress thread of one engine share.
//!
//! How a step and an exchange that begins see each other: [`handover`](super::handover).

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eplb_comm::{Bulletin, Communicator, Launcher};
use eplb_core::{ModelLayout, Placement, RankId, Topology};
use eplb_cuda::Context;
use eplb_exchange::Limits;
use eplb_plan::Options;
use ndarray::Array2;

use super::config::EngineConfig;
use super::desk::{Change, Desk};
use super::device::{DeviceAhead, Given, Ready};
use super::device_counts::DeviceCounts;
use super::handover::Handover;
use super::maps::{History, Wanted, make};
use super::meters::Meters;
use super::record::Counters;
use super::report::Report;
use super::slots::Slots;
use super::state::{Event, Misfit, State};
use super::stream::Hooked;
use super::window::Window;
use crate::deadlines::Deadlines;
use crate::driver::Driver;
use crate::error::EngineError;

/// An exchange is under way.
pub(super) const EXCHANGE: u32 = 1;
/// Maps wait to be published at the next boundary.
pub(super) const PUBLISH: u32 = 2;
/// No step may run.
pub(super) const BARRED: u32 = 4;

/// One layer set: what does not change, and what has its own synchronisation.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) topology: Arc<Topology>,
    pub(super) experts: usize,
    /// `C`.
    pub(super) columns: usize,
    pub(super) layout: Arc<ModelLayout>,
    pub(super) memory: Slots,
    /// Their maps on the device, and what steps will need there, where they lie on one.
    pub(super) device: Option<DeviceAhead>,
    /// What is counted there.
    pub(super) device_counts: Option<DeviceCounts>,
    pub(super) limits: Limits,
    pub(super) options: Options,
    pub(super) start: Placement,
    pub(super) history: History,
    pub(super) counters: Counters,
    pub(super) report: Mutex<Option<Report>>,
    /// Filled on the leading rank.
    pub(super) window: Mutex<Window>,
}

impl Set {
    pub(super) fn layers(&self) -> usize {
        self.layout.layers()
    }

    /// The context of its device, where it lies on one.
    pub(super) fn device_context(&self) -> Option<Arc<Context>> {
        match &self.memory {
            Slots::Device(memory) => Some(memory.context().clone()),
            Slots::Host(_) => None,
        }
    }

    /// Bytes of slots and staging on this rank.
    pub(super) fn memory_bytes(&self) -> u64 {
        let layers =
            (0..self.layers()).map(|layer| self.layout.layer(eplb_core::LayerId::at(layer)).expert_bytes());
        (layers.sum::<usize>() * self.memory.range().len() + self.limits.staging_bytes) as u64
    }
}

/// What belongs to a layer set and is worked on by steps and the progress thread in turn.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) driver: Driver<Hooked>,
    pub(super) communicator: Option<Box<dyn Communicator>>,
    /// Where the ranks of the communicator made last say something to each other at once: kept when that is closed, to say so.
    pub(super) bulletin: Option<Arc<dyn Bulletin>>,
    /// What launches its waves, where steps do.
    pub(super) launcher: Option<Arc<dyn Launcher>>,
    /// Longest call of it in this round.
    pub(super) launch: Duration,
    /// The entries of `phy2log` that were published last.
    pub(super) published: Arc<Array2<i32>>,
    pub(super) wanted: Option<Wanted>,
    /// Maps that steps will need soon, made off the forward path.
    pub(super) ready: Vec<Ready>,
    /// Shares have changed, and wait to be published.
    pub(super) reshared: bool,
    /// Waves committed since the start of the run.
    pub(super) version: u64,
}

/// Everything behind the one lock that a step may wait for, for as long as a look of the progress thread takes.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) lanes: Vec<Lane>,
    /// The layer set whose experts move.
    pub(super) moving: Option<usize>,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: EngineConfig,
    pub(super) deadlines: Deadlines,
    pub(super) rank: RankId,
    pub(super) world_size: usize,
    pub(super) sets: Vec<Set>,
    pub(super) hand: Handover,
    /// Demands for a round so far.
    pub(super) demands: AtomicU64,
    pub(super) core: Mutex<Core>,
    pub(super) desk: Desk,
    /// Streams that the server gave last.
    pub(super) given: Given,
    pub(super) meters: Meters,
}

/// Locks a mutex that only guards whole values: no panic leaves them half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        config: EngineConfig,
        deadlines: Deadlines,
        (rank, world_size): (RankId, usize),
        sets: Vec<Set>,
        lanes: Vec<Lane>,
    ) -> Self {
        Self {
            config,
            deadlines,
            rank,
            world_size,
            sets,
            hand: Handover::default(),
            demands: AtomicU64::new(0),
            core: Mutex::new(Core { lanes, moving: None }),
            desk: Desk::new(),
            given: Given::default(),
            meters: Meters::default(),
        }
    }

    /// The last step begun.
    pub(super) fn last_step(&self) -> Option<u64> {
        self.hand.last_step()
    }

    /// Asks for attention; the last step that had begun before.
    pub(super) fn raise(&self, bits: u32) -> Option<u64> {
        self.hand.raise(bits)
    }

    pub(super) fn clear(&self, bits: u32) {
        self.hand.clear(bits);
    }

    /// Takes in an event; orders go to the progress thread.
    pub(super) fn on(&self, event: Event) -> Result<(), Misfit> {
        self.desk.on(event).map(|change| self.tell(change))
    }

    /// Tells logs and metrics of a change of state.
    pub(super) fn tell(&self, change: Option<Change>) {
        if let Some(Change { from, to, spent }) = change {
            tracing::debug!(rank = self.rank.0, %from, %to, "state");
            self.meters.spend(&from, spent);
        }
    }

    /// Where the engine is.
    pub(super) fn state(&self) -> State {
        self.desk.state()
    }

    /// Something cannot go on.
    pub(super) fn fail(&self, cause: String) {
        tracing::error!(rank = self.rank.0, cause, "the engine failed");
        self.meters.error(&cause);
        self.tell(self.desk.fail(cause));
    }

    /// Something is left, because the host wants something else.
    pub(super) fn leave(&self, why: String) {
        tracing::debug!(rank = self.rank.0, why, "left");
        self.tell(self.desk.fail(why));
    }

    /// A round has ended.
    pub(super) fn end_round(&self, report: Report) {
        self.meters.round(&report);
        let set = &self.sets[report.set.0];
        *lock(&set.report) = Some(report);
        self.desk.end_round();
    }

    /// The progress thread ends.
    pub(super) fn finish(&self) {
        self.tell(self.desk.finish());
    }

    /// The progress thread has ended by a panic.
    pub(super) fn collapse(&self, cause: &str) {
        self.tell(self.desk.collapse(cause));
    }

    /// Publishes the maps of a layer set if they have changed, for steps from `first_step` on. For boundaries only.
    pub(super) fn publish(&self, at: usize, lane: &mut Lane, first_step: u64) -> Result<(), EngineError> {
        let map = &lane.driver.phy2log().clone();
        if Arc::ptr_eq(map, &lane.published) && !lane.reshared {
            return Ok(());
        }
        let set = &self.sets[at];
        if *map != lane.published || lane.reshared {
            let Ready { maps, upload } = match lane.ready.iter().position(|ready| ready.maps.phy2log == **map)
            {
                Some(at) => lane.ready.swap_remove(at),
                None => {
                    let wanted = lane.wanted.as_ref().map(|wanted| (wanted, set.topology.as_ref()));
                    Ready { maps: make(map, set.experts, set.columns, wanted)?, upload: None }
                }
            };
            // The device first: if it refuses, no pass runs, and the next boundary tries again.
            if let Err(error) = lane.driver.stream().switch(&maps, upload) {
                self.raise(PUBLISH);
                return Err(error.into());
            }
            set.history.publish(maps, first_step);
        }
        lane.published = map.clone();
        lane.reshared = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::state::Order;

    #[test]
    fn a_failure_of_what_the_host_leaves_is_not_one_of_what_it_asks_for() {
        let ranks = (RankId(0), 2);
        let shared = Shared::new(EngineConfig::default(), Deadlines::new(), ranks, Vec::new(), Vec::new());
        shared.fail("the first".into());
        assert_eq!(shared.state(), State::Failed { cause: "the first".into() });
        shared.on(Event::Reform).unwrap();
        // The progress thread was still looking at the epoch that failed.
        shared.fail("the same once more".into());
        assert_eq!(shared.state(), State::Reforming);
        assert_eq!(shared.desk.take_orders(), [Order::Reform]);
        shared.fail("no epoch was formed".into());
        assert_eq!(shared.state(), State::Failed { cause: "no epoch was formed".into() });
    }

    #[test]
    fn a_reform_is_over_when_the_epoch_is_formed_whatever_becomes_of_it() {
        let ranks = (RankId(0), 2);
        let shared = Shared::new(EngineConfig::default(), Deadlines::new(), ranks, Vec::new(), Vec::new());
        let formed = |before: u64| shared.desk.wait(Duration::from_millis(1), |view| view.formed > before);
        let (before, _) = shared.desk.reform().unwrap();
        assert_eq!((formed(before), shared.desk.take_orders()), (None, vec![Order::Reform]));
        // The next round is under way, and fails, before the host looks.
        for event in [Event::Formed, Event::Begin] {
            shared.on(event).unwrap();
        }
        assert_eq!(formed(before), Some(State::Agreeing));
        shared.fail("a round".into());
        assert_eq!(formed(before), Some(State::Failed { cause: "a round".into() }));
        let (again, _) = shared.desk.reform().unwrap();
        assert_eq!(formed(again), None, "that was the one before");
    }

    #[test]
    fn nobody_waits_for_a_thread_that_has_panicked() {
        let ranks = (RankId(0), 2);
        let shared = Shared::new(EngineConfig::default(), Deadlines::new(), ranks, Vec::new(), Vec::new());
        shared.on(Event::Reform).unwrap();
        assert_eq!(shared.desk.take_orders(), [Order::Reform]);
        // While it carries that out.
        shared.collapse("it panicked");
        let failed = State::Failed { cause: "it panicked".into() };
        let ended = shared.desk.wait(Duration::from_secs(60), |view| !view.busy && view.over);
        assert_eq!(ended, Some(failed.clone()));
        for event in [Event::Reform, Event::Quiesce, Event::Pause, Event::Formed] {
            assert_eq!(shared.on(event.clone()).unwrap_err().state, failed, "{event:?}");
        }
        shared.fail("a step".into());
        assert_eq!(shared.state(), failed);
        shared.on(Event::Stop).unwrap();
        assert!(shared.desk.end(Duration::from_secs(60), |_| ()));
        assert_eq!(
            (shared.state(), shared.desk.panicked().as_deref()),
            (State::Stopped, Some("it panicked"))
        );
    }
}
