//! One rank's end of an exchange: commits at rest, and what is left of an exchange that is given up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::{Content, HostFence, HostMemory};
use eplb_comm::local::LocalGroup;
use eplb_comm::{CommError, Communicator, Fence, Place, Stream};
use eplb_core::{
    ExpertId, LayerId, ModelLayout, Placement, RankId, SlotCommit, SlotId, TensorLayout, Topology,
};
use eplb_engine::engine::InlineStream;
use eplb_engine::{Driver, LocalBoard};
use eplb_exchange::{Deadlines, Exchange, ExchangePlan, Limits, Outcome, Phase};

/// Longest wait for anything.
const LONG: Duration = Duration::from_secs(60);

/// A stream whose commits end when the test says so.
#[derive(Debug)]
struct Slow {
    inner: InlineStream,
    /// Behind the next commit, where one is given.
    end: Option<Arc<HostFence>>,
}

impl Stream for Slow {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        let done = self.inner.commit(commits)?;
        Ok(self.end.take().map_or(done, |end| end.fence()))
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        self.inner.record()
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.inner.wait(fence)
    }
}

/// Two ranks of one slot each, whose experts change places: a cycle, which needs an agreed step.
struct Pair {
    topology: Arc<Topology>,
    layout: ModelLayout,
    memories: Vec<Arc<HostMemory>>,
    drivers: Vec<Driver<Slow>>,
}

fn placement(experts: [i32; 2]) -> Placement {
    Placement::new(2, ndarray::Array2::from_shape_vec((1, 2), experts.to_vec()).unwrap()).unwrap()
}

