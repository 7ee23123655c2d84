//! The work of one rank: waves become groups on a stream.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use eplb_comm::timeline::tell;
use eplb_comm::{CommError, Fence, Memory, Moment, Place, Ticket, Timeline};
use eplb_core::{RankId, Transfer};
use eplb_cuda::{Context, CudaFence, CudaStream, DeviceBlock, DeviceMemory, Events, RowCopies, Rows};
use nccl_rs::{Comm, Group};

use crate::agree::{Agreement, Position};
use crate::cut::Message;
use crate::error::foreign;
use crate::options::Options;
use crate::shared::Counters;
use crate::ticket::WaveTicket;

/// How soon the lane wants to be moved on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At once: a group is on its way to the stream.
    Hot,
    /// Soon: something is under way.
    Warm,
    /// When something new comes.
    Cold,
}

/// What may be launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Nothing: the caller only looks.
    Nothing,
    /// Whatever is next.
    Now,
    /// What is to be launched before this step.
    Step(u64),
}

/// A submitted wave.
#[derive(Debug)]
pub(crate) struct Wave {
    pub(crate) number: u64,
    pub(crate) transfers: Arc<[Transfer]>,
    /// Messages between ranks, cut into groups.
    pub(crate) groups: Vec<Vec<Message>>,
    pub(crate) hash: u64,
    pub(crate) after: Fence,
    pub(crate) ticket: Arc<WaveTicket>,
    pub(crate) stage: Stage,
}

/// How far a wave is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Its fence is not passed yet.
    Gated,
    /// This rank has said that it is ready.
    Ready,
    /// Groups are being enqueued: number of the next, and what the one under way has to unpack.
    Launching { next: usize, unpack: Vec<(Rows, Rows)>, position: Option<Position> },
    /// All is enqueued.
    Running { fences: Vec<Arc<CudaFence>>, position: Option<Position> },
}

/// One rank's communicator, streams and waves. Whoever holds it moves it on; it never waits.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) rank: RankId,
    /// `None` for a single rank, and after an abort.
    pub(crate) comm: Option<Comm>,
    pub(crate) memory: Arc<DeviceMemory>,
    pub(crate) agreement: Option<Agreement>,
    /// Groups, and the packing around them.
    pub(crate) messages: Arc<CudaStream>,
    /// Copies inside the rank.
    pub(crate) copies: Arc<CudaStream>,
    pub(crate) events: Arc<Events>,
    /// Two halves: pieces to send, pieces received.
    pub(crate) pack: DeviceBlock,
    /// The kernel that gathers and scatters pieces; copies do without.
    pub(crate) gather: Option<RowCopies>,
    pub(crate) options: Options,
    pub(crate) counters: Arc<Counters>,
    pub(crate) waves: Vec<Wave>,
    pub(crate) watched: Instant,
    pub(crate) end: Option<Ending>,
    pub(crate) changes: u64,
    /// Told what happens when, if there is one.
    pub(crate) timeline: Option<Arc<Timeline>>,
}

/// How the lane ended.
#[derive(Debug)]
pub(crate) struct Ending {
    broken: Option<CommError>,
    /// Behind everything that was enqueued; `None` if a stream is lost and nothing can be known.
    fences: Option<Vec<Arc<CudaFence>>>,
}

impl Lane {
    pub(crate) fn context(&self) -> &Arc<Context> {
        self.memory.context()
    }

    /// Device memory that it took at start-up.
    pub(crate) fn pool_bytes(&self) -> usize {
        self.pack.bytes() + self.gather.as_ref().map_or(0, |_| RowCopies::DEVICE_BYTES)
    }

    /// Takes new waves.
    pub(crate) fn take(&mut self, waves: Vec<Wave>) {
        self.changes += waves.len() as u64;
        self.waves.extend(waves);
    }

    /// Counts every step that a wave goes on.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// What broke the lane, if it did by itself.
    pub(crate) fn broken(&self) -> Option<&CommError> {
        self.end.as_ref().and_then(|end| end.broken.as_ref())
    }

    /// Whether it has ended and nothing enqueued is left.
    pub(crate) fn is_quiet(&self) -> bool {
        let passed =
            |fence: &Arc<CudaFence>| matches!(eplb_comm::FenceState::poll(&**fence), Ok(true) | Err(_));
        self.end.as_ref().is_some_and(|end| end.fences.as_ref().is_some_and(|all| all.iter().all(passed)))
    }

    /// The caller gives the communicator up.
    pub(crate) fn end(&mut self, cause: &str) {
        if self.end.is_none() {
            self.finish(CommError::Aborted { rank: self.rank, cause: cause.into() }, false);
        }
    }

