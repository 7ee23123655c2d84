//! Arrays of every dtype, byte order and order come back as they were, from files of every kind.

mod numpy_files;

use eplb_trace::npz::{Npz, NpzWriter};
use eplb_trace::{Trace, TraceError, npy};
use ndarray::{Array, Array0, Array1, Array2, Array3, Ix3, IxDyn, array};
use numpy_files::{CODES, npy, npy_raw, zip};

/// Whole numbers up to the largest that the dtype is tested with, in C order.
fn values(shape: &[usize], largest: f64) -> Array<f64, IxDyn> {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|i| if i + 1 == count { largest } else { (i % 100) as f64 }).collect();
    Array::from_shape_vec(IxDyn(shape), values).unwrap()
}

#[test]
fn every_dtype_and_order_is_read() {
    let shape = [3, 4, 5];
    for (code, largest) in CODES {
        let expected = values(&shape, largest);
        let slice = expected.as_slice().unwrap();
        for order in ['<', '>'] {
            for fortran in [false, true] {
                let file = npy(order, code, fortran, &shape, slice);
                let case = format!("{order}{code} fortran {fortran}");
                let array = npy::from_bytes("a", file.clone()).unwrap();
                assert_eq!(array.floats::<IxDyn>().unwrap(), expected, "{case}");
                assert!(array.floats::<Ix3>().unwrap().is_standard_layout(), "{case}");
                match array.integers::<Ix3>() {
                    Ok(integers) => assert_eq!(integers.mapv(|v| v as f64).into_dyn(), expected, "{case}"),
                    Err(error) => {
                        assert!(code.starts_with('f'), "{case}");
                        assert!(matches!(error, TraceError::NotInteger { .. }), "{error}");
                    }
                }
                let expected = expected.clone().into_dimensionality::<Ix3>().unwrap();
                for members in [false, true].map(|deflated| zip(&[("counts.npy", file.clone())], deflated)) {
                    let trace = Trace::from_bytes("t", members).unwrap();
                    assert_eq!(trace.loads(0..3).unwrap().window(), expected, "{case}");
                    assert_eq!(
                        trace.loads(1..3).unwrap().window(),
                        expected.slice(ndarray::s![1..3, .., ..])
                    );
                    assert_eq!(trace.step(2).unwrap(), expected.index_axis(ndarray::Axis(0), 2));
                }
            }
        }
    }
}

#[test]
fn two_axes_are_one_step_in_both_orders() {
    let expected = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
    for fortran in [false, true] {
        let file = npy('<', "i4", fortran, &[2, 3], expected.as_slice().unwrap());
        let trace = Trace::from_bytes("t.npy", file).unwrap();
        assert_eq!((trace.steps(), trace.step(0).unwrap()), (1, expected.clone()));
    }
}

#[test]
fn traces_are_written_as_they_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let shape = [6, 3, 4];
    for (code, largest) in CODES {
        let expected = values(&shape, largest);
        for (order, fortran) in [('<', false), ('>', false), ('<', true), ('>', true)] {
            let counts = npy(order, code, fortran, &shape, expected.as_slice().unwrap());
            let stream = npy(order, "i2", false, &[6], &[4.0, 4.0, -1.0, -1.0, -1.0, 4.0]);
            let file = zip(&[("counts.npy", counts), ("stream.npy", stream)], true);
            let trace = Trace::from_bytes("t", file).unwrap();
            assert_eq!(trace.segments(), [0..2, 2..5, 5..6]);
            for (part, shown) in [(trace.clone(), 0..6), (trace.select_steps(1..4).unwrap(), 1..4)] {
                for name in ["out.npz", "out.npy"] {
                    let path = folder.path().join(name);
                    part.write(&path).unwrap();
                    let again = Trace::open(&path).unwrap();
                    let dtype = if code.ends_with('1') { format!("|{code}") } else { format!("<{code}") };
                    assert_eq!(again.dtype().to_string(), dtype);
                    assert_eq!(again.loads(0..shown.len()).unwrap(), trace.loads(shown.clone()).unwrap());
                    let stream = part.stream().filter(|_| name == "out.npz");
                    assert_eq!(again.stream(), stream);
                }
            }
        }
    }
}

