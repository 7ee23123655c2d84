//! A server's own collectives, for tests and benches of what runs beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use eplb_core::RankId;
use eplb_cuda::{Context, CudaStream, DeviceBlock, DeviceMemory, Events};
use nccl_rs::{Comm, Config, Library, UniqueId};

use crate::communicator::{NcclCommunicator, Pump};
use crate::connect::{Rendezvous, connect_lent};
use crate::error::NcclCommError;
use crate::options::Options;

/// Longest wait for one all-reduce, or for making the communicator.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ranks of this process, one thread each, that all-reduce over a communicator of their own step after step, as a
/// tensor-parallel server does, until they are stopped.
#[derive(Debug)]
pub struct Collectives {
    end: Arc<End>,
    threads: Vec<JoinHandle<Result<Served, NcclCommError>>>,
}

/// When the ranks end.
///
/// Rank 0 sees that it is wanted at the begin of a step `n` and says that step `n + 2` is not taken. A rank that comes to `n + 2` has seen
/// rank 0 end step `n + 1`, which it began after saying so: all ranks end after one and the same step.
#[derive(Debug)]
struct End {
    wanted: AtomicBool,
    step: AtomicU64,
}

impl End {
    /// Whether a rank ends before step `id`.
    fn is_before(&self, id: u64, rank: usize) -> bool {
        if rank == 0 && self.wanted.load(Ordering::Acquire) && self.step.load(Ordering::Acquire) == u64::MAX {
            self.step.store(id + 2, Ordering::Release);
        }
        id >= self.step.load(Ordering::Acquire)
    }
}

/// What one rank did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// All-reduces.
    pub steps: u64,
    /// Longest time from the begin of one to its end.
    pub worst: Duration,
    /// Longest call of [`Pump::step`].
    pub launch_worst: Duration,
}

impl Collectives {
    /// Starts a rank on each context, that sums `bytes` bytes of floats in each step. Ranks with a pump call it before each.
    ///
    /// # Errors
    /// There is no NCCL or no memory.
    pub fn start(
        contexts: &[Arc<Context>],
        pumps: &[Option<Pump>],
        bytes: usize,
    ) -> Result<Self, NcclCommError> {
        let carried = pumps.iter().map(|pump| match pump {
            Some(pump) => Carried::Launched(pump.clone()),
            None => Carried::Nothing,
        });
        Self::begin(contexts, carried.collect(), bytes)
    }

    /// As [`Collectives::start`], with ranks that lend their communicator, and launch what it carries before each step. Returns the
    /// communicators that borrow.
    ///
    /// # Errors
    /// As [`Collectives::start`], and [`connect_lent`].
    pub fn start_lending(
        lends: Vec<Lend>,
        bytes: usize,
    ) -> Result<(Self, Vec<NcclCommunicator>), NcclCommError> {
        let contexts: Vec<_> = lends.iter().map(|lend| lend.memory.context().clone()).collect();
        let (carried, waiting): (Vec<_>, Vec<_>) = lends
            .into_iter()
            .map(|lend| {
                let (give, take) = std::sync::mpsc::sync_channel(1);
                (Carried::Lent(lend, give), take)
            })
            .unzip();
        let server = Self::begin(&contexts, carried, bytes)?;
        let mut communicators = Vec::new();
        for (rank, made) in waiting.into_iter().enumerate() {
            let rank = RankId::at(rank);
            let gone =
                |_| NcclCommError::Peer { rank, reason: "its server ended before it lent anything".into() };
            communicators.push(made.recv_timeout(PATIENCE).map_err(gone)??);
        }
        Ok((server, communicators))
    }

    fn begin(contexts: &[Arc<Context>], carried: Vec<Carried>, bytes: usize) -> Result<Self, NcclCommError> {
        let library = Library::open()?;
        let id = library.unique_id()?;
        let end = Arc::new(End { wanted: AtomicBool::new(false), step: AtomicU64::new(u64::MAX) });
        let mut threads = Vec::new();
        for (rank, (context, carried)) in contexts.iter().zip(carried).enumerate() {
            let rank = Rank {
                library: library.clone(),
                id,
                rank,
                size: contexts.len(),
                context: context.clone(),
                block: DeviceBlock::new(context, bytes.max(4))?,
                carried,
                end: end.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("server-{}", rank.rank));
            let thread = thread.spawn(move || rank.serve()).map_err(|error| {
                let (what, detail) = ("a server's collectives".into(), error.to_string());
                eplb_comm::CommError::NoThread { what, detail }
            })?;
            threads.push(thread);
        }
        Ok(Self { end, threads })
    }

