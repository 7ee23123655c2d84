//! What belongs to the one exchange that is under way.

use std::collections::VecDeque;
use std::sync::Arc;

use eplb_comm::{Communicator, Fence, Ticket};
use eplb_core::RankId;
use eplb_exchange::{Exchange, Note, Outcome, Part, Phase};

use crate::board::{Board, Reader};

/// What belongs to one exchange.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) exchange: Exchange,
    pub(super) communicator: Box<dyn Communicator>,
    pub(super) board: Arc<dyn Board>,
    pub(super) reader: Reader,
    pub(super) signs: Vec<(RankId, u64)>,
    pub(super) looks: u64,
    /// Submissions under way.
    pub(super) tickets: Vec<(usize, Part, Ticket)>,
    pub(super) commit: Option<Fence>,
    /// The wave that the map says is committed, until its copies have been seen to end well.
    pub(super) unproven: Option<usize>,
    pub(super) halt: Option<Fence>,
    /// Fences behind steps whose end the exchange has to know.
    pub(super) steps: VecDeque<(u64, Fence)>,
    pub(super) committed: Vec<usize>,
    /// The phase and the wave that a recorder was told last.
    pub(super) told: Option<(Phase, usize)>,
    /// Notes of the forward path, which are left at the next look: to wake who writes them is not its affair.
    pub(super) notes: Vec<Note>,
}

/// Who has the driver act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// The forward path.
    Pass,
    /// Whoever looks at what has happened.
    Look,
}

impl Active {
    /// Leaves the notes of the forward path on the board.
    pub(super) fn leave_notes(&mut self, rank: RankId) {
        for note in self.notes.drain(..) {
            self.board.publish(rank, note);
        }
    }
}

/// What an exchange left behind: its outcome, and the communicator for the next one.
#[derive(Debug)]
pub struct Ended {
    /// How it ended on this rank.
    pub outcome: Outcome,
    /// The communicator; after an abort it is of no more use.
    pub communicator: Box<dyn Communicator>,
}

/// What is left of an exchange that was given up.
#[derive(Debug)]
pub struct Abandoned {
    /// The communicator, of no more use.
    pub communicator: Box<dyn Communicator>,
    /// Waves that are committed in this rank's map.
    pub committed: usize,
}
