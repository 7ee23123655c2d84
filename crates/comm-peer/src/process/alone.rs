//! The pages of ranks alone, for backends that carry bytes in another way.

use std::sync::Arc;
use std::time::Duration;

use eplb_comm::{Bulletin, Extent};
use eplb_core::ModelLayout;

use super::card::Memory;
use super::error::PeerError;
use super::meet::{Meeting, Neighbour, Offer};

/// A way to say something to all ranks of a communicator at once, for ranks that are processes of one host. All ranks call it together, for
/// each communicator that they make; nothing of their memory is opened.
///
/// # Errors
/// A rank did not come, is on another host or has other tensors (then all say so), or the system refused a socket or a page.
pub fn join_bulletin(
    meeting: &Meeting,
    layout: &Arc<ModelLayout>,
    extent: Extent,
) -> Result<Arc<dyn Bulletin>, PeerError> {
    let offer =
        Offer { layout, extent, memory: Memory::Elsewhere, files: Vec::new(), patience: Duration::ZERO };
    let met = meeting.meet(offer, |_: Neighbour| Ok(()))?;
    Ok(met.pages.board())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use eplb_comm::store::{InProcessStore, Store};
    use eplb_core::{RankId, TensorLayout};

    use super::*;

    fn join(
        store: &Arc<dyn Store>,
        rank: u32,
        host: &str,
        patience: Duration,
    ) -> Result<Arc<dyn Bulletin>, PeerError> {
        let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 8)]]).unwrap());
        let extent = Extent { rank: RankId(rank), slots: rank as usize..rank as usize + 1, staging_bytes: 0 };
        let deadline = Instant::now() + patience;
        let (store, host) = (store.clone(), host.to_owned());
        join_bulletin(&Meeting { rank: RankId(rank), world_size: 3, store, host, deadline }, &layout, extent)
    }

    #[test]
    fn what_one_says_all_others_read() {
        let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
        let boards: Vec<_> = std::thread::scope(|scope| {
            let start = |rank| {
                let store = &store;
                scope.spawn(move || join(store, rank, "h", Duration::from_secs(60)).unwrap())
            };
            let threads: Vec<_> = (0..3).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (rank, board) in boards.iter().enumerate() {
            board.post(format!("rank {rank}").as_bytes()).unwrap();
        }
        for (rank, board) in boards.iter().enumerate() {
            let expected: Vec<_> = (0..3u32)
                .filter(|&other| other as usize != rank)
                .map(|other| (RankId(other), format!("rank {other}").into_bytes()))
                .collect();
            assert_eq!(board.read().unwrap(), expected);
            assert_eq!(board.read().unwrap(), []);
        }
    }

    #[test]
    fn ranks_of_several_hosts_have_none() {
        let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
        let found: Vec<_> = std::thread::scope(|scope| {
            let start = |rank| {
                let store = &store;
                let host = if rank == 1 { "another" } else { "h" };
                scope.spawn(move || join(store, rank, host, Duration::from_secs(60)).map(drop))
            };
            let threads: Vec<_> = (0..3).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(found.iter().all(Result::is_err), "{found:?}");
    }
}
