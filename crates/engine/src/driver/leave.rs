//! An exchange that is called off or given up, and what of it may still run.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::{Fence, Stream};
use eplb_exchange::Phase;

use super::Driver;
use super::act::own_commits;
use super::active::{Abandoned, Caller};
use super::boundary::Bar;

/// Slots that the map says are filled, and whose copies may not have run yet.
#[derive(Debug)]
pub(super) struct Doubtful {
    /// Behind them; none where they are known to have failed.
    copies: Option<Fence>,
    /// Layers and slots.
    slots: Vec<(usize, usize)>,
}

impl<S: Stream> Driver<S> {
    /// Gives up the exchange under way without asking the others: nothing further is started. What was enqueued, on the communicator or
    /// on the compute stream, may still run ([`Driver::is_quiet`]). Maps stay as they are; if others may switch theirs at a step that this rank has
    /// acknowledged, no step from there on may run.
    pub fn abandon(&mut self, why: &str) -> Option<Abandoned> {
        let mut active = self.active.take()?;
        active.leave_notes(self.rank);
        let wave = active.exchange.wave();
        if let Some(step) = active.exchange.bound_to() {
            self.barred.get_or_insert(Bar::Undecided { step, wave });
        }
        self.unfinished.push(active.communicator.abort(why));
        self.unfinished.extend(active.halt);
        self.unfinished.extend(active.commit.clone());
        if let Some(unproven) = active.unproven {
            let own = own_commits(&active.exchange.plan().waves()[unproven], self.rank, &self.topology);
            let slots = own.iter().filter(|commit| commit.fill.overwrites());
            let slots = slots.map(|commit| (commit.layer.index(), commit.slot.index())).collect();
            self.doubtful = Some(Doubtful { copies: active.commit, slots });
        }
        // Maps are switched before the commit completes.
        let committed = wave + usize::from(active.exchange.phase() == Phase::Settling);
        Some(Abandoned { communicator: active.communicator, committed })
    }

    /// Whether no copy of an exchange that is over can touch memory any more: neither of the communicator's, nor of a commit's.
    pub fn is_quiet(&mut self) -> bool {
        // A fence that fails belongs to a device or a communicator that runs nothing any more.
        self.unfinished.retain(|fence| fence.poll() == Ok(false));
        self.unfinished.is_empty()
    }

    /// Takes slots out of the map that the commit of an exchange that was given up has not been seen to fill.
    pub fn distrust(&mut self) {
        let Some(Doubtful { copies, slots }) = self.doubtful.take() else { return };
        if copies.is_none_or(|copies| copies.poll() != Ok(true)) {
            let map = Arc::make_mut(&mut self.map);
            slots.into_iter().for_each(|place| map[place] = -1);
        }
    }

    /// Asks the exchange to stop at the next possible point.
    pub fn cancel(&mut self, why: &str) {
        if let Some(active) = &mut self.active {
            active.exchange.cancel(why, Instant::now());
        }
        self.act(Caller::Look);
    }
}
