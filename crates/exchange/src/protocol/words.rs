//! What ranks say to each other, and what they must do.

use std::time::Duration;

use eplb_core::RankId;
use ndarray::Array2;

use crate::plan::{ExchangePlan, Part};

/// A control message from one rank to all others. Notes of one rank arrive in the order sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Hash of the plan that the rank is about to run: compared before anything else happens.
    Plan {
        /// [`crate::ExchangePlan::hash64`].
        hash: u64,
        /// First step that the rank runs with the maps that the plan starts from, at the latest.
        next_step: u64,
    },
    /// What a part of a wave drains is out of service on this rank from step `first_step` on.
    Drained {
        /// Number of the wave.
        wave: usize,
        /// Which part of it.
        part: Part,
        /// First step that runs, or will run, with that map.
        first_step: u64,
    },
    /// The rank's own bytes are in and its reads of others are over.
    Prepared {
        /// Number of the wave.
        wave: usize,
        /// Last step that the rank has begun; `None` before the first.
        last_step: Option<u64>,
    },
    /// The leader proposes the step at which all ranks commit.
    Proposed {
        /// Number of the wave.
        wave: usize,
        /// The step `N`.
        step: u64,
    },
    /// The rank has not begun step `N` yet and will not pass it without knowing the decision.
    Acknowledged {
        /// Number of the wave.
        wave: usize,
    },
    /// The sender gives the wave up for no other reason than that a rank was at the step before the others: it had begun step `N`
    /// when the proposal came, or it came to step `N` before the decision. Tried with a larger margin, the same plan may do.
    TooLate {
        /// Number of the wave.
        wave: usize,
        /// The rank that was at the step.
        rank: RankId,
    },
    /// The commit is complete on the rank's device.
    Committed {
        /// Number of the wave.
        wave: usize,
        /// First step that runs with its maps.
        first_step: u64,
    },
    /// The commit failed on the rank's device: what its slots hold that the commit writes is not known.
    Broken {
        /// Number of the wave.
        wave: usize,
        /// The device's error, in words.
        detail: String,
    },
    /// The rank cannot go on, for another reason than lateness.
    Failed {
        /// Why, in words.
        cause: String,
    },
    /// After an abort: nothing of the wave can touch the rank's memory any more.
    Stopped {
        /// Number of the aborted wave.
        wave: usize,
        /// Where bytes may have landed in the rank's slots.
        touched: Touched,
    },
}

/// Submissions of which bytes may have landed on a rank when an exchange was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Touched {
    /// The early part of the aborted wave.
    pub early: bool,
    /// Its late part.
    pub late: bool,
    /// The early part of the wave after it.
    pub ahead: bool,
}

impl Touched {
    /// Bytes may have landed anywhere.
    pub const ALL: Touched = Touched { early: true, late: true, ahead: true };
}

/// The one record that decides a wave. It moves by compare-and-set only, so that all ranks read one history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Number of waves decided, the present one included.
    pub decided: usize,
    /// What was decided of wave `decided - 1`.
    pub verdict: Verdict,
    /// Whether the epoch is closed: nothing will be decided under this record any more.
    pub closed: bool,
}

impl Record {
    /// Before the first wave.
    pub const OPEN: Record = Record { decided: 0, verdict: Verdict::Commit { step: None }, closed: false };
}

/// What becomes of a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every rank commits: before the first step whose id is at least `step`, or as soon as it knows where the wave
    /// overwrites nothing in service (`None`).
    Commit {
        /// The agreed step.
        step: Option<u64>,
    },
    /// Nobody commits; the placement before the wave stays.
    Abort,
}

/// What the driver must do for the state machine, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a note to every other rank.
    Publish(Note),
    /// Take what a part of a wave drains out of the maps, for the step that is about to run and all later ones.
    Drain {
        /// Number of the wave.
        wave: usize,
        /// Which part of it.
        part: Part,
    },
    /// Hand the transfers of a part of a wave to the communicator. Up to three submissions are open at a time, and every rank
    /// makes them in the same order.
    Submit {
        /// Number of the wave.
        wave: usize,
        /// Which part of it.
        part: Part,
    },
    /// Enqueue the wave's commit on the compute stream and put its slots into the maps, for the step that is about to
    /// run and all later ones.
    Commit {
        /// Number of the wave.
        wave: usize,
    },
    /// Move the record from `from` to `to` by compare-and-set, and report what it says then
    /// ([`Exchange::decided`](super::Exchange::decided)).
    Decide {
        /// The record as last known.
        from: Record,
        /// The record wanted.
        to: Record,
        /// Whether the step that is about to run depends on the answer: the driver waits for it, up to
        /// [`Deadlines::commit_hold`], before it ends the boundary. Otherwise it does not wait.
        hold: bool,
    },
    /// Abort the communicator's work of this exchange; report when nothing can touch memory any more.
    Halt {
        /// Why, in words.
        cause: String,
    },
    /// Replace the maps by the ones given: drained slots that no byte touched are in service again.
    Restore {
        /// Entries of `phy2log`, `[L, P]`.
        phy2log: Array2<i32>,
    },
}

