//! What profilers and traces show of a round: a span and an NVTX range for it, and one of each for every phase of it.

use std::ffi::CStr;

use eplb_exchange::Phase;

/// A span of `tracing`, and a range of the process that NVIDIA's profilers show.
#[derive(Debug)]
pub(super) struct Shown {
    span: tracing::Span,
    #[cfg(unix)]
    _range: eplb_cuda::nvtx::Phase,
}

impl Shown {
    /// A round, from now to the drop.
    pub(super) fn round(rank: u32, round: u64, set: &str, reason: &str, moves: usize) -> Self {
        Self {
            span: tracing::info_span!("round", rank, round, set, reason, moves),
            #[cfg(unix)]
            _range: eplb_cuda::nvtx::Phase::new(c"eplb round"),
        }
    }

    /// A phase of it.
    pub(super) fn phase(&self, phase: Phase, wave: usize) -> Self {
        let (name, range) = names(phase);
        #[cfg(not(unix))]
        let _ = range;
        Self {
            span: tracing::info_span!(parent: &self.span, "phase", phase = name, wave),
            #[cfg(unix)]
            _range: eplb_cuda::nvtx::Phase::new(range),
        }
    }

    /// Runs something inside the span.
    pub(super) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        self.span.in_scope(work)
    }
}

fn names(phase: Phase) -> (&'static str, &'static CStr) {
    match phase {
        Phase::Agreeing => ("agreeing", c"eplb agreeing"),
        Phase::Draining => ("draining", c"eplb draining"),
        Phase::Clearing => ("clearing", c"eplb clearing"),
        Phase::Moving => ("moving", c"eplb moving"),
        Phase::Prepared => ("prepared", c"eplb prepared"),
        Phase::Armed => ("armed", c"eplb armed"),
        Phase::Committing => ("committing", c"eplb committing"),
        Phase::Settling => ("settling", c"eplb settling"),
        Phase::Failing => ("failing", c"eplb failing"),
        _ => ("ending", c"eplb ending"),
    }
}
