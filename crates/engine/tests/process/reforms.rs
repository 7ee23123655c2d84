//! Members change: ranks leave, join, die and are renumbered, on threads here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::Memory;
use eplb_comm::host::HostMemory;
use eplb_core::{ExpertId, LayerId, LoadMatrix, Placement, RankId, SlotId, Topology};
use eplb_engine::EngineError;
use eplb_engine::deadlines::Deadlines;
use eplb_engine::process::membership::{MembershipError, Stayed};
use eplb_engine::process::{Job, MadeUp, Member, Reform, Reformed, Session, Source};
use eplb_plan::{Options, Planner, Policy, Request};
use ndarray::Array2;

use super::support::{
    EXPERTS, LAYERS, Threads, deadlines, in_process, job, loads, on_threads, random, topology,
};

pub(crate) fn replan(
    placement: &Placement,
    topology: &Topology,
) -> Result<(Placement, Array2<f64>), EngineError> {
    let matrix = LoadMatrix::from_sum(loads())?;
    let options = Options { policy: Policy::Incremental, target: Some(0.9), ..Options::default() };
    let request = Request::new(&matrix, topology, &options).with_current(placement);
    Ok((Planner::new(1)?.plan(&request)?.placement, loads()))
}

pub(crate) fn short() -> Deadlines {
    let mut deadlines = deadlines();
    deadlines.store.peer_timeout = Duration::from_secs(5);
    deadlines.store.collective = Duration::from_secs(10);
    deadlines.reform.gather = Duration::from_secs(3);
    deadlines.reform.join = Duration::from_secs(3);
    deadlines
}

/// Every expert has a slot, and every slot that the placement names holds that expert, byte by byte.
pub(crate) fn assert_whole(member: &Member) {
    assert_eq!(member.check().unwrap(), 0);
    let placement = member.placement();
    assert_eq!(placement.missing().count(), 0);
    for layer in (0..placement.layers()).map(LayerId::at) {
        for slot in member.memory().slots().map(SlotId::at) {
            if let Some(expert) = placement.expert_at(layer, slot) {
                assert_eq!(member.memory().count_wrong(layer, slot, expert).unwrap(), 0);
            }
        }
    }
}

fn stayed(reformed: Reformed) -> Stayed {
    match reformed {
        Reformed::Stayed(stayed) => *stayed,
        Reformed::Left { .. } => panic!("it left"),
    }
}

fn membership(error: EngineError) -> MembershipError {
    match error {
        EngineError::AtStage { error, .. } => membership(*error),
        EngineError::Membership(error) => error,
        other => panic!("{other}"),
    }
}

/// A source that fetches nothing, counts what it is asked for, or refuses.
#[derive(Debug, Default)]
struct Asked {
    count: AtomicUsize,
    refuses: bool,
    lies: bool,
}

impl Source for Asked {
    fn fill(
        &self,
        memory: &Arc<HostMemory>,
        layer: LayerId,
        slot: SlotId,
        expert: ExpertId,
    ) -> Result<(), EngineError> {
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.refuses {
            return Err(EngineError::Options("the checkpoint is not there".into()));
        }
        if self.lies {
            let place = eplb_comm::Place::slot(layer, slot);
            return Ok(memory.declare(place, eplb_comm::host::Content::Expert(expert))?);
        }
        MadeUp.fill(memory, layer, slot, expert)
    }
}

fn started(store: &Arc<dyn eplb_comm::store::Store>, rank: RankId, ranks: usize, job: Job) -> Member {
    let session = Session::join(store.clone(), rank, ranks, &short()).unwrap();
    let mut member = Member::start(session, job).unwrap();
    member.rebalance(&random(1, &topology(ranks)), &loads()).unwrap();
    member
}

#[test]
fn experts_of_ranks_that_leave_move_off_first_and_the_rest_is_renumbered() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let source = Arc::new(Asked::default());
    let placements = on_threads(4, |rank| {
        let mut job = job(4, &transport);
        job.source = source.clone();
        let mut member = started(&store, rank, 4, job);
        let asked = source.count.load(Ordering::SeqCst);
        let reform = Reform::leave(member.topology(), &[RankId(0)]).unwrap();
        let reformed = member.reform(&reform, &mut replan).unwrap();
        if rank == RankId(0) {
            let Reformed::Left { drained } = reformed else { panic!("{reformed:?}") };
            assert!(drained.totals.moves > 0 && drained.bytes_wrong == 0);
            return None;
        }
        let stayed = stayed(reformed);
        assert_eq!((stayed.rank, member.rank()), (RankId(rank.0 - 1), RankId(rank.0 - 1)));
        assert_eq!((stayed.fetched.len(), stayed.absent.len()), (0, 0));
        assert!(stayed.drained.is_some_and(|drained| drained.totals.moves > 0));
        assert_eq!((member.topology().ranks(), member.placement().slots()), (3, 12));
        assert_whole(&member);
        // Nothing came from the source, and the next rebalance works.
        assert!(source.count.load(Ordering::SeqCst) == asked);
        let (new, loads) = replan(&random(5, member.topology()), member.topology()).unwrap();
        member.rebalance(&new, &loads).unwrap();
        assert_whole(&member);
        Some(member.placement().clone())
    });
    assert!(placements[1].is_some() && placements[1..].iter().all(|placement| *placement == placements[1]));
}

