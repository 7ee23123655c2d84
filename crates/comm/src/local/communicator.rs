//! One rank's end of a local group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use eplb_core::{RankId, Transfer};

use super::check;
use super::pool::Pool;
use super::ticket::LocalTicket;
use crate::communicator::{Carried, Communicator, Progress, Ticket};
use crate::error::CommError;
use crate::fence::{Fence, FenceState};
use crate::host::places_apart;

/// The `local` backend: memcpy between the memories of one process, on threads of the group.
///
/// `submit` checks the wave, puts this rank's transfers in the group's queue and returns; the `after` fence is watched by
/// the group, not by the caller. A rank that only gives bytes is done at once: its peers' own tickets tell when they
/// have read.
///
/// `abort` ends what *this* rank pulls. What others pull from it is theirs to abort; until then guards keep it from being
/// overwritten. Dropping a communicator aborts it; dropping the last one of a group joins the threads, which takes no
/// longer than the copies that run.
///
/// A wave that was reported done is forgotten at the next `submit`; one that failed stays known.
#[derive(Debug)]
pub struct LocalCommunicator {
    pool: Arc<Pool>,
    rank: RankId,
    tickets: BTreeMap<Ticket, Open>,
    next: u64,
    aborted: Option<String>,
}

#[derive(Debug)]
struct Open {
    ticket: Arc<LocalTicket>,
    reported: bool,
}

impl LocalCommunicator {
    pub(super) fn new(pool: Arc<Pool>, rank: RankId) -> Self {
        pool.join();
        Self { pool, rank, tickets: BTreeMap::new(), next: 0, aborted: None }
    }

    fn open(&self, ticket: Ticket) -> Result<&Open, CommError> {
        self.tickets.get(&ticket).ok_or(CommError::UnknownTicket { rank: self.rank, ticket: ticket.0 })
    }
}

impl Communicator for LocalCommunicator {
    fn backend(&self) -> &'static str {
        "local"
    }

    fn rank(&self) -> RankId {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.pool.memories().len()
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        if let Some(cause) = &self.aborted {
            return Err(CommError::Aborted { rank: self.rank, cause: cause.clone() });
        }
        self.check(transfers)?;
        let own: Vec<Transfer> = transfers.iter().filter(|t| t.dest == self.rank).copied().collect();
        if !own.is_empty() {
            self.pool.start_threads()?;
        }
        self.tickets.retain(|_, open| !open.reported);
        let ticket = Arc::new(LocalTicket::new(self.next, self.rank, own, deadline));
        let name = Ticket(self.next);
        self.next += 1;
        self.tickets.insert(name, Open { ticket: ticket.clone(), reported: false });
        if !ticket.is_over() {
            self.pool.enqueue_after(ticket, after);
        }
        Ok(name)
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        check::places_exist(self.pool.memories(), transfers)?;
        places_apart(&self.pool.memories()[self.rank.index()], transfers)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        if !self.open(ticket)?.ticket.poll()? {
            return Ok(Progress::Pending);
        }
        if let Some(open) = self.tickets.get_mut(&ticket) {
            open.reported = true;
        }
        Ok(Progress::Done)
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        Ok(Fence::new(self.open(ticket)?.ticket.clone()))
    }

    fn abort(&mut self, cause: &str) -> Fence {
        let cause = self.aborted.get_or_insert_with(|| cause.into()).clone();
        let fence = self.pool.abort(self.rank);
        for open in self.tickets.values() {
            open.ticket.fail(CommError::Aborted { rank: self.rank, cause: cause.clone() });
        }
        fence
    }

    fn carried(&self) -> Carried {
        self.pool.carried(self.rank)
    }
}

impl Drop for LocalCommunicator {
    fn drop(&mut self) {
        self.abort("the communicator was dropped");
        self.pool.leave();
    }
}
