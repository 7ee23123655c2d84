//! Slots on a device: every message goes through pinned memory of the host, by copies on a stream of the lane's own.
//!
//! What a lane sends is copied to a cell, and sent when the event behind the copy has passed; what it receives has arrived in a cell whole and named the right
//! expert before it is copied to its place, and counts as there, and the cell as free, when the event behind that copy has passed. The lane looks at
//! the event again and again and gives up between two looks; meanwhile the network goes on with its other messages. A copy depends on nothing but copies
//! before it, so it ends whatever other ranks do. Places are addresses: who may use them when is the order of the engine.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use eplb_comm::{CommError, Communicator, FenceState, Memory, Place};
use eplb_core::{ExpertId, RankId, Transfer};
use eplb_cuda::{CudaError, CudaFence, CudaStream, DeviceMemory, Events, PinnedBlock, Rows};

use super::alone::Alone;
use super::{Ground, Hold, Load, Over, Porter};
use crate::cells::Cells;
use crate::cut::Cut;
use crate::options::{Options, Planted};
use crate::run::Trouble;

/// How long a lane looks at an event without a pause, and the shortest and longest pauses after that.
const HOT: Duration = Duration::from_micros(50);
const PAUSES: (Duration, Duration) = (Duration::from_micros(10), Duration::from_micros(500));

impl Ground for Arc<DeviceMemory> {
    fn rank(&self) -> RankId {
        DeviceMemory::rank(self)
    }

    fn memory(&self) -> &dyn Memory {
        &**self
    }

    fn alone(&self) -> Result<Box<dyn Communicator>, CommError> {
        Ok(Box::new(Alone::new(self.clone())?))
    }

    fn largest_packed(&self, cut: &Cut) -> usize {
        cut.largest()
    }

    fn packs_pinned(&self) -> bool {
        true
    }

    fn lane(
        &self,
        count: usize,
        bytes: usize,
        options: &Options,
    ) -> Result<(Cells, Box<dyn Porter>), CommError> {
        let rank = DeviceMemory::rank(self);
        let made = || -> Result<(PinnedBlock, Arc<CudaStream>, Arc<Events>), CudaError> {
            let context = self.context();
            Ok((
                PinnedBlock::new(context, count * bytes)?,
                CudaStream::new(context, 0)?,
                Events::new(context, 2)?,
            ))
        };
        let (block, stream, events) = made().map_err(|error| error.at(rank))?;
        let copies = Copies {
            rank,
            memory: self.clone(),
            stream,
            events,
            last: Mutex::default(),
            options: options.clone(),
        };
        Ok((Cells::pinned(block, count, bytes), Box::new(DevicePorter(Arc::new(copies)))))
    }
}

/// The copies of one lane.
#[derive(Debug)]
struct Copies {
    rank: RankId,
    memory: Arc<DeviceMemory>,
    stream: Arc<CudaStream>,
    events: Arc<Events>,
    /// Behind everything that was enqueued, until it is seen to have passed.
    last: Mutex<Option<Arc<CudaFence>>>,
    /// For the faults that tests plant.
    options: Options,
}

impl Copies {
    /// Records an event behind what `enqueued` came to, which may be a part of what it should have been.
    fn behind(&self, enqueued: Result<(), CudaError>) -> Result<Arc<CudaFence>, Trouble> {
        let own = |error: CudaError| Trouble::Own(error.at(self.rank));
        let fence = self.events.record(&self.stream, self.rank).map_err(own)?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(fence.clone());
        enqueued.map_err(own)?;
        Ok(fence)
    }