#[test]
fn ranks_may_be_renumbered_in_any_order() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    on_threads(3, |rank| {
        let session = Session::join(store.clone(), rank, 3, &short()).unwrap();
        let job = Job { topology: even(3), start: random(99, &even(3)), ..job(3, &transport) };
        let mut member = Member::start(session, job).unwrap();
        member.rebalance(&random(1, &even(3)), &loads()).unwrap();
        let mut reform = Reform::survivors(member.topology(), &[]);
        reform.mapping = vec![Some(RankId(2)), Some(RankId(0)), Some(RankId(1))];
        let before = member.placement().clone();
        let stayed =
            stayed(member.reform(&reform, &mut |current, _| Ok((current.clone(), loads()))).unwrap());
        assert_eq!(Some(stayed.rank), reform.mapping[rank.index()]);
        for layer in 0..LAYERS {
            for (old, new) in even(3).slots_of(rank).zip(even(3).slots_of(stayed.rank)) {
                assert_eq!(before.phy2log()[(layer, old)], member.placement().phy2log()[(layer, new)]);
            }
        }
        assert_whole(&member);
    });
}

fn even(ranks: usize) -> Topology {
    Topology::new(&vec![5; ranks]).unwrap()
}

#[test]
fn processes_join_with_empty_slots_and_get_experts() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let placements = on_threads(4, |rank| {
        let reform = Reform::join(&topology(2), &[8, 4]).unwrap();
        let mut job = job(2, &transport);
        let (member, stayed) = if rank.0 < 2 {
            let mut member = started(&store, rank, 2, job);
            let stayed = stayed(member.reform(&reform, &mut replan).unwrap());
            (member, stayed)
        } else {
            job.topology = reform.topology.clone();
            let wait = Duration::from_secs(20);
            Member::join(store.clone(), rank, job, wait, &short(), &mut replan).unwrap()
        };
        assert_eq!((stayed.rank, stayed.absent.len(), stayed.fetched.len()), (rank, 0, 0));
        assert!(stayed.filled.is_some_and(|filled| filled.totals.moves > 0 && filled.bytes_wrong == 0));
        assert_whole(&member);
        let layer = LayerId(0);
        assert!(
            member
                .memory()
                .slots()
                .any(|slot| member.placement().expert_at(layer, SlotId::at(slot)).is_some())
        );
        member.placement().clone()
    });
    assert!(placements.iter().all(|placement| *placement == placements[0]));
}

#[test]
fn who_comes_too_late_is_told_and_the_epoch_forms_without_it() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let reform = Reform::join(&topology(2), &[8, 4]).unwrap();
    let formed = AtomicBool::new(false);
    on_threads(4, |rank| {
        let mut job = job(2, &transport);
        match rank.0 {
            0 | 1 => {
                let mut member = started(&store, rank, 2, job);
                let stayed = stayed(member.reform(&reform, &mut replan).unwrap());
                formed.store(true, Ordering::SeqCst);
                assert_eq!(stayed.absent, [RankId(2)]);
                assert_eq!(stayed.planned, [RankId(0), RankId(1), RankId(3)]);
                assert_eq!((stayed.rank, member.topology().ranks()), (rank, 3));
                assert_whole(&member);
            }
            2 => {
                job.topology = reform.topology.clone();
                let end = Instant::now() + Duration::from_secs(60);
                while !formed.load(Ordering::SeqCst) {
                    assert!(Instant::now() < end, "the others did not form an epoch");
                    std::thread::sleep(Duration::from_millis(1));
                }
                let wait = Duration::from_secs(1);
                let late = Member::join(store.clone(), rank, job, wait, &short(), &mut replan);
                let error = membership(late.unwrap_err());
                assert!(
                    matches!(error, MembershipError::JoinTimeout { rank: RankId(2), latest: Some(_), .. }),
                    "{error}"
                );
            }
            _ => {
                job.topology = reform.topology.clone();
                let wait = Duration::from_secs(20);
                let joined = Member::join(store.clone(), rank, job, wait, &short(), &mut replan);
                let (member, stayed) = joined.unwrap();
                // It moves up, because rank 2 is not there.
                assert_eq!((stayed.rank, member.rank()), (RankId(2), RankId(2)));
                assert_whole(&member);
            }
        }
    });
}

