//! Anonymous files that are mapped: by their owner to write, by others to read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Why memory cannot be shared between processes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The system refused.
    #[error("{call} of {bytes} bytes was refused: {detail}; see the limits on memory and on open files")]
    Refused {
        /// The call.
        call: &'static str,
        /// Bytes of the memory.
        bytes: usize,
        /// The system's answer.
        detail: String,
        /// Its number.
        code: i32,
    },
    /// A descriptor of something else than what was announced.
    #[error(
        "the memory has {found} bytes, {expected} were announced: the descriptor is not the one that was meant"
    )]
    Size {
        /// Bytes found.
        found: u64,
        /// Bytes announced.
        expected: usize,
    },
    /// Its owner could change its size, and end its readers by cutting it short.
    #[error("the memory is not sealed at its size: it was not made by this program")]
    NotSealed,
    /// The memory of another start of its owner.
    #[error("the memory is that of another start of {what}: it is out of date")]
    Stale {
        /// Whose memory was expected.
        what: String,
    },
    /// Offsets that lie outside, or that are not aligned.
    #[error("the memory of {bytes} bytes has no {what} at byte {offset}")]
    Outside {
        /// What was to be there.
        what: String,
        /// Where.
        offset: usize,
        /// Bytes of the memory.
        bytes: usize,
    },
}

impl SegmentError {
    /// The system's number of the error, -1 if it is none of the system's.
    pub fn code(&self) -> i32 {
        match self {
            Self::Refused { code, .. } => *code,
            _ => -1,
        }
    }
}

