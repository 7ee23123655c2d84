//! The threads that copy.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use eplb_core::{RankId, Transfer};

use super::pool::Pool;
use super::queue::{Split, State, Unit};
use super::ticket::LocalTicket;
use crate::error::CommError;
use crate::host::{SplitCopy, copy, panic_message};
use crate::memory::Place;

/// Copies of at least twice this size are shared with idle threads, in pieces of this size.
const PIECE_BYTES: usize = 2 << 20;

impl Pool {
    /// What a copy thread does until the group ends.
    pub(super) fn run(self: Arc<Self>) {
        while let Some(unit) = self.next() {
            let ticket = unit.ticket().clone();
            let result = catch_unwind(AssertUnwindSafe(|| self.execute(&unit)));
            // The guards of a split copy go with its last handle: before the rank counts as quiet.
            drop(unit);
            if let Err(payload) = result {
                ticket.fail(CommError::Panicked {
                    rank: ticket.rank,
                    what: format!("a copy of ticket {}", ticket.number),
                    detail: panic_message(payload.as_ref()),
                });
            }
            self.finished(ticket.rank);
        }
    }

    /// Waits for work; `None` at the end of the group.
    fn next(&self) -> Option<Unit> {
        let mut state = self.lock();
        loop {
            if state.shutdown {
                return None;
            }
            let now = Instant::now();
            if state.gates.is_due(now) {
                state = self.look_at_gates(state);
                continue;
            }
            if let Some(unit) = state.take(self.copy_threads, |transfer| self.expert_bytes(transfer.layer)) {
                state.ports[unit.ticket().rank.index()].running += 1;
                if state.idle > 0 && state.gates.sleep(now).is_some() {
                    // Someone else must look at the gates while this thread copies.
                    self.work.notify_one();
                }
                return Some(unit);
            }
            state.idle += 1;
            state = match state.gates.sleep(now) {
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(pause) => {
                    state.gates.keeper = true;
                    let waited = self.work.wait_timeout(state, pause);
                    let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    state.gates.keeper = false;
                    state
                }
            };
            state.idle -= 1;
        }
    }

    /// Polls the fences of gated tickets, without the lock: they are foreign code.
    fn look_at_gates<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let gates = std::mem::take(&mut state.gates.waiting);
        drop(state);
        let mut shut = Vec::new();
        for (fence, ticket) in gates {
            match fence.poll() {
                Ok(true) => self.enqueue(ticket),
                Ok(false) if ticket.is_over() => {}
                Ok(false) => shut.push((fence, ticket)),
                Err(cause) => ticket.fail(cause),
            }
        }
        let mut state = self.lock();
        // A rank may have aborted in between.
        shut.retain(|(_, ticket)| state.ports[ticket.rank.index()].aborted.is_none());
        state.gates.looked(shut);
        state
    }

    fn execute(&self, unit: &Unit) {
        match unit {
            Unit::Help(split) => self.work_on(split),
            Unit::Batch(ticket, range) => {
                for transfer in &ticket.transfers[range.clone()] {
                    if !ticket.may_start() {
                        return;
                    }
                    if let Err(cause) = self.transfer(ticket, transfer) {
                        return ticket.fail(cause);
                    }
                }
            }
        }
    }

    fn transfer(&self, ticket: &Arc<LocalTicket>, transfer: &Transfer) -> Result<(), CommError> {
        let source = &self.memories()[transfer.source.index()];
        let source = source.read(Place::source(transfer))?;
        let mut dest = self.memories()[transfer.dest.index()].write(Place::landing(transfer))?;
        if self.copy_threads == 1 || self.expert_bytes(transfer.layer) < 2 * PIECE_BYTES {
            copy(&source, &mut dest, transfer.expert)?;
            // Before the ticket counts as done: whoever sees that may use both places.
            drop((source, dest));
            self.transferred(ticket, transfer);
            return Ok(());
        }
        let copy = SplitCopy::new(source, dest, transfer.expert, PIECE_BYTES)?;
        let split = Arc::new(Split { copy, ticket: ticket.clone(), transfer: *transfer });
        {
            let mut state = self.lock();
            if state.ports[ticket.rank.index()].aborted.is_some() {
                return Ok(());
            }
            state.splits.push(split.clone());
            if state.idle > 0 {
                self.work.notify_all();
            }
        }
        self.work_on(&split);
        Ok(())
    }

    /// Copies pieces until none is left or the ticket is over.
    fn work_on(&self, split: &Split) {
        while split.copy.has_more() {
            if !split.ticket.may_start() {
                return split.copy.stop();
            }
            if split.copy.copy_next() {
                self.transferred(&split.ticket, &split.transfer);
            }
        }
    }

    /// A thread is done with a unit of a rank.
    fn finished(&self, rank: RankId) {
        let fence = {
            let mut state = self.lock();
            // Before the rank counts as quiet: their guards may hang on it.
            state.drop_spent_splits();
            let port = &mut state.ports[rank.index()];
            port.running -= 1;
            port.aborted.clone().filter(|_| port.running == 0)
        };
        if let Some(fence) = fence {
            fence.pass();
        }
    }
}

#[cfg(test)]
mod tests {
    use eplb_core::{ModelLayout, TensorLayout};

    use super::*;
    use crate::fence::Fence;
    use crate::host::HostMemory;

    #[test]
    fn an_abort_is_over_when_the_last_thread_is_done_with_the_rank() {
        let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 8)]]).unwrap());
        let memory =
            |rank: usize| HostMemory::new(RankId::at(rank), layout.clone(), rank..rank + 1, 0).unwrap();
        let pool = Pool::new(vec![memory(0), memory(1)], 2);
        // Two threads copy for rank 0, one for rank 1.
        for (rank, running) in [(0, 2), (1, 1)] {
            pool.lock().ports[rank].running = running;
        }
        let quiet: Vec<Fence> = (0..2).map(|rank| pool.abort(RankId(rank))).collect();
        let passed = || [0, 1].map(|rank: usize| quiet[rank].poll().unwrap());
        assert_eq!(passed(), [false, false]);
        pool.finished(RankId(0));
        assert_eq!(passed(), [false, false], "another thread may still write its slots");
        pool.finished(RankId(1));
        assert_eq!(passed(), [false, true]);
        pool.finished(RankId(0));
        assert_eq!(passed(), [true, true]);
        assert_eq!(pool.abort(RankId(0)).poll(), Ok(true), "nothing runs any more");
    }
}
