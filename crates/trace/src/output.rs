//! Files that appear whole or not at all: written beside their place, then renamed into it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::TraceError;

/// A file that is being written. Dropped without [`AtomicFile::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    temporary: NamedTempFile,
    target: PathBuf,
    /// The target is a pipe, a terminal or the like: bytes are copied there instead of a rename over it.
    special: bool,
    name: String,
}

impl AtomicFile {
    /// Starts a file that will stand at `path`. An existing file stays as it is until the commit; a symbolic link
    /// stays, and what it points to is replaced.
    ///
    /// # Errors
    /// [`TraceError::Io`] if the folder does not exist or cannot be written to.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        Self::start(path, name.clone()).map_err(|source| TraceError::Io {
            file: name,
            action: "create",
            source,
        })
    }

    fn start(path: &Path, name: String) -> io::Result<Self> {
        let existing = fs::metadata(path).ok();
        if existing.as_ref().is_some_and(fs::Metadata::is_dir) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if existing.as_ref().is_some_and(|m| m.permissions().readonly()) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let special = existing.is_some_and(|m| !m.is_file());
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let folder = match target.parent() {
            _ if special => std::env::temp_dir(),
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let temporary = builder().tempfile_in(folder)?;
        Ok(Self { temporary, target, special, name })
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`TraceError::Io`]; the former file, if any, is still there.
    pub fn commit(self) -> Result<(), TraceError> {
        let name = self.name.clone();
        self.finish().map_err(|source| TraceError::Io { file: name, action: "write", source })
    }

    fn finish(mut self) -> io::Result<()> {
        if self.special {
            self.temporary.seek(SeekFrom::Start(0))?;
            let mut target = File::options().write(true).open(&self.target)?;
            io::copy(self.temporary.as_file_mut(), &mut target)?;
            return target.flush();
        }
        // The bytes must be on disk before the name is, or a crash could leave an empty file in the old one's place.
        self.temporary.as_file().sync_all()?;
        self.temporary.persist(&self.target).map(drop).map_err(|e| e.error)
    }

    /// Writes a whole file with `write`, buffered.
    ///
    /// # Errors
    /// [`TraceError::Io`], also where `write` fails; the former file, if any, is then still there.
    pub fn write_with(
        path: impl AsRef<Path>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), TraceError> {
        let mut file = Self::create(path)?;
        let mut out = BufWriter::new(file.temporary.as_file_mut());
        let written = write(&mut out).and_then(|()| out.flush());
        drop(out);
        match written {
            Ok(()) => file.commit(),
            Err(source) => Err(TraceError::Io { file: file.name, action: "write", source }),
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.temporary.seek(to)
    }
}

/// Temporary files with the permissions of an ordinary new file: what the umask leaves of rw-rw-rw-.
fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".eplb-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_former_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan");
        AtomicFile::write_with(&path, |out| out.write_all(b"old")).unwrap();
        let failed = AtomicFile::write_with(&path, |out| {
            out.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), format!("{}: cannot write: disk full", path.display()));
        drop(AtomicFile::create(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["plan"]);
        AtomicFile::write_with(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn impossible_places_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(folder.path()).is_err());
        assert!(AtomicFile::create(folder.path().join("missing").join("plan")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_and_devices_stay_devices() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, b"old").unwrap();
        symlink(&file, &link).unwrap();
        AtomicFile::write_with(&link, |out| out.write_all(b"new")).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o600, 0o600);
        AtomicFile::write_with("/dev/null", |out| out.write_all(b"gone")).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
}
