//! One rank's host thread: it looks at its exchange now and then, begins steps, and does what the state machine asks for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use eplb_core::RankId;
use eplb_exchange::plan::apply_commits;
use eplb_exchange::{Action, Exchange, Note, Outcome, Part, Phase, Record};
use ndarray::Array2;

use super::check::Violation;
use super::device::{Device, Work};
use super::plant::Plant;
use super::transport::{Port, Submission};
use super::world::{Event, PASS_TIMEOUT, World};

/// A rank.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) alive: bool,
    /// The process stands still until then.
    pub(super) stopped_until: u64,
    /// Steps no longer wait for it.
    pub(super) left_passes: bool,
    /// This step and later ones must not run.
    pub(super) barred_from: u64,
    /// A step was refused: no more is run.
    barred: bool,
    pub(super) map: Arc<Array2<i32>>,
    pub(super) device: Device,
    pub(super) port: Port,
    pub(super) exchange: Option<Exchange>,
    /// Exchanges begun.
    pub(super) exchanges: usize,
    /// When the next exchange may begin here.
    pub(super) begin_at: u64,
    pub(super) outcome: Option<Outcome>,
    /// Steps begun.
    pub(super) steps: usize,
    pub(super) last_step: Option<u64>,
    /// Steps with an event behind them that the exchange has not been told of.
    fences: VecDeque<u64>,
    last_fence: Option<u64>,
    /// The device's count of commits at which the one enqueued is complete.
    commit: Option<usize>,
    /// How long its thread was held by the record since the last look.
    held: u64,
    /// What a planted fault hands over after what should follow it.
    held_back: Option<Submission>,
}

impl Host {
    pub(super) fn new(map: Arc<Array2<i32>>) -> Self {
        Self {
            alive: true,
            stopped_until: 0,
            left_passes: false,
            barred_from: u64::MAX,
            barred: false,
            map,
            device: Device::default(),
            port: Port::default(),
            exchange: None,
            exchanges: 0,
            begin_at: 0,
            outcome: None,
            steps: 0,
            last_step: None,
            fences: VecDeque::new(),
            last_fence: None,
            commit: None,
            held: 0,
            held_back: None,
        }
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        self.exchange.as_ref().map(Exchange::phase)
    }

    fn fence_last_step(&mut self) {
        if self.last_step.is_some() && self.last_step != self.last_fence {
            self.fences.extend(self.last_step);
            self.last_fence = self.last_step;
        }
    }
}

impl World {
    /// The rank's thread comes around.
    pub(super) fn look(&mut self, rank: usize) -> Result<(), Violation> {
        let host = &self.hosts[rank];
        if !host.alive {
            return Ok(());
        }
        if host.stopped_until > self.now {
            let micros = host.stopped_until - self.now;
            self.after(micros, Event::Look(rank));
            return Ok(());
        }
        if host.exchanges < self.boards.len() && self.now >= host.begin_at {
            self.begin_exchange(rank)?;
        }
        self.progress(rank)?;
        if self.hosts[rank].barred {
            // It serves no more.
        } else if self.hosts[rank].device.steps() < self.scenario.depth && self.step_is_due(rank) {
            self.step(rank)?;
        } else if self.rng.bool() {
            self.tick(rank)?;
        }
        let held = std::mem::take(&mut self.hosts[rank].held);
        let micros = self.rng.u64(1..=self.scenario.look) + held;
        self.after(micros, Event::Look(rank));
        Ok(())
    }

    fn begin_exchange(&mut self, rank: usize) -> Result<(), Violation> {
        let (now, number) = (self.instant(), self.hosts[rank].exchanges);
        let members: Vec<RankId> = (0..self.hosts.len()).map(RankId::at).collect();
        let host = &mut self.hosts[rank];
        host.exchanges += 1;
        host.outcome = None;
        // A fresh communicator; what an old one still has under way is its own.
        host.port.renew();
        host.held_back = None;
        host.fences.clear();
        host.last_fence = None;
        host.fence_last_step();
        host.exchange = Some(Exchange::new(
            Arc::clone(&self.plans[number][rank]),
            RankId::at(rank),
            &members,
            self.scenario.deadlines,
            self.scenario.margin,
            host.last_step,
            now,
        ));
        self.act(rank)
    }

