//! Faults around a communicator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{Landing, RankId, SlotId, Transfer};

use super::gates::{AllOf, FailsAfter, Later, Never, Unless};
use super::log::FaultLog;
use super::{Faults, Planted, Random};
use crate::communicator::{Carried, Communicator, Progress, Ticket};
use crate::error::CommError;
use crate::fence::{Fence, FenceState};
use crate::host::{CopyFault, HostFence};
use crate::memory::Place;

/// Most parts that a reordered wave is cut into.
const PARTS: usize = 8;

/// Longest time that a reordered wave is held back so that a later one is reported first.
const HOLD: Duration = Duration::from_millis(2);

/// A communicator to which things happen, see [`Faults`].
///
/// With no planted fault it keeps the contract of [`Communicator`]: it may be slow, out of order, fail or stall, and says
/// so. A wave that fails or stalls has moved some of its bytes.
#[derive(Debug)]
pub struct FaultyCommunicator<C> {
    inner: C,
    faults: Faults,
    log: FaultLog,
    waves: u64,
    tickets: BTreeMap<Ticket, Open>,
    miscounted: u64,
}

#[derive(Debug)]
struct Open {
    /// Tickets of the parts that the inner communicator has not reported done.
    parts: Vec<Ticket>,
    /// Behind all bytes, and late if it is so decided.
    fence: Fence,
    submitted: Instant,
    deadline: Option<Instant>,
    early: bool,
    reported: bool,
    /// Fails with the first error, which is final.
    fate: Arc<HostFence>,
}

/// What is decided about one wave.
struct Decision {
    after: Fence,
    deadline: Instant,
    late: Duration,
    fail: bool,
    stall: bool,
    early: Option<Duration>,
    blocks: bool,
    deadline_ignored: bool,
    partly: bool,
}

impl<C: Communicator> FaultyCommunicator<C> {
    /// Wraps a communicator.
    pub fn new(inner: C, faults: Faults) -> Self {
        let log = FaultLog::default();
        Self { inner, faults, log, waves: 0, tickets: BTreeMap::new(), miscounted: 0 }
    }

    /// What struck; the handle stays valid when the communicator is moved away.
    pub fn log(&self) -> FaultLog {
        self.log.clone()
    }

    /// Numbers for one wave. Those of `shared` are the same on every rank with the same seed.
    fn random(&self, wave: u64, shared: bool) -> Random {
        let rank = if shared { 0 } else { u64::from(self.inner.rank().0) + 1 };
        let mut mixed =
            Random::new(self.faults.seed ^ wave.wrapping_mul(0xa076_1d64_78bd_642f) ^ (rank << 48));
        Random::new(mixed.next())
    }

