//! Reading of `.npz` files.

use std::fmt;
use std::io::{self, Cursor, Read};
use std::path::Path;

use ndarray::{Array, Dimension};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use crate::bytes::Bytes;
use crate::error::TraceError;
use crate::npy::NpyArray;
use crate::npy::array::dtype_of;
use crate::npy::header::Header;

/// Bytes that are reserved beforehand for each byte of deflated data. Counts deflate by two to eight; data that
/// inflates to more (the format allows a thousandfold) makes room as it arrives.
const INFLATION: usize = 8;

/// An open `.npz` file. Arrays are decoded when asked for; the others cost nothing, whatever their dtype.
#[derive(Debug, Clone)]
pub struct Npz {
    file: String,
    bytes: Bytes,
    archive: ZipArchive<Cursor<Bytes>>,
    /// Array name and place in the archive, in the order of the file.
    names: Vec<(String, usize)>,
}

/// What the header of an array says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Name of the array, without `.npy`.
    pub name: String,
    /// Dtype as numpy writes it, such as `<u2`, also of arrays that are not read here.
    pub dtype: String,
    /// Shape; empty for a single number.
    pub shape: Vec<u64>,
    /// Whether the elements are integers or floats that are read here.
    pub numeric: bool,
}

/// Name, dtype and shape: `counts <u2 [400, 26, 64]`.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.dtype, self.shape)
    }
}

