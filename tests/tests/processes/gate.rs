//! Holds a rank at a moment of an exchange, and lets its fault strike there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eplb_comm::host::{HostMemory, HostStream};
use eplb_comm::{Communicator, Intercept, Intercepted};
use eplb_core::{Placement, RankId, Transfer};
use eplb_engine::board::{Board, BoardIntercept, InterceptedBoard};
use eplb_engine::cluster::{Hooks, ServingStream};
use eplb_exchange::Note;
use eplb_tests::child::{hear, kill, say, stop};

use crate::case::{Case, Fault, Phase};

/// The moment at which the fault of a case strikes this rank, once.
#[derive(Debug)]
pub(crate) struct Gate {
    case: Case,
    struck: AtomicBool,
    other: Arc<Placement>,
}

impl Gate {
    /// For a rank that is the case's target; `other` is the placement that it may be made to believe in.
    pub(crate) fn new(case: Case, other: Placement) -> Arc<Self> {
        Arc::new(Self { case, struck: AtomicBool::new(false), other: Arc::new(other) })
    }

    /// The rank has come to `phase`.
    pub(crate) fn pass(&self, phase: Phase) {
        if phase != self.case.phase || self.struck.swap(true, Ordering::SeqCst) {
            return;
        }
        let announce = || {
            // What was said before goes out, and others come to where they wait: the fault is to strike after it.
            std::thread::sleep(Duration::from_millis(60));
            say("gate");
        };
        match self.case.fault {
            Fault::Kill => {
                announce();
                kill();
            }
            Fault::Stop => {
                announce();
                stop();
            }
            Fault::StoreDead | Fault::Junk | Fault::DiskFull | Fault::CutLink => {
                say("gate");
                hear();
            }
            Fault::None
            | Fault::OtherPlan
            | Fault::OtherVersion
            | Fault::OtherExperts
            | Fault::Frame
            | Fault::WrongByte => {}
        }
    }
}

/// Puts the gate around the parts of a rank.
#[derive(Debug)]
pub(crate) struct Gated(pub(crate) Arc<Gate>);

impl Hooks for Gated {
    fn stream(&self, _rank: RankId, stream: HostStream) -> Box<dyn ServingStream> {
        // The last part of a rank that is made before its communicator.
        self.0.pass(Phase::Connect);
        Box::new(stream)
    }

    fn communicator(
        &self,
        _rank: RankId,
        _memory: &Arc<HostMemory>,
        communicator: Box<dyn Communicator>,
    ) -> Box<dyn Communicator> {
        Box::new(Intercepted::new(communicator, GatedWaves(self.0.clone())))
    }

    fn board(&self, _rank: RankId, board: Arc<dyn Board>) -> Arc<dyn Board> {
        Arc::new(InterceptedBoard::new(board, GatedNotes(self.0.clone())))
    }

    fn placement(&self, _rank: RankId, placement: Arc<Placement>) -> Arc<Placement> {
        let lies = self.0.case.fault == Fault::OtherPlan && !self.0.struck.swap(true, Ordering::SeqCst);
        if lies {
            return self.0.other.clone();
        }
        // The last that happens before ranks compare their waves.
        self.0.pass(Phase::Agreement);
        placement
    }
}

#[derive(Debug)]
struct GatedNotes(Arc<Gate>);

impl BoardIntercept for GatedNotes {
    fn publish(&self, inner: &dyn Board, from: RankId, note: Note) {
        let phase = match note {
            Note::Drained { .. } => Some(Phase::Drain),
            Note::Acknowledged { .. } => Some(Phase::Commit),
            Note::Committed { .. } => Some(Phase::BetweenWaves),
            _ => None,
        };
        inner.publish(from, note);
        if let Some(phase) = phase {
            self.0.pass(phase);
        }
    }
}

#[derive(Debug)]
struct GatedWaves(Arc<Gate>);

impl Intercept for GatedWaves {
    fn submitted(&mut self, _transfers: &[Transfer]) {
        self.0.pass(Phase::Wave);
    }
}
