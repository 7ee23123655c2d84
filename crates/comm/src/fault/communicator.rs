//! Faults around a communicator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::{RankId, Transfer};

use super::decision::Decision;
use super::gates::{AllOf, FailsAfter, Later, Never, Unless};
use super::log::FaultLog;
use super::{Faults, Planted};
use crate::communicator::{Carried, Communicator, Progress, Ticket};
use crate::error::CommError;
use crate::fence::{Fence, FenceState};
use crate::host::HostFence;
use crate::intercept::{Intercept, Intercepted};

/// Most parts that a reordered wave is cut into.
const PARTS: usize = 8;

/// What is added to a deadline that is ignored.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// A communicator to which things happen, see [`Faults`].
///
/// With no planted fault it keeps the contract of [`Communicator`]: it may be slow, out of order, fail or stall, and says
/// so. A wave that fails or stalls has moved some of its bytes.
pub type FaultyCommunicator = Intercepted<Injector>;

/// Brings [`Faults`] into the calls of a communicator.
#[derive(Debug)]
pub struct Injector {
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

impl FaultyCommunicator {
    /// Puts faults around a communicator.
    pub fn around(inner: impl Communicator + 'static, faults: Faults) -> Self {
        Self::new(Box::new(inner), Injector::new(faults))
    }

    /// What struck; the handle stays valid when the communicator is moved away.
    pub fn log(&self) -> FaultLog {
        self.by().log.clone()
    }
}

impl Injector {
    fn new(faults: Faults) -> Self {
        Self { faults, log: FaultLog::default(), waves: 0, tickets: BTreeMap::new(), miscounted: 0 }
    }

    fn plants(&self, wanted: impl Fn(&Planted) -> bool) -> bool {
        self.faults.planted.iter().any(|(_, planted)| wanted(planted))
    }