    /// What a driver does as often as it can.
    fn progress(&mut self, rank: usize) -> Result<(), Violation> {
        let (now, now_micros) = (self.instant(), self.now);
        let error_ignored = self.planted(rank, Plant::CommitErrorIgnored);
        let no_lateness = self.planted(rank, Plant::LatenessForgotten);
        let (steps_early, done_early, commit_early, halt_early, no_hash, map_early) = (
            self.planted(rank, Plant::StepFenceRemoved),
            self.planted(rank, Plant::DoneEarly),
            self.planted(rank, Plant::CommitFenceRemoved),
            self.planted(rank, Plant::HaltIgnored),
            self.scenario.plant == Some(Plant::HashIgnored),
            self.planted(rank, Plant::MapEarly),
        );
        let host = &mut self.hosts[rank];
        let Some(exchange) = &mut host.exchange else { return Ok(()) };
        let board = &mut self.boards[host.exchanges - 1];
        board.renew(rank);
        exchange.observe(board.fresh_signs(rank), now);
        while let Some(&id) = host.fences.front()
            && (steps_early || host.device.finished.is_some_and(|finished| finished >= id))
        {
            exchange.finish_step(id, now);
            host.fences.pop_front();
        }
        if steps_early && let Some(last) = host.last_step {
            exchange.finish_step(last, now);
        }
        if !host.port.tickets.is_empty()
            && let Some(error) = host.port.failed.take()
        {
            host.port.tickets.clear();
            exchange.transfers_failed(error, now);
        }
        for submission in std::mem::take(&mut host.port.tickets) {
            let (_, wave, part) = submission;
            if !host.port.is_over(submission) && !done_early {
                host.port.tickets.push(submission);
                continue;
            }
            exchange.transfers_done(wave, part, now);
            if map_early {
                apply_commits(Arc::make_mut(&mut host.map), &exchange.plan().waves()[wave]);
            }
        }
        if host.commit.is_some_and(|due| host.device.commits >= due || commit_early) {
            host.commit = None;
            exchange.commit_done(now);
        }
        if host.commit.is_some()
            && let Some(error) = host.device.error.take()
        {
            host.commit = None;
            if error_ignored { exchange.commit_done(now) } else { exchange.commit_failed(error, now) }
        }
        if host.port.halting && (host.port.begun.is_empty() || halt_early) {
            host.port.halting = false;
            exchange.halted(now);
        }
        for (from, mut note) in board.collect(rank, now_micros) {
            if let (true, Note::Plan { hash, .. }) = (no_hash, &mut note) {
                *hash = exchange.plan().hash64();
            }
            if let (true, Note::TooLate { .. }) = (no_lateness, &note) {
                note = Note::Failed { cause: "it says so".into() };
            }
            exchange.hear(from, &note, now);
        }
        let record = board.record(rank, &mut self.rng);
        exchange.learn(record, now);
        if board.lost {
            exchange.store_lost("it is gone".into(), now);
        }
        exchange.check_time(now);
        self.act(rank)
    }