    /// Moves on as far as it goes. New work is launched with `leave` only.
    pub(crate) fn advance(&mut self, leave: Leave) -> Pace {
        if self.end.is_none()
            && let Err(error) = self.step(leave)
        {
            self.finish(error, true);
        }
        if self.end.is_some() {
            // What came after the end, or was left by it.
            for wave in std::mem::take(&mut self.waves) {
                wave.ticket
                    .fail(CommError::Aborted { rank: self.rank, cause: "the communicator has ended".into() });
            }
            return if self.is_quiet() { Pace::Cold } else { Pace::Warm };
        }
        let launching = self.waves.iter().any(|wave| matches!(wave.stage, Stage::Launching { .. }));
        match (self.waves.is_empty(), launching) {
            (true, _) => Pace::Cold,
            (false, true) => Pace::Hot,
            (false, false) => Pace::Warm,
        }
    }

    fn step(&mut self, leave: Leave) -> Result<(), CommError> {
        self.open_gates()?;
        if leave != Leave::Nothing {
            self.launch(leave)?;
        }
        self.collect()?;
        self.check_deadlines()?;
        self.watch(leave)
    }

    /// Waves whose fence is passed, or is one that our streams can wait for, are announced.
    fn open_gates(&mut self) -> Result<(), CommError> {
        for wave in &mut self.waves {
            if !matches!(wave.stage, Stage::Gated) || !matches!(wave.ticket.state(), Ok(false)) {
                continue;
            }
            let on_device = wave.after.state().as_any().is::<CudaFence>();
            match wave.after.poll() {
                Ok(passed) if passed || on_device => {
                    if let Some(agreement) = &self.agreement
                        && !wave.groups.is_empty()
                    {
                        agreement.ready(wave.number, wave.hash)?;
                    }
                    tell(&self.timeline, || Moment::Announced(Ticket(wave.number)));
                    wave.stage = Stage::Ready;
                    self.changes += 1;
                }
                Ok(_) => {}
                Err(cause) => wave.ticket.fail(cause),
            }
        }
        // Nothing of these was announced: they are nobody's business but the caller's.
        self.waves
            .retain(|wave| !matches!(wave.stage, Stage::Gated) || matches!(wave.ticket.state(), Ok(false)));
        Ok(())
    }

    /// Enqueues what is next in the order of all ranks. Waves inside the rank have no order to keep.
    fn launch(&mut self, leave: Leave) -> Result<(), CommError> {
        loop {
            let under_way = self.waves.iter().position(|wave| matches!(wave.stage, Stage::Launching { .. }));
            let at = match under_way {
                Some(at) => at,
                None => match self.begin_next(leave)? {
                    Some(at) => at,
                    None => return Ok(()),
                },
            };
            if !self.continue_launch(at)? {
                return Ok(());
            }
        }
    }

    /// Begins to launch a wave, if one may; returns which.
    fn begin_next(&mut self, leave: Leave) -> Result<Option<usize>, CommError> {
        let inside = |wave: &Wave| matches!(wave.stage, Stage::Ready) && wave.groups.is_empty();
        let (at, position) = match self.waves.iter().position(inside) {
            Some(at) => (at, None),
            None => {
                let waiting = self.waves.iter().filter(|wave| matches!(wave.stage, Stage::Ready));
                let (Some(first), Some(agreement)) =
                    (waiting.map(|wave| wave.number).min(), self.agreement.as_mut())
                else {
                    return Ok(None);
                };
                let number = match (agreement.next()?, leave) {
                    (Some((number, step)), Leave::Step(now)) if step <= now => number,
                    (Some((number, _)), Leave::Now) => number,
                    (None, Leave::Step(now)) => {
                        agreement.propose(first, now + 2)?;
                        return Ok(None);
                    }
                    _ => return Ok(None),
                };
                let ready = |wave: &Wave| wave.number == number && matches!(wave.stage, Stage::Ready);
                let Some(at) = self.waves.iter().position(ready) else {
                    // All ranks said ready, this one too: it has given the wave up since.
                    return Err(CommError::Transfer {
                        rank: self.rank,
                        peer: self.rank,
                        cause: format!("wave {number} is to be launched, but was given up here"),
                    });
                };
                (at, Some(agreement.launched()))
            }
        };
        tell(&self.timeline, || Moment::FirstEnqueued(Ticket(self.waves[at].number)));
        let rank = self.rank;
        if let Some(fence) = self.waves[at].after.state().as_any().downcast_ref::<CudaFence>() {
            for stream in [&self.messages, &self.copies] {
                fence.order(stream).map_err(|error| error.at(rank))?;
            }
        }
        self.copy_inside(&self.waves[at].transfers)?;
        self.waves[at].stage = Stage::Launching { next: 0, unpack: Vec::new(), position };
        Ok(Some(at))
    }