#[test]
fn what_only_the_dead_held_is_fetched() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let source = Arc::new(Asked::default());
    let outcomes = on_threads(4, |rank| {
        let mut job = job(4, &transport);
        job.source = source.clone();
        let mut member = started(&store, rank, 4, job);
        if rank == RankId(2) {
            // It is gone with everything that it held.
            return None;
        }
        let before = member.placement().survivors(&topology(4).with_dead(&[RankId(2)]).unwrap()).unwrap();
        let reform = Reform::survivors(member.topology(), &[RankId(2)]);
        let stayed = stayed(member.reform(&reform, &mut replan).unwrap());
        assert_eq!(stayed.absent, [RankId(2)]);
        let fetched: Vec<_> = stayed.fetched.iter().map(|fetch| (fetch.layer, fetch.expert)).collect();
        assert_eq!(fetched, before.missing().collect::<Vec<_>>());
        assert!(stayed.left_out.is_empty());
        assert_whole(&member);
        Some((member.placement().clone(), fetched.len()))
    });
    let survivors: Vec<_> = outcomes.into_iter().flatten().collect();
    assert!(survivors[0].1 > 0, "only the dead rank held something");
    assert!(survivors.iter().all(|survivor| *survivor == survivors[0]));
    // 16 slots of 2 layers to begin with.
    assert_eq!(source.count.load(Ordering::SeqCst), 32 + survivors[0].1);
}

#[test]
fn a_source_that_has_nothing_is_named_by_all_and_one_that_lies_is_caught() {
    let caught = AtomicU64::new(0);
    for lies in [false, true] {
        let (store, transport) = (in_process(), Arc::new(Threads::default()));
        on_threads(4, |rank| {
            let mut member = started(&store, rank, 4, job(4, &transport));
            if rank == RankId(2) {
                return;
            }
            let asked = Asked { refuses: !lies, lies, ..Asked::default() };
            member.set_source(Arc::new(asked));
            let reform = Reform::survivors(member.topology(), &[RankId(2)]);
            let reformed = member.reform(&reform, &mut replan);
            if lies {
                // Planted: slots are said to hold what they do not.
                let found = stayed(reformed.unwrap()).filled.unwrap().bytes_wrong;
                caught.fetch_add(found + member.check().unwrap(), Ordering::SeqCst);
                return;
            }
            let error = membership(reformed.unwrap_err());
            let MembershipError::NotFetched { detail, .. } = &error else { panic!("{error}") };
            assert!(detail.contains("the checkpoint is not there"), "{error}");
            // With a source that has them, the same members go on.
            member.set_source(Arc::new(MadeUp));
            let again = Reform::survivors(member.topology(), &[]);
            let stayed = stayed(member.reform(&again, &mut replan).unwrap());
            assert!(!stayed.fetched.is_empty());
            assert_whole(&member);
        });
    }
    assert!(caught.into_inner() > 0);
}

#[test]
fn who_has_other_experts_is_refused_and_the_others_go_on() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let reform = Reform::join(&topology(2), &[8]).unwrap();
    on_threads(3, |rank| {
        let mut job = job(2, &transport);
        if rank.0 < 2 {
            let mut member = started(&store, rank, 2, job);
            let stayed = stayed(member.reform(&reform, &mut replan).unwrap());
            assert_eq!((stayed.absent, member.topology().ranks()), (vec![RankId(2)], 2));
            assert_whole(&member);
        } else {
            job.topology = reform.topology.clone();
            job.layout = Arc::new(eplb_engine::cluster::weights::layout(LAYERS, 1501).unwrap());
            let wait = Duration::from_secs(20);
            let refused = Member::join(store.clone(), rank, job, wait, &short(), &mut replan);
            let error = membership(refused.unwrap_err());
            let MembershipError::JoinRefused { rank: RankId(2), reason } = &error else { panic!("{error}") };
            assert!(reason.contains("layout"), "{error}");
        }
    });
}

#[test]
fn changes_that_cannot_be_are_refused_before_anything_happens() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    on_threads(4, |rank| {
        let mut member = started(&store, rank, 4, job(4, &transport));
        let before = member.placement().clone();
        // 12 experts do not fit into 8 slots.
        let reform = Reform::leave(member.topology(), &[RankId(0), RankId(1)]).unwrap();
        let error = membership(member.reform(&reform, &mut replan).unwrap_err());
        assert!(matches!(error, MembershipError::NoRoom { experts: EXPERTS, slots: 8, .. }), "{error}");
        let reform = Reform::survivors(&topology(3), &[]);
        let error = membership(member.reform(&reform, &mut replan).unwrap_err());
        assert!(matches!(error, MembershipError::Change(_)), "{error}");
        assert_eq!(*member.placement(), before);
        member.rebalance(&random(2, &topology(4)), &loads()).unwrap();
        assert_whole(&member);
    });
}