    /// The host runs the next forward pass.
    fn step(&mut self, rank: usize) -> Result<(), Violation> {
        let now = self.instant();
        let refusal_ignored = self.planted(rank, Plant::RefusalIgnored);
        let host = &mut self.hosts[rank];
        let id = self.schedule[host.steps].0;
        if id >= host.barred_from && !refusal_ignored {
            self.bar(rank);
            return Ok(());
        }
        host.fence_last_step();
        host.steps += 1;
        host.last_step = Some(id);
        if let Some(exchange) = &mut host.exchange {
            exchange.begin_step(id, now);
        }
        self.act(rank)?;
        let host = &mut self.hosts[rank];
        if let Some(exchange) = &mut host.exchange
            && !exchange.end_boundary()
            && !refusal_ignored
        {
            if !self.boards[host.exchanges - 1].lost && exchange.broken().is_none() {
                return Err(Violation::Refused { rank, step: id, phase: exchange.phase() });
            }
            self.bar(rank);
            return Ok(());
        }
        let map = Arc::clone(&host.map);
        host.device.queue.push_back(Work::Step { id });
        self.check_unbroken(rank, id)?;
        self.check_available(rank, id, &map)?;
        self.passes.entry(id).or_default().maps.insert(rank, map);
        self.run_device(rank)
    }

    /// The server stops serving; the others learn it when the pass does not come to an end.
    fn bar(&mut self, rank: usize) {
        self.hosts[rank].barred = true;
        self.after(PASS_TIMEOUT, Event::LeavePasses(rank));
    }

    /// The host has no pass to run.
    fn tick(&mut self, rank: usize) -> Result<(), Violation> {
        let now = self.instant();
        let host = &mut self.hosts[rank];
        host.fence_last_step();
        let Some(exchange) = &mut host.exchange else { return Ok(()) };
        exchange.tick(now);
        self.act(rank)?;
        if let Some(exchange) = &mut self.hosts[rank].exchange {
            exchange.end_boundary();
        }
        self.take_outcome(rank);
        Ok(())
    }

    /// The host cancels its exchange.
    pub(super) fn cancel(&mut self, rank: usize) -> Result<(), Violation> {
        let now = self.instant();
        if let Some(exchange) = &mut self.hosts[rank].exchange {
            exchange.cancel("the host says so", now);
        }
        self.act(rank)
    }

