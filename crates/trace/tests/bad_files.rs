//! Files that lie: each is refused by an error that names the file and what is wrong, or read as promised.

mod numpy_files;

use eplb_trace::{Trace, TraceError};
use ndarray::{Array3, array};
use numpy_files::{npy, npy_raw, zip};

fn open(bytes: Vec<u8>) -> Result<Trace, TraceError> {
    Trace::from_bytes("in.npz", bytes)
}

/// The message of the error.
fn refused(bytes: Vec<u8>) -> String {
    let message = open(bytes).unwrap_err().to_string();
    assert!(message.starts_with("in.npz"), "{message}");
    message
}

fn ones(shape: &[usize]) -> Vec<u8> {
    npy('<', "u2", false, shape, &vec![1.0; shape.iter().product()])
}

#[test]
fn other_arrays_are_ignored_whatever_they_are() {
    let members = |counts| {
        vec![
            ("domain.npy", npy_raw("'<U3'", false, &[], &[0; 12])),
            ("model.npy", npy_raw("'|O'", false, &[1], b"\x80\x04.")),
            ("step_tokens.npy", ones(&[])),
            ("mixture.npy", npy_raw("[('a', '<i4'), ('b', '<f8')]", false, &[3], &[0; 36])),
            ("garbage.npy", b"not an array".to_vec()),
            ("readme.txt", b"hello".to_vec()),
            ("mask.npy", npy_raw("'|b1'", false, &[2, 3, 4], &[1; 24])),
            (counts, ones(&[2, 3, 4])),
        ]
    };
    assert_eq!(open(zip(&members("counts.npy"), true)).unwrap().steps(), 2);
    // Under another name it is the only array of numbers that has axes.
    let trace = open(zip(&members("load.npy"), true)).unwrap();
    assert_eq!((trace.steps(), trace.array()), (2, "in.npz[load]"));
}

#[test]
fn several_arrays_without_counts_are_listed() {
    let two = [("a.npy", ones(&[2, 3])), ("b.npy", npy('>', "f4", false, &[4], &[1.0; 4]))];
    let message = refused(zip(&two, true));
    assert!(message.contains("the file holds a <u2 [2, 3], b >f4 [4]; name the one"), "{message}");
    let [a, b] = two;
    assert!(open(zip(&[a.clone(), b, ("counts.npy", ones(&[1, 1]))], false)).is_ok());
    assert!(open(zip(&[a, ("stream.npy", ones(&[1]))], false)).is_ok());
    let none = [("x.npy", npy_raw("'<U3'", false, &[], &[0; 12])), ("y.npy", ones(&[]))];
    assert!(refused(zip(&none, false)).contains("the file holds x <U3 [], y <u2 []"));
}

