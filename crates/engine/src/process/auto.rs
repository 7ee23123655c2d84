//! The backend that fits best, found out when ranks meet.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eplb_comm::Communicator;
use eplb_comm::host::HostMemory;
use eplb_comm::store::PrefixStore;
use eplb_comm_peer::HOST_BACKEND;
use eplb_core::{ModelLayout, RankId};

use super::gloo::GlooTransport;
use super::peer::PeerTransport;
use super::transport::{Meeting, Transport};
use crate::error::EngineError;
use crate::machine::Reason;

/// Longest time that is spent on the first backend before the next is tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// Memory that processes share, where all ranks can open it; else Gloo. A meeting over shared memory has one outcome for all ranks, so that all
/// go the same way.
#[derive(Debug)]
pub struct AutoTransport {
    gloo: Result<GlooTransport, String>,
    reasons: Mutex<Vec<Reason>>,
}

impl AutoTransport {
    /// With Gloo as what is left, or why it is not there.
    pub fn new(gloo: Result<GlooTransport, EngineError>) -> Self {
        Self { gloo: gloo.map_err(|error| error.to_string()), reasons: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Reason>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was looked at in the last meeting and why, what was taken last; empty before.
    pub fn reasons(&self) -> Vec<Reason> {
        self.lock().clone()
    }
}

impl Transport for AutoTransport {
    fn name(&self) -> &'static str {
        "auto"
    }

    fn memory(
        &self,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<HostMemory>, EngineError> {
        let shared = PeerTransport.memory(rank, layout.clone(), slots.clone(), staging_bytes);
        // Gloo takes any memory; that this one cannot be shared, the meeting will say.
        shared.or_else(|_| Ok(HostMemory::new(rank, layout, slots, staging_bytes)?))
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let corner = |name: &str| -> Result<Arc<PrefixStore>, EngineError> {
            Ok(Arc::new(PrefixStore::new(meeting.store.clone(), name)?))
        };
        let now = Instant::now();
        let patience = (meeting.deadline.saturating_duration_since(now) / 2).min(PATIENCE);
        let first = Meeting {
            rank: meeting.rank,
            world_size: meeting.world_size,
            store: corner("peer")?,
            memory: meeting.memory.clone(),
            deadline: now + patience,
        };
        let passed = match PeerTransport.connect(first) {
            Ok(communicator) => {
                let why = "all ranks opened each other's memory".into();
                *self.lock() = vec![Reason { backend: HOST_BACKEND, why }];
                return Ok(communicator);
            }
            Err(EngineError::Backend { detail, .. }) => detail,
            Err(error) => error.to_string(),
        };
        let passed = Reason { backend: HOST_BACKEND, why: passed };
        let gloo = match &self.gloo {
            Ok(gloo) => gloo,
            Err(why) => {
                let detail = format!("{}; and there is no gloo: {why}", passed.why);
                return Err(EngineError::Backend { backend: HOST_BACKEND, detail });
            }
        };
        let store = corner("gloo")?;
        let communicator = gloo.connect(Meeting { store, ..meeting })?;
        *self.lock() = vec![passed, Reason { backend: gloo.name(), why: "TCP on host memory".into() }];
        Ok(communicator)
    }
}
