//! The header of an `.npy` file: magic, version, length, and a Python dictionary of three keys.
//!
//! The format is numpy's NEP 1, versions 1.0, 2.0 and 3.0.

use std::io::{self, Read};

use crate::error::TraceError;
use crate::npy::dtype::Dtype;
use crate::npy::literal::Cursor;

/// First bytes of every `.npy` file.
pub(crate) const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Longest header that is read, in bytes. Arrays of numbers need about a hundred; version 1.0 cannot say more.
pub(crate) const MAX_HEADER: usize = 1 << 16;

/// Most axes of an array; numpy's own limit is 64.
const MAX_AXES: usize = 64;

/// What a header says, before any of it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The dtype as written: `<f4`, or the text of a list for structured dtypes.
    pub descr: String,
    /// Whether the first axis is the fastest.
    pub fortran: bool,
    /// The shape.
    pub shape: Vec<u64>,
    /// Bytes from the start of the file to the first element.
    pub data_start: usize,
}

impl Header {
    /// Reads a header from the start of an `.npy` file. Nothing beyond the header is consumed, and no more than
    /// [`MAX_HEADER`] bytes are allocated.
    ///
    /// # Errors
    /// Every way in which a header can be wrong; `file` names the file in the message.
    pub(crate) fn read(from: &mut impl Read, file: &str) -> Result<Self, TraceError> {
        let name = || file.to_owned();
        let mut take = |bytes: &mut [u8]| {
            from.read_exact(bytes).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => TraceError::TruncatedHeader { file: name() },
                _ => TraceError::Io { file: name(), action: "read the .npy header", source },
            })
        };
        let mut start = [0; 8];
        take(&mut start)?;
        if !start.starts_with(MAGIC) {
            return Err(bad(file, format!("it begins with {:02x?}, not with \\x93NUMPY", &start[..6])));
        }
        let [.., major, minor] = start;
        let (length_bytes, length) = match (major, minor) {
            (1, 0) => {
                let mut length = [0; 2];
                take(&mut length)?;
                (2, usize::from(u16::from_le_bytes(length)))
            }
            (2 | 3, 0) => {
                let mut length = [0; 4];
                take(&mut length)?;
                let length = u32::from_le_bytes(length);
                if length as usize > MAX_HEADER {
                    return Err(TraceError::HugeHeader {
                        file: name(),
                        bytes: length.into(),
                        limit: MAX_HEADER,
                    });
                }
                (4, length as usize)
            }
            _ => return Err(TraceError::NpyVersion { file: name(), major, minor }),
        };
        let mut text = vec![0; length];
        take(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let mut header = parse(&text).map_err(|reason| bad(file, reason))?;
        header.data_start = start.len() + length_bytes + length;
        Ok(header)
    }

    /// Bytes of the elements, and the shape in `usize`, once both are known to fit in the address space.
    ///
    /// # Errors
    /// [`TraceError::ShapeOverflow`].
    pub(crate) fn size(&self, dtype: Dtype, file: &str) -> Result<(Vec<usize>, usize), TraceError> {
        let overflow = || TraceError::ShapeOverflow { file: file.to_owned(), shape: self.shape.clone() };
        // Empty axes are left out of the product, as ndarray does, so that the rest is checked all the same.
        let mut bytes = dtype.size();
        let mut shape = Vec::with_capacity(self.shape.len());
        for &axis in &self.shape {
            let axis = usize::try_from(axis).map_err(|_| overflow())?;
            bytes =
                bytes.checked_mul(axis.max(1)).filter(|&n| n <= isize::MAX as usize).ok_or_else(overflow)?;
            shape.push(axis);
        }
        let bytes = if shape.contains(&0) { 0 } else { bytes };
        Ok((shape, bytes))
    }
}

fn bad(file: &str, reason: String) -> TraceError {
    TraceError::BadHeader { file: file.to_owned(), reason }
}