    /// Enqueues the copies inside the rank.
    fn copy_inside(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        for transfer in transfers.iter().filter(|t| t.is_local() && t.dest == self.rank) {
            let (from, to) = (Place::source(transfer), Place::landing(transfer));
            for tensor in 0..self.memory.layout().layer(transfer.layer).tensors().len() {
                let (from, to) = (self.memory.rows(from, tensor)?, self.memory.rows(to, tensor)?);
                // SAFETY: both lie in this rank's memory, which lives, and have the shape of one tensor. Submission
                // checked that the wave writes no place that it reads or writes elsewhere; that nobody else uses them is
                // the caller's order.
                unsafe { self.copies.copy(from, to) }.map_err(|error| error.at(self.rank))?;
            }
        }
        Ok(())
    }

    /// Enqueues the groups of a wave, as far as NCCL takes them without waiting. Whether all of it is enqueued.
    fn continue_launch(&mut self, at: usize) -> Result<bool, CommError> {
        loop {
            let rank = self.rank;
            let Stage::Launching { next, unpack, position } = &mut self.waves[at].stage else {
                return Ok(true);
            };
            let (number, position) = (*next, *position);
            // Nothing may be put on the stream before the group under way is on it.
            if let Some(comm) = &self.comm
                && number > 0
                && !comm.is_ready().map_err(|error| foreign(error, rank))?
            {
                return Ok(false);
            }
            let unpack = std::mem::take(unpack);
            self.copy_rows(&unpack)?;
            if number == self.waves[at].groups.len() {
                let mut fences = Vec::new();
                for stream in [&self.messages, &self.copies] {
                    fences.push(self.events.record(stream, rank).map_err(|error| error.at(rank))?);
                }
                tell(&self.timeline, || Moment::AllEnqueued(Ticket(self.waves[at].number)));
                self.waves[at].stage = Stage::Running { fences, position };
                self.changes += 1;
                return Ok(true);
            }
            let unpack = self.enqueue(at, number)?;
            self.waves[at].stage = Stage::Launching { next: number + 1, unpack, position };
        }
    }

    /// Copies rows between places of this rank and the pack block, on the stream of messages: by one launch where there is a kernel.
    fn copy_rows(&mut self, copies: &[(Rows, Rows)]) -> Result<(), CommError> {
        let rank = self.rank;
        if copies.is_empty() {
            return Ok(());
        }
        if let Some(gather) = &mut self.gather {
            // SAFETY: as below; every piece and every landing is named once.
            let launched = unsafe { gather.enqueue(&self.messages, &self.events, rank, copies) };
            if launched.map_err(|error| error.at(rank))?.is_some() {
                return Ok(());
            }
        }
        for &(from, to) in copies {
            // SAFETY: between a place of this rank and the pack block, of one shape; `cut` keeps pieces inside their half, and
            // stream order keeps each until it is sent, or unpacked.
            unsafe { self.messages.copy(from, to) }.map_err(|error| error.at(rank))?;
        }
        Ok(())
    }

    /// Enqueues one group, with the packing before it; returns what has to be unpacked behind it.
    fn enqueue(&mut self, at: usize, number: usize) -> Result<Vec<(Rows, Rows)>, CommError> {
        let rank = self.rank;
        let wave = &self.waves[at];
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        let (mut pack, mut unpack) = (Vec::new(), Vec::new());
        let (mut packed_out, mut packed_in) = (0, self.pack.bytes() / 2);
        for message in &wave.groups[number] {
            let transfer = &wave.transfers[message.transfer];
            if transfer.source != rank && transfer.dest != rank {
                continue;
            }
            let sending = transfer.source == rank;
            let place = if sending { Place::source(transfer) } else { Place::landing(transfer) };
            // Every message takes its room, packed here or not, so that rooms never meet; see `cut`.
            let used = if sending { &mut packed_out } else { &mut packed_in };
            let room = self.pack.base() + *used as u64;
            *used += message.room();
            let mut run = None;
            for part in &message.parts {
                let all = self.memory.rows(place, part.tensor)?;
                let rows =
                    Rows { base: all.base + (part.first_row * all.pitch) as u64, rows: part.rows, ..all };
                if message.parts.len() == 1 && rows.is_gapless() {
                    run = Some(rows.base);
                    continue;
                }
                let packed = rows.packed_at(room + part.offset as u64);
                let (list, copy) = match sending {
                    true => (&mut pack, (rows, packed)),
                    false => (&mut unpack, (packed, rows)),
                };
                list.push(copy);
            }
            let base = run.unwrap_or(room);
            match sending {
                true => sends.push((base, message.bytes, transfer.dest.index())),
                false => receives.push((base, message.bytes, transfer.source.index())),
            }
        }
        self.copy_rows(&pack)?;
        let Some(comm) = &mut self.comm else {
            return Err(CommError::Aborted { rank, cause: "a single rank has no one to send to".into() });
        };
        if sends.is_empty() && receives.is_empty() {
            return Ok(unpack);
        }
        let library = comm.library().clone();
        let stream = self.messages.as_raw();
        let nccl = |error| foreign(error, rank);
        let group = Group::start(&library).map_err(nccl)?;
        for (base, bytes, peer) in sends {
            // SAFETY: a place of this rank or a piece of the pack block: live device memory that the caller's order and
            // the stream's keep as it is until the event behind it has passed.
            unsafe { comm.send(&group, base, bytes, peer, stream) }.map_err(nccl)?;
        }
        for (base, bytes, peer) in receives {
            // SAFETY: as above; nobody else writes the landing, as submission checked.
            unsafe { comm.recv(&group, base, bytes, peer, stream) }.map_err(nccl)?;
        }
        group.end().map_err(nccl)?;
        Ok(unpack)
    }

