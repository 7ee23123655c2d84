//! Waiting for keys, and deadlines.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, done, expect};
use crate::store::StoreError;
use crate::store::deadlines::after;

pub(super) fn wait(bench: &Bench) -> Result<(), String> {
    let (one, two) = (bench.key("1"), bench.key("2"));
    done("set", bench.a.set(&one, b"", bench.soon()))?;
    done("set", bench.a.set(&two, b"v", bench.soon()))?;
    expect("wait for what is there", bench.b.wait(&[&one, &two], bench.soon()), Ok(()))?;
    expect("wait for no keys", bench.b.wait(&[], bench.soon()), Ok(()))
}

pub(super) fn wait_times_out(bench: &Bench) -> Result<(), String> {
    let names = ["there", "missing", "there too", "missing too"].map(|name| bench.key(name));
    done("set", bench.a.set(&names[0], b"v", bench.soon()))?;
    done("set", bench.a.set(&names[2], b"v", bench.soon()))?;
    let missing = [names[1].clone(), names[3].clone()];
    // A store that is reached over a network, on a machine that is busy just then, may not learn in time that a key
    // is there, and names it as well. Not every time.
    const TRIES: usize = 10;
    let mut named = Vec::new();
    for _ in 0..TRIES {
        let deadline = after(Duration::from_millis(30));
        let outcome = bench.a.wait(&names.each_ref().map(String::as_str), deadline);
        if Instant::now() < deadline {
            return Err(format!("it gave up before its deadline, with {outcome:?}"));
        }
        match outcome {
            Err(StoreError::Timeout { keys, .. }) if keys == missing => return Ok(()),
            Err(StoreError::Timeout { keys, .. })
                if missing.iter().all(|key| keys.contains(key))
                    && keys.iter().all(|key| names.contains(key)) =>
            {
                named = keys;
            }
            other => return Err(format!("a wait for missing keys gave {other:?}")),
        }
    }
    expect("keys that are missing", named, missing.to_vec())
}

pub(super) fn wait_wakes(bench: &Bench) -> Result<(), String> {
    // Written one after the other, last first, while others wait for all of them.
    let names: Vec<String> = (0..5).map(|i| bench.key(&i.to_string())).collect();
    bench.on_threads(4, |number, store| {
        if number == 0 {
            for name in names.iter().rev() {
                done("set", store.set(name, b"v", bench.soon()))?;
            }
            return Ok(());
        }
        let keys: Vec<&str> = names.iter().map(String::as_str).collect();
        done("wait for what another writes", store.wait(&keys, bench.soon()))
    })?;
    // And surely after the wait has begun, where the store can be seen to block at all.
    let (begun, key) = (bench.key("begun"), bench.key("late"));
    bench.on_threads(2, |number, store| {
        if number == 0 {
            done("wait", store.wait(&[&begun], bench.soon()))?;
            thread::sleep(Duration::from_millis(5));
            return done("set", store.set(&key, b"v", bench.soon()));
        }
        done("set", store.set(&begun, b"", bench.soon()))?;
        done("wait for what another writes later", store.wait(&[&key], bench.soon()))
    })?;
    Ok(())
}

pub(super) fn wait_change(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    let changed = |known: Option<&[u8]>| bench.a.wait_change(&key, known, bench.soon());
    expect("absent, known present", changed(Some(b"")), Ok(None))?;
    done("set", bench.b.set(&key, b"1", bench.soon()))?;
    expect("present, known absent", changed(None), Ok(Some(b"1".to_vec())))?;
    expect("present, another known", changed(Some(b"0")), Ok(Some(b"1".to_vec())))?;
    let deadline = after(Duration::from_millis(30));
    let outcome = bench.a.wait_change(&key, Some(b"1"), deadline);
    match outcome {
        Err(StoreError::Timeout { .. }) if Instant::now() >= deadline => Ok(()),
        other => Err(format!("a wait for a change that does not come gave {other:?}")),
    }
}

pub(super) fn wait_change_wakes(bench: &Bench) -> Result<(), String> {
    // Two threads answer each other through one key; each change must wake the other one.
    let key = bench.key("k");
    const ROUNDS: u32 = 20;
    bench.on_threads(2, |number, store| {
        let number = number as u32;
        let mut known: Option<Vec<u8>> = None;
        loop {
            let turn = known.as_ref().map_or(0, |value| value.len() as u32);
            if turn >= ROUNDS {
                return Ok(());
            }
            if turn % 2 == number {
                done("set", store.set(&key, &vec![b'.'; turn as usize + 1], bench.soon()))?;
            }
            known = done("wait for a change", store.wait_change(&key, known.as_deref(), bench.soon()))?;
        }
    })?;
    // Deleting is a change; writing the same bytes is none.
    let gone = bench.key("gone");
    done("set", bench.a.set(&gone, b"v", bench.soon()))?;
    bench.on_threads(2, |number, store| {
        if number == 0 {
            done("set", store.set(&gone, b"v", bench.soon()))?;
            return done("delete", store.delete(&gone, bench.soon())).map(drop);
        }
        let seen = done("wait for a change", store.wait_change(&gone, Some(b"v"), bench.soon()))?;
        expect("what it changed to", seen, None)
    })?;
    Ok(())
}

pub(super) fn passed_deadline(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    done("set", bench.a.set(&key, b"1", bench.soon()))?;
    let passed = Instant::now();
    let store = &bench.a;
    let outcomes = [
        ("set", store.set(&key, b"2", passed)),
        ("get", store.get(&key, passed).map(drop)),
        ("add", store.add(&key, 1, passed).map(drop)),
        ("compare-and-set", store.compare_and_set(&key, Some(b"1"), b"2", passed).map(drop)),
        ("wait", store.wait(&[&key], passed)),
        ("wait-change", store.wait_change(&key, None, passed).map(drop)),
        ("delete", store.delete(&key, passed).map(drop)),
    ];
    for (what, outcome) in outcomes {
        match outcome {
            Err(StoreError::Timeout { .. }) => {}
            other => return Err(format!("{what} past its deadline gave {other:?}")),
        }
    }
    expect("after all that", bench.b.get(&key, bench.soon()), Ok(Some(b"1".to_vec())))
}

pub(super) fn blocked_waits(bench: &Bench) -> Result<(), String> {
    // On one handle: others block on it while it goes on working.
    let (stop, key) = (bench.key("stop"), bench.key("k"));
    const BLOCKED: usize = 3;
    let begun = AtomicUsize::new(0);
    thread::scope(|scope| {
        let wait = || {
            begun.fetch_add(1, Ordering::Relaxed);
            bench.a.wait(&[&stop], bench.soon())
        };
        let waits: Vec<_> = (0..BLOCKED).map(|_| scope.spawn(wait)).collect();
        while begun.load(Ordering::Relaxed) < BLOCKED {
            thread::yield_now();
        }
        // They are about to block. Should one not have yet, the check is only weaker for it.
        thread::sleep(Duration::from_millis(5));
        for i in 1..=20 {
            expect("add beside blocked waits", bench.a.add(&key, 1, bench.soon()), Ok(i))?;
        }
        done("set", bench.a.set(&stop, b"", bench.soon()))?;
        for wait in waits {
            done("wait", wait.join().map_err(|_| "a thread panicked".to_owned())?)?;
        }
        Ok(())
    })
}