    /// Carries out what the state machine asks for, until it asks for nothing.
    fn act(&mut self, rank: usize) -> Result<(), Violation> {
        loop {
            let Some(exchange) = &mut self.hosts[rank].exchange else { return Ok(()) };
            let actions = exchange.take_actions();
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                self.carry_out(rank, action)?;
            }
        }
    }

    fn carry_out(&mut self, rank: usize, action: Action) -> Result<(), Violation> {
        let now = self.instant();
        self.note(|| format!("rank {rank}: {action:?}"));
        let number = self.hosts[rank].exchanges - 1;
        let plan = Arc::clone(&self.plans[number][rank]);
        match action {
            Action::Publish(note) => {
                let slow = if self.rng.u32(0..50) == 0 { 10 } else { 1 };
                let delay = slow * self.rng.u64(0..=self.scenario.note);
                self.boards[number].publish(rank, note, self.now, delay);
            }
            Action::Drain { part: Part::Early, .. } if self.planted(rank, Plant::EarlyDrainSkipped) => {}
            Action::Drain { wave, part } => {
                plan.apply_drains(Arc::make_mut(&mut self.hosts[rank].map), wave, part);
            }
            Action::Submit { wave, part } => {
                self.tally.early += usize::from(part == Part::Early);
                self.hand_over(rank, number, wave, part)?;
            }
            Action::Commit { wave } => {
                let host = &mut self.hosts[rank];
                apply_commits(Arc::make_mut(&mut host.map), &plan.waves()[wave]);
                host.device.queue.push_back(Work::Commit { exchange: number, wave });
                host.device.enqueued += 1;
                host.commit = Some(host.device.enqueued);
                self.run_device(rank)?;
            }
            Action::Decide { from, to, hold } => {
                if self.planted(rank, Plant::AnnouncedFirst) {
                    self.announce(rank, number, to)?;
                }
                let micros = self.rng.u64(0..=self.scenario.note);
                if hold {
                    // The thread waits for the answer: what it does next, it does later.
                    self.hosts[rank].held += 2 * micros;
                    if let (Some(record), Some(exchange)) =
                        (self.decide(rank, number, from, to), &mut self.hosts[rank].exchange)
                    {
                        exchange.decided(record, now);
                    }
                } else {
                    self.after(micros, Event::Decide { rank, exchange: number, from, to });
                }
            }
            Action::Halt { .. } => self.halt(rank),
            Action::Restore { phy2log } => self.hosts[rank].map = Arc::new(phy2log),
        }
        Ok(())
    }

    /// A compare-and-set arrives at the store.
    pub(super) fn decide(&mut self, rank: usize, number: usize, from: Record, to: Record) -> Option<Record> {
        let overwrite = self.planted(rank, Plant::RecordOverwritten);
        let record = self.boards[number].decide(from, to, self.now, overwrite);
        self.note(|| format!("store: rank {rank} wants {to:?}, record is {record:?}"));
        record
    }

    /// The answer of the store arrives at the rank, unless the rank or the exchange is gone by then.
    pub(super) fn answer(&mut self, rank: usize, number: usize, record: Record) -> Result<(), Violation> {
        let now = self.instant();
        let host = &mut self.hosts[rank];
        if host.stopped_until > self.now {
            let micros = host.stopped_until - self.now;
            self.after(micros, Event::Answer { rank, exchange: number, record });
        } else if host.exchanges == number + 1
            && let Some(exchange) = &mut host.exchange
        {
            exchange.decided(record, now);
            return self.act(rank);
        }
        Ok(())
    }

    /// Hands a part of a wave to the transport, with the faults that are planted in that.
    fn hand_over(&mut self, rank: usize, number: usize, wave: usize, part: Part) -> Result<(), Violation> {
        let plan = Arc::clone(&self.plans[number][rank]);
        let has_early =
            |wave: usize| wave < plan.waves().len() && !plan.transfers(wave, Part::Early).is_empty();
        if self.planted(rank, Plant::HandedOverEarly) && part == Part::Early {
            self.submit(rank, (number, wave, part))?;
            if has_early(wave + 1) {
                self.copy_ahead(rank, (number, wave + 1, Part::Early));
            }
            return Ok(());
        }
        let waits =
            part == Part::Late && has_early(wave + 1) && plan.drains(wave + 1, Part::Early).is_empty();
        if self.planted(rank, Plant::PartsSwapped) && waits {
            self.hosts[rank].held_back = Some((number, wave, part));
            return Ok(());
        }
        self.submit(rank, (number, wave, part))?;
        match self.hosts[rank].held_back.take() {
            Some(before) => self.submit(rank, before),
            None => Ok(()),
        }
    }

    /// Tells the others of an exchange what a rank wants to be decided, as if it were.
    fn announce(&mut self, rank: usize, number: usize, to: Record) -> Result<(), Violation> {
        let now = self.instant();
        for other in (0..self.hosts.len()).filter(|&other| other != rank) {
            let host = &mut self.hosts[other];
            if let (true, true, Some(exchange)) =
                (host.alive, host.exchanges == number + 1, &mut host.exchange)
            {
                exchange.learn(to, now);
                self.act(other)?;
            }
        }
        Ok(())
    }

    /// Ends the exchange of a rank whose state machine has come to an end.
    pub(super) fn take_outcome(&mut self, rank: usize) {
        let host = &mut self.hosts[rank];
        if let Some(outcome) = host.exchange.as_ref().and_then(|e| e.outcome().cloned()) {
            host.exchange = None;
            match outcome {
                Outcome::Undecided { step: Some(step), .. } => host.barred_from = host.barred_from.min(step),
                Outcome::Broken { .. } => host.barred_from = 0,
                _ => {}
            }
            host.outcome = Some(outcome);
        }
    }

    /// The clock as the state machine sees it.
    pub(super) fn instant(&self) -> std::time::Instant {
        self.epoch + Duration::from_micros(self.now)
    }
}
