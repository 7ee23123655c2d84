//! The forward path: what a step costs, and what it commits.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Engine;
use super::shared::{BARRED, EXCHANGE, PUBLISH, Shared, lock};
use crate::error::EngineError;

impl Engine {
    /// To be called before each forward pass, by one thread at a time, with ids that rise strictly and are the same on all
    /// ranks. The maps of [`Engine::maps`] are then those of this pass, until the next call.
    ///
    /// While nothing moves it is an exchange and a load of two words. While experts move, drained slots and commits that are due
    /// take effect here; the only wait is the one for a decision at the agreed step (`exchange.commit_hold`), and it is counted.
    ///
    /// # Errors
    /// The pass must not run: the id does not rise, or [`EngineError::Undecided`] or [`EngineError::Broken`], after
    /// which no pass may run until [`Engine::reform`].
    #[inline]
    pub fn step(&self, id: u64) -> Result<(), EngineError> {
        let shared = &*self.shared;
        let before = shared.next_step.load(Ordering::Relaxed);
        if id < before || id == u64::MAX {
            return Err(EngineError::StepOrder { rank: shared.rank, step: id, last: before.wrapping_sub(1) });
        }
        shared.next_step.store(id + 1, Ordering::SeqCst);
        if shared.attention.load(Ordering::SeqCst) == 0 {
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
        if self.shared.attention.load(Ordering::SeqCst) & !BARRED == 0 {
            return Ok(());
        }
        self.shared.slow_tick()
    }
}

impl Shared {
    #[cold]
    fn slow_step(&self, id: u64) -> Result<(), EngineError> {
        let start = Instant::now();
        let result = self.boundary(Some(id));
        self.meters.stall(start.elapsed());
        if let Err(error) = &result {
            if matches!(error, EngineError::Undecided { .. } | EngineError::Broken { .. }) {
                self.raise(BARRED);
            }
            self.fail(error.to_string());
        }
        result
    }

    #[cold]
    fn slow_tick(&self) -> Result<(), EngineError> {
        self.boundary(None)
    }

    /// A step boundary, before step `id` or while the rank is idle.
    fn boundary(&self, id: Option<u64>) -> Result<(), EngineError> {
        let mut core = lock(&self.core);
        let core = &mut *core;
        let first_step = id.unwrap_or_else(|| self.next_step.load(Ordering::SeqCst));
        for (at, lane) in core.lanes.iter_mut().enumerate() {
            match id {
                // The exchange began after this step's id was known and before this: to it the step has begun, with the maps
                // that are in force.
                Some(id) if core.moving == Some(at) && lane.driver.last_step() >= Some(id) => continue,
                Some(id) => lane.driver.step(id)?,
                None => lane.driver.tick()?,
            }
            self.publish(at, lane, first_step)?;
        }
        if core.moving.is_none() {
            self.clear(EXCHANGE | PUBLISH);
        }
        let held: std::time::Duration = core.lanes.iter().map(|lane| lane.driver.held().time).sum();
        self.meters.held(held);
        Ok(())
    }
}
