//! The trace in tests/data of the workspace, which examples and other crates' tests rely on.

use std::num::NonZeroUsize;
use std::path::Path;

use eplb_trace::Trace;
use eplb_trace::info::{HeatMap, Info};
use eplb_trace::npz::Npz;
use ndarray::Array1;

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/day_26x64.npz")
}

#[test]
fn its_numbers_are_those_that_numpy_gives() {
    let trace = Trace::open(path()).unwrap();
    assert_eq!((trace.steps(), trace.layers(), trace.experts()), (160, 26, 64));
    assert_eq!((trace.dtype().to_string().as_str(), trace.stream()), ("<u2", None));
    let loads = trace.loads(0..160).unwrap();
    assert_eq!(loads.sum().sum(), 204_472_320.0);
    assert_eq!(loads.step(0).row(0).to_vec()[..6], [699.0, 355.0, 920.0, 393.0, 724.0, 659.0]);
    assert_eq!(loads.step(159).row(25).to_vec()[61..], [549.0, 660.0, 690.0]);
    assert!(loads.window().rows().into_iter().all(|row| row.sum() == 8192.0 * 6.0));
    let phase: Array1<i64> = Npz::open(path()).unwrap().integers("phase").unwrap();
    assert_eq!(
        (0..4).map(|p| phase.iter().filter(|&&q| q == p).count()).collect::<Vec<_>>(),
        [20, 40, 60, 40]
    );
}

#[test]
fn its_summary_shows_the_switch() {
    let trace = Trace::open(path()).unwrap();
    let info = Info::of(&trace, NonZeroUsize::new(20).unwrap()).unwrap();
    assert_eq!(info.tokens_per_step, Some(49_152.0));
    assert!((info.max_over_mean_per_step.unwrap() - 2.09).abs() < 0.005);
    // The largest step between windows is the sudden change of languages at step 60.
    assert_eq!(info.drift.largest.unwrap().1, 60);
    assert_eq!(info.drift.distances.len(), 7);
    assert_eq!((info.idle_layers.len(), info.per_layer.len(), info.streams.len()), (0, 26, 1));
    let map = HeatMap::default().render(trace.sum(0..160).unwrap().view());
    assert_eq!(map.lines().count(), 28);
}
