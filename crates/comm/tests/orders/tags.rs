//! A reader without a lock, and the owner of the slot, who writes against the order of the exchange.

use eplb_core::ExpertId;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU8;

use crate::atomics::{Ordering, fence};
use crate::content::{Content, Tag};

/// A slot whose bytes are those of the expert that its tag names; bytes are read and written with no order of their own.
#[derive(Default)]
struct Slot {
    tag: Tag,
    bytes: [AtomicU8; 2],
}

impl Slot {
    fn new(expert: u8) -> Arc<Self> {
        let slot = Self::default();
        slot.write(expert);
        slot.name(expert);
        Arc::new(slot)
    }

    fn write(&self, value: u8) {
        self.bytes.iter().for_each(|byte| byte.store(value, Ordering::Relaxed));
    }

    fn name(&self, expert: u8) {
        self.tag.set(Content::Expert(ExpertId(u32::from(expert))));
    }

    /// As `Foreign::copy` does: what it took, if it may be taken.
    fn copy(&self) -> Option<(u32, [u8; 2])> {
        let before = self.tag.get();
        let Content::Expert(expert) = before.0 else { return None };
        let bytes = [0, 1].map(|at: usize| self.bytes[at].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (self.tag.get() == before).then_some((expert.0, bytes))
    }
}

/// What a copy took is the expert that it was taken for.
fn check(slot: &Slot) {
    if let Some((expert, bytes)) = slot.copy() {
        assert_eq!(bytes.map(u32::from), [expert; 2]);
    }
}

fn beside(write: fn(&Slot)) {
    let slot = Slot::new(1);
    let reader = {
        let slot = slot.clone();
        loom::thread::spawn(move || check(&slot))
    };
    write(&slot);
    reader.join().unwrap();
    check(&slot);
}

/// Another expert is written over the one that is read.
pub(crate) fn overtaken() {
    beside(|slot| {
        slot.tag.begin_write();
        slot.write(2);
        slot.name(2);
    });
}

/// The same expert is written again, with something else between.
pub(crate) fn comes_back() {
    beside(|slot| {
        for value in [9, 1] {
            slot.tag.begin_write();
            slot.write(value);
        }
        slot.name(1);
    });
}

/// Planted: a write that does not count up, so that the tag is the one before.
pub(crate) fn comes_back_alike() {
    beside(|slot| {
        slot.tag.set(Content::Unknown);
        fence(Ordering::Release);
        slot.write(9);
        slot.write(1);
        slot.name(1);
    });
}
