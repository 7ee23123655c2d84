//! Sees connections break, whether or not bytes are under way.
//!
//! Gloo tells of a broken connection only whoever has an operation on it, and not even all of those: a send that it is in the middle of
//! writing may wait for ever. A receive that was posted and not begun is told reliably. So one is posted on every connection, for a
//! message that nobody sends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eplb_core::RankId;
use gloo_sys::{Buffer, Context, GlooError};

use crate::slot::WaveId;
use crate::words::Words;

/// Pause between two looks at the connections until the broken one shows.
const PAUSE: Duration = Duration::from_micros(200);

/// The receives that nobody answers.
#[derive(Debug)]
pub(crate) struct Sentry {
    /// One buffer with a receive from every peer: what the thread blocks on.
    any: Buffer,
    /// One buffer per peer, to find out which one it was.
    each: Vec<(RankId, Buffer)>,
    dismissed: AtomicBool,
    /// Where bytes would land. Dropped after the buffers: fields drop in their order.
    _landing: Words,
}

impl Sentry {
    pub(crate) fn post(context: &Context, generation: u64) -> Result<Self, GlooError> {
        let me = context.rank();
        let peers: Vec<usize> = (0..context.world_size()).filter(|&peer| peer != me).collect();
        let landing = Words::new(&vec![0; peers.len() + 1]);
        let mut buffers = landing.addresses().map(|word| {
            // SAFETY: the word outlives the buffer, see the field, and nobody looks at it.
            unsafe { context.buffer(word, size_of::<u64>()) }
        });
        let slot = |number| WaveId { generation, sequence: u64::MAX - 1, hash: 0 }.slot(number, 0);
        let Some(any) = buffers.next().transpose()? else { unreachable!("one word at least") };
        peers.iter().try_for_each(|&peer| any.recv(peer, slot(0)))?;
        let mut each = Vec::new();
        for (&peer, one) in peers.iter().zip(buffers) {
            let one = one?;
            one.recv(peer, slot(1))?;
            each.push((RankId::at(peer), one));
        }
        Ok(Self { any, each, dismissed: AtomicBool::new(false), _landing: landing })
    }

    /// Blocks until a connection breaks, and names its peer; `None` after [`Sentry::dismiss`].
    pub(crate) fn watch(&self) -> Option<(RankId, String)> {
        self.any.wait_recv(None).err()?;
        // Gloo tells all receives of a connection, one after another: the other one is told later, by as much as its thread is kept
        // from it.
        show(&self.dismissed, || self.each.iter().find_map(broken))
    }

    /// Ends the watch.
    pub(crate) fn dismiss(&self) {
        // No memory is handed over with it.
        self.dismissed.store(true, Ordering::Relaxed);
        self.any.cancel_recv();
    }
}

/// Looks until something shows, however late; `None` once dismissed.
fn show<T>(dismissed: &AtomicBool, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    while !dismissed.load(Ordering::Relaxed) {
        let found = look();
        if found.is_some() {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
    None
}

/// The error of a connection that is broken.
fn broken((peer, buffer): &(RankId, Buffer)) -> Option<(RankId, String)> {
    // The wait returns at once: with the error where there is one, else cancelled.
    buffer.cancel_recv();
    buffer.wait_recv(None).err().map(|error| (*peer, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_is_looked_for_until_it_shows_or_nobody_asks() {
        let dismissed = AtomicBool::new(false);
        let mut looks = 0..200;
        assert_eq!(show(&dismissed, || if looks.next().is_none() { Some(7) } else { None }), Some(7));
        let nothing = show(&dismissed, || {
            dismissed.store(true, Ordering::Relaxed);
            None::<usize>
        });
        assert_eq!(nothing, None);
    }
}
