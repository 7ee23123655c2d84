//! The store of ranks that were started by hand: one of them serves it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::deadlines::after;
use eplb_comm::store::{ServerOptions, Store, StoreAddress, StoreError, StoreServer, Token};
use eplb_core::RankId;

use super::join::Join;
use super::session::{Stage, at};
use crate::deadlines::Deadlines;
use crate::error::EngineError;

/// How often the serving rank looks whether all others have gone.
const LOOK: Duration = Duration::from_millis(5);

/// A rank's way to the store, and the store itself where this rank serves it. While it serves, its death is the store's.
#[derive(Debug)]
pub struct Rendezvous {
    store: Arc<dyn Store>,
    server: Option<StoreServer>,
    linger: Duration,
}

impl Rendezvous {
    /// Opens the store of a rank; `server` is the rank that serves it, if one of them does. Only TCP stores are served.
    ///
    /// # Errors
    /// No store is named, its address cannot be listened at or reached, or the token is missing or wrong.
    pub fn open(
        join: &Join,
        server: Option<RankId>,
        token: Option<&Token>,
        deadlines: &Deadlines,
    ) -> Result<Self, EngineError> {
        let rank = join.rank;
        let Some(address) = &join.store else {
            let text = format!("{rank} of {}: no store is named", join.world_size);
            return Err(EngineError::Options(text));
        };
        let server = match address {
            StoreAddress::Tcp(place) if server == Some(rank) => {
                Some(at(rank, Stage::Store, Self::serve(place, token, deadlines))?)
            }
            _ => None,
        };
        let deadline = after(deadlines.store.connect);
        let store = at(rank, Stage::Store, address.open(token, &deadlines.store, deadline))?;
        Ok(Self { store, server, linger: deadlines.store.operation })
    }

    fn serve(place: &str, token: Option<&Token>, deadlines: &Deadlines) -> Result<StoreServer, EngineError> {
        let options =
            ServerOptions { deadlines: deadlines.store, token: token.cloned(), ..ServerOptions::default() };
        let found: Result<Vec<SocketAddr>, _> = place.to_socket_addrs().map(Iterator::collect);
        let addresses = found.map_err(|error| {
            EngineError::Options(format!("the store's host in {place:?} is not known here: {error}"))
        })?;
        let mut last = None;
        for address in addresses {
            match StoreServer::bind(address, options.clone()) {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        let none =
            || StoreError::Refused { store: place.to_owned(), reason: "its host has no address".into() };
        Err(last.unwrap_or_else(none).into())
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// Leaves: a rank that serves stays until the others have gone, or for as long as a store operation may take. To be called
    /// when everything else that uses the store is dropped.
    pub fn leave(self) {
        let Self { store, server, linger } = self;
        drop(store);
        let Some(server) = server else { return };
        let deadline = Instant::now() + linger;
        while server.stats().clients > 0 && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::join::Flags;

    /// An address of this machine at which nobody else takes ports: one that was free is so still when it is served at.
    const HOST: &str = "127.0.0.2";

    fn join(rank: usize, port: u16) -> Join {
        let store = format!("tcp://{HOST}:{port}").parse().unwrap();
        let flags = Flags { rank: Some(rank), world_size: Some(2), store: Some(store) };
        Join::find(&flags, |_| None).unwrap().unwrap()
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn the_rank_that_serves_stays_until_the_others_are_gone() {
        let (port, deadlines) = (free_port(), Deadlines::new());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let other = Rendezvous::open(&join(0, port), Some(RankId(1)), None, &deadlines).unwrap();
                let store = other.store();
                store.set("here", b"1", after(Duration::from_secs(20))).unwrap();
                store.wait(&["leaving"], after(Duration::from_secs(20))).unwrap();
                // The server leaves, and is still there for what comes now.
                std::thread::sleep(Duration::from_millis(100));
                store.set("late", b"1", after(Duration::from_secs(20)))
            });
            let serving = Rendezvous::open(&join(1, port), Some(RankId(1)), None, &deadlines).unwrap();
            // A rank that has not come yet is not waited for: that is what ranks agree on before.
            serving.store().wait(&["here"], after(Duration::from_secs(60))).unwrap();
            serving.store().set("leaving", b"1", after(Duration::from_secs(20))).unwrap();
            serving.leave();
            assert_eq!(other.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn a_store_that_others_can_reach_is_not_served_without_a_token() {
        let mut open = join(0, free_port());
        open.store = Some(format!("tcp://0.0.0.0:{}", free_port()).parse().unwrap());
        let refused =
            Rendezvous::open(&open, Some(RankId(0)), None, &Deadlines::new()).unwrap_err().to_string();
        assert!(refused.contains(Token::VARIABLE) && refused.contains("rank 0"), "{refused}");
    }
}
