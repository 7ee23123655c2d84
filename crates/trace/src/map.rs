//! Files in memory without reading them: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

/// A whole file, mapped read-only.
///
/// The pages are the file's own: they are read when touched, and dropped by the system when memory is short.
/// A file that another process shortens while it is mapped makes touching the lost pages fatal, as for any program
/// that maps files; traces are written by rename ([`crate::output`]), which never changes a mapped file.
#[derive(Debug)]
pub(crate) struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps all of `file`, which must be a regular file of at least one byte.
    pub(crate) fn whole(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is private to this struct, read-only, and lives as long as the bytes lent from it.
        // What must hold beside that, and what no program can enforce on Unix, is that nobody writes to or
        // shortens the file meanwhile: the documentation of `Trace::open` hands that duty to the caller. Readers in
        // this crate stay in bounds whatever the bytes say, and check loads again when a window is decoded.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
