//! Readers and writers of one slot.

use loom::cell::UnsafeCell;
use loom::sync::Arc;

use crate::lock::SlotLock;

/// Bytes behind a lock; loom's cell fails the model at any two accesses that nothing orders.
struct Slot {
    lock: SlotLock,
    bytes: UnsafeCell<[u8; 2]>,
}

// SAFETY: the cell is touched only between entering and leaving the lock; loom checks just that.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

fn read(slot: &Slot) {
    if slot.lock.try_read().is_ok() {
        // SAFETY: inside the lock as a reader.
        slot.bytes.with(|bytes| unsafe { assert_eq!((*bytes)[0], (*bytes)[1]) });
        slot.lock.leave_read();
    }
}

fn write(slot: &Slot) {
    if slot.lock.try_write().is_ok() {
        // SAFETY: inside the lock as the writer.
        slot.bytes.with_mut(|bytes| unsafe {
            (*bytes)[0] += 1;
            (*bytes)[1] += 1;
        });
        slot.lock.leave_write();
    }
}

pub(crate) fn readers_and_writers() {
    let slot = Arc::new(Slot { lock: SlotLock::new(), bytes: UnsafeCell::new([0, 0]) });
    let others: Vec<_> = [read as fn(&Slot), write]
        .into_iter()
        .map(|act| {
            let slot = slot.clone();
            loom::thread::spawn(move || act(&slot))
        })
        .collect();
    read(&slot);
    write(&slot);
    others.into_iter().for_each(|thread| thread.join().unwrap());
    write(&slot);
    read(&slot);
}
