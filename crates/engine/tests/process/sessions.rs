//! Ranks join, move experts, fail, and join again.

use std::sync::{Arc, Barrier, Mutex};

use eplb_comm::fault::{FaultLog, Faults, FaultyCommunicator, Strike};
use eplb_comm::host::HostMemory;
use eplb_comm::store::{InProcessStore, Store};
use eplb_comm::{Communicator, Memory};
use eplb_core::{LayerId, Placement, RankId, SlotId};
use eplb_engine::cluster::{Hooks, weights};
use eplb_engine::process::{GroupLayout, Member, Parallelism, RankOrder, Session, Stage};
use eplb_engine::{BoardError, EngineError, StoreBoard};
use eplb_exchange::Cause;

use super::support::{Threads, deadlines, in_process, job, loads, on_threads, random, topology};

/// Every slot of the rank that its placement names holds that expert, byte by byte.
fn assert_true_placement(member: &Member) {
    assert_eq!(member.check().unwrap(), 0);
    let placement = member.placement();
    for layer in (0..placement.layers()).map(LayerId::at) {
        for slot in member.memory().slots().map(SlotId::at) {
            if let Some(expert) = placement.expert_at(layer, slot) {
                assert_eq!(member.memory().count_wrong(layer, slot, expert).unwrap(), 0);
            }
        }
    }
}

#[test]
fn experts_move_between_ranks_that_share_nothing_but_a_store() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let placements = on_threads(4, |rank| {
        let session = Session::join(store.clone(), rank, 4, &deadlines()).unwrap();
        let mut member = Member::start(session, job(4, &transport)).unwrap();
        let mut moves = 0;
        for seed in 0..3 {
            let moved = member.rebalance(&random(seed, &topology(4)), &loads()).unwrap();
            assert_eq!((moved.bytes_wrong, moved.first_wrong), (0, None));
            moves += moved.totals.moves;
            assert_true_placement(&member);
        }
        assert!(moves > 0 && member.version() > 3);
        member.placement().clone()
    });
    assert!(placements.iter().all(|placement| *placement == placements[0]));
}

/// One rank's communicators fail their second wave, until one has.
#[derive(Debug, Default)]
struct FailsOnce(Mutex<FaultLog>);

impl Hooks for FailsOnce {
    fn communicator(
        &self,
        rank: RankId,
        _memory: &Arc<HostMemory>,
        communicator: Box<dyn Communicator>,
    ) -> Box<dyn Communicator> {
        let mut log = self.0.lock().unwrap();
        if rank != RankId(2) || !log.struck().is_empty() {
            return communicator;
        }
        let faults = Faults { fail: Strike::Wave(1), ..Faults::default() };
        let faulty = FaultyCommunicator::around(communicator, faults);
        *log = faulty.log();
        Box::new(faulty)
    }
}

#[test]
fn after_a_failed_exchange_all_ranks_join_again_and_the_next_one_works() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let hooks = Arc::new(FailsOnce::default());
    on_threads(4, |rank| {
        let mut job = job(4, &transport);
        job.settings.hooks = hooks.clone();
        let session = Session::join(store.clone(), rank, 4, &deadlines()).unwrap();
        let mut member = Member::start(session, job).unwrap();
        let error = member.rebalance(&random(1, &topology(4)), &loads()).unwrap_err();
        let EngineError::AtStage { rank: named, stage: Stage::Moving, error } = error else {
            panic!("{error}")
        };
        assert_eq!(named, rank);
        assert!(
            matches!(
                &*error,
                EngineError::Aborted { cause: Cause::Transfer { .. } | Cause::PeerFailed { .. }, .. }
            ),
            "{error}"
        );
        assert_true_placement(&member);
        let epoch = member.session().epoch();
        let mut member = member.rejoin(None).unwrap();
        assert!(member.session().epoch() > epoch);
        let moved = member.rebalance(&random(2, &topology(4)), &loads()).unwrap();
        assert!(moved.bytes_wrong == 0 && moved.waves > 0);
        assert_true_placement(&member);
    });
}

#[test]
fn a_rank_that_is_started_anew_gets_its_experts_from_the_source() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let placements = on_threads(3, |rank| {
        let session = Session::join(store.clone(), rank, 3, &deadlines()).unwrap();
        let mut member = Member::start(session, job(3, &transport)).unwrap();
        member.rebalance(&random(1, &topology(3)), &loads()).unwrap();
        let before = member.placement().clone();
        let mut member = if rank == RankId(1) {
            // This start of the rank is gone with everything that it held.
            drop(member);
            let session = Session::join(store.clone(), rank, 3, &deadlines()).unwrap();
            Member::start(session, job(3, &transport)).unwrap()
        } else {
            member.rejoin(None).unwrap()
        };
        assert_eq!(*member.placement(), before, "what the others hold is what goes on");
        assert_true_placement(&member);
        member.rebalance(&random(4, &topology(3)), &loads()).unwrap();
        assert_true_placement(&member);
        member.placement().clone()
    });
    assert!(placements.iter().all(|placement| *placement == placements[0]));
}

