//! The suite that every store passes: what the [module](super) promises, clause by clause.
//!
//! A host that brings a store of its own runs [`check`] on it before it trusts it with decisions.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::deadlines::after;
use super::{CasOutcome, PrefixStore, Store, StoreError};

/// A promise that a store breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store breaks `{clause}`: {detail}")]
pub struct Violation {
    /// The clause of [`CLAUSES`].
    pub clause: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Opens another handle of the store under test, as another process would.
pub type Opener = Arc<dyn Fn() -> Result<Arc<dyn Store>, StoreError> + Send + Sync>;

/// A check of one promise.
pub type Clause = fn(&Bench) -> Result<(), String>;

/// Names and checks of all promises.
pub const CLAUSES: &[(&str, Clause)] = &[
    ("absent", absent),
    ("set and get", set_and_get),
    ("keys", keys),
    ("too large", too_large),
    ("delete", delete),
    ("add", add),
    ("compare-and-set", compare_and_set),
    ("get many", get_many),
    ("wait", wait),
    ("wait times out", wait_times_out),
    ("wait wakes", wait_wakes),
    ("wait-change", wait_change),
    ("wait-change wakes", wait_change_wakes),
    ("passed deadline", passed_deadline),
    ("blocked waits", blocked_waits),
    ("prefixes", prefixes),
    ("adds are linearizable", linearizable_adds),
    ("compare-and-sets are linearizable", linearizable_compare_and_sets),
    ("one creator", one_creator),
    ("whole values", whole_values),
];

/// Two handles of a store, and what a clause needs around them.
pub struct Bench {
    a: Arc<dyn Store>,
    b: Arc<dyn Store>,
    open: Opener,
    clause: &'static str,
    patience: Duration,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench").field("clause", &self.clause).field("a", &self.a).finish_non_exhaustive()
    }
}

/// Runs all clauses on an empty store. `patience` is how long a thing that must happen may take (20 s leaves room
/// for a busy machine; a store that passes needs a fraction of it).
///
/// # Errors
/// The first clause that is broken.
pub fn check(open: &Opener, patience: Duration) -> Result<(), Violation> {
    CLAUSES.iter().try_for_each(|&(name, clause)| check_clause(open, patience, name, clause))
}

/// Runs one clause. One that hangs is a violation as well; its thread is left behind.
///
/// # Errors
/// The clause is broken.
pub fn check_clause(
    open: &Opener,
    patience: Duration,
    name: &'static str,
    clause: Clause,
) -> Result<(), Violation> {
    let violation = |detail: String| Violation { clause: name, detail };
    let handle = || open().map_err(|error| violation(format!("no handle: {error}")));
    let bench = Bench { a: handle()?, b: handle()?, open: Arc::clone(open), clause: name, patience };
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // Nobody listens any more when the clause took too long.
        let _ = sender.send(clause(&bench));
    });
    match receiver.recv_timeout(patience * 3) {
        Ok(outcome) => outcome.map_err(violation),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(violation("it hangs".to_owned())),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(violation("it panics".to_owned())),
    }
}

/// What a failed expectation says.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?}, should be {wanted:?}")) }
}

/// An operation that must succeed.
fn done<T>(what: &str, result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

impl Bench {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.clause)
    }

    fn soon(&self) -> Instant {
        after(self.patience)
    }

    /// Runs `work` on threads, each with its number and a handle of its own.
    fn on_threads<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize, Arc<dyn Store>) -> Result<T, String> + Sync,
    ) -> Result<Vec<T>, String> {
        let handles: Result<Vec<_>, _> = (0..count).map(|_| (self.open)()).collect();
        let handles = done("open", handles)?;
        let work = &work;
        thread::scope(|scope| {
            let threads: Vec<_> = handles
                .into_iter()
                .enumerate()
                .map(|(number, handle)| scope.spawn(move || work(number, handle)))
                .collect();
            threads.into_iter().map(|t| t.join().map_err(|_| "a thread panicked".to_owned())?).collect()
        })
    }
}

fn absent(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    expect("get of nothing", bench.a.get(&key, bench.soon()), Ok(None))?;
    expect("delete of nothing", bench.a.delete(&key, bench.soon()), Ok(false))
}

