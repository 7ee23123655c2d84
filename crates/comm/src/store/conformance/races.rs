//! Many handles at a time.

use std::collections::BTreeSet;

use super::{Bench, done, expect};
use crate::store::CasOutcome;

pub(super) fn linearizable_adds(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    const EACH: usize = 25;
    const THREADS: usize = 4;
    let sums = bench.on_threads(THREADS, |_, store| {
        let mut sums = Vec::with_capacity(EACH);
        for _ in 0..EACH {
            sums.push(done("add", store.add(&key, 1, bench.soon()))?);
        }
        if !sums.is_sorted() {
            return Err("one thread's sums do not rise".to_owned());
        }
        Ok(sums)
    })?;
    // In one order of all adds, each sum is one more than the one before: every number occurs once.
    let all: BTreeSet<i64> = sums.into_iter().flatten().collect();
    expect("distinct sums", all.len(), EACH * THREADS)?;
    expect("largest sum", all.last().copied(), Some((EACH * THREADS) as i64))?;
    let total = done("get", bench.a.get(&key, bench.soon()))?;
    expect("total", total, Some((EACH * THREADS).to_string().into_bytes()))
}

pub(super) fn linearizable_compare_and_sets(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    const EACH: u32 = 15;
    const THREADS: usize = 4;
    // A register that counts up to a total by compare-and-set, with plain writes of the same value thrown in.
    let replaced = bench.on_threads(THREADS, |_, store| {
        let mut replaced = Vec::new();
        let mut known: Option<Vec<u8>> = None;
        while replaced.len() < EACH as usize {
            let count = known.as_ref().map_or(Ok(0), |k| k.as_slice().try_into().map(u32::from_le_bytes));
            let count = count.map_err(|_| "the register holds what nobody wrote".to_owned())?;
            let new = (count + 1).to_le_bytes();
            let outcome = store.compare_and_set(&key, known.as_deref(), &new, bench.soon());
            known = match done("compare-and-set", outcome)? {
                CasOutcome::Swapped => {
                    replaced.push(count);
                    Some(new.to_vec())
                }
                CasOutcome::Current(current) if current == known => {
                    return Err("it did not swap although it held what was expected".to_owned());
                }
                CasOutcome::Current(current) => current,
            };
        }
        Ok(replaced)
    })?;
    let all: BTreeSet<u32> = replaced.into_iter().flatten().collect();
    let total = EACH * THREADS as u32;
    expect("values that were replaced, each once", all, (0..total).collect())?;
    let last = done("get", bench.a.get(&key, bench.soon()))?;
    expect("last value", last, Some(total.to_le_bytes().to_vec()))
}

pub(super) fn one_creator(bench: &Bench) -> Result<(), String> {
    for round in 0..8 {
        let key = bench.key(&round.to_string());
        let outcomes = bench.on_threads(3, |number, store| {
            let mine = [number as u8];
            done("compare-and-set", store.compare_and_set(&key, None, &mine, bench.soon()))
        })?;
        let winners: Vec<u8> =
            (0..3u8).filter(|i| outcomes[usize::from(*i)] == CasOutcome::Swapped).collect();
        expect("number of creators", winners.len(), 1)?;
        let losers = outcomes.into_iter().filter(|outcome| *outcome != CasOutcome::Swapped);
        for outcome in losers {
            expect("what the others see", outcome, CasOutcome::Current(Some(winners.clone())))?;
        }
    }
    Ok(())
}

pub(super) fn whole_values(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    let size = bench.a.max_value().min(32 << 10);
    const WRITES: u8 = 20;
    done("set", bench.a.set(&key, &vec![0; size / 2], bench.soon()))?;
    bench.on_threads(3, |number, store| {
        if number == 0 {
            for i in 1..=WRITES {
                let length = if i % 2 == 0 { size / 2 } else { size };
                done("set", store.set(&key, &vec![i; length], bench.soon()))?;
            }
            return Ok(());
        }
        loop {
            let value = done("get", store.get(&key, bench.soon()))?.unwrap_or_default();
            let Some(&first) = value.first() else { return Err("the value vanished".to_owned()) };
            let length = if first % 2 == 0 { size / 2 } else { size };
            if value.len() != length || value.iter().any(|byte| *byte != first) {
                return Err(format!("write {first} is seen in part: {} bytes", value.len()));
            }
            if first == WRITES {
                return Ok(());
            }
        }
    })?;
    Ok(())
}

pub(super) fn reads_in_order(bench: &Bench) -> Result<(), String> {
    let (first, second) = (bench.key("first"), bench.key("second"));
    const WRITES: u32 = 40;
    bench.on_threads(3, |number, store| {
        if number == 0 {
            for i in 1..=WRITES {
                for key in [&first, &second] {
                    done("set", store.set(key, &i.to_le_bytes(), bench.soon()))?;
                }
            }
            return Ok(());
        }
        loop {
            // What was written last is read first: the other has been written then.
            let values = done("get many", store.get_many(&[&second, &first], bench.soon()))?;
            let numbers: Vec<u32> = values
                .into_iter()
                .map(|value| value.and_then(|value| value.try_into().ok()).map_or(0, u32::from_le_bytes))
                .collect();
            let [second, first] = numbers[..] else { return Err("not two values of two keys".to_owned()) };
            if first < second {
                return Err(format!(
                    "write {second} of the later key is seen with write {first} of the other"
                ));
            }
            if second == WRITES {
                return Ok(());
            }
        }
    })?;
    Ok(())
}
