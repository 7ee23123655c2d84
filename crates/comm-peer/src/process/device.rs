//! Slots in device memory, one process per device: opened by handles, pulled by copy engines.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eplb_comm::{Extent, Memory as _};
use eplb_core::{LayerId, RankId};
use eplb_cuda::ipc::{HandleKind, Mark, Opened, Spot, export};
use eplb_cuda::{CudaError, DeviceMemory};

use super::card::Memory;
use super::error::PeerError;
use super::meet::{Meeting, Met, Neighbour, Offer};
use super::reach::Reach;
use crate::communicator::PeerCommunicator;
use crate::engine::Engine;
use crate::options::Options;
use crate::shared::Shared;

/// How long the others may take to close what they have open of a rank that leaves.
const CLOSING: Duration = Duration::from_secs(2);

/// A rank on a device that has joined others.
#[derive(Debug)]
pub struct Joined {
    /// The slots of all ranks as this one reaches them, by rank: its own memory, and what it has opened. To be dropped before the
    /// communicator, which tells the owners that nothing is open any more; fields drop in their order.
    pub memories: Vec<Arc<DeviceMemory>>,
    /// Its communicator.
    pub communicator: PeerCommunicator,
}

/// Makes this rank's communicator on device memory; all ranks call it together, each in a process of its own. Each rank opens the slots of
/// all others, each allocation once, and tries every path out with a copy that it compares.
///
/// Dropping the communicator closes what it has opened, and gives the others up to 2 s to close what they have open of this
/// rank: only then may the memory be freed. A process that ends needs not wait: the driver keeps its memory for its readers.
///
/// # Errors
/// Memory that other processes cannot open, a rank that did not come or cannot open or reach another's memory (then all say so),
/// or the driver or the system refused something.
pub fn join_device(
    meeting: &Meeting,
    memory: Arc<DeviceMemory>,
    options: &Options,
) -> Result<Joined, PeerError> {
    let (mut mark, offered, files) = offered(&memory);
    let met = meeting.meet(offer_of(&memory, offered, &files), opening(meeting.rank, &memory, &mut mark))?;
    finish(met, mark, memory, options, None)
}

/// What ranks on devices found out about each other.
#[derive(Debug)]
pub struct Surveyed {
    /// Who can open whose memory.
    pub reach: Reach,
    /// This rank, joined with those of its [group](Reach::groups); `None` where every rank is a group by itself. Of ranks of other groups
    /// [`Joined::memories`] has this rank's own memory.
    pub joined: Option<Joined>,
}

/// As [`join_device`], with those ranks that can open each other's memory; all ranks call it together.
///
/// # Errors
/// A rank did not come or has other tensors, or the driver refused streams or events. That memory cannot be opened is none: [`Reach`] says so.
pub fn survey_device(
    meeting: &Meeting,
    memory: Arc<DeviceMemory>,
    options: &Options,
) -> Result<Surveyed, PeerError> {
    let (mut mark, offered, files) = offered(&memory);
    let surveyed =
        meeting.survey(offer_of(&memory, offered, &files), opening(meeting.rank, &memory, &mut mark))?;
    let groups = surveyed.reach.groups();
    let near = groups.iter().map(|group| *group == groups[meeting.rank.index()]).collect();
    let joined = surveyed.met.map(|met| finish(met, mark, memory, options, Some(near))).transpose()?;
    Ok(Surveyed { reach: surveyed.reach, joined })
}

/// What this rank gives to others; where it can give nothing, all ranks learn why.
fn offered(memory: &DeviceMemory) -> (Option<Mark>, Memory, Vec<OwnedFd>) {
    let seed = u64::from(memory.rank().0) ^ memory.layout().hash64();
    match offer(memory, seed) {
        Ok((mark, offered, files)) => (Some(mark), offered, files),
        Err(error) => (None, Memory::None { reason: error.to_string() }, Vec::new()),
    }
}

fn offer_of<'a>(memory: &'a DeviceMemory, offered: Memory, files: &'a [OwnedFd]) -> Offer<'a> {
    Offer {
        layout: memory.layout(),
        extent: memory.extent().clone(),
        memory: offered,
        files: files.iter().map(AsFd::as_fd).collect(),
        patience: CLOSING,
    }
}

