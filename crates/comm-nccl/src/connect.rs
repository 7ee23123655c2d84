//! Making a communicator: everything that a wave needs is opened and taken here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::{Group, PrefixStore, Store};
use eplb_comm::{Fence, Memory};
use eplb_core::RankId;
use eplb_cuda::{CudaStream, DeviceBlock, DeviceMemory, Events};
use nccl_rs::{Comm, Library, UniqueId};

use crate::agree::Agreement;
use crate::communicator::NcclCommunicator;
use crate::cut::{Limits, least_pack_bytes};
use crate::error::NcclCommError;
use crate::lane::Lane;
use crate::options::{Backend, Launch, Options};
use crate::peers::{Peers, hello};
use crate::shared::{Counters, Shared};

/// Events made at start-up; a wave takes two.
const EVENTS: usize = 32;

/// Longest wait for messages that were given up to leave the device.
pub(crate) const LAST_WAIT: Duration = Duration::from_secs(10);

/// Bytes that each pair of ranks exchanges at start-up, so that NCCL opens it.
pub(crate) const GREETING_BYTES: usize = 1024;

/// Where the ranks of a communicator meet.
#[derive(Debug, Clone)]
pub struct Rendezvous {
    /// A store that all ranks reach.
    pub store: Arc<dyn Store>,
    /// Ranks.
    pub size: usize,
    /// Number of the communicator: a new one for each that is made, the same on all ranks.
    pub epoch: u64,
}

/// Makes one rank's communicator. Every rank calls it with the same rendezvous; it blocks until all have come, at most until
/// the deadline. A single rank needs nobody: no library is opened, no communicator and no thread made.
///
/// # Errors
/// NCCL or the device fails, the ranks do not come, or do not fit together.
pub fn connect(
    backend: Backend,
    memory: Arc<DeviceMemory>,
    rendezvous: &Rendezvous,
    options: Options,
    deadline: Instant,
) -> Result<NcclCommunicator, NcclCommError> {
    let rank = memory.rank();
    let (store, size, epoch) = (&rendezvous.store, rendezvous.size, rendezvous.epoch);
    let context = memory.context().clone();
    let messages = CudaStream::new(&context, options.stream_priority)?;
    let copies = CudaStream::new(&context, options.stream_priority)?;
    let events = Events::new(&context, EVENTS)?;
    let (mut group, told) = match size {
        1 => (None, vec![hello(&memory)]),
        _ => {
            let members: Vec<RankId> = (0..size).map(RankId::at).collect();
            let corner = PrefixStore::new(store.clone(), &format!("nccl-meet/{epoch}/"))?;
            let mut group = Group::new(Arc::new(corner), epoch, rank, &members)?;
            let told = group.all_gather("memory", &hello(&memory), deadline)?;
            (Some(group), told)
        }
    };
    let peers = Peers::read(memory.layout(), &told)?;
    let pack_bytes = options.pack_bytes.max(least_pack_bytes());
    let needed = if peers.any_gaps() && size > 1 { 2 * pack_bytes } else { 0 };
    let pack = DeviceBlock::new(&context, needed.max(if size > 1 { 2 * GREETING_BYTES * size } else { 0 }))?;
    let limits = Limits { operations: options.operations.max(1), pack_bytes };

    let (comm, agreement) = match &mut group {
        None => (None, None),
        Some(group) => {
            let library = match backend {
                Backend::Nccl => Library::open()?,
                Backend::PyNccl => Library::loaded()?,
            };
            let id = unique_id(&library, group, deadline)?;
            let _entered = context.enter()?;
            let comm = Comm::begin(&library, id, rank.index(), size, &options.config)?;
            comm.wait("making the communicator", deadline)?;
            let comm = greet(comm, &pack, &messages, &events, rank, deadline)?;
            // Nobody sends before all are here.
            group.barrier("greeted", deadline)?;
            let corner = PrefixStore::new(store.clone(), &format!("nccl-waves/{epoch}/"))?;
            (Some(comm), Some(Agreement::new(Arc::new(corner), rank, size, options.launch == Launch::Pump)))
        }
    };
    let counters = Arc::new(Counters::default());
    let inline = size == 1;
    let with_thread = !inline && options.launch == Launch::Thread;
    let lane = Lane {
        rank,
        memory,
        comm,
        agreement,
        messages,
        copies,
        events,
        pack,
        options,
        counters: counters.clone(),
        waves: Vec::new(),
        watched: Instant::now(),
        end: None,
        changes: 0,
    };
    let shared = Shared::new(lane, counters, inline);
    let thread = match with_thread {
        false => None,
        true => Some(spawn(&shared, rank)?),
    };
    Ok(NcclCommunicator::new(backend, rank, peers, limits, shared, thread))
}