impl Npz {
    /// Opens an `.npz` file. Files of [`MAP_FROM`](crate::MAP_FROM) bytes or more are mapped into memory and must
    /// not be changed while this or an array from it lives.
    ///
    /// # Errors
    /// A file that cannot be read, or is no zip file, or is a torch file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        Self::parse(path.display().to_string(), Bytes::open(path)?)
    }

    /// Reads the bytes of an `.npz` file; `file` names them in messages.
    ///
    /// # Errors
    /// As [`Npz::open`].
    pub fn from_bytes(file: impl Into<String>, bytes: Vec<u8>) -> Result<Self, TraceError> {
        Self::parse(file.into(), bytes.into())
    }

    pub(crate) fn parse(file: String, bytes: Bytes) -> Result<Self, TraceError> {
        let archive = ZipArchive::new(Cursor::new(bytes.clone())).map_err(|e| zip_error(&file, e))?;
        if archive.has_duplicate_names() {
            return Err(TraceError::Zip { file, reason: "two members have the same name".into() });
        }
        let mut names = Vec::new();
        for (place, name) in archive.file_names_raw().enumerate() {
            let name = String::from_utf8_lossy(name);
            if name == "data.pkl" || name.ends_with("/data.pkl") {
                return Err(TraceError::Pickle { file });
            }
            if let Some(name) = name.strip_suffix(".npy") {
                names.push((name.to_owned(), place));
            }
        }
        Ok(Self { file, bytes, archive, names })
    }

    /// The file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Names of the arrays, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(name, _)| name.as_str())
    }

    /// Whether there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.names().any(|n| n == name)
    }

    /// What the headers of all arrays say. A member whose header cannot be read has the dtype `unreadable`.
    pub fn members(&self) -> Vec<Member> {
        self.names
            .iter()
            .map(|(name, place)| {
                let name = name.clone();
                match self.header(&name, *place) {
                    Ok(header) => {
                        let numeric = dtype_of(&header, &name).is_ok();
                        Member { name, dtype: header.descr, shape: header.shape, numeric }
                    }
                    Err(_) => Member { name, dtype: "unreadable".into(), shape: Vec::new(), numeric: false },
                }
            })
            .collect()
    }

    /// The arrays with dtype and shape in one line, for messages.
    pub fn describe(&self) -> String {
        let members = self.members();
        if members.is_empty() {
            return "no array".into();
        }
        members.iter().map(Member::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The array of this name, as it is stored. A stored member shares the bytes of the file; a deflated one is
    /// inflated into memory.
    ///
    /// # Errors
    /// [`TraceError::MissingArray`]; a damaged member; a dtype that is no integer or float.
    pub fn array(&self, name: &str) -> Result<NpyArray, TraceError> {
        let Some((_, place)) = self.names.iter().find(|(n, _)| n == name) else {
            return Err(TraceError::MissingArray {
                file: self.file.clone(),
                name: name.to_owned(),
                arrays: self.describe(),
            });
        };
        let header = self.header(name, *place)?;
        let file = self.file_of(name);
        let dtype = dtype_of(&header, &file)?;
        let (shape, expected) = header.size(dtype, &file)?;

        let mut archive = self.archive.clone();
        let mut member = archive.by_index(*place).map_err(|e| zip_error(&file, e))?;
        let declared = member.size();
        if declared != (header.data_start + expected) as u64 {
            return Err(TraceError::Length {
                file,
                shape,
                dtype: dtype.to_string(),
                expected: expected as u64,
                found: declared.saturating_sub(header.data_start as u64),
            });
        }
        let data = if member.compression() == CompressionMethod::Stored {
            // Reading it through checks its checksum, and keeps nothing.
            io::copy(&mut member, &mut io::sink()).map_err(|e| read_error(&file, e))?;
            let start = member.data_start().and_then(|start| usize::try_from(start).ok());
            let end = start.and_then(|start| start.checked_add(header.data_start + expected));
            let range = start.zip(end).map(|(start, end)| start + header.data_start..end);
            range.and_then(|range| self.bytes.slice(range)).ok_or_else(|| TraceError::Zip {
                file: file.clone(),
                reason: "a member lies outside the file".into(),
            })?
        } else {
            let reserve = usize::try_from(member.compressed_size())
                .map_or(self.bytes.len(), |n| n.min(self.bytes.len()))
                .saturating_mul(INFLATION)
                .min(expected);
            inflate(&mut member, header.data_start, expected, reserve, &file)?.into()
        };
        NpyArray::new(file, &header, data)
    }

    /// The array of this name as int64, in C order.
    ///
    /// # Errors
    /// As [`Npz::array`] and [`NpyArray::integers`].
    pub fn integers<D: Dimension>(&self, name: &str) -> Result<Array<i64, D>, TraceError> {
        self.array(name)?.integers()
    }

    /// The array of this name as float64, in C order.
    ///
    /// # Errors
    /// As [`Npz::array`] and [`NpyArray::floats`].
    pub fn floats<D: Dimension>(&self, name: &str) -> Result<Array<f64, D>, TraceError> {
        self.array(name)?.floats()
    }

    /// How messages name an array of this file.
    fn file_of(&self, name: &str) -> String {
        format!("{}[{name}]", self.file)
    }

    fn header(&self, name: &str, place: usize) -> Result<Header, TraceError> {
        let file = self.file_of(name);
        let mut archive = self.archive.clone();
        let mut member = archive.by_index(place).map_err(|e| zip_error(&file, e))?;
        Header::read(&mut member, &file)
    }
}

/// Inflates the elements of a member: never more than the header promises, whatever the data would inflate to.
fn inflate<R: Read>(
    member: &mut zip::read::ZipFile<'_, R>,
    data_start: usize,
    expected: usize,
    reserve: usize,
    file: &str,
) -> Result<Vec<u8>, TraceError> {
    let mut data = Vec::with_capacity(reserve);
    io::copy(&mut member.take(data_start as u64), &mut io::sink()).map_err(|e| read_error(file, e))?;
    // One byte more than expected: the end must be seen, which is when the checksum is compared.
    member.take(expected as u64 + 1).read_to_end(&mut data).map_err(|e| read_error(file, e))?;
    Ok(data)
}

fn zip_error(file: &str, error: ZipError) -> TraceError {
    TraceError::Zip { file: file.to_owned(), reason: error.to_string() }
}

fn read_error(file: &str, error: io::Error) -> TraceError {
    TraceError::Zip { file: file.to_owned(), reason: format!("damaged data: {error}") }
}
