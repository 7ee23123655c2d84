//! The `gloo` backend, as ranks that are processes use it.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use eplb_comm::Communicator;
use eplb_comm::store::StoreAddress;
use eplb_comm_gloo::{Device, Gloo, GlooCommunicator, GlooError, Options};
use eplb_cuda::DeviceMemory;

use super::transport::{Meeting, Transport};
use crate::error::EngineError;

const NAME: &str = "gloo";

/// Communicators over TCP through Gloo, for slots in host memory, and for slots on devices by way of pinned host memory.
#[derive(Debug, Clone)]
pub struct GlooTransport {
    options: Options,
}

impl GlooTransport {
    /// Listens at `interface` (a name, or an address of this host), or, if none is given, at the address by which this host
    /// reaches the store's server; for a store in a folder, at the loopback address.
    ///
    /// # Errors
    /// Gloo's library cannot be had; the message says what to install. The store's host cannot be reached.
    pub fn new(interface: Option<&str>, store: &StoreAddress) -> Result<Self, EngineError> {
        Self::find_library()?;
        let options = match (interface, store) {
            (Some(interface), _) => Options::on(match interface.parse() {
                Ok(address) => Device::Address(address),
                Err(_) => Device::Interface(interface.to_owned()),
            }),
            (None, StoreAddress::Tcp(place)) => {
                let unknown = |error: &dyn std::fmt::Display| {
                    EngineError::Options(format!(
                        "{store} cannot be reached from here: {error}; give --interface"
                    ))
                };
                let found = place.to_socket_addrs().map_err(|error| unknown(&error))?.next();
                let target = found.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
                Options::toward(target).map_err(|error| unknown(&error))?
            }
            (None, StoreAddress::File(_)) => Options::default(),
        };
        Ok(Self { options })
    }

    /// Version of the library, if it can be loaded.
    ///
    /// # Errors
    /// Why it cannot; the message says what to install.
    pub fn find_library() -> Result<String, EngineError> {
        let refused = |error: eplb_comm_gloo::LoadError| EngineError::Backend {
            backend: NAME,
            detail: error.to_string(),
        };
        Ok(Gloo::load().map_err(refused)?.version())
    }

    /// Where it listens, in words.
    pub fn device(&self) -> String {
        format!("{:?}", self.options.device)
    }
}

impl Transport for GlooTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let Meeting { rank: _, world_size, store, memory, deadline } = meeting;
        let made = GlooCommunicator::connect(memory, world_size, store, self.options.clone(), deadline);
        Ok(Box::new(made.map_err(refused)?))
    }

    fn connect_device(
        &self,
        meeting: Meeting<Arc<DeviceMemory>>,
    ) -> Result<Box<dyn Communicator>, EngineError> {
        let Meeting { rank, world_size, store, memory, deadline } = meeting;
        let options = self.options.clone().staged();
        let made = GlooCommunicator::connect_device(memory, world_size, store, options, deadline);
        let communicator = made.map_err(refused)?;
        let bytes = communicator.pinned_bytes();
        tracing::info!(
            rank = rank.0,
            bytes,
            "pinned host memory, through which experts go between devices over TCP"
        );
        Ok(Box::new(communicator))
    }
}

fn refused(error: GlooError) -> EngineError {
    EngineError::Backend { backend: NAME, detail: error.to_string() }
}
