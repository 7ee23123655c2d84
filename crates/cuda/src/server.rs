//! The streams of a server, which a rank's commits and changes of maps are ordered with.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use eplb_comm::{CommError, Fence, FenceState, Stream};
use eplb_core::{RankId, SlotCommit};

use crate::ahead::CommitList;
use crate::compute::DeviceStream;
use crate::error::CudaError;
use crate::event::{CudaFence, Events};
use crate::kernels::Kernels;
use crate::maps::{MapBlock, MapEntries, Upload};
use crate::memory::DeviceMemory;
use crate::stream::CudaStream;

/// Most streams of a server at a time.
pub const MOST_STREAMS: usize = 16;
/// Events made at start-up: an exchange keeps one per step that runs and stream.
const EVENTS: usize = 64;

/// All streams of a server on which passes read slots or maps, as one [`Stream`]. They are borrowed, and may change from pass to pass.
///
/// What is written (commits, maps) goes on the first of them, the *lead*. Before the first write of a boundary the lead waits for
/// everything enqueued on all streams so far ([`Stream::commit`], [`ServerStreams::lead_alone`]); at its end the others wait for the lead
/// ([`ServerStreams::release`]). So a pass runs before all of it or after all of it, whatever stream it is on. Before a server
/// has named a stream, a stream of ours is the lead.
///
/// A commit that was laid out ahead ([`ServerStreams::lay_out`]) is kept until the maps change in the same boundary, and both are one launch.
#[derive(Debug)]
pub struct ServerStreams {
    inner: DeviceStream,
    events: Arc<Events>,
    memory: Arc<DeviceMemory>,
    own: Arc<CudaStream>,
    given: Vec<Arc<CudaStream>>,
    /// Behind the work of streams that are not given any more.
    left: Vec<Arc<CudaFence>>,
    /// Behind what the given streams but the lead had to do when this boundary began, if a fence was asked for since.
    fresh: Vec<Arc<CudaFence>>,
    /// The lead is behind everything that other streams had to do.
    alone: bool,
    /// Behind the last write of boundaries before.
    written: Option<Arc<CudaFence>>,
    /// Behind the last write of this boundary, if nothing was enqueued on the lead since.
    latest: Option<Arc<CudaFence>>,
    /// The commit that comes next, if it is laid out.
    laid_out: Option<CommitList>,
    /// A commit of this boundary that is still to be enqueued.
    kept: Option<(CommitList, Arc<Later>)>,
    /// What is behind everything that the lead had to do when this boundary began, once that has ended.
    mark: Option<Arc<Later>>,
}

/// The fence behind work that is enqueued before the boundary ends.
#[derive(Debug, Default)]
struct Later(OnceLock<Result<Arc<CudaFence>, CommError>>);

impl Later {
    /// The work is enqueued, or could not be. Once: whoever does so has taken it from where it was kept.
    fn set(&self, made: &Result<Arc<CudaFence>, CudaError>, rank: RankId) {
        let told = match made {
            Ok(fence) => Ok(fence.clone()),
            Err(error) => Err(error.clone().at(rank)),
        };
        drop(self.0.set(told));
    }
}

