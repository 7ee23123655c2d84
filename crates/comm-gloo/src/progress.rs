//! The thread that keeps deadlines and carries failures to the other ranks, and the one that hears of theirs.

use std::sync::Arc;
use std::time::Instant;

use eplb_comm::FenceState;

use crate::alarm::Fault;
use crate::options::Planted;
use crate::shared::{Seen, Shared};

/// Runs until the communicator ends.
pub(crate) fn run(shared: &Shared) {
    let mut handled = false;
    let mut state = shared.lock();
    loop {
        if let Some(seen) = state.fault.clone().filter(|_| !handled) {
            drop(state);
            handle(shared, seen);
            handled = true;
            state = shared.lock();
            continue;
        }
        if state.shutdown {
            return;
        }
        state.open.retain(|ticket| !ticket.is_over() || ticket.failure().is_some());
        let now = Instant::now();
        // A wave that failed by itself, or whose deadline has passed: then it fails with this look.
        let failed = state.open.iter().find_map(|ticket| match ticket.deadline <= now || ticket.is_over() {
            true => ticket.poll().err().map(|error| error.to_string()),
            false => None,
        });
        if let Some(cause) = failed.filter(|_| !handled) {
            drop(state);
            shared.raise_own(cause);
            state = shared.lock();
            continue;
        }
        let earliest = state.open.iter().filter(|t| !t.is_over()).map(|t| t.deadline).min();
        state = shared.wait(state, earliest);
    }
}

/// Brings this rank to rest, learns what the generation failed of, tells the others, and closes the connections. In this
/// order: memory is quiet before anything is asked of the store, and others find the record before they find their connections
/// broken.
fn handle(shared: &Shared, seen: Seen) {
    quiet(shared);
    let options = &shared.options;
    let deadline = || Instant::now() + options.report;
    let silent = seen.recorded || options.has(Planted::NotReported);
    let (fault, first) = match silent {
        true => (seen.fault, false),
        false => match shared.mesh.alarm.record(&seen.fault, deadline()) {
            Ok(outcome) => outcome,
            Err(error) => {
                let cause = format!("{} (and the store did not take note: {error})", seen.fault.cause);
                (Fault { cause, ..seen.fault }, false)
            }
        },
    };
    fail_all(shared, &fault);
    if first && !options.has(Planted::NotRung) {
        // Who is not rung looks by itself after a while.
        let _ = shared.mesh.alarm.ring(deadline());
    }
    shared.mesh.context.close();
}

/// Waits until no lane carries anything, and passes the fence of an abort.
fn quiet(shared: &Shared) {
    // Once is enough: a lane that enters a wait after this sees that it must stop.
    shared.cancel_waits();
    let mut state = shared.lock();
    while state.busy > 0 && !state.lost {
        state = shared.wait(state, None);
    }
    if state.lost {
        return;
    }
    state.quiet = true;
    let fence = state.aborted.clone();
    drop(state);
    if let Some(fence) = fence {
        fence.pass();
    }
}

/// Every open wave, and every later call, reports the fault that is on record.
fn fail_all(shared: &Shared, fault: &Fault) {
    let error = fault.error(shared.rank);
    let mut state = shared.lock();
    let open = state.clear();
    // What this rank's own caller aborted stays aborted.
    if state.aborted.is_none() {
        state.failed = Some(error.clone());
    }
    drop(state);
    for ticket in open {
        // At its deadline a wave is late, whoever else failed meanwhile.
        if matches!(ticket.poll(), Ok(false)) {
            ticket.fail(error.clone());
        }
    }
}

/// Watches the connections.
pub(crate) fn watch(shared: &Shared) {
    if let Some((peer, cause)) = shared.mesh.sentry.watch() {
        let fault = Fault { blamed: peer, ..Fault::own(shared.rank, cause) };
        shared.raise(Seen { fault, recorded: false });
    }
}

/// Waits for word of a failure of any rank.
pub(crate) fn listen(shared: &Arc<Shared>) {
    // A store that is gone tells nothing any more; deadlines and broken connections remain.
    if let Ok(Some(fault)) = shared.mesh.alarm.listen() {
        shared.raise(Seen { fault, recorded: true });
    }
}
