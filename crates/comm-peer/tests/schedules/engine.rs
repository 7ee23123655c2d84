//! Copy engines: a queue, and a thread that takes its time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use eplb_comm::host::HostFence;
use eplb_comm::{CommError, Fence};
use eplb_core::{RankId, Transfer};
use shuttle::thread::JoinHandle;

use crate::points::{Points, Step};
use crate::pulls::{Pulled, Pulls};
use crate::sync::{Condvar, Mutex};
use crate::world::{Part, Planted, World};

enum Op {
    Pull(usize),
    Pass(Arc<HostFence>),
    End,
}

#[derive(Default)]
struct Queue {
    ops: Mutex<VecDeque<Op>>,
    changed: Condvar,
}

/// The copy engine of one rank.
#[derive(Clone)]
pub(crate) struct Engine {
    rank: usize,
    queue: Arc<Queue>,
    points: Arc<Points>,
    planted: Planted,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine of rank {}", self.rank)
    }
}

impl Engine {
    pub(crate) fn start(
        rank: usize,
        world: Arc<World>,
        points: Arc<Points>,
        planted: Planted,
    ) -> (Self, JoinHandle<()>) {
        let engine = Self { rank, queue: Arc::default(), points: points.clone(), planted };
        let queue = engine.queue.clone();
        let thread = shuttle::thread::spawn(move || run(rank, &world, &points, &queue));
        (engine, thread)
    }

    /// Ends the thread behind everything that was enqueued.
    pub(crate) fn end(&self) {
        self.push(Op::End);
    }

    fn push(&self, op: Op) {
        self.queue.ops.lock().expect("no thread panics with it").push_back(op);
        self.queue.changed.notify_one();
    }

    /// Fails where the rank is to give up.
    fn pass(&self, step: Step) -> Result<(), CommError> {
        match self.points.is_reached(self.rank, step) {
            true => Err(CommError::Aborted { rank: RankId::at(self.rank), cause: "it fails here".into() }),
            false => Ok(()),
        }
    }
}

fn run(rank: usize, world: &World, points: &Points, queue: &Queue) {
    loop {
        let op = {
            let mut ops = queue.ops.lock().expect("no thread panics with it");
            loop {
                match ops.pop_front() {
                    Some(op) => break op,
                    None => ops = queue.changed.wait(ops).expect("no thread panics with it"),
                }
            }
        };
        match op {
            Op::Pull(source) => {
                points.pass(rank, Step::BeginsCopy);
                let expert = world.read(source, Part::Slot);
                points.pass(rank, Step::IsCopying);
                world.write(rank, Part::Staging, expert);
            }
            Op::Pass(fence) => {
                points.pass(rank, Step::PassesFence);
                fence.pass();
            }
            Op::End => return,
        }
    }
}

impl Pulls for Engine {
    fn pull(&self, transfer: &Transfer, fenced: bool) -> Result<Pulled, CommError> {
        self.pass(Step::Pulls)?;
        self.push(Op::Pull(transfer.source.index()));
        let behind = fenced.then(|| {
            let fence = HostFence::new();
            self.push(Op::Pass(fence.clone()));
            fence.fence()
        });
        Ok(Pulled { queue: 0, behind })
    }

    /// As many as make turns pay.
    fn bytes(&self, _: &Transfer) -> u64 {
        64 << 20
    }

    fn fences(&self, _queues: u64) -> Result<Vec<Fence>, CommError> {
        if self.planted == Planted::FenceEarly {
            return Ok(Vec::new());
        }
        self.pass(Step::Fences)?;
        let fence = HostFence::new();
        self.push(Op::Pass(fence.clone()));
        Ok(vec![fence.fence()])
    }
}
