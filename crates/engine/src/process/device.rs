//! The backends that carry experts between devices, as engines use them.

use std::sync::Arc;

use eplb_comm::Communicator;
use eplb_comm_nccl::{Backend, Launch, Options as NcclOptions, Rendezvous, connect};
use eplb_comm_peer::PeerCommunicator;
use eplb_cuda::DeviceMemory;

use super::meeting_point::MeetingPoint;
use super::transport::{Meeting, Transport};
use crate::error::EngineError;

const PEER: &str = "peer";

fn refused(backend: &'static str, detail: String) -> EngineError {
    EngineError::Backend { backend, detail }
}

fn devices_only(backend: &'static str) -> EngineError {
    refused(
        backend,
        "it carries experts between devices; these slots lie in host memory: use another, or name the device"
            .into(),
    )
}

/// Copy engines that pull from the devices of other ranks: the `peer` backend.
#[derive(Debug)]
pub struct DevicePeerTransport {
    options: eplb_comm_peer::Options,
    /// Of ranks that are threads.
    point: Option<MeetingPoint<Arc<DeviceMemory>, PeerCommunicator>>,
}

impl DevicePeerTransport {
    /// For ranks that are threads of this process, a device each: all of them share this one.
    pub fn threads() -> Arc<Self> {
        Arc::new(Self { options: eplb_comm_peer::Options::default(), point: Some(MeetingPoint::new()) })
    }

    /// For ranks that are processes of one host, a device each.
    pub fn processes() -> Arc<Self> {
        Arc::new(Self { options: eplb_comm_peer::Options::default(), point: None })
    }

    /// Communicators of all ranks of this process.
    fn all(&self, memories: &[Arc<DeviceMemory>]) -> Result<Vec<PeerCommunicator>, String> {
        for from in memories {
            for to in memories {
                let reached = from.context().enable_peer(to.context());
                reached.map_err(|error| format!("{} from {}: {error}", to.rank(), from.rank()))?;
            }
        }
        eplb_comm_peer::connect(memories, &self.options).map_err(|error| error.to_string())
    }
}

impl Transport for DevicePeerTransport {
    fn name(&self) -> &'static str {
        PEER
    }

    fn connect(&self, _: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        Err(devices_only(PEER))
    }

    fn connect_device(
        &self,
        meeting: Meeting<Arc<DeviceMemory>>,
    ) -> Result<Box<dyn Communicator>, EngineError> {
        let Some(point) = &self.point else { return join(meeting, &self.options) };
        let Meeting { rank, world_size, memory, deadline, .. } = meeting;
        let made = point.meet((rank, world_size), memory, deadline, |memories| self.all(&memories));
        made.map(|mine| Box::new(mine) as _).map_err(|detail| refused(PEER, detail))
    }
}

/// Joins ranks that are processes. What was opened of others is closed when the communicator is dropped.
#[cfg(target_os = "linux")]
fn join(
    meeting: Meeting<Arc<DeviceMemory>>,
    options: &eplb_comm_peer::Options,
) -> Result<Box<dyn Communicator>, EngineError> {
    let Meeting { rank, world_size, store, memory, deadline } = meeting;
    let host = super::hosts::HostId::here().name().to_owned();
    let meeting = eplb_comm_peer::process::Meeting { rank, world_size, store, host, deadline };
    match eplb_comm_peer::process::join_device(&meeting, memory, options) {
        Ok(joined) => Ok(Box::new(joined.communicator)),
        Err(error) => Err(refused(PEER, error.to_string())),
    }
}

#[cfg(not(target_os = "linux"))]
fn join(
    _: Meeting<Arc<DeviceMemory>>,
    _: &eplb_comm_peer::Options,
) -> Result<Box<dyn Communicator>, EngineError> {
    Err(refused(PEER, "processes open each other's device memory on Linux only".into()))
}

/// NCCL over a communicator of our own: the `nccl` and `pynccl` backends, for threads and processes.
#[derive(Debug, Clone)]
pub struct NcclTransport {
    backend: Backend,
    options: NcclOptions,
}

impl NcclTransport {
    /// NCCL as the backend finds it: on the library path, or the one that the process has loaded.
    pub fn new(backend: Backend) -> Self {
        Self::with_options(backend, NcclOptions::default())
    }

    /// With options of its own.
    pub fn with_options(backend: Backend, options: NcclOptions) -> Self {
        Self { backend, options }
    }

    /// Version of the library, if it can be used.
    ///
    /// # Errors
    /// Why it cannot: there is none, it is too old, or what is set in the environment forbids it.
    pub fn find_library(&self) -> Result<String, String> {
        if self.options.launch == Launch::Thread && eplb_comm_nccl::orders_launches_itself() {
            return Err("NCCL_LAUNCH_ORDER_IMPLICIT is set, and waves are to be launched by a thread of their own: take it out of the \
                        environment, or have waves launched in steps"
                .into());
        }
        let library = match self.backend {
            Backend::Nccl => nccl_rs::Library::open(),
            Backend::PyNccl => nccl_rs::Library::loaded(),
        };
        library.map(|library| library.version().to_string()).map_err(|error| error.to_string())
    }

    /// As [`NcclTransport::new`], with waves launched by [`Engine::step`](crate::engine::Engine::step) of one agreed id on every rank, on the
    /// server's thread: so in one order with the collectives that the server launches itself. For servers that have such in flight. Ranks must then run
    /// steps in step, at most one apart; while they run none, a wave waits, and its round is broken off at `exchange.transfer`.
    pub fn in_steps(backend: Backend) -> Self {
        Self::with_options(backend, NcclOptions { launch: Launch::Pump, ..NcclOptions::default() })
    }
}

impl Transport for NcclTransport {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn launches_in_steps(&self) -> bool {
        self.options.launch == Launch::Pump
    }

    fn connect(&self, _: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        Err(devices_only(self.name()))
    }

    fn connect_device(
        &self,
        meeting: Meeting<Arc<DeviceMemory>>,
    ) -> Result<Box<dyn Communicator>, EngineError> {
        let Meeting { world_size, store, memory, deadline, .. } = meeting;
        // The corner of the store is this communicator's alone, so one number does for all.
        let rendezvous = Rendezvous { store, size: world_size, epoch: 1 };
        Ok(Box::new(connect(self.backend, memory, &rendezvous, self.options.clone(), deadline)?))
    }
}
