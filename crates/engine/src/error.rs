//! Why a run of the engine failed.

use std::time::Duration;

use eplb_comm::CommError;
use eplb_comm::store::tcp::TokenError;
use eplb_comm::store::{FormationError, GroupError, StoreError};
use eplb_core::{CoreError, RankId};
use eplb_exchange::{Cause, ExchangeError};
use eplb_plan::PlanError;
use eplb_trace::TraceError;

use crate::board::BoardError;
use crate::process::Stage;
use crate::process::membership::MembershipError;

/// What went wrong, and on which rank.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Options that contradict each other or the trace.
    #[error("{0}")]
    Options(String),
    /// The run needs more memory than there is.
    #[error(
        "{needed} bytes of weights and staging are needed, but only {available} bytes of memory are free (80% of which \
         may be used); use smaller experts, fewer slots or fewer ranks"
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes free on the machine.
        available: u64,
    },
    /// An exchange stopped before its last wave; what was committed before stays.
    #[error("{rank}: the exchange stopped at wave {wave}: {cause}")]
    Aborted {
        /// The rank that tells.
        rank: RankId,
        /// Number of the wave that was not committed.
        wave: usize,
        /// Why.
        cause: Cause,
    },
    /// The agreed step has come and the decision cannot be learnt: the step must not run.
    #[error("{rank}: step {step} must not run, because the decision on wave {wave} cannot be learnt")]
    Undecided {
        /// This rank.
        rank: RankId,
        /// The step.
        step: u64,
        /// Number of the wave.
        wave: usize,
    },
    /// A commit failed on the device of a rank: no step may run before the ranks have formed a new epoch.
    #[error(
        "{rank}: step {step} must not run, because the commit of wave {wave} failed on the device of {broken}; reform \
         without that rank, or with it started anew"
    )]
    Broken {
        /// This rank.
        rank: RankId,
        /// The step.
        step: u64,
        /// The rank whose device failed.
        broken: RankId,
        /// Number of the wave.
        wave: usize,
    },
    /// A new epoch is being formed, or could not be: slots may hold other experts than maps say.
    #[error(
        "{rank}: step {step} must not run, because the ranks have not agreed yet on what they go on from; reform, and wait \
         until it has succeeded"
    )]
    Unformed {
        /// This rank.
        rank: RankId,
        /// The step.
        step: u64,
    },
    /// A rank did not begin a step in time.
    #[error("{rank}: step {step} waited {waited:?} for {missing:?}, which did not begin it")]
    StepTimeout {
        /// The rank that waited.
        rank: RankId,
        /// The step.
        step: u64,
        /// Ranks that did not come.
        missing: Vec<RankId>,
        /// How long it waited.
        waited: Duration,
    },
    /// A rank's thread ended without a result.
    #[error("{rank} ended without a result: {detail}")]
    RankLost {
        /// The rank.
        rank: RankId,
        /// What is known.
        detail: String,
    },
    /// Ranks ended an exchange with different placements.
    #[error("{a} and {b} ended the exchange with different placements")]
    Diverged {
        /// One rank.
        a: RankId,
        /// The other.
        b: RankId,
    },
    /// A plan on disk that is none, or not for these loads.
    #[error("{file}: {error}")]
    PlanFile {
        /// The file.
        file: String,
        /// What is wrong in it.
        error: CoreError,
    },
    /// Something failed on a rank that is a process.
    #[error("{rank}, {stage}: {error}")]
    AtStage {
        /// This rank.
        rank: RankId,
        /// What it was doing.
        stage: Stage,
        /// What happened.
        error: Box<EngineError>,
    },
    /// Ranks were started with different programs, models or options.
    #[error("{what} differs: {ours} on {lowest}, {theirs} on {rank}; start all ranks with the same")]
    Differs {
        /// What differs.
        what: String,
        /// The lowest rank.
        lowest: RankId,
        /// Its value.
        ours: String,
        /// The first rank with another.
        rank: RankId,
        /// That value.
        theirs: String,
    },
    /// What another rank said cannot be read.
    #[error("what {rank} said ({what}) cannot be read; do all ranks run the same version?")]
    Unreadable {
        /// The other rank.
        rank: RankId,
        /// What it was about.
        what: &'static str,
    },
    /// A backend that cannot be used here.
    #[error("backend {backend}: {detail}")]
    Backend {
        /// Its name.
        backend: &'static str,
        /// Why not, and what to do.
        detail: String,
    },
    /// An exchange ended without anybody here knowing what became of a wave.
    #[error("{rank}: what became of wave {wave} is not known here: {cause}; join the next epoch to find out")]
    Unknown {
        /// This rank.
        rank: RankId,
        /// Number of the wave.
        wave: usize,
        /// Why.
        cause: Cause,
    },
    /// A step whose id does not rise.
    #[error("{rank}: step {step} after step {last}: ids of steps rise strictly")]
    StepOrder {
        /// This rank.
        rank: RankId,
        /// The id.
        step: u64,
        /// The last id.
        last: u64,
    },
    /// A member shows no sign of life.
    #[error(
        "{rank} has given no sign of life for {silence:?}; form a new epoch without it, or start it anew"
    )]
    PeerSilent {
        /// The silent rank.
        rank: RankId,
        /// For how long.
        silence: Duration,
    },
    /// Another rank's engine cannot go on.
    #[error("{rank} failed: {cause}")]
    PeerFailed {
        /// The rank.
        rank: RankId,
        /// What it says.
        cause: String,
    },
    /// A round ended so that no other can be run in this epoch.
    #[error("{rank}: no more rounds in this epoch: {cause}")]
    RoundFailed {
        /// This rank.
        rank: RankId,
        /// Why.
        cause: String,
    },
    /// A call that does not fit the state of the engine.
    #[error("{rank}: {call} does not fit an engine that is {state}")]
    State {
        /// This rank.
        rank: RankId,
        /// The call.
        call: &'static str,
        /// The state.
        state: String,
    },
    /// Something was not over by the deadline that the caller gave.
    #[error("{rank}: {call} was not over within {timeout:?}; the engine is {state}")]
    Late {
        /// This rank.
        rank: RankId,
        /// The call.
        call: &'static str,
        /// The time given.
        timeout: Duration,
        /// The state.
        state: String,
    },
    /// The engine's own thread ended by a fault in eplb.
    #[error(
        "{rank}: {cause}; a fault in eplb itself, please report it: rounds are over here until the engine is made anew"
    )]
    Panicked {
        /// This rank.
        rank: RankId,
        /// What it panicked with.
        cause: String,
    },
    /// A configuration that means nothing.
    #[error(transparent)]
    Config(#[from] crate::engine::ConfigError),
    /// Tensors that cannot be registered.
    #[error(transparent)]
    Register(#[from] crate::engine::RegisterError),
    /// Counts that cannot be taken.
    #[error(transparent)]
    Record(#[from] crate::engine::RecordError),
    /// The board of an exchange cannot be used.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Ranks did not come together for a collective, or do not agree.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// No epoch was formed.
    #[error(transparent)]
    Formation(#[from] FormationError),
    /// Members could not be changed.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The secret of the store cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A communicator, stream or memory error.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A device or its driver.
    #[error(transparent)]
    Cuda(#[from] eplb_cuda::CudaError),
    /// A communicator of NCCL cannot be made.
    #[error(transparent)]
    Nccl(#[from] eplb_comm_nccl::NcclCommError),
    /// The exchange cannot be planned.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The placement cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Shapes or values that cannot be.
    #[error(transparent)]
    Core(#[from] CoreError),
}

impl EngineError {
    /// Whether the caller's input is to blame, rather than the run.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Options(_)
            | Self::PlanFile { .. }
            | Self::Memory { .. }
            | Self::Trace(_)
            | Self::Core(_)
            | Self::Token(_)
            | Self::StepOrder { .. }
            | Self::State { .. }
            | Self::Config(_)
            | Self::Register(_)
            | Self::Record(_)
            | Self::Exchange(_)
            | Self::Membership(MembershipError::Change(_) | MembershipError::NoRoom { .. }) => true,
            Self::AtStage { error, .. } => error.is_bad_input(),
            Self::Plan(error) => !matches!(error, PlanError::Threads { .. }),
            _ => false,
        }
    }

    /// Whether a wait was left because this rank was told to end, or to form a new epoch.
    pub fn is_interrupted(&self) -> bool {
        match self {
            Self::AtStage { error, .. } => error.is_interrupted(),
            Self::Store(error) | Self::Formation(FormationError::Store(error)) => error.is_interrupted(),
            Self::Group(error) => error.is_interrupted(),
            _ => false,
        }
    }
}
