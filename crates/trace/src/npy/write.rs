//! Writing of arrays in the `.npy` format, version 1.0, little-endian, C order.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use ndarray::{ArrayBase, Data, Dimension};

use crate::error::TraceError;
use crate::npy::array::NpyArray;
use crate::npy::dtype::{Dtype, Scalar};
use crate::npy::header::MAGIC;
use crate::output::AtomicFile;

/// Bytes that a header's length is a multiple of, so that a mapped array is aligned.
const ALIGN: usize = 64;

mod sealed {
    pub trait Sealed {}
}

/// A type of array elements that can be written: integers of 1 to 8 bytes, float32 and float64.
pub trait Element: Copy + sealed::Sealed {
    /// The dtype that it is written as.
    const SCALAR: Scalar;

    /// Its bytes, least significant first.
    fn little_endian(self) -> impl AsRef<[u8]>;
}

macro_rules! element {
    ($($type:ty => $scalar:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const SCALAR: Scalar = Scalar::$scalar;

            fn little_endian(self) -> impl AsRef<[u8]> {
                self.to_le_bytes()
            }
        }
    )*};
}

element!(i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64, f32 => F32,
    f64 => F64);

/// Magic, version, length and dictionary of an array in C order.
pub(crate) fn header(scalar: Scalar, shape: &[usize]) -> Vec<u8> {
    let mut text = format!("{{'descr': '{}', 'fortran_order': False, 'shape': (", Dtype::little(scalar));
    for axis in shape {
        // A tuple of one element keeps its comma in Python; more may.
        let _ = write!(text, "{axis},");
    }
    text.push_str("), }");
    let fixed = MAGIC.len() + 4;
    let length = (fixed + text.len() + 1).next_multiple_of(ALIGN) - fixed;
    // 64 axes of 20 digits stay below the 65,535 bytes that version 1.0 can say.
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend((length as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header.resize(fixed + length - 1, b' ');
    header.push(b'\n');
    header
}

/// Writes an array as the bytes of an `.npy` file.
pub(crate) fn write_array<T, S, D>(out: &mut dyn Write, array: &ArrayBase<S, D>) -> io::Result<()>
where
    T: Element,
    S: Data<Elem = T>,
    D: Dimension,
{
    out.write_all(&header(T::SCALAR, array.shape()))?;
    for &element in array {
        out.write_all(element.little_endian().as_ref())?;
    }
    Ok(())
}

/// Writes a stored array, or some of the entries of its first axis, as the bytes of an `.npy` file: in its own
/// dtype, little-endian and in C order, without decoding the values.
pub(crate) fn write_stored(
    out: &mut dyn Write,
    array: &NpyArray,
    entries: std::ops::Range<usize>,
) -> io::Result<()> {
    let [_, inner @ ..] = array.shape() else {
        return Err(io::Error::other("an array without axes has no entries"));
    };
    let shape: Vec<usize> = std::iter::once(entries.len()).chain(inner.iter().copied()).collect();
    out.write_all(&header(array.dtype().scalar, &shape))?;
    let (size, big_endian) = (array.dtype().size(), array.dtype().big_endian);
    let per_entry: usize = inner.iter().product();
    if !array.is_fortran() && !big_endian {
        let bytes = per_entry * size;
        return out.write_all(&array.bytes()[entries.start * bytes..entries.end * bytes]);
    }
    let mut element = [0u8; 8];
    let element = &mut element[..size];
    for entry in entries {
        let mut index = vec![0; inner.len()];
        for position in 0..per_entry {
            let at = if array.is_fortran() {
                fortran_position(entry, &index, array.shape())
            } else {
                entry * per_entry + position
            };
            element.copy_from_slice(&array.bytes()[at * size..][..size]);
            if big_endian {
                element.reverse();
            }
            out.write_all(element)?;
            advance(&mut index, inner);
        }
    }
    Ok(())
}

/// Position of element `[entry, index..]` in Fortran order.
fn fortran_position(entry: usize, index: &[usize], shape: &[usize]) -> usize {
    let (mut position, mut stride) = (entry, shape[0]);
    for (at, axis) in index.iter().zip(&shape[1..]) {
        position += at * stride;
        stride *= axis;
    }
    position
}

/// The next index in C order.
fn advance(index: &mut [usize], shape: &[usize]) {
    for (at, axis) in index.iter_mut().zip(shape).rev() {
        *at += 1;
        if at != axis {
            return;
        }
        *at = 0;
    }
}

/// Writes one array to an `.npy` file, whole or not at all.
///
/// # Errors
/// [`TraceError::Io`].
pub fn write<T, S, D>(path: impl AsRef<Path>, array: &ArrayBase<S, D>) -> Result<(), TraceError>
where
    T: Element,
    S: Data<Elem = T>,
    D: Dimension,
{
    AtomicFile::write_with(path.as_ref(), |out| write_array(out, array))
}
