//! The caller's end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use eplb_comm::{
    Bulletin, Carried, CommError, Communicator, Extent, Fence, FenceState, Memory, Place, Progress, Ticket,
    Timeline, places_apart,
};
use eplb_core::{Landing, ModelLayout, RankId, Transfer};

use crate::shared::{Shared, Ticket as Wave};

/// The `peer` backend, see the [crate](crate). Made by [`connect`](crate::connect()).
///
/// A rank's wave is done when what it receives is in. After an error or an abort the communicator takes no more waves, and
/// the others' pulls from this rank that have not begun fail by its name. Dropping it aborts what is open and waits for
/// its own copies.
#[derive(Debug)]
pub struct PeerCommunicator {
    name: &'static str,
    rank: RankId,
    layout: Arc<ModelLayout>,
    extents: Vec<Extent>,
    shared: Arc<Shared>,
    /// Waves, and whether they were reported as done.
    tickets: BTreeMap<Ticket, (Arc<Wave>, bool)>,
    /// Ranks whose memory is open here, by rank; `None`: that of all.
    near: Option<Vec<bool>>,
    /// Of ranks that are processes.
    bulletin: Option<Arc<dyn Bulletin>>,
    /// Why the caller gave up, once it has.
    aborted: Option<String>,
    thread: Option<JoinHandle<()>>,
}

/// A wave that fails if it is polled after its deadline.
#[derive(Debug)]
struct Waiting {
    rank: RankId,
    number: u64,
    wave: Arc<Wave>,
}

impl FenceState for Waiting {
    fn poll(&self) -> Result<bool, CommError> {
        if self.wave.fence.poll()? {
            return Ok(true);
        }
        if Instant::now() >= self.wave.deadline {
            let what = format!("wave of ticket {}", self.number);
            let waited = self.wave.submitted.elapsed();
            self.wave.fence.fail(CommError::Timeout { rank: self.rank, what, waited });
        }
        // It may have ended in between; then it passed.
        self.wave.fence.poll()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        &*self.wave.fence
    }
}

impl PeerCommunicator {
    /// A rank's end, with its progress thread. `extents` are those of all ranks.
    pub(crate) fn start(
        name: &'static str,
        rank: RankId,
        layout: Arc<ModelLayout>,
        extents: Vec<Extent>,
        shared: Arc<Shared>,
    ) -> Result<Self, CommError> {
        let served = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("peer-{}", rank.0))
            .spawn(move || served.serve())
            .map_err(|error| CommError::NoThread {
                what: format!("the copies of {rank}"),
                detail: error.to_string(),
            })?;
        Ok(Self {
            name,
            rank,
            layout,
            extents,
            shared,
            tickets: BTreeMap::new(),
            near: None,
            bulletin: None,
            aborted: None,
            thread: Some(thread),
        })
    }

    /// With a way in which ranks say something to each other.
    #[cfg(target_os = "linux")]
    pub(crate) fn with_bulletin(mut self, bulletin: Arc<dyn Bulletin>) -> Self {
        self.bulletin = Some(bulletin);
        self
    }

    /// For some of the ranks alone: what comes from another one, it does not take.
    #[cfg(target_os = "linux")]
    pub(crate) fn with_near(mut self, near: Vec<bool>) -> Self {
        self.near = Some(near);
        self
    }

    fn waiting(&self, ticket: Ticket) -> Result<Waiting, CommError> {
        let found = self.tickets.get(&ticket);
        let (wave, _) = found.ok_or(CommError::UnknownTicket { rank: self.rank, ticket: ticket.0 })?;
        Ok(Waiting { rank: self.rank, number: ticket.0, wave: wave.clone() })
    }
}

impl Communicator for PeerCommunicator {
    fn backend(&self) -> &'static str {
        self.name
    }

    fn rank(&self) -> RankId {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.extents.len()
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        self.check(transfers)?;
        let mine = transfers.iter().filter(|transfer| transfer.dest == self.rank).copied().collect();
        let (number, wave) = self.shared.submit(mine, after, deadline)?;
        self.tickets.retain(|_, (_, reported)| !*reported);
        self.tickets.insert(Ticket(number), (wave, false));
        Ok(Ticket(number))
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        let locate = |rank: RankId, place: Place| -> Result<(), CommError> {
            let extent = self.extents.get(rank.index()).ok_or_else(|| CommError::NoSuchPlace {
                rank,
                place,
                reason: format!("the communicator has ranks 0..{}", self.extents.len()),
            })?;
            extent.locate(&self.layout, place).map(|_| ())
        };
        for transfer in transfers {
            locate(transfer.source, Place::source(transfer))?;
            let is_near = |near: &Vec<bool>| near.get(transfer.source.index()) == Some(&true);
            if transfer.dest == self.rank && !self.near.as_ref().is_none_or(is_near) {
                return Err(CommError::NoSuchPlace {
                    rank: transfer.source,
                    place: Place::source(transfer),
                    reason: format!("its memory is not open on {}", self.rank),
                });
            }
            locate(transfer.dest, Place::slot(transfer.layer, transfer.dest_slot))?;
            if let Landing::Staged { .. } = transfer.landing {
                locate(transfer.dest, Place::landing(transfer))?;
            }
        }
        places_apart(self.rank, &self.layout, transfers)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        match (self.waiting(ticket)?.poll(), &self.aborted) {
            (Ok(true), _) => {}
            (Ok(false), None) => return Ok(Progress::Pending),
            (Err(error), None) => return Err(error),
            // Whatever else befell the wave, the caller gave it up.
            (_, Some(cause)) => {
                return Err(CommError::Aborted { rank: self.rank, cause: cause.clone() });
            }
        }
        if let Some((_, reported)) = self.tickets.get_mut(&ticket) {
            *reported = true;
        }
        Ok(Progress::Done)
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        Ok(Fence::new(Arc::new(self.waiting(ticket)?)))
    }

    fn abort(&mut self, cause: &str) -> Fence {
        self.aborted.get_or_insert_with(|| cause.into());
        self.shared.abort(cause);
        self.shared.quiet.fence()
    }

    fn carried(&self) -> Carried {
        self.shared.carried()
    }

    fn bulletin(&self) -> Option<Arc<dyn Bulletin>> {
        self.bulletin.clone()
    }

    fn observe(&mut self, timeline: &Arc<Timeline>) {
        self.shared.observe(timeline);
    }
}

impl Drop for PeerCommunicator {
    fn drop(&mut self) {
        self.shared.abort("the communicator was dropped");
        self.shared.leave();
        if let Some(thread) = self.thread.take() {
            // It waits for this rank's own copies, which depend on nobody.
            drop(thread.join());
        }
    }
}

/// What a rank's memory is, for the others.
pub(crate) fn extent(memory: &eplb_cuda::DeviceMemory) -> Extent {
    Extent { rank: memory.rank(), slots: memory.slots(), staging_bytes: memory.staging_bytes() }
}
