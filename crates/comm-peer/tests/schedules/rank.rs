//! One rank's part of an exchange, as its driver carries it out: experts go round in a ring, wave by wave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::host::HostFence;
use eplb_comm::{Fence, FenceState};
use eplb_core::{ExpertId, Landing, LayerId, RankId, SlotId, Transfer};
use shuttle::thread::spawn;

use crate::engine::Engine;
use crate::points::{Point, Points, Step};
use crate::shared::{Manner, Shared, Ticket};
use crate::sync::yield_now;
use crate::words::{Own, Ready, Signals, Words};
use crate::world::{Decision, Fate, JUNK, Part, Planted, RANKS, WAVES, World};

/// The rank that something befalls.
const STRUCK: usize = 1;

#[derive(Clone)]
struct Rank {
    rank: usize,
    world: Arc<World>,
    shared: Arc<Shared>,
    points: Arc<Points>,
    fate: Fate,
    planted: Planted,
}

/// The expert that the next rank holds when a wave begins.
fn pull(rank: usize, wave: usize) -> Transfer {
    let source = (rank + 1) % RANKS;
    Transfer {
        layer: LayerId(0),
        expert: ExpertId(((rank + 1 + wave) % RANKS) as u32),
        source: RankId::at(source),
        source_slot: SlotId::at(source),
        dest: RankId::at(rank),
        dest_slot: SlotId::at(rank),
        landing: Landing::Staged { offset: 0 },
    }
}

impl Rank {
    /// Whether this rank is one that does not know what the others have done meanwhile.
    fn is_held_back(&self) -> bool {
        self.fate == Fate::HeldBack && self.rank == STRUCK
    }

    /// Waits for the end of a wave's copies; whether they came.
    fn wait(&self, wave: usize, ticket: &Ticket) -> bool {
        loop {
            match ticket.fence.poll() {
                Ok(true) => return true,
                Err(_) => return false,
                Ok(false) if !self.is_held_back() && self.world.decision(wave) == Decision::Abort => {
                    return false;
                }
                Ok(false) => yield_now(),
            }
        }
    }

    /// Whether a wave is committed here, once that is decided.
    fn may_commit(&self, wave: usize) -> bool {
        if self.planted == Planted::CommitEarly {
            return true;
        }
        self.world.prepare(wave);
        if self.planted == Planted::RecordForgotten && self.is_held_back() {
            return true;
        }
        loop {
            match self.world.decision(wave) {
                Decision::Open => yield_now(),
                decision => return decision == Decision::Commit,
            }
        }
    }

    /// All waves, or as many as there are before something goes wrong; whether all were committed. The first starts behind `written`.
    fn waves(&self, written: Fence) -> bool {
        let mut after = written;
        for wave in 0..WAVES {
            let transfer = pull(self.rank, wave);
            let far = Instant::now() + Duration::from_secs(3600);
            self.points.pass(self.rank, Step::Submits);
            let Ok((_, ticket)) = self.shared.submit(vec![transfer], after, far) else { return false };
            self.points.pass(self.rank, Step::HasSubmitted);
            if !self.wait(wave, &ticket) && self.planted != Planted::PreparedAnyway {
                return false;
            }
            self.points.pass(self.rank, Step::HasBytes);
            if !self.may_commit(wave) {
                return false;
            }
            self.points.pass(self.rank, Step::KnowsDecision);
            if self.planted == Planted::CommitForgotten && self.points.has_struck(self.rank) {
                return false;
            }
            let expert = self.world.read(self.rank, Part::Staging);
            assert_eq!(expert, u64::from(transfer.expert.0), "rank {} commits other bytes", self.rank);
            self.world.write(self.rank, Part::Slot, expert);
            self.world.commit(wave);
            self.points.pass(self.rank, Step::HasCommitted);
            while !self.world.is_over(wave) {
                yield_now();
            }
            after = Fence::passed();
        }
        true
    }

