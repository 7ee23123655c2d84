//! Waves that fail now and then, after a part of them was carried.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use eplb_comm::Communicator;
use eplb_comm::fault::{Faults, FaultyCommunicator, Strike};
use eplb_comm::host::HostMemory;
use eplb_core::{ModelLayout, RankId};
use eplb_cuda::DeviceMemory;
use eplb_engine::EngineError;
use eplb_engine::machine::Reason;
use eplb_engine::process::{Meeting, Transport};

/// A transport whose communicators each fail a wave with some chance, seeded by their number.
#[derive(Debug)]
pub(crate) struct Stormy {
    inner: Arc<dyn Transport>,
    made: AtomicU64,
    chance: f64,
    refuses: AtomicBool,
}

impl Stormy {
    /// Around another.
    pub(crate) fn around(inner: Arc<dyn Transport>, chance: f64) -> Arc<Self> {
        Arc::new(Self { inner, made: AtomicU64::new(1), chance, refuses: AtomicBool::new(false) })
    }

    /// From now on no communicator is made.
    #[cfg_attr(not(test), allow(dead_code, reason = "for the tests that share this module"))]
    pub(crate) fn refuse(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }

    fn wrap(&self, inner: Box<dyn Communicator>) -> Result<Box<dyn Communicator>, EngineError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(EngineError::Backend { backend: self.name(), detail: "the test says so".into() });
        }
        let seed = self.made.fetch_add(1, Ordering::SeqCst);
        let faults = Faults { seed, fail: Strike::Chance(self.chance), ..Faults::default() };
        Ok(Box::new(FaultyCommunicator::around(inner, faults)))
    }
}

impl Transport for Stormy {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn overlaps(&self) -> bool {
        self.inner.overlaps()
    }

    fn launches_in_steps(&self) -> bool {
        self.inner.launches_in_steps()
    }

    fn reasons(&self) -> Vec<Reason> {
        self.inner.reasons()
    }

    fn memory(
        &self,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<HostMemory>, EngineError> {
        self.inner.memory(rank, layout, slots, staging_bytes)
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        self.wrap(self.inner.connect(meeting)?)
    }

    fn connect_device(
        &self,
        meeting: Meeting<Arc<DeviceMemory>>,
    ) -> Result<Box<dyn Communicator>, EngineError> {
        self.wrap(self.inner.connect_device(meeting)?)
    }
}
