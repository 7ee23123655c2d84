//! Making a communicator: everything that a wave needs is opened and taken here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::{Group, PrefixStore, Store};
use eplb_comm::{Fence, Memory};
use eplb_core::RankId;
use eplb_cuda::kernels::Kernels;
use eplb_cuda::{Context, CudaStream, DeviceBlock, DeviceMemory, Events, RowCopies};
use nccl_rs::{Comm, Config, Library, UniqueId, Version};

use crate::agree::Agreement;
use crate::channels::with_channels;
use crate::communicator::NcclCommunicator;
use crate::cut::{Limits, least_pack_bytes};
use crate::error::NcclCommError;
use crate::lane::Lane;
use crate::options::{Backend, Gather, Launch, Options};
use crate::peers::{Peers, hello};
use crate::shared::{Counters, Shared};

/// Events made at start-up; a wave takes two, packing a few.
const EVENTS: usize = 48;

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
    take(Source::Own(backend), memory, rendezvous, options, deadline)
}

/// As [`connect`], over a communicator that the server keeps. It is called on the thread on which the server uses that, and later the
/// communicator is used only there, inside [`Pump::step`](crate::Pump::step). It is never aborted, split or destroyed here: messages that hang cannot be
/// broken off, and their memory stays in use until the server ends its communicator.
///
/// # Errors
/// As [`connect`]; waves are not launched by the server ([`Launch::Pump`]); the communicator is of another rank, size or device.
///
/// # Safety
/// `raw` is a communicator of `library` that lives until the last call of [`Pump::step`](crate::Pump::step), and nobody uses it during this call
/// and those.
pub unsafe fn connect_lent(
    library: &Library,
    raw: *mut std::ffi::c_void,
    memory: Arc<DeviceMemory>,
    rendezvous: &Rendezvous,
    options: Options,
    deadline: Instant,
) -> Result<NcclCommunicator, NcclCommError> {
    let rank = memory.rank();
    let refuse = |reason: String| Err(NcclCommError::Lent { rank, reason });
    if options.launch != Launch::Pump {
        return refuse(
            "only the server may use it, on its own thread: let waves be launched at its steps".into(),
        );
    }
    // SAFETY: passed on to the caller.
    let comm = unsafe { Comm::borrow(library, raw) }?;
    if (comm.rank(), comm.size()) != (rank.index(), rendezvous.size) {
        return refuse(format!(
            "it is rank {} of {}, and {} ranks exchange",
            comm.rank(),
            comm.size(),
            rendezvous.size
        ));
    }
    let (its, ours) = (comm.device()?, memory.context().ordinal());
    if its != ours {
        return refuse(format!("it is on device {its}, the experts are on device {ours}"));
    }
    take(Source::Lent(comm), memory, rendezvous, options, deadline)
}

/// Whether NCCL was told to keep the order of launches of one device itself. It then takes launches from one thread at a time alone: two that
/// meet are an error that ends the communicators of both ("host threads racing to launch NCCL on same device", seen with 2.28.3).
pub fn orders_launches_itself() -> bool {
    std::env::var("NCCL_LAUNCH_ORDER_IMPLICIT").is_ok_and(|value| !matches!(value.trim(), "" | "0"))
}

/// Where NCCL's communicator comes from.
enum Source {
    Own(Backend),
    Lent(Comm),
}

