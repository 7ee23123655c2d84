//! Runs one rank's part of an exchange over a communicator and a stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::timeline::tell;
use eplb_comm::{Communicator, Fence, Moment, Progress, Stream, Ticket, Timeline};
use eplb_core::{Placement, RankId, SlotCommit, Topology, Wave};
use eplb_exchange::plan::apply_commits;
use eplb_exchange::{Action, Exchange, Note, Outcome, Part, Phase};
use ndarray::Array2;

use crate::board::{Board, Reader};
use crate::error::EngineError;

/// Connects the [`Exchange`] of one rank with the world: its notes with a [`Board`], its waves with a [`Communicator`], its
/// commits with the compute [`Stream`], its maps with the host.
///
/// Called by the rank's own thread only: [`Driver::step`] before each forward pass, [`Driver::progress`] as often as possible.
/// Neither blocks, but for a decision that the step needs and that is not known yet: at most
/// [`eplb_exchange::Deadlines::commit_hold`], counted in [`Driver::held`]. The map that [`Driver::phy2log`] returns after `step(id)` is the one that step `id` runs with.
#[derive(Debug)]
pub struct Driver<S> {
    rank: RankId,
    topology: Arc<Topology>,
    stream: S,
    map: Arc<Array2<i32>>,
    last_step: Option<u64>,
    active: Option<Active>,
    held: Held,
    /// Commits enqueued in calls of `step` and `tick`.
    enqueued: u64,
    /// Why steps must not run.
    barred: Option<Bar>,
    /// What the commit of an exchange that was given up was to fill.
    doubtful: Option<Doubtful>,
    /// Behind copies of exchanges that are over, which may not have ended.
    unfinished: Vec<Fence>,
    timeline: Option<Arc<Timeline>>,
}

/// Why steps must not run.
#[derive(Debug, Clone)]
enum Bar {
    /// A wave is undecided: this step and later ones.
    Undecided { step: u64, wave: usize },
    /// A commit failed on a device: no step at all.
    Broken { broken: RankId, wave: usize },
    /// The ranks do not go on from one placement yet: no step at all.
    Unformed,
}

/// Slots that the map says are filled, and whose copies may not have run yet.
#[derive(Debug)]
struct Doubtful {
    /// Behind them; none where they are known to have failed.
    copies: Option<Fence>,
    /// Layers and slots.
    slots: Vec<(usize, usize)>,
}

/// What commits cost the steps that they come before: waits for decisions, and whole calls of [`Driver::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Steps that waited for a decision.
    pub steps: u64,
    /// For how long in all.
    pub time: Duration,
    /// Steps before which a commit was enqueued.
    pub commits: u64,
    /// How long those calls took in all, waits for decisions included.
    pub commit_time: Duration,
}

impl std::ops::AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.time += other.time;
        self.commits += other.commits;
        self.commit_time += other.commit_time;
    }
}

/// What belongs to one exchange.
#[derive(Debug)]
struct Active {
    exchange: Exchange,
    communicator: Box<dyn Communicator>,
    board: Arc<dyn Board>,
    reader: Reader,
    signs: Vec<(RankId, u64)>,
    looks: u64,
    /// Submissions under way.
    tickets: Vec<(usize, Part, Ticket)>,
    commit: Option<Fence>,
    /// The wave that the map says is committed, until its copies have been seen to end well.
    unproven: Option<usize>,
    halt: Option<Fence>,
    /// Fences behind steps whose end the exchange has to know.
    steps: VecDeque<(u64, Fence)>,
    committed: Vec<usize>,
    /// The phase and the wave that a recorder was told last.
    told: Option<(Phase, usize)>,
    /// Notes of the forward path, which are left at the next look: to wake who writes them is not its affair.
    notes: Vec<Note>,
}

/// Who has the driver act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// The forward path.
    Pass,
    /// Whoever looks at what has happened.
    Look,
}

impl Active {
    /// Leaves the notes of the forward path on the board.
    fn leave_notes(&mut self, rank: RankId) {
        for note in self.notes.drain(..) {
            self.board.publish(rank, note);
        }
    }
}

/// What an exchange left behind: its outcome, and the communicator for the next one.
#[derive(Debug)]
pub struct Ended {
    /// How it ended on this rank.
    pub outcome: Outcome,
    /// The communicator; after an abort it is of no more use.
    pub communicator: Box<dyn Communicator>,
}