    /// Draws what happens to a wave, and applies the faults that change its transfers.
    fn decide(
        &mut self,
        wave: u64,
        transfers: &mut Vec<Transfer>,
        after: Fence,
        deadline: Instant,
    ) -> Decision {
        let rank = self.inner.rank();
        let mut random = self.random(wave, false);
        let late = match &self.faults.delay {
            None => Duration::ZERO,
            Some(range) => range.start + range.end.saturating_sub(range.start).mul_f64(random.fraction()),
        };
        let held = if self.faults.reorder { HOLD.mul_f64(random.fraction()) } else { Duration::ZERO };
        let mut decision = Decision {
            after,
            deadline,
            late: late + held,
            fail: self.faults.fail.hits(wave, &mut random),
            stall: self.faults.stall.hits(wave, &mut random),
            early: None,
            blocks: false,
            deadline_ignored: false,
            partly: false,
        };
        for (name, hit) in [("fail", decision.fail), ("stall", decision.stall)] {
            if hit {
                self.log.add(wave, name);
            }
        }
        for (strike, planted) in &self.faults.planted {
            if !strike.hits(wave, &mut random) {
                continue;
            }
            let own: Vec<usize> = (0..transfers.len()).filter(|&at| transfers[at].dest == rank).collect();
            let pick = |nth: usize| own.get(nth % own.len().max(1)).copied();
            let struck = match planted {
                Planted::DropTransfer { nth } => {
                    pick(*nth).map(|at| transfers.remove(at)).map(|_| "drop transfer")
                }
                Planted::Stray { nth, slot } => pick(*nth).map(|at| {
                    let stray =
                        Transfer { dest_slot: SlotId::at(*slot), landing: Landing::InPlace, ..transfers[at] };
                    transfers.push(stray);
                    "stray"
                }),
                Planted::SkipTensor { nth, tensor, memory } => pick(*nth).map(|at| {
                    memory.plant(landing(&transfers[at]), CopyFault::SkipTensor(*tensor));
                    "skip tensor"
                }),
                Planted::Panic { nth, memory } => pick(*nth).map(|at| {
                    memory.plant(landing(&transfers[at]), CopyFault::Panic);
                    "panic"
                }),
                Planted::AfterIgnored => {
                    decision.after = Fence::passed();
                    Some("after ignored")
                }
                Planted::DoneEarly { late } => {
                    decision.early = Some(*late);
                    Some("done early")
                }
                Planted::SubmitBlocks => {
                    decision.blocks = true;
                    Some("submit blocks")
                }
                Planted::DeadlineIgnored => {
                    decision.deadline_ignored = true;
                    decision.deadline += Duration::from_secs(3600);
                    Some("deadline ignored")
                }
                Planted::PartlyEnqueued => {
                    decision.partly = true;
                    None
                }
                Planted::Miscounted => {
                    self.miscounted += 1;
                    Some("miscounted")
                }
                Planted::TicketsForgiven | Planted::AbortIgnored | Planted::DropBlocks { .. } => None,
            };
            if let Some(what) = struck {
                self.log.add(wave, what);
            }
        }
        decision
    }

    fn plants(&self, wanted: impl Fn(&Planted) -> bool) -> bool {
        self.faults.planted.iter().any(|(_, planted)| wanted(planted))
    }

    /// The parts of a wave, in the order of submission: all ranks with one seed cut alike.
    fn parts(&self, wave: u64, mut transfers: Vec<Transfer>, some: bool) -> Vec<Arc<[Transfer]>> {
        let mut random = self.random(wave, true);
        if self.faults.reorder || some {
            random.shuffle(&mut transfers);
        }
        if some {
            transfers.truncate(random.below(transfers.len() + 1));
        }
        if !self.faults.reorder || transfers.len() < 2 {
            return vec![transfers.into()];
        }
        let size = transfers.len().div_ceil(PARTS);
        transfers.chunks(size).map(Arc::from).collect()
    }

    /// Submits parts that start together, or not at all if one is refused.
    fn submit_parts(
        &mut self,
        parts: &[Arc<[Transfer]>],
        after: Fence,
        deadline: Instant,
    ) -> Result<Vec<Ticket>, CommError> {
        if let [whole] = parts {
            return Ok(vec![self.inner.submit(whole, after, deadline)?]);
        }
        let start = HostFence::new();
        let after = Fence::new(Arc::new(AllOf(vec![start.fence(), after])));
        let mut tickets = Vec::with_capacity(parts.len());
        for part in parts {
            match self.inner.submit(part, after.clone(), deadline) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    start.fail(error.clone());
                    return Err(error);
                }
            }
        }
        start.pass();
        Ok(tickets)
    }

    fn timeout(&self, open: &Open) -> CommError {
        CommError::Timeout {
            rank: self.inner.rank(),
            what: "a wave behind the fault wrapper".into(),
            waited: open.submitted.elapsed(),
        }
    }

    fn poll_open(&mut self, open: &mut Open) -> Result<Progress, CommError> {
        open.fate.poll()?;
        if open.early || open.reported {
            return Ok(Progress::Done);
        }
        let mut left = Vec::new();
        for part in std::mem::take(&mut open.parts) {
            if self.inner.poll(part)? == Progress::Pending {
                left.push(part);
            }
        }
        open.parts = left;
        if open.fence.poll()? {
            return Ok(Progress::Done);
        }
        match open.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(self.timeout(open)),
            _ => Ok(Progress::Pending),
        }
    }
}

fn landing(transfer: &Transfer) -> Place {
    match transfer.landing {
        Landing::InPlace => Place::slot(transfer.layer, transfer.dest_slot),
        Landing::Staged { offset } => Place::staged(transfer.layer, offset),
    }
}

