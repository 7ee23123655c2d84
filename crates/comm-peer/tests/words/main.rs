//! What a rank that has seen a word sees of the bytes before it, in every order of two ranks' writes and reads.
//!
//! The source of the words is the crate's own, compiled over those of loom, which tries every order up to a few switches of threads
//! (`EPLB_FAULTS=all`: more). Orderings that are too weak and words that come too early are planted, and have to be found.

#[path = "../../../comm/tests/support/cases.rs"]
mod cases;
/// Words of loom, whose orderings can be made too weak.
#[allow(dead_code)] // What only host memory needs of it.
#[path = "../../../comm/tests/orders/atomics.rs"]
mod sync;
#[allow(dead_code, unreachable_pub, unused_imports)] // What only the crate needs of it.
#[path = "../../src/words.rs"]
mod words;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread::{spawn, yield_now};

use sync::{Planted, plant};
use words::{Ready, Words};

/// What a rank does wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// It says that a wave may start before its bytes are written.
    WordFirst,
    /// Its words are those that another epoch has used.
    WordOfBefore,
    /// It writes what others may still be reading.
    WaitForgotten,
}

/// Two ranks: one whose slot is read in two waves, with a write between, and one that reads it.
struct Pair {
    words: Words,
    slot: UnsafeCell<u32>,
}

// SAFETY: the cell is read and written only where the words allow it; loom checks just that.
unsafe impl Send for Pair {}
// SAFETY: as above.
unsafe impl Sync for Pair {}

const OWNER: usize = 0;
const READER: usize = 1;

impl Pair {
    /// Waits until a wave may start at a rank; whether it may, or the rank gave up.
    fn wait(&self, rank: usize, wave: u64) -> bool {
        loop {
            match self.words.ready(rank) {
                None => return false,
                Some(ready) if ready.has(wave) => return true,
                Some(_) => yield_now(),
            }
        }
    }

    fn write(&self, value: u32) {
        // SAFETY: the owner, before its word says that the slot may be read, or after the reader has said that it has read it.
        self.slot.with_mut(|slot| unsafe { *slot = value });
    }

    fn read(&self) -> u32 {
        // SAFETY: the owner's word has said that it may be read.
        self.slot.with(|slot| unsafe { *slot })
    }
}

fn with(ready: Ready, wave: u64) -> Ready {
    ready.with(wave).expect("it lies in the window")
}

/// The owner of a slot in two waves: each has its own bytes.
fn own(pair: &Pair, gives_up: bool, wrong: Wrong) {
    let first = with(Ready::default(), 0);
    if wrong == Wrong::WordFirst {
        pair.words.announce(OWNER, first);
    }
    pair.write(1);
    pair.words.announce(OWNER, first);
    if gives_up {
        pair.words.give_up(OWNER);
        // Too late: it stays as it is.
        pair.words.announce(OWNER, with(first, 1));
        return;
    }
    if wrong != Wrong::WaitForgotten {
        assert!(pair.wait(READER, 0));
    }
    pair.write(2);
    pair.words.announce(OWNER, with(first, 1));
}

fn read(pair: &Pair) {
    if pair.wait(OWNER, 0) {
        assert_eq!(pair.read(), 1);
        let first = with(Ready::default(), 0);
        pair.words.announce(READER, first);
        if pair.wait(OWNER, 1) {
            assert_eq!(pair.read(), 2);
        }
    }
}

fn pair(gives_up: bool, wrong: Wrong) {
    let pair = Arc::new(Pair { words: Words::new(2), slot: UnsafeCell::new(0) });
    if wrong == Wrong::WordOfBefore {
        // The epoch before used the same words.
        pair.words.announce(OWNER, with(Ready::default(), 0));
    }
    let owner = {
        let pair = pair.clone();
        spawn(move || own(&pair, gives_up, wrong))
    };
    read(&pair);
    owner.join().unwrap();
    if gives_up {
        assert_eq!(pair.words.ready(OWNER), None, "who gave up says nothing any more");
    }
}

/// A model, in words, whether the owner gives up, and what is wrong with orderings or ranks; it has to fail where something is.
const CASES: &[(&str, bool, Planted, Wrong)] = &[
    ("bytes, word, pull", false, Planted::Nothing, Wrong::Nothing),
    ("a rank gives up behind its word", true, Planted::Nothing, Wrong::Nothing),
    ("the word is stored without a release", false, Planted::Release, Wrong::Nothing),
    ("the word is loaded without an acquire", false, Planted::Acquire, Wrong::Nothing),
    ("the word comes before the bytes", false, Planted::Nothing, Wrong::WordFirst),
    ("the word is that of an epoch before", false, Planted::Nothing, Wrong::WordOfBefore),
    ("the slot is written before it has been read", false, Planted::Nothing, Wrong::WaitForgotten),
];

fn main() {
    cases::run(CASES.len(), |at| {
        let (name, gives_up, planted, wrong) = CASES[at];
        plant(planted);
        let mut checker = loom::model::Builder::new();
        checker.preemption_bound = Some(if cases::is_whole() { 6 } else { 3 });
        let is_broken = (planted, wrong) != (Planted::Nothing, Wrong::Nothing);
        (name, is_broken, move || checker.check(move || pair(gives_up, wrong)))
    });
}
