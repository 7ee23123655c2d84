//! What the caller's end of a communicator shares with its progress thread.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use eplb_comm::host::HostFence;
use eplb_comm::timeline::{Moment, Timeline, tell};
use eplb_comm::{Carried, CommError, Fence, FenceState, Ticket as Number};
use eplb_core::{RankId, Transfer};

use crate::lane::{Lane, Step};
use crate::pace::Pace;
use crate::pulls::Pulls;
use crate::reading::Reading;
use crate::sync::{Condvar, Mutex, MutexGuard, sleep, yield_now};
use crate::turns::Candidate;
use crate::words::Signals;

/// How long the thread looks without a pause after something has happened; then it pauses between looks.
const HOT: Duration = Duration::from_millis(1);
/// The pause between looks. On Linux it is kept to the microsecond, see [`be_punctual`].
const PAUSE: Duration = Duration::from_micros(5);

/// The longest pause of one that keeps a limit on its speed.
const LONGEST_PAUSE: Duration = Duration::from_micros(200);

/// A wave as the caller knows it.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) fence: Arc<HostFence>,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Instant,
}

/// A wave that is under way.
#[derive(Debug)]
struct Open {
    ticket: Arc<Ticket>,
    pulls: Vec<Transfer>,
    /// What it has to run after, until that is over.
    after: Option<Fence>,
    /// Queues that its pulls are in.
    queues: u64,
    /// Behind its pulls, once they are enqueued.
    fences: Option<Vec<Fence>>,
}

/// All that the progress thread works on.
#[derive(Debug)]
struct Work {
    lane: Lane,
    open: BTreeMap<u64, Open>,
    carried: Carried,
    /// Why no wave is taken any more.
    ended: Option<CommError>,
    /// Behind everything that was enqueued before the end.
    last: Vec<Fence>,
    leave: bool,
    pace: Pace,
    /// Where ranks take turns at sources.
    reading: Option<Reading>,
    timeline: Option<Arc<Timeline>>,
}

/// Pulls, as (wave, number), that could be enqueued.
#[derive(Debug, Default)]
struct Could {
    /// Copies inside the rank, which read from nobody.
    local: Vec<(u64, usize)>,
    remote: Vec<Candidate>,
}

/// How fast a rank pulls, and in which order.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// Most bytes per second, in 10^9.
    pub(crate) max_gbps: Option<f64>,
    /// Ranks, where they take turns.
    pub(crate) turns: Option<usize>,
}

/// Both ends of a communicator.
///
/// Ordering: all of `work` is used under its lock. Results come back through the fences of tickets.
#[derive(Debug)]
pub(crate) struct Shared {
    rank: RankId,
    engine: Box<dyn Pulls>,
    words: Box<dyn Signals>,
    /// What the pace counts from.
    start: Instant,
    work: Mutex<Work>,
    changed: Condvar,
    /// Passed when the rank has given up and nothing that it enqueued can touch memory any more.
    pub(crate) quiet: Arc<HostFence>,
}