fn take(
    source: Source,
    memory: Arc<DeviceMemory>,
    rendezvous: &Rendezvous,
    options: Options,
    deadline: Instant,
) -> Result<NcclCommunicator, NcclCommError> {
    let rank = memory.rank();
    if options.launch == Launch::Thread && rendezvous.size > 1 && orders_launches_itself() {
        return Err(NcclCommError::LaunchOrder { rank });
    }
    let backend = match &source {
        Source::Own(backend) => *backend,
        Source::Lent(_) => Backend::PyNccl,
    };
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
    let pack_bytes = match peers.any_gaps() {
        true => options.pack_bytes.max(least_pack_bytes()),
        false => least_pack_bytes(),
    };
    let packs = size > 1 && (peers.any_gaps() || peers.any_below(options.gather_below));
    let greetings = if size > 1 { 2 * GREETING_BYTES * size } else { 0 };
    let pack = DeviceBlock::new(&context, greetings.max(if packs { 2 * pack_bytes } else { 0 }))?;
    let gather = match options.gather {
        // Without machine code copies do the same; nobody asked for more.
        Gather::Auto if packs => match Kernels::load_built(&context, None) {
            Ok(kernels) => Some(RowCopies::new(&messages, Arc::new(kernels))?),
            Err(_) => None,
        },
        _ => None,
    };
    let limits =
        Limits { operations: options.operations.max(1), pack_bytes, gather_below: options.gather_below };

    let (comm, agreement) = match &mut group {
        None => (None, None),
        Some(group) => {
            let _entered = context.enter()?;
            let comm = match source {
                Source::Own(backend) => begin(backend, group, &options.config, &context, deadline)?,
                Source::Lent(comm) => comm,
            };
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
        gather,
        options,
        counters: counters.clone(),
        waves: Vec::new(),
        watched: Instant::now(),
        end: None,
        changes: 0,
        timeline: None,
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

/// Makes NCCL's communicator of all ranks of a group, on the device of a context that is current.
pub(crate) fn begin(
    backend: Backend,
    group: &mut Group,
    config: &Config,
    context: &Context,
    deadline: Instant,
) -> Result<Comm, NcclCommError> {
    let library = match backend {
        Backend::Nccl => Library::open()?,
        Backend::PyNccl => Library::loaded()?,
    };
    same_versions(&library, group, deadline)?;
    let id = unique_id(&library, group, deadline)?;
    let ranks = group.members().len();
    let config = with_channels(config, ranks, context.multiprocessors()?);
    let comm = Comm::begin(&library, id, group.rank().index(), ranks, &config)?;
    comm.wait("making the communicator", deadline)?;
    Ok(comm)
}

/// Ranks of different versions would not understand each other.
fn same_versions(library: &Library, group: &mut Group, deadline: Instant) -> Result<(), NcclCommError> {
    let ours = library.version();
    let told = group.all_gather("version of NCCL", &ours.0.to_le_bytes(), deadline)?;
    for (rank, bytes) in told.into_iter().enumerate() {
        let theirs = bytes.try_into().map(|bytes| Version(u32::from_le_bytes(bytes))).unwrap_or(Version(0));
        if theirs != ours {
            let (rank, path) = (RankId::at(rank), library.path().to_owned());
            return Err(NcclCommError::Versions { rank, theirs, ours, path });
        }
    }
    Ok(())
}

/// The name of the communicator, drawn by the lowest rank.
fn unique_id(library: &Library, group: &mut Group, deadline: Instant) -> Result<UniqueId, NcclCommError> {
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
    match exchange_greetings(&mut comm, scratch, stream, events, rank, deadline) {
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
    let size = comm.size();
    let received = scratch.base() + (GREETING_BYTES * size) as u64;
    for peer in (0..size).filter(|&peer| peer != rank.index()) {
        let at = (GREETING_BYTES * peer) as u64;
        // SAFETY: each peer has its own part of the scratch block, for each way, which lives until the event below.
        unsafe {
            comm.send(&group, scratch.base() + at, GREETING_BYTES, peer, stream.as_raw())?;
            comm.recv(&group, received + at, GREETING_BYTES, peer, stream.as_raw())?;
        }
    }
    group.end()?;
    comm.wait("opening every pair of ranks", deadline)?;
    let fence: Fence = events.record(stream, rank)?.fence();
    fence.wait(rank, "the first message of every pair of ranks", deadline)?;
    Ok(())
}
