//! Strangers on the ports that ranks open while they connect: they are turned away, whatever they say.

mod support;

use std::fmt;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::store::{InProcessStore, InterceptedStore, Store, StoreError, StoreIntercept};
use eplb_comm::{Communicator, Fence};
use eplb_comm_gloo::{GlooError, Options, Planted};
use eplb_core::{ExpertId, LayerId, SlotId};

use support::{ring, small_world, soon};

/// Reads a store along: it visits every port that a rank announces, before the other ranks learn of it, and sends junk.
struct Eavesdropper {
    junk: Vec<u8>,
    /// Announcements that it still spoils.
    left: Mutex<usize>,
    /// Visits of each port.
    times: usize,
    /// Held open, as a stranger would.
    visits: Arc<Mutex<Vec<TcpStream>>>,
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

impl StoreIntercept for Eavesdropper {
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        let mut left = self.left.lock().unwrap();
        let ports = if key.contains("/mesh/") { Self::ports(value) } else { Vec::new() };
        if !ports.is_empty() && *left > 0 {
            *left -= 1;
            for port in ports.into_iter().flat_map(|port| std::iter::repeat_n(port, self.times)) {
                let mut visit = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                // It may be thrown out at once.
                let _ = visit.write_all(&self.junk);
                self.visits.lock().unwrap().push(visit);
            }
        }
        drop(left);
        inner.set(key, value, deadline)
    }
}

type Visits = Arc<Mutex<Vec<TcpStream>>>;

/// A store that somebody reads along, and who came to a port.
fn eavesdropped(junk: Vec<u8>, announcements: usize, times: usize) -> (Arc<dyn Store>, Visits) {
    let visits = Visits::default();
    let by = Eavesdropper { junk, left: Mutex::new(announcements), times, visits: visits.clone() };
    (Arc::new(InterceptedStore::new(Arc::new(InProcessStore::new()), by)), visits)
}

/// An attempt is long enough for a machine that is busy with other things.
fn options(_: usize) -> Options {
    Options { attempt: Duration::from_secs(60), ..Options::default() }
}

/// As Gloo is without our guard.
fn unguarded(_: usize) -> Options {
    Options { planted: vec![Planted::Unguarded], attempt: Duration::from_secs(2), ..Options::default() }
}

/// A message as Gloo's TCP transport frames it, with this operation: 1 is a tensor that a receive must have been posted for.
fn frame(operation: u64) -> Vec<u8> {
    let preamble = [48 + 8, operation, 0x5107, 0, 8, 0];
    preamble.iter().flat_map(|word: &u64| word.to_le_bytes()).chain([7; 8]).collect()
}

#[test]
fn strangers_are_turned_away_and_cost_nothing() {
    // The first words of a greeting are in everybody's hands; the secret is not.
    let almost = [&b"eplbgrt1"[..], &[0; 24]].concat();
    let junk = [Vec::new(), b"GET / HTTP/1.1\r\n\r\n".repeat(40), vec![0; 4096], vec![0xff; 4096], almost];
    for junk in junk.into_iter().chain([0, 1, 2, 3, 99].map(frame)) {
        // Also before later announcements, if there were any.
        let (store, visits) = eavesdropped(junk, usize::MAX, 1);
        let memories = small_world(3, 50_000);
        let mut group: Vec<_> =
            support::connect(&memories, &store, options, soon()).into_iter().map(Result::unwrap).collect();
        assert!(!visits.lock().unwrap().is_empty(), "the ports must have been found");
        assert!(group.iter().all(|rank| rank.generation() == Some(0)), "the first attempt must have come up");
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
fn more_strangers_than_are_heard_at_a_time_cost_nothing() {
    let (store, visits) = eavesdropped(b"junk".to_vec(), usize::MAX, 100);
    let memories = small_world(2, 1000);
    for rank in support::connect(&memories, &store, options, soon()) {
        assert_eq!(rank.unwrap().generation(), Some(0));
    }
    assert!(visits.lock().unwrap().len() >= 200);
}

#[test]
fn without_the_guard_a_stranger_spoils_an_attempt() {
    let (store, _visits) = eavesdropped(b"GET / HTTP/1.1\r\n\r\n".repeat(40), 2, 1);
    let memories = small_world(2, 1000);
    for rank in support::connect(&memories, &store, unguarded, soon()) {
        assert!(rank.unwrap().generation() >= Some(1), "the attempt must have been spoilt");
    }
}

#[test]
#[ignore = "run by another test, as another process: it dies"]
fn a_frame_without_the_guard() {
    let (store, _visits) = eavesdropped(frame(1), usize::MAX, 1);
    let memories = small_world(2, 1000);
    drop(support::connect(&memories, &store, unguarded, soon()));
}

#[test]
fn without_the_guard_a_frame_ends_the_process() {
    let this = std::env::current_exe().unwrap();
    let ended = Command::new(this)
        .args(["--ignored", "--exact", "a_frame_without_the_guard"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(ended.signal(), Some(libc::SIGABRT), "{ended}: the frame must be one that Gloo dies of");
}

#[test]
fn strangers_without_end_are_an_error_with_a_deadline() {
    let (store, _visits) = eavesdropped(b"junk".repeat(100), usize::MAX, 1);
    let memories = small_world(2, 1000);
    let deadline = Instant::now() + Duration::from_secs(3);
    for result in support::connect(&memories, &store, unguarded, deadline) {
        let error = result.unwrap_err();
        assert!(matches!(error, GlooError::NotConnected { .. }), "{error}");
    }
    assert!(
        Instant::now() < deadline + Duration::from_secs(30),
        "far past the deadline, even for a busy machine"
    );
}
