//! The state machine of one rank.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::RankId;

use super::peers::Peers;
use super::words::{Action, Cause, Deadlines, Note, Outcome, Phase, Record, Verdict};
use crate::plan::ExchangePlan;

mod ending;
mod events;
mod moving;
mod phases;

use moving::Bytes;

/// Steps of the host, as far as the device has got with them.
#[derive(Debug)]
struct Steps {
    /// Last step begun.
    begun: Option<u64>,
    /// Steps begun whose work the device has not finished, ascending.
    open: VecDeque<u64>,
}

impl Steps {
    /// The least id that the next step can have.
    fn next(&self) -> u64 {
        self.begun.map_or(0, |id| id + 1)
    }

    /// Whether every step before `step` is over on this rank: none can begin any more, and none is open.
    fn over_before(&self, step: u64) -> bool {
        self.next() >= step && self.open.front().is_none_or(|&open| open >= step)
    }
}

/// Time between two looks at the clock counts for at most this much: a rank that was itself stopped for a minute must not
/// find that everybody else has been late for a minute.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// Time in which this rank was looking.
#[derive(Debug)]
struct Clock {
    looked: Instant,
    observed: Duration,
}

impl Clock {
    fn look(&mut self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.looked).min(LONGEST_GAP);
        self.looked = self.looked.max(now);
        self.observed += gap;
        self.observed
    }
}

/// A commit that failed on the device of a rank.
#[derive(Debug, Clone)]
struct Break {
    rank: RankId,
    wave: usize,
    detail: String,
}

/// Whether maps may be switched right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boundary {
    /// No: a step may be under way.
    Closed,
    /// The step with this id is about to run.
    Step(u64),
    /// The rank runs no step; the next will see the maps.
    Idle,
}

/// One rank's part in running an [`ExchangePlan`]: events in, [`Action`]s out.
///
/// The driver calls the methods named after events, in the order in which the events happen on this rank, and after each
/// call carries out what [`Exchange::take_actions`] returns, in order, before the next call. A step boundary is
/// [`Exchange::begin_step`], the actions it leads to, and [`Exchange::end_boundary`]; only then may the step run.
///
/// Time is given as `now`; the machine has no clock. See the [module](super) for what makes it safe.
#[derive(Debug)]
pub struct Exchange {
    plan: Arc<ExchangePlan>,
    me: RankId,
    peers: Peers,
    deadlines: Deadlines,
    margin: u64,
    steps: Steps,
    wave: usize,
    phase: Phase,
    clock: Clock,
    /// Observed time at which the phase was entered.
    since: Duration,
    /// Observed time at which signs of life were last looked at.
    signs_at: Duration,
    record: Record,
    boundary: Boundary,
    /// Bytes of the wave under way, and of the next one, which goes ahead.
    bytes: Bytes,
    ahead: Bytes,
    /// First step that runs with the maps of the last commit.
    switched: u64,
    deciding: bool,
    /// Whether this rank has said that it is prepared for the wave: from then on the wave may be committed.
    prepared: bool,
    /// The step that this rank has acknowledged for the wave.
    agreed: Option<u64>,
    /// Whether this rank reached that step without knowing the decision, and tried to abort.
    reached: bool,
    /// Whether the store is gone: nothing can be learnt or decided any more.
    lost: bool,
    /// Why this rank cannot go on; it still obeys what is decided.
    doomed: Option<Cause>,
    /// The first commit known to have failed on a device, here or elsewhere.
    broken: Option<Break>,
    /// Whether a step was refused for it: this rank is at rest from then on.
    at_rest: bool,
    actions: Vec<Action>,
    outcome: Option<Outcome>,
}

impl Exchange {
    /// Starts a plan on rank `me` of `members` (all live ranks, `me` included). `margin` is the number of steps between the
    /// largest step begun anywhere and the step proposed for a commit: 2 and the steps that a round trip takes.
    /// `last_step` is the last step that this rank has begun.
    pub fn new(
        plan: Arc<ExchangePlan>,
        me: RankId,
        members: &[RankId],
        deadlines: Deadlines,
        margin: u64,
        last_step: Option<u64>,
        now: Instant,
    ) -> Self {
        let hash = plan.hash64();
        let mut exchange = Self {
            plan,
            me,
            peers: Peers::new(members),
            deadlines,
            margin: margin.max(1),
            steps: Steps { begun: last_step, open: VecDeque::from_iter(last_step) },
            wave: 0,
            phase: Phase::Agreeing,
            clock: Clock { looked: now, observed: Duration::ZERO },
            since: Duration::ZERO,
            signs_at: Duration::ZERO,
            record: Record::OPEN,
            boundary: Boundary::Closed,
            bytes: Bytes::default(),
            ahead: Bytes::default(),
            switched: 0,
            deciding: false,
            prepared: false,
            agreed: None,
            reached: false,
            lost: false,
            doomed: None,
            broken: None,
            at_rest: false,
            actions: Vec::new(),
            outcome: None,
        };
        let next_step = exchange.steps.next();
        exchange.say(Note::Plan { hash, next_step });
        exchange.advance();
        exchange
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<ExchangePlan> {
        &self.plan
    }

    /// Where the exchange is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Number of the wave that is under way.
    pub fn wave(&self) -> usize {
        self.wave
    }

    /// The step that this rank has acknowledged for the commit of the wave under way.
    pub fn agreed_step(&self) -> Option<u64> {
        self.agreed
    }

    /// The step at which this rank has to switch its maps with the others, or to know that nobody does, and neither has happened yet:
    /// whoever drops the exchange now must not run it.
    pub fn bound_to(&self) -> Option<u64> {
        self.agreed.filter(|_| matches!(self.phase, Phase::Armed | Phase::Committing | Phase::Failing))
    }

    /// Its deadlines.
    pub fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// What the driver has to do now, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    fn say(&mut self, note: Note) {
        self.peers.hear(self.me, &note);
        self.actions.push(Action::Publish(note));
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = self.clock.observed;
    }

    /// Asks for the verdict on the wave under way, unless an answer is still out that can be waited for as well.
    fn decide(&mut self, verdict: Verdict, hold: bool) {
        let open = !self.lost && !self.record.closed && self.record.decided == self.wave;
        if open && (!self.deciding || hold) {
            self.deciding = true;
            let to = Record { decided: self.wave + 1, verdict, closed: false };
            self.actions.push(Action::Decide { from: self.record, to, hold });
        }
    }

    /// Goes on as far as what is known allows.
    fn advance(&mut self) {
        loop {
            let before = (self.phase, self.wave);
            match self.phase {
                Phase::Agreeing => self.agree(),
                Phase::Draining => self.drain(),
                Phase::Clearing => self.clear(),
                Phase::Prepared => self.propose(),
                Phase::Armed => self.collect(),
                Phase::Committing => self.commit(),
                Phase::Settling => self.settle(),
                Phase::Stopping => {
                    let silent = self.peers.missing(self.wave, |h| h.stopped.is_none());
                    if silent.is_empty() || (self.lost && !silent.contains(&self.me)) {
                        self.finish_abort(silent);
                    }
                }
                Phase::Failing => self.decide(Verdict::Abort, false),
                Phase::Moving => self.arrive(),
                Phase::Over => {}
            }
            self.go_ahead();
            if before == (self.phase, self.wave) {
                return;
            }
        }
    }
}
