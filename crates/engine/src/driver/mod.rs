//! Runs one rank's part of an exchange over a communicator and a stream.
//!
//! - `boundary`: the forward path, a step, or a tick while none runs, and why a step is refused;
//! - `look`: off it, what has happened since the last look is told to the exchange;
//! - `act`: what the exchange asks for then: notes, drains, transfers, commits, decisions;
//! - `leave`: an exchange that is called off or given up, and what of it may still run;
//! - `active`: what belongs to the one exchange under way.

mod act;
mod active;
mod boundary;
mod leave;
mod look;

use std::collections::VecDeque;
use std::sync::Arc;

use eplb_comm::{Communicator, Fence, Moment, Stream, Timeline};
use eplb_core::{Placement, RankId, Topology};
use eplb_exchange::{Exchange, Phase};
use ndarray::Array2;

pub use active::{Abandoned, Ended};
pub use boundary::Held;

pub(crate) use act::own_commits;

use crate::board::{Board, Reader};
use crate::error::EngineError;
use active::{Active, Caller};
use boundary::Bar;
use leave::Doubtful;

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
        self.act(Caller::Look);
        Ok(())
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
}
