//! Strangers on the ports that ranks open while they connect.

mod support;

use std::fmt;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::store::{CasOutcome, InProcessStore, Store, StoreError};
use eplb_comm::{Communicator, Fence};
use eplb_comm_gloo::{GlooError, Options};
use eplb_core::{ExpertId, LayerId, SlotId};

use support::{ring, small_world, soon};

/// A store that reads along: it visits every port that a rank announces, before the other ranks learn of it, and sends junk.
struct Eavesdropper {
    inner: InProcessStore,
    junk: Vec<u8>,
    /// Announcements that it still spoils.
    left: Mutex<usize>,
    /// Held open, as a stranger would.
    visits: Mutex<Vec<TcpStream>>,
}

impl fmt::Debug for Eavesdropper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eavesdropper").finish_non_exhaustive()
    }
}

impl Eavesdropper {
    /// The ports in an announcement: socket addresses of the loopback interface, as the system lays them out.
    fn ports(value: &[u8]) -> Vec<u16> {
        let is_address = |w: &&[u8]| w[..2] == [2, 0] && w[4..8] == Ipv4Addr::LOCALHOST.octets();
        value
            .windows(8)
            .filter(is_address)
            .map(|w| u16::from_be_bytes([w[2], w[3]]))
            .filter(|&p| p > 0)
            .collect()
    }
}

impl Store for Eavesdropper {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        let mut left = self.left.lock().unwrap();
        let ports = if key.contains("/mesh/") { Self::ports(value) } else { Vec::new() };
        if !ports.is_empty() && *left > 0 {
            *left -= 1;
            for port in ports {
                let mut visit = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                // It may be thrown out at once.
                let _ = visit.write_all(&self.junk);
                self.visits.lock().unwrap().push(visit);
            }
        }
        drop(left);
        self.inner.set(key, value, deadline)
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key, deadline)
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        self.inner.add(key, delta, deadline)
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.inner.compare_and_set(key, expected, new, deadline)
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        self.inner.wait(keys, deadline)
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.wait_change(key, known, deadline)
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        self.inner.delete(key, deadline)
    }

    fn max_value(&self) -> usize {
        self.inner.max_value()
    }
}

fn eavesdropper(junk: Vec<u8>, announcements: usize) -> Arc<Eavesdropper> {
    let (left, visits) = (Mutex::new(announcements), Mutex::default());
    Arc::new(Eavesdropper { inner: InProcessStore::new(), junk, left, visits })
}

fn options(_: usize) -> Options {
    Options { attempt: Duration::from_secs(2), ..Options::default() }
}

#[test]
fn a_stranger_costs_an_attempt_and_carries_nothing() {
    for junk in [Vec::new(), b"GET / HTTP/1.1\r\n\r\n".repeat(40), vec![0; 4096], vec![0xff; 4096]] {
        // All announcements of the first attempt: a connection is spoilt at the end that listens.
        let store = eavesdropper(junk, 3);
        let memories = small_world(3, 50_000);
        let dynamic: Arc<dyn Store> = store.clone();
        let mut group: Vec<_> =
            support::connect(&memories, &dynamic, options, soon()).into_iter().map(Result::unwrap).collect();
        assert!(!store.visits.lock().unwrap().is_empty(), "the ports must have been found");
        assert!(group.iter().all(|rank| rank.generation() >= Some(1)), "the attempt must have been spoilt");
        let deadline = soon();
        let tickets: Vec<_> =
            group.iter_mut().map(|r| r.submit(&ring(3), Fence::passed(), deadline).unwrap()).collect();
        for (rank, ticket) in tickets.into_iter().enumerate() {
            let done = group[rank].done(ticket).unwrap();
            done.wait(group[rank].rank(), "the wave", deadline).unwrap();
            let (slot, expert) = (SlotId::at(2 * rank + 1), ExpertId::at((2 * rank + 4) % 6));
            assert_eq!(memories[rank].count_wrong(LayerId(0), slot, expert), Ok(0));
        }
    }
}

#[test]
fn strangers_without_end_are_an_error_with_a_deadline() {
    let store: Arc<dyn Store> = eavesdropper(b"junk".repeat(100), usize::MAX);
    let memories = small_world(2, 1000);
    let deadline = Instant::now() + Duration::from_secs(3);
    for result in support::connect(&memories, &store, options, deadline) {
        let error = result.unwrap_err();
        assert!(matches!(error, GlooError::NotConnected { .. }), "{error}");
    }
    assert!(Instant::now() < deadline + Duration::from_secs(2), "within the deadline and 2 s");
}