    /// The parts of a wave, in the order of submission: all ranks with one seed cut alike. `some`: only a random part.
    fn parts(&self, wave: u64, mut transfers: Vec<Transfer>, some: bool) -> Vec<Arc<[Transfer]>> {
        let mut random = self.faults.random(wave, None);
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
        inner: &mut dyn Communicator,
        parts: &[Arc<[Transfer]>],
        after: Fence,
        deadline: Instant,
    ) -> Result<Vec<Ticket>, CommError> {
        if let [whole] = parts {
            return Ok(vec![inner.submit(whole, after, deadline)?]);
        }
        let start = HostFence::new();
        let after = Fence::new(Arc::new(AllOf(vec![start.fence(), after])));
        let mut tickets = Vec::with_capacity(parts.len());
        for part in parts {
            match inner.submit(part, after.clone(), deadline) {
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

    /// The fence of a wave: behind its bytes, then what was decided.
    fn fence_of(
        inner: &mut dyn Communicator,
        parts: &[Ticket],
        wave: u64,
        peer: RankId,
        decision: &Decision,
    ) -> Result<Fence, CommError> {
        let bytes = parts.iter().map(|&part| inner.done(part)).collect::<Result<_, _>>()?;
        let mut fence = Fence::new(Arc::new(AllOf(bytes)));
        if !decision.late.is_zero() {
            fence = Fence::new(Arc::new(Later::new(fence, decision.late)));
        }
        if decision.fail {
            let cause = format!("a fault was injected into wave {wave}");
            let error = CommError::Transfer { rank: inner.rank(), peer, cause };
            fence = Fence::new(Arc::new(FailsAfter(fence, error)));
        }
        if decision.stall {
            fence = Fence::new(Arc::new(AllOf(vec![fence, Fence::new(Arc::new(Never))])));
        }
        Ok(fence)
    }

    fn poll_open(inner: &mut dyn Communicator, open: &mut Open) -> Result<Progress, CommError> {
        open.fate.poll()?;
        if open.early || open.reported {
            return Ok(Progress::Done);
        }
        let mut left = Vec::new();
        for part in std::mem::take(&mut open.parts) {
            if inner.poll(part)? == Progress::Pending {
                left.push(part);
            }
        }
        open.parts = left;
        if open.parts.is_empty() && open.fence.poll()? {
            return Ok(Progress::Done);
        }
        match open.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(CommError::Timeout {
                rank: inner.rank(),
                what: "a wave behind the fault wrapper".into(),
                waited: open.submitted.elapsed(),
            }),
            _ => Ok(Progress::Pending),
        }
    }
}

impl Intercept for Injector {
    fn submit(
        &mut self,
        inner: &mut dyn Communicator,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        let wave = self.waves;
        self.waves += 1;
        let submitted = Instant::now();
        let rank = inner.rank();
        let mut changed = transfers.to_vec();
        let decision = self.faults.decide(rank, wave, &mut changed);
        decision.struck.iter().for_each(|what| self.log.add(wave, what));
        self.miscounted += u64::from(decision.miscounted);
        let after = if decision.after_ignored { Fence::passed() } else { after };
        let start = match decision.early {
            Some(late) => Fence::new(Arc::new(Later::new(after.clone(), late))),
            None => after.clone(),
        };
        let inner_deadline = if decision.deadline_ignored { deadline + FOR_EVER } else { deadline };
        let parts = self.parts(wave, changed, decision.fail || decision.stall);
        let parts = match Self::submit_parts(inner, &parts, start, inner_deadline) {
            Ok(parts) => parts,
            Err(error) => {
                if decision.partly && !transfers.is_empty() {
                    self.log.add(wave, "partly enqueued");
                    inner.submit(&Arc::from(&transfers[..1]), after, deadline)?;
                }
                return Err(error);
            }
        };
        self.tickets.retain(|_, open| !open.reported);
        let peer = transfers.iter().find(|t| t.dest == rank).map_or(rank, |t| t.source);
        let fence = Self::fence_of(inner, &parts, wave, peer, &decision)?;
        if decision.blocks {
            fence.wait(rank, "a submit that blocks", deadline)?;
        }
        let fate = HostFence::new();
        let open = Open {
            parts,
            fence: Fence::new(Arc::new(Unless(fate.clone(), fence))),
            submitted,
            deadline: (!decision.deadline_ignored).then_some(deadline),
            early: decision.early.is_some(),
            reported: false,
            fate,
        };
        let ticket = Ticket(wave);
        self.tickets.insert(ticket, open);
        Ok(ticket)
    }

    fn poll(&mut self, inner: &mut dyn Communicator, ticket: Ticket) -> Result<Progress, CommError> {
        let Some(mut open) = self.tickets.remove(&ticket) else {
            if self.plants(|planted| matches!(planted, Planted::TicketsForgiven)) {
                self.log.add(self.waves, "ticket forgiven");
                return Ok(Progress::Done);
            }
            return Err(CommError::UnknownTicket { rank: inner.rank(), ticket: ticket.0 });
        };
        let result = Self::poll_open(inner, &mut open);
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

    fn done(&mut self, inner: &mut dyn Communicator, ticket: Ticket) -> Result<Fence, CommError> {
        match self.tickets.get(&ticket) {
            Some(open) if open.early => Ok(Fence::passed()),
            Some(open) => Ok(open.fence.clone()),
            None => Err(CommError::UnknownTicket { rank: inner.rank(), ticket: ticket.0 }),
        }
    }

    fn abort(&mut self, inner: &mut dyn Communicator, cause: &str) -> Fence {
        if self.plants(|planted| matches!(planted, Planted::AbortIgnored)) {
            self.log.add(self.waves, "abort ignored");
            return Fence::passed();
        }
        for open in self.tickets.values().filter(|open| !open.reported) {
            open.fate.fail(CommError::Aborted { rank: inner.rank(), cause: cause.into() });
        }
        inner.abort(cause)
    }

    fn carried(&self, inner: &dyn Communicator) -> Carried {
        let mut carried = inner.carried();
        carried.link_bytes += self.miscounted;
        carried
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        for (_, planted) in &self.faults.planted {
            if let Planted::DropBlocks { hold } = planted {
                self.log.add(self.waves, "drop blocks");
                std::thread::sleep(*hold);
            }
        }
    }
}
