//! Two backends in one wave pass the suite of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::conformance::{Options, Rank, Setup, run_all};
use eplb_comm::host::HostMemory;
use eplb_comm::local::{LocalCommunicator, LocalGroup};
use eplb_comm::{CommError, Communicator, Fence, Intercept, Intercepted, Mixed, Progress};
use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, NodeId, RankId, SlotId, TensorLayout, Transfer};

fn memories(setup: &Setup) -> Result<Vec<Arc<HostMemory>>, CommError> {
    let memory = |(rank, slots): (usize, &std::ops::Range<usize>)| {
        HostMemory::new(RankId::at(rank), setup.layouts[rank].clone(), slots.clone(), setup.staging_bytes)
    };
    setup.slots.iter().enumerate().map(memory).collect()
}

/// Ranks in two nodes, as far as they go: those before the middle are in the first.
fn nodes(ranks: usize) -> Vec<NodeId> {
    let second = if ranks > 1 && ranks.is_multiple_of(2) { ranks / 2 } else { ranks };
    (0..ranks).map(|rank| NodeId(u32::from(rank >= second))).collect()
}

fn mixed(memories: &[Arc<HostMemory>]) -> Result<Vec<Mixed>, CommError> {
    let group = || LocalGroup::new(memories.to_vec(), 2);
    let nodes = nodes(memories.len());
    let pair = |(inside, between): (LocalCommunicator, LocalCommunicator)| {
        Mixed::new("local and local", Box::new(inside), Box::new(between), nodes.clone())
    };
    group()?.into_iter().zip(group()?).map(pair).collect()
}

#[test]
fn two_backends_keep_the_promises_of_one() {
    let mut backend = |setup: &Setup| -> Result<Vec<Rank>, CommError> {
        let memories = memories(setup)?;
        let ranks = mixed(&memories)?;
        Ok(ranks.into_iter().zip(memories).map(|(c, m)| Rank::new(c, m)).collect())
    };
    run_all(&mut backend, &Options::default()).unwrap();
}

const L: LayerId = LayerId(0);

/// Four ranks of two slots; slot `p` holds expert `p`.
fn four() -> Vec<Arc<HostMemory>> {
    let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 64)]]).unwrap());
    let made = (0..4).map(|rank| {
        let memory = HostMemory::new(RankId::at(rank), layout.clone(), 2 * rank..2 * rank + 2, 0).unwrap();
        (2 * rank..2 * rank + 2)
            .for_each(|slot| memory.fill(L, SlotId::at(slot), ExpertId::at(slot)).unwrap());
        memory
    });
    made.collect()
}

fn transfer(from: u32, to: u32) -> Transfer {
    Transfer {
        layer: L,
        expert: ExpertId(from),
        source: RankId(from / 2),
        source_slot: SlotId(from),
        dest: RankId(to / 2),
        dest_slot: SlotId(to),
        landing: Landing::InPlace,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A part that counts what it was handed.
#[derive(Debug)]
struct Counting(Arc<AtomicUsize>);

impl Intercept for Counting {
    fn submitted(&mut self, transfers: &[Transfer]) {
        self.0.fetch_add(transfers.len(), Ordering::Relaxed);
    }
}

#[test]
fn each_backend_carries_its_own_part_of_one_wave() {
    let memories = four();
    let part = || {
        let count = Arc::new(AtomicUsize::new(0));
        let mut group = LocalGroup::new(memories.clone(), 1).unwrap();
        let counting = Intercepted::new(Box::new(group.swap_remove(1)), Counting(count.clone()));
        (Box::new(counting), count, group)
    };
    let ((inside, near, _others), (between, far, _other_others)) = (part(), part());
    let mut rank = Mixed::new("both", inside, between, nodes(4)).unwrap();
    // Into rank 1 from its own node, and twice from the other.
    let wave: Arc<[Transfer]> = [transfer(0, 2), transfer(5, 3)].into();
    let ticket = rank.submit(&wave, Fence::passed(), soon()).unwrap();
    let fence = rank.done(ticket).unwrap();
    fence.wait(RankId(1), "the wave", soon()).unwrap();
    assert_eq!(rank.poll(ticket).unwrap(), Progress::Done);
    for (slot, expert) in [(2, 0), (3, 5)] {
        assert_eq!(memories[1].count_wrong(L, SlotId(slot), ExpertId(expert)).unwrap(), 0);
    }
    assert_eq!([near, far].map(|count| count.load(Ordering::Relaxed)), [1, 1]);
    assert_eq!(rank.carried().link_bytes, 128);
    let by: Vec<_> =
        rank.carried_by().into_iter().map(|(name, carried)| (name, carried.link_bytes)).collect();
    assert_eq!(by, [("local", 64), ("local", 64)]);
}

#[test]
fn a_wave_that_one_part_refuses_moves_no_byte() {
    let memories = four();
    let mut ranks = mixed(&memories).unwrap();
    let nowhere = Transfer { dest_slot: SlotId(9), ..transfer(5, 3) };
    let refused = ranks[1].submit(&[transfer(0, 2), nowhere].into(), Fence::passed(), soon()).unwrap_err();
    assert!(matches!(refused, CommError::NoSuchPlace { .. }), "{refused:?}");
    assert_eq!(memories[1].count_wrong(L, SlotId(2), ExpertId(2)).unwrap(), 0);
    assert_eq!(ranks[1].carried().transfers, 0);
    // And the next one goes.
    let ticket = ranks[1].submit(&[transfer(0, 2)].into(), Fence::passed(), soon()).unwrap();
    ranks[1].done(ticket).unwrap().wait(RankId(1), "the wave", soon()).unwrap();
}

#[test]
fn backends_of_other_ranks_are_not_mixed() {
    let mut group = LocalGroup::new(four(), 1).unwrap();
    let (second, first) = (group.swap_remove(1), group.swap_remove(0));
    let error = Mixed::new("both", Box::new(first), Box::new(second), nodes(4)).unwrap_err().to_string();
    assert!(error.contains("of 4 ranks and"), "{error}");
    let mut group = LocalGroup::new(four(), 1).unwrap();
    let mut again = LocalGroup::new(four(), 1).unwrap();
    let (a, b) = (Box::new(group.swap_remove(0)), Box::new(again.swap_remove(0)));
    assert!(Mixed::new("both", a, b, nodes(2)).is_err(), "nodes of other ranks");
}