/// Keys in the store after some epochs, each with a rebalance; between them all ranks join again, and rank 1 is started anew every
/// other time. A board of rank 1 stays from the first epoch, as in a process that was stopped there; it must find it closed.
fn keys_after(epochs: usize) -> usize {
    let inner = InProcessStore::new();
    let store: Arc<dyn Store> = Arc::new(inner.clone());
    let transport = Arc::new(Threads::default());
    let stopped = Mutex::new(None);
    on_threads(3, |rank| {
        let session = Session::join(store.clone(), rank, 3, &deadlines()).unwrap();
        if rank == RankId(1) {
            let (epoch, members) = (session.epoch(), session.members());
            let board = StoreBoard::open(store.clone(), epoch, rank, members, &deadlines().store).unwrap();
            *stopped.lock().unwrap() = Some(board);
        }
        let mut member = Member::start(session, job(3, &transport)).unwrap();
        for epoch in 1..=epochs {
            member.rebalance(&random(epoch as u64, &topology(3)), &loads()).unwrap();
            member = match epoch {
                _ if epoch == epochs => member,
                _ if rank == RankId(1) && epoch % 2 == 1 => {
                    drop(member);
                    let session = Session::join(store.clone(), rank, 3, &deadlines()).unwrap();
                    Member::start(session, job(3, &transport)).unwrap()
                }
                _ => member.rejoin(None).unwrap(),
            };
        }
    });
    let resumed = stopped.into_inner().unwrap().unwrap().begin();
    assert!(epochs == 1 || matches!(resumed, Err(BoardError::Closed { .. })), "{resumed:?}");
    inner.len()
}

#[test]
fn an_epoch_that_is_over_leaves_its_closed_record_in_the_store_and_nothing_else() {
    let first = keys_after(2);
    assert_eq!(keys_after(6), first + 4);
}

#[test]
fn a_rank_with_another_model_is_named_by_all() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    let errors = on_threads(3, |rank| {
        let mut job = job(3, &transport);
        if rank == RankId(2) {
            job.layout = Arc::new(weights::layout(super::support::LAYERS, 1501).unwrap());
        }
        let session = Session::join(store.clone(), rank, 3, &deadlines()).unwrap();
        Member::start(session, job).unwrap_err().to_string()
    });
    for (rank, error) in errors.iter().enumerate() {
        let words = ["bytes of an expert", "1500 on rank 0", "1501 on rank 2", "comparing"];
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(error.contains(&format!("rank {rank},")), "{error}");
    }
}

#[derive(Debug)]
struct Misled;

impl Hooks for Misled {
    fn placement(&self, rank: RankId, placement: Arc<Placement>) -> Arc<Placement> {
        if rank == RankId(1) { Arc::new(random(77, &topology(3))) } else { placement }
    }
}

#[test]
fn a_rank_with_another_plan_is_named_before_the_first_byte() {
    let (store, transport) = (in_process(), Arc::new(Threads::default()));
    on_threads(3, |rank| {
        let mut job = job(3, &transport);
        job.settings.hooks = Arc::new(Misled);
        let start = job.start.clone();
        let session = Session::join(store.clone(), rank, 3, &deadlines()).unwrap();
        let mut member = Member::start(session, job).unwrap();
        let error = member.rebalance(&random(1, &topology(3)), &loads()).unwrap_err().to_string();
        assert!(error.contains("agreeing") && error.contains("on rank 1"), "{error}");
        assert_eq!(*member.placement(), start);
        assert_true_placement(&member);
    });
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let mut deadlines = deadlines();
    // From when both have begun, and long enough for both to be heard on a busy machine.
    deadlines.store.join = std::time::Duration::from_secs(6);
    let (store, begin) = (in_process(), Barrier::new(2));
    let errors = on_threads(2, |rank| {
        begin.wait();
        Session::join(store.clone(), rank, 3, &deadlines).unwrap_err().to_string()
    });
    assert!(errors[0].contains("rank 2 did not come") && errors[0].contains("rendezvous"), "{}", errors[0]);
    assert!(errors[1].contains("rank 0"), "{}", errors[1]);
}

#[test]
fn groups_of_one_job_do_not_wait_for_each_other() {
    // Two replicas of two pipeline stages: two groups of two ranks. Rank 2 of the job never comes; its group is 2 and 3.
    let sizes = Parallelism {
        world_size: 4,
        tensor: 1,
        pipeline: 2,
        data: 2,
        expert: None,
        order: RankOrder::PipelineDataTensor,
    };
    let layout = GroupLayout::new(&sizes).unwrap();
    let store = in_process();
    let transport = Arc::new(Threads::default());
    let outcomes = on_threads(4, |global| {
        if global == RankId(2) {
            return None;
        }
        let mut deadlines = deadlines();
        if global == RankId(3) {
            deadlines.store.join = std::time::Duration::from_millis(500);
        }
        let (group, rank) = layout.place(global).unwrap();
        let corner = Arc::new(layout.corner(store.clone(), group).unwrap());
        let session = Session::join(corner, rank, 2, &deadlines);
        Some(session.and_then(|session| {
            let mut member = Member::start(session, job(2, &transport))?;
            let hosts = member.session().hosts()?;
            assert!(hosts.len() == 2 && hosts[0] == hosts[1], "both run here");
            member.rebalance(&random(1, &topology(2)), &loads()).map(|moved| moved.bytes_wrong)
        }))
    });
    assert!(matches!(outcomes[..2], [Some(Ok(0)), Some(Ok(0))]), "{outcomes:?}");
    let alone = outcomes[3].as_ref().unwrap().as_ref().unwrap_err().to_string();
    assert!(alone.contains("rendezvous"), "{alone}");
}
