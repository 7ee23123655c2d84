//! The suite that every backend passes: what [`Communicator`] promises, checked from outside.
//!
//! A backend gives a [`Backend`], most simply a closure that makes ranks for a [`Setup`], and calls [`run_all`]. All ranks are
//! driven by one thread, which works because no call may block. Each rank has buffers of its own; expected bytes are
//! computed ([`crate::pattern`]), never read from a source. What a check finds is a [`Violation`] and not a
//! panic, so that tests can show with planted faults ([`crate::fault`]) that every check is able to find something.
//!
//! ```
//! use eplb_comm::conformance::{Options, Rank, Setup, run_all};
//! use eplb_comm::{CommError, host::HostMemory, local::LocalGroup};
//! use eplb_core::RankId;
//!
//! let mut local = |setup: &Setup| -> Result<Vec<Rank>, CommError> {
//!     let memory = |(rank, slots): (usize, &std::ops::Range<usize>)| {
//!         HostMemory::new(RankId::at(rank), setup.layouts[rank].clone(), slots.clone(), setup.staging_bytes)
//!     };
//!     let memories = setup.slots.iter().enumerate().map(memory).collect::<Result<Vec<_>, _>>()?;
//!     let group = LocalGroup::new(memories.clone(), 2)?;
//!     Ok(group.into_iter().zip(memories).map(|(c, m)| Rank::new(c, m)).collect())
//! };
//! run_all(&mut local, &Options::default()).unwrap();
//! ```

mod abort;
mod bytes;
mod deadline;
mod order;
mod random;
mod refused;
mod scene;
mod setup;
mod tickets;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use eplb_core::{ExpertId, LayerId, SlotId};

use crate::communicator::Communicator;
use crate::error::CommError;
use crate::host::HostMemory;
use crate::memory::Place;

pub use setup::Setup;

/// Makes ranks to be checked.
pub trait Backend {
    /// One rank per entry of `setup.slots`, in order, connected to each other, slots and staging as the setup says.
    ///
    /// # Errors
    /// The backend cannot be made; the check fails then.
    fn ranks(&mut self, setup: &Setup) -> Result<Vec<Rank>, CommError>;
}

impl<F: FnMut(&Setup) -> Result<Vec<Rank>, CommError>> Backend for F {
    fn ranks(&mut self, setup: &Setup) -> Result<Vec<Rank>, CommError> {
        self(setup)
    }
}

/// A communicator and the memory of its rank.
#[derive(Debug)]
pub struct Rank {
    /// The communicator under test.
    pub communicator: Box<dyn Communicator>,
    /// Access to the bytes that it moves.
    pub memory: Box<dyn RankMemory>,
}

impl Rank {
    /// A rank of these two.
    pub fn new(communicator: impl Communicator + 'static, memory: impl RankMemory + 'static) -> Self {
        Self { communicator: Box::new(communicator), memory: Box::new(memory) }
    }
}

/// How the suite reaches a rank's bytes. Not on any fast path: device memory may be copied to the host.
pub trait RankMemory: fmt::Debug + Send {
    /// Writes the pattern of an expert into a slot.
    ///
    /// # Errors
    /// There is no such slot, or it is in use.
    fn fill(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<(), CommError>;

    /// The bytes of a place, `[tensor][byte]`, rows without gaps.
    ///
    /// # Errors
    /// There is no such place, or it is being written.
    fn read(&mut self, place: Place) -> Result<Vec<Vec<u8>>, CommError>;
}

impl RankMemory for Arc<HostMemory> {
    fn fill(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<(), CommError> {
        HostMemory::fill(self, layer, slot, expert)
    }

    fn read(&mut self, place: Place) -> Result<Vec<Vec<u8>>, CommError> {
        let guard = HostMemory::read(self, place)?;
        let gather = |tensor: usize| guard.rows(tensor).collect::<Vec<_>>().concat();
        Ok((0..guard.layout().tensors().len()).map(gather).collect())
    }
}

/// How the suite runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Ranks, at least 2.
    pub ranks: usize,
    /// Random waves.
    pub waves: usize,
    /// Seed of the random waves.
    pub seed: u64,
    /// Longest time that anything that must happen may take.
    pub patience: Duration,
    /// How long a check watches that nothing happens where nothing may.
    pub watch: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ranks: 3,
            waves: 40,
            seed: 1,
            patience: Duration::from_secs(30),
            watch: Duration::from_millis(20),
        }
    }
}

/// What a backend did against the contract.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("conformance, {check}: {what}")]
pub struct Violation {
    /// Name of the check.
    pub check: &'static str,
    /// What was found.
    pub what: String,
}

/// One check of the suite.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What it makes sure of.
    pub about: &'static str,
    run: fn(&Stage<'_>, &mut dyn Backend) -> Result<(), Violation>,
}

/// What a check runs under.
#[derive(Debug, Clone, Copy)]
struct Stage<'a> {
    check: &'static str,
    options: &'a Options,
}

impl Stage<'_> {
    fn violation(&self, what: impl Into<String>) -> Violation {
        Violation { check: self.check, what: what.into() }
    }
}

/// All checks.
pub const CHECKS: &[Check] = &[
    Check {
        name: "bytes",
        about: "every tensor of every layout lands where it must, and nothing else changes",
        run: bytes::bytes,
    },
    Check { name: "alone", about: "a group of one rank copies inside it", run: bytes::alone },
    Check { name: "carried", about: "bytes and transfers are counted exactly", run: bytes::carried },
    Check {
        name: "in flight",
        about: "submit returns before a byte moves, and bytes wait for `after`",
        run: order::in_flight,
    },
    Check {
        name: "failed fence",
        about: "a wave whose `after` fails moves nothing and says why",
        run: order::failed_fence,
    },
    Check {
        name: "chain",
        about: "a wave behind the `done` of another reads what that one wrote",
        run: order::chain,
    },
    Check {
        name: "tickets",
        about: "waves overlap and are told apart; unknown tickets are errors",
        run: tickets::tickets,
    },
    Check { name: "empty", about: "a rank with nothing to receive is done", run: tickets::empty },
    Check {
        name: "deadline",
        about: "a wave that cannot end fails at its deadline, for good",
        run: deadline::deadline,
    },
    Check {
        name: "abort",
        about: "an abort fails what is open and no byte changes after its fence",
        run: abort::gated,
    },
    Check {
        name: "abort in flight",
        about: "an abort amid copies: no byte changes after its fence",
        run: abort::running,
    },
    Check { name: "drop", about: "communicators with an open wave can be dropped", run: abort::dropped },
    Check {
        name: "refused",
        about: "a wave that names what does not exist is refused whole",
        run: refused::refused,
    },
    Check {
        name: "random waves",
        about: "many random waves end in the right bytes everywhere",
        run: random::random,
    },
];

impl Check {
    /// Runs the check on ranks that `backend` makes for it.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(&self, backend: &mut dyn Backend, options: &Options) -> Result<(), Violation> {
        (self.run)(&Stage { check: self.name, options }, backend)
    }
}

/// Runs all checks.
///
/// # Errors
/// The violation that each failed check found.
pub fn run_all(backend: &mut dyn Backend, options: &Options) -> Result<(), Vec<Violation>> {
    let found: Vec<Violation> = CHECKS.iter().filter_map(|check| check.run(backend, options).err()).collect();
    if found.is_empty() { Ok(()) } else { Err(found) }
}
