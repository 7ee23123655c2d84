//! Where ranks leave notes for each other while an exchange runs, and where its decision record lies.

use std::fmt::Debug;
use std::time::Instant;

use eplb_core::RankId;
use eplb_exchange::{Note, Record};

mod intercept;
mod link;
mod local;
mod store;
mod wire;

pub use intercept::{BoardIntercept, InterceptedBoard};
pub(crate) use link::passing_keys;
pub use local::LocalBoard;
pub use store::{BoardError, LastDecision, StoreBoard};
pub(crate) use wire::FORMAT;

/// Control traffic of one exchange: notes, signs of life and one record. Small and rare; never on a GPU.
///
/// Notes of one rank are seen by every other in the order left. What a rank wrote to memory before leaving a note
/// happens-before what a rank does after it has collected the note. No method blocks but [`Board::decide`], and that only
/// if it is asked to.
pub trait Board: Debug + Send + Sync {
    /// Leaves a note for all other ranks.
    fn publish(&self, from: RankId, note: Note);

    /// Notes of the other ranks that `reader` has not collected yet.
    fn collect(&self, reader: &mut Reader) -> Vec<(RankId, Note)>;

    /// Shows a sign of life.
    fn renew(&self, rank: RankId);

    /// Counts of signs of life, by rank in the order of the members.
    fn signs(&self) -> Vec<(RankId, u64)>;

    /// How often signs of life have been looked at: silence counts only from one look to the next.
    fn looks(&self) -> u64;

    /// Members that have left: nothing comes from them any more. All that they have said can be collected by then.
    fn left(&self) -> Vec<RankId> {
        Vec::new()
    }

    /// The decision record as last seen.
    fn record(&self) -> Record;

    /// Moves the record from `from` to `to` if it says `from`. Returns what it says then if that is known by `until`
    /// (`None`: without waiting); what is known later, [`Board::record`] says.
    fn decide(&self, from: Record, to: Record, until: Option<Instant>) -> Option<Record>;

    /// Why nothing goes through this board any more. Final.
    fn lost(&self) -> Option<String>;
}

/// How far a rank has read a board.
#[derive(Debug, Clone)]
pub struct Reader {
    rank: RankId,
    read: Vec<usize>,
}

impl Reader {
    /// Nothing read yet.
    pub fn new(rank: RankId) -> Self {
        Self { rank, read: Vec::new() }
    }
}
