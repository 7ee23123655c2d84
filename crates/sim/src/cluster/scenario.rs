//! What one simulated run is like: everything follows from a seed.

use std::time::Duration;

use eplb_exchange::Deadlines;
use fastrand::Rng;

use super::plant::Plant;

/// How a copy takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// The receiver reads the sender's memory by itself, alive or not.
    Pull,
    /// Sender and receiver both take part; a copy begins when both have submitted the wave.
    Paired,
}

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// The rank that it strikes.
    pub rank: usize,
    /// When, in microseconds from the start.
    pub at: u64,
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// None.
    Nothing,
    /// The rank's process is gone.
    Death,
    /// The rank's process stands still for a while; its device goes on.
    Stop {
        /// For how long, in microseconds.
        micros: u64,
    },
    /// The rank's transport reports an error for the next wave.
    TransferError,
    /// A copy to the rank does not end until it is aborted.
    TransferStall,
    /// The host cancels on this rank.
    Cancel,
    /// The rank has another plan.
    OtherPlan,
    /// The store is gone, for all ranks.
    StoreLost,
    /// The rank's device fails in the middle of the next commit, and does nothing any more.
    CommitFails {
        /// Whether no error is reported either.
        hangs: bool,
    },
}

impl FaultKind {
    /// Name for tables.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Nothing => "nothing",
            FaultKind::Death => "death",
            FaultKind::Stop { .. } => "stop",
            FaultKind::TransferError => "transfer error",
            FaultKind::TransferStall => "transfer stall",
            FaultKind::Cancel => "cancel",
            FaultKind::OtherPlan => "other plan",
            FaultKind::StoreLost => "store lost",
            FaultKind::CommitFails { .. } => "commit fails",
        }
    }
}

/// A run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Everything random follows from it.
    pub seed: u64,
    /// Ranks.
    pub ranks: usize,
    /// MoE layers.
    pub layers: usize,
    /// Logical experts.
    pub experts: usize,
    /// Slots per rank.
    pub slots_per_rank: usize,
    /// Staging memory in experts.
    pub staging_experts: usize,
    /// Whether waves overlap.
    pub overlap: bool,
    /// Most experts that a wave brings to or from a rank; `None`: any number.
    pub wave_experts: Option<u64>,
    /// Exchanges one after another.
    pub exchanges: usize,
    /// How copies take place.
    pub transport: Transport,
    /// Deadlines of the exchange, in simulated time.
    pub deadlines: Deadlines,
    /// Steps between the largest begun and the one proposed.
    pub margin: u64,
    /// Steps that a host may be ahead of its device.
    pub depth: usize,
    /// Longest time between two looks of a rank at its exchange, in microseconds.
    pub look: u64,
    /// Longest time of a step on a device, in microseconds.
    pub step: u64,
    /// Longest time of a copy, in microseconds.
    pub copy: u64,
    /// Longest time until a note is seen, in microseconds; one in fifty takes ten times as long.
    pub note: u64,
    /// Longest pause without traffic, in microseconds; 0 = steps follow each other.
    pub pause: u64,
    /// What goes wrong.
    pub fault: Fault,
    /// A fault in the ranks' own code, planted to see that it is noticed.
    pub plant: Option<Plant>,
}

impl Scenario {
    /// The run of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let ranks = rng.usize(2..=6);
        let experts = rng.usize(ranks.max(3)..=3 * ranks);
        // From no spare slot to one and a half slots per expert.
        let slots_per_rank = (experts + rng.usize(0..=experts / 2)).div_ceil(ranks);
        let kind = match rng.u32(0..100) {
            0..32 => FaultKind::Nothing,
            32..40 => FaultKind::CommitFails { hangs: rng.bool() },
            40..55 => FaultKind::Death,
            55..70 => FaultKind::Stop { micros: rng.u64(2_000..120_000) },
            70..78 => FaultKind::TransferError,
            78..88 => FaultKind::TransferStall,
            88..92 => FaultKind::Cancel,
            92..97 => FaultKind::StoreLost,
            _ => FaultKind::OtherPlan,
        };
        Self {
            seed,
            ranks,
            layers: rng.usize(1..=3),
            experts,
            slots_per_rank,
            staging_experts: rng.usize(1..=5),
            overlap: rng.u32(0..5) > 0,
            wave_experts: [None, Some(1), Some(2)][rng.usize(0..3)],
            exchanges: rng.usize(1..=3),
            transport: if rng.bool() { Transport::Pull } else { Transport::Paired },
            deadlines: Deadlines {
                transfer: Duration::from_millis(60),
                answer: Duration::from_millis(40),
                peer: Duration::from_millis(25),
                commit_hold: Duration::from_millis(5),
                // The pass before it waits for ranks that stand still.
                settle: Duration::from_millis(200),
            },
            margin: rng.u64(1..=6),
            depth: rng.usize(1..=3),
            look: rng.u64(20..=400),
            step: rng.u64(100..=1500),
            copy: rng.u64(10..=3000),
            note: rng.u64(5..=800),
            pause: if rng.bool() { 0 } else { rng.u64(1000..=30_000) },
            fault: Fault { kind, rank: rng.usize(0..ranks), at: rng.u64(0..30_000) },
            plant: None,
        }
    }
}
