//! Ranks on threads that meet as processes do, on hosts of the names that they are given.

use std::time::{Duration, Instant};

use eplb_comm::conformance::{self, Rank, Setup};
use eplb_comm::store::{InProcessStore, StoreAddress};
use eplb_comm::{Carried, CommError, Fence, Progress};
use eplb_core::{ExpertId, Landing, LayerId, SlotId, TensorLayout, Transfer};

use super::*;

const L: LayerId = LayerId(0);

/// Gloo on the loopback interface; where it is not there, its absence has to be allowed.
fn gloo() -> Option<GlooTransport> {
    match GlooTransport::new(None, &StoreAddress::File("/".into())) {
        Ok(gloo) => Some(gloo),
        Err(error) => {
            let allowed = std::env::var_os("EPLB_TESTS_WITHOUT_GLOO").is_some();
            assert!(allowed, "{error}; EPLB_TESTS_WITHOUT_GLOO=1 leaves out what needs it");
            eprintln!("not run: {error}");
            None
        }
    }
}

/// A rank that is on a host of this name.
fn on(host: &str, gloo: Option<&GlooTransport>) -> AutoTransport {
    let gloo = gloo.cloned().ok_or_else(|| EngineError::Options("gloo is not to be had here".into()));
    AutoTransport::new(gloo).on_host(HostId::named(host))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

/// Memory of two slots for each rank, that others can open but for those of the ranks in `alone`; slot `p` holds expert `p`.
fn memories(ranks: usize, alone: &[usize]) -> Vec<Arc<HostMemory>> {
    let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 5000)]]).unwrap());
    let made = (0..ranks).map(|rank| {
        let (slots, layout) = (2 * rank..2 * rank + 2, layout.clone());
        let memory = match alone.contains(&rank) {
            true => HostMemory::new(RankId::at(rank), layout, slots.clone(), 0).unwrap(),
            false => HostMemory::shared(RankId::at(rank), layout, slots.clone(), 0).unwrap(),
        };
        slots.for_each(|slot| memory.fill(L, SlotId::at(slot), ExpertId::at(slot)).unwrap());
        memory
    });
    made.collect()
}

type Made = Result<Box<dyn Communicator>, EngineError>;

/// All ranks meet, those of `absent` do not come; what became of each of the others.
fn meet(
    autos: &[AutoTransport],
    memories: &[Arc<HostMemory>],
    absent: &[usize],
    deadline: Instant,
) -> Vec<(usize, Made)> {
    let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
    std::thread::scope(|scope| {
        let join = |rank: usize| {
            let (store, memory) = (store.clone(), memories[rank].clone());
            let meeting =
                Meeting { rank: RankId::at(rank), world_size: autos.len(), store, memory, deadline };
            scope.spawn(move || autos[rank].connect(meeting))
        };
        let came: Vec<_> = (0..autos.len()).filter(|rank| !absent.contains(rank)).collect();
        let threads: Vec<_> = came.iter().map(|&rank| join(rank)).collect();
        came.into_iter().zip(threads).map(|(rank, thread)| (rank, thread.join().unwrap())).collect()
    })
}

/// Slot `to` of its rank gets the expert of slot `from` of another.
fn transfer(from: usize, to: usize) -> Transfer {
    Transfer {
        layer: L,
        expert: ExpertId::at(from),
        source: RankId::at(from / 2),
        source_slot: SlotId::at(from),
        dest: RankId::at(to / 2),
        dest_slot: SlotId::at(to),
        landing: Landing::InPlace,
    }
}

