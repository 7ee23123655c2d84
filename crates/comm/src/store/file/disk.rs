//! The one way in which a file store writes, behind a trait so that tests can fill the disk.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Writes files.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// Makes `path` hold exactly `bytes`, on the disk when it returns.
    fn write_durably(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
}

/// The operating system's file systems.
#[derive(Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn write_durably(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        // NFS, and disks that allocate late, say only here that there was no room.
        file.sync_data()
    }
}
