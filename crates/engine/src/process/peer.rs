//! The `peer` backend, as ranks that are processes of one host use it on host memory.

use std::ops::Range;
use std::sync::Arc;

use eplb_comm::Communicator;
use eplb_comm::host::HostMemory;
use eplb_comm_peer::HOST_BACKEND;
use eplb_core::{ModelLayout, RankId};

use super::transport::{Meeting, Transport};
use crate::error::EngineError;

/// Communicators that pull from memory which the processes of one host share: the host twin of copy engines.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerTransport;

impl PeerTransport {
    /// Whether this machine lets processes share memory: tried out with a copy that is compared.
    ///
    /// # Errors
    /// What it does not let them do.
    pub fn try_out() -> Result<(), String> {
        #[cfg(target_os = "linux")]
        return eplb_comm_peer::process::try_host().map_err(|error| error.to_string());
        #[cfg(not(target_os = "linux"))]
        return Err("memory is shared between processes on Linux only".into());
    }
}

impl Transport for PeerTransport {
    fn name(&self) -> &'static str {
        HOST_BACKEND
    }

    fn memory(
        &self,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<HostMemory>, EngineError> {
        #[cfg(target_os = "linux")]
        let memory = HostMemory::shared(rank, layout, slots, staging_bytes)?;
        #[cfg(not(target_os = "linux"))]
        let memory = HostMemory::new(rank, layout, slots, staging_bytes)?;
        Ok(memory)
    }

    #[cfg(target_os = "linux")]
    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let Meeting { rank, world_size, store, memory, deadline } = meeting;
        let host = super::hosts::HostId::here().name().to_owned();
        let meeting = eplb_comm_peer::process::Meeting { rank, world_size, store, host, deadline };
        match eplb_comm_peer::process::join_host(&meeting, memory, &Default::default()) {
            Ok(communicator) => Ok(Box::new(communicator)),
            Err(error) => Err(EngineError::Backend { backend: HOST_BACKEND, detail: error.to_string() }),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn connect(&self, _meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let detail = "memory is shared between processes on Linux only".into();
        Err(EngineError::Backend { backend: HOST_BACKEND, detail })
    }
}
