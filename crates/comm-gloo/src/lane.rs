//! The threads that carry waves.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::CommError;
use eplb_comm::host::{HostFence, panic_message};

use crate::alarm::Fault;
use crate::cells::Cells;
use crate::memory::Porter;
use crate::run::{Run, Trouble};
use crate::shared::{Seen, Shared};
use crate::ticket::{Direction, GlooTicket};

/// Shortest and longest pause between two looks at a fence that cannot wake a thread by itself.
const PAUSES: (Duration, Duration) = (Duration::from_micros(10), Duration::from_millis(1));

/// Longest time that an end waits for copies of a device that were begun; it is lost if they take longer.
pub(crate) const LAST_WAIT: Duration = Duration::from_secs(10);

/// Carries one direction of waves until the communicator ends. `number` is the lane's place in `shared.waits`.
pub(crate) fn run(
    shared: &Arc<Shared>,
    number: usize,
    direction: Direction,
    (mut cells, mut porter): (Cells, Box<dyn Porter>),
) {
    porter.begin();
    while let Some(ticket) = next(shared, direction) {
        let run = || carry(shared, number, direction, (&mut cells, &mut *porter), &ticket);
        let carried = catch_unwind(AssertUnwindSafe(run));
        if let Err(payload) = carried {
            let detail = panic_message(payload.as_ref());
            let what = format!("carrying ticket {}", ticket.number);
            ticket.fail(CommError::Panicked { rank: shared.rank, what, detail });
            shared.raise_own(format!("carrying ticket {} panicked", ticket.number));
        }
        // The run is gone, and with it its buffers and guards; what it began on a device may not be.
        if !settle(shared, &mut *porter) {
            // What the device may still be using is never freed.
            std::mem::forget(cells);
            return;
        }
        cells.reset();
        shared.lock().busy -= 1;
        shared.changed.notify_all();
    }
}

/// Waits for what a run left under way on a device: while the communicator lives as long as it takes, which is not for long. False: it is being
/// dropped, and the device does not come to an end.
fn settle(shared: &Shared, porter: &mut dyn Porter) -> bool {
    let dropped: Cell<Option<Instant>> = Cell::new(None);
    let give_up = || {
        if dropped.get().is_none() && shared.lock().shutdown {
            dropped.set(Some(Instant::now()));
        }
        dropped.get().is_some_and(|since| since.elapsed() > LAST_WAIT)
    };
    let settled = porter.settle(&give_up);
    if !settled {
        shared.lock().lost = true;
        shared.changed.notify_all();
    }
    settled
}

/// The next wave in order of submission; `None` at the end.
fn next(shared: &Shared, direction: Direction) -> Option<Arc<GlooTicket>> {
    let mut state = shared.lock();
    loop {
        if state.shutdown {
            return None;
        }
        if state.fault.is_none()
            && let Some(ticket) = state.take(direction)
        {
            return Some(ticket);
        }
        state = shared.wait(state, None);
    }
}

fn carry(
    shared: &Arc<Shared>,
    number: usize,
    direction: Direction,
    (cells, porter): (&mut Cells, &mut dyn Porter),
    ticket: &Arc<GlooTicket>,
) {
    let result = wait_for_gate(shared, ticket).and_then(|open| match open {
        true => Run::new(shared, ticket, number, direction, (cells, porter)).go(),
        false => Ok(()),
    });
    let Err(trouble) = result else { return };
    match trouble {
        // Whoever asked for it has said so.
        Trouble::Stopped => {}
        Trouble::Own(error) => {
            let cause = error.to_string();
            ticket.fail(error);
            shared.raise_own(cause);
        }
        Trouble::Link { peer, cause } => {
            let fault = Fault { blamed: peer, ..Fault::own(shared.rank, cause) };
            shared.raise(Seen { fault, recorded: false });
        }
    }
}

/// Waits until the wave may start. False: it was over before.
fn wait_for_gate(shared: &Arc<Shared>, ticket: &Arc<GlooTicket>) -> Result<bool, Trouble> {
    if ticket.after.poll().map_err(Trouble::Own)? {
        return Ok(ticket.may_go_on());
    }
    let host = ticket.after.state().as_any().downcast_ref::<HostFence>();
    if let Some(host) = host {
        // Weak: a fence that is never settled must not keep the communicator.
        let shared = Arc::downgrade(shared);
        host.on_settled(move |_| {
            if let Some(shared) = shared.upgrade() {
                shared.wake();
            }
        });
    }
    let mut pause = PAUSES.0;
    loop {
        // Polled without the lock: fences are foreign code.
        if ticket.after.poll().map_err(Trouble::Own)? {
            return Ok(ticket.may_go_on());
        }
        if shared.is_stopping() || !ticket.may_go_on() {
            return Ok(false);
        }
        let state = shared.lock();
        if shared.is_stopping() || host.is_some_and(HostFence::is_settled) {
            continue;
        }
        let look_again = match host {
            Some(_) => ticket.deadline,
            None => ticket.deadline.min(Instant::now() + pause),
        };
        drop(shared.wait(state, Some(look_again)));
        pause = (pause * 2).min(PAUSES.1);
    }
}
