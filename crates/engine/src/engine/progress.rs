//! The progress thread of a rank in a group: everything that takes time, and everything that goes through the store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::panic_message;
use eplb_comm::store::deadlines::after;
use eplb_comm::store::{Life, Pulse, Store, StoreError};
use eplb_core::RankId;
use ndarray::Array3;

use super::desk::Worker;
use super::lead::Lead;
use super::running::Running;
use super::shared::{Shared, lock};
use super::state::{Event, Order, State};
use super::wire::{Done, Round, Status, Task, encode_counts};
use crate::board::{Board, StoreBoard};
use crate::error::EngineError;
use crate::process::session::at;
use crate::process::{Meeting, Session, Source, Stage, Transport};

/// Longest pause between two looks at an exchange.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// Shortest one. Bytes and copies of devices are polled, so that nothing could wake the thread for all that it looks at.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
/// Longest time to tell the others that this rank ends.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How often a rank that waits for something of its own shows that it is there.
const RENEWING: Duration = Duration::from_millis(5);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) shared: Arc<Shared>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) source: Option<Arc<dyn Source>>,
    pub(super) store: Arc<dyn Store>,
    /// `None` after a new epoch could not be formed.
    pub(super) session: Option<Session>,
    pub(super) lead: Lead,
    /// The last round that ended here.
    pub(super) round: u64,
    pub(super) done: Done,
    /// What the key of the rounds holds, as last seen.
    pub(super) known: Option<Vec<u8>>,
    shown: Option<Status>,
    /// Passes whose counts are shown, by set, and when that was looked at last.
    posted: Vec<u64>,
    posted_at: Option<Instant>,
    /// When the sums on the device were asked for last.
    collected_at: Option<Instant>,
    /// What was counted before this epoch, by set, and demands that were answered before it.
    base: Vec<Array3<u64>>,
    base_demands: u64,
    /// Demands of this rank when it last read its counts: what was counted before them, these hold.
    asked: u64,
    /// Demands of this rank that the last round can have answered.
    pub(super) answered: u64,
    /// Passes counted when the last round ended.
    pub(super) counted: u64,
    pub(super) running: Option<Running>,
    pulses: Vec<(RankId, Pulse)>,
    looks: u64,
    since: Instant,
    pause: Duration,
}

impl Progress {
    pub(super) fn new(
        shared: Arc<Shared>,
        transport: Arc<dyn Transport>,
        source: Option<Arc<dyn Source>>,
        session: Session,
        lead: Lead,
    ) -> Self {
        let sets = shared.sets.len();
        let mut progress = Self {
            shared,
            transport,
            source,
            store: session.store().clone(),
            session: None,
            lead,
            round: 0,
            done: Done::Well,
            known: None,
            shown: None,
            posted: vec![0; sets],
            posted_at: None,
            collected_at: None,
            base: Vec::new(),
            base_demands: 0,
            asked: 0,
            answered: 0,
            counted: 0,
            running: None,
            pulses: Vec::new(),
            looks: 0,
            since: Instant::now(),
            pause: SHORTEST_PAUSE,
        };
        progress.enter(session);
        progress
    }

    /// Takes a place in an epoch: everything that was said in the one before is void.
    pub(super) fn enter(&mut self, session: Session) {
        let store = &self.shared.deadlines.store;
        let others = session.members().iter().filter(|&&rank| rank != session.rank());
        self.pulses = others.map(|&rank| (rank, Pulse::new(store.peer_timeout, store.renew))).collect();
        self.lead.sets.iter_mut().for_each(|set| set.forget_members(session.members().len()));
        (self.round, self.done, self.known, self.shown, self.looks) = (0, Done::Well, None, None, 0);
        // The leading rank may be another, or have started anew: it begins to sum at nothing.
        self.posted = self.shared.sets.iter().map(|set| set.counters.passes()).collect();
        self.base = self.shared.sets.iter().map(|set| set.counters.read().0).collect();
        (self.base_demands, self.asked) = (self.answered, 0);
        self.lead.forget_demands();
        self.session = Some(session);
    }

