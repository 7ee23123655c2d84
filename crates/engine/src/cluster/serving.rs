//! A rank that serves steps on host memory, moves experts meanwhile, and checks its bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::HostMemory;
use eplb_comm::{CommError, Fence, Memory};
use eplb_core::{ExpertId, LayerId, RankId, SlotId, Topology};
use eplb_exchange::ExchangePlan;

use super::hooks::ServingStream;
use super::lockstep::Route;
use super::serve::{Findings, forward};
use super::{Settings, Verify};
use crate::driver::{Driver, Ended};
use crate::error::EngineError;

/// What one rank serves with.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) rank: RankId,
    pub(crate) topology: Arc<Topology>,
    pub(crate) memory: Arc<HostMemory>,
    pub(crate) driver: Driver<Box<dyn ServingStream>>,
    pub(crate) findings: Arc<Findings>,
    pub(crate) settings: Settings,
}

impl Serving {
    /// Enqueues the forward pass of a step on the rank's stream.
    pub(crate) fn enqueue(&mut self, step: u64, routes: Vec<Route>) -> Fence {
        let findings = self.findings.clone();
        let pause = self.settings.step_time;
        self.driver.stream().run(Box::new(move |memory| {
            forward(memory, step, &routes, &findings);
            if !pause.is_zero() {
                // What held when the step began must hold when it ends.
                std::thread::sleep(pause);
                forward(memory, step, &routes, &findings);
            }
            Ok(())
        }))
    }

    /// Goes on with the exchange, and checks what it has committed.
    pub(crate) fn advance(
        &mut self,
        plan: &ExchangePlan,
        ended: &mut Option<Ended>,
    ) -> Result<(), EngineError> {
        let end = self.driver.progress()?;
        for wave in self.driver.take_committed() {
            self.check_wave(plan, wave)?;
        }
        if end.is_some() {
            *ended = end;
        }
        Ok(())
    }

    /// Waits for a step to end on the device, and goes on with the exchange meanwhile.
    pub(crate) fn wait(
        &mut self,
        fence: &Fence,
        plan: &ExchangePlan,
        ended: &mut Option<Ended>,
    ) -> Result<(), EngineError> {
        let deadline = Instant::now() + self.settings.step_timeout;
        while !fence.poll()? {
            if Instant::now() > deadline {
                let waited = self.settings.step_timeout;
                let what = "the end of a step on the device".into();
                return Err(CommError::Timeout { rank: self.rank, what, waited }.into());
            }
            self.advance(plan, ended)?;
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    /// Checks the bytes of this rank's slots that a wave has just changed.
    fn check_wave(&mut self, plan: &ExchangePlan, wave: usize) -> Result<(), EngineError> {
        for commit in &plan.waves()[wave].commits {
            if self.topology.rank_of(commit.slot) == self.rank
                && let Some(expert) = commit.fill.expert()
            {
                self.findings.bytes(self.wrong(commit.layer, commit.slot, expert)?);
                self.driver.renew();
            }
        }
        Ok(())
    }

    fn wrong(&self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<u64, EngineError> {
        Ok(match self.settings.verify {
            Verify::Off => 0,
            Verify::Sampled => self.memory.sample_wrong(layer, slot, expert, 4, u64::from(slot.0))?,
            Verify::Full => self.memory.count_wrong(layer, slot, expert)?,
        })
    }

    /// Checks the bytes of every slot of this rank that the map in force names; how many are wrong.
    pub(crate) fn check_all(&self) -> Result<u64, EngineError> {
        let mut bytes_wrong = 0;
        let map = self.driver.phy2log();
        for layer in 0..map.nrows() {
            for slot in self.memory.slots() {
                if let Ok(expert) = u32::try_from(map[(layer, slot)]) {
                    bytes_wrong += self.wrong(LayerId::at(layer), SlotId::at(slot), ExpertId(expert))?;
                }
            }
        }
        Ok(bytes_wrong)
    }
}
