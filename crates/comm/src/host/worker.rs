//! The thread behind a host stream.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::copy::copy;
use super::fence::HostFence;
use super::memory::HostMemory;
use super::stream::CommitCopy;
use crate::error::CommError;
use crate::fence::Fence;

/// Longest pause between two looks at a fence that cannot wake the thread by itself.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

type HostWork = Box<dyn FnOnce(&Arc<HostMemory>) -> Result<(), CommError> + Send>;

/// What an operation does.
pub(super) enum Work {
    Commit(Vec<CommitCopy>),
    Wait(Fence),
    Run(HostWork),
    Nothing,
}

/// One entry of a stream.
pub(super) struct Op {
    pub(super) work: Work,
    /// Passed when the operation and all before it are done.
    pub(super) done: Arc<HostFence>,
}

/// Operations in the order enqueued.
#[derive(Default)]
pub(super) struct Queue {
    ops: Mutex<VecDeque<Op>>,
    /// Signalled at a new operation, at the end of the stream, and when a fence that is waited for is settled.
    changed: Condvar,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.lock().len()).finish()
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Op>> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, op: Op) {
        self.lock().push_back(op);
        self.changed.notify_all();
    }

    /// Wakes the worker to look at its conditions again. Takes the lock, so that a worker between its look and its
    /// wait is not missed.
    pub(super) fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// The next operation; `None` once the stream is stopped.
    fn next(&self, stopped: &AtomicBool) -> Option<Op> {
        let mut ops = self.lock();
        loop {
            if stopped.load(Ordering::Acquire) {
                return None;
            }
            if let Some(op) = ops.pop_front() {
                return Some(op);
            }
            ops = self.changed.wait(ops).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until `pause` is over or something changes.
    fn pause(&self, stopped: &AtomicBool, settled: impl Fn() -> bool, pause: Duration) {
        let ops = self.lock();
        if !stopped.load(Ordering::Acquire) && !settled() {
            drop(self.changed.wait_timeout(ops, pause).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// The words of a panic.
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").into()
}

/// Runs operations until the stream is stopped, then fails what is left.
pub(super) fn run(memory: &Arc<HostMemory>, queue: &Arc<Queue>, stopped: &AtomicBool, delay: Duration) {
    let mut broken: Option<CommError> = None;
    let gone = || CommError::Aborted { rank: memory.rank(), cause: "its stream was dropped".into() };
    while let Some(op) = queue.next(stopped) {
        let Op { work, done } = op;
        let result = match &broken {
            Some(cause) => Err(cause.clone()),
            None => sleep(queue, stopped, delay).and_then(|()| execute(memory, queue, stopped, work)),
        };
        match result {
            Ok(true) => done.pass(),
            Ok(false) => done.fail(gone()),
            Err(cause) => {
                broken = Some(cause.clone());
                done.fail(cause)
            }
        };
    }
    let cause = broken.unwrap_or_else(gone);
    // Wakers run outside the lock: they may enqueue elsewhere.
    let left = std::mem::take(&mut *queue.lock());
    left.into_iter().for_each(|op| {
        op.done.fail(cause.clone());
    });
}

fn sleep(queue: &Queue, stopped: &AtomicBool, delay: Duration) -> Result<(), CommError> {
    let end = Instant::now() + delay;
    while !stopped.load(Ordering::Acquire) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        queue.pause(stopped, || false, left);
    }
    Ok(())
}

/// Runs one operation. `Ok(false)`: the stream was stopped first.
fn execute(
    memory: &Arc<HostMemory>,
    queue: &Arc<Queue>,
    stopped: &AtomicBool,
    work: Work,
) -> Result<bool, CommError> {
    if stopped.load(Ordering::Acquire) {
        return Ok(false);
    }
    match work {
        Work::Nothing => Ok(true),
        Work::Wait(fence) => wait(queue, stopped, &fence),
        Work::Commit(copies) => {
            for one in copies {
                let source = memory.read(one.from)?;
                let mut dest = memory.write(one.to)?;
                copy(&source, &mut dest, one.expert)?;
            }
            Ok(true)
        }
        Work::Run(work) => match catch_unwind(AssertUnwindSafe(|| work(memory))) {
            Ok(result) => result.map(|()| true),
            Err(payload) => Err(CommError::Panicked {
                rank: memory.rank(),
                what: "work on its stream".into(),
                detail: panic_message(payload.as_ref()),
            }),
        },
    }
}

/// Waits for a fence: woken by a host fence, else by looking again and again with growing pauses.
fn wait(queue: &Arc<Queue>, stopped: &AtomicBool, fence: &Fence) -> Result<bool, CommError> {
    let host = fence.state().as_any().downcast_ref::<HostFence>();
    if fence.poll()? {
        return Ok(true);
    }
    if let Some(host) = host {
        let queue = Arc::downgrade(queue);
        host.on_settled(move |_| {
            if let Some(queue) = queue.upgrade() {
                queue.wake();
            }
        });
    }
    let settled = || host.is_some_and(HostFence::is_settled);
    let mut pause = Duration::from_micros(10);
    while !stopped.load(Ordering::Acquire) {
        if fence.poll()? {
            return Ok(true);
        }
        queue.pause(stopped, settled, pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(false)
}
