//! A leading rank that is slow to read what it has announced itself, while another rank closes and opens its communicators: others may have begun
//! what was announced, so nothing else may come in its place.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use eplb_comm::store::{InterceptedStore, Store, StoreError, StoreIntercept, StoreOp};

use super::control::until;
use super::support::{LONG, Threads, config, count, wrong};

/// What the test knows of the announcements, and which ranks do not hear them.
#[derive(Debug, Default)]
struct Round {
    announced: AtomicUsize,
    deaf: [AtomicBool; 3],
    /// Looks in vain of each rank.
    looks: [AtomicUsize; 3],
}

#[derive(Debug, Clone)]
struct Slow {
    rank: usize,
    round: Arc<Round>,
}

impl StoreIntercept for Slow {
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        if key.ends_with("/engine/round") && self.round.announced.fetch_add(1, Ordering::SeqCst) == 0 {
            self.round.deaf[0].store(true, Ordering::SeqCst);
        }
        inner.set(key, value, deadline)
    }

    fn wait_change(
        &self,
        inner: &dyn Store,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let listens = key.ends_with("/engine/round");
        if listens && self.round.deaf[self.rank].load(Ordering::SeqCst) {
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            self.round.looks[self.rank].fetch_add(1, Ordering::SeqCst);
            let keys = vec![key.to_owned()];
            return Err(StoreError::Timeout { op: StoreOp::WaitChange, keys, waited: Duration::ZERO });
        }
        inner.wait_change(key, known, deadline)
    }
}

#[test]
fn what_is_announced_stands_until_the_leading_rank_has_read_it_too() {
    let threads = Threads::new(3);
    let (round, barrier, over) = (Arc::new(Round::default()), Barrier::new(3), AtomicUsize::new(0));
    let looked = |rank: usize| {
        let looks = round.looks[rank].load(Ordering::SeqCst);
        until("more looks", || round.looks[rank].load(Ordering::SeqCst) > looks + 2);
    };
    threads.run(|rank| {
        let slow = Slow { rank: rank.index(), round: round.clone() };
        let store = Arc::new(InterceptedStore::new(threads.store.clone(), slow));
        let mine = Threads { ranks: 3, store, transport: threads.transport.clone() };
        let (engine, set) = mine.engine(rank, config());
        count(&engine, set, 0, 1);
        barrier.wait();
        if rank.0 == 1 {
            // From a look on that begins now, and not amid one.
            round.deaf[1].store(true, Ordering::SeqCst);
            looked(1);
            engine.rebalance_now().unwrap();
            until("the round", || round.announced.load(Ordering::SeqCst) > 0);
            engine.quiesce(LONG).unwrap();
            engine.reopen(LONG).unwrap();
            // Each rank shows and sees how it is between two looks: this one that it is not connected, and then the leading one that.
            looked(1);
            looked(0);
            let announced = round.announced.load(Ordering::SeqCst);
            round.deaf.iter().for_each(|deaf| deaf.store(false, Ordering::SeqCst));
            assert_eq!(announced, 1, "something else was announced in its place");
        }
        let mut step = 0;
        until("the end of the round", || {
            step += 1;
            engine.step(step).unwrap();
            engine.rounds() > 0
        });
        assert_eq!(wrong(&engine, set), 0);
        over.fetch_add(1, Ordering::SeqCst);
        until("the others", || over.load(Ordering::SeqCst) == 3);
        engine.shutdown(LONG).unwrap();
    });
}
