//! What of the memory of others is open here, and the communicator inside this rank's group.

use std::sync::Arc;

use eplb_comm::Communicator;
use eplb_comm_peer::HOST_BACKEND;
use eplb_cuda::DeviceMemory;

use super::choice::Found;
use super::{AutoTransport, PEER, corner};
use crate::error::EngineError;
use crate::process::Meeting;

/// What came of a survey.
#[derive(Debug)]
pub(super) struct Surveyed {
    pub(super) found: Found,
    /// `None` where every rank is a group by itself.
    pub(super) inside: Option<Box<dyn Communicator>>,
}

/// A rank on a device that has joined others.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The slots of all ranks, where all are open here; to be dropped before the communicator.
    pub(crate) memories: Option<Vec<Arc<DeviceMemory>>>,
    pub(crate) communicator: Box<dyn Communicator>,
}

#[cfg(target_os = "linux")]
mod here {
    use eplb_comm_peer::process::{Meeting as PeerMeeting, PeerError, Reach, survey_device, survey_host};

    use super::*;

    fn meeting_of<M>(auto: &AutoTransport, meeting: &Meeting<M>) -> Result<PeerMeeting, EngineError> {
        Ok(PeerMeeting {
            rank: meeting.rank,
            world_size: meeting.world_size,
            store: corner(&meeting.store, PEER)?,
            host: auto.host.name().to_owned(),
            deadline: meeting.deadline,
        })
    }

    fn found(peer: &'static str, reach: &Reach) -> Found {
        Found { peer, groups: reach.groups(), causes: reach.causes() }
    }

    fn failed(backend: &'static str) -> impl Fn(PeerError) -> EngineError {
        move |error| EngineError::Backend { backend, detail: error.to_string() }
    }

    pub(in super::super) fn host(auto: &AutoTransport, meeting: &Meeting) -> Result<Surveyed, EngineError> {
        let surveyed = survey_host(&meeting_of(auto, meeting)?, meeting.memory.clone(), &auto.peer);
        let (reach, inside) = surveyed.map_err(failed(HOST_BACKEND))?;
        let inside = inside.map(|inside| Box::new(inside) as _);
        Ok(Surveyed { found: found(HOST_BACKEND, &reach), inside })
    }

    #[expect(clippy::type_complexity, reason = "used once, taken apart at once")]
    pub(in super::super) fn device(
        auto: &AutoTransport,
        meeting: &Meeting<Arc<DeviceMemory>>,
    ) -> Result<(Surveyed, Option<Vec<Arc<DeviceMemory>>>), EngineError> {
        let surveyed = survey_device(&meeting_of(auto, meeting)?, meeting.memory.clone(), &auto.peer);
        let surveyed = surveyed.map_err(failed(PEER))?;
        let found = found(PEER, &surveyed.reach);
        let (memories, inside) = surveyed.joined.map(|joined| (joined.memories, joined.communicator)).unzip();
        let inside = inside.map(|inside| Box::new(inside) as _);
        Ok((Surveyed { found, inside }, memories))
    }
}

#[cfg(not(target_os = "linux"))]
mod here {
    use eplb_core::NodeId;

    use super::*;

    fn nobody<M>(peer: &'static str, meeting: &Meeting<M>) -> Surveyed {
        let groups = (0..meeting.world_size).map(NodeId::at).collect();
        let causes = vec!["memory is shared between processes on Linux only".to_owned()];
        Surveyed { found: Found { peer, groups, causes }, inside: None }
    }

    pub(in super::super) fn host(_: &AutoTransport, meeting: &Meeting) -> Result<Surveyed, EngineError> {
        Ok(nobody(HOST_BACKEND, meeting))
    }

    #[expect(clippy::type_complexity, reason = "used once, taken apart at once")]
    pub(in super::super) fn device(
        _: &AutoTransport,
        meeting: &Meeting<Arc<DeviceMemory>>,
    ) -> Result<(Surveyed, Option<Vec<Arc<DeviceMemory>>>), EngineError> {
        Ok((nobody(PEER, meeting), None))
    }
}

pub(super) use here::{device, host};
