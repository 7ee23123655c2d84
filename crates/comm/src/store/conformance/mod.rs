//! The suite that every store passes: what the [module](super) promises, clause by clause.
//!
//! A host that brings a store of its own runs [`check`] on it before it trusts it with decisions.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::deadlines::after;
use super::{Store, StoreError};

mod races;
mod values;
mod waits;

/// A promise that a store breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store breaks `{clause}`: {detail}")]
pub struct Violation {
    /// The clause of [`CLAUSES`].
    pub clause: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Opens another handle of the store under test, as another process would.
pub type Opener = Arc<dyn Fn() -> Result<Arc<dyn Store>, StoreError> + Send + Sync>;

/// A check of one promise.
pub type Clause = fn(&Bench) -> Result<(), String>;

/// Names and checks of all promises.
pub const CLAUSES: &[(&str, Clause)] = &[
    ("absent", values::absent),
    ("set and get", values::set_and_get),
    ("keys", values::keys),
    ("too large", values::too_large),
    ("delete", values::delete),
    ("add", values::add),
    ("compare-and-set", values::compare_and_set),
    ("get many", values::get_many),
    ("wait", waits::wait),
    ("wait times out", waits::wait_times_out),
    ("wait wakes", waits::wait_wakes),
    ("wait-change", waits::wait_change),
    ("wait-change wakes", waits::wait_change_wakes),
    ("passed deadline", waits::passed_deadline),
    ("blocked waits", waits::blocked_waits),
    ("prefixes", values::prefixes),
    ("adds are linearizable", races::linearizable_adds),
    ("compare-and-sets are linearizable", races::linearizable_compare_and_sets),
    ("one creator", races::one_creator),
    ("whole values", races::whole_values),
    ("reads in order", races::reads_in_order),
];

/// Two handles of a store, and what a clause needs around them.
pub struct Bench {
    a: Arc<dyn Store>,
    b: Arc<dyn Store>,
    open: Opener,
    clause: &'static str,
    patience: Duration,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("clause", &self.clause).field("a", &self.a).finish_non_exhaustive()
    }
}

/// Runs all clauses on an empty store. `patience` is how long a thing that must happen may take (20 s leaves room
/// for a busy machine; a store that passes needs a fraction of it).
///
/// # Errors
/// The first clause that is broken.
pub fn check(open: &Opener, patience: Duration) -> Result<(), Violation> {
    CLAUSES.iter().try_for_each(|&(name, clause)| check_clause(open, patience, name, clause))
}

/// Runs one clause. One that hangs is a violation as well; its thread is left behind.
///
/// # Errors
/// The clause is broken.
pub fn check_clause(
    open: &Opener,
    patience: Duration,
    name: &'static str,
    clause: Clause,
) -> Result<(), Violation> {
    let violation = |detail: String| Violation { clause: name, detail };
    let handle = || open().map_err(|error| violation(format!("no handle: {error}")));
    let bench = Bench { a: handle()?, b: handle()?, open: Arc::clone(open), clause: name, patience };
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // Nobody listens any more when the clause took too long.
        let _ = sender.send(clause(&bench));
    });
    match receiver.recv_timeout(patience * 3) {
        Ok(outcome) => outcome.map_err(violation),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(violation("it hangs".to_owned())),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(violation("it panics".to_owned())),
    }
}

/// What a failed expectation says.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?}, should be {wanted:?}")) }
}

/// An operation that must succeed.
fn done<T>(what: &str, result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

impl Bench {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.clause)
    }

    fn soon(&self) -> Instant {
        after(self.patience)
    }

    /// Runs `work` on threads, each with its number and a handle of its own.
    fn on_threads<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize, Arc<dyn Store>) -> Result<T, String> + Sync,
    ) -> Result<Vec<T>, String> {
        let handles: Result<Vec<_>, _> = (0..count).map(|_| (self.open)()).collect();
        let handles = done("open", handles)?;
        let work = &work;
        thread::scope(|scope| {
            let threads: Vec<_> = handles
                .into_iter()
                .enumerate()
                .map(|(number, handle)| scope.spawn(move || work(number, handle)))
                .collect();
            threads.into_iter().map(|t| t.join().map_err(|_| "a thread panicked".to_owned())?).collect()
        })
    }
}
