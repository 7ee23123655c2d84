//! Holds a rank at a moment of an exchange, and lets its fault strike there.

use std::io::{BufRead, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::host::{HostMemory, HostStream};
use eplb_comm::{CommError, Communicator, Fence, Intercept, Intercepted, Ticket};
use eplb_core::{Placement, RankId, Transfer};
use eplb_engine::board::{Board, Reader};
use eplb_engine::cluster::{Hooks, ServingStream};
use eplb_exchange::{Note, Record};

use crate::case::{Case, Fault, Phase};

/// Says a line to the driver.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap_or_else(|_| std::process::exit(9));
}

/// Waits for a line of the driver.
pub(crate) fn hear() -> String {
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(0) | Err(_) => std::process::exit(9),
        Ok(_) => line.trim().to_owned(),
    }
}

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
        let signal = |name: &str| {
            // What was said before goes out, and others come to where they wait: the fault is to strike after it.
            std::thread::sleep(Duration::from_millis(60));
            say("gate");
            // The shell's parent is this process.
            let sent = Command::new("sh").args(["-c", &format!("kill -{name} $PPID")]).status();
            assert!(sent.is_ok_and(|status| status.success()), "no signal was sent");
        };
        match self.case.fault {
            Fault::Kill => signal("KILL"),
            Fault::Stop => signal("STOP"),
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
        Arc::new(GatedBoard { inner: board, gate: self.0.clone() })
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
struct GatedBoard {
    inner: Arc<dyn Board>,
    gate: Arc<Gate>,
}

impl Board for GatedBoard {
    fn publish(&self, from: RankId, note: Note) {
        let phase = match note {
            Note::Drained { .. } => Some(Phase::Drain),
            Note::Acknowledged { .. } => Some(Phase::Commit),
            Note::Committed { .. } => Some(Phase::BetweenWaves),
            _ => None,
        };
        self.inner.publish(from, note);
        if let Some(phase) = phase {
            self.gate.pass(phase);
        }
    }

    fn collect(&self, reader: &mut Reader) -> Vec<(RankId, Note)> {
        self.inner.collect(reader)
    }

    fn renew(&self, rank: RankId) {
        self.inner.renew(rank);
    }

    fn signs(&self) -> Vec<(RankId, u64)> {
        self.inner.signs()
    }

    fn looks(&self) -> u64 {
        self.inner.looks()
    }

    fn record(&self) -> Record {
        self.inner.record()
    }

    fn decide(&self, from: Record, to: Record, until: Option<Instant>) -> Option<Record> {
        self.inner.decide(from, to, until)
    }

    fn lost(&self) -> Option<String> {
        self.inner.lost()
    }
}

#[derive(Debug)]
struct GatedWaves(Arc<Gate>);

impl Intercept for GatedWaves {
    fn submit(
        &mut self,
        inner: &mut dyn Communicator,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        let ticket = inner.submit(transfers, after, deadline);
        self.0.pass(Phase::Wave);
        ticket
    }
}