/// Opens the memory of others, and tries the path to it out.
fn opening<'a>(
    rank: RankId,
    memory: &'a DeviceMemory,
    mark: &'a mut Option<Mark>,
) -> impl FnMut(Neighbour) -> Result<Arc<DeviceMemory>, PeerError> + 'a {
    move |neighbour| {
        let owner = neighbour.rank;
        open(neighbour, memory, mark.as_mut()).map_err(|reason| PeerError::not_opened(rank, owner, reason))
    }
}

/// The communicator over what was opened; `near`: of which ranks that is, if not of all.
fn finish(
    met: Met<Arc<DeviceMemory>>,
    mark: Option<Mark>,
    memory: Arc<DeviceMemory>,
    options: &Options,
    near: Option<Vec<bool>>,
) -> Result<Joined, PeerError> {
    let rank = memory.rank();
    let layout = memory.layout().clone();
    // Before the memories, so that on an error these are closed when it says so.
    let mut pages = met.pages;
    let memories: Vec<_> =
        met.opened.into_iter().map(|source| source.unwrap_or_else(|| memory.clone())).collect();
    // What others have open here is kept until they have closed it, or until their time is over.
    pages.keep(Box::new(Mutex::new((mark, memory.clone()))));
    let engine = Engine::new(memory, memories.clone(), options)
        .map_err(|error: CudaError| PeerError::Comm(error.at(rank)))?;
    let board = pages.board();
    let shared = Shared::new(rank, Box::new(engine), Box::new(pages), options.manner(met.extents.len()));
    let communicator = PeerCommunicator::start("peer", rank, layout, met.extents, shared)?;
    let mut communicator = communicator.with_bulletin(board);
    if let Some(near) = near {
        communicator = communicator.with_near(near);
    }
    Ok(Joined { communicator, memories })
}

/// What this rank gives to others, and the mark by which they try the path to it out.
fn offer(memory: &DeviceMemory, seed: u64) -> Result<(Mark, Memory, Vec<OwnedFd>), CudaError> {
    let mut pieces = memory.pieces()?;
    let mark = Mark::new(memory.context(), kind_of(memory, &pieces)?, seed)?;
    pieces.push((mark.base(), Mark::BYTES));
    let mut exported = export(memory.context(), &pieces)?;
    let spot = exported.spots.pop().unwrap_or(Spot { range: 0, offset: 0 });
    let mut spots = exported.spots.into_iter();
    let tensors = |layer| memory.layout().layer(LayerId::at(layer)).tensors().len();
    let spots = (0..memory.layout().layers()).map(|layer| spots.by_ref().take(tensors(layer)).collect());
    let offered = Memory::Device { ranges: exported.ranges, spots: spots.collect(), mark: spot, seed };
    Ok((mark, offered, exported.files))
}

/// The kind of handles of the memory that slots lie in: what the mark lies in should be the same.
fn kind_of(memory: &DeviceMemory, pieces: &[(u64, usize)]) -> Result<HandleKind, CudaError> {
    match pieces.first() {
        Some(&(address, bytes)) if bytes > 0 => HandleKind::of(memory.context(), address),
        _ => Ok(HandleKind::Legacy),
    }
}

/// Opens a rank's slots and tries the path out.
fn open(
    neighbour: Neighbour,
    memory: &DeviceMemory,
    mark: Option<&mut Mark>,
) -> Result<Arc<DeviceMemory>, String> {
    let mark = mark.ok_or("this rank has no memory that is opened")?;
    let Neighbour { rank, layout, extent, memory: theirs, files } = neighbour;
    let Memory::Device { ranges, spots, mark: spot, seed } = theirs else {
        return Err("it is not device memory".into());
    };
    let kind = ranges.first().and_then(|range| range.first()).map_or("no", |chunk| chunk.handle.kind());
    let failed = |error: CudaError| format!("{kind} handles: {error}");
    let context = memory.context();
    let opened = Opened::new(context, &ranges, files).map_err(failed)?;
    let address = opened.address(spot, Mark::BYTES).ok_or("its mark does not lie in its memory")?;
    // SAFETY: the mark lies in what was just opened, which lives until this function returns at least.
    match unsafe { mark.try_out(address, seed) } {
        Ok(true) => {}
        Ok(false) => return Err(format!("{kind} handles: a copy from it brought other bytes than it has")),
        Err(error) => return Err(format!("{kind} handles: a copy from it failed: {error}")),
    }
    let Extent { slots, .. } = extent;
    DeviceMemory::opened(context, rank, layout, slots, &spots, opened).map_err(failed)
}
