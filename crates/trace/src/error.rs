//! Errors of reading, writing and generating traces: one variant for each way in which a file can lie.

use std::io;

use eplb_core::{ExpertId, LayerId};

/// What is wrong with a file, an array, a range or a generator's settings.
///
/// `file` is the file as the user gave it; an array of an `.npz` file is written `file[array]`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The operating system refused.
    #[error("{file}: cannot {action}: {source}")]
    Io {
        /// File or array.
        file: String,
        /// What was tried.
        action: &'static str,
        /// The refusal.
        source: io::Error,
    },
    /// Neither `.npy` nor `.npz` nor text.
    #[error(
        "{file}: not a trace: it begins with the bytes {start:02x?}; give an .npy or .npz file of numpy, or a CSV \
         file with the columns layer_id,expert_id,count"
    )]
    UnknownFormat {
        /// The file.
        file: String,
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// A file of no bytes.
    #[error("{file}: the file is empty")]
    EmptyFile {
        /// The file.
        file: String,
    },
    /// A pickle, or a torch file, which is a zip file with a pickle in it.
    #[error(
        "{file}: a Python pickle (torch.save), which is not read here because loading one runs code; convert it \
         first: python3 -m eplb.convert {file} dump.npz (the module is in bindings/python and needs no torch)"
    )]
    Pickle {
        /// The file.
        file: String,
    },
    /// An `.npy` format version that does not exist.
    #[error("{file}: .npy version {major}.{minor} is unknown; versions 1.0, 2.0 and 3.0 are read")]
    NpyVersion {
        /// File or array.
        file: String,
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The data ends inside the `.npy` header.
    #[error("{file}: truncated: the file ends inside the .npy header")]
    TruncatedHeader {
        /// File or array.
        file: String,
    },
    /// An `.npy` header longer than any array of numbers needs.
    #[error("{file}: the .npy header claims {bytes} bytes; at most {limit} are read, so the file is damaged")]
    HugeHeader {
        /// File or array.
        file: String,
        /// The claim.
        bytes: u64,
        /// The limit.
        limit: usize,
    },
    /// An `.npy` header that does not say what the format requires.
    #[error("{file}: bad .npy header: {reason}")]
    BadHeader {
        /// File or array.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// An array of a dtype that is no plain integer or float.
    #[error("{file}: dtype {descr} is not read: {reason}; save the array as integers or floats")]
    Dtype {
        /// File or array.
        file: String,
        /// The dtype as the header writes it.
        descr: String,
        /// Why not.
        reason: String,
    },
    /// A shape whose number of bytes does not fit in the address space.
    #[error("{file}: shape {shape:?} is larger than the address space, so the header is damaged")]
    ShapeOverflow {
        /// File or array.
        file: String,
        /// The shape.
        shape: Vec<u64>,
    },
    /// More or fewer bytes than the header promises.
    #[error(
        "{file}: shape {shape:?} of {dtype} needs {expected} bytes after the header, but {found} are there; the \
         file is truncated, or holds more than one array"
    )]
    Length {
        /// File or array.
        file: String,
        /// Shape in the header.
        shape: Vec<usize>,
        /// Dtype in the header.
        dtype: String,
        /// Bytes that the header promises.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A damaged zip file, or one with features that numpy does not write.
    #[error("{file}: bad zip file, damaged or truncated: {reason}")]
    Zip {
        /// File or array.
        file: String,
        /// What the zip reader says.
        reason: String,
    },
    /// An `.npz` file without arrays.
    #[error("{file}: the .npz file holds no array; expected one named counts, [steps, layers, experts]")]
    NoArrays {
        /// The file.
        file: String,
    },
    /// An array that is needed is not there.
    #[error("{file}: no array {name}; the file holds {arrays}")]
    MissingArray {
        /// The file.
        file: String,
        /// The array that is needed.
        name: String,
        /// The arrays that are there, with dtype and shape.
        arrays: String,
    },
    /// Several arrays could be the loads.
    #[error(
        "{file}: which array holds the loads? There is no array counts, and the file holds {arrays}; name the one \
         of shape [steps, layers, experts] or [layers, experts] counts"
    )]
    Ambiguous {
        /// The file.
        file: String,
        /// The arrays that are there, with dtype and shape.
        arrays: String,
    },
    /// An array has another number of axes than its use needs.
    #[error("{file}: shape {shape:?}, expected {expected}")]
    Dimensions {
        /// File or array.
        file: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The shape in words.
        expected: String,
    },
    /// A trace with no steps, layers or experts.
    #[error("{file}: empty trace: shape {shape:?}; at least one step, layer and expert are needed")]
    EmptyTrace {
        /// File or array.
        file: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A load that is NaN, infinite or negative.
    #[error(
        "{file}: load of {layer} {expert} at step {step} is {value}; loads are finite token counts, 0 or more: \
         correct the value or leave the step out"
    )]
    Load {
        /// File or array.
        file: String,
        /// Step in the file.
        step: usize,
        /// Layer of the value.
        layer: LayerId,
        /// Expert of the value.
        expert: ExpertId,
        /// The value.
        value: f64,
    },
    /// Loads whose sum overflows.
    #[error("{file}: the loads add up to more than a float64 can hold; scale them down, only ratios matter")]
    Overflow {
        /// File or array.
        file: String,
    },
    /// An array of floats where integers are needed.
    #[error("{file}: dtype {dtype}, expected integers")]
    NotInteger {
        /// File or array.
        file: String,
        /// Its dtype.
        dtype: String,
    },
    /// An unsigned integer above the largest int64.
    #[error("{file}: value {value} at position {position} does not fit in an int64")]
    IntegerRange {
        /// File or array.
        file: String,
        /// Position in the order of the file.
        position: usize,
        /// The value.
        value: u64,
    },
    /// A `stream` array that does not fit the counts.
    #[error("{file}: stream has {found}, expected one integer for each of the {steps} steps")]
    Stream {
        /// File or array.
        file: String,
        /// What was found.
        found: String,
        /// Number of steps.
        steps: usize,
    },
    /// A map of physical to logical experts that does not fit the counts.
    #[error("{file}: the map of physical to logical experts: {reason}")]
    SlotMap {
        /// File or array.
        file: String,
        /// What is wrong, with layer, slot and value.
        reason: String,
    },
    /// A CSV line that is not understood.
    #[error("{file}, line {line}: {reason}")]
    Csv {
        /// The file.
        file: String,
        /// Line, counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A CSV file without the header that says which column is which.
    #[error(
        "{file}: the first line is {found:?}; it must name the columns layer_id,expert_id,count (in any order)"
    )]
    CsvHeader {
        /// The file.
        file: String,
        /// The first line.
        found: String,
    },
    /// A CSV file that gives one pair twice.
    #[error("{file}: {layer} {expert} is given twice, in line {first} and in line {second}; keep one")]
    CsvRepeated {
        /// The file.
        file: String,
        /// Layer of the pair.
        layer: LayerId,
        /// Expert of the pair.
        expert: ExpertId,
        /// Line of the first.
        first: u64,
        /// Line of the second.
        second: u64,
    },
    /// A range of steps that is empty or leaves the trace.
    #[error("{file}: steps {start}:{end} of a trace of {steps} steps; give A:B with 0 <= A < B <= {steps}")]
    Steps {
        /// File or array.
        file: String,
        /// First step.
        start: usize,
        /// Step after the last.
        end: usize,
        /// Steps of the trace.
        steps: usize,
    },
    /// A file to be written whose name does not say in what format.
    #[error("{file}: the name must end in .npz, .npy or .csv, which says what format to write")]
    Extension {
        /// The file.
        file: String,
    },
    /// A generator's setting that cannot be.
    #[error("generator: {field}: {reason}")]
    Spec {
        /// The setting.
        field: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}