    /// Waits for copies, looking again and again.
    fn wait(&self, fence: &CudaFence, over: Over<'_>) -> Result<(), Trouble> {
        let (start, mut pause) = (Instant::now(), PAUSES.0);
        while !fence.poll()? {
            if over() {
                return Err(Trouble::Stopped);
            }
            match start.elapsed() < HOT {
                true => std::thread::yield_now(),
                false => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Rows of the device that the bytes of a message are, in its order.
    fn rows(&self, place: Place, load: Load<'_>) -> Result<Vec<Rows>, CommError> {
        match load {
            Load::Small(cut) => cut.small().iter().map(|&tensor| self.memory.rows(place, tensor)).collect(),
            Load::Piece(piece) => {
                let at = match self.options.has(Planted::PieceElsewhere) {
                    true => 0,
                    false => piece.offset,
                };
                Ok(self.memory.rows(place, piece.tensor)?.part(at, piece.bytes))
            }
        }
    }
}

struct DevicePorter(Arc<Copies>);

impl Porter for DevicePorter {
    fn begin(&self) {
        // A driver that refuses makes captures of the server fail while waves move, no more.
        let _ = eplb_cuda::keep_out_of_captures();
    }

    fn open(&mut self, place: Place, _: Option<ExpertId>) -> Result<Box<dyn Hold>, CommError> {
        Ok(Box::new(DeviceHold { copies: self.0.clone(), place }))
    }

    fn copy(&mut self, transfer: &Transfer, over: Over<'_>) -> Result<(), Trouble> {
        let memory = &self.0.memory;
        let tensors = 0..memory.layout().layer(transfer.layer).tensors().len();
        let rows = |place: Place| {
            tensors.clone().map(move |tensor| memory.rows(place, tensor)).collect::<Result<Vec<_>, _>>()
        };
        let (from, to) = (rows(Place::source(transfer))?, rows(Place::landing(transfer))?);
        let enqueued = from.into_iter().zip(to).try_for_each(|(from, to)| {
            // SAFETY: two places of one rank's memory, which lives as long as this lane (`settle`); they are apart (`submit` has looked), have the
            // rows of one layout, and are this wave's until it is done.
            unsafe { self.0.stream.copy(from, to) }
        });
        let fence = self.0.behind(enqueued)?;
        self.0.wait(&fence, over)
    }

    fn settle(&mut self, give_up: Over<'_>) -> bool {
        let last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(last) = last.filter(|_| !self.0.options.has(Planted::QuietEarly)) else { return true };
        // A device that fails runs nothing any more.
        !matches!(self.0.wait(&last, give_up), Err(Trouble::Stopped))
    }
}

/// An expert of a device under way.
struct DeviceHold {
    copies: Arc<Copies>,
    place: Place,
}

impl Hold for DeviceHold {
    fn straight(&mut self, _: usize) -> Option<NonNull<[u8]>> {
        None
    }

    fn pack(&mut self, load: Load<'_>, to: &mut [u8], over: Over<'_>) -> Result<(), Trouble> {
        let copies = &self.copies;
        let rows = self.rows(load, to.len())?;
        let (mut left, mut enqueued) = (to, Ok(()));
        for from in rows {
            let (cell, rest) = left.split_at_mut(from.bytes());
            left = rest;
            // SAFETY: the rows are those of a place that this wave reads, so nobody writes them; `cell` is as long, of pinned memory that
            // lives as long as the lane. The host leaves it alone until the event below has passed: this call returns no sooner,
            // or with an error, behind which the lane uses no cell before `settle`.
            enqueued = enqueued.and_then(|()| unsafe { copies.stream.rows_to_host(from, cell.as_mut_ptr()) });
        }
        let fence = copies.behind(enqueued)?;
        if copies.options.has(Planted::SentEarly) {
            return Ok(());
        }
        copies.wait(&fence, over)
    }

    fn unpack(&mut self, load: Load<'_>, from: &[u8], over: Over<'_>) -> Result<(), Trouble> {
        let copies = &self.copies;
        let rows = self.rows(load, from.len())?;
        let (mut left, mut enqueued) = (from, Ok(()));
        for to in rows {
            let (cell, rest) = left.split_at(to.bytes());
            left = rest;
            // SAFETY: the rows are those of a place that this wave writes and nobody else uses; `cell` is as long, of pinned memory that lives as
            // long as the lane, and is not written before the event below has passed, as in `pack`.
            enqueued = enqueued.and_then(|()| unsafe { copies.stream.rows_to_device(cell.as_ptr(), to) });
        }
        let fence = copies.behind(enqueued)?;
        if copies.options.has(Planted::LandedEarly) || copies.options.has(Planted::CellReused) {
            return Ok(());
        }
        copies.wait(&fence, over)
    }

    fn name(&mut self, _: ExpertId) -> Result<(), Trouble> {
        let last = self.copies.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match last.filter(|_| self.copies.options.has(Planted::CellReused)) {
            Some(fence) => self.copies.wait(&fence, &|| false),
            None => Ok(()),
        }
    }
}

impl DeviceHold {
    /// The rows of a message, which are as many bytes as there are in packing memory.
    fn rows(&self, load: Load<'_>, bytes: usize) -> Result<Vec<Rows>, Trouble> {
        let rows = self.copies.rows(self.place, load)?;
        let found: usize = rows.iter().map(Rows::bytes).sum();
        if found != bytes {
            // A rule of this crate was broken; nothing is enqueued.
            let what = format!("a message of {}", self.place);
            let detail = format!("its tensors are {found} bytes there, {bytes} in packing memory");
            return Err(Trouble::Own(CommError::Panicked { rank: self.copies.rank, what, detail }));
        }
        Ok(rows)
    }
}
