//! What strikes, when, and how long survivors may take to say so.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use eplb_engine::deadlines::Deadlines;

/// What carries experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// Gloo, over TCP.
    Gloo,
    /// Pulls from memory that processes share.
    Peer,
}

/// What happens to a rank, or to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// SIGKILL.
    Kill,
    /// SIGSTOP; SIGCONT when the others have noticed.
    Stop,
    /// It believes that another placement was planned.
    OtherPlan,
    /// It runs another version.
    OtherVersion,
    /// Its experts have one byte more.
    OtherExperts,
    /// The process that serves the store is gone.
    StoreDead,
    /// Somebody sends garbage to the store and to every port that a rank listens at.
    Junk,
    /// Before a rank's peers do, somebody sends a well-formed frame of Gloo's to every port that a rank announces.
    Frame,
    /// The disk under the store is full.
    DiskFull,
    /// Ranks are on two hosts, and the link between them is cut.
    CutLink,
    /// A byte in one of its slots changes unseen: planted, to see that the driver notices.
    WrongByte,
}

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before the rank joins.
    Rendezvous,
    /// Before it makes its communicator.
    Connect,
    /// Before it tells the hash of its waves.
    Agreement,
    /// After it has drained its first slots.
    Drain,
    /// While the bytes of the first wave are under way.
    Wave,
    /// After it has acknowledged the step of a commit.
    Commit,
    /// After it has committed the first wave.
    BetweenWaves,
}

const CARRIERS: [(Carrier, &str); 2] = [(Carrier::Gloo, "gloo"), (Carrier::Peer, "peer")];

const FAULTS: [(Fault, &str); 12] = [
    (Fault::None, "nothing"),
    (Fault::Kill, "SIGKILL"),
    (Fault::Stop, "SIGSTOP"),
    (Fault::OtherPlan, "other-plan"),
    (Fault::OtherVersion, "other-version"),
    (Fault::OtherExperts, "other-experts"),
    (Fault::StoreDead, "store-dead"),
    (Fault::Junk, "junk"),
    (Fault::Frame, "gloo-frame"),
    (Fault::DiskFull, "disk-full"),
    (Fault::CutLink, "cut-link"),
    (Fault::WrongByte, "wrong-byte"),
];

const PHASES: [(Phase, &str); 7] = [
    (Phase::Rendezvous, "rendezvous"),
    (Phase::Connect, "connect"),
    (Phase::Agreement, "agreement"),
    (Phase::Drain, "drain"),
    (Phase::Wave, "wave"),
    (Phase::Commit, "commit"),
    (Phase::BetweenWaves, "between-waves"),
];

impl FromStr for Carrier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = CARRIERS.iter().find(|(_, name)| *name == text);
        found.map(|(carrier, _)| *carrier).ok_or_else(|| format!("no carrier {text:?}"))
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(CARRIERS.iter().find(|(carrier, _)| carrier == self).map_or("?", |(_, name)| name))
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = FAULTS.iter().find(|(_, name)| *name == text);
        found.map(|(fault, _)| *fault).ok_or_else(|| format!("no fault {text:?}"))
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = PHASES.iter().find(|(_, name)| *name == text);
        found.map(|(phase, _)| *phase).ok_or_else(|| format!("no phase {text:?}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(FAULTS.iter().find(|(fault, _)| fault == self).map_or("?", |(_, name)| name))
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(PHASES.iter().find(|(phase, _)| phase == self).map_or("?", |(_, name)| name))
    }
}

/// One line of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) fault: Fault,
    pub(crate) phase: Phase,
    /// The rank that it happens to, or that tells when the moment has come.
    pub(crate) target: usize,
    pub(crate) carrier: Carrier,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let carrier =
            if self.carrier == Carrier::Gloo { String::new() } else { format!(", {}", self.carrier) };
        f.pad(&format!("{} at {}, rank {}{carrier}", self.fault, self.phase, self.target))
    }
}

/// Deadlines of the ranks under test: short, so that the matrix is, and no shorter than a rank or the driver of a busy machine may be held up.
pub(crate) fn deadlines() -> Deadlines {
    let mut deadlines = Deadlines::new();
    let seconds = Duration::from_secs;
    deadlines.store.connect = seconds(6);
    deadlines.store.join = seconds(8);
    deadlines.store.operation = seconds(5);
    deadlines.store.collective = seconds(6);
    deadlines.store.silence = seconds(5);
    deadlines.store.keepalive = Duration::from_millis(200);
    deadlines.store.peer_timeout = seconds(5);
    deadlines.exchange.peer = seconds(5);
    deadlines.exchange.transfer = seconds(8);
    deadlines.exchange.answer = seconds(8);
    deadlines.exchange.commit_hold = seconds(20);
    deadlines.communicator = seconds(8);
    deadlines
}

impl Case {
    /// The deadline that ends the survivors' wait, plus 2 s.
    pub(crate) fn allowed(&self) -> Duration {
        let deadlines = deadlines();
        let deadline = match (self.fault, self.phase) {
            (Fault::OtherPlan | Fault::OtherVersion | Fault::OtherExperts, _) => deadlines.store.collective,
            (Fault::StoreDead, _) => deadlines.store.silence,
            (Fault::Junk | Fault::Frame, Phase::Rendezvous | Phase::Connect) => deadlines.communicator,
            (Fault::Junk | Fault::Frame, _) => deadlines.exchange.transfer,
            (_, Phase::Rendezvous) => deadlines.store.join,
            (_, Phase::Connect | Phase::Agreement) => deadlines.store.collective,
            _ => deadlines.exchange.peer,
        };
        deadline + Duration::from_secs(2)
    }

    /// Whether the fault waits for its target to come to the phase.
    pub(crate) fn is_gated(&self) -> bool {
        let at_once =
            [Fault::OtherPlan, Fault::OtherVersion, Fault::OtherExperts, Fault::Frame, Fault::WrongByte];
        self.fault != Fault::None && !at_once.contains(&self.fault)
    }

    /// Whether survivors may finish as if nothing had happened.
    pub(crate) fn may_finish(&self) -> bool {
        matches!(self.fault, Fault::Junk | Fault::Frame)
    }

    /// Words that at least one survivor's error must have.
    pub(crate) fn words(&self) -> &'static [&'static str] {
        match self.fault {
            Fault::OtherPlan => &["waves", "agreeing"],
            Fault::OtherVersion => &["version", "comparing"],
            Fault::OtherExperts => &["bytes of an expert", "comparing"],
            Fault::StoreDead => &["store"],
            Fault::DiskFull => &["no room"],
            _ => &[],
        }
    }
}
