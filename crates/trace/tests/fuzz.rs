//! No bytes make a reader panic, or hold more memory than a small multiple of the bytes there are.

mod numpy_files;

use std::alloc::System;

use cap::Cap;
use eplb_trace::Trace;
use eplb_trace::npy;
use eplb_trace::npz::Npz;
use ndarray::IxDyn;
use numpy_files::{CODES, npy, npy_raw, zip};
use proptest::prelude::*;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Reads bytes in every way there is and uses what comes out. Whether that succeeds does not matter here.
fn read(bytes: &[u8]) {
    if let Ok(trace) = Trace::from_bytes("fuzz", bytes.to_vec()) {
        assert!(trace.steps() * trace.layers() * trace.experts() > 0);
        let window = std::num::NonZeroUsize::new(3).unwrap();
        for steps in trace.windows(window).take(4) {
            trace.loads(steps).unwrap();
        }
    }
    if let Ok(array) = npy::from_bytes("fuzz", bytes.to_vec()) {
        let _ = (array.floats::<IxDyn>(), array.integers::<IxDyn>());
    }
    if let Ok(npz) = Npz::from_bytes("fuzz", bytes.to_vec()) {
        for name in npz.names() {
            let _ = (npz.floats::<IxDyn>(name), npz.integers::<IxDyn>(name));
        }
        let _ = npz.describe();
    }
}

/// Reads bytes with at most `room` more bytes of memory than before: an allocation beyond that would abort.
fn read_within(room: usize, bytes: &[u8]) {
    MEMORY.set_limit(MEMORY.allocated() + room).unwrap();
    read(bytes);
    MEMORY.set_limit(usize::MAX).unwrap();
}

/// Small valid files of every kind, to be damaged.
fn valid_files() -> Vec<Vec<u8>> {
    let values: Vec<f64> = (0..24).map(f64::from).collect();
    let mut files: Vec<Vec<u8>> = Vec::new();
    for (i, (code, _)) in CODES.into_iter().enumerate() {
        files.push(npy(if i % 2 == 0 { '<' } else { '>' }, code, i % 3 == 0, &[2, 3, 4], &values));
    }
    let counts = files[5].clone();
    let stream = npy('<', "i1", false, &[2], &[0.0, 1.0]);
    let text = npy_raw("'<U3'", false, &[], &[0; 12]);
    let map = npy('<', "i4", false, &[3, 4], &[0.0, 1.0, 2.0, -1.0, 0.0, 0.0, 0.0, 0.0, 3.0, 2.0, 1.0, 0.0]);
    for deflated in [false, true] {
        let own =
            [("counts.npy", counts.clone()), ("stream.npy", stream.clone()), ("domain.npy", text.clone())];
        files.push(zip(&own, deflated));
        files.push(zip(&[("a.npy", counts.clone()), ("b.npy", counts.clone())], deflated));
        files.push(zip(&[("moe_load.npy", counts.clone()), ("phy2log.npy", map.clone())], deflated));
    }
    files.push(b"layer_id,expert_id,count\n0,0,5\n1,2,7.5\n\n\"0\",2,1e3\n".to_vec());
    files
}

/// All of it in one test: the limit on memory holds for the whole process.
#[test]
fn nothing_panics_and_nothing_is_large() {
    let files = valid_files();
    for file in &files {
        assert!(file.len() < 4096);
    }
    // The largest table that a handful of CSV lines may mean is 2^18 cells, 2 MiB as float64; a trace and two of its
    // windows, the zip reader and this test itself have copies.
    let room = 12 << 20;

    for file in &files {
        for end in 0..=file.len() {
            read_within(room, &file[..end]);
        }
        // Every single byte, changed in ways that hit lengths, signs, digits and quotes.
        for place in 0..file.len() {
            for value in [0x00, 0xff, 0x7f, 0x80, b'9', b'\'', b')', file[place] ^ 1] {
                let mut damaged = file.clone();
                damaged[place] = value;
                read_within(room, &damaged);
            }
        }
    }

    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) };
    let damage = (
        0..files.len(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        any::<bool>(),
    );
    let mut runner = proptest::test_runner::TestRunner::new(config.clone());
    runner
        .run(&damage, |(file, changes, insert)| {
            let mut bytes = files[file].clone();
            for (place, value) in changes {
                match insert {
                    true => bytes.insert(place.index(bytes.len()), value),
                    false => *place.get_mut(&mut bytes) = value,
                }
            }
            read_within(room, &bytes);
            Ok(())
        })
        .unwrap();

    let start = prop::sample::select(vec![
        &b""[..],
        b"\x93NUMPY",
        b"\x93NUMPY\x02\x00",
        b"\x93NUMPY\x01\x00\x10\x00{",
        b"\x93NUMPY\x02\x00\xff\xff\x00\x00",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"layer_id,expert_id,count\n",
    ]);
    let random = (start, prop::collection::vec(any::<u8>(), 0..300));
    let mut runner = proptest::test_runner::TestRunner::new(config.clone());
    runner
        .run(&random, |(start, rest)| {
            read_within(room, &[start, &rest].concat());
            Ok(())
        })
        .unwrap();

    // Headers that are almost right.
    let header = (
        prop::sample::select(vec![
            "'<f4'",
            "'>i8'",
            "'|O'",
            "'|u1'",
            "[('a', '<i4')]",
            "''",
            "'<f4",
            "(",
            "'<u2', 1",
        ]),
        prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..5),
        prop::sample::select(vec!["True", "False", "None", ""]),
        prop::collection::vec(any::<u8>(), 0..64),
    );
    let mut runner = proptest::test_runner::TestRunner::new(config.clone());
    runner
        .run(&header, |(descr, shape, order, data)| {
            let shape: String = shape.iter().map(|n| format!("{n},")).collect();
            let text = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': ({shape})}}");
            let mut file = b"\x93NUMPY\x03\x00".to_vec();
            file.extend((text.len() as u32).to_le_bytes());
            file.extend(text.bytes());
            file.extend(data);
            read_within(room, &zip(&[("counts.npy", file.clone())], true));
            read_within(room, &file);
            Ok(())
        })
        .unwrap();

    // Tables of whatever stands in their cells.
    let cell = prop_oneof!["[0-9]{1,10}", "[-+.0-9eEinfNa]{0,8}", "\\PC{0,4}"];
    let rows = prop::collection::vec((cell.clone(), cell.clone(), cell), 0..20);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&rows, |rows| {
            let mut text = String::from("expert_id,layer_id,count\n");
            for (a, b, c) in rows {
                text.push_str(&format!("{a},{b},{c}\n"));
            }
            read_within(room, text.as_bytes());
            Ok(())
        })
        .unwrap();
}