/// What is left of an exchange that was given up.
#[derive(Debug)]
pub struct Abandoned {
    /// The communicator, of no more use.
    pub communicator: Box<dyn Communicator>,
    /// Waves that are committed in this rank's map.
    pub committed: usize,
}

impl<S: Stream> Driver<S> {
    /// A rank at rest with a placement in force.
    pub fn new(rank: RankId, topology: Arc<Topology>, stream: S, placement: &Placement) -> Self {
        let map = Arc::new(placement.phy2log().to_owned());
        Self {
            rank,
            topology,
            stream,
            map,
            last_step: None,
            active: None,
            held: Held::default(),
            enqueued: 0,
            barred: None,
            doubtful: None,
            unfinished: Vec::new(),
            timeline: None,
        }
    }

    /// Tells a recorder from the next exchange on what happens when, and has its communicator do so.
    pub fn observe(&mut self, timeline: &Arc<Timeline>) {
        self.timeline = Some(timeline.clone());
    }

    /// The compute stream.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Entries of `phy2log` in force on this rank, `[L, P]`; -1 also where a slot is drained.
    pub fn phy2log(&self) -> &Arc<Array2<i32>> {
        &self.map
    }

    /// Whether an exchange is under way.
    pub fn is_moving(&self) -> bool {
        self.active.is_some()
    }

    /// Where the exchange is, if one is under way.
    pub fn phase(&self) -> Option<Phase> {
        self.active.as_ref().map(|active| active.exchange.phase())
    }

    /// Number of the wave under way, and the step that this rank has acknowledged for its commit.
    pub fn wave(&self) -> Option<(usize, Option<u64>)> {
        self.active.as_ref().map(|active| (active.exchange.wave(), active.exchange.agreed_step()))
    }

    /// Last step begun on this rank.
    pub fn last_step(&self) -> Option<u64> {
        self.last_step
    }

    /// What commits have cost steps.
    pub fn held(&self) -> Held {
        self.held
    }

    /// Starts an exchange, made with this driver's [`Driver::last_step`]. One exchange runs at a time.
    ///
    /// # Errors
    /// Another exchange is under way, or the stream is gone.
    pub fn begin(
        &mut self,
        exchange: Exchange,
        communicator: Box<dyn Communicator>,
        board: Arc<dyn Board>,
    ) -> Result<(), EngineError> {
        let mut steps = VecDeque::new();
        if let Some(last) = self.last_step {
            steps.push_back((last, self.stream.record()?));
        }
        self.start(exchange, communicator, board, steps)
    }

    /// As [`Driver::begin`], from another thread than the one that calls [`Driver::step`], and while a pass may be under way:
    /// `last_step` is the last step of which the host was told that it may run, and whose work may not be enqueued yet. Its end
    /// is looked for from the next step or tick on. It may lie before [`Driver::last_step`], where a commit was applied at rest for a step
    /// that was never run ([`Driver::step`]): the steps up to that one are still to come.
    ///
    /// # Errors
    /// As [`Driver::begin`].
    pub fn begin_within_step(
        &mut self,
        exchange: Exchange,
        communicator: Box<dyn Communicator>,
        board: Arc<dyn Board>,
        last_step: Option<u64>,
    ) -> Result<(), EngineError> {
        self.last_step = last_step;
        self.start(exchange, communicator, board, VecDeque::new())
    }

    fn start(
        &mut self,
        exchange: Exchange,
        mut communicator: Box<dyn Communicator>,
        board: Arc<dyn Board>,
        steps: VecDeque<(u64, Fence)>,
    ) -> Result<(), EngineError> {
        if self.active.is_some() {
            return Err(EngineError::Options(format!("{}: an exchange is under way already", self.rank)));
        }
        if let Some(bar) = &self.barred {
            return Err(self.refuse(bar, self.last_step.map_or(0, |last| last + 1)));
        }
        if let Some(timeline) = &self.timeline {
            communicator.observe(timeline);
            timeline.tell(Moment::Began);
        }
        self.active = Some(Active {
            exchange,
            communicator,
            reader: Reader::new(self.rank),
            signs: board.signs(),
            looks: board.looks(),
            board,
            tickets: Vec::new(),
            commit: None,
            unproven: None,
            halt: None,
            steps,
            committed: Vec::new(),
            told: None,
            notes: Vec::new(),
        });
        self.act(Caller::Look)
    }

