//! Bytes of a file, owned or mapped, shared by everything that is decoded from them.

use std::fs::File;
use std::io::{self, Read};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use crate::error::TraceError;
use crate::map::Mapped;

/// Files of at least this many bytes are mapped, smaller ones are read.
pub const MAP_FROM: u64 = 16 << 20;

#[derive(Debug)]
enum Storage {
    Owned(Vec<u8>),
    Mapped(Mapped),
}

/// A range of shared, immutable bytes. Clones and slices share the storage.
#[derive(Debug, Clone)]
pub(crate) struct Bytes {
    storage: Arc<Storage>,
    range: Range<usize>,
}

impl Bytes {
    /// A file's bytes: mapped if it is a regular file of [`MAP_FROM`] bytes or more, otherwise read.
    pub(crate) fn open(path: &Path) -> Result<Self, TraceError> {
        Self::read(path, MAP_FROM).map_err(|(action, source)| TraceError::Io {
            file: path.display().to_string(),
            action,
            source,
        })
    }

    fn read(path: &Path, map_from: u64) -> Result<Self, (&'static str, io::Error)> {
        let mut file = File::open(path).map_err(|e| ("open", e))?;
        let metadata = file.metadata().map_err(|e| ("read the size", e))?;
        if metadata.is_file() && metadata.len() >= map_from {
            let mapped = Mapped::whole(&file).map_err(|e| ("map into memory", e))?;
            let range = 0..mapped.bytes().len();
            return Ok(Self { storage: Arc::new(Storage::Mapped(mapped)), range });
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| ("read", e))?;
        Ok(bytes.into())
    }

    /// The bytes `range` of these, sharing the storage; `None` if there are not so many.
    pub(crate) fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(Self { storage: Arc::clone(&self.storage), range: start + range.start..start + range.end })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { storage: Arc::new(Storage::Owned(bytes)), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all = match &*self.storage {
            Storage::Owned(bytes) => bytes.as_slice(),
            Storage::Mapped(mapped) => mapped.bytes(),
        };
        &all[self.range.clone()]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_and_read_bytes_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [3, 1, 4, 1, 5]).unwrap();
        let (read, mapped) = (Bytes::read(&path, 6).unwrap(), Bytes::read(&path, 5).unwrap());
        assert!(matches!(*read.storage, Storage::Owned(_)) && matches!(*mapped.storage, Storage::Mapped(_)));
        assert_eq!(*read, *mapped);
        assert_eq!(&*mapped.slice(1..4).unwrap().slice(1..3).unwrap(), [4, 1]);
        assert!(mapped.slice(2..6).is_none() && mapped.slice(1..4).unwrap().slice(0..4).is_none());
    }

    #[test]
    fn a_folder_and_a_missing_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_path_buf(), folder.path().join("missing")] {
            let message = Bytes::open(&path).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{}: cannot ", path.display())), "{message}");
        }
    }
}
