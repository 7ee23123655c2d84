//! Element types of arrays: integers of 1 to 8 bytes and floats of 2 to 8, in both byte orders.

use std::fmt;

use half::f16;

/// What one element is, byte order aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// Signed, 1 byte.
    I8,
    /// Signed, 2 bytes.
    I16,
    /// Signed, 4 bytes.
    I32,
    /// Signed, 8 bytes.
    I64,
    /// Unsigned, 1 byte.
    U8,
    /// Unsigned, 2 bytes.
    U16,
    /// Unsigned, 4 bytes.
    U32,
    /// Unsigned, 8 bytes.
    U64,
    /// IEEE 754 half precision.
    F16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
}

impl Scalar {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 | Self::F16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// Whether it is an integer.
    pub const fn is_integer(self) -> bool {
        !matches!(self, Self::F16 | Self::F32 | Self::F64)
    }

    /// Whether every value is a finite number of 0 or more.
    pub const fn is_unsigned(self) -> bool {
        matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64)
    }

    /// Letter and size, as numpy writes them.
    const fn code(self) -> &'static str {
        match self {
            Self::I8 => "i1",
            Self::I16 => "i2",
            Self::I32 => "i4",
            Self::I64 => "i8",
            Self::U8 => "u1",
            Self::U16 => "u2",
            Self::U32 => "u4",
            Self::U64 => "u8",
            Self::F16 => "f2",
            Self::F32 => "f4",
            Self::F64 => "f8",
        }
    }

    const ALL: [Self; 11] = [
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::F16,
        Self::F32,
        Self::F64,
    ];
}

/// Element type and byte order of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dtype {
    /// What one element is.
    pub scalar: Scalar,
    /// Whether the most significant byte comes first.
    pub big_endian: bool,
}

impl Dtype {
    /// Little-endian elements, as written by this crate.
    pub const fn little(scalar: Scalar) -> Self {
        Self { scalar, big_endian: false }
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        self.scalar.size()
    }

    /// The dtype that numpy writes as `descr`, such as `<f4`.
    ///
    /// # Errors
    /// The reason why a dtype is not read: it is no plain integer or float.
    pub(crate) fn parse(descr: &str) -> Result<Self, &'static str> {
        let (order, code) = match descr.as_bytes().first() {
            Some(b'<' | b'>' | b'|' | b'=') => descr.split_at(1),
            _ => ("=", descr),
        };
        if let Some(scalar) = Scalar::ALL.into_iter().find(|s| s.code() == code) {
            let big_endian = match order {
                ">" => true,
                "<" => false,
                // One byte has no order; `=` is the order of the host that reads, as in numpy.
                _ => cfg!(target_endian = "big"),
            };
            return Ok(Self { scalar, big_endian: big_endian && scalar.size() > 1 });
        }
        Err(match code.as_bytes().first() {
            Some(b'b' | b'?') => "booleans are no counts",
            Some(b'c' | b'F' | b'D' | b'G') => "complex numbers are no counts",
            Some(b'O') => "Python objects are pickled, and loading a pickle runs code",
            Some(b'S' | b'a' | b'U') => "text is no count",
            Some(b'V') => "raw records are no counts",
            Some(b'm' | b'M') => "times are no counts",
            Some(b'f' | b'g') => "floats are read in 2, 4 and 8 bytes",
            Some(b'i' | b'u') => "integers are read in 1, 2, 4 and 8 bytes",
            _ => "it is unknown",
        })
    }

    /// Values of consecutive elements as float64. Integers beyond 2^53 are rounded to the nearest float64.
    ///
    /// Decodes as many elements as both `bytes` and `out` hold.
    pub(crate) fn decode_floats(self, bytes: &[u8], out: &mut [f64]) {
        macro_rules! decode {
            ($type:ty, $to:expr) => {
                if self.big_endian {
                    each(bytes, out, |b| $to(<$type>::from_be_bytes(b)))
                } else {
                    each(bytes, out, |b| $to(<$type>::from_le_bytes(b)))
                }
            };
        }
        match self.scalar {
            Scalar::I8 => decode!(i8, f64::from),
            Scalar::I16 => decode!(i16, f64::from),
            Scalar::I32 => decode!(i32, f64::from),
            Scalar::I64 => decode!(i64, |v| v as f64),
            Scalar::U8 => decode!(u8, f64::from),
            Scalar::U16 => decode!(u16, f64::from),
            Scalar::U32 => decode!(u32, f64::from),
            Scalar::U64 => decode!(u64, |v| v as f64),
            Scalar::F16 => decode!(f16, f16::to_f64),
            Scalar::F32 => decode!(f32, f64::from),
            Scalar::F64 => decode!(f64, |v| v),
        }
    }

    /// Values of consecutive integers as int64; `None` if the elements are floats.
    ///
    /// # Errors
    /// Position and value of the first that does not fit.
    pub(crate) fn decode_integers(self, bytes: &[u8]) -> Option<Result<Vec<i64>, (usize, u64)>> {
        let mut out = vec![0i64; bytes.len() / self.size()];
        macro_rules! decode {
            ($type:ty, $to:expr) => {
                if self.big_endian {
                    each(bytes, &mut out, |b| $to(<$type>::from_be_bytes(b)))
                } else {
                    each(bytes, &mut out, |b| $to(<$type>::from_le_bytes(b)))
                }
            };
        }
        match self.scalar {
            Scalar::I8 => decode!(i8, i64::from),
            Scalar::I16 => decode!(i16, i64::from),
            Scalar::I32 => decode!(i32, i64::from),
            Scalar::I64 => decode!(i64, |v| v),
            Scalar::U8 => decode!(u8, i64::from),
            Scalar::U16 => decode!(u16, i64::from),
            Scalar::U32 => decode!(u32, i64::from),
            Scalar::U64 => {
                // A value of 2^63 or more comes out negative, and is the only thing that does.
                decode!(u64, |v| v as i64);
                if let Some(position) = out.iter().position(|&v| v < 0) {
                    return Some(Err((position, out[position] as u64)));
                }
            }
            Scalar::F16 | Scalar::F32 | Scalar::F64 => return None,
        }
        Some(Ok(out))
    }
}