impl Pair {
    fn new() -> Self {
        let topology = Arc::new(Topology::uniform(2, 2).unwrap());
        let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 96)]]).unwrap();
        let staging = Limits::new(&layout, &topology).staging_bytes;
        let start = placement([0, 1]);
        let (mut memories, mut drivers) = (Vec::new(), Vec::new());
        for rank in topology.all_ranks() {
            let (slots, layout) = (topology.slots_of(rank), Arc::new(layout.clone()));
            let memory = HostMemory::new(rank, layout, slots, staging).unwrap();
            let (slot, expert) = (SlotId(rank.0), ExpertId(rank.0));
            memory.declare(Place::slot(LayerId(0), slot), Content::Expert(expert)).unwrap();
            memory.fill(LayerId(0), slot, expert).unwrap();
            let stream = Slow { inner: InlineStream::new(memory.clone()), end: None };
            drivers.push(Driver::new(rank, topology.clone(), stream, &start));
            memories.push(memory);
        }
        Self { topology, layout, memories, drivers }
    }

    /// Begins to move to another placement, after step `last` of both ranks.
    fn begin(&mut self, old: [i32; 2], new: [i32; 2], margin: u64, last: u64) {
        let limits = Limits::new(&self.layout, &self.topology);
        let (old, new) = (placement(old), placement(new));
        let plan = ExchangePlan::new(&old, &new, &self.topology, &self.layout, None, &limits).unwrap();
        let (plan, members) = (Arc::new(plan), [RankId(0), RankId(1)]);
        let board = LocalBoard::new(&members);
        let group = LocalGroup::new(self.memories.clone(), 1).unwrap();
        for ((driver, communicator), rank) in self.drivers.iter_mut().zip(group).zip(members) {
            let deadlines = Deadlines::default();
            let now = Instant::now();
            let exchange = Exchange::new(plan.clone(), rank, &members, deadlines, margin, Some(last), now);
            let communicator: Box<dyn Communicator> = Box::new(communicator);
            driver.begin_within_step(exchange, communicator, board.clone(), Some(last)).unwrap();
            // No pass is under way.
            driver.tick().unwrap();
        }
    }

    /// Goes on until both have agreed on a step for the commit; which one.
    fn agree(&mut self) -> u64 {
        let deadline = Instant::now() + LONG;
        loop {
            for driver in &mut self.drivers {
                assert!(driver.progress().unwrap().is_none(), "it ended before its step");
            }
            if self.drivers.iter().all(|driver| driver.phase() == Some(Phase::Committing)) {
                let steps = self.drivers.iter().map(|driver| driver.wave().unwrap().1.unwrap());
                let steps: Vec<u64> = steps.collect();
                assert_eq!(steps[0], steps[1]);
                return steps[0];
            }
            assert!(Instant::now() < deadline, "no step was agreed on");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Goes on until the exchange is over on both.
    fn end(&mut self) {
        let (deadline, mut over) = (Instant::now() + LONG, 0);
        while over < 2 {
            for driver in &mut self.drivers {
                if let Some(ended) = driver.progress().unwrap() {
                    assert_eq!(ended.outcome, Outcome::Completed);
                    over += 1;
                }
            }
            assert!(Instant::now() < deadline, "the exchange did not end");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn maps(&self) -> Vec<Vec<i32>> {
        self.drivers.iter().map(|driver| driver.phy2log().iter().copied().collect()).collect()
    }
}

#[test]
fn a_commit_at_rest_does_not_hide_the_steps_up_to_its_own() {
    let mut pair = Pair::new();
    pair.begin([0, 1], [1, 0], 64, 5);
    let far = pair.agree();
    assert_eq!(far, 70);
    // The host has stopped, so the step never comes; what is decided for it is applied all the same.
    pair.drivers.iter_mut().for_each(|driver| driver.step(far).unwrap());
    pair.end();
    // The next step is the sixth, and the next exchange counts from there.
    pair.begin([1, 0], [0, 1], 4, 5);
    let near = pair.agree();
    assert_eq!(near, 10);
    for step in 6..=near {
        for driver in &mut pair.drivers {
            assert!(driver.last_step() < Some(step), "{:?} is behind step {step}", driver.last_step());
            driver.step(step).unwrap();
        }
        let expected = if step < near { vec![1, 0] } else { vec![0, 1] };
        assert_eq!(pair.maps(), vec![expected; 2], "in step {step}");
    }
    pair.end();
}

#[test]
fn an_exchange_that_is_given_up_leaves_copies_that_are_waited_for() {
    for fails in [false, true] {
        let mut pair = Pair::new();
        let end = HostFence::new();
        pair.drivers[0].stream().end = Some(end.clone());
        pair.begin([0, 1], [1, 0], 2, 0);
        let step = pair.agree();
        pair.drivers[0].step(step).unwrap();
        let left = pair.drivers[0].abandon("the test says so").unwrap();
        assert_eq!(left.committed, 1, "maps are switched");
        left.communicator.rank();
        drop(left);
        let driver = &mut pair.drivers[0];
        // The thread of the communicator's copies may take its time to end, too.
        let deadline = Instant::now() + LONG;
        assert!(!driver.is_quiet(), "copies of the commit are under way");
        if fails {
            end.fail(CommError::Aborted { rank: RankId(0), cause: "the device is lost".into() });
        } else {
            end.pass();
        }
        while !driver.is_quiet() {
            assert!(Instant::now() < deadline, "copies do not end");
            std::thread::sleep(Duration::from_micros(100));
        }
        driver.distrust();
        // Nobody knows what a commit that failed has left.
        assert_eq!(driver.phy2log()[(0, 0)], if fails { -1 } else { 1 });
        assert_eq!(driver.phy2log()[(0, 1)], 0);
    }
}

#[test]
fn a_rank_that_is_barred_runs_no_step_until_it_is_let_go() {
    let mut pair = Pair::new();
    let driver = &mut pair.drivers[0];
    driver.step(0).unwrap();
    driver.bar();
    let error = driver.step(1).unwrap_err().to_string();
    assert!(
        driver.is_barred() && error.contains("step 1 must not run") && error.contains("reform"),
        "{error}"
    );
    driver.unbar();
    driver.step(2).unwrap();
}