    /// Waves whose events have passed are done.
    fn collect(&mut self) -> Result<(), CommError> {
        for wave in &mut self.waves {
            let Stage::Running { fences, position } = &mut wave.stage else { continue };
            while let Some(fence) = fences.last() {
                if !eplb_comm::FenceState::poll(&**fence)? {
                    break;
                }
                fences.pop();
            }
            if !fences.is_empty() {
                continue;
            }
            let position = position.take();
            for transfer in wave.transfers.iter().filter(|transfer| transfer.dest == self.rank) {
                let bytes = self.memory.layout().layer(transfer.layer).expert_bytes() as u64;
                let counter = match transfer.is_local() {
                    true => &self.counters.local_bytes,
                    false => &self.counters.link_bytes,
                };
                counter.fetch_add(bytes, Ordering::Relaxed);
                self.counters.transfers.fetch_add(1, Ordering::Relaxed);
            }
            tell(&self.timeline, || Moment::Landed(Ticket(wave.number)));
            wave.ticket.pass();
            self.changes += 1;
            if let (Some(agreement), Some(position)) = (&self.agreement, position) {
                agreement.over(position, wave.number)?;
            }
        }
        self.waves.retain(|wave| !matches!(&wave.stage, Stage::Running { fences, .. } if fences.is_empty()));
        Ok(())
    }

    /// A wave that was announced and is late, or was failed from outside, cannot be taken back: other ranks count on it.
    fn check_deadlines(&mut self) -> Result<(), CommError> {
        for wave in &self.waves {
            wave.ticket.state()?;
        }
        Ok(())
    }

    /// Whether NCCL or another rank has given up.
    fn watch(&mut self, leave: Leave) -> Result<(), CommError> {
        let (Some(agreement), Some(comm)) = (&self.agreement, &self.comm) else { return Ok(()) };
        if self.waves.is_empty() || self.watched.elapsed() < self.options.watch {
            return Ok(());
        }
        self.watched = Instant::now();
        // A lent communicator is asked on the server's thread alone.
        if comm.is_owned() || matches!(leave, Leave::Step(_)) {
            comm.is_ready().map_err(|error| foreign(error, self.rank))?;
        }
        match agreement.failed()? {
            Some((peer, cause)) if peer != self.rank => {
                Err(CommError::Transfer { rank: self.rank, peer, cause: format!("it gave up: {cause}") })
            }
            _ => Ok(()),
        }
    }

    /// Ends the lane: nothing is launched any more, and what is under way is broken off.
    fn finish(&mut self, cause: CommError, by_itself: bool) {
        if let Some(agreement) = &self.agreement
            && (by_itself || !self.waves.is_empty())
        {
            agreement.fail(&cause.to_string());
        }
        for wave in std::mem::take(&mut self.waves) {
            wave.ticket.fail(cause.clone());
        }
        if let Some(comm) = self.comm.take() {
            // Its kernels see the abort and end; the events below are behind them.
            let _entered = self.memory.context().enter();
            comm.abort();
        }
        let record = |stream: &Arc<CudaStream>| self.events.record(stream, self.rank);
        let fences =
            [&self.messages, &self.copies].map(record).into_iter().collect::<Result<Vec<_>, _>>().ok();
        self.end = Some(Ending { broken: by_itself.then_some(cause), fences });
    }
}
