//! Arrays in numpy's `.npy` format.
//!
//! Read: versions 1.0, 2.0 and 3.0; integers and floats of 1 to 8 bytes in both byte orders, in C and Fortran order.
//! Everything else (objects, text, booleans, complex numbers, records) is refused by name. Nothing is allocated
//! because a header says so: a header is checked against the bytes that are there.
//!
//! ```
//! use ndarray::{Array2, array};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("map.npy");
//! eplb_trace::npy::write(&path, &array![[0u16, 1], [1, 0]])?;
//! let map: Array2<i64> = eplb_trace::npy::open(&path)?.integers()?;
//! assert_eq!(map, array![[0, 1], [1, 0]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub(crate) mod array;
pub(crate) mod dtype;
pub(crate) mod header;
mod literal;
pub(crate) mod write;

use std::path::Path;

pub use array::NpyArray;
pub use dtype::{Dtype, Scalar};
pub use write::{Element, write};

use crate::bytes::Bytes;
use crate::error::TraceError;

/// Opens an `.npy` file. Files of [`MAP_FROM`](crate::MAP_FROM) bytes or more are mapped into memory and must not be
/// changed while the array lives.
///
/// # Errors
/// A file that cannot be read, or whose header or length is wrong, or whose elements are no plain numbers.
pub fn open(path: impl AsRef<Path>) -> Result<NpyArray, TraceError> {
    let path = path.as_ref();
    NpyArray::parse(path.display().to_string(), Bytes::open(path)?)
}

/// Reads the bytes of an `.npy` file; `file` names them in messages.
///
/// # Errors
/// As [`open`].
pub fn from_bytes(file: impl Into<String>, bytes: Vec<u8>) -> Result<NpyArray, TraceError> {
    NpyArray::parse(file.into(), bytes.into())
}