#[test]
fn tables_are_sums_over_steps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.csv");
    let counts = array![[[1.0, 0.0], [2.5, 0.0]], [[1.0, 0.0], [2.0, 0.0]]];
    Trace::new("made", &counts, None).unwrap().write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, "layer_id,expert_id,count\n0,0,2\n0,1,0\n1,0,4.5\n1,1,0\n");
    assert_eq!(Trace::open(&path).unwrap().step(0).unwrap(), array![[2.0, 0.0], [4.5, 0.0]]);
    let error = Trace::open(&path).unwrap().write(folder.path().join("out.parquet")).unwrap_err();
    assert!(matches!(error, TraceError::Extension { .. }));
}

#[test]
fn several_arrays_are_written_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.npz");
    let (phy2log, share) = (array![[0i64, -1], [i64::MIN, i64::MAX]], array![[0.25, 1e-300]]);
    let strided = Array2::from_shape_fn((4, 6), |(a, b)| (10 * a + b) as u16);
    let view = strided.slice(ndarray::s![..;2, 1..4]);
    let write = |path| {
        let mut npz = NpzWriter::create(path)?;
        npz.array("phy2log", &phy2log)?;
        npz.array("share", &share)?;
        npz.array("i4", &array![[[7i32]]])?;
        npz.array("f4", &Array1::<f32>::zeros(0))?;
        npz.array("u2", &view)?;
        npz.array("version", &Array0::from_elem((), 3u8))?;
        npz.finish()
    };
    write(&path).unwrap();
    let npz = Npz::open(&path).unwrap();
    let listed =
        "phy2log <i8 [2, 2], share <f8 [1, 2], i4 <i4 [1, 1, 1], f4 <f4 [0], u2 <u2 [2, 3], version |u1 []";
    assert_eq!(npz.describe(), listed);
    assert_eq!(npz.integers::<ndarray::Ix2>("phy2log").unwrap(), phy2log);
    assert_eq!(npz.floats::<ndarray::Ix2>("share").unwrap(), share);
    assert_eq!(npz.integers::<ndarray::Ix2>("u2").unwrap(), view.mapv(i64::from));
    assert_eq!(npz.integers::<ndarray::Ix0>("version").unwrap(), Array0::from_elem((), 3));
    assert_eq!(npz.floats::<ndarray::Ix1>("f4").unwrap().len(), 0);

    let file = format!("{}[phy2log]", path.display());
    let error = npz.floats::<Ix3>("phy2log").unwrap_err();
    assert_eq!(error.to_string(), format!("{file}: shape [2, 2], expected an array of 3 axes"));
    let error = npz.array("logcnt").unwrap_err().to_string();
    assert_eq!(error, format!("{}: no array logcnt; the file holds {listed}", path.display()));

    let again = folder.path().join("again.npz");
    write(&again).unwrap();
    assert_eq!(
        std::fs::read(&path).unwrap(),
        std::fs::read(&again).unwrap(),
        "the same arrays, the same bytes"
    );

    let mut twice = NpzWriter::create(&again).unwrap();
    twice.array("a", &share).unwrap();
    assert!(matches!(twice.array("a", &share), Err(TraceError::Zip { .. })));
    drop(twice);
    assert_eq!(
        std::fs::read(&path).unwrap(),
        std::fs::read(&again).unwrap(),
        "unfinished, so still the old file"
    );
}

#[test]
fn large_files_are_mapped_and_read_the_same() {
    let folder = tempfile::tempdir().unwrap();
    // uint16, just above the size from which files are mapped.
    let shape = [1030, 32, 256];
    let count: usize = shape.iter().product();
    let data: Vec<u8> = (0..count).flat_map(|i| ((i * 7919 % 65_521) as u16).to_le_bytes()).collect();
    assert!(data.len() as u64 > eplb_trace::MAP_FROM);
    let value = |i: usize| (i * 7919 % 65_521) as f64;
    for fortran in [false, true] {
        let file = npy_raw("'<u2'", fortran, &shape, &data);
        for (name, bytes) in [("a.npy", file.clone()), ("a.npz", zip(&[("counts.npy", file)], false))] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let trace = Trace::open(&path).unwrap();
            let expected = Array3::from_shape_fn((3, 32, 256), |(t, l, e)| match fortran {
                false => value(((t + 900) * 32 + l) * 256 + e),
                true => value((e * 32 + l) * 1030 + t + 900),
            });
            assert_eq!(trace.loads(900..903).unwrap().window(), expected, "{name} fortran {fortran}");
        }
    }
}