fn set_and_get(bench: &Bench) -> Result<(), String> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let largest = vec![0xa5; bench.a.max_value()];
    for value in [&b"v"[..], b"", &every_byte, &largest, b"again"] {
        done("set", bench.a.set(&bench.key("k"), value, bench.soon()))?;
        let seen = done("get", bench.b.get(&bench.key("k"), bench.soon()))?;
        if seen.as_deref() != Some(value) {
            return Err(format!("a value of {} bytes came back as {:?}", value.len(), seen.map(|s| s.len())));
        }
    }
    Ok(())
}

fn keys(bench: &Bench) -> Result<(), String> {
    let longest = "x".repeat(bench.a.max_key());
    let almost = format!("{}y", "x".repeat(bench.a.max_key() - 1));
    let odd = [
        "k", "K", "k/", "/k", "k/k", "..", "../k", ".", " ", "k k", "\0", "k\0k", "k\n", "ü", "%6b", "k%",
        "*", "\\", "CON", &longest, &almost,
    ];
    for key in odd {
        done(key, bench.a.set(key, key.as_bytes(), bench.soon()))?;
    }
    for key in odd {
        let seen = done(key, bench.b.get(key, bench.soon()))?;
        expect(&format!("key {key:?}"), seen, Some(key.as_bytes().to_vec()))?;
    }
    for key in odd {
        expect(&format!("delete of {key:?}"), bench.b.delete(key, bench.soon()), Ok(true))?;
    }
    let too_long = "x".repeat(bench.a.max_key() + 1);
    match bench.a.set("", b"v", bench.soon()) {
        Err(StoreError::BadKey { .. }) => {}
        other => return Err(format!("an empty key gave {other:?}")),
    }
    match bench.a.set(&too_long, b"v", bench.soon()) {
        Err(StoreError::TooLarge { what: "key", .. }) => Ok(()),
        other => Err(format!("a key that is too long gave {other:?}")),
    }
}

fn too_large(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    let value = vec![1; bench.a.max_value() + 1];
    done("set", bench.a.set(&key, b"old", bench.soon()))?;
    for result in [
        bench.a.set(&key, &value, bench.soon()),
        bench.a.compare_and_set(&key, Some(b"old"), &value, bench.soon()).map(drop),
    ] {
        match result {
            Err(StoreError::TooLarge { .. }) => {}
            other => return Err(format!("a value that is too large gave {other:?}")),
        }
    }
    expect("after the refusal", bench.b.get(&key, bench.soon()), Ok(Some(b"old".to_vec())))
}

fn delete(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    done("set", bench.a.set(&key, b"v", bench.soon()))?;
    expect("delete", bench.b.delete(&key, bench.soon()), Ok(true))?;
    expect("get after it", bench.a.get(&key, bench.soon()), Ok(None))?;
    expect("delete after it", bench.a.delete(&key, bench.soon()), Ok(false))
}

fn add(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    expect("first add", bench.a.add(&key, 5, bench.soon()), Ok(5))?;
    expect("second add", bench.b.add(&key, -7, bench.soon()), Ok(-2))?;
    expect("as text", bench.a.get(&key, bench.soon()), Ok(Some(b"-2".to_vec())))?;
    done("set", bench.a.set(&key, b"41", bench.soon()))?;
    expect("add to what was set", bench.b.add(&key, 1, bench.soon()), Ok(42))?;
    for text in [&b"many"[..], b"9223372036854775807", b""] {
        done("set", bench.a.set(&key, text, bench.soon()))?;
        match bench.b.add(&key, 1, bench.soon()) {
            // A host's store may name it its own way; what counts is that it refuses.
            Err(error) if !error.is_timeout() && !error.is_lost() => {}
            other => return Err(format!("add to {text:?} gave {other:?}")),
        }
        expect("after the refusal", bench.a.get(&key, bench.soon()), Ok(Some(text.to_vec())))?;
    }
    Ok(())
}

