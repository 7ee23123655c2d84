//! A trace: tokens per step, layer and logical expert, with the streams that its steps belong to.

use std::num::NonZeroUsize;
use std::ops::Range;

use eplb_core::{CoreError, LoadMatrix};
use ndarray::{Array2, Array3, Axis};

use crate::counts::Counts;
use crate::error::TraceError;
use crate::npy::Dtype;
use crate::windows::{Windows, segments};

/// Steps that are decoded at once where only their sum is wanted.
const STEPS_AT_ONCE: usize = 32;

/// Tokens routed to each logical expert, per step and layer: `[T, L, E]`, at least one of each.
///
/// Every value is finite and 0 or more. The counts stay in the form of their file (2 bytes each in a uint16 file, no
/// memory but the mapping's in a mapped file) and are decoded to float64 for one window at a time, so a trace of any
/// length costs one window. Clones and selections share the counts.
///
/// Steps may belong to streams: `stream [T]` gives each step a number, and runs of one number are separate in time.
/// [`Trace::windows`] never cross from one run to the next.
#[derive(Debug, Clone)]
pub struct Trace {
    source: String,
    counts: Counts,
    /// The steps of `counts` that this trace shows.
    shown: Range<usize>,
    /// Stream of each shown step.
    stream: Option<Vec<i64>>,
    segments: Vec<Range<usize>>,
}

impl Trace {
    /// A trace of computed counts `[T, L, E]`; `source` names it in messages. Values are kept exactly, in the
    /// smallest of uint16, uint32, float32 and float64 that can.
    ///
    /// # Errors
    /// [`TraceError::EmptyTrace`], [`TraceError::Load`], [`TraceError::Overflow`], or [`TraceError::Stream`] if
    /// there is not one stream number per step.
    pub fn new(
        source: impl Into<String>,
        counts: &Array3<f64>,
        stream: Option<Vec<i64>>,
    ) -> Result<Self, TraceError> {
        let source = source.into();
        let counts = Counts::of_values(source.clone(), counts.view())?;
        Self::assemble(source, counts, stream)
    }

    pub(crate) fn assemble(
        source: String,
        counts: Counts,
        stream: Option<Vec<i64>>,
    ) -> Result<Self, TraceError> {
        let steps = counts.steps();
        if let Some(found) = stream.as_ref().map(Vec::len).filter(|&n| n != steps) {
            return Err(TraceError::Stream { file: source, found: format!("{found} entries"), steps });
        }
        let segments = segments(stream.as_deref(), steps);
        Ok(Self { source, counts, shown: 0..steps, stream, segments })
    }

    /// The file, as the user gave it, or the name that the trace was made with.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The file with the array that the counts came from: `day.npz[counts]`.
    pub fn array(&self) -> &str {
        self.counts.array().file()
    }

    /// How the counts are stored.
    pub fn dtype(&self) -> Dtype {
        self.counts.array().dtype()
    }

    /// Number of steps `T`.
    pub fn steps(&self) -> usize {
        self.shown.len()
    }

    /// Number of MoE layers `L`.
    pub fn layers(&self) -> usize {
        self.counts.layers()
    }

    /// Number of logical experts `E`.
    pub fn experts(&self) -> usize {
        self.counts.experts()
    }

    /// Stream number of each step, `[T]`, if the trace has streams.
    pub fn stream(&self) -> Option<&[i64]> {
        self.stream.as_deref()
    }

