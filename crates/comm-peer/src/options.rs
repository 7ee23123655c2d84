//! How a communicator behaves.

use crate::shared::Manner;

/// How a communicator behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Streams for pulls, used in turn: of ranks of one process so many for each other rank, of a process so many for all. More than one are
    /// slower where ranks pull from several others at a time: their copies get into each other's way.
    pub streams: usize,
    /// Priority of the streams: lower runs first, 0 is the default.
    pub stream_priority: i32,
    /// Most bytes per second that a rank pulls, in 10^9; `None`: as fast as it goes. What a server's own traffic needs of links and
    /// memory, it can keep so.
    pub max_gbps: Option<f64>,
    /// Whether ranks take turns at sources, so that no two pull from one at a time; else what may go is enqueued at once, whoever else pulls
    /// from there. What is small takes no turns: those would cost more than they save.
    pub turns: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { streams: 1, stream_priority: 0, max_gbps: None, turns: true }
    }
}

impl Options {
    /// Of one of so many ranks.
    pub(crate) fn manner(&self, ranks: usize) -> Manner {
        Manner { max_gbps: self.max_gbps, turns: self.turns.then_some(ranks) }
    }
}