    /// The life of a rank: its waves, and what it does with its memory afterwards.
    fn live(&self) {
        let written = HostFence::new();
        let stream = {
            let (rank, world, written) = (self.rank, self.world.clone(), written.clone());
            spawn(move || {
                world.write(rank, Part::Slot, rank as u64);
                written.pass();
            })
        };
        let early = self.planted == Planted::WordFirst;
        let well = self.waves(if early { Fence::passed() } else { written.fence() });
        stream.join().expect("it does not panic");
        if well {
            self.shared.abort("it is over");
            return;
        }
        self.world.abort();
        self.shared.abort("the wave cannot be committed");
        while self.planted != Planted::QuietForgotten && self.shared.quiet.poll() != Ok(true) {
            yield_now();
        }
        // The next epoch uses the memory for something else.
        self.world.write(self.rank, Part::Staging, JUNK);
        self.world.write(self.rank, Part::Slot, JUNK);
    }
}

/// How ranks pull.
fn manner(fate: Fate) -> Manner {
    Manner {
        turns: matches!(fate, Fate::InTurns | Fate::GivesUpInTurns).then_some(RANKS),
        ..Manner::default()
    }
}

/// The words of a rank, which may give up as it says something: another of its threads does, as this one is in the middle of something.
#[derive(Debug)]
struct Speaking {
    own: Own,
    points: Arc<Points>,
}

impl Signals for Speaking {
    fn ready(&self, rank: usize) -> Option<Ready> {
        self.own.ready(rank)
    }

    fn announce(&self, ready: Ready) {
        if self.points.is_reached(self.own.rank, Step::Announces) {
            let points = self.points.clone();
            spawn(move || points.give_up());
        }
        self.own.announce(ready);
    }

    fn give_up(&self) {
        self.own.give_up();
    }

    fn reading(&self, rank: usize) -> Option<usize> {
        self.own.reading(rank)
    }

    fn read(&self, source: Option<usize>) {
        self.own.read(source);
    }
}

/// A whole exchange of all ranks, one of which may have to give up at a point.
pub(crate) fn exchange(fate: Fate, planted: Planted, at: Option<Point>) {
    let (world, words) = (Arc::new(World::new()), Words::new(RANKS));
    let points = Arc::new(Points::new(at, world.clone()));
    let mut parts = Vec::new();
    for rank in 0..RANKS {
        if planted == Planted::WordsOfBefore {
            words.announce(rank, Ready::default().with(0).expect("it lies in the window"));
        }
        let (engine, copies) = Engine::start(rank, world.clone(), points.clone(), planted);
        let signals = Speaking { own: Own { words: words.clone(), rank }, points: points.clone() };
        let shared = Shared::new(RankId::at(rank), Box::new(engine.clone()), Box::new(signals), manner(fate));
        points.hold(rank, &shared);
        let served = shared.clone();
        let progress = spawn(move || served.serve());
        let rank = Rank { rank, world: world.clone(), shared, points: points.clone(), fate, planted };
        parts.push((rank, engine, copies, progress));
    }
    let struck = parts[STRUCK].0.clone();
    let strike = spawn(move || match struck.fate {
        Fate::Well | Fate::InTurns | Fate::GivesUpAnywhere | Fate::GivesUpInTurns => {}
        Fate::GivesUp => struck.shared.abort("it gives up"),
        Fate::HeldBack => struck.world.abort(),
    });
    let lives: Vec<_> =
        parts.iter().map(|(rank, ..)| rank.clone()).map(|rank| spawn(move || rank.live())).collect();
    lives.into_iter().for_each(|life| life.join().expect("it does not panic"));
    strike.join().expect("it does not panic");
    for (rank, engine, copies, progress) in parts {
        rank.shared.leave();
        progress.join().expect("it does not panic");
        engine.end();
        copies.join().expect("it does not panic");
    }
    points.end();
    assert!(world.is_settled(), "a wave is committed by some ranks alone");
}
