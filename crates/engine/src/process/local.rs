//! The `local` backend for ranks that are threads of one process and meet as processes do.

use std::sync::Arc;

use eplb_comm::Communicator;
use eplb_comm::host::HostMemory;
use eplb_comm::local::{LocalCommunicator, LocalGroup};

use super::meeting_point::MeetingPoint;
use super::transport::{Meeting, Transport};
use crate::error::EngineError;

const NAME: &str = "local";

/// Makes `local` communicators for ranks that are threads of one process; all of them share one of these.
#[derive(Debug)]
pub struct LocalTransport {
    copy_threads: usize,
    point: MeetingPoint<Arc<HostMemory>, LocalCommunicator>,
}

impl LocalTransport {
    /// A meeting point. `copy_threads` threads copy bytes for each group of communicators.
    pub fn new(copy_threads: usize) -> Arc<Self> {
        Arc::new(Self { copy_threads, point: MeetingPoint::new() })
    }
}

impl Transport for LocalTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let Meeting { rank, world_size, memory, deadline, .. } = meeting;
        let make = |memories| LocalGroup::new(memories, self.copy_threads).map_err(|error| error.to_string());
        match self.point.meet((rank, world_size), memory, deadline, make) {
            Ok(mine) => Ok(Box::new(mine)),
            Err(detail) => Err(EngineError::Backend { backend: NAME, detail }),
        }
    }
}
