//! Orders of threads, and of what they see of each other's writes, around the words of host memory: the lock of a slot, and its tag.
//!
//! The sources are the crate's own, compiled over the words of loom, which tries every order up to a few switches of threads
//! (`EPLB_FAULTS=all`: one more). Orderings that are too weak are planted, and have to be found.

mod atomics;
#[path = "../support/cases.rs"]
mod cases;
#[allow(dead_code, unreachable_pub, unused_imports)] // What only the crate needs of it.
#[path = "../../src/host/content.rs"]
mod content;
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../../src/host/lock.rs"]
mod lock;
mod locks;
mod tags;

use atomics::{Planted, plant};

/// A model, in words, and what is planted into it; it has to fail where something is.
type Case = (&'static str, Planted, fn());

const CASES: &[Case] = &[
    ("readers and writers of a slot", Planted::Nothing, locks::readers_and_writers),
    ("the lock is left without a release", Planted::Release, locks::readers_and_writers),
    ("the lock is entered without an acquire", Planted::Acquire, locks::readers_and_writers),
    ("a slot that is written while it is read", Planted::Nothing, tags::overtaken),
    ("the tag is set without a release", Planted::Release, tags::overtaken),
    ("the tag is read without an acquire", Planted::Acquire, tags::overtaken),
    ("no fences", Planted::Fences, tags::overtaken),
    ("the expert comes back in another write", Planted::Nothing, tags::comes_back),
    ("the expert comes back with the tag that it had", Planted::Nothing, tags::comes_back_alike),
];

/// The model that fails by what it does, not by its orderings.
const REUSED: fn() = tags::comes_back_alike;

fn main() {
    cases::run(CASES.len(), |at| {
        let (name, planted, model) = CASES[at];
        plant(planted);
        let mut checker = loom::model::Builder::new();
        checker.preemption_bound = Some(if cases::is_whole() { 4 } else { 3 });
        let is_broken = planted != Planted::Nothing || std::ptr::fn_addr_eq(model, REUSED);
        (name, is_broken, move || checker.check(model))
    });
}
