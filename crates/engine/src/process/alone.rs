//! A rank that is alone: nothing to agree on, nobody to talk to. No store, no communicator, no thread, no socket.

use std::sync::Arc;

use eplb_comm::host::{self, HostMemory};
use eplb_comm::{Memory, Place};
use eplb_core::{ExpertId, Fill, LayerId, ModelLayout, Placement, RankId, SlotId, Topology};
use eplb_exchange::{ExchangePlan, Limits, Totals};
use ndarray::Array2;

use super::transport::Source;
use crate::cluster::Verify;
use crate::error::EngineError;

/// The only rank of its group, with its weights. Everything happens on the caller's thread, between two steps of its.
#[derive(Debug)]
pub struct Alone {
    topology: Topology,
    memory: Arc<HostMemory>,
    limits: Limits,
    placement: Placement,
}

impl Alone {
    /// The rank with a placement in force, its slots filled from `source`.
    ///
    /// # Errors
    /// A topology of more than one rank, no memory, or an expert that cannot be had.
    pub fn start(
        topology: &Topology,
        layout: Arc<ModelLayout>,
        placement: Placement,
        limits: Limits,
        source: &dyn Source,
    ) -> Result<Self, EngineError> {
        if topology.ranks() != 1 {
            return Err(EngineError::Options(format!("{} ranks are not alone", topology.ranks())));
        }
        placement.fits(topology)?;
        let memory = HostMemory::new(RankId(0), layout, 0..topology.slots(), limits.staging_bytes)?;
        for layer in (0..placement.layers()).map(LayerId::at) {
            for slot in memory.slots().map(SlotId::at) {
                if let Some(expert) = placement.expert_at(layer, slot) {
                    source.fill(&memory, layer, slot, expert)?;
                }
            }
        }
        Ok(Self { topology: topology.clone(), memory, limits, placement })
    }

    /// The placement in force.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The rank's slots and staging.
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// Copies experts between slots until the placement is `new`. Returns the number of waves and what they add up to.
    ///
    /// # Errors
    /// The exchange cannot be planned, or a slot is in use.
    pub fn rebalance(
        &mut self,
        new: &Placement,
        loads: &Array2<f64>,
    ) -> Result<(usize, Totals), EngineError> {
        let layout = self.memory.layout().clone();
        let plan = ExchangePlan::new(
            &self.placement,
            new,
            &self.topology,
            &layout,
            Some(loads.view()),
            &self.limits,
        )?;
        for (number, wave) in plan.waves().iter().enumerate() {
            for transfer in &wave.transfers {
                self.copy(Place::source(transfer), Place::landing(transfer), transfer.expert)?;
            }
            for commit in &wave.commits {
                let to = Place::slot(commit.layer, commit.slot);
                match commit.fill {
                    Fill::Staged { expert, offset } => {
                        self.copy(Place::staged(commit.layer, offset), to, expert)?;
                    }
                    Fill::FromSlot { expert, slot } => {
                        self.copy(Place::slot(commit.layer, slot), to, expert)?;
                    }
                    Fill::InPlace(_) | Fill::Empty => {}
                }
            }
            self.placement = Placement::with_missing(new.experts(), plan.phy2log_after(number + 1))?;
        }
        Ok((plan.waves().len(), *plan.totals()))
    }

    fn copy(&self, from: Place, to: Place, expert: ExpertId) -> Result<(), EngineError> {
        if from != to {
            let source = self.memory.read(from)?;
            host::copy(&source, &mut self.memory.write(to)?, expert)?;
        }
        Ok(())
    }

    /// Checks the bytes of every slot that the placement names; how many are wrong.
    ///
    /// # Errors
    /// A slot that cannot be read.
    pub fn check(&self, verify: Verify) -> Result<u64, EngineError> {
        let mut wrong = 0;
        for layer in (0..self.placement.layers()).map(LayerId::at) {
            for slot in self.memory.slots().map(SlotId::at) {
                let Some(expert) = self.placement.expert_at(layer, slot) else { continue };
                wrong += match verify {
                    Verify::Off => 0,
                    Verify::Sampled => self.memory.sample_wrong(layer, slot, expert, 4, u64::from(slot.0))?,
                    Verify::Full => self.memory.count_wrong(layer, slot, expert)?,
                };
            }
        }
        Ok(wrong)
    }
}
