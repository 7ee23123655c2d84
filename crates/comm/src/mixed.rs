//! Two backends in one wave: one inside nodes, another between them.
//!
//! The transfers of a wave are divided by whether source and destination are of one node, on all ranks alike. Each backend gets its part, in
//! the same order everywhere; the wave is done when both parts are.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use eplb_core::{NodeId, RankId, Transfer};

use crate::bulletin::Bulletin;
use crate::communicator::{Carried, Communicator, Launcher, Progress, Ticket};
use crate::error::CommError;
use crate::fence::{Fence, FenceState};
use crate::timeline::Timeline;

/// Both backends of one rank. All ranks make theirs of the same two, with the same nodes.
///
/// What either cannot do ends both: an error of one part is the wave's, and [`Communicator::abort`] aborts both.
#[derive(Debug)]
pub struct Mixed {
    name: &'static str,
    inside: Box<dyn Communicator>,
    between: Box<dyn Communicator>,
    /// By rank.
    nodes: Vec<NodeId>,
    next: u64,
    /// Tickets of both, with what of them is done.
    open: BTreeMap<Ticket, [(Ticket, bool); 2]>,
}

impl Mixed {
    /// `inside` carries what stays on a node, `between` the rest; `nodes` are those of the ranks, in their order: ranks of one node are those that
    /// `inside` joins, whatever machine they are on. `name` is what the pair is called.
    ///
    /// # Errors
    /// They belong to different ranks, or reach different numbers of them.
    pub fn new(
        name: &'static str,
        inside: Box<dyn Communicator>,
        between: Box<dyn Communicator>,
        nodes: Vec<NodeId>,
    ) -> Result<Self, CommError> {
        let of = |part: &dyn Communicator| (part.rank(), part.world_size());
        let (ours, theirs, ranks) = (of(&*inside), of(&*between), nodes.len());
        if ours != theirs || ours.1 != ranks {
            return Err(CommError::Foreign {
                rank: ours.0,
                call: format!("mixing {} and {}", inside.backend(), between.backend()),
                code: -1,
                detail: format!(
                    "they are {} of {} ranks and {} of {}, there are nodes of {ranks}: make both of all ranks",
                    ours.0, ours.1, theirs.0, theirs.1
                ),
            });
        }
        Ok(Self { name, inside, between, nodes, next: 0, open: BTreeMap::new() })
    }

    fn is_inside(&self, transfer: &Transfer) -> bool {
        let node = |rank: RankId| self.nodes.get(rank.index());
        node(transfer.source) == node(transfer.dest)
    }

    fn divide(&self, transfers: &[Transfer]) -> (Vec<Transfer>, Vec<Transfer>) {
        transfers.iter().copied().partition(|transfer| self.is_inside(transfer))
    }

    fn both(&mut self) -> [&mut dyn Communicator; 2] {
        [&mut *self.inside, &mut *self.between]
    }
}

/// Passed when all of several are.
#[derive(Debug)]
struct All(Vec<Fence>);

impl FenceState for All {
    fn poll(&self) -> Result<bool, CommError> {
        let mut passed = true;
        for fence in &self.0 {
            passed &= fence.poll()?;
        }
        Ok(passed)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn all(fences: Vec<Fence>) -> Fence {
    Fence::new(Arc::new(All(fences)))
}

impl Communicator for Mixed {
    fn backend(&self) -> &'static str {
        self.name
    }

    fn rank(&self) -> RankId {
        self.inside.rank()
    }

    fn world_size(&self) -> usize {
        self.inside.world_size()
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        // A wave is taken whole or not at all.
        self.check(transfers)?;
        let (near, far) = self.divide(transfers);
        // Both get every wave, if only to know of it: so all ranks count waves alike.
        let near = self.inside.submit(&near.into(), after.clone(), deadline)?;
        // What of the first part is under way now, nobody would wait for.
        let far = self
            .between
            .submit(&far.into(), after, deadline)
            .inspect_err(|error| drop(self.inside.abort(&format!("the other part was refused: {error}"))))?;
        self.open.retain(|_, parts| !parts.iter().all(|(_, done)| *done));
        let ticket = Ticket(self.next);
        self.next += 1;
        self.open.insert(ticket, [(near, false), (far, false)]);
        Ok(ticket)
    }

    fn check(&self, transfers: &[Transfer]) -> Result<(), CommError> {
        let (near, _) = self.divide(transfers);
        self.inside.check(&near)?;
        // All ranks are joined there, so it knows every place; and places that a wave writes twice, it sees.
        self.between.check(transfers)
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        let unknown = CommError::UnknownTicket { rank: self.rank(), ticket: ticket.0 };
        let mut parts = *self.open.get(&ticket).ok_or(unknown)?;
        for ((part, done), communicator) in parts.iter_mut().zip(self.both()) {
            *done = *done || communicator.poll(*part)? == Progress::Done;
        }
        let done = parts.iter().all(|(_, done)| *done);
        self.open.insert(ticket, parts);
        Ok(if done { Progress::Done } else { Progress::Pending })
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        let unknown = CommError::UnknownTicket { rank: self.rank(), ticket: ticket.0 };
        let parts = *self.open.get(&ticket).ok_or(unknown)?;
        let mut fences = Vec::new();
        for ((part, done), communicator) in parts.into_iter().zip(self.both()) {
            if !done {
                fences.push(communicator.done(part)?);
            }
        }
        Ok(all(fences))
    }

    fn abort(&mut self, cause: &str) -> Fence {
        all(self.both().map(|part| part.abort(cause)).into())
    }

    fn carried(&self) -> Carried {
        let [a, b] = [self.inside.carried(), self.between.carried()];
        Carried {
            link_bytes: a.link_bytes + b.link_bytes,
            local_bytes: a.local_bytes + b.local_bytes,
            transfers: a.transfers + b.transfers,
        }
    }

    fn carried_by(&self) -> Vec<(&'static str, Carried)> {
        [self.inside.carried_by(), self.between.carried_by()].concat()
    }

    fn pinned_bytes(&self) -> usize {
        self.inside.pinned_bytes() + self.between.pinned_bytes()
    }

    fn bulletin(&self) -> Option<Arc<dyn Bulletin>> {
        // It reaches the ranks of one node.
        let together = self.nodes.iter().all(|node| *node == self.nodes[0]);
        self.inside.bulletin().filter(|_| together)
    }

    fn launcher(&self) -> Option<Arc<dyn Launcher>> {
        self.between.launcher()
    }

    fn observe(&mut self, timeline: &Arc<Timeline>) {
        self.inside.observe(timeline);
    }
}