    /// Runs of steps that are consecutive in time: one per run of equal stream numbers, in order.
    pub fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }

    /// Consecutive windows of `size` steps. None crosses a change of stream: where a stream ends, a shorter window
    /// is given, so that every step is in exactly one.
    pub fn windows(&self, size: NonZeroUsize) -> Windows<'_> {
        Windows::new(&self.segments, size)
    }

    /// The loads of the steps `steps`, per step and summed.
    ///
    /// # Errors
    /// [`TraceError::Steps`] for an empty range or one that leaves the trace.
    pub fn loads(&self, steps: Range<usize>) -> Result<LoadMatrix, TraceError> {
        let in_file = self.in_file(&steps)?;
        // Values were checked when the trace was made; a mapped file that changed since then is caught here.
        LoadMatrix::from_window(self.counts.window(in_file.clone())).map_err(|error| match error {
            CoreError::Load { step, layer, expert, value } => {
                let (file, step) = (self.array().to_owned(), in_file.start + step);
                TraceError::Load { file, step, layer, expert, value }
            }
            _ => TraceError::EmptyTrace {
                file: self.array().to_owned(),
                shape: vec![in_file.len(), self.layers(), self.experts()],
            },
        })
    }

    /// The loads of one step, `[L, E]`.
    ///
    /// # Errors
    /// [`TraceError::Steps`] for a step that the trace does not have.
    pub fn step(&self, step: usize) -> Result<Array2<f64>, TraceError> {
        let in_file = self.in_file(&(step..step.saturating_add(1)))?;
        Ok(self.counts.window(in_file).index_axis_move(Axis(0), 0))
    }

    /// The loads of the steps `steps`, summed, `[L, E]`: what [`Trace::loads`] gives as its sum, in the memory of a few
    /// steps.
    ///
    /// # Errors
    /// [`TraceError::Steps`] for an empty range or one that leaves the trace.
    pub fn sum(&self, steps: Range<usize>) -> Result<Array2<f64>, TraceError> {
        let in_file = self.in_file(&steps)?;
        let mut sum = Array2::zeros((self.layers(), self.experts()));
        for start in in_file.clone().step_by(STEPS_AT_ONCE) {
            let window = self.counts.window(start..in_file.end.min(start + STEPS_AT_ONCE));
            for step in window.axis_iter(Axis(0)) {
                sum += &step;
            }
        }
        Ok(sum)
    }

    /// The trace of the steps `steps` alone, numbered from 0 again. Nothing is copied.
    ///
    /// # Errors
    /// [`TraceError::Steps`] for an empty range or one that leaves the trace.
    pub fn select_steps(&self, steps: Range<usize>) -> Result<Self, TraceError> {
        let shown = self.in_file(&steps)?;
        let stream = self.stream.as_ref().map(|stream| stream[steps.clone()].to_vec());
        let segments = segments(stream.as_deref(), steps.len());
        Ok(Self { source: self.source.clone(), counts: self.counts.clone(), shown, stream, segments })
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The same steps, numbered as in the file.
    pub(crate) fn in_file(&self, steps: &Range<usize>) -> Result<Range<usize>, TraceError> {
        if steps.is_empty() || steps.end > self.steps() {
            return Err(TraceError::Steps {
                file: self.source.clone(),
                start: steps.start,
                end: steps.end,
                steps: self.steps(),
            });
        }
        Ok(self.shown.start + steps.start..self.shown.start + steps.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn trace() -> Trace {
        let counts = Array3::from_shape_fn((5, 2, 3), |(t, l, e)| (100 * t + 10 * l + e) as f64);
        Trace::new("made", &counts, Some(vec![0, 0, 0, 1, 1])).unwrap()
    }

    #[test]
    fn windows_loads_and_steps_agree() {
        let trace = trace();
        assert_eq!((trace.steps(), trace.layers(), trace.experts()), (5, 2, 3));
        let windows: Vec<_> = trace.windows(NonZeroUsize::new(2).unwrap()).collect();
        assert_eq!(windows, [0..2, 2..3, 3..5]);
        let loads = trace.loads(3..5).unwrap();
        assert_eq!(loads.step(1), trace.step(4).unwrap());
        assert_eq!(loads.sum(), &array![[700.0, 702.0, 704.0], [720.0, 722.0, 724.0]]);
    }

    #[test]
    fn a_selection_is_numbered_anew_and_keeps_its_streams() {
        let trace = trace();
        let part = trace.select_steps(1..5).unwrap().select_steps(1..4).unwrap();
        assert_eq!(part.steps(), 3);
        assert_eq!(part.stream(), Some(&[0, 1, 1][..]));
        assert_eq!(part.segments(), [0..1, 1..3]);
        assert_eq!(part.step(0).unwrap(), trace.step(2).unwrap());
        assert_eq!(part.loads(0..3).unwrap(), trace.loads(2..5).unwrap());
    }

    #[test]
    fn sums_are_those_of_the_loads_bit_for_bit() {
        let counts = Array3::from_shape_fn((100, 2, 3), |(t, l, e)| 0.1 * (100 * t + 10 * l + e) as f64);
        let trace = Trace::new("made", &counts, None).unwrap();
        for steps in [0..100, 5..6, 3..99] {
            assert_eq!(&trace.sum(steps.clone()).unwrap(), trace.loads(steps).unwrap().sum());
        }
        assert!(trace.sum(7..7).is_err());
    }

    #[test]
    fn ranges_outside_the_trace_are_refused() {
        let trace = trace();
        for steps in [0..0, 4..6, 5..6, Range { start: 3, end: 2 }, usize::MAX..usize::MAX] {
            assert!(matches!(trace.loads(steps.clone()), Err(TraceError::Steps { steps: 5, .. })));
            assert!(trace.select_steps(steps).is_err());
        }
        assert!(trace.step(5).is_err() && trace.step(usize::MAX).is_err());
        let message = trace.select_steps(2..9).unwrap_err().to_string();
        assert_eq!(message, "made: steps 2:9 of a trace of 5 steps; give A:B with 0 <= A < B <= 5");
    }

    #[test]
    fn a_stream_needs_one_number_per_step() {
        let error = Trace::new("made", &Array3::zeros((2, 1, 1)), Some(vec![1])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "made: stream has 1 entries, expected one integer for each of the 2 steps"
        );
    }
}
