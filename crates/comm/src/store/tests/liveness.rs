//! Liveness by the observer's clock.

use std::time::Duration;

use eplb_core::RankId;

use crate::store::liveness::{LOOKS_MISSED, Life, Liveness, Pulse, Renewal, counter_key};
use crate::store::{Deadlines, InProcessStore, Store};

const RENEW: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(5);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn counter_that_moves_is_alive_and_one_that_stands_still_dies_at_the_timeout() {
    let mut pulse = Pulse::new(TIMEOUT, RENEW);
    for tick in 0..100 {
        assert!(!pulse.observe(Some(tick), ms(200 * tick)).is_dead());
    }
    let last = 200 * 99;
    let mut now = last;
    while now < last + 4800 {
        now += 200;
        assert_eq!(pulse.observe(Some(99), ms(now)), Life::Alive { silent: ms(now - last) });
    }
    assert_eq!(pulse.observe(Some(99), ms(last + 5000)), Life::Dead { silent: TIMEOUT });
    // It was only slow.
    assert!(!pulse.observe(Some(100), ms(last + 5200)).is_dead());
}

#[test]
fn rank_that_never_comes_or_whose_counter_is_gone_dies_as_well() {
    let mut pulse = Pulse::new(TIMEOUT, RENEW);
    let verdicts: Vec<bool> = (0..=25).map(|i| pulse.observe(None, ms(200 * i)).is_dead()).collect();
    assert_eq!(verdicts.iter().position(|dead| *dead), Some(25));
    let mut pulse = Pulse::new(TIMEOUT, RENEW);
    pulse.observe(Some(7), ms(0));
    assert!((1..=25).map(|i| pulse.observe(None, ms(200 * i))).last().unwrap().is_dead());
}

#[test]
fn counter_that_starts_anew_below_its_last_value_is_alive() {
    let mut pulse = Pulse::new(TIMEOUT, RENEW);
    pulse.observe(Some(1000), ms(0));
    pulse.observe(Some(1000), ms(900));
    assert_eq!(pulse.observe(Some(1), ms(1800)), Life::Alive { silent: Duration::ZERO });
}

#[test]
fn observer_that_was_stopped_declares_nobody_dead_for_it() {
    let mut pulse = Pulse::new(TIMEOUT, RENEW);
    pulse.observe(Some(1), ms(0));
    // Stopped for an hour: it has missed some looks, and knows no more than that.
    let life = pulse.observe(Some(1), Duration::from_secs(3600));
    assert_eq!(life, Life::Alive { silent: RENEW * LOOKS_MISSED });
    // A clock that runs backwards is no reason either.
    assert!(!pulse.observe(Some(1), ms(5)).is_dead());
    assert!(!pulse.observe(Some(2), ms(6)).is_dead());
}

#[test]
fn members_are_observed_through_a_store_and_the_lowest_live_one_leads() {
    let store = InProcessStore::new();
    let ranks = [3, 1, 2, 7].map(RankId);
    let mut liveness = Liveness::new(4, RankId(2), &ranks, &Deadlines::DEFAULT);
    let (observed, keys): (Vec<RankId>, Vec<String>) = liveness.keys().unzip();
    assert_eq!(observed, [1, 3, 7].map(RankId));
    assert_eq!(keys[0], counter_key(4, RankId(1)));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();

    let mut renewals: Vec<Renewal> = observed.iter().map(|_| Renewal::new(RENEW)).collect();
    for tick in 0..60 {
        let now = ms(100 * tick);
        for (rank, (key, renewal)) in observed.iter().zip(keys.iter().zip(&mut renewals)) {
            // Rank 1 stops after half a second, rank 7 writes nonsense.
            let value = renewal.due(now);
            if let Some(value) = value.filter(|_| *rank != RankId(1) || tick < 5) {
                let value = if *rank == RankId(7) { b"nonsense".to_vec() } else { value };
                store.set(key, &value, super::soon()).unwrap();
            }
        }
        liveness.observe(&store.get_many(&keys, super::soon()).unwrap(), now);
        assert_eq!(liveness.lowest_live(), if tick < 54 { RankId(1) } else { RankId(2) }, "at {now:?}");
    }
    assert_eq!(liveness.dead(), [1, 7].map(RankId));
    assert_eq!(liveness.life(RankId(3)), Some(Life::Alive { silent: ms(100) }));
    assert_eq!(liveness.life(RankId(2)), None);
}

#[test]
fn counter_is_renewed_once_per_interval() {
    let mut renewal = Renewal::new(RENEW);
    assert_eq!(renewal.wait(ms(7)), Duration::ZERO);
    let values: Vec<Vec<u8>> = (0..100).filter_map(|i| renewal.due(ms(10 * i))).collect();
    assert_eq!(values, [b"1", b"2", b"3", b"4", b"5"]);
    assert_eq!(renewal.wait(ms(850)), ms(150));
    // Late by a minute: one value, not three hundred.
    assert!(renewal.due(Duration::from_secs(60)).is_some());
    assert_eq!(renewal.due(Duration::from_secs(60)), None);
}