/// Deadlines of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Longest time for the transfers of one wave.
    pub transfer: Duration,
    /// Longest time for an answer that needs no traffic: hashes, proposals, stops.
    pub answer: Duration,
    /// A peer that shows no sign of life for this long is taken for dead.
    pub peer: Duration,
    /// Longest wait in a step for the decision on it: the only wait in the forward path.
    pub commit_hold: Duration,
    /// Longest time from enqueuing a commit to its end on the device: the steps before it, and its copies.
    pub settle: Duration,
}

impl Default for Deadlines {
    /// 30 s for a wave's transfers, 10 s for an answer, 5 s for a sign of life, 1 s for a decision that a step
    /// needs, 30 s for a commit on the device.
    fn default() -> Self {
        Self {
            transfer: Duration::from_secs(30),
            answer: Duration::from_secs(10),
            peer: Duration::from_secs(5),
            commit_hold: Duration::from_secs(1),
            settle: Duration::from_secs(30),
        }
    }
}

/// Where an exchange is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Waiting for the hashes of all ranks.
    Agreeing,
    /// Waiting for the next step, to drain, and for the other ranks to have drained.
    Draining,
    /// Drained everywhere; waiting for the last step that may use the drained slots.
    Clearing,
    /// Bytes are under way.
    Moving,
    /// This rank is prepared; waiting for the others and for the decision.
    Prepared,
    /// This rank acknowledged a step and waits for the decision.
    Armed,
    /// Commit is decided; waiting for its step.
    Committing,
    /// Commit is enqueued here; waiting for it to complete on all ranks.
    Settling,
    /// This rank cannot go on; waiting for the record's last word.
    Failing,
    /// Aborted; waiting until nothing can touch memory any more, on all ranks.
    Stopping,
    /// Over: see [`Outcome`].
    Over,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Agreeing => "agreeing on the plan",
            Phase::Draining => "draining",
            Phase::Clearing => "waiting for the last step on drained slots",
            Phase::Moving => "moving bytes",
            Phase::Prepared => "waiting for all ranks to be prepared",
            Phase::Armed => "waiting for the decision",
            Phase::Committing => "waiting for the commit's step",
            Phase::Settling => "waiting for all ranks to commit",
            Phase::Failing => "giving up",
            Phase::Stopping => "stopping",
            Phase::Over => "over",
        })
    }
}