    /// To be called before each forward pass; `id`s rise strictly.
    ///
    /// # Errors
    /// [`EngineError::Undecided`], [`EngineError::Broken`]: the pass must not run, and no later one until the ranks have formed
    /// a new epoch and this driver was made anew. Stream or communicator errors.
    pub fn step(&mut self, id: u64) -> Result<(), EngineError> {
        match &self.barred {
            Some(Bar::Undecided { step, .. }) if id < *step => {}
            Some(bar) => return Err(self.refuse(bar, id)),
            None => {}
        }
        let (begun, enqueued);
        let wave = match &mut self.active {
            None => {
                self.last_step = Some(id);
                return Ok(());
            }
            Some(active) => {
                (begun, enqueued) = (Instant::now(), self.enqueued);
                if let Some(last) = self.last_step {
                    active.steps.push_back((last, self.stream.record()?));
                }
                active.exchange.begin_step(id, begun);
                active.exchange.wave()
            }
        };
        self.last_step = Some(id);
        self.act(Caller::Pass)?;
        if self.enqueued > enqueued {
            self.held.commits += 1;
            self.held.commit_time += begun.elapsed();
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        if active.exchange.end_boundary() {
            return Ok(());
        }
        let bar = match active.exchange.broken() {
            Some((broken, wave)) => Bar::Broken { broken, wave },
            None => Bar::Undecided { step: id, wave },
        };
        let error = self.refuse(&bar, id);
        self.barred = Some(bar);
        Err(error)
    }

    fn refuse(&self, bar: &Bar, step: u64) -> EngineError {
        match *bar {
            Bar::Undecided { wave, .. } => EngineError::Undecided { rank: self.rank, step, wave },
            Bar::Broken { broken, wave } => EngineError::Broken { rank: self.rank, step, broken, wave },
            Bar::Unformed => EngineError::Unformed { rank: self.rank, step },
        }
    }

    /// To be called now and then while the rank runs no steps.
    ///
    /// # Errors
    /// Stream or communicator errors.
    pub fn tick(&mut self) -> Result<(), EngineError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if let Some(last) = self.last_step
            && active.steps.back().is_none_or(|&(id, _)| id < last)
        {
            active.steps.push_back((last, self.stream.record()?));
        }
        active.exchange.tick(Instant::now());
        self.act(Caller::Pass)?;
        if let Some(active) = &mut self.active {
            active.exchange.end_boundary();
        }
        Ok(())
    }

    /// Looks at everything that may have happened since, and goes on. Returns the end of the exchange, once.
    ///
    /// # Errors
    /// Stream or communicator errors.
    pub fn progress(&mut self) -> Result<Option<Ended>, EngineError> {
        let Some(active) = &mut self.active else { return Ok(None) };
        let now = Instant::now();
        active.board.renew(self.rank);
        let looks = active.board.looks();
        if looks != active.looks {
            active.looks = looks;
            let signs = active.board.signs();
            let fresh = signs.iter().zip(&active.signs).filter(|(sign, seen)| sign != seen);
            active.exchange.observe(fresh.map(|((rank, _), _)| *rank), now);
            active.signs = signs;
        }
        while let Some((id, fence)) = active.steps.front() {
            match fence.poll() {
                Ok(false) => break,
                Ok(true) => active.exchange.finish_step(*id, now),
                // The device is lost; if a commit is under way, that is what the others have to know.
                Err(error) if active.commit.take().is_some() => {
                    active.exchange.commit_failed(error.to_string(), now);
                }
                Err(error) => active.exchange.transfers_failed(error.to_string(), now),
            }
            active.steps.pop_front();
        }
        for (wave, part, ticket) in std::mem::take(&mut active.tickets) {
            match active.communicator.poll(ticket) {
                Ok(Progress::Pending) => active.tickets.push((wave, part, ticket)),
                Ok(Progress::Done) => {
                    tell(&self.timeline, || Moment::Arrived(ticket));
                    active.exchange.transfers_done(wave, part, now);
                }
                Err(error) => active.exchange.transfers_failed(error.to_string(), now),
            }
        }
        if let Some(fence) = &active.commit {
            match fence.poll() {
                Ok(false) => {}
                Ok(true) => {
                    (active.commit, active.unproven) = (None, None);
                    tell(&self.timeline, || Moment::Committed(active.exchange.wave()));
                    active.committed.push(active.exchange.wave());
                    active.exchange.commit_done(now);
                }
                Err(error) => {
                    active.commit = None;
                    active.exchange.commit_failed(error.to_string(), now);
                }
            }
        }
        if let Some(fence) = &active.halt
            && fence.poll()?
        {
            active.halt = None;
            active.exchange.halted(now);
        }
        for (from, note) in active.board.collect(&mut active.reader) {
            active.exchange.hear(from, &note, now);
        }
        let record = active.board.record();
        active.exchange.learn(record, now);
        if let Some(detail) = active.board.lost() {
            active.exchange.store_lost(detail, now);
        }
        active.exchange.check_time(now);
        self.act(Caller::Look)?;
        let over = self.active.as_ref().is_some_and(|active| active.exchange.outcome().is_some());
        if over {
            tell(&self.timeline, || Moment::Ended);
        }
        Ok(self.active.take_if(|_| over).and_then(|active| {
            let outcome = active.exchange.outcome()?.clone();
            match outcome {
                Outcome::Undecided { wave, step: Some(step), .. } => {
                    self.barred.get_or_insert(Bar::Undecided { step, wave });
                }
                Outcome::Broken { rank: broken, wave, .. } => {
                    self.barred = Some(Bar::Broken { broken, wave });
                }
                _ => {}
            }
            // A deadline may have ended it before its last copies.
            self.unfinished.extend(active.commit.into_iter().chain(active.halt));
            Some(Ended { outcome, communicator: active.communicator })
        }))
    }

