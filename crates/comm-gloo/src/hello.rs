//! The first messages on new connections: each side shows that it is the rank that the store says.
//!
//! Whoever listens at an address may be another than the rank that put it in the store, and where the library has no guard
//! ([`gloo_sys::Gloo::guards`]) Gloo takes whoever connects first to a port for the peer. What each rank sends here only who reads the
//! store can know, so a stranger costs one attempt at most and carries no expert.

use std::time::{Duration, Instant};

use eplb_core::RankId;
use gloo_sys::{Buffer, Context, GlooError};

use crate::facts::Facts;
use crate::mesh::Watch;
use crate::slot::WaveId;
use crate::words::Words;

const WORDS: usize = 4;
const MAGIC: u64 = u64::from_le_bytes(*b"eplbhllo");

/// What `from` says to `to`.
fn words(generation: u64, facts: &[Facts], from: usize, to: usize) -> [u64; WORDS] {
    [MAGIC, generation, facts[from].nonce.rotate_left(1) ^ facts[to].nonce, (from as u64) << 32 | to as u64]
}

fn slot(generation: u64, from: usize, to: usize) -> u64 {
    WaveId { generation, sequence: u64::MAX, hash: MAGIC }.slot(from, to)
}

/// A message of our own memory. The buffer is dropped before the words: fields drop in their order.
struct Message {
    buffer: Buffer,
    words: Words,
}

impl Message {
    fn new(context: &Context, words: [u64; WORDS]) -> Result<Self, GlooError> {
        let words = Words::new(&words);
        let (base, bytes) = words.whole();
        // SAFETY: the words are dropped after the buffer, and nobody looks at them until the wait for the one operation
        // has found it complete.
        let buffer = unsafe { context.buffer(base, bytes) }?;
        Ok(Self { buffer, words })
    }
}

/// Exchanges greetings with all others, within `patience`: they are small, and all sides have connected.
///
/// # Errors
/// The first peer whose greeting did not come, or was another, and why. The context is spent then.
pub(crate) fn exchange(
    context: &Context,
    generation: u64,
    facts: &[Facts],
    watch: &Watch<'_>,
    patience: Duration,
) -> Result<(), (RankId, String)> {
    let me = context.rank();
    let peers = || (0..context.world_size()).filter(|&peer| peer != me);
    let fail = |peer: usize, error: GlooError| (RankId::at(peer), format!("its greeting failed: {error}"));
    let mut messages = Vec::new();
    for peer in peers() {
        let failed = |error| fail(peer, error);
        let hears = Message::new(context, [0; WORDS]).map_err(failed)?;
        hears.buffer.recv(peer, slot(generation, peer, me)).map_err(failed)?;
        let says = Message::new(context, words(generation, facts, me, peer)).map_err(failed)?;
        says.buffer.send(peer, slot(generation, me, peer)).map_err(failed)?;
        messages.push((peer, hears, says));
    }
    let until = watch.deadline().min(Instant::now() + patience);
    for (peer, hears, says) in messages {
        // A wait that runs out breaks all connections, which is right here: the attempt is over then.
        let left = || Some(until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let heard = hears.buffer.wait_recv(left()).and_then(|_| says.buffer.wait_send(left()));
        if let Err(error) = heard {
            // The first failure counts, and not the broken connections that follow from it.
            return Err(match watch.fault() {
                Some(fault) => (fault.blamed, fault.cause),
                None => fail(peer, error),
            });
        }
        let Message { buffer, words: heard } = hears;
        drop(buffer);
        if *heard.into_box() != words(generation, facts, peer, me) {
            return Err((RankId::at(peer), "its greeting is not that of this rank".into()));
        }
    }
    Ok(())
}
