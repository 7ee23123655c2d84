//! Faults planted in what surrounds the state machine on one rank, each a promise broken in silence.

use eplb_exchange::plan::Planted;

/// A planted fault. The checks of a run must notice every one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plant {
    /// A commit changes the map and copies nothing.
    CommitSkipped,
    /// The map of a commit is in force as soon as the rank's own bytes are in.
    MapEarly,
    /// Hashes of plans are not compared.
    HashIgnored,
    /// Steps count as finished when they are begun.
    StepFenceRemoved,
    /// Transfers count as done while some are under way: bytes are missing, and readers are still reading.
    DoneEarly,
    /// A commit counts as complete when it is enqueued.
    CommitFenceRemoved,
    /// After an abort, copies under way are not waited for.
    HaltIgnored,
    /// The record is written, not compared and set.
    RecordOverwritten,
    /// A commit that failed on the device counts as complete.
    CommitErrorIgnored,
    /// A host runs steps that its exchange refused.
    RefusalIgnored,
    /// What an early part drains stays in the map.
    EarlyDrainSkipped,
    /// Plans call transfers early that read what the wave before writes.
    WrittenSourcesEarly,
    /// Plans call transfers early that land where the wave before reads or writes.
    ReadSlotsEarly,
    /// Plans use one half of staging for all waves.
    OneHalf,
    /// That another rank gave up for lateness is read as any failure.
    LatenessForgotten,
    /// The early part of a wave is handed over before the wave two before it is committed.
    HandedOverEarly,
    /// The early part of a wave is handed over before the late part of the one before.
    PartsSwapped,
    /// What a rank wants to be decided is told to the others before the store has been asked.
    AnnouncedFirst,
}

impl Plant {
    /// All of them.
    pub const ALL: &[Plant] = &[
        Plant::CommitSkipped,
        Plant::MapEarly,
        Plant::HashIgnored,
        Plant::StepFenceRemoved,
        Plant::DoneEarly,
        Plant::CommitFenceRemoved,
        Plant::HaltIgnored,
        Plant::RecordOverwritten,
        Plant::CommitErrorIgnored,
        Plant::RefusalIgnored,
        Plant::EarlyDrainSkipped,
        Plant::WrittenSourcesEarly,
        Plant::ReadSlotsEarly,
        Plant::OneHalf,
        Plant::LatenessForgotten,
        Plant::HandedOverEarly,
        Plant::PartsSwapped,
        Plant::AnnouncedFirst,
    ];

    /// The fault as plans know it, on all ranks alike.
    pub(super) fn in_plan(self) -> Option<Planted> {
        match self {
            Plant::WrittenSourcesEarly => Some(Planted::WrittenSourcesEarly),
            Plant::ReadSlotsEarly => Some(Planted::ReadSlotsEarly),
            Plant::OneHalf => Some(Planted::OneHalf),
            _ => None,
        }
    }
}
