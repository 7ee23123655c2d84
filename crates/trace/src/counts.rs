//! Counts `[T, L, E]` in a compact form, decoded a window at a time.

use std::ops::Range;

use eplb_core::{ExpertId, LayerId};
use ndarray::{Array3, ArrayView3};

use crate::error::TraceError;
use crate::npy::{Dtype, NpyArray, Scalar};

/// Elements that are decoded at once while values are checked.
const CHUNK: usize = 8192;

/// Checked counts `[steps, layers, experts]` as their file holds them: 2 bytes per count in a uint16 file, none but
/// the mapping's in a mapped file. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    array: NpyArray,
    steps: usize,
    layers: usize,
    experts: usize,
}

impl Counts {
    /// Takes `[L, E]` (one step) or `[T, L, E]` and checks every value.
    pub(crate) fn new(array: NpyArray) -> Result<Self, TraceError> {
        let shape = array.shape().to_vec();
        let (steps, layers, experts) = match shape[..] {
            [layers, experts] => (1, layers, experts),
            [steps, layers, experts] => (steps, layers, experts),
            _ => {
                return Err(TraceError::Dimensions {
                    file: array.file().to_owned(),
                    shape,
                    expected: "loads of shape [steps, layers, experts] or [layers, experts]".into(),
                });
            }
        };
        if shape.contains(&0) {
            return Err(TraceError::EmptyTrace { file: array.file().to_owned(), shape });
        }
        if let Some(&axis) = shape.iter().find(|&&n| n > i32::MAX as usize) {
            return Err(TraceError::Dimensions {
                file: array.file().to_owned(),
                shape,
                expected: format!("at most 2^31 - 1 entries per axis, not {axis}"),
            });
        }
        let counts = Self { array: array.with_shape(vec![steps, layers, experts]), steps, layers, experts };
        counts.check()?;
        Ok(counts)
    }

    /// Counts computed here, stored in the smallest type that holds every value exactly.
    pub(crate) fn of_values(file: String, counts: ArrayView3<'_, f64>) -> Result<Self, TraceError> {
        let scalar = smallest(counts.iter().copied());
        let mut bytes = Vec::with_capacity(counts.len() * scalar.size());
        for &value in counts {
            match scalar {
                Scalar::U16 => bytes.extend((value as u16).to_le_bytes()),
                Scalar::U32 => bytes.extend((value as u32).to_le_bytes()),
                Scalar::F32 => bytes.extend((value as f32).to_le_bytes()),
                _ => bytes.extend(value.to_le_bytes()),
            }
        }
        Self::new(NpyArray::in_c_order(file, Dtype::little(scalar), counts.shape().to_vec(), bytes))
    }

    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    pub(crate) fn experts(&self) -> usize {
        self.experts
    }

    pub(crate) fn array(&self) -> &NpyArray {
        &self.array
    }

    /// The counts of some steps as float64, in C order. The range must lie within the steps.
    pub(crate) fn window(&self, steps: Range<usize>) -> Array3<f64> {
        let dtype = self.array.dtype();
        let (size, per_step) = (dtype.size(), self.layers * self.experts);
        let mut window = Array3::zeros((steps.len(), self.layers, self.experts));
        if !self.array.is_fortran() {
            let bytes = &self.array.bytes()[steps.start * per_step * size..steps.end * per_step * size];
            if let Some(out) = window.as_slice_mut() {
                dtype.decode_floats(bytes, out);
            }
            return window;
        }
        // Steps are the fastest axis: those of one layer and expert lie side by side.
        let mut run = vec![0.0; steps.len()];
        for expert in 0..self.experts {
            for layer in 0..self.layers {
                let start = (expert * self.layers + layer) * self.steps;
                let bytes = &self.array.bytes()[(start + steps.start) * size..(start + steps.end) * size];
                dtype.decode_floats(bytes, &mut run);
                for (step, &value) in run.iter().enumerate() {
                    window[[step, layer, expert]] = value;
                }
            }
        }
        window
    }