    /// Gives up the exchange under way without asking the others: nothing further is started. What was enqueued, on the communicator or
    /// on the compute stream, may still run ([`Driver::is_quiet`]). Maps stay as they are; if others may switch theirs at a step that this rank has
    /// acknowledged, no step from there on may run.
    pub fn abandon(&mut self, why: &str) -> Option<Abandoned> {
        let mut active = self.active.take()?;
        active.leave_notes(self.rank);
        let wave = active.exchange.wave();
        if let Some(step) = active.exchange.bound_to() {
            self.barred.get_or_insert(Bar::Undecided { step, wave });
        }
        self.unfinished.push(active.communicator.abort(why));
        self.unfinished.extend(active.halt);
        self.unfinished.extend(active.commit.clone());
        if let Some(unproven) = active.unproven {
            let own = own_commits(&active.exchange.plan().waves()[unproven], self.rank, &self.topology);
            let slots = own.iter().filter(|commit| commit.fill.overwrites());
            let slots = slots.map(|commit| (commit.layer.index(), commit.slot.index())).collect();
            self.doubtful = Some(Doubtful { copies: active.commit, slots });
        }
        // Maps are switched before the commit completes.
        let committed = wave + usize::from(active.exchange.phase() == Phase::Settling);
        Some(Abandoned { communicator: active.communicator, committed })
    }

    /// Whether no copy of an exchange that is over can touch memory any more: neither of the communicator's, nor of a commit's.
    pub fn is_quiet(&mut self) -> bool {
        // A fence that fails belongs to a device or a communicator that runs nothing any more.
        self.unfinished.retain(|fence| fence.poll() == Ok(false));
        self.unfinished.is_empty()
    }

    /// Takes slots out of the map that the commit of an exchange that was given up has not been seen to fill.
    pub fn distrust(&mut self) {
        let Some(Doubtful { copies, slots }) = self.doubtful.take() else { return };
        if copies.is_none_or(|copies| copies.poll() != Ok(true)) {
            let map = Arc::make_mut(&mut self.map);
            slots.into_iter().for_each(|place| map[place] = -1);
        }
    }

    /// From now on no step may run, until [`Driver::unbar`]: slots and maps of the ranks need not fit each other.
    pub fn bar(&mut self) {
        self.barred = Some(Bar::Unformed);
    }

    /// All ranks go on from one placement, and each holds what it says: steps may run.
    pub fn unbar(&mut self) {
        self.barred = None;
    }

    /// Whether steps must not run any more.
    pub fn is_barred(&self) -> bool {
        self.barred.is_some()
    }

    /// This rank at rest in another epoch, with another placement in force, on the same stream.
    pub fn renewed(self, topology: Arc<Topology>, placement: &Placement) -> Self {
        Self { unfinished: self.unfinished, ..Self::new(self.rank, topology, self.stream, placement) }
    }