/// The dtype as numpy writes it in a header: byte order, letter, size.
impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = match (self.size(), self.big_endian) {
            (1, _) => '|',
            (_, false) => '<',
            (_, true) => '>',
        };
        write!(f, "{order}{}", self.scalar.code())
    }
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], value: impl Fn([u8; N]) -> T) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (element, out) in elements.iter().zip(out) {
        *out = value(*element);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_is_read_back_as_written() {
        for scalar in Scalar::ALL {
            for big_endian in [false, true] {
                let dtype = Dtype { scalar, big_endian: big_endian && scalar.size() > 1 };
                assert_eq!(Dtype::parse(&dtype.to_string()), Ok(dtype));
            }
        }
        assert_eq!(Dtype::parse("f4").unwrap().scalar, Scalar::F32);
    }

    #[test]
    fn other_dtypes_are_refused_with_the_reason() {
        for (descr, word) in [
            ("|b1", "boolean"),
            ("<c8", "complex"),
            ("|O", "pickle"),
            ("<U9", "text"),
            ("|S4", "text"),
            ("|V8", "records"),
            ("<M8[ns]", "times"),
            ("<f16", "2, 4 and 8"),
            ("<i3", "1, 2, 4 and 8"),
            ("", "unknown"),
            ("<", "unknown"),
            ("é", "unknown"),
        ] {
            let reason = Dtype::parse(descr).unwrap_err();
            assert!(reason.contains(word), "{descr}: {reason}");
        }
    }

    #[test]
    fn integers_beyond_int64_are_found() {
        let bytes: Vec<u8> = [7u64, 1 << 63].iter().flat_map(|v| v.to_be_bytes()).collect();
        let dtype = Dtype { scalar: Scalar::U64, big_endian: true };
        assert_eq!(dtype.decode_integers(&bytes), Some(Err((1, 1 << 63))));
        assert_eq!(dtype.decode_integers(&bytes[..8]), Some(Ok(vec![7])));
        assert_eq!(Dtype::little(Scalar::F64).decode_integers(&bytes), None);
    }
}
