//! Plain Gloo sends and receives, with no protocol around them: what the backend is measured against.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::Store;
use eplb_core::RankId;
use gloo_sys::{Buffer, Context, Device, Gloo, Rendezvous, Wait};

use crate::error::GlooError;

/// Experts that are under way at a time; all tensors of one are posted together.
const AT_ONCE: usize = 16;

/// One expert that a rank sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain {
    /// The other rank.
    pub peer: RankId,
    /// Whether this rank sends it.
    pub sends: bool,
    /// Its place in an order that both ranks know.
    pub number: u32,
}

/// Connections of their own, and memory for everything that is carried.
pub struct PlainLoop {
    rank: RankId,
    context: Context,
    /// Bytes of each tensor of an expert.
    tensors: Vec<usize>,
    memory: Vec<Vec<u8>>,
}

impl fmt::Debug for PlainLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainLoop").field("context", &self.context).finish_non_exhaustive()
    }
}

/// The store as Gloo wants it.
struct Keys {
    store: Arc<dyn Store>,
    deadline: Instant,
}

impl Rendezvous for Keys {
    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        self.store.set(&format!("plain/{key}"), value, self.deadline).map_err(|error| error.to_string())
    }

    fn get(&mut self, key: &str) -> Result<Vec<u8>, String> {
        let key = format!("plain/{key}");
        let found =
            self.store.wait(&[&key], self.deadline).and_then(|()| self.store.get(&key, self.deadline));
        found.map_err(|error| error.to_string())?.ok_or_else(|| format!("{key} vanished"))
    }
}

impl PlainLoop {
    /// Connects this rank with all others, each of which calls this with the same store. `tensors`: bytes of each tensor of an
    /// expert, none of them 0.
    ///
    /// # Errors
    /// The library is missing, or not all ranks could be connected in time.
    pub fn connect(
        rank: RankId,
        world_size: usize,
        store: Arc<dyn Store>,
        device: &Device,
        tensors: &[usize],
        deadline: Instant,
    ) -> Result<Self, GlooError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut keys = Keys { store, deadline };
        let connected = Gloo::load()?.connect(rank.index(), world_size, device, &mut keys, left, None);
        let context = connected.map_err(|error| failed(rank, &error))?;
        Ok(Self { rank, context, tensors: tensors.to_vec(), memory: Vec::new() })
    }

    /// Sends and receives all experts, in the order of their numbers, some at a time; how long it took. All ranks call it together.
    ///
    /// # Errors
    /// A connection broke, or the deadline passed.
    pub fn carry(&mut self, experts: &[Plain], deadline: Instant) -> Result<Duration, GlooError> {
        let rank = self.rank;
        let mut experts = experts.to_vec();
        experts.sort_unstable_by_key(|expert| expert.number);
        // Touched before the clock runs.
        let sizes = experts.iter().flat_map(|_| &self.tensors);
        self.memory = sizes.map(|&bytes| vec![1; bytes]).collect();
        let mut buffers = Vec::new();
        for bytes in &mut self.memory {
            // SAFETY: the bytes are of `self`, which is borrowed until this returns, and the buffers are dropped before that; nobody
            // looks at them meanwhile.
            let buffer = unsafe { self.context.buffer(NonNull::from(&mut bytes[..]).cast(), bytes.len()) };
            buffers.push(buffer.map_err(|error| failed(rank, &error))?);
        }
        let start = Instant::now();
        let count = self.tensors.len();
        for (chunk, buffers) in experts.chunks(AT_ONCE).zip(buffers.chunks(AT_ONCE * count)) {
            // The expert with the least number that is not through is under way at both its ends, so all get through.
            let tensors = || {
                chunk.iter().flat_map(|expert| (0..count).map(move |tensor| (expert, tensor))).zip(buffers)
            };
            let slot = |expert: &Plain, tensor: usize| u64::from(expert.number) << 16 | tensor as u64;
            let post = |sends: bool| -> Result<(), gloo_sys::GlooError> {
                tensors().filter(|((expert, _), _)| expert.sends == sends).try_for_each(
                    |((expert, tensor), buffer)| {
                        let (peer, slot) = (expert.peer.index(), slot(expert, tensor));
                        if sends { buffer.send(peer, slot) } else { buffer.recv(peer, slot) }
                    },
                )
            };
            post(false).and_then(|()| post(true)).map_err(|error| failed(rank, &error))?;
            for ((expert, _), buffer) in tensors() {
                // Nobody cancels it, so it has ended.
                let _ = wait(buffer, expert.sends, deadline).map_err(|error| failed(rank, &error))?;
            }
        }
        Ok(start.elapsed())
    }
}

fn wait(buffer: &Buffer, sends: bool, deadline: Instant) -> Result<Wait, gloo_sys::GlooError> {
    let left = Some(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
    if sends { buffer.wait_send(left) } else { buffer.wait_recv(left) }
}

fn failed(rank: RankId, error: &gloo_sys::GlooError) -> GlooError {
    GlooError::Plain { rank, detail: error.to_string() }
}
