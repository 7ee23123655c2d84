//! What the caller's end of a communicator shares with the lane that does the work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use eplb_comm::host::HostFence;
use eplb_comm::{Carried, CommError, FenceState, Timeline};

use crate::lane::{Lane, Leave, Pace, Wave};

/// How often the thread looks while something is under way.
const LOOK: Duration = Duration::from_micros(20);

/// How long the thread looks without pause after something has changed: what waits for a wave waits for this thread, and
/// waves take about as long.
const EAGER: Duration = Duration::from_micros(500);

/// How long the thread sleeps when there is nothing to do; it is woken by what comes.
const IDLE: Duration = Duration::from_millis(200);

/// Longest time that the thread waits for enqueued work when it is to leave; the device is lost if it does not end.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Both ends of a communicator.
///
/// Ordering: waves go to the lane through `inbox`, whose lock orders them; results come back through the fences of tickets
/// (release and acquire). The lane itself is used under its lock only, by whoever drives it.
#[derive(Debug)]
pub(crate) struct Shared {
    lane: Mutex<Lane>,
    inbox: Mutex<Inbox>,
    changed: Condvar,
    /// Passed when nothing of an aborted communicator can touch memory any more.
    pub(crate) quiet: Arc<HostFence>,
    pub(crate) counters: Arc<Counters>,
    /// Whether a caller that polls may launch: when there is no thread and no pump.
    inline: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waves: Vec<Wave>,
    /// Why the communicator ends, once it does.
    abort: Option<String>,
    /// Why the lane gave up by itself.
    pub(crate) broken: Option<CommError>,
    leave: bool,
}

/// What was carried.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) link_bytes: AtomicU64,
    pub(crate) local_bytes: AtomicU64,
    pub(crate) transfers: AtomicU64,
}

impl Counters {
    pub(crate) fn carried(&self) -> Carried {
        Carried {
            link_bytes: self.link_bytes.load(Ordering::Relaxed),
            local_bytes: self.local_bytes.load(Ordering::Relaxed),
            transfers: self.transfers.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    pub(crate) fn new(lane: Lane, counters: Arc<Counters>, inline: bool) -> Arc<Self> {
        Arc::new(Self {
            lane: Mutex::new(lane),
            inbox: Mutex::default(),
            changed: Condvar::new(),
            quiet: HostFence::new(),
            counters,
            inline,
        })
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a wave to the lane.
    pub(crate) fn push(&self, wave: Wave) {
        self.inbox().waves.push(wave);
        self.changed.notify_all();
    }

    /// Tells a recorder what happens from now on.
    pub(crate) fn observe(&self, timeline: &Arc<Timeline>) {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner).timeline = Some(timeline.clone());
    }

    pub(crate) fn pool_bytes(&self) -> usize {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner).pool_bytes()
    }

    /// Why no wave is taken any more.
    pub(crate) fn refusal(&self) -> Option<String> {
        let inbox = self.inbox();
        inbox.abort.clone().or_else(|| inbox.broken.as_ref().map(ToString::to_string))
    }

    /// Asks the lane to end; returns the first cause given.
    pub(crate) fn abort(&self, cause: &str) -> String {
        let cause = self.inbox().abort.get_or_insert_with(|| cause.into()).clone();
        self.changed.notify_all();
        cause
    }

    /// Asks the thread to end, once the lane is quiet.
    pub(crate) fn leave(&self) {
        self.inbox().leave = true;
        self.changed.notify_all();
    }

    /// Moves the lane on if nobody else is doing so; also whether a wave came, went on a stage or ended.
    fn drive(&self, leave: Leave) -> (Pace, bool) {
        match self.lane.try_lock() {
            Ok(lane) => self.drive_lane(lane, leave),
            Err(TryLockError::WouldBlock) => (Pace::Warm, false),
            Err(TryLockError::Poisoned(lane)) => self.drive_lane(lane.into_inner(), leave),
        }
    }

    /// Moves the lane on at a step, after whoever else is doing so: what is to be launched before this step must be.
    pub(crate) fn drive_step(&self, step: u64) -> Pace {
        let lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        self.drive_lane(lane, Leave::Step(step)).0
    }

    fn drive_lane(&self, mut lane: MutexGuard<'_, Lane>, leave: Leave) -> (Pace, bool) {
        let (waves, abort) = {
            let mut inbox = self.inbox();
            (std::mem::take(&mut inbox.waves), inbox.abort.clone())
        };
        lane.take(waves);
        if let Some(cause) = abort {
            lane.end(&cause);
        }
        let before = lane.changes();
        let pace = lane.advance(leave);
        if let Some(broken) = lane.broken() {
            self.inbox().broken.get_or_insert_with(|| broken.clone());
        }
        if lane.is_quiet() {
            self.quiet.pass();
        }
        (pace, lane.changes() != before)
    }

    /// Moves the lane on for a caller that only looks.
    pub(crate) fn attend(&self) {
        self.drive(if self.inline { Leave::Now } else { Leave::Nothing });
    }

    /// What the communicator's own thread does.
    pub(crate) fn serve(&self) {
        let context = self.lane.lock().unwrap_or_else(PoisonError::into_inner).context().clone();
        // NCCL works on the device that is current.
        let _entered = context.enter();
        // A driver that refuses makes captures of the server fail while waves move, no more.
        let _ = eplb_cuda::keep_out_of_captures();
        let mut leaving: Option<Instant> = None;
        let mut changed = Instant::now();
        loop {
            let (pace, moved) = self.drive(Leave::Now);
            if moved {
                changed = Instant::now();
            }
            let inbox = self.inbox();
            if inbox.leave {
                let since = *leaving.get_or_insert_with(Instant::now);
                if matches!(self.quiet.poll(), Ok(true)) || since.elapsed() > LAST_WAIT {
                    return;
                }
            }
            match pace {
                Pace::Cold if inbox.waves.is_empty() && !inbox.leave && !self.must_end(&inbox) => {
                    drop(self.changed.wait_timeout(inbox, IDLE).unwrap_or_else(PoisonError::into_inner));
                }
                Pace::Hot => {
                    drop(inbox);
                    std::thread::yield_now();
                }
                Pace::Cold | Pace::Warm if changed.elapsed() < EAGER => {
                    drop(inbox);
                    std::thread::yield_now();
                }
                Pace::Cold | Pace::Warm => {
                    drop(inbox);
                    std::thread::sleep(LOOK);
                }
            }
        }
    }

    /// Whether an abort was asked for that the lane has not carried out.
    fn must_end(&self, inbox: &Inbox) -> bool {
        inbox.abort.is_some() && !matches!(self.quiet.poll(), Ok(true))
    }
}
