//! Somebody who sends garbage: to the store and to every port that a rank opens.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::Communicator;
use eplb_comm::store::{InterceptedStore, Store, StoreError, StoreIntercept};
use eplb_engine::EngineError;
use eplb_engine::process::{Meeting, Transport};

use crate::case::Fault;

/// How long junk is sent to whatever is open: ranks listen for each other only while they connect.
const TIME: Duration = Duration::from_secs(3);

/// Sends junk to every port of the processes as it opens, and to the store's now and then; to how many.
pub(crate) fn send_for_a_while(ids: Vec<u32>, store: u16, seed: u64) -> usize {
    let (start, mut hit) = (Instant::now(), BTreeSet::new());
    while start.elapsed() < TIME {
        for port in ports(&ids, store) {
            if hit.insert(port) || port != store || hit.len() % 8 == 0 {
                send(port, &random(seed + hit.len() as u64));
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    hit.len()
}

/// Ports at which the store and the ranks listen, on this machine.
fn ports(ids: &[u32], store: u16) -> Vec<u16> {
    let sockets: Vec<String> = ids
        .iter()
        .filter_map(|id| std::fs::read_dir(format!("/proc/{id}/fd")).ok())
        .flat_map(|folder| folder.flatten())
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut ports = vec![store];
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Local address, state (0A: listening), inode.
        if let (Some(local), Some(&"0A"), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
            && sockets.iter().any(|socket| socket == inode)
            && let Some((_, port)) = local.split_once(':')
            && let Ok(port) = u16::from_str_radix(port, 16)
        {
            ports.push(port);
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn random(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut junk = vec![0u8; 4096];
    for byte in &mut junk {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    junk
}

/// A message as Gloo's TCP transport frames it, of bytes for a receive that nobody posted.
fn frame() -> Vec<u8> {
    [48 + 8, 1, 0x5107, 0, 8, 0, 7].iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
}

/// Sends junk in one connection that goes on and one that breaks off.
fn send(port: u16, junk: &[u8]) {
    let place = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for length in [junk.len(), 3] {
        if let Ok(mut stream) = TcpStream::connect_timeout(&place, Duration::from_secs(1)) {
            // Refusing it is the right answer.
            let _ = stream.write_all(&junk[..length]);
        }
    }
}

/// A transport whose every announcement of a port is read along: junk comes before the peer does.
#[derive(Debug)]
pub(crate) struct Visited {
    inner: Arc<dyn Transport>,
    junk: Vec<u8>,
    visits: Arc<AtomicUsize>,
}

impl Visited {
    /// With the junk of a fault, if it sends any; the number of ports visited.
    pub(crate) fn around(
        inner: Arc<dyn Transport>,
        fault: Fault,
        seed: u64,
    ) -> (Arc<dyn Transport>, Arc<AtomicUsize>) {
        let visits = Arc::new(AtomicUsize::new(0));
        let junk = match fault {
            Fault::Junk => random(seed),
            Fault::Frame => frame(),
            _ => return (inner, visits),
        };
        (Arc::new(Self { inner, junk, visits: visits.clone() }), visits)
    }
}

impl Transport for Visited {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let (junk, visits) = (self.junk.clone(), self.visits.clone());
        let store = Arc::new(InterceptedStore::new(meeting.store, Eavesdropper { junk, visits }));
        self.inner.connect(Meeting { store, ..meeting })
    }
}

#[derive(Debug)]
struct Eavesdropper {
    junk: Vec<u8>,
    visits: Arc<AtomicUsize>,
}

/// The ports in an announcement: socket addresses of the loopback interface, as the system lays them out.
fn announced(value: &[u8]) -> Vec<u16> {
    let is_address = |w: &&[u8]| w[..2] == [2, 0] && w[4..8] == Ipv4Addr::LOCALHOST.octets();
    let ports = value.windows(8).filter(is_address).map(|w| u16::from_be_bytes([w[2], w[3]]));
    ports.filter(|&port| port > 0).collect()
}

impl StoreIntercept for Eavesdropper {
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        if key.contains("/mesh/") {
            for port in announced(value) {
                send(port, &self.junk);
                self.visits.fetch_add(1, Ordering::Relaxed);
            }
        }
        inner.set(key, value, deadline)
    }
}
