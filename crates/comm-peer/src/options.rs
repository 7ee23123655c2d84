//! How a communicator behaves.

/// How a communicator behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Streams for pulls from each other rank, used in turn: while one waits for the end of a copy, another's runs.
    pub streams: usize,
    /// Priority of the streams: lower runs first, 0 is the default.
    pub stream_priority: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self { streams: 2, stream_priority: 0 }
    }
}
