//! The suite on all implementations, and on stores with planted faults that it must find.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{connect, in_process_opener, serve, small_limits, soon};
use crate::store::callback::{CallbackFailure, CallbackStore, Callbacks};
use crate::store::conformance::{CLAUSES, Opener, check, check_clause};
use crate::store::deadlines::left;
use crate::store::tcp::ServerOptions;
use crate::store::{
    CasOutcome, FileStore, InProcessStore, InterceptedStore, Interrupt, InterruptibleStore, PrefixStore,
    Store, StoreError, StoreIntercept, StoreOp,
};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn in_process_store_conforms() {
    check(&in_process_opener(), PATIENCE).unwrap();
}

#[test]
fn file_store_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/store");
    let open: Opener =
        Arc::new(move || Ok(Arc::new(FileStore::open(&path, small_limits(), soon())?) as Arc<dyn Store>));
    check(&open, PATIENCE).unwrap();
}

#[test]
fn tcp_store_conforms() {
    let server = serve(ServerOptions { limits: small_limits(), ..ServerOptions::default() });
    let server = Arc::new(server);
    let open: Opener = Arc::new(move || Ok(Arc::new(connect(&server)) as Arc<dyn Store>));
    check(&open, PATIENCE).unwrap();
}

#[test]
fn prefix_store_conforms() {
    let inner = in_process_opener();
    let open: Opener =
        Arc::new(move || Ok(Arc::new(PrefixStore::new(inner()?, "corner")?) as Arc<dyn Store>));
    check(&open, PATIENCE).unwrap();
}

#[test]
fn interruptible_store_conforms_while_nothing_is_said() {
    let inner = in_process_opener();
    let open: Opener = Arc::new(move || {
        Ok(Arc::new(InterruptibleStore::new(inner()?, Interrupt::never())) as Arc<dyn Store>)
    });
    check(&open, PATIENCE).unwrap();
}

fn failed(error: StoreError) -> CallbackFailure {
    match error {
        StoreError::Timeout { .. } => CallbackFailure::Timeout,
        StoreError::Lost { cause, .. } => CallbackFailure::Lost(cause),
        other => CallbackFailure::Failed(other.to_string()),
    }
}

fn callbacks(store: &InProcessStore, with_wait: bool) -> Callbacks {
    let at = |left: Duration| Instant::now() + left;
    let [set, get, add, cas, delete, wait] = std::array::from_fn(|_| store.clone());
    Callbacks {
        name: "a host's map".to_owned(),
        set: Box::new(move |key, value, left| set.set(key, value, at(left)).map_err(failed)),
        get: Box::new(move |key, left| get.get(key, at(left)).map_err(failed)),
        add: Box::new(move |key, delta, left| add.add(key, delta, at(left)).map_err(failed)),
        compare_and_set: Box::new(move |key, expected, new, left| {
            let outcome = cas.compare_and_set(key, expected, new, at(left)).map_err(failed)?;
            Ok(match outcome {
                CasOutcome::Swapped => Ok(()),
                CasOutcome::Current(current) => Err(current),
            })
        }),
        delete: Box::new(move |key, left| delete.delete(key, at(left)).map_err(failed)),
        wait: with_wait.then(|| -> Box<crate::store::callback::WaitFn> {
            Box::new(move |key, left| wait.wait(&[key], at(left)).map_err(failed))
        }),
        max_value: store.max_value(),
    }
}

#[test]
fn callback_store_conforms_with_and_without_wait() {
    for with_wait in [true, false] {
        let store = InProcessStore::with_limits(small_limits());
        let open: Opener =
            Arc::new(
                move || Ok(Arc::new(CallbackStore::new(callbacks(&store, with_wait))) as Arc<dyn Store>),
            );
        check(&open, PATIENCE).unwrap();
    }
}

#[test]
fn callback_failures_are_named() {
    let store = InProcessStore::new();
    let mut host = callbacks(&store, false);
    host.get = Box::new(|_, _| Err(CallbackFailure::Failed("quota of the day".to_owned())));
    host.set = Box::new(|_, _, _| Err(CallbackFailure::Lost("etcd is gone".to_owned())));
    let store = CallbackStore::new(host);
    let failed = store.get("k", soon()).unwrap_err().to_string();
    assert!(failed.contains("a host's map") && failed.contains("quota of the day"), "{failed}");
    assert_eq!(super::lost_cause(store.set("k", b"", soon())), "etcd is gone");
}