    /// Checks that every value is finite and 0 or more, and that their sum is finite.
    fn check(&self) -> Result<(), TraceError> {
        let dtype = self.array.dtype();
        if dtype.scalar.is_unsigned() {
            return Ok(());
        }
        let (mut values, mut sum) = (vec![0.0; CHUNK], 0.0);
        for (chunk, bytes) in self.array.bytes().chunks(CHUNK * dtype.size()).enumerate() {
            let values = &mut values[..bytes.len() / dtype.size()];
            dtype.decode_floats(bytes, values);
            if let Some(bad) = values.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
                let (step, layer, expert) = self.place(chunk * CHUNK + bad);
                return Err(TraceError::Load {
                    file: self.array.file().to_owned(),
                    step,
                    layer: LayerId::at(layer),
                    expert: ExpertId::at(expert),
                    value: values[bad],
                });
            }
            sum += values.iter().sum::<f64>();
        }
        if sum.is_finite() {
            Ok(())
        } else {
            Err(TraceError::Overflow { file: self.array.file().to_owned() })
        }
    }

    /// Step, layer and expert of an element, by its position in the file.
    fn place(&self, position: usize) -> (usize, usize, usize) {
        if self.array.is_fortran() {
            let (rest, step) = (position / self.steps, position % self.steps);
            (step, rest % self.layers, rest / self.layers)
        } else {
            let (rest, expert) = (position / self.experts, position % self.experts);
            (rest / self.layers, rest % self.layers, expert)
        }
    }
}

/// The smallest of uint16, uint32, float32 and float64 that holds every value exactly.
fn smallest(values: impl Iterator<Item = f64>) -> Scalar {
    let (mut u16s, mut u32s, mut f32s) = (true, true, true);
    for value in values {
        u16s &= f64::from(value as u16) == value;
        u32s &= f64::from(value as u32) == value;
        f32s &= f64::from(value as f32) == value;
    }
    match (u16s, u32s, f32s) {
        (true, ..) => Scalar::U16,
        (_, true, _) => Scalar::U32,
        (.., true) => Scalar::F32,
        _ => Scalar::F64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn of(values: Array3<f64>) -> Result<Counts, TraceError> {
        Counts::of_values("x".into(), values.view())
    }

    #[test]
    fn values_are_kept_exactly_in_the_smallest_type() {
        for (value, scalar) in [
            (65535.0, Scalar::U16),
            (65536.0, Scalar::U32),
            (0.5, Scalar::F32),
            (4_294_967_296.0, Scalar::F32),
            (4_294_967_297.0, Scalar::F64),
            (0.1, Scalar::F64),
        ] {
            let values = array![[[0.0, value]], [[1.0, 2.0]]];
            let counts = of(values.clone()).unwrap();
            assert_eq!(counts.array().dtype().scalar, scalar, "{value}");
            assert_eq!(counts.window(0..2), values);
            assert_eq!(counts.window(1..2), array![[[1.0, 2.0]]]);
        }
    }

    #[test]
    fn bad_values_are_named_in_both_orders() {
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            let mut values = Array3::from_elem((3, 40, 500), 1.0);
            values[[1, 30, 400]] = value;
            let error = of(values.clone()).unwrap_err();
            let place = |error: &TraceError| match error {
                TraceError::Load { step, layer, expert, .. } => (*step, layer.index(), expert.index()),
                _ => panic!("{error}"),
            };
            assert_eq!(place(&error), (1, 30, 400));
            let bytes: Vec<u8> = values.t().iter().flat_map(|v| v.to_le_bytes()).collect();
            let mut file = b"\x93NUMPY\x01\x00\x46\x00".to_vec();
            file.extend(
                format!("{:70}", "{'descr': '<f8', 'fortran_order': True, 'shape': (3, 40, 500)}").bytes(),
            );
            file.extend(bytes);
            let error = Counts::new(crate::npy::from_bytes("x", file).unwrap()).unwrap_err();
            assert_eq!(place(&error), (1, 30, 400));
        }
        assert!(matches!(of(array![[[f64::MAX, f64::MAX]]]), Err(TraceError::Overflow { .. })));
    }

    #[test]
    fn shapes_without_steps_layers_or_experts_are_refused() {
        for shape in [(0, 2, 2), (2, 0, 2), (2, 2, 0)] {
            assert!(matches!(of(Array3::zeros(shape)), Err(TraceError::EmptyTrace { .. })));
        }
    }
}