/// Why an exchange was aborted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// Two ranks planned differently; no byte was moved.
    #[error(
        "{rank} runs a plan with hash {theirs:016x}, this rank one with {ours:016x}; ranks must plan alike"
    )]
    PlanMismatch {
        /// The other rank.
        rank: RankId,
        /// Its hash.
        theirs: u64,
        /// Our hash.
        ours: u64,
    },
    /// A transfer of this rank failed.
    #[error("{rank}, wave {wave}: {detail}")]
    Transfer {
        /// This rank.
        rank: RankId,
        /// Number of the wave.
        wave: usize,
        /// The communicator's error.
        detail: String,
    },
    /// A commit failed on a rank's device.
    #[error("{rank}: the commit of wave {wave} failed on its device: {detail}")]
    Commit {
        /// The rank.
        rank: RankId,
        /// Number of the wave.
        wave: usize,
        /// The device's error.
        detail: String,
    },
    /// Ranks did not answer in time.
    #[error("wave {wave}, {phase}: no answer from {waiting_for:?} within {waited:?}")]
    Timeout {
        /// Number of the wave.
        wave: usize,
        /// What was going on.
        phase: Phase,
        /// The ranks that did not answer.
        waiting_for: Vec<RankId>,
        /// How long this rank waited.
        waited: Duration,
    },
    /// A rank gives no sign of life.
    #[error("wave {wave}, {phase}: {rank} has given no sign of life for {silence:?}")]
    PeerSilent {
        /// The silent rank.
        rank: RankId,
        /// Number of the wave.
        wave: usize,
        /// What was going on.
        phase: Phase,
        /// For how long.
        silence: Duration,
    },
    /// A rank has left the epoch in good order, and takes no part in the exchange any more.
    #[error("wave {wave}, {phase}: {rank} has left the epoch")]
    PeerLeft {
        /// The rank.
        rank: RankId,
        /// Number of the wave.
        wave: usize,
        /// What was going on.
        phase: Phase,
    },
    /// Another rank reported that it cannot go on.
    #[error("{rank} failed: {detail}")]
    PeerFailed {
        /// The rank.
        rank: RankId,
        /// Its words.
        detail: String,
    },
    /// A rank had begun the proposed step before the proposal reached it; nothing is wrong, try again.
    #[error("wave {wave}: {rank} was past the proposed step already; try again with a larger margin")]
    TooLate {
        /// The rank.
        rank: RankId,
        /// Number of the wave.
        wave: usize,
    },
    /// This rank reached the agreed step before it was decided, and had the wave aborted; nothing is wrong, try again.
    #[error(
        "wave {wave}: {rank} reached step {step} before the commit was decided; try again with a larger margin"
    )]
    ReachedFirst {
        /// This rank.
        rank: RankId,
        /// Number of the wave.
        wave: usize,
        /// The agreed step.
        step: u64,
    },
    /// The store through which ranks decide is gone.
    #[error("{rank}, wave {wave}, {phase}: the store is lost: {detail}")]
    StoreLost {
        /// This rank.
        rank: RankId,
        /// Number of the wave.
        wave: usize,
        /// What was going on.
        phase: Phase,
        /// The store's error.
        detail: String,
    },
    /// The members have gone on in another epoch, without this rank.
    #[error("wave {wave}, {phase}: the epoch was closed; this rank was held for dead or left out: join anew")]
    EpochClosed {
        /// Number of the wave.
        wave: usize,
        /// What was going on.
        phase: Phase,
    },
    /// The caller cancelled.
    #[error("cancelled: {0}")]
    Cancelled(String),
    /// Another rank aborted the wave by record, for a reason that it did not tell.
    #[error("wave {wave} was aborted by record")]
    ByRecord {
        /// Number of the wave.
        wave: usize,
    },
    /// A rank said something that this protocol does not allow.
    #[error("{rank} broke the protocol: {detail}")]
    Protocol {
        /// The rank.
        rank: RankId,
        /// What it said.
        detail: String,
    },
}

impl Cause {
    /// Whether nothing is wrong but that a rank was at a step before the others.
    pub fn is_lateness(&self) -> bool {
        matches!(self, Cause::TooLate { .. } | Cause::ReachedFirst { .. })
    }
}

/// How an exchange ended on this rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every wave is committed on every rank.
    Completed,
    /// Stopped before wave `wave` was committed. Everything committed before it stays.
    Aborted {
        /// Number of the wave that was not committed.
        wave: usize,
        /// Why.
        cause: Cause,
        /// Entries of `phy2log` in force now, `[L, P]`.
        phy2log: Array2<i32>,
        /// Ranks that did not confirm that they stopped: their drained slots are left empty.
        silent: Vec<RankId>,
    },
    /// The commit of a wave failed on the device of a rank, this one or another. The wave stays committed everywhere else, and
    /// the slots that it was to write on that rank are in no map any more; their bytes are still in that rank's staging. No
    /// step runs before a new epoch is formed.
    Broken {
        /// The rank whose device failed.
        rank: RankId,
        /// Number of the wave; it is committed on all other ranks.
        wave: usize,
        /// Why.
        cause: Cause,
        /// Entries of `phy2log` in force now, `[L, P]`.
        phy2log: Array2<i32>,
        /// Ranks that did not confirm that they stopped: their drained slots are left empty.
        silent: Vec<RankId>,
    },
    /// The store was lost when the wave may have been committed on other ranks. This rank keeps the maps from before it,
    /// with the drained slots out of service, and its staging; which of the two placements is in force, only a new
    /// epoch can tell.
    Undecided {
        /// Number of the wave of which nobody here knows.
        wave: usize,
        /// The agreed step: this rank must run no step from it on. `None`: the wave overwrites nothing in service, and
        /// steps may go on.
        step: Option<u64>,
        /// Why.
        cause: Cause,
        /// Entries of `phy2log` in force now, `[L, P]`.
        phy2log: Array2<i32>,
    },
}

impl Outcome {
    /// Whether the exchange was given up for lateness alone, and every rank has stopped: the same plan may do with a larger margin.
    /// All ranks of which every one has heard that the others stopped say the same.
    pub fn came_too_late(&self) -> bool {
        matches!(self, Outcome::Aborted { cause, silent, .. } if cause.is_lateness() && silent.is_empty())
    }

    /// How many waves of a plan were committed here by then; of a broken one the maps were switched.
    pub fn committed(&self, plan: &ExchangePlan) -> usize {
        match self {
            Self::Completed => plan.waves().len(),
            Self::Broken { wave, .. } => *wave + 1,
            Self::Aborted { wave, .. } | Self::Undecided { wave, .. } => *wave,
        }
    }
}