impl<C: Communicator> Communicator for FaultyCommunicator<C> {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn rank(&self) -> RankId {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        let wave = self.waves;
        self.waves += 1;
        let submitted = Instant::now();
        let mut changed = transfers.to_vec();
        let Decision {
            after,
            deadline: inner_deadline,
            late,
            fail,
            stall,
            early,
            blocks,
            deadline_ignored,
            partly,
        } = self.decide(wave, &mut changed, after, deadline);
        let start = match early {
            Some(late) => Fence::new(Arc::new(Later::new(after.clone(), late))),
            None => after.clone(),
        };
        let parts = self.parts(wave, changed, fail || stall);
        let parts = match self.submit_parts(&parts, start, inner_deadline) {
            Ok(parts) => parts,
            Err(error) => {
                if partly && !transfers.is_empty() {
                    self.log.add(wave, "partly enqueued");
                    self.inner.submit(&Arc::from(&transfers[..1]), after, deadline)?;
                }
                return Err(error);
            }
        };
        self.tickets.retain(|_, open| !open.reported);
        let bytes = parts.iter().map(|&part| self.inner.done(part)).collect::<Result<_, _>>()?;
        let mut fence = Fence::new(Arc::new(AllOf(bytes)));
        if blocks {
            fence.wait(self.inner.rank(), "a submit that blocks", deadline)?;
        }
        if !late.is_zero() {
            fence = Fence::new(Arc::new(Later::new(fence, late)));
        }
        if fail {
            let rank = self.inner.rank();
            let peer = transfers.iter().find(|t| t.dest == rank).map_or(rank, |t| t.source);
            let cause = format!("a fault was injected into wave {wave}");
            fence = Fence::new(Arc::new(FailsAfter(fence, CommError::Transfer { rank, peer, cause })));
        }
        if stall {
            fence = Fence::new(Arc::new(AllOf(vec![fence, Fence::new(Arc::new(Never))])));
        }
        let fate = HostFence::new();
        let fence = Fence::new(Arc::new(Unless(fate.clone(), fence)));
        let name = Ticket(wave);
        let deadline = (!deadline_ignored).then_some(deadline);
        let early = early.is_some();
        let open = Open { parts, fence, submitted, deadline, early, reported: false, fate };
        self.tickets.insert(name, open);
        Ok(name)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        let rank = self.inner.rank();
        let Some(mut open) = self.tickets.remove(&ticket) else {
            if self.plants(|p| matches!(p, Planted::TicketsForgiven)) {
                self.log.add(self.waves, "ticket forgiven");
                return Ok(Progress::Done);
            }
            return Err(CommError::UnknownTicket { rank, ticket: ticket.0 });
        };
        let result = self.poll_open(&mut open);
        match &result {
            Ok(Progress::Done) => open.reported = true,
            Ok(Progress::Pending) => {}
            Err(error) => {
                open.fate.fail(error.clone());
            }
        }
        self.tickets.insert(ticket, open);
        result
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        match self.tickets.get(&ticket) {
            Some(open) if open.early => Ok(Fence::passed()),
            Some(open) => Ok(open.fence.clone()),
            None => Err(CommError::UnknownTicket { rank: self.inner.rank(), ticket: ticket.0 }),
        }
    }

    fn abort(&mut self, cause: &str) -> Fence {
        if self.plants(|p| matches!(p, Planted::AbortIgnored)) {
            self.log.add(self.waves, "abort ignored");
            return Fence::passed();
        }
        for open in self.tickets.values().filter(|open| !open.reported) {
            open.fate.fail(CommError::Aborted { rank: self.inner.rank(), cause: cause.into() });
        }
        self.inner.abort(cause)
    }

    fn carried(&self) -> Carried {
        let mut carried = self.inner.carried();
        carried.link_bytes += self.miscounted;
        carried
    }
}

impl<C> Drop for FaultyCommunicator<C> {
    fn drop(&mut self) {
        for (_, planted) in &self.faults.planted {
            if let Planted::DropBlocks { hold } = planted {
                self.log.add(self.waves, "drop blocks");
                std::thread::sleep(*hold);
            }
        }
    }
}
