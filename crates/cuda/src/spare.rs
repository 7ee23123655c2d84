//! Room for what travels to the device ahead of its use, taken at start-up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eplb_comm::FenceState;
use eplb_core::RankId;

use crate::context::Context;
use crate::error::CudaError;
use crate::event::CudaFence;
use crate::pool::{DeviceBlock, PinnedBlock};

/// A block of the host and one of the device, of one size.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) host: PinnedBlock,
    pub(crate) device: DeviceBlock,
    /// Behind the last use of either.
    pub(crate) used: Option<Arc<CudaFence>>,
}

/// Spares that are in nobody's hands; their last use may still be under way.
#[derive(Debug)]
pub(crate) struct Spares(Mutex<Vec<Spare>>);

impl Spares {
    /// Takes `count` spares of `bytes` bytes.
    pub(crate) fn new(context: &Arc<Context>, count: usize, bytes: usize) -> Result<Self, CudaError> {
        let spare = || -> Result<Spare, CudaError> {
            let (host, device) = (PinnedBlock::new(context, bytes)?, DeviceBlock::new(context, bytes)?);
            Ok(Spare { host, device, used: None })
        };
        Ok(Self(Mutex::new((0..count).map(|_| spare()).collect::<Result<_, _>>()?)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that nothing uses any more.
    pub(crate) fn take(&self) -> Result<Option<Spare>, CudaError> {
        let mut spares = self.lock();
        for at in 0..spares.len() {
            let free = match &spares[at].used {
                Some(fence) => fence.poll()?,
                None => true,
            };
            if free {
                return Ok(Some(spares.remove(at)));
            }
        }
        Ok(None)
    }

    /// Gives one back, used until its fence.
    pub(crate) fn put(&self, spare: Spare) {
        self.lock().push(spare);
    }

    /// Waits for the last uses of all that are here: they go with this.
    pub(crate) fn settle(&self, rank: RankId, what: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        for fence in self.lock().iter().filter_map(|spare| spare.used.as_ref()) {
            // A device that is lost uses nothing any more.
            let _ = fence.fence().wait(rank, what, deadline);
        }
    }
}