    /// The life of the thread: until the engine is stopped, or something panics; then what was under way is left as at any failure, and the host and
    /// the other ranks are told that rounds are over.
    pub(super) fn live(mut self) {
        let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.run())) else { return };
        let shared = self.shared.clone();
        let cause = format!("the progress thread panicked: {}", panic_message(payload.as_ref()));
        shared.fail(cause.clone());
        // If that panics too, the host is told the first cause.
        drop(catch_unwind(AssertUnwindSafe(|| {
            self.abandon(&cause);
            drop(self.show());
            self.close();
            self.settle();
            self.session = None;
        })));
        shared.collapse(&cause);
    }

    /// Runs until the engine is stopped.
    fn run(&mut self) {
        if self.shared.sets.iter().any(|set| set.device.is_some())
            && let Err(error) = eplb_cuda::keep_out_of_captures()
        {
            tracing::warn!(%error, "captures of graphs by the server may fail while this thread works");
        }
        self.shared.clone().desk.work(self);
        self.abandon("the engine was shut down");
        self.say_goodbye("its engine was shut down");
        self.close();
        self.settle();
        // Ends the threads of the board before anyone is told that all is over.
        self.session = None;
        self.shared.finish();
    }

    fn carry_out(&mut self, order: Order) -> Result<(), EngineError> {
        match order {
            Order::Cancel(why) => {
                self.cancel(why);
                Ok(())
            }
            Order::Close => {
                self.close();
                Ok(())
            }
            Order::Open => {
                // The leading rank has all ranks connect when all are there.
                drop(self.shared.on(Event::Formed));
                Ok(())
            }
            Order::Reform => {
                self.abandon("a new epoch");
                self.reform()?;
                drop(self.shared.on(Event::Formed));
                Ok(())
            }
        }
    }

    /// Something cannot go on: the others are told, if they can be.
    fn fail(&mut self, error: &EngineError) {
        self.abandon(&error.to_string());
        match error.is_interrupted() {
            true => self.shared.leave(error.to_string()),
            false => self.shared.fail(error.to_string()),
        }
        drop(self.show());
        // A round that was announced before that is known has others come to wait for this rank.
        self.say_goodbye(&error.to_string());
    }

    /// Tells members that will wait for this rank in this epoch that it does not come.
    fn say_goodbye(&mut self, why: &str) {
        let Some(session) = &mut self.session else { return };
        // Where it cannot be told now, they see that this rank is silent.
        drop(session.group.give_up(why, after(LAST_WORD)));
    }

    /// Drops the communicators.
    pub(super) fn close(&mut self) {
        let communicators: Vec<_> = lock(&self.shared.core)
            .lanes
            .iter_mut()
            .filter_map(|lane| {
                lane.launcher = None;
                lane.communicator.take()
            })
            .collect();
        // Outside the lock: a communicator may take its time to end.
        drop(communicators);
    }

    /// Longest time between two looks while nothing moves.
    fn poll(&self) -> Duration {
        Duration::from_millis(self.shared.config.poll_ms)
    }

    /// A look while nothing moves.
    fn idle_turn(&mut self) -> Result<(), EngineError> {
        let failed = matches!(self.shared.state(), State::Failed { .. });
        let Some(session) = self.session.as_ref().filter(|_| !failed) else {
            if let Some(session) = &self.session {
                session.board.renew(session.rank());
            }
            // Passes go on, and what they count has little room on its way. A device that refuses is no news to an engine that has failed.
            drop(self.collect());
            std::thread::sleep(self.poll());
            return Ok(());
        };
        session.board.renew(session.rank());
        self.look_around()?;
        self.count()?;
        self.show()?;
        self.lead_on()?;
        self.listen()
    }

    /// Looks for members that are silent.
    fn look_around(&mut self) -> Result<(), EngineError> {
        let Some(session) = &self.session else { return Ok(()) };
        if let Some(cause) = session.board.lost() {
            let epoch = session.epoch();
            return Err(crate::board::BoardError::Lost { epoch, cause }.into());
        }
        let looks = session.board.looks();
        if looks == self.looks {
            return Ok(());
        }
        self.looks = looks;
        let (signs, now) = (session.board.signs(), self.since.elapsed());
        for (rank, pulse) in &mut self.pulses {
            let sign = signs.iter().find(|(other, _)| other == rank).map(|(_, sign)| *sign);
            if let Life::Dead { silent } = pulse.observe(sign, now) {
                return Err(EngineError::PeerSilent { rank: *rank, silence: silent });
            }
        }
        Ok(())
    }

    /// Shows what was counted, every now and then, and at once where a round is asked for.
    fn count(&mut self) -> Result<(), EngineError> {
        let shared = self.shared.clone();
        // Before the counts: who asks for a round has them planned for.
        self.asked = self.demands();
        self.collect()?;
        let passes: Vec<u64> = shared.sets.iter().map(|set| set.counters.passes()).collect();
        if passes.iter().sum::<u64>() > self.counted {
            drop(shared.on(Event::Counted));
        }
        let asked = self.shown.as_ref().is_some_and(|shown| shown.demands < self.asked);
        let rest = Duration::from_millis(shared.config.sample_ms);
        if !asked && self.posted_at.is_some_and(|at| at.elapsed() < rest) {
            return Ok(());
        }
        self.posted_at = Some(Instant::now());
        let Some(session) = &mut self.session else { return Ok(()) };
        for (at, set) in shared.sets.iter().enumerate() {
            if passes[at] != self.posted[at] {
                let (mut tokens, passes) = set.counters.read();
                tokens.zip_mut_with(&self.base[at], |sum, before| *sum = sum.wrapping_sub(*before));
                let deadline = after(shared.deadlines.store.operation);
                session.group.post(&counts_name(at), &encode_counts(passes, &tokens), deadline)?;
                self.posted[at] = passes;
            }
        }
        Ok(())
    }

    /// Takes in what was counted on the device, and asks for more when it is time.
    pub(super) fn collect(&mut self) -> Result<(), EngineError> {
        let rest = Duration::from_millis(self.shared.config.sample_ms);
        let refresh = self.collected_at.is_none_or(|at| at.elapsed() >= rest);
        if refresh {
            self.collected_at = Some(Instant::now());
        }
        self.shared.sets.iter().try_for_each(|set| set.collect(refresh))
    }

    /// Demands of this rank that no round before this epoch has answered.
    fn demands(&self) -> u64 {
        self.shared.demands.load(std::sync::atomic::Ordering::SeqCst) - self.base_demands
    }

    /// Shows this rank's status, if it has changed.
    pub(super) fn show(&mut self) -> Result<(), EngineError> {
        let state = self.shared.state();
        let (connected, placements) = {
            let core = lock(&self.shared.core);
            let mut hasher = xxhash_rust::xxh3::Xxh3::new();
            for entry in core.lanes.iter().flat_map(|lane| lane.driver.phy2log().iter()) {
                hasher.update(&entry.to_le_bytes());
            }
            (core.lanes.iter().all(|lane| lane.communicator.is_some()), hasher.digest())
        };
        let status = Status {
            round: self.round,
            done: self.done,
            ready: matches!(state, State::Idle | State::Collecting | State::Planning),
            connected,
            demands: self.asked,
            placements,
            failed: if let State::Failed { cause } = state { Some(cause) } else { None },
        };
        if self.shown.as_ref() == Some(&status) {
            return Ok(());
        }
        let deadline = after(self.shared.deadlines.store.operation);
        if let Some(session) = &mut self.session {
            session.group.post(STATUS, &status.encode(), deadline)?;
            self.shown = Some(status);
        }
        Ok(())
    }

    /// Waits a little for a new round, and takes part in it.
    fn listen(&mut self) -> Result<(), EngineError> {
        let Some(session) = &self.session else { return Ok(()) };
        let found =
            session.store().wait_change(&round_key(session), self.known.as_deref(), after(self.poll()));
        let bytes = match found {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(StoreError::Timeout { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let shapes: Vec<[usize; 3]> =
            self.shared.sets.iter().map(|set| [set.layers(), set.experts, set.topology.slots()]).collect();
        let leader = session.members()[0];
        let round = Round::decode(&bytes, &shapes);
        self.known = Some(bytes);
        let unreadable = EngineError::Unreadable { rank: leader, what: "the round that it announced" };
        let round = round.filter(|round| round.number == self.round + 1).ok_or(unreadable)?;
        if let (Task::Move(_), Some(shown)) = (&round.task, &self.shown) {
            self.answered = self.base_demands + shown.demands;
        }
        match round.task {
            Task::Fail { rank, cause } => Err(EngineError::PeerFailed { rank, cause }),
            Task::Connect => {
                self.connect()?;
                if self.shared.state() == State::Quiesced {
                    self.close();
                }
                self.round = round.number;
                self.done = Done::Well;
                self.show()
            }
            Task::Move(plan) => self.begin(round.number, *plan),
        }
    }

    /// Makes communicators for all layer sets, with all ranks.
    pub(super) fn connect(&mut self) -> Result<(), EngineError> {
        self.close();
        let (shared, transport) = (self.shared.clone(), self.transport.clone());
        let Some(session) = &mut self.session else { return Ok(()) };
        // Who does not come, and why, is known here; a transport may only see that not all are there. Those that connect wait for each other, so
        // all do or none.
        let (board, store) = (session.board.clone(), shared.deadlines.store);
        let come = while_renewing(&board, shared.rank, || {
            session.group.barrier_all_or_none("connecting", after(store.collective), store.operation)
        });
        at(shared.rank, Stage::Connecting, come)?;
        // Nobody has the communicators of before any more.
        session.clear_corners();
        let mut made = Vec::new();
        for set in &shared.sets {
            let meeting = Meeting {
                rank: shared.rank,
                world_size: shared.world_size,
                store: session.corner()?,
                memory: (),
                deadline: after(shared.deadlines.communicator),
            };
            made.push(while_renewing(&board, shared.rank, || set.memory.connect(&*transport, meeting))?);
        }
        let mut core = lock(&shared.core);
        for (lane, communicator) in core.lanes.iter_mut().zip(made) {
            lane.bulletin = communicator.bulletin();
            lane.launcher = communicator.launcher();
            lane.communicator = Some(communicator);
        }
        Ok(())
    }

    /// Sleeps between two looks at an exchange: shortly while something happens.
    pub(super) fn rest(&mut self, something_happened: bool) {
        self.pause = if something_happened { SHORTEST_PAUSE } else { (self.pause * 2).min(LONGEST_PAUSE) };
        std::thread::sleep(self.pause);
    }
}

impl Worker for Progress {
    fn obey(&mut self, order: Order) {
        if let Err(error) = self.carry_out(order) {
            self.fail(&error);
        }
    }

    fn turn(&mut self) {
        let turn = if self.running.is_some() { self.exchange_turn() } else { self.idle_turn() };
        if let Err(error) = turn {
            self.fail(&error);
        }
    }
}

/// Under what every rank shows its status.
pub(super) const STATUS: &str = "engine";

/// Under what every rank shows the counts of a layer set.
pub(super) fn counts_name(set: usize) -> String {
    format!("counts-{set}")
}

/// Where the leading rank announces rounds.
pub(super) fn round_key(session: &Session) -> String {
    format!("{}/engine/round", session.epoch())
}

/// Does something that takes its time, while this rank shows that it is there.
pub(super) fn while_renewing<T: Send>(
    board: &StoreBoard,
    rank: RankId,
    work: impl FnOnce() -> T + Send,
) -> T {
    let waiting = std::thread::current();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let done = work();
            waiting.unpark();
            done
        });
        while !worker.is_finished() {
            board.renew(rank);
            std::thread::park_timeout(RENEWING);
        }
        match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