#[test]
fn arrays_that_are_no_loads_say_why() {
    for (descr, size, word) in [
        ("'|b1'", 1, "booleans"),
        ("'<c16'", 16, "complex"),
        ("'|O'", 8, "pickle"),
        ("'<U2'", 8, "text"),
        ("[('a', '<i4')]", 4, "structured"),
        ("'<f16'", 16, "2, 4 and 8 bytes"),
    ] {
        let file = npy_raw(descr, false, &[2, 2], &vec![0; 4 * size]);
        for bytes in [file.clone(), zip(&[("counts.npy", file.clone())], true), zip(&[("a.npy", file)], true)]
        {
            let error = open(bytes).unwrap_err();
            assert!(matches!(error, TraceError::Dtype { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
    assert!(refused(ones(&[3])).contains("shape [3], expected loads of shape [steps, layers, experts]"));
    assert!(refused(ones(&[1, 1, 1, 1])).contains("expected loads of shape"));
    for shape in [&[0, 3][..], &[2, 0, 3], &[0, 2, 3]] {
        assert!(matches!(open(ones(shape)), Err(TraceError::EmptyTrace { .. })));
    }
}

#[test]
fn bad_values_name_step_layer_and_expert() {
    for (value, word) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-2.0, "-2")] {
        let mut values = vec![1.0; 24];
        values[12 + 4 + 3] = value;
        for fortran in [false, true] {
            let file = npy('>', "f4", fortran, &[2, 3, 4], &values);
            let message = refused(zip(&[("counts.npy", file)], true));
            let expected = format!("in.npz[counts]: load of layer 1 expert 3 at step 1 is {word};");
            assert!(message.starts_with(&expected), "{message}");
        }
    }
    let message = refused(npy('<', "i2", false, &[1, 2], &[3.0, -1.0]));
    assert!(message.starts_with("in.npz: load of layer 0 expert 1 at step 0 is -1;"), "{message}");
}

#[test]
fn streams_must_fit() {
    let with = |stream: Vec<u8>| open(zip(&[("counts.npy", ones(&[3, 1, 2])), ("stream.npy", stream)], true));
    assert_eq!(with(ones(&[3])).unwrap().segments().len(), 1);
    for stream in [ones(&[2]), ones(&[]), ones(&[3, 1]), npy('<', "f4", false, &[3], &[0.0; 3])] {
        let message = with(stream).unwrap_err().to_string();
        assert!(message.contains("expected one integer for each of the 3 steps"), "{message}");
    }
    assert!(matches!(with(npy_raw("'<U1'", false, &[3], &[0; 12])), Err(TraceError::Dtype { .. })));
}

#[test]
fn lengths_must_agree() {
    let whole = ones(&[2, 3, 4]);
    let mut longer = whole.clone();
    longer.push(0);
    let shorter = whole[..whole.len() - 1].to_vec();
    for (bytes, found) in [(longer, 49), (shorter, 47)] {
        for bytes in [bytes.clone(), zip(&[("counts.npy", bytes)], true)] {
            let message = refused(bytes);
            assert!(
                message.contains(&format!("needs 48 bytes after the header, but {found} are")),
                "{message}"
            );
        }
    }
    for end in 0..whole.len() {
        assert!(open(whole[..end].to_vec()).is_err());
    }
}

#[test]
fn a_zip_file_that_inflates_to_more_than_it_says_is_refused() {
    // 64 MiB of zeros deflate to 64 KiB; the header says 4 x 4, or all of it, or more than there is.
    let bomb = |shape: &[usize]| {
        let mut file = npy_raw("'<u2'", false, shape, &[]);
        file.resize(file.len() + (64 << 20), 0);
        zip(&[("counts.npy", file)], true)
    };
    assert!(matches!(open(bomb(&[4, 4])), Err(TraceError::Length { found: 0x400_0000, .. })));
    assert!(matches!(open(bomb(&[1 << 40, 4])), Err(TraceError::Length { .. })));
    assert!(matches!(open(bomb(&[1 << 62, 4])), Err(TraceError::ShapeOverflow { .. })));
    let trace = open(bomb(&[32, 1024, 1024])).unwrap();
    assert_eq!(trace.loads(0..32).unwrap().sum().sum(), 0.0);
}

#[test]
fn damage_inside_a_zip_file_is_found() {
    for deflated in [false, true] {
        let values: Vec<f64> = (0..2400).map(|i| f64::from(i * 7919 % 251)).collect();
        let whole = zip(&[("counts.npy", npy('<', "u2", false, &[2, 30, 40], &values))], deflated);
        assert!(open(whole.clone()).is_ok());
        for place in (200..whole.len() - 200).step_by(97) {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x10;
            let message = refused(damaged);
            assert!(message.contains("damaged data"), "{message}");
        }
        for end in (4..whole.len()).step_by(61) {
            assert!(matches!(open(whole[..end].to_vec()), Err(TraceError::Zip { .. })));
        }
    }
}

#[test]
fn two_arrays_of_one_name_are_refused() {
    let mut file = zip(&[("counts.npy", ones(&[2, 3])), ("countz.npy", ones(&[3, 2]))], false);
    assert!(open(file.clone()).is_ok());
    let places: Vec<usize> = (0..file.len()).filter(|&i| file[i..].starts_with(b"countz.npy")).collect();
    assert_eq!(places.len(), 2, "the name stands before the data and in the directory");
    for place in places {
        file[place + 5] = b's';
    }
    assert!(refused(file).contains("two members have the same name"));
}

#[test]
fn other_kinds_of_files_are_named() {
    let torch = refused(zip(&[("archive/data.pkl", vec![1])], false));
    assert!(torch.contains("torch.save") && torch.contains("python3 -m eplb.convert"), "{torch}");
    assert!(refused(b"\x80\x04\x95\x00".to_vec()).contains("torch.save"));
    assert!(refused(Vec::new()).contains("the file is empty"));
    assert!(refused(b"\x7fELF\x02\x01\x01\x00\x00".to_vec()).contains("begins with the bytes [7f, 45"));
    assert!(refused(zip(&[("readme.txt", vec![1])], false)).contains("holds no array"));
    assert!(refused(b"hello\nworld\n".to_vec()).contains("must name the columns layer_id,expert_id,count"));
    let missing = Trace::open("/does/not/exist.npz").unwrap_err().to_string();
    assert!(missing.starts_with("/does/not/exist.npz: cannot open"), "{missing}");
}

#[test]
fn other_systems_arrays_are_read() {
    let three = ones(&[5, 2, 3]);
    for name in
        ["logical_count", "logical_expert_load_window", "global_expert_load_window", "global_expert_load"]
    {
        let file = format!("{name}.npy");
        let members = [(file.as_str(), three.clone()), ("rank.npy", ones(&[])), ("rate.npy", ones(&[7]))];
        let trace = open(zip(&members, true)).unwrap();
        assert_eq!((trace.steps(), trace.layers(), trace.experts()), (5, 2, 3));
        assert_eq!(trace.array(), format!("in.npz[{name}]"));
    }
    let both = [("logical_count.npy", three.clone()), ("global_expert_load.npy", three)];
    assert!(matches!(open(zip(&both, true)), Err(TraceError::Ambiguous { .. })));
}

#[test]
fn physical_counts_are_folded_with_their_map() {
    // Two layers, four slots on two ranks, three experts.
    let map = npy('<', "i8", false, &[2, 4], &[0.0, 1.0, 2.0, 0.0, 2.0, 1.0, 0.0, -1.0]);
    let physical = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 0.0];
    let logical = array![[[5.0, 2.0, 3.0], [7.0, 6.0, 5.0]], [[50.0, 20.0, 30.0], [70.0, 60.0, 50.0]]];
    let fold = |name: &str, shape: &[usize], values: &[f64], map: &[u8]| -> Result<Array3<f64>, TraceError> {
        let name = format!("{name}.npy");
        let members = [
            (name.as_str(), npy('<', "i4", false, shape, values)),
            ("physical_to_logical_map.npy", map.to_vec()),
        ];
        let trace = open(zip(&members, true))?;
        Ok(trace.loads(0..trace.steps())?.window().clone())
    };
    for (name, shape) in [
        ("physical_count", &[2, 2, 4][..]),
        ("expert_load_window", &[2, 2, 4]),
        ("moe_load", &[2, 2, 2, 2]),
        ("moe_load", &[2, 2, 4]),
    ] {
        let folded = fold(name, shape, &physical, &map).unwrap();
        assert_eq!(folded, logical, "{name} {shape:?}");
    }
    let first = logical.slice(ndarray::s![..1, .., ..]);
    assert_eq!(fold("expert_load_pass", &[2, 4], &physical[..8], &map).unwrap(), first);
    assert_eq!(fold("moe_load", &[2, 2, 2], &physical[..8], &map).unwrap(), first);

    let mut counted = physical;
    counted[7] = 9.0;
    let message = fold("physical_count", &[2, 2, 4], &counted, &map).unwrap_err().to_string();
    assert!(message.contains("layer 1 slot 3 is -1 but counts 9 tokens at step 0"), "{message}");
    for value in [9.0, -1.0] {
        let map = npy('<', "i8", false, &[2, 4], &[value; 8]);
        let message = fold("physical_count", &[2, 2, 4], &physical, &map).unwrap_err().to_string();
        assert!(
            message.starts_with("in.npz[physical_to_logical_map]: ") && message.contains("largest"),
            "{message}"
        );
    }
    let map = npy('<', "i8", false, &[3, 4], &[0.0; 12]);
    assert!(matches!(
        fold("physical_count", &[2, 2, 4], &physical, &map),
        Err(TraceError::Dimensions { .. })
    ));
}