macro_rules! fault {
    ($name:ident: $($method:item)*) => {
        #[derive(Debug)]
        struct $name;
        impl StoreIntercept for $name {
            $($method)*
        }
    };
}

fault! { AddInTwoSteps:
    fn add(&self, inner: &dyn Store, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        let Some(sum) = inner.add(key, 0, deadline)?.checked_add(delta) else {
            return inner.add(key, delta, deadline);
        };
        std::thread::sleep(Duration::from_micros(20));
        inner.set(key, sum.to_string().as_bytes(), deadline)?;
        Ok(sum)
    }
}
fault! { CompareInTwoSteps:
    fn compare_and_set(&self, inner: &dyn Store, key: &str, expected: Option<&[u8]>, new: &[u8], deadline: Instant) -> Result<CasOutcome, StoreError> {
        let current = inner.get(key, deadline)?;
        if current.as_deref() != expected {
            return Ok(CasOutcome::Current(current));
        }
        std::thread::sleep(Duration::from_micros(20));
        inner.set(key, new, deadline)?;
        Ok(CasOutcome::Swapped)
    }
}
fault! { EmptyIsAbsent:
    fn compare_and_set(&self, inner: &dyn Store, key: &str, expected: Option<&[u8]>, new: &[u8], deadline: Instant) -> Result<CasOutcome, StoreError> {
        let expected = expected.filter(|value| !value.is_empty());
        inner.compare_and_set(key, expected, new, deadline)
    }
}
fault! { CountersWrap:
    fn add(&self, inner: &dyn Store, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        match inner.add(key, delta, deadline) {
            Err(StoreError::Counter { .. }) => {
                inner.set(key, delta.to_string().as_bytes(), deadline)?;
                Ok(delta)
            }
            other => other,
        }
    }
}
fault! { DeletesNothing:
    fn delete(&self, inner: &dyn Store, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        Ok(inner.get(key, deadline)?.is_some())
    }
}
fault! { KeysWithoutCase:
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        inner.set(&key.to_lowercase(), value, deadline)
    }
    fn get(&self, inner: &dyn Store, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        inner.get(&key.to_lowercase(), deadline)
    }
}
fault! { CutsAtNul:
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        let value = value.split(|byte| *byte == 0).next().unwrap();
        inner.set(key, value, deadline)
    }
}
fault! { WaitsForTheFirstOnly:
    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        inner.wait(&keys[..keys.len().min(1)], deadline)
    }
}
fault! { NamesAllKeysAsMissing:
    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        inner.wait(keys, deadline).map_err(|error| match error {
            StoreError::Timeout { op, waited, .. } => {
                StoreError::Timeout { op, keys: keys.iter().map(|k| (*k).to_owned()).collect(), waited }
            }
            error => error,
        })
    }
}
fault! { NeverWakes:
    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        let absent = |key: &&&str| matches!(inner.get(key, soon()), Ok(None));
        let keys: Vec<String> = keys.iter().filter(absent).map(|key| (*key).to_owned()).collect();
        if keys.is_empty() {
            return Ok(());
        }
        std::thread::sleep(left(deadline));
        Err(StoreError::Timeout { op: StoreOp::Wait, keys, waited: Duration::ZERO })
    }
}
fault! { PrefixesMeet:
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        inner.set(&key.replace('/', ""), value, deadline)
    }
    fn get(&self, inner: &dyn Store, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        inner.get(&key.replace('/', ""), deadline)
    }
}
fault! { WaitsForEver:
    fn wait(&self, inner: &dyn Store, keys: &[&str], _: Instant) -> Result<(), StoreError> {
        inner.wait(keys, soon())
    }
}
fault! { GivesUpEarly:
    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        inner.wait(keys, deadline.min(Instant::now() + Duration::from_millis(10)))
    }
}
fault! { MissesDeletions:
    fn wait_change(&self, inner: &dyn Store, key: &str, known: Option<&[u8]>, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            let seen = inner.wait_change(key, known, deadline)?;
            if seen.is_some() || known.is_none() {
                return Ok(seen);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
fault! { ActsPastItsDeadline:
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        let outcome = inner.set(key, value, deadline);
        inner.set(key, value, soon())?;
        outcome
    }
}
fault! { WritesInTwoSteps:
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        inner.set(key, &value[..value.len() / 2], deadline)?;
        std::thread::sleep(Duration::from_micros(20));
        inner.set(key, value, deadline)
    }
}
fault! { TakesAnySize:
    fn set(&self, inner: &dyn Store, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        inner.set(key, &value[..value.len().min(inner.max_value())], deadline)
    }
}

fault! { ForgetsOrder:
    fn get_many(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut keys = keys.to_vec();
        keys.reverse();
        inner.get_many(&keys, deadline)
    }
}

fault! { ReadsBackwards:
    fn get_many(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut values = Vec::new();
        for key in keys.iter().rev() {
            values.insert(0, inner.get(key, deadline)?);
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(values)
    }
}

/// Lets one thread in at a time, blocked or not.
#[derive(Debug)]
struct OneAtATime(Mutex<()>);

impl StoreIntercept for OneAtATime {
    fn add(&self, inner: &dyn Store, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        let _alone = self.0.lock().unwrap();
        inner.add(key, delta, deadline)
    }
    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        let _alone = self.0.lock().unwrap();
        inner.wait(keys, deadline)
    }
}

/// Whether a clause finds a fault, in one of some tries: a race needs luck to be seen. What must happen is given
/// little time, so that a fault that makes it never happen is found soon; too little time could only find more.
fn finds<F: StoreIntercept + 'static>(clause: &str, tries: usize, fault: fn() -> F) -> bool {
    let (name, check) = *CLAUSES.iter().find(|(name, _)| *name == clause).unwrap();
    (0..tries).any(|_| {
        // One map, and one fault, however often it is opened.
        let inner = Arc::new(InProcessStore::with_limits(small_limits()));
        let store: Arc<dyn Store> = Arc::new(InterceptedStore::new(inner, fault()));
        let open: Opener = Arc::new(move || Ok(store.clone()));
        check_clause(&open, Duration::from_millis(300), name, check).is_err()
    })
}