    /// Shows a sign of life, for a rank that does something long between two calls of [`Driver::progress`].
    pub fn renew(&self) {
        if let Some(active) = &self.active {
            active.board.renew(self.rank);
        }
    }

    /// Waves whose commit has been completed on this rank since the last call.
    pub fn take_committed(&mut self) -> Vec<usize> {
        self.active.as_mut().map(|active| std::mem::take(&mut active.committed)).unwrap_or_default()
    }

    /// Asks the exchange to stop at the next possible point.
    ///
    /// # Errors
    /// Stream or communicator errors.
    pub fn cancel(&mut self, why: &str) -> Result<(), EngineError> {
        if let Some(active) = &mut self.active {
            active.exchange.cancel(why, Instant::now());
        }
        self.act(Caller::Look)
    }

    /// Carries out what the exchange asks for, until it asks for nothing.
    fn act(&mut self, caller: Caller) -> Result<(), EngineError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if caller == Caller::Look {
            active.leave_notes(self.rank);
        }
        loop {
            let at = (active.exchange.phase(), active.exchange.wave());
            if self.timeline.is_some() && active.told != Some(at) {
                active.told = Some(at);
                tell(&self.timeline, || Moment::Phase { wave: at.1, name: name(at.0) });
            }
            let actions = active.exchange.take_actions();
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                let now = Instant::now();
                match action {
                    Action::Publish(note) if caller == Caller::Pass => active.notes.push(note),
                    Action::Publish(note) => active.board.publish(self.rank, note),
                    Action::Drain { wave, part } => {
                        active.exchange.plan().apply_drains(Arc::make_mut(&mut self.map), wave, part);
                    }
                    Action::Submit { wave, part } => {
                        let transfers = active.exchange.plan().transfers(wave, part);
                        // Others may still have the wave before under way when this rank goes ahead.
                        let waves = if part == Part::Early { 2 } else { 1 };
                        let deadline = now + active.exchange.deadlines().transfer * waves;
                        tell(&self.timeline, || Moment::Submitting);
                        match active.communicator.submit(transfers, Fence::passed(), deadline) {
                            Ok(ticket) => {
                                let early = part == Part::Early;
                                tell(&self.timeline, || Moment::Submitted { wave, early, ticket });
                                active.tickets.push((wave, part, ticket));
                            }
                            Err(error) => active.exchange.transfers_failed(error.to_string(), now),
                        }
                    }
                    Action::Commit { wave: number } => {
                        tell(&self.timeline, || Moment::CommitEnqueued(number));
                        let wave = &active.exchange.plan().waves()[number];
                        let own = own_commits(wave, self.rank, &self.topology);
                        apply_commits(Arc::make_mut(&mut self.map), wave);
                        self.enqueued += 1;
                        active.unproven = Some(number);
                        match self.stream.commit(&own) {
                            Ok(fence) => active.commit = Some(fence),
                            Err(error) => active.exchange.commit_failed(error.to_string(), now),
                        }
                    }
                    Action::Decide { from, to, hold } => {
                        // What is decided may depend on them.
                        active.leave_notes(self.rank);
                        let until = hold.then(|| now + active.exchange.deadlines().commit_hold);
                        let record = active.board.decide(from, to, until);
                        let after = Instant::now();
                        if hold {
                            self.held.steps += 1;
                            self.held.time += after - now;
                        }
                        if let Some(record) = record {
                            active.exchange.decided(record, after);
                        }
                    }
                    Action::Halt { cause } => {
                        active.tickets.clear();
                        active.halt = Some(active.communicator.abort(&cause));
                    }
                    Action::Restore { phy2log } => self.map = Arc::new(phy2log),
                }
            }
        }
    }
}

/// A phase as the timeline names it.
fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Agreeing => "agreeing",
        Phase::Draining => "draining",
        Phase::Clearing => "clearing",
        Phase::Moving => "moving",
        Phase::Prepared => "prepared",
        Phase::Armed => "armed",
        Phase::Committing => "committing",
        Phase::Settling => "settling",
        _ => "ending",
    }
}

/// The changes of a wave in one rank's own slots.
pub(crate) fn own_commits(wave: &Wave, rank: RankId, topology: &Topology) -> Vec<SlotCommit> {
    wave.commits.iter().copied().filter(|commit| topology.rank_of(commit.slot) == rank).collect()
}