/// Bytes over links that each backend carried into each rank in one wave, all bytes right.
fn carry(
    made: &mut [Box<dyn Communicator>],
    memories: &[Arc<HostMemory>],
    wave: &[Transfer],
) -> Vec<Vec<(&'static str, u64)>> {
    let whole: Arc<[Transfer]> = wave.into();
    let tickets: Vec<_> =
        made.iter_mut().map(|rank| rank.submit(&whole, Fence::passed(), soon()).unwrap()).collect();
    for (rank, ticket) in made.iter_mut().zip(tickets) {
        while rank.poll(ticket).unwrap() == Progress::Pending {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    for one in wave {
        assert_eq!(
            memories[one.dest.index()].count_wrong(L, one.dest_slot, one.expert).unwrap(),
            0,
            "{one:?}"
        );
    }
    let by = |carried: Vec<(&'static str, Carried)>| {
        carried.into_iter().map(|(name, carried)| (name, carried.link_bytes)).collect()
    };
    made.iter().map(|rank| by(rank.carried_by())).collect()
}

fn names(auto: &AutoTransport) -> Vec<&'static str> {
    auto.reasons().iter().map(|reason| reason.backend).collect()
}

fn words(auto: &AutoTransport) -> String {
    auto.reasons().iter().map(|reason| reason.why.clone()).collect::<Vec<_>>().join(" | ")
}

fn all(made: Vec<(usize, Made)>) -> Vec<Box<dyn Communicator>> {
    made.into_iter().map(|(_, made)| made.unwrap()).collect()
}

/// From the rank of the same node and from one of the other, into every rank.
const CROSSING: [(usize, usize); 8] = [(2, 1), (4, 0), (0, 3), (6, 2), (6, 5), (0, 4), (4, 7), (2, 6)];

#[test]
fn two_nodes_have_peer_inside_and_gloo_between_in_one_wave() {
    let Some(gloo) = gloo() else { return };
    let (autos, memories) = (["a", "a", "b", "b"].map(|host| on(host, Some(&gloo))), memories(4, &[]));
    let mut made = all(meet(&autos, &memories, &[], soon()));
    // Odd slots are sources of nobody, even ones of two; so nothing is written that is read.
    let wave: Vec<_> =
        CROSSING.into_iter().filter(|(_, to)| to % 2 == 1).map(|(f, t)| transfer(f, t)).collect();
    let far: Vec<_> = [(4, 1), (6, 3), (0, 5), (2, 7)].map(|(f, t)| transfer(f, t)).into();
    for by in carry(&mut made, &memories, &wave) {
        assert_eq!(by, [("peer (host memory)", 5000), ("gloo", 0)]);
    }
    for by in carry(&mut made, &memories, &far) {
        assert_eq!(by, [("peer (host memory)", 5000), ("gloo", 5000)]);
    }
    // Both in one: rank 0 from rank 1, rank 1 from rank 2, rank 2 from rank 3, rank 3 from rank 0.
    let ring: Vec<_> = [(2, 1), (4, 3), (6, 5), (0, 7)].map(|(f, t)| transfer(f, t)).into();
    let sums: Vec<u64> =
        carry(&mut made, &memories, &ring).iter().flatten().map(|(_, bytes)| *bytes).collect();
    assert_eq!(sums, [10_000, 5000, 5000, 10_000, 10_000, 5000, 5000, 10_000]);
    for (auto, made) in autos.iter().zip(&made) {
        assert_eq!(made.backend(), "peer (host memory) and gloo");
        assert!(made.bulletin().is_none(), "pages reach the ranks of one node alone");
        assert_eq!(names(auto), ["peer (host memory)", "peer (host memory) and gloo"]);
        let told = words(auto);
        assert!(
            told.contains("rank 0 is on host a, rank 2 on b") && told.contains("ranks 0 1, ranks 2 3"),
            "{told}"
        );
    }
}

#[test]
fn ranks_that_all_reach_each_other_have_peer_alone() {
    let (autos, memories) = ([on("a", None), on("a", None), on("a", None)], memories(3, &[]));
    let mut made = all(meet(&autos, &memories, &[], soon()));
    let wave: Vec<_> = [(2, 1), (4, 3), (0, 5)].map(|(f, t)| transfer(f, t)).into();
    for by in carry(&mut made, &memories, &wave) {
        assert_eq!(by, [("peer (host memory)", 5000)]);
    }
    assert!(made.iter().all(|made| made.bulletin().is_some()));
    assert_eq!(names(&autos[1]), ["peer (host memory)"]);
}

#[test]
fn a_rank_whose_memory_cannot_be_opened_is_reached_over_gloo_and_named() {
    let Some(gloo) = gloo() else { return };
    let (autos, memories) = (["a"; 3].map(|host| on(host, Some(&gloo))), memories(3, &[1]));
    let mut made = all(meet(&autos, &memories, &[], soon()));
    let wave: Vec<_> = [(4, 1), (0, 3), (2, 5)].map(|(f, t)| transfer(f, t)).into();
    let by = carry(&mut made, &memories, &wave);
    assert_eq!(by.iter().map(|by| [by[0].1, by[1].1]).collect::<Vec<_>>(), [[5000, 0], [0, 5000], [0, 5000]]);
    for auto in &autos {
        let told = words(auto);
        assert!(
            told.contains("the memory of rank 1 cannot be opened") && told.contains("ranks 0 2"),
            "{told}"
        );
    }
    // Where no two ranks are left that reach each other, Gloo has all.
    let (autos, memories) = (["a"; 2].map(|host| on(host, Some(&gloo))), self::memories(2, &[1]));
    let mut made = all(meet(&autos, &memories, &[], soon()));
    assert_eq!(carry(&mut made, &memories, &[transfer(0, 3)])[1], [("gloo", 5000)]);
    assert_eq!(names(&autos[0]), ["peer (host memory)", "gloo"]);
}

#[test]
fn what_one_rank_lacks_all_say_at_once() {
    let Some(gloo) = gloo() else { return };
    let autos = [on("a", Some(&gloo)), on("b", None), on("b", Some(&gloo))];
    for (rank, made) in meet(&autos, &memories(3, &[]), &[], soon()) {
        let said = made.unwrap_err().to_string();
        for word in ["backend auto", "gloo: rank 1: gloo is not to be had here", "rank 0 is on host a"] {
            assert!(said.contains(word), "rank {rank}: {said}");
        }
    }
}

#[test]
fn a_rank_that_does_not_come_is_an_error_of_all_in_time() {
    let Some(gloo) = gloo() else { return };
    let autos = ["a"; 3].map(|host| on(host, Some(&gloo)));
    let deadline = Instant::now() + Duration::from_secs(2);
    for (rank, made) in meet(&autos, &memories(3, &[]), &[2], deadline) {
        assert!(made.is_err(), "rank {rank} took a backend though nobody knows what rank 2 found");
        assert_eq!(autos[rank].reasons(), [], "rank {rank}");
    }
}

/// Planted: a rank that does not listen to what others found, and takes `peer`.
#[test]
fn a_rank_that_decides_alone_is_found_by_all() {
    let Some(gloo) = gloo() else { return };
    let mut autos = [on("a", Some(&gloo)), on("b", Some(&gloo)), on("b", Some(&gloo))];
    autos[2].deaf = true;
    for (rank, made) in meet(&autos, &memories(3, &[]), &[], soon()) {
        let said = made.unwrap_err().to_string();
        assert!(said.contains("rank 2"), "rank {rank}: {said}");
        assert_eq!(autos[rank].reasons(), [], "rank {rank}");
    }
}

/// Half of the ranks are on each of two hosts.
fn two_nodes(gloo: &GlooTransport, setup: &Setup) -> Result<Vec<Rank>, CommError> {
    let ranks = setup.slots.len();
    let memories = setup.slots.iter().zip(&setup.layouts).enumerate().map(|(rank, (slots, layout))| {
        HostMemory::shared(RankId::at(rank), layout.clone(), slots.clone(), setup.staging_bytes)
    });
    let memories: Vec<_> = memories.collect::<Result<_, _>>()?;
    let autos: Vec<_> =
        (0..ranks).map(|rank| on(if 2 * rank < ranks { "a" } else { "b" }, Some(gloo))).collect();
    let made = meet(&autos, &memories, &[], soon());
    let failed = |error: EngineError| CommError::Foreign {
        rank: RankId(0),
        call: "connect".into(),
        code: -1,
        detail: error.to_string(),
    };
    let made = made.into_iter().map(|(_, made)| made.map_err(failed));
    made.zip(memories).map(|(made, memory)| Ok(Rank::new(made?, memory))).collect()
}

#[test]
fn both_together_keep_the_promises_of_one_backend() {
    let Some(gloo) = gloo() else { return };
    let options = conformance::Options { waves: 6, ..conformance::Options::default() };
    conformance::run_all(&mut |setup: &Setup| two_nodes(&gloo, setup), &options).unwrap();
}
