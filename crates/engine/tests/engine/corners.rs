//! What ranks that open communicators anew in one epoch leave in the store.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Instant;

use eplb_comm::store::{InProcessStore, InterceptedStore, Store, StoreError, StoreIntercept};
use eplb_core::RankId;
use eplb_engine::process::PeerTransport;

use super::control::until;
use super::support::{LONG, Threads, config};

/// Which keys of communicators are in the store, and how many ranks have ended a meeting.
#[derive(Debug, Clone, Default)]
struct Meetings {
    keys: Arc<Mutex<BTreeSet<String>>>,
    ended: Arc<AtomicUsize>,
}

impl StoreIntercept for Meetings {
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        inner.set(key, value, deadline)?;
        if key.contains("/comm/") {
            self.keys.lock().unwrap().insert(key.to_owned());
            self.ended.fetch_add(usize::from(key.contains("/opened/")), Ordering::SeqCst);
        }
        Ok(())
    }

    fn delete(&self, inner: &dyn Store, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        let deleted = inner.delete(key, deadline)?;
        self.keys.lock().unwrap().remove(key);
        Ok(deleted)
    }
}

#[test]
fn communicators_made_anew_leave_nothing_in_the_store() {
    let meetings = Meetings::default();
    let store = InterceptedStore::new(Arc::new(InProcessStore::new()), meetings.clone());
    let transport = Arc::new(PeerTransport);
    let threads = Threads { ranks: 2, store: Arc::new(store), transport };
    let barrier = Barrier::new(2);
    // Epoch, `comm`, number of the meeting.
    let left = || -> BTreeSet<String> {
        let keys = meetings.keys.lock().unwrap();
        keys.iter().filter_map(|key| key.split('/').nth(2)).map(str::to_owned).collect()
    };
    threads.run(|rank: RankId| {
        let (engine, _) = threads.engine(rank, config());
        for anew in 1..=4 {
            engine.quiesce(LONG).unwrap();
            barrier.wait();
            engine.reopen(LONG).unwrap();
            // They may have met once more, where the leading rank saw late that one had opened again.
            until("the next meeting", || meetings.ended.load(Ordering::SeqCst) >= 2 * (1 + anew));
            barrier.wait();
        }
        until("a time when one meeting alone is left", || left().len() == 1);
        // Before either leaves, and takes what is left with it.
        barrier.wait();
    });
}