#[test]
fn suite_finds_planted_faults() {
    macro_rules! planted {
        (OneAtATime) => {
            || OneAtATime(Mutex::new(()))
        };
        ($fault:ident) => {
            || $fault
        };
    }
    macro_rules! found {
        ($($fault:ident by $clause:literal in $tries:literal),* $(,)?) => {
            std::thread::scope(|scope| {$(
                scope.spawn(|| {
                    assert!(finds($clause, $tries, planted!($fault)), "{} is not found by {}", stringify!($fault), $clause);
                });
            )*})
        };
    }
    found! {
        EmptyIsAbsent by "compare-and-set" in 1,
        CountersWrap by "add" in 1,
        DeletesNothing by "delete" in 1,
        KeysWithoutCase by "keys" in 1,
        CutsAtNul by "set and get" in 1,
        TakesAnySize by "too large" in 1,
        WaitsForTheFirstOnly by "wait times out" in 1,
        NamesAllKeysAsMissing by "wait times out" in 1,
        WaitsForEver by "wait times out" in 1,
        GivesUpEarly by "wait times out" in 50,
        NeverWakes by "wait wakes" in 50,
        MissesDeletions by "wait-change wakes" in 1,
        ActsPastItsDeadline by "passed deadline" in 1,
        PrefixesMeet by "prefixes" in 1,
        ForgetsOrder by "get many" in 1,
        OneAtATime by "blocked waits" in 50,
        AddInTwoSteps by "adds are linearizable" in 50,
        CompareInTwoSteps by "compare-and-sets are linearizable" in 50,
        CompareInTwoSteps by "one creator" in 50,
        WritesInTwoSteps by "whole values" in 50,
        ReadsBackwards by "reads in order" in 50,
    }
}