fn compare_and_set(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    let cas =
        |expected: Option<&[u8]>, new: &[u8]| bench.a.compare_and_set(&key, expected, new, bench.soon());
    let current = |value: &[u8]| Ok(CasOutcome::Current(Some(value.to_vec())));
    expect("absent, expecting a value", cas(Some(b"x"), b"1"), Ok(CasOutcome::Current(None)))?;
    expect("absent, expecting an empty one", cas(Some(b""), b"1"), Ok(CasOutcome::Current(None)))?;
    expect("absent, expecting nothing", cas(None, b"1"), Ok(CasOutcome::Swapped))?;
    expect("present, expecting nothing", cas(None, b"2"), current(b"1"))?;
    expect("present, expecting another", cas(Some(b"x"), b"2"), current(b"1"))?;
    expect("unchanged by all that", bench.b.get(&key, bench.soon()), Ok(Some(b"1".to_vec())))?;
    expect("present, expecting it", cas(Some(b"1"), b""), Ok(CasOutcome::Swapped))?;
    expect("empty, expecting nothing", cas(None, b"3"), current(b""))?;
    expect("changed", bench.b.get(&key, bench.soon()), Ok(Some(Vec::new())))
}

fn get_many(bench: &Bench) -> Result<(), String> {
    // More than one request's worth of keys, and values that do not fit one reply together.
    let count = 700;
    let names: Vec<String> = (0..count).map(|i| bench.key(&format!("{i:0>100}"))).collect();
    let size = bench.a.max_value().min(64 << 10) / 3;
    let value = |i: usize| vec![i as u8; if i < 12 { size } else { i % 7 }];
    let present = |i: usize| i < 24 || i.is_multiple_of(97);
    for (i, name) in names.iter().enumerate().filter(|(i, _)| present(*i)) {
        done("set", bench.a.set(name, &value(i), bench.soon()))?;
    }
    let keys: Vec<&str> = names.iter().map(String::as_str).collect();
    let values = done("get many", bench.b.get_many(&keys, bench.soon()))?;
    expect("number of values", values.len(), count)?;
    for (i, seen) in values.iter().enumerate() {
        let wanted = present(i).then(|| value(i));
        if *seen != wanted {
            return Err(format!("value {i} is not the one of its key"));
        }
    }
    expect("of no keys", bench.a.get_many(&[], bench.soon()), Ok(Vec::new()))
}

fn wait(bench: &Bench) -> Result<(), String> {
    let (one, two) = (bench.key("1"), bench.key("2"));
    done("set", bench.a.set(&one, b"", bench.soon()))?;
    done("set", bench.a.set(&two, b"v", bench.soon()))?;
    expect("wait for what is there", bench.b.wait(&[&one, &two], bench.soon()), Ok(()))?;
    expect("wait for no keys", bench.b.wait(&[], bench.soon()), Ok(()))
}

fn wait_times_out(bench: &Bench) -> Result<(), String> {
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

fn wait_wakes(bench: &Bench) -> Result<(), String> {
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

fn wait_change(bench: &Bench) -> Result<(), String> {
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

fn wait_change_wakes(bench: &Bench) -> Result<(), String> {
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

fn passed_deadline(bench: &Bench) -> Result<(), String> {
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

fn blocked_waits(bench: &Bench) -> Result<(), String> {
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

fn prefixes(bench: &Bench) -> Result<(), String> {
    let corner = |name: &str| PrefixStore::new(Arc::clone(&bench.a), &bench.key(name));
    let (one, two) = (done("prefix", corner("1"))?, done("prefix", corner("12"))?);
    for (store, value) in [(&one, b"one"), (&two, b"two")] {
        done("set", store.set("k", value, bench.soon()))?;
        done("set", store.set("2/k", value, bench.soon()))?;
    }
    expect("first corner", one.get("k", bench.soon()), Ok(Some(b"one".to_vec())))?;
    expect("second corner", two.get("k", bench.soon()), Ok(Some(b"two".to_vec())))?;
    expect("delete", one.delete("k", bench.soon()), Ok(true))?;
    expect("second corner after it", two.get("k", bench.soon()), Ok(Some(b"two".to_vec())))?;
    expect("inner", bench.b.get(&bench.key("12/k"), bench.soon()), Ok(Some(b"two".to_vec())))?;
    let many = one.get_many(&["k", "2/k"], bench.soon());
    expect("many", many, Ok(vec![None, Some(b"one".to_vec())]))?;
    expect("wait", two.wait(&["k"], bench.soon()), Ok(()))?;
    expect("add", one.add("n", 1, bench.soon()).and(two.add("n", 1, bench.soon())), Ok(1))
}

fn linearizable_adds(bench: &Bench) -> Result<(), String> {
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

fn linearizable_compare_and_sets(bench: &Bench) -> Result<(), String> {
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

fn one_creator(bench: &Bench) -> Result<(), String> {
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

fn whole_values(bench: &Bench) -> Result<(), String> {
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