/// Parses the dictionary: each of the three keys once, in any order, nothing else.
fn parse(text: &str) -> Result<Header, String> {
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    let mut cursor = Cursor::new(text);
    cursor.expect('{')?;
    while !cursor.eat('}') {
        let key = cursor.string()?;
        cursor.expect(':')?;
        let repeated = match key.as_str() {
            "descr" => descr.replace(cursor.descr()?).is_some(),
            "fortran_order" => fortran.replace(cursor.boolean()?).is_some(),
            "shape" => shape.replace(cursor.tuple(MAX_AXES)?).is_some(),
            _ => return Err(format!("unknown key {key:?}")),
        };
        if repeated {
            return Err(format!("key {key:?} is given twice"));
        }
        if !cursor.eat(',') {
            cursor.expect('}')?;
            break;
        }
    }
    cursor.end()?;
    let missing = |key: &str| format!("key {key:?} is missing");
    Ok(Header {
        descr: descr.ok_or_else(|| missing("descr"))?,
        fortran: fortran.ok_or_else(|| missing("fortran_order"))?,
        shape: shape.ok_or_else(|| missing("shape"))?,
        data_start: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::npy::dtype::Scalar;

    fn read(version: u8, text: &str) -> Result<Header, TraceError> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((text.len() as u16).to_le_bytes()),
            _ => bytes.extend((text.len() as u32).to_le_bytes()),
        }
        bytes.extend(text.as_bytes());
        Header::read(&mut bytes.as_slice(), "x.npy")
    }

    #[test]
    fn headers_of_every_version_are_read() {
        for version in 1..=3 {
            let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 58, 256), }          \n";
            let header = read(version, text).unwrap();
            assert_eq!((header.descr.as_str(), header.fortran), ("<f4", false));
            assert_eq!(header.shape, [2, 58, 256]);
            assert_eq!(header.data_start, if version == 1 { 10 } else { 12 } + text.len());
        }
        let odd = read(1, r#"{"shape":(3L,),"fortran_order":True,"descr":">i8"}"#).unwrap();
        assert_eq!((odd.shape.as_slice(), odd.fortran, odd.descr.as_str()), (&[3][..], true, ">i8"));
        assert_eq!(read(1, "{'descr': '|u1', 'fortran_order': False, 'shape': ()}").unwrap().shape, []);
    }

    #[test]
    fn structured_dtypes_are_kept_as_text() {
        let text = "{'descr': [('a', '<i4'), ('b]', '<f8', (2,))], 'fortran_order': False, 'shape': (1,)}";
        assert_eq!(read(1, text).unwrap().descr, "[('a', '<i4'), ('b]', '<f8', (2,))]");
    }

    #[test]
    fn broken_dictionaries_say_what_is_wrong() {
        let whole = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
        for (text, word) in [
            ("", "expected '{'"),
            ("{}", "\"descr\" is missing"),
            (&whole.replace("False", "0"), "True or False"),
            (&whole.replace("(2,)", "(-2,)"), "not a number"),
            (&whole.replace("(2,)", "(2.5,)"), "expected ')'"),
            (&whole.replace("(2,)", "(99999999999999999999,)"), "not a number"),
            (&whole.replace("(2,)", "2"), "expected '('"),
            (&whole.replace("(2,)", &format!("({})", "1,".repeat(65))), "more than 64"),
            (&whole.replace("'shape'", "'form'"), "unknown key \"form\""),
            (&whole.replace("'shape': (2,), ", "'descr': '<f4'"), "given twice"),
            (&whole.replace('}', ""), "expected"),
            (&format!("{whole} x"), "after the dictionary"),
            ("{'descr': [", "unclosed"),
            ("{'descr", "unclosed"),
        ] {
            let message = read(1, text).unwrap_err().to_string();
            assert!(message.starts_with("x.npy: bad .npy header") && message.contains(word), "{message}");
        }
    }

    #[test]
    fn damaged_starts_are_told_apart() {
        let read = |bytes: &[u8]| Header::read(&mut &bytes[..], "x").unwrap_err();
        assert!(matches!(read(b""), TraceError::TruncatedHeader { .. }));
        assert!(matches!(read(b"\x93NUMPY\x01\x00\x40"), TraceError::TruncatedHeader { .. }));
        assert!(matches!(read(b"\x93NUMPY\x01\x00\x40\x00{"), TraceError::TruncatedHeader { .. }));
        assert!(matches!(read(b"NUMPY\x93\x01\x00"), TraceError::BadHeader { .. }));
        assert!(matches!(read(b"\x93NUMPY\x04\x00\x00"), TraceError::NpyVersion { major: 4, .. }));
        let huge = read(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}");
        assert!(matches!(huge, TraceError::HugeHeader { bytes: 0xffff_ffff, .. }), "{huge}");
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let dtype = Dtype::little(Scalar::F64);
        let size = |shape: &[u64]| {
            let header = Header { descr: "<f8".into(), fortran: false, shape: shape.to_vec(), data_start: 0 };
            header.size(dtype, "x").map(|(_, bytes)| bytes)
        };
        assert_eq!(size(&[]).unwrap(), 8);
        assert_eq!(size(&[3, 0, 5]).unwrap(), 0);
        assert_eq!(size(&[2, 3]).unwrap(), 48);
        for shape in [&[1 << 60][..], &[1 << 32, 1 << 32], &[0, 1 << 62], &[u64::MAX, 0]] {
            assert!(matches!(size(shape), Err(TraceError::ShapeOverflow { .. })), "{shape:?}");
        }
    }
}
