//! Ranks that are killed and stopped while bytes are under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::conformance::{RankMemory, Setup};
use eplb_comm::{CommError, Communicator, Fence, Place, Progress, Ticket};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, RankId, SlotId, TensorLayout, Transfer};

use crate::remote::{self, Remote, RemoteMemory};

const RANKS: usize = 4;
const VICTIM: usize = 2;

/// Experts so large that a wave takes a while.
fn setup() -> Setup {
    let tensors = vec![TensorLayout::contiguous("w", 24 << 20), TensorLayout::contiguous("scale", 40)];
    let layout = Arc::new(ModelLayout::new(vec![tensors]).unwrap());
    Setup {
        name: "large",
        layouts: vec![layout; RANKS],
        slots: (0..RANKS).map(|rank| 2 * rank..2 * rank + 2).collect(),
        staging_bytes: 0,
    }
}

/// Every rank's first expert to the second slot of the next.
fn ring() -> Arc<[Transfer]> {
    (0..RANKS)
        .map(|rank| Transfer {
            layer: LayerId(0),
            expert: ExpertId::at(2 * rank),
            source: RankId::at(rank),
            source_slot: SlotId::at(2 * rank),
            dest: RankId::at((rank + 1) % RANKS),
            dest_slot: SlotId::at(2 * ((rank + 1) % RANKS) + 1),
            landing: Landing::InPlace,
        })
        .collect()
}

struct Scene {
    ranks: Vec<Remote>,
    memories: Vec<RemoteMemory>,
}

impl Scene {
    fn new(store: SocketAddr) -> Self {
        let links = remote::start(&setup(), store);
        let mut memories: Vec<_> = links.iter().map(|link| RemoteMemory { link: link.clone() }).collect();
        for (rank, memory) in memories.iter_mut().enumerate() {
            for slot in 2 * rank..2 * rank + 2 {
                memory.fill(LayerId(0), SlotId::at(slot), ExpertId::at(slot)).unwrap();
            }
        }
        let rank = |(rank, link)| Remote { link, rank: RankId::at(rank), world: RANKS };
        Self { ranks: links.into_iter().enumerate().map(rank).collect(), memories }
    }

    fn submit(&mut self, time: Duration) -> Vec<Ticket> {
        let deadline = Instant::now() + time;
        self.ranks.iter_mut().map(|r| r.submit(&ring(), Fence::passed(), deadline).unwrap()).collect()
    }

    fn outcome(&mut self, rank: usize, ticket: Ticket) -> Result<(), CommError> {
        let patience = Instant::now() + Duration::from_secs(30);
        while self.ranks[rank].poll(ticket)? == Progress::Pending {
            assert!(Instant::now() < patience, "rank {rank} hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// What was in place before is untouched on every survivor.
    fn sources_are_whole(&mut self) {
        for rank in (0..RANKS).filter(|&rank| rank != VICTIM) {
            let bytes = self.memories[rank].read(Place::slot(LayerId(0), SlotId::at(2 * rank))).unwrap();
            let wrong: u64 = bytes
                .iter()
                .enumerate()
                .map(|(t, b)| eplb_comm::pattern::count_wrong(LayerId(0), ExpertId::at(2 * rank), t, 0, b))
                .sum();
            assert_eq!(wrong, 0, "rank {rank}");
        }
    }
}

fn survivors() -> impl Iterator<Item = usize> {
    (0..RANKS).filter(|&rank| rank != VICTIM)
}

/// SIGKILL amid a wave: every survivor names the dead rank, long before the deadline, and its memory is quiet.
pub(crate) fn a_rank_that_is_killed_is_named_by_all(store: SocketAddr) {
    let mut scene = Scene::new(store);
    let tickets = scene.submit(Duration::from_secs(60));
    scene.ranks[VICTIM].link.signal(libc::SIGKILL);
    for rank in survivors() {
        match scene.outcome(rank, tickets[rank]) {
            // Its own part may have been over.
            Ok(()) => {}
            Err(CommError::Transfer { rank: own, peer, cause }) => {
                assert_eq!((own.index(), peer.index()), (rank, VICTIM), "{cause}");
            }
            Err(other) => panic!("rank {rank}: {other}"),
        }
    }
    // Whoever was done hears of it with the next wave.
    for rank in survivors() {
        let deadline = Instant::now() + Duration::from_secs(60);
        let ticket = scene.ranks[rank].submit(&ring(), Fence::passed(), deadline).unwrap();
        let error = scene.outcome(rank, ticket).unwrap_err();
        assert!(matches!(error, CommError::Transfer { peer, .. } if peer.index() == VICTIM), "{error}");
    }
    scene.sources_are_whole();
}

/// SIGKILL between waves: seen without any traffic.
pub(crate) fn a_death_is_seen_while_idle(store: SocketAddr) {
    let mut scene = Scene::new(store);
    scene.ranks[VICTIM].link.signal(libc::SIGKILL);
    for rank in survivors() {
        let deadline = Instant::now() + Duration::from_secs(60);
        let ticket = scene.ranks[rank].submit(&ring(), Fence::passed(), deadline).unwrap();
        let error = scene.outcome(rank, ticket).unwrap_err();
        assert!(matches!(error, CommError::Transfer { peer, .. } if peer.index() == VICTIM), "{error}");
    }
}

/// SIGSTOP: nothing breaks, so the deadline ends the wave; the rank that resumes finds its generation over, and a new one
/// works for all.
pub(crate) fn a_rank_that_is_stopped_costs_a_deadline(store: SocketAddr) {
    let mut scene = Scene::new(store);
    scene.ranks[VICTIM].link.signal(libc::SIGSTOP);
    // Time enough, on a busy machine, for those who need nothing of the victim.
    let deadline = Instant::now() + Duration::from_secs(3);
    let tickets: Vec<_> = survivors()
        .map(|rank| (rank, scene.ranks[rank].submit(&ring(), Fence::passed(), deadline).unwrap()))
        .collect();
    for &(rank, ticket) in &tickets {
        // The ranks beside it wait for it; the one that it has no part with may be done.
        match scene.outcome(rank, ticket) {
            Ok(()) => assert!((rank + 1) % RANKS != VICTIM && rank != (VICTIM + 1) % RANKS),
            Err(CommError::Timeout { rank: own, .. }) => assert_eq!(own.index(), rank),
            Err(other) => panic!("rank {rank}: {other}"),
        }
    }
    assert!(
        Instant::now() < deadline + Duration::from_secs(30),
        "far past the deadline, even for a busy machine"
    );
    scene.ranks[VICTIM].link.signal(libc::SIGCONT);
    let ticket =
        scene.ranks[VICTIM].submit(&ring(), Fence::passed(), Instant::now() + Duration::from_secs(60));
    let error = scene.outcome(VICTIM, ticket.unwrap()).unwrap_err();
    assert!(error.to_string().contains("says: "), "{error}");
    scene.sources_are_whole();
    std::thread::scope(|scope| {
        let all: Vec<_> = scene.ranks.iter().map(|rank| scope.spawn(|| rank.link.rebuild())).collect();
        all.into_iter().for_each(|one| one.join().unwrap().unwrap());
    });
    let tickets = scene.submit(Duration::from_secs(30));
    for rank in 0..RANKS {
        scene.outcome(rank, tickets[rank]).unwrap();
    }
}
