//! The state machine of one rank.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::RankId;

use super::peers::Peers;
use super::words::{Action, Cause, Deadlines, Note, Outcome, Phase, Record, Verdict};
use crate::plan::{ExchangePlan, Part};

mod ending;
mod moving;

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

    /// The host is about to run step `id`; ids rise strictly, gaps are allowed. Until [`Exchange::end_boundary`] maps may
    /// be switched, and the step sees them.
    pub fn begin_step(&mut self, id: u64, now: Instant) {
        self.clock.look(now);
        self.steps.begun = Some(self.steps.begun.map_or(id, |last| last.max(id)));
        self.steps.open.push_back(id);
        self.boundary = Boundary::Step(id);
        if self.awaits_decision_on(id) {
            // The step has come and the decision has not: whoever is first at the record decides.
            self.reached = true;
            self.decide(Verdict::Abort, true);
        }
        self.advance();
    }

    /// The rank runs no step at present; maps may be switched until [`Exchange::end_boundary`].
    pub fn tick(&mut self, now: Instant) {
        self.clock.look(now);
        self.boundary = Boundary::Idle;
        self.advance();
    }

    /// Ends the boundary opened by [`Exchange::begin_step`] or [`Exchange::tick`]. Returns whether the step may run: not if
    /// the agreed step has come and the decision is still unknown, because the record could not be reached. Then the
    /// exchange is over ([`Outcome::Undecided`]): it is not guessed later what is not known now. Nor if a commit is known to
    /// have failed on some rank's device ([`Outcome::Broken`]).
    pub fn end_boundary(&mut self) -> bool {
        if self.broken.is_some() && matches!(self.boundary, Boundary::Step(_)) {
            self.at_rest = true;
        }
        // A rank that is at rest may switch maps at any time.
        self.boundary = if self.at_rest { Boundary::Idle } else { Boundary::Closed };
        if self.steps.begun.is_some_and(|begun| self.awaits_decision_on(begun)) {
            let detail = format!("it did not answer within {:?}", self.deadlines.commit_hold);
            self.leave_undecided(detail);
        }
        let undecided = matches!(&self.outcome, Some(Outcome::Undecided { step: Some(step), .. }) if self.steps.next() > *step);
        !undecided && self.broken.is_none()
    }

    /// Whether a step must not run before it is known what became of the wave: this rank has acknowledged an earlier one
    /// or this for the commit, which others may have carried out, whatever has happened to this rank since.
    fn awaits_decision_on(&self, step: u64) -> bool {
        matches!(self.phase, Phase::Armed | Phase::Failing)
            && self.agreed.is_some_and(|agreed| step >= agreed)
    }

    /// The device has finished every step up to `id`.
    pub fn finish_step(&mut self, id: u64, now: Instant) {
        self.clock.look(now);
        while self.steps.open.front().is_some_and(|&open| open <= id) {
            self.steps.open.pop_front();
        }
        self.advance();
    }

    /// This rank's share in a submission is done: its bytes are in, its reads of others are over.
    pub fn transfers_done(&mut self, wave: usize, part: Part, now: Instant) {
        self.clock.look(now);
        self.land(wave, part);
        self.advance();
    }

    /// This rank's share in a submission failed.
    pub fn transfers_failed(&mut self, detail: String, now: Instant) {
        self.clock.look(now);
        self.fail(Cause::Transfer { rank: self.me, wave: self.wave, detail });
        self.advance();
    }

    /// The commit of the wave is complete on the device.
    pub fn commit_done(&mut self, now: Instant) {
        self.clock.look(now);
        if self.phase == Phase::Settling && !self.is_broken_here() {
            self.say(Note::Committed { wave: self.wave, first_step: self.switched });
        }
        self.advance();
    }

    /// The commit of the wave failed on the device. The wave is decided, so it stays committed on the other ranks; they are
    /// told, and nobody runs a step with what this rank's slots may hold.
    pub fn commit_failed(&mut self, detail: String, now: Instant) {
        self.clock.look(now);
        if self.phase == Phase::Settling && !self.is_broken_here() {
            self.say(Note::Broken { wave: self.wave, detail: detail.clone() });
            self.break_off(Break { rank: self.me, wave: self.wave, detail });
        }
        self.advance();
    }

    /// The rank and the wave of the first commit that is known here to have failed on a device.
    pub fn broken(&self) -> Option<(RankId, usize)> {
        self.broken.as_ref().map(|broken| (broken.rank, broken.wave))
    }

    /// After [`Action::Halt`]: nothing of the wave can touch this rank's memory any more.
    pub fn halted(&mut self, now: Instant) {
        self.clock.look(now);
        if self.phase == Phase::Stopping {
            self.say(Note::Stopped { wave: self.wave, touched: self.touched() });
        }
        self.advance();
    }

    /// Signs of life of all members were looked at; `alive` showed a new one since the last look. Silence counts only
    /// while this rank looks.
    pub fn observe(&mut self, alive: impl IntoIterator<Item = RankId>, now: Instant) {
        let observed = self.clock.look(now);
        self.peers.look(observed - self.signs_at);
        self.signs_at = observed;
        for rank in alive {
            self.peers.see_alive(rank);
        }
    }

    /// A note of another rank came.
    pub fn hear(&mut self, from: RankId, note: &Note, now: Instant) {
        if !self.peers.is_member(from) {
            return;
        }
        self.clock.look(now);
        self.peers.see_alive(from);
        self.peers.hear(from, note);
        if let Note::Broken { wave, detail } = note {
            self.break_off(Break { rank: from, wave: *wave, detail: detail.clone() });
        }
        match note {
            Note::Failed { cause } => self.fail(Cause::PeerFailed { rank: from, detail: cause.clone() }),
            Note::TooLate { rank, wave } => self.fail(Cause::TooLate { rank: *rank, wave: *wave }),
            _ => {}
        }
        self.advance();
    }

    /// The answer to [`Action::Decide`]: what the record says now.
    pub fn decided(&mut self, record: Record, now: Instant) {
        self.deciding = false;
        self.learn(record, now);
    }

    /// What the record was seen to say.
    pub fn learn(&mut self, record: Record, now: Instant) {
        self.clock.look(now);
        if record.decided > self.record.decided || (record.closed && !self.record.closed) {
            self.deciding = false;
            self.record = record;
            self.obey();
        }
        self.advance();
    }

    /// The caller wants the exchange to stop at the next possible point.
    pub fn cancel(&mut self, why: &str, now: Instant) {
        self.clock.look(now);
        self.fail(Cause::Cancelled(why.into()));
        self.advance();
    }

    /// Looks at the clock. Only what needs no traffic has a deadline here: a group that serves nothing waits.
    pub fn check_time(&mut self, now: Instant) {
        let waited = self.clock.look(now).saturating_sub(self.since);
        let late = match self.phase {
            Phase::Agreeing if waited > self.deadlines.answer => Some(self.peers.without_hash()),
            Phase::Moving if waited > self.deadlines.transfer => Some(vec![self.me]),
            Phase::Armed if waited > self.deadlines.answer => {
                Some(self.peers.missing(self.wave, |h| !h.acknowledged))
            }
            Phase::Stopping => {
                let silent = self.peers.missing(self.wave, |h| h.stopped.is_none());
                // Nobody waits for the dead to say that they have stopped.
                let dead = |&rank: &RankId| self.peers.silence(rank) > self.deadlines.peer;
                if waited > self.deadlines.answer || (!silent.contains(&self.me) && silent.iter().all(dead)) {
                    self.finish_abort(silent);
                }
                None
            }
            Phase::Settling if waited > self.deadlines.settle && !self.has_settled() => {
                self.commit_failed(format!("it was not complete within {waited:?}"), now);
                None
            }
            // The store has the last word, and has not spoken.
            Phase::Failing if waited > self.deadlines.answer => {
                self.store_lost(format!("it did not say within {waited:?} what was decided"), now);
                None
            }
            _ => None,
        };
        if let Some(waiting_for) = late {
            let (wave, phase) = (self.wave, self.phase);
            self.fail(Cause::Timeout { wave, phase, waiting_for, waited });
        }
        if !matches!(self.phase, Phase::Stopping | Phase::Over)
            && let Some((rank, silence)) = self.peers.silent(self.deadlines.peer, self.me)
        {
            let (wave, phase) = (self.wave, self.phase);
            self.fail(Cause::PeerSilent { rank, wave, phase, silence });
        }
        self.advance();
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

    fn agree(&mut self) {
        let ours = self.plan.hash64();
        let other = self.peers.hashes().find(|&(_, hash)| hash != ours);
        if let Some((rank, theirs)) = other {
            self.fail(Cause::PlanMismatch { rank, theirs, ours });
        } else if self.peers.without_hash().is_empty() {
            self.start_wave();
        }
    }

    fn start_wave(&mut self) {
        self.peers.forget_before(self.wave.saturating_sub(1));
        self.bytes = std::mem::take(&mut self.ahead);
        self.prepared = false;
        (self.agreed, self.reached) = (None, false);
        let over = self.wave == self.plan.waves().len();
        if !over && (self.doomed.is_some() || self.record.closed || self.record.decided > self.wave) {
            self.give_up();
            return;
        }
        match self.plan.waves().get(self.wave) {
            // Every wave is decided: there is nothing left to abort, whatever befell this rank or another.
            None => match self.doomed.take() {
                None => {
                    self.outcome = Some(Outcome::Completed);
                    self.enter(Phase::Over);
                }
                Some(cause) => {
                    let unconfirmed =
                        self.peers.missing(self.wave.saturating_sub(1), |h| h.committed.is_none());
                    self.doomed = Some(cause);
                    self.finish_abort(unconfirmed);
                }
            },
            Some(_) => self.enter(Phase::Draining),
        }
    }

    fn propose(&mut self) {
        let wave = self.wave;
        let leads = self.peers.leader() == self.me;
        if let Some(step) = self.peers.proposed(wave) {
            if self.steps.begun.is_none_or(|last| last < step) {
                self.agreed = Some(step);
                self.say(Note::Acknowledged { wave });
                self.enter(Phase::Armed);
            } else {
                self.fail(Cause::TooLate { rank: self.me, wave });
            }
        } else if leads && self.peers.missing(wave, |h| h.prepared.is_none()).is_empty() {
            if self.plan.waves()[wave].needs_agreed_step() {
                let heard = self.peers.of_wave(wave).filter_map(|(_, h)| h.prepared.flatten()).max();
                let step = heard.max(self.steps.begun).map_or(0, |last| last + 1) + self.margin;
                self.say(Note::Proposed { wave, step });
                self.propose();
            } else {
                self.decide(Verdict::Commit { step: None }, false);
            }
        }
    }

    fn collect(&mut self) {
        let (wave, leads) = (self.wave, self.peers.leader() == self.me);
        if leads && self.peers.missing(wave, |h| !h.acknowledged).is_empty() {
            self.decide(Verdict::Commit { step: self.agreed }, false);
        }
    }

    /// Acts on a record that decides the wave under way, or a later one: then this one was committed, at the step that
    /// this rank acknowledged, because an abort would have been the last word.
    fn obey(&mut self) {
        if matches!(self.phase, Phase::Stopping | Phase::Over) {
            return;
        }
        if self.record.decided <= self.wave {
            if self.record.closed && !matches!(self.phase, Phase::Committing | Phase::Settling) {
                let (wave, phase) = (self.wave, self.phase);
                self.doomed.get_or_insert(Cause::EpochClosed { wave, phase });
                self.stop();
            }
            return;
        }
        let verdict = if self.record.decided == self.wave + 1 {
            self.record.verdict
        } else {
            Verdict::Commit { step: self.agreed }
        };
        match verdict {
            Verdict::Commit { step }
                if matches!(self.phase, Phase::Prepared | Phase::Armed | Phase::Failing) =>
            {
                self.agreed = step;
                self.enter(Phase::Committing);
            }
            Verdict::Commit { .. } => {}
            Verdict::Abort => self.stop(),
        }
    }

    fn commit(&mut self) {
        let reached = match (self.agreed, self.boundary) {
            (None, _) => true,
            (Some(step), Boundary::Step(id)) => id >= step,
            // No step of this rank comes any more.
            (Some(_), Boundary::Idle) => self.broken.is_some(),
            (Some(_), _) => false,
        };
        if let Some(first_step) = self.first_step_at_boundary()
            && reached
        {
            self.switched = first_step;
            self.actions.push(Action::Commit { wave: self.wave });
            self.enter(Phase::Settling);
        }
    }

    fn settle(&mut self) {
        let missing = self.peers.missing(self.wave, |h| h.committed.is_none() && !h.broken);
        let over = self.doomed.is_some() || self.record.closed || self.record.decided > self.wave + 1;
        // Others may never confirm: when this rank's own commit is complete, it goes on to give up the next wave.
        if missing.is_empty() || (over && !missing.contains(&self.me)) {
            self.wave += 1;
            self.start_wave();
        }
    }
}
