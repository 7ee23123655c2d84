//! What happens to the members.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use eplb_engine::deadlines::Deadlines;

/// Ranks at the beginning of every case.
pub(crate) const RANKS: usize = 4;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A rank leaves; its experts move off first.
    Leave,
    /// Two processes join.
    Join,
    /// All get other numbers.
    Renumber,
    /// A rank is killed while bytes are under way; what only it held is fetched.
    Kill,
    /// A rank is stopped while bytes are under way, and resumes when the others have reformed.
    Stop,
    /// A process is to join, and comes too late.
    Late,
    /// A process with other experts wants to join.
    OtherExperts,
    /// A rank is killed when it has shown itself to form the next epoch.
    KillPresent,
    /// When it has proposed the epoch.
    KillProposed,
    /// When it has formed the epoch.
    KillFormed,
    /// When it has come into the new epoch, and something is said there already.
    KillSettling,
    /// The leader is killed when it has written that a wave is committed, and has told nobody.
    KillDecided,
    /// The same, and a rank cannot read what was decided: it rolls forward in the new epoch.
    KillUnheard,
    /// Planted: the survivors leave the old epoch open when a rank was stopped.
    PlantOpen,
    /// Planted: what is missing is said to be there, but not fetched.
    PlantUnfetched,
    /// Planted: as `KillUnheard`, and the rank that rolls forward copies nothing.
    PlantUncopied,
}

/// The rank that cannot read what was decided.
pub(crate) const DEAF: usize = 2;

impl Kind {
    pub(crate) const ALL: [Self; 16] = [
        Self::Leave,
        Self::Join,
        Self::Renumber,
        Self::Kill,
        Self::Stop,
        Self::Late,
        Self::OtherExperts,
        Self::KillPresent,
        Self::KillProposed,
        Self::KillFormed,
        Self::KillSettling,
        Self::KillDecided,
        Self::KillUnheard,
        Self::PlantOpen,
        Self::PlantUnfetched,
        Self::PlantUncopied,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Join => "join",
            Self::Renumber => "renumber",
            Self::Kill => "kill-in-a-wave",
            Self::Stop => "stop-in-a-wave",
            Self::Late => "late",
            Self::OtherExperts => "other-experts",
            Self::KillPresent => "kill-present",
            Self::KillProposed => "kill-proposed",
            Self::KillFormed => "kill-formed",
            Self::KillSettling => "kill-settling",
            Self::KillDecided => "kill-decided",
            Self::KillUnheard => "kill-decided-unheard",
            Self::PlantOpen => "planted-open-epoch",
            Self::PlantUnfetched => "planted-not-fetched",
            Self::PlantUncopied => "planted-not-copied",
        }
    }

    /// Whom it may befall.
    pub(crate) fn targets(self) -> &'static [usize] {
        match self {
            Self::Leave => &[1, 0, 3],
            Self::Kill | Self::Stop | Self::KillPresent | Self::KillSettling => &[0, 2, 3],
            Self::PlantOpen | Self::PlantUnfetched => &[2],
            // Only the lowest proposes; of the others nobody in particular.
            _ => &[0],
        }
    }

    /// For a planted fault: the words by one of which it must be noticed.
    pub(crate) fn planted(self) -> Option<&'static [&'static str]> {
        match self {
            Self::PlantOpen => Some(&["the record of the old epoch"]),
            Self::PlantUnfetched => Some(&["wrong"]),
            // By bytes that are counted, or by the first copy from there.
            Self::PlantUncopied => Some(&["wrong", "holds expert"]),
            _ => None,
        }
    }

    /// Processes that join.
    pub(crate) fn joiners(self) -> usize {
        match self {
            Self::Join => 2,
            Self::Late | Self::OtherExperts => 1,
            _ => 0,
        }
    }

    /// Whether the target is killed, at some moment.
    pub(crate) fn kills(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::KillPresent
                | Self::KillProposed
                | Self::KillFormed
                | Self::KillSettling
                | Self::KillDecided
                | Self::KillUnheard
                | Self::PlantUnfetched
                | Self::PlantUncopied
        )
    }

    /// Whether the target is stopped, and resumes at the end.
    pub(crate) fn stops(self) -> bool {
        matches!(self, Self::Stop | Self::PlantOpen)
    }

    /// Whether an exchange is under way when it happens, and fails.
    pub(crate) fn in_a_wave(self) -> bool {
        self.stops() || self.when_decided() || matches!(self, Self::Kill | Self::PlantUnfetched)
    }

    /// Whether the leader is killed when a wave is decided.
    pub(crate) fn when_decided(self) -> bool {
        self.rolls() || self == Self::KillDecided
    }

    /// Whether a rank cannot read that it is, and rolls forward later.
    pub(crate) fn rolls(self) -> bool {
        matches!(self, Self::KillUnheard | Self::PlantUncopied)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("no case {text:?}"))
    }
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    /// The rank that it happens to.
    pub(crate) target: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}, rank {}", self.kind.name(), self.target))
    }
}

impl Case {
    /// Its words on a command line.
    pub(crate) fn words(&self) -> [String; 2] {
        [self.kind.name().to_owned(), self.target.to_string()]
    }

    /// Deadlines of the ranks under test: short where a case waits for them, so that the cases are, and else as long as a busy machine wants.
    pub(crate) fn deadlines(&self) -> Deadlines {
        let mut deadlines = Deadlines::new();
        let seconds = Duration::from_secs;
        deadlines.store.connect = seconds(8);
        deadlines.store.join = seconds(15);
        deadlines.store.collective = seconds(8);
        deadlines.exchange.transfer = seconds(10);
        deadlines.exchange.answer = seconds(8);
        deadlines.exchange.commit_hold = seconds(20);
        deadlines.communicator = seconds(15);
        deadlines.reform.gather = seconds(8);
        // Nobody comes, or one who goes again: these the members wait out.
        deadlines.reform.join = seconds(match self.kind {
            Kind::Late => 3,
            Kind::OtherExperts => 10,
            _ => 30,
        });
        deadlines.reform.whole = seconds(60);
        deadlines
    }
}