    /// Lets all ranks end after one and the same step, and tells what each did.
    ///
    /// # Errors
    /// An all-reduce failed or hung.
    pub fn finish(mut self) -> Result<Vec<Served>, NcclCommError> {
        self.end.wanted.store(true, Ordering::Release);
        let mut served = Vec::new();
        for thread in self.threads.drain(..) {
            let lost = || NcclCommError::Peer { rank: RankId(0), reason: "its server panicked".into() };
            served.push(thread.join().map_err(|_| lost())??);
        }
        Ok(served)
    }
}

impl Drop for Collectives {
    fn drop(&mut self) {
        // Not waited for: a rank whose others are gone ends after its patience.
        self.end.wanted.store(true, Ordering::Release);
    }
}

struct Rank {
    library: Library,
    id: UniqueId,
    rank: usize,
    size: usize,
    context: Arc<Context>,
    block: DeviceBlock,
    carried: Carried,
    end: Arc<End>,
}

/// What a rank of the server lends its communicator for.
#[derive(Debug)]
pub struct Lend {
    /// The experts.
    pub memory: Arc<DeviceMemory>,
    /// Where those who exchange meet.
    pub rendezvous: Rendezvous,
    /// How they do; [`Launch::Pump`](crate::Launch::Pump).
    pub options: Options,
}

/// What a rank of the server does for an exchange.
enum Carried {
    Nothing,
    /// It launches waves.
    Launched(Pump),
    /// It lends its communicator, and launches what that carries.
    Lent(Lend, SyncSender<Result<NcclCommunicator, NcclCommError>>),
}

impl Rank {
    fn serve(self) -> Result<Served, NcclCommError> {
        let _entered = self.context.enter()?;
        let mut comm = Comm::begin(&self.library, self.id, self.rank, self.size, &Config::default())?;
        comm.wait("a server's communicator", Instant::now() + PATIENCE)?;
        let pump = match self.carried {
            Carried::Nothing => None,
            Carried::Launched(pump) => Some(pump),
            Carried::Lent(Lend { memory, rendezvous, options }, give) => {
                let until = Instant::now() + PATIENCE;
                // SAFETY: this thread alone uses the communicator, which lives until after its last step below.
                let made = unsafe {
                    connect_lent(&self.library, comm.as_raw(), memory, &rendezvous, options, until)
                };
                let pump = made.as_ref().ok().map(NcclCommunicator::pump);
                // Whoever waits has given up if this fails.
                let _ = give.send(made);
                pump
            }
        };
        let stream = CudaStream::new(&self.context, 0)?;
        let events = Events::new(&self.context, 2)?;
        let mut served = Served::default();
        for id in 1.. {
            if self.end.is_before(id, self.rank) {
                break;
            }
            let start = Instant::now();
            if let Some(pump) = &pump {
                served.launch_worst = served.launch_worst.max(pump.step(id));
            }
            // SAFETY: the block is ours, and the wait below is for the operation to have run.
            unsafe { comm.all_reduce(self.block.base(), self.block.bytes() / 4, stream.as_raw())? };
            comm.wait("enqueuing an all-reduce", start + PATIENCE)?;
            let fence = events.record(&stream, RankId::at(self.rank))?.fence();
            // All ranks are in step `id` when it has ended: they are never more than one step apart.
            while !fence.poll()? {
                if start.elapsed() > PATIENCE {
                    let rank = RankId::at(self.rank);
                    let what = format!("all-reduce {id} beside an exchange");
                    return Err(eplb_comm::CommError::Timeout { rank, what, waited: PATIENCE }.into());
                }
                std::thread::yield_now();
            }
            served.steps = id;
            served.worst = served.worst.max(start.elapsed());
        }
        Ok(served)
    }
}
