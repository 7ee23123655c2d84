//! The forward path: what a step costs, and what it commits.

use std::time::Instant;

use super::Engine;
use super::handover::began_before;
use super::shared::{BARRED, EXCHANGE, Lane, PUBLISH, Shared, lock};
use crate::error::EngineError;

/// Streams that a server has vouched for.
#[derive(Debug, Clone, Copy)]
struct Streams<'a>(&'a [u64]);

impl Engine {
    /// To be called before each forward pass, by one thread at a time, with ids that rise strictly and are the same on all
    /// ranks. The maps of [`Engine::maps`] are then those of this pass, until the next call.
    ///
    /// While nothing moves it is an exchange and a load of two words. While experts move, drained slots and commits that are due
    /// take effect here; the only wait is the one for a decision at the agreed step (`exchange.commit_hold`), and it is counted.
    ///
    /// # Errors
    /// The pass must not run: the id does not rise, or [`EngineError::Undecided`], [`EngineError::Broken`] or
    /// [`EngineError::Unformed`], after which no pass may run until an [`Engine::reform`] has succeeded.
    #[inline]
    pub fn step(&self, id: u64) -> Result<(), EngineError> {
        let shared = &*self.shared;
        shared.begin_step(id)?;
        if shared.hand.attention() == 0 {
            return Ok(());
        }
        shared.slow_step(id)
    }

    /// To be called now and then, by the thread that calls [`Engine::step`], while no pass is under way and none is due: an
    /// exchange that waits for a boundary goes on.
    ///
    /// # Errors
    /// Stream or communicator errors.
    #[inline]
    pub fn tick(&self) -> Result<(), EngineError> {
        if self.shared.hand.attention() & !BARRED == 0 {
            return Ok(());
        }
        self.shared.slow_tick()
    }
}

impl Shared {
    /// Takes an id, which must rise.
    #[inline]
    pub(super) fn begin_step(&self, id: u64) -> Result<(), EngineError> {
        match self.hand.begin(id) {
            true => Ok(()),
            false => Err(self.out_of_order(id)),
        }
    }

    #[cold]
    fn out_of_order(&self, id: u64) -> EngineError {
        let last = self.hand.next_step().wrapping_sub(1);
        EngineError::StepOrder { rank: self.rank, step: id, last }
    }

    #[cold]
    fn slow_step(&self, id: u64) -> Result<(), EngineError> {
        self.timed_step(id, None)
    }

    /// # Safety
    /// As for [`Engine::step_on`].
    #[cold]
    #[allow(unsafe_code)]
    pub(super) unsafe fn slow_step_on(&self, id: u64, streams: &[u64]) -> Result<(), EngineError> {
        self.timed_step(id, Some(Streams(streams)))
    }

    fn timed_step(&self, id: u64, streams: Option<Streams<'_>>) -> Result<(), EngineError> {
        let start = Instant::now();
        if streams.is_none() && self.given.is_nothing() && self.is_on_device() {
            let how =
                "step: on which streams does the pass run? Call step_on with them, the first time at least";
            return Err(EngineError::Options(how.into()));
        }
        let span = tracing::trace_span!("boundary", rank = self.rank.0, step = id);
        #[cfg(unix)]
        let _range = eplb_cuda::nvtx::Range::new(c"eplb boundary");
        let result = span.in_scope(|| self.boundary(Some(id), streams));
        self.meters.stall(start.elapsed());
        // A refusal while an epoch is formed says nothing new of the engine.
        if let Err(error) = &result
            && !matches!(error, EngineError::Unformed { .. })
        {
            if matches!(error, EngineError::Undecided { .. } | EngineError::Broken { .. }) {
                self.raise(BARRED);
            }
            self.fail(error.to_string());
        }
        result
    }

    #[cold]
    fn slow_tick(&self) -> Result<(), EngineError> {
        self.boundary(None, None)
    }

    /// Whether the slots lie on a device.
    fn is_on_device(&self) -> bool {
        self.sets.iter().any(|set| set.device.is_some())
    }

    /// Refuses streams where there is no device.
    pub(super) fn check_device(&self) -> Result<(), EngineError> {
        let how =
            "step_on: this engine's slots lie in host memory; call step, or name the device to the builder";
        if self.is_on_device() { Ok(()) } else { Err(EngineError::Options(how.into())) }
    }

    /// Tells a lane on which streams passes run. False: one is captured.
    #[allow(unsafe_code)]
    fn take_streams(&self, lane: &mut Lane, streams: Option<Streams<'_>>) -> Result<bool, EngineError> {
        match (lane.driver.stream().device(), streams) {
            // SAFETY: `Streams` are made by `slow_step_on` alone, whose caller promises what this asks.
            (Some(side), Some(Streams(streams))) => Ok(unsafe { side.streams.give(streams) }?),
            (Some(side), None) => Ok(side.streams.run()?),
            (None, _) => Ok(true),
        }
    }

    /// A step boundary, before step `id` or while the rank is idle.
    fn boundary(&self, id: Option<u64>, streams: Option<Streams<'_>>) -> Result<(), EngineError> {
        let mut core = lock(&self.core);
        let core = &mut *core;
        for lane in &mut core.lanes {
            // A pass that is captured does not run.
            if !self.take_streams(lane, streams)? {
                return Ok(());
            }
        }
        if let Some(Streams(streams)) = streams {
            self.given.set(streams);
        }
        let first_step = id.unwrap_or_else(|| self.hand.next_step());
        // Entered once for all calls of a boundary.
        let context = self.sets.iter().find_map(|set| set.device_context());
        let _entered = context.as_deref().map(eplb_cuda::Context::enter).transpose()?;
        for (at, lane) in core.lanes.iter_mut().enumerate() {
            let passed = match id {
                // The exchange began after this step's id was known and before this: to it the step has begun, with the maps
                // that are in force.
                Some(id) if core.moving == Some(at) && began_before(lane.driver.last_step(), id) => continue,
                Some(id) => lane.driver.step(id),
                None => lane.driver.tick(),
            };
            let published = passed.and_then(|()| self.publish(at, lane, first_step));
            let released = lane.driver.stream().release();
            published?;
            released?;
        }
        if let (Some(id), Some(at)) = (id, core.moving) {
            let lane = &mut core.lanes[at];
            if let Some(launcher) = &lane.launcher {
                let spent = launcher.step(id);
                lane.launch = lane.launch.max(spent);
                self.meters.launched(spent);
            }
        }
        if core.moving.is_none() {
            self.clear(EXCHANGE | PUBLISH);
        }
        let held: std::time::Duration = core.lanes.iter().map(|lane| lane.driver.held().time).sum();
        self.meters.held(held);
        Ok(())
    }
}
