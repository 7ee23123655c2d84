//! Exchanges of several ranks over the `peer` backend, under schedules of their threads that shuttle draws.
//!
//! The sources of the order of waves, the progress thread and the words are the crate's own, compiled over shuttle's threads. Around them:
//! copy engines that take their time, streams that write late, ranks that give up at any moment and ranks that are held back for as long as
//! a schedule likes. Whatever the schedule: no rank commits bytes that are not the expert's, and none writes what another may be reading for
//! a wave that can still be committed. Faults are planted, and have to be found.
//!
//! `EPLB_FAULTS=all`: more schedules.

#[allow(dead_code, unreachable_pub, unused_imports)] // What only the crate needs of it.
#[path = "../../src/lane.rs"]
mod lane;
#[allow(dead_code, unreachable_pub)]
#[path = "../../src/pace.rs"]
mod pace;
#[path = "../../src/pulls.rs"]
mod pulls;
#[allow(dead_code, unreachable_pub)]
#[path = "../../src/reading.rs"]
mod reading;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../src/shared.rs"]
mod shared;
#[allow(dead_code)]
#[path = "../../src/speed.rs"]
mod speed;
mod sync;
#[allow(dead_code, unreachable_pub)]
#[path = "../../src/turns.rs"]
mod turns;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../src/words.rs"]
mod words;

#[path = "../../../comm/tests/support/cases.rs"]
mod cases;
mod engine;
mod points;
mod rank;
mod world;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};

use points::Point;
use world::{Fate, Planted};

/// What is tried, in words; it has to fail where something is planted.
const CASES: &[(&str, Fate, Planted)] = &[
    ("every rank does its part", Fate::Well, Planted::Nothing),
    ("every rank does its part in its turn", Fate::InTurns, Planted::Nothing),
    ("a rank gives up at some moment", Fate::GivesUp, Planted::Nothing),
    ("each rank gives up at each of its points", Fate::GivesUpAnywhere, Planted::Nothing),
    ("a rank is held back while the others give up and go on", Fate::HeldBack, Planted::Nothing),
    ("a wave may start before its bytes are written", Fate::Well, Planted::WordFirst),
    ("the words are those of an epoch before", Fate::Well, Planted::WordsOfBefore),
    ("a wave is done before its copies are", Fate::Well, Planted::FenceEarly),
    ("a wave is done before its copies are, in turns", Fate::InTurns, Planted::FenceEarly),
    ("a rank commits before all are prepared", Fate::Well, Planted::CommitEarly),
    (
        "a rank that was held back commits what the others have given up",
        Fate::HeldBack,
        Planted::RecordForgotten,
    ),
    ("a rank goes on before its own copies have ended", Fate::GivesUp, Planted::QuietForgotten),
    ("a rank whose copies failed is prepared all the same", Fate::GivesUpAnywhere, Planted::PreparedAnyway),
    ("a rank that has given up forgets what was decided", Fate::GivesUpAnywhere, Planted::CommitForgotten),
];

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.failure_persistence = FailurePersistence::None;
    config
}

/// Runs exchanges under so many schedules: threads at random, and threads by rank with a few changes, which finds what needs long waits.
fn draw(draws: usize, exchange: impl Fn() + Copy + Send + Sync + 'static) {
    Runner::new(RandomScheduler::new_from_seed(7, draws), config()).run(exchange);
    Runner::new(PctScheduler::new_from_seed(7, 3, draws), config()).run(exchange);
}

/// Lets each rank give up at each point that it comes to: of its driver, its progress thread and its copies.
fn give_up_everywhere(planted: Planted, draws: usize) {
    for point in Point::all() {
        for fate in [Fate::GivesUpAnywhere, Fate::GivesUpInTurns] {
            draw(draws, move || rank::exchange(fate, planted, Some(point)));
        }
    }
}

fn main() {
    cases::run(CASES.len(), |at| {
        let (name, fate, planted) = CASES[at];
        let is_broken = planted != Planted::Nothing;
        // A fault has to be found, however few schedules show it.
        let draws = match (is_broken, cases::is_whole()) {
            (false, false) => 150,
            (false, true) => 20_000,
            (true, _) => 20_000,
        };
        let run = move || match fate {
            Fate::GivesUpAnywhere => give_up_everywhere(planted, if cases::is_whole() { 1000 } else { 40 }),
            _ => draw(draws, move || rank::exchange(fate, planted, None)),
        };
        (name, is_broken, run)
    });
}
