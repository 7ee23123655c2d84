//! Copies under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eplb_core::{Landing, Transfer};
use eplb_exchange::Part;

use super::check::Violation;
use super::memory::Content;
use super::scenario::Transport;
use super::world::{Event, World};

/// What a rank handed over at once: exchange, wave and part.
pub(super) type Submission = (usize, usize, Part);

/// Submission and number of the transfer in it.
pub(super) type CopyId = (Submission, usize);

/// One rank's end of the transport.
#[derive(Debug, Default)]
pub(super) struct Port {
    /// Submitted and not yet reported as done or failed.
    pub(super) tickets: Vec<Submission>,
    /// Copies that the rank takes part in and that have not ended.
    pub(super) open: BTreeSet<CopyId>,
    /// Those that have begun.
    pub(super) begun: BTreeSet<CopyId>,
    /// Why a submission failed.
    pub(super) failed: Option<String>,
    /// The next submission fails.
    pub(super) fail_next: bool,
    /// A copy that begins now does not end by itself.
    pub(super) stall_next: bool,
    /// The last submission: all ranks hand over in one order.
    last: Option<Submission>,
    /// One whose copies a planted fault has let begin before it was handed over.
    ahead: Option<Submission>,
    /// Aborted: nothing begins any more; the host has not been told yet that all is over.
    pub(super) halting: bool,
}

impl Port {
    /// A fresh port; what the old one has still under way is no longer waited for.
    pub(super) fn renew(&mut self) {
        let (fail_next, stall_next) = (self.fail_next, self.stall_next);
        *self = Self { fail_next, stall_next, ..Self::default() };
    }

    /// Whether nothing of a submission is under way any more.
    pub(super) fn is_over(&self, submission: Submission) -> bool {
        self.open.range((submission, 0)..=(submission, usize::MAX)).next().is_none()
    }

    /// Drops what has not begun.
    pub(super) fn halt(&mut self) {
        self.tickets.clear();
        self.failed = None;
        self.halting = true;
        self.open = self.begun.clone();
    }
}

/// A copy that has begun.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) transfer: Transfer,
    /// What `Memory::begin_read` gave.
    pub(super) read: u64,
    pub(super) stalled: bool,
}

/// Copies that have begun, of all ranks.
pub(super) type Copies = BTreeMap<CopyId, Copy>;

/// The ranks that must have submitted a transfer before it begins, and that learn of its end.
pub(super) fn sides(transfer: &Transfer, transport: Transport) -> Vec<usize> {
    let (source, dest) = (transfer.source.index(), transfer.dest.index());
    match transport {
        Transport::Paired if source != dest => vec![source, dest],
        Transport::Paired | Transport::Pull => vec![dest],
    }
}

impl World {
    /// A rank hands transfers of a wave to its transport.
    pub(super) fn submit(&mut self, rank: usize, submission: Submission) -> Result<(), Violation> {
        let port = &mut self.hosts[rank].port;
        if port.last.is_some_and(|last| last >= submission) {
            let (_, wave, part) = submission;
            return Err(Violation::Order { rank, wave, part });
        }
        port.last = Some(submission);
        port.tickets.push(submission);
        if std::mem::take(&mut port.fail_next) {
            port.failed = Some("the transport reports an error".into());
        }
        if port.ahead.take() != Some(submission) {
            self.open_copies(rank, submission);
        }
        Ok(())
    }

    /// Lets the copies of a submission begin that is still to be handed over: a planted fault.
    pub(super) fn copy_ahead(&mut self, rank: usize, submission: Submission) {
        self.hosts[rank].port.ahead = Some(submission);
        self.open_copies(rank, submission);
    }

    fn open_copies(&mut self, rank: usize, submission: Submission) {
        let (exchange, wave, part) = submission;
        let plan = Arc::clone(&self.plans[exchange][rank]);
        for (number, transfer) in plan.transfers(wave, part).iter().enumerate() {
            let sides = sides(transfer, self.scenario.transport);
            if !sides.contains(&rank) {
                continue;
            }
            let id = (submission, number);
            self.hosts[rank].port.open.insert(id);
            if sides.iter().all(|&side| self.hosts[side].port.open.contains(&id)) {
                self.waiting.insert(id, *transfer);
                let micros = self.rng.u64(0..=self.scenario.copy);
                self.after(micros, Event::CopyBegin(id));
            }
        }
    }

    pub(super) fn begin_copy(&mut self, id: CopyId) -> Result<(), Violation> {
        let Some(transfer) = self.waiting.remove(&id) else { return Ok(()) };
        let sides = sides(&transfer, self.scenario.transport);
        let ready = |side: &usize| self.hosts[*side].alive && self.hosts[*side].port.open.contains(&id);
        if !sides.iter().all(ready) {
            return Ok(());
        }
        for &side in &sides {
            self.hosts[side].port.begun.insert(id);
        }
        let (layer, dest) = (transfer.layer.index(), transfer.dest.index());
        let source = transfer.source_slot.index();
        if self.memory.is_written(layer, source) {
            return Err(Violation::ReadWhileWritten { rank: transfer.source.index(), layer, slot: source });
        }
        let read = self.memory.begin_read(layer, source);
        let slot = transfer.dest_slot.index();
        if let Landing::Staged { offset } = transfer.landing {
            self.check_staging_free(dest, offset, id.0)?;
        }
        if transfer.landing == Landing::InPlace && !self.memory.begin_write(layer, slot) {
            return Err(Violation::OverwrittenWhileRead { rank: dest, layer, slot });
        }
        let stalled = std::mem::take(&mut self.hosts[dest].port.stall_next);
        self.copies.insert(id, Copy { transfer, read, stalled });
        if !stalled {
            let micros = self.rng.u64(1..=self.scenario.copy);
            self.after(micros, Event::CopyEnd(id));
        }
        Ok(())
    }

    pub(super) fn end_copy(&mut self, id: CopyId) {
        let Some(Copy { transfer, read, stalled }) = self.copies.remove(&id) else { return };
        let (layer, dest) = (transfer.layer.index(), transfer.dest.index());
        let read = self.memory.end_read(layer, transfer.source_slot.index(), read);
        for side in sides(&transfer, self.scenario.transport) {
            self.hosts[side].port.open.remove(&id);
            self.hosts[side].port.begun.remove(&id);
        }
        if !self.hosts[dest].alive {
            return;
        }
        let content = if stalled { Content::Torn } else { read };
        match transfer.landing {
            Landing::InPlace => self.memory.end_write(layer, transfer.dest_slot.index(), content),
            Landing::Staged { offset } => self.memory.stage(transfer.dest, offset, content, id.0),
        }
        self.tally.copies += 1;
    }

    /// Aborts what a rank has under way; copies that have begun end soon, those that stalled too.
    pub(super) fn halt(&mut self, rank: usize) {
        self.hosts[rank].port.halt();
        for id in self.hosts[rank].port.begun.clone() {
            if self.copies.get(&id).is_some_and(|copy| copy.stalled) {
                let micros = self.rng.u64(1..=self.scenario.copy);
                self.after(micros, Event::CopyEnd(id));
            }
        }
    }

    /// A rank has died: copies that need both sides never begin; the other side may be told or not.
    pub(super) fn lose_side(&mut self, dead: usize) {
        if self.scenario.transport == Transport::Pull {
            return;
        }
        for rank in 0..self.hosts.len() {
            if rank != dead && !self.hosts[rank].port.tickets.is_empty() && self.rng.bool() {
                self.hosts[rank].port.failed = Some(format!("the connection to rank {dead} is gone"));
            }
        }
    }
}