/// A mapping, which ends with this.
#[derive(Debug)]
pub(in crate::host) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: addresses only. Words are used atomically; who uses other bytes keeps readers and writers apart, or compares tags.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: BorrowedFd<'_>, bytes: usize, access: ProtFlags) -> Result<Self, SegmentError> {
        // SAFETY: a new mapping at an address that the system chooses, of a file that can neither shrink nor grow.
        let mapped =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, file, 0) };
        let base = mapped.map_err(|error| refused("mmap", bytes, error))?;
        let base =
            NonNull::new(base.cast()).ok_or_else(|| refused("mmap", bytes, rustix::io::Errno::NOMEM))?;
        Ok(Self { base, bytes })
    }

    pub(in crate::host) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address of a byte range, if it lies inside.
    pub(in crate::host) fn at(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(bytes)? > self.bytes {
            return None;
        }
        // SAFETY: offset <= self.bytes, tested just before, so the result is inside the mapping or one past it.
        Some(unsafe { self.base.add(offset) })
    }

    /// The word at an offset that is a multiple of 8, if it lies inside.
    pub(in crate::host) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self.at(offset, 8).filter(|_| offset.is_multiple_of(8))?;
        // SAFETY: inside the mapping, which lives while `self` is borrowed, and aligned, since mappings begin with a page. Every
        // process uses words atomically, and any bits are a number.
        Some(unsafe { at.cast::<AtomicU64>().as_ref() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, unmapped once; whoever has an address in it keeps it alive.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn refused(call: &'static str, bytes: usize, error: rustix::io::Errno) -> SegmentError {
    let code = error.raw_os_error();
    SegmentError::Refused { call, bytes, detail: error.to_string(), code }
}

/// Zeroed memory of this process that others can open.
#[derive(Debug)]
pub struct Segment {
    file: OwnedFd,
    mapping: Mapping,
}

impl Segment {
    /// Takes `bytes` bytes, at least one. `name` is for the eyes of an operator only.
    ///
    /// # Errors
    /// The system has no memory or descriptor for it.
    pub fn create(name: &str, bytes: usize) -> Result<Self, SegmentError> {
        let bytes = bytes.max(1);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags).map_err(|e| refused("memfd_create", bytes, e))?;
        rustix::fs::ftruncate(&file, bytes as u64).map_err(|e| refused("ftruncate", bytes, e))?;
        let mapping = Mapping::new(file.as_fd(), bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        // Only this mapping can write from here on: who gets the descriptor reads. Linux before 5.1 has no such seal.
        let size = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, size | SealFlags::FUTURE_WRITE)
            .or_else(|_| rustix::fs::fcntl_add_seals(&file, size))
            .map_err(|e| refused("sealing", bytes, e))?;
        Ok(Self { file, mapping })
    }

    /// What others open.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.mapping.bytes()
    }

    pub(in crate::host) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Writes a word; everything written before it is there for who reads it ([`ForeignSegment::load`]). Offsets outside, or that are
    /// no multiple of 8, are ignored.
    pub fn store(&self, offset: usize, value: u64) {
        if let Some(word) = self.mapping.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// Reads a word; `None` outside.
    pub fn load(&self, offset: usize) -> Option<u64> {
        self.mapping.word(offset).map(|word| word.load(Ordering::Acquire))
    }
}

/// Memory of another process, to be read.
#[derive(Debug)]
pub struct ForeignSegment {
    mapping: Mapping,
}

impl ForeignSegment {
    /// Opens what its owner's [`Segment::file`] became here; the descriptor is closed.
    ///
    /// # Errors
    /// Another size than announced, no seal, or the system refuses.
    pub fn open(file: OwnedFd, bytes: usize) -> Result<Self, SegmentError> {
        // The seals first: a size that is read before them may change until they are set.
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(SegmentError::NotSealed);
        }
        let found = rustix::fs::fstat(&file).map_err(|e| refused("fstat", bytes, e))?.st_size;
        let found = u64::try_from(found).unwrap_or(0);
        if found != bytes as u64 {
            return Err(SegmentError::Size { found, expected: bytes });
        }
        Ok(Self { mapping: Mapping::new(file.as_fd(), bytes, ProtFlags::READ)? })
    }

    pub(in crate::host) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Reads a word; `None` outside. What its owner wrote before it is there.
    pub fn load(&self, offset: usize) -> Option<u64> {
        self.mapping.word(offset).map(|word| word.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_through_the_other_mapping() {
        let own = Segment::create("test", 100).unwrap();
        let other = ForeignSegment::open(own.file().try_clone_to_owned().unwrap(), 100).unwrap();
        own.store(88, 7);
        own.store(96, 8);
        own.store(4, 9);
        assert_eq!(
            (other.load(88), other.load(0), other.load(96), other.load(4)),
            (Some(7), Some(0), None, None)
        );
        assert_eq!(own.load(88), Some(7));
        // The mapping outlives its owner.
        drop(own);
        assert_eq!(other.load(88), Some(7));
    }

    #[test]
    fn who_has_the_descriptor_can_read_and_not_write() {
        let own = Segment::create("test", 100).unwrap();
        let theirs = own.file().try_clone_to_owned().unwrap();
        assert!(Mapping::new(theirs.as_fd(), 100, ProtFlags::READ).is_ok());
        assert!(Mapping::new(theirs.as_fd(), 100, ProtFlags::READ | ProtFlags::WRITE).is_err());
        assert!(rustix::io::pwrite(&theirs, &[1], 0).is_err());
        own.store(0, 5);
        assert_eq!(own.load(0), Some(5), "its owner goes on writing");
    }

    #[test]
    fn strangers_are_refused() {
        let own = Segment::create("test", 100).unwrap();
        let wrong = ForeignSegment::open(own.file().try_clone_to_owned().unwrap(), 101).unwrap_err();
        assert_eq!(wrong, SegmentError::Size { found: 100, expected: 101 });
        assert!(rustix::fs::ftruncate(own.file(), 10).is_err(), "nobody can cut it short");
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let growing = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&growing, 100).unwrap();
        rustix::fs::fcntl_add_seals(&growing, SealFlags::SHRINK).unwrap();
        assert_eq!(ForeignSegment::open(growing, 100).unwrap_err(), SegmentError::NotSealed);
        assert_eq!(ForeignSegment::open(file.into(), 100).unwrap_err(), SegmentError::NotSealed);
        assert!(matches!(Segment::create("huge", usize::MAX), Err(SegmentError::Refused { .. })));
    }
}