impl Shared {
    pub(crate) fn new(
        rank: RankId,
        engine: Box<dyn Pulls>,
        words: Box<dyn Signals>,
        manner: Manner,
    ) -> Arc<Self> {
        let work = Work {
            lane: Lane::new(),
            open: BTreeMap::new(),
            carried: Carried::default(),
            ended: None,
            last: Vec::new(),
            leave: false,
            pace: Pace::new(manner.max_gbps),
            reading: manner.turns.map(|ranks| Reading::new(rank.index(), ranks)),
            timeline: None,
        };
        let (work, changed, quiet) = (Mutex::new(work), Condvar::new(), HostFence::new());
        Arc::new(Self { rank, engine, words, start: Instant::now(), work, changed, quiet })
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn carried(&self) -> Carried {
        self.lock().carried
    }

    pub(crate) fn observe(&self, timeline: &Arc<Timeline>) {
        self.lock().timeline = Some(timeline.clone());
    }

    /// Hands a wave to the thread.
    pub(crate) fn submit(
        &self,
        pulls: Vec<Transfer>,
        after: Fence,
        deadline: Instant,
    ) -> Result<(u64, Arc<Ticket>), CommError> {
        let pulls = self.engine.arrange(pulls);
        let mut work = self.lock();
        if let Some(ended) = &work.ended {
            let cause = ended.to_string();
            return Err(CommError::Aborted { rank: self.rank, cause });
        }
        let number = work.lane.submit(pulls.iter().map(|pull| pull.source.index()));
        let ticket = Arc::new(Ticket { fence: HostFence::new(), submitted: Instant::now(), deadline });
        let open = Open { ticket: ticket.clone(), pulls, after: Some(after), queues: 0, fences: None };
        work.open.insert(number, open);
        drop(work);
        self.changed.notify_all();
        Ok((number, ticket))
    }

    /// Ends it: nothing more is enqueued, open waves fail.
    pub(crate) fn abort(&self, cause: &str) {
        let cause = CommError::Aborted { rank: self.rank, cause: cause.into() };
        self.end(&mut self.lock(), cause);
        self.changed.notify_all();
    }

    /// Asks the thread to end once the rank is quiet.
    pub(crate) fn leave(&self) {
        self.lock().leave = true;
        self.changed.notify_all();
    }

    fn end(&self, work: &mut Work, cause: CommError) {
        if work.ended.is_some() {
            return;
        }
        work.lane.stop();
        self.words.give_up();
        self.words.read(None);
        for (_, open) in std::mem::take(&mut work.open) {
            open.ticket.fence.fail(cause.clone());
        }
        // A device that takes no event is lost, and runs nothing either.
        work.last = self.engine.fences(u64::MAX).unwrap_or_default();
        work.ended = Some(cause);
    }

    /// The progress thread's life: it sleeps while there is nothing under way.
    pub(crate) fn serve(&self) {
        be_punctual();
        self.engine.begin();
        let mut moved = Instant::now();
        let mut work = self.lock();
        loop {
            if self.attend(&mut work) {
                moved = Instant::now();
            }
            if work.ended.is_some() && self.quiet.poll().is_ok_and(|quiet| quiet) && work.leave {
                return;
            }
            let settled = work.ended.is_some() && self.quiet.poll().is_ok_and(|quiet| quiet);
            if settled || (work.ended.is_none() && work.open.is_empty()) {
                work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
                moved = Instant::now();
                continue;
            }
            let held_back = work.pace.wait(self.start.elapsed());
            drop(work);
            if !held_back.is_zero() {
                // Nothing can go before then; what has ended is seen in time.
                sleep(held_back.clamp(PAUSE, LONGEST_PAUSE))
            } else if moved.elapsed() < HOT {
                yield_now()
            } else {
                sleep(PAUSE)
            }
            work = self.lock();
        }
    }

    /// Looks at everything once, and goes on as far as possible; whether anything happened.
    fn attend(&self, work: &mut Work) -> bool {
        if work.ended.is_some() {
            // A fence that fails belongs to a device that runs nothing any more.
            if work.last.iter().all(|fence| fence.poll().unwrap_or(true)) {
                work.last.clear();
                return self.quiet.pass();
            }
            return false;
        }
        match self.go_on(work) {
            Ok(moved) => moved,
            Err(error) => {
                self.end(work, error);
                true
            }
        }
    }

    fn go_on(&self, work: &mut Work) -> Result<bool, CommError> {
        let mut steps = Vec::new();
        for (&number, open) in &mut work.open {
            if let Some(after) = &open.after
                && after.poll()?
            {
                open.after = None;
                work.lane.open_gate(number);
            }
            if let Some(fences) = &mut open.fences {
                let mut failed = None;
                fences.retain(|fence| match fence.poll() {
                    Ok(passed) => !passed,
                    Err(error) => {
                        failed = Some(error);
                        true
                    }
                });
                if let Some(error) = failed {
                    return Err(error);
                }
                if fences.is_empty() {
                    open.fences = None;
                    work.lane.landed(number, &mut steps);
                }
            }
        }
        let could = self.could_go(work, &mut steps);
        // What may start here is said before a source is chosen: the others need that, and this rank can be held up in between.
        let moved = self.carry_out_all(work, &mut steps)?;
        let now = self.start.elapsed();
        let chosen = self.choose(work, could, now)?;
        let (open, pace) = (&work.open, &mut work.pace);
        let may = |wave: u64, pull: usize| {
            let chosen = chosen.as_ref().is_none_or(|chosen| chosen.contains(&(wave, pull)));
            let free = chosen && pace.wait(now).is_zero();
            // Copies inside the rank take nothing of a link.
            if let (true, Some(open)) = (free, open.get(&wave))
                && !open.pulls[pull].is_local()
            {
                pace.take(self.engine.bytes(&open.pulls[pull]), now);
            }
            free
        };
        work.lane.advance(|rank| self.words.ready(rank), may, &mut steps);
        if let Some(reading) = &mut work.reading {
            let pulls = steps.iter().rev();
            let of =
                |step: &Step| if let Step::Pull { wave, pull } = *step { Some((wave, pull)) } else { None };
            reading.settle(
                pulls.filter_map(of).find(|(wave, pull)| is_remote(&work.open, *wave, *pull)),
                &*self.words,
            );
        }
        Ok(self.carry_out_all(work, &mut steps)? || moved)
    }

    /// Where ranks take turns at sources, the pulls that could go now; `None` where all may. Other steps than pulls are due.
    fn could_go(&self, work: &mut Work, steps: &mut Vec<Step>) -> Option<Could> {
        work.reading.as_ref()?;
        let (open, mut could) = (&work.open, Could::default());
        let look = |wave: u64, pull: usize| {
            match open.get(&wave).map(|open| &open.pulls[pull]).filter(|pull| !pull.is_local()) {
                Some(transfer) => {
                    let (source, bytes) = (transfer.source.index(), self.engine.bytes(transfer));
                    could.remote.push(Candidate { wave, pull, source, bytes });
                }
                None => could.local.push((wave, pull)),
            }
            false
        };
        work.lane.advance(|rank| self.words.ready(rank), look, steps);
        Some(could)
    }

    /// Of the pulls that could go, those (wave, number) that may; `None`: all.
    fn choose(
        &self,
        work: &mut Work,
        could: Option<Could>,
        now: Duration,
    ) -> Result<Option<Vec<(u64, usize)>>, CommError> {
        let (Some(reading), Some(could)) = (&mut work.reading, could) else { return Ok(None) };
        reading.look(&*self.words, now)?;
        let mut may = could.local;
        if work.pace.wait(now).is_zero() {
            may.extend(reading.choose(&could.remote, &*self.words, now));
        }
        Ok(Some(may))
    }

    /// Whether there was a step.
    fn carry_out_all(&self, work: &mut Work, steps: &mut Vec<Step>) -> Result<bool, CommError> {
        let any = !steps.is_empty();
        for step in steps.drain(..) {
            self.carry_out(work, step)?;
        }
        Ok(any)
    }

    fn carry_out(&self, work: &mut Work, step: Step) -> Result<(), CommError> {
        match step {
            Step::Announce { waves, newest } => {
                self.words.announce(waves);
                tell(&work.timeline, || Moment::Announced(Number(newest)));
            }
            Step::Pull { wave, pull } => {
                if let Some(open) = work.open.get_mut(&wave) {
                    if open.queues == 0 {
                        tell(&work.timeline, || Moment::FirstEnqueued(Number(wave)));
                    }
                    let ends = work.reading.as_ref().is_some_and(|reading| reading.ends_with(wave, pull));
                    let pulled = self.engine.pull(&open.pulls[pull], ends)?;
                    open.queues |= 1 << pulled.queue;
                    if let (Some(reading), Some(behind)) = (&mut work.reading, pulled.behind) {
                        reading.enqueued(behind, self.start.elapsed());
                    }
                }
            }
            Step::Fence(wave) => {
                if let Some(open) = work.open.get_mut(&wave) {
                    open.fences = Some(self.engine.fences(open.queues)?);
                    tell(&work.timeline, || Moment::AllEnqueued(Number(wave)));
                }
            }
            Step::Done(wave) => {
                tell(&work.timeline, || Moment::Landed(Number(wave)));
                if let Some(open) = work.open.remove(&wave) {
                    for pull in &open.pulls {
                        let bytes = self.engine.bytes(pull);
                        work.carried.transfers += 1;
                        if pull.is_local() {
                            work.carried.local_bytes += bytes;
                        } else {
                            work.carried.link_bytes += bytes;
                        }
                    }
                    open.ticket.fence.pass();
                }
            }
            Step::Failed { wave, source } => {
                if let Some(open) = work.open.get(&wave) {
                    let cause = "it gave up before the wave could start there".into();
                    let peer = RankId::at(source);
                    open.ticket.fence.fail(CommError::Transfer { rank: self.rank, peer, cause });
                    work.open.remove(&wave);
                }
            }
        }
        Ok(())
    }
}

/// Whether a pull crosses a link.
fn is_remote(open: &BTreeMap<u64, Open>, wave: u64, pull: usize) -> bool {
    open.get(&wave).is_some_and(|open| !open.pulls[pull].is_local())
}

/// Lets this thread's pauses end when they should: the system adds 50 us to short ones otherwise.
fn be_punctual() {
    #[cfg(target_os = "linux")]
    {
        // A system that refuses wakes it later, no more.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1000));
    }
}
