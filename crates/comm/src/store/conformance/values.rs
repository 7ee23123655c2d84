//! What is kept under keys.

use std::sync::Arc;

use super::{Bench, done, expect};
use crate::store::{CasOutcome, PrefixStore, Store, StoreError};

pub(super) fn absent(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    expect("get of nothing", bench.a.get(&key, bench.soon()), Ok(None))?;
    expect("delete of nothing", bench.a.delete(&key, bench.soon()), Ok(false))
}

pub(super) fn set_and_get(bench: &Bench) -> Result<(), String> {
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

pub(super) fn keys(bench: &Bench) -> Result<(), String> {
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

pub(super) fn too_large(bench: &Bench) -> Result<(), String> {
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

pub(super) fn delete(bench: &Bench) -> Result<(), String> {
    let key = bench.key("k");
    done("set", bench.a.set(&key, b"v", bench.soon()))?;
    expect("delete", bench.b.delete(&key, bench.soon()), Ok(true))?;
    expect("get after it", bench.a.get(&key, bench.soon()), Ok(None))?;
    expect("delete after it", bench.a.delete(&key, bench.soon()), Ok(false))
}

pub(super) fn add(bench: &Bench) -> Result<(), String> {
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

pub(super) fn compare_and_set(bench: &Bench) -> Result<(), String> {
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

pub(super) fn get_many(bench: &Bench) -> Result<(), String> {
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

pub(super) fn prefixes(bench: &Bench) -> Result<(), String> {
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