impl FenceState for Later {
    fn poll(&self) -> Result<bool, CommError> {
        match self.0.get() {
            None => Ok(false),
            Some(Ok(fence)) => fence.poll(),
            Some(Err(error)) => Err(error.clone()),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Checks what can be told of handles without the driver.
///
/// # Errors
/// [`CudaError::Streams`]: too many, or 0, which is no stream.
pub fn check_streams(handles: &[u64]) -> Result<(), CudaError> {
    if handles.len() > MOST_STREAMS {
        return Err(CudaError::Streams(format!("{} streams: at most {MOST_STREAMS}", handles.len())));
    }
    if handles.contains(&0) {
        let default = "0 is the implicit default stream: pass 1 (CU_STREAM_LEGACY) or 2 (CU_STREAM_PER_THREAD) if passes run there";
        return Err(CudaError::Streams(default.into()));
    }
    Ok(())
}

impl ServerStreams {
    /// No stream of the server yet. For start-up: makes a stream and events, and takes memory for lists of the commit kernel.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(memory: Arc<DeviceMemory>, kernels: Option<Arc<Kernels>>) -> Result<Self, CudaError> {
        let own = CudaStream::new(memory.context(), 0)?;
        let events = Events::new(memory.context(), EVENTS)?;
        let mut inner = DeviceStream::new(memory.clone(), own.clone())?;
        if let Some(kernels) = kernels {
            inner = inner.with_kernels(kernels)?;
        }
        let (given, left, fresh) = (Vec::with_capacity(MOST_STREAMS), Vec::new(), Vec::new());
        Ok(Self {
            inner,
            events,
            memory,
            own,
            given,
            left,
            fresh,
            alone: false,
            written: None,
            latest: None,
            laid_out: None,
            kept: None,
            mark: None,
        })
    }

    /// From now on passes run on these streams, and on no other. False, and nothing has changed: one of them, or of those before, is being
    /// captured.
    ///
    /// # Errors
    /// 0, which is no stream, too many, or the driver refused.
    ///
    /// # Safety
    /// Each handle is a `CUstream` of the memory's context that lives until a later call without it has returned, or this is dropped.
    pub unsafe fn give(&mut self, handles: &[u64]) -> Result<bool, CudaError> {
        check_streams(handles)?;
        let same = self.given.len() == handles.len()
            && self.given.iter().zip(handles).all(|(stream, &handle)| stream.as_raw() as u64 == handle);
        if same {
            return self.none_captures(&self.given);
        }
        let context = self.memory.context();
        let mut next = Vec::with_capacity(MOST_STREAMS);
        for &handle in handles {
            let known = self.given.iter().find(|stream| stream.as_raw() as u64 == handle);
            next.push(match known {
                Some(stream) => stream.clone(),
                // SAFETY: passed on to the caller.
                None => unsafe { CudaStream::borrow(context, handle as *mut std::ffi::c_void) },
            });
        }
        if !self.none_captures(&next)? || !self.none_captures(&self.given)? {
            return Ok(false);
        }
        let rank = self.memory.rank();
        for stream in &self.given {
            if !next.iter().any(|other| Arc::ptr_eq(other, stream)) {
                self.left.push(self.events.record(stream, rank)?);
            }
        }
        if let Some(written) = &self.written {
            for stream in next.iter().filter(|stream| !self.given.iter().any(|old| Arc::ptr_eq(old, stream)))
            {
                written.order(stream)?;
            }
            if next.is_empty() {
                written.order(&self.own)?;
            }
        }
        self.given = next;
        self.fresh.clear();
        self.inner.set_stream(self.lead().clone());
        self.alone = false;
        Ok(true)
    }

    /// Whether none of the streams that passes run on is being captured.
    ///
    /// # Errors
    /// The driver refused.
    pub fn run(&self) -> Result<bool, CudaError> {
        self.none_captures(&self.given)
    }

    fn none_captures(&self, streams: &[Arc<CudaStream>]) -> Result<bool, CudaError> {
        for stream in streams {
            if stream.is_capturing()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The stream that writes run on.
    pub fn lead(&self) -> &Arc<CudaStream> {
        self.given.first().unwrap_or(&self.own)
    }

    /// The lead, behind everything that was enqueued on any stream so far: for writes that all passes before must not see.
    ///
    /// # Errors
    /// The driver refused.
    pub fn lead_alone(&mut self) -> Result<&Arc<CudaStream>, CudaError> {
        self.make_kept(None)?;
        self.stand_alone()?;
        // What the caller enqueues is behind no fence of ours.
        self.latest = None;
        Ok(self.lead())
    }

    /// The commit that comes next, ahead of its step; `None`: none is known.
    pub fn lay_out(&mut self, list: Option<CommitList>) {
        self.laid_out = list;
    }

    /// Looks whether what was laid out has come.
    ///
    /// # Errors
    /// The device is lost.
    pub fn look(&self) -> Result<(), CudaError> {
        self.laid_out.as_ref().map_or(Ok(true), CommitList::look).map(drop)
    }

    /// Puts maps in force: those that were sent ahead, together with a commit of this boundary that was laid out for them.
    ///
    /// # Errors
    /// The driver refused.
    pub fn switch(&mut self, block: &MapBlock, upload: Upload) -> Result<(), CudaError> {
        let left = match self.kept.as_ref().is_some_and(|(list, _)| list.has(&upload)) {
            true => {
                self.make_kept(Some(upload))?;
                return Ok(());
            }
            false => upload,
        };
        self.make_kept(None)?;
        self.stand_alone()?;
        self.latest = Some(block.switch(self.lead(), left)?);
        Ok(())
    }

    /// Puts maps in force that were not sent ahead.
    ///
    /// # Errors
    /// The driver refused, or the device is stuck.
    pub fn write(&mut self, block: &MapBlock, maps: &MapEntries<'_>) -> Result<(), CudaError> {
        let fence = block.write(self.lead_alone()?, maps)?;
        self.latest = Some(fence);
        Ok(())
    }

    /// Enqueues the commit of this boundary that was kept, and the change of maps that goes with it.
    fn make_kept(&mut self, upload: Option<Upload>) -> Result<(), CudaError> {
        let Some((list, later)) = self.kept.take() else { return Ok(()) };
        let made = self.stand_alone().and_then(|()| {
            // SAFETY: both sides of each copy lie in this rank's memory, which lives, and have the shape of one tensor; a commit names
            // each slot once and reads none that it writes, or it is not laid out. That nobody else uses the slots is the order of the
            // exchange, and that nobody reads the maps that of the streams: the lead is behind all of them, and they wait for it.
            unsafe { list.launch(self.lead(), upload) }
        });
        let rank = self.memory.rank();
        later.set(&made, rank);
        self.latest = Some(made?);
        Ok(())
    }

    /// Puts the lead behind everything that was enqueued on any stream so far.
    fn stand_alone(&mut self) -> Result<(), CudaError> {
        if !self.alone {
            let rank = self.memory.rank();
            self.forget_passed()?;
            let lead = self.lead();
            for fence in &self.left {
                fence.order(lead)?;
            }
            for (at, other) in self.given.iter().enumerate().skip(1) {
                match self.fresh.get(at - 1) {
                    Some(fence) => fence.order(lead)?,
                    None => self.events.record(other, rank)?.order(lead)?,
                }
            }
            self.alone = true;
        }
        Ok(())
    }

    /// Ends a boundary: whatever is enqueued on any stream from now on runs after what was written.
    ///
    /// # Errors
    /// The driver refused.
    pub fn release(&mut self) -> Result<(), CudaError> {
        let made = self.make_kept(None);
        // From here on the server enqueues.
        self.fresh.clear();
        let (latest, mark, alone) = (self.latest.take(), self.mark.take(), std::mem::take(&mut self.alone));
        if mark.is_some() || alone {
            // One event tells of the end of the passes before and of what was written behind them.
            let fence = match latest {
                Some(fence) => Ok(fence),
                None => self.events.record(self.lead(), self.memory.rank()),
            };
            if let Some(mark) = mark {
                mark.set(&fence, self.memory.rank());
            }
            let fence = fence?;
            if alone {
                for other in self.given.iter().skip(1) {
                    fence.order(other)?;
                }
                self.written = Some(fence);
            }
        }
        made
    }

    /// A fence behind the last write, if there was any.
    pub fn written(&self) -> Option<Fence> {
        self.written.as_ref().map(CudaFence::fence)
    }

    fn forget_passed(&mut self) -> Result<(), CudaError> {
        let mut failed = None;
        self.left.retain(|fence| match fence.poll() {
            Ok(passed) => !passed,
            Err(error) => {
                failed = Some(error);
                true
            }
        });
        failed.map_or(Ok(()), |error| Err(CudaError::Comm(error)))
    }
}

/// Passed when all are.
#[derive(Debug)]
struct All(Vec<Arc<CudaFence>>, Arc<Later>);

impl FenceState for All {
    fn poll(&self) -> Result<bool, CommError> {
        for fence in &self.0 {
            if !fence.poll()? {
                return Ok(false);
            }
        }
        self.1.poll()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Stream for ServerStreams {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        let rank = self.memory.rank();
        self.make_kept(None).map_err(|error| error.at(rank))?;
        if let Some(list) = self.laid_out.take_if(|list| list.is_of(commits)) {
            let later = Arc::new(Later::default());
            self.kept = Some((list, later.clone()));
            return Ok(Fence::new(later));
        }
        self.latest = None;
        if commits.iter().any(|commit| commit.fill.copies()) {
            self.lead_alone().map_err(|error| error.at(rank))?;
        }
        self.inner.commit(commits)
    }

    /// Behind everything that passes have enqueued so far. On the lead it is marked when the boundary ends, behind what is written in it: the fence passes after
    /// [`ServerStreams::release`].
    fn record(&mut self) -> Result<Fence, CommError> {
        let rank = self.memory.rank();
        self.make_kept(None).map_err(|error| error.at(rank))?;
        self.latest = None;
        self.forget_passed().map_err(|error| error.at(rank))?;
        let mut fences = self.left.clone();
        self.fresh.clear();
        for stream in self.given.iter().skip(1) {
            self.fresh.push(self.events.record(stream, rank).map_err(|error| error.at(rank))?);
        }
        fences.extend(self.fresh.iter().cloned());
        let mark = self.mark.get_or_insert_with(Arc::default).clone();
        Ok(Fence::new(Arc::new(All(fences, mark))))
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        let rank = self.memory.rank();
        self.lead_alone().map_err(|error| error.at(rank))?;
        self.inner.wait(fence)?;
        self.release().map_err(|error| error.at(rank))
    }
}
