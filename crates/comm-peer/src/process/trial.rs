//! Whether this machine lets processes share memory: tried out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::HostMemory;
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm::{CommError, Communicator, Fence, Progress};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

use super::error::PeerError;
use super::host::join_host;
use super::meet::Meeting;
use crate::communicator::PeerCommunicator;
use crate::options::Options;

/// Bytes that are pulled.
const BYTES: usize = 64 << 10;
/// A trial takes milliseconds; this ends one of which a part hangs, and is no measure of a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Joins two ranks as processes would, here on threads of this process, and pulls an expert whose bytes are compared: over anonymous files,
/// sockets that carry their descriptors, and pages of words.
///
/// # Errors
/// What this machine does not let processes do, or bytes that are not those of the expert.
pub fn try_host() -> Result<(), PeerError> {
    let layout = Arc::new(
        ModelLayout::new(vec![vec![TensorLayout::contiguous("trial", BYTES)]]).map_err(CommError::Core)?,
    );
    let memory = |rank: usize| HostMemory::shared(RankId::at(rank), layout.clone(), rank..rank + 1, 0);
    let memories = [memory(0)?, memory(1)?];
    let (layer, expert) = (LayerId(0), ExpertId(7));
    memories[0].fill(layer, SlotId(0), expert)?;
    let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
    let deadline = Instant::now() + PATIENCE;
    let join = |rank: usize| {
        let (host, store) = ("here".to_owned(), store.clone());
        let meeting = Meeting { rank: RankId::at(rank), world_size: 2, store, host, deadline };
        join_host(&meeting, memories[rank].clone(), &Options::default())
    };
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| join(1));
        let first = join(0);
        let lost =
            |_| PeerError::Refused { rank: RankId(1), what: "a thread".into(), detail: "it panicked".into() };
        (first, other.join().map_err(lost).flatten())
    });
    let mut ranks = [first?, second?];
    let pull = Transfer {
        layer,
        expert,
        source: RankId(0),
        source_slot: SlotId(0),
        dest: RankId(1),
        dest_slot: SlotId(1),
        landing: Landing::InPlace,
    };
    let wave: Arc<[Transfer]> = Arc::new([pull]);
    let submit = |rank: &mut PeerCommunicator| rank.submit(&wave, Fence::passed(), deadline);
    let tickets = [submit(&mut ranks[0])?, submit(&mut ranks[1])?];
    for (rank, ticket) in ranks.iter_mut().zip(tickets) {
        while rank.poll(ticket)? == Progress::Pending {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    match memories[1].count_wrong(layer, SlotId(1), expert)? {
        0 => Ok(()),
        wrong => Err(PeerError::not_opened(
            RankId(1),
            RankId(0),
            format!("{wrong} bytes that were pulled are wrong"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_shares_memory() {
        assert_eq!(try_host(), Ok(()));
    }
}
