//! An array as its file holds it: bytes, dtype, shape and order, decoded on demand.

use ndarray::{Array, ArrayD, Dimension, IxDyn, ShapeBuilder};

use crate::bytes::Bytes;
use crate::error::TraceError;
use crate::npy::dtype::Dtype;
use crate::npy::header::Header;

/// An array of numbers in the form of its file. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct NpyArray {
    file: String,
    dtype: Dtype,
    shape: Vec<usize>,
    fortran: bool,
    bytes: Bytes,
}

impl NpyArray {
    /// An `.npy` file in memory; `file` names it in messages.
    pub(crate) fn parse(file: String, bytes: Bytes) -> Result<Self, TraceError> {
        let header = Header::read(&mut &bytes[..], &file)?;
        let start = header.data_start;
        let data = bytes.slice(start..bytes.len()).unwrap_or_else(|| Vec::new().into());
        Self::new(file, &header, data)
    }

    /// The array that `header` describes, with its elements' bytes.
    pub(crate) fn new(file: String, header: &Header, bytes: Bytes) -> Result<Self, TraceError> {
        let dtype = dtype_of(header, &file)?;
        let (shape, expected) = header.size(dtype, &file)?;
        if bytes.len() != expected {
            return Err(TraceError::Length {
                file,
                shape,
                dtype: dtype.to_string(),
                expected: expected as u64,
                found: bytes.len() as u64,
            });
        }
        Ok(Self { file, dtype, shape, fortran: header.fortran, bytes })
    }

    /// An array made here, in C order. `bytes` must hold exactly the elements of `shape`.
    pub(crate) fn in_c_order(file: String, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        debug_assert_eq!(bytes.len(), shape.iter().product::<usize>() * dtype.size());
        Self { file, dtype, shape, fortran: false, bytes: bytes.into() }
    }

    /// The file, with the array's name in brackets if it is one of several: `day.npz[counts]`.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Type and byte order of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape; empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether the first axis is the fastest (Fortran order).
    pub(crate) fn is_fortran(&self) -> bool {
        self.fortran
    }

    /// The elements' bytes, in the order of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same elements under another shape of as many elements, for arrays in C order or for shapes that differ
    /// only by axes of length 1.
    pub(crate) fn with_shape(mut self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), self.shape.iter().product::<usize>());
        self.shape = shape;
        self
    }

    /// The elements as float64, in C order. Integers beyond 2^53 are rounded to the nearest float64.
    ///
    /// # Errors
    /// [`TraceError::Dimensions`] if `D` has another number of axes than the array.
    pub fn floats<D: Dimension>(&self) -> Result<Array<f64, D>, TraceError> {
        self.check_axes::<D>()?;
        let mut values = vec![0.0; self.bytes.len() / self.dtype.size()];
        self.dtype.decode_floats(&self.bytes, &mut values);
        self.shaped(values)
    }

    /// The elements as int64, in C order.
    ///
    /// # Errors
    /// [`TraceError::Dimensions`] if `D` has another number of axes than the array, [`TraceError::NotInteger`] for
    /// floats, [`TraceError::IntegerRange`] for unsigned values of 2^63 or more.
    pub fn integers<D: Dimension>(&self) -> Result<Array<i64, D>, TraceError> {
        self.check_axes::<D>()?;
        let not_integer =
            || TraceError::NotInteger { file: self.file.clone(), dtype: self.dtype.to_string() };
        let values = self.dtype.decode_integers(&self.bytes).ok_or_else(not_integer)?.map_err(
            |(position, value)| TraceError::IntegerRange { file: self.file.clone(), position, value },
        )?;
        self.shaped(values)
    }

    /// Checks the number of axes before anything is decoded.
    fn check_axes<D: Dimension>(&self) -> Result<(), TraceError> {
        match D::NDIM {
            Some(axes) if axes != self.shape.len() => Err(self.wrong_axes(axes)),
            _ => Ok(()),
        }
    }

    fn wrong_axes(&self, axes: usize) -> TraceError {
        TraceError::Dimensions {
            file: self.file.clone(),
            shape: self.shape.clone(),
            expected: format!("an array of {axes} axes"),
        }
    }

    fn shaped<T: Clone, D: Dimension>(&self, values: Vec<T>) -> Result<Array<T, D>, TraceError> {
        let array = ArrayD::from_shape_vec(IxDyn(&self.shape).set_f(self.fortran), values)
            .ok()
            .and_then(|array| array.into_dimensionality::<D>().ok())
            .ok_or_else(|| self.wrong_axes(D::NDIM.unwrap_or(self.shape.len())))?;
        if array.is_standard_layout() { Ok(array) } else { Ok(array.as_standard_layout().into_owned()) }
    }
}

/// The dtype of a header, if its elements are plain numbers.
pub(crate) fn dtype_of(header: &Header, file: &str) -> Result<Dtype, TraceError> {
    let refuse = |reason: &str| TraceError::Dtype {
        file: file.to_owned(),
        descr: header.descr.clone(),
        reason: reason.to_owned(),
    };
    if header.descr.starts_with(['[', '(']) {
        return Err(refuse("structured records are no counts"));
    }
    Dtype::parse(&header.descr).map_err(refuse)
}