fn spawn(shared: &Arc<Shared>, rank: RankId) -> Result<std::thread::JoinHandle<()>, NcclCommError> {
    let shared = shared.clone();
    let thread = std::thread::Builder::new().name(format!("nccl-{}", rank.0)).spawn(move || shared.serve());
    thread.map_err(|error| {
        let what = format!("the communicator of {rank}");
        eplb_comm::CommError::NoThread { what, detail: error.to_string() }.into()
    })
}

/// The name of the communicator, drawn by the lowest rank.
pub(crate) fn unique_id(
    library: &Library,
    group: &mut Group,
    deadline: Instant,
) -> Result<UniqueId, NcclCommError> {
    let root = RankId(0);
    let drawn = if group.rank() == root { library.unique_id()?.0.to_vec() } else { Vec::new() };
    let id = group.broadcast("unique id", root, &drawn, deadline)?;
    id.try_into().map(UniqueId).map_err(|id: Vec<u8>| NcclCommError::Peer {
        rank: root,
        reason: format!("its id of the communicator has {} bytes, not {}", id.len(), UniqueId::BYTES),
    })
}

/// Sends a few bytes between every pair of ranks, so that NCCL takes its buffers now and not in the first wave.
pub(crate) fn greet(
    mut comm: Comm,
    scratch: &DeviceBlock,
    stream: &Arc<CudaStream>,
    events: &Arc<Events>,
    rank: RankId,
    deadline: Instant,
) -> Result<Comm, NcclCommError> {
    let greeted = exchange_greetings(&mut comm, scratch, stream, events, rank, deadline);
    match greeted {
        Ok(()) => Ok(comm),
        Err(error) => {
            // The scratch block is freed by who sees the error: not while messages may still use it.
            comm.abort();
            if let Ok(fence) = events.record(stream, rank) {
                let _ = fence.fence().wait(rank, "the end of an abort", Instant::now() + LAST_WAIT);
            }
            Err(error)
        }
    }
}

fn exchange_greetings(
    comm: &mut Comm,
    scratch: &DeviceBlock,
    stream: &Arc<CudaStream>,
    events: &Arc<Events>,
    rank: RankId,
    deadline: Instant,
) -> Result<(), NcclCommError> {
    let library = comm.library().clone();
    let group = nccl_rs::Group::start(&library)?;
    let (size, half) = (comm.size(), scratch.base() + (GREETING_BYTES * comm.size()) as u64);
    for peer in (0..size).filter(|&peer| peer != rank.index()) {
        let at = (GREETING_BYTES * peer) as u64;
        // SAFETY: each peer has its own part of both halves of the scratch block, which lives until the event below.
        unsafe {
            comm.send(&group, scratch.base() + at, GREETING_BYTES, peer, stream.as_raw())?;
            comm.recv(&group, half + at, GREETING_BYTES, peer, stream.as_raw())?;
        }
    }
    group.end()?;
    comm.wait("opening every pair of ranks", deadline)?;
    let fence: Fence = events.record(stream, rank)?.fence();
    fence.wait(rank, "the first message of every pair of ranks", deadline)?;
    Ok(())
}
