//! A store in a folder that all ranks share.
//!
//! # How it keeps its promises
//! A value is written to a temporary file, synced, and renamed over the old one: a reader sees the old value or the
//! new one, whoever is killed in between and however full the disk is. Mutations of a key take one of
//! [`LOCKS`] lock files, so that an `add` or a compare-and-set reads and writes as one step. The lock is the kernel's
//! (`flock`): it ends with its holder, however that dies, and there is no stale lock to break. A holder that is
//! *stopped* keeps it, and others get [`StoreError::Timeout`] on keys of that lock until it resumes.
//!
//! # What it needs of the folder
//! Atomic rename, and `flock` that excludes between all hosts that share the folder: any local disk or tmpfs; NFS 4,
//! or NFS 3 with its lock service (not mounted with `nolock` or `local_lock`); Lustre mounted with `flock`. On NFS
//! mount it with `lookupcache=positive`, or keys that are new may be seen up to a minute late: a client remembers
//! which names did not exist. Waiting polls, from 2 to 50 ms. Every mutation waits for the disk to sync: ranks of one
//! host are best served by a folder on tmpfs.
//!
//! The folder holds `format` (which store this is), `keys/`, `locks/` and `temporary/`, the latter of bounded size.
//! Removing it ends the store: [`StoreError::Lost`].

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::deadlines::{Backoff, left};
use super::error::{StoreError, StoreOp};
use super::identity::Nonce;
use super::limits::{Limits, check_key};
use super::table::counter_sum;
use super::{CasOutcome, Store};

mod disk;
mod lock;
mod record;

pub(crate) use disk::Disk;
use disk::RealDisk;
pub(crate) use lock::{Lock, lock_file};

/// Number of lock files that the keys are spread over.
pub const LOCKS: u64 = 16;

/// Polling of waits: from this..
const SHORTEST_POLL: Duration = Duration::from_millis(2);
/// .. to this.
const LONGEST_POLL: Duration = Duration::from_millis(50);

/// A store in a shared folder; see the [module](self). Clones are handles of the same store.
#[derive(Debug, Clone)]
pub struct FileStore {
    folder: Arc<Path>,
    /// Drawn when the folder was first opened: tells it from another that took its place.
    id: Nonce,
    limits: Limits,
    disk: Arc<dyn Disk>,
}

impl FileStore {
    /// Opens the store in `folder`, creating both where needed (readable to this user only, if so).
    ///
    /// # Errors
    /// A folder that cannot be created, written or locked, or holds a store of another format.
    pub fn open(folder: &Path, limits: Limits, deadline: Instant) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(RealDisk), folder, limits, deadline)
    }

    /// [`FileStore::open`] with a disk of the caller's, for tests of a full one.
    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        folder: &Path,
        limits: Limits,
        deadline: Instant,
    ) -> Result<Self, StoreError> {
        for part in ["keys", "locks", "temporary"] {
            let part = folder.join(part);
            let mut builder = DirBuilder::new();
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(&part).map_err(|e| StoreError::io(part.display(), "mkdir", &e))?;
        }
        let mut store = Self { folder: Arc::from(folder), id: Nonce::from_bytes([0; 16]), limits, disk };
        let lock = store.lock_number(0, StoreOp::Connect, "", deadline)?;
        store.id = match store.read_id()? {
            Some(id) => id,
            None => {
                let id = Nonce::draw()?;
                store.replace(&lock, &store.folder.join("format"), &record::format_file(id), "")?;
                id
            }
        };
        Ok(store)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn key_path(&self, key: &str) -> PathBuf {
        self.folder.join("keys").join(record::file_name(key))
    }

    /// The id that the folder carries; `None` when it carries none yet.
    fn read_id(&self) -> Result<Option<Nonce>, StoreError> {
        let path = self.folder.join("format");
        match read_bounded(&path, record::FORMAT_FILE_BYTES) {
            Ok(Some(bytes)) => record::parse_format_file(&bytes).map(Some).map_err(|detail| {
                StoreError::Protocol { store: path.display().to_string(), detail: detail.to_owned() }
            }),
            Ok(None) => Ok(None),
            Err(error) => Err(StoreError::io(path.display(), "read", &error)),
        }
    }

    /// Refuses to go on in a folder that was removed, or replaced by another store.
    fn check_still_there(&self) -> Result<(), StoreError> {
        let cause = match self.read_id()? {
            Some(id) if id == self.id => return Ok(()),
            Some(_) => "another store was made in its folder",
            None => "its folder was removed",
        };
        Err(StoreError::Lost { store: self.folder.display().to_string(), cause: cause.to_owned() })
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.key_path(key);
        let bytes = read_bounded(&path, record::largest(self.limits.max_value))
            .map_err(|error| StoreError::io(path.display(), "read", &error))?;
        let Some(bytes) = bytes else {
            self.check_still_there()?;
            return Ok(None);
        };
        record::decode(key, &bytes).map(Some).map_err(|detail| StoreError::Protocol {
            store: path.display().to_string(),
            detail: detail.to_owned(),
        })
    }

    /// Puts `bytes` in the place of `path`, whole or not at all. The lock owns the temporary file, so a killed
    /// holder's leftovers are overwritten by the next one and never add up.
    fn replace(&self, lock: &Lock, path: &Path, bytes: &[u8], key: &str) -> Result<(), StoreError> {
        let temporary = self.folder.join("temporary").join(lock.number().to_string());
        let written = self.disk.write_durably(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
        written.map_err(|error| {
            // Frees what was written; if even that fails, the next holder of the lock truncates it.
            let _ = fs::remove_file(&temporary);
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            match error.kind() {
                StorageFull | QuotaExceeded | FileTooLarge => StoreError::Full {
                    key: key.to_owned(),
                    detail: format!(
                        "the disk under {} is full ({error}); free space there or choose another folder",
                        self.folder.display()
                    ),
                },
                _ => StoreError::io(path.display(), "write", &error),
            }
        })
    }

    fn write(&self, lock: &Lock, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.replace(lock, &self.key_path(key), &record::encode(key, value), key)
    }

    /// Takes the lock that a key belongs to, in a folder that is still this store's.
    pub(crate) fn lock(&self, op: StoreOp, key: &str, deadline: Instant) -> Result<Lock, StoreError> {
        check_key(key)?;
        let lock = self.lock_number(record::lock_number(key), op, key, deadline)?;
        self.check_still_there()?;
        Ok(lock)
    }

    fn lock_number(
        &self,
        number: u64,
        op: StoreOp,
        key: &str,
        deadline: Instant,
    ) -> Result<Lock, StoreError> {
        let path = self.folder.join("locks").join(number.to_string());
        match lock_file(&path, number, deadline) {
            Ok(Ok(lock)) => Ok(lock),
            Ok(Err(waited)) => {
                let what = if key.is_empty() { path.display().to_string() } else { key.to_owned() };
                Err(StoreError::timeout(op, what, waited))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::Lost {
                store: self.folder.display().to_string(),
                cause: "its folder was removed".to_owned(),
            }),
            Err(error) => Err(StoreError::io(
                path.display(),
                "flock (the file system must support locks: NFS without nolock, Lustre with -o flock)",
                &error,
            )),
        }
    }
}

/// A whole file of at most `largest` bytes; `None` when there is none.
fn read_bounded(path: &Path, largest: usize) -> io::Result<Option<Vec<u8>>> {
    let mut tries = 0;
    loop {
        let read = File::open(path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(largest as u64 + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        return match read {
            Ok(bytes) if bytes.len() > largest => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "the file is larger than {largest} bytes; were all handles opened with the same limits?"
                ),
            )),
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // NFS: the file was replaced between looking up its name and reading it. The name leads to the new one.
            Err(error) if error.kind() == io::ErrorKind::StaleNetworkFileHandle && tries < 8 => {
                tries += 1;
                continue;
            }
            Err(error) => Err(error),
        };
    }
}

impl Store for FileStore {
    fn set(&self, key: &str, value: &[u8], deadline: Instant) -> Result<(), StoreError> {
        self.limits.check_value(key, value)?;
        let lock = self.lock(StoreOp::Set, key, deadline)?;
        self.write(&lock, key, value)
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Option<Vec<u8>>, StoreError> {
        check_key(key)?;
        if left(deadline).is_zero() {
            return Err(StoreError::timeout(StoreOp::Get, key, Duration::ZERO));
        }
        self.read(key)
    }

    fn add(&self, key: &str, delta: i64, deadline: Instant) -> Result<i64, StoreError> {
        let lock = self.lock(StoreOp::Add, key, deadline)?;
        let sum = counter_sum(key, self.read(key)?.as_deref(), delta)?;
        self.write(&lock, key, sum.to_string().as_bytes())?;
        Ok(sum)
    }

    fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        deadline: Instant,
    ) -> Result<CasOutcome, StoreError> {
        self.limits.check_value(key, new)?;
        let lock = self.lock(StoreOp::CompareAndSet, key, deadline)?;
        let current = self.read(key)?;
        if current.as_deref() != expected {
            return Ok(CasOutcome::Current(current));
        }
        self.write(&lock, key, new)?;
        Ok(CasOutcome::Swapped)
    }

    fn wait(&self, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let mut missing = keys.to_vec();
        let found = Backoff::new(SHORTEST_POLL, LONGEST_POLL).find(deadline, || {
            let mut still = Vec::with_capacity(missing.len());
            for &key in &missing {
                check_key(key)?;
                if self.read(key)?.is_none() {
                    still.push(key);
                }
            }
            missing = still;
            Ok(missing.is_empty().then_some(()))
        })?;
        found.ok_or_else(|| {
            let keys = missing.into_iter().map(str::to_owned).collect();
            StoreError::Timeout { op: StoreOp::Wait, keys, waited: start.elapsed() }
        })
    }

    fn wait_change(
        &self,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let start = Instant::now();
        check_key(key)?;
        let changed = Backoff::new(SHORTEST_POLL, LONGEST_POLL).find(deadline, || {
            let current = self.read(key)?;
            Ok((current.as_deref() != known).then_some(current))
        })?;
        changed.ok_or_else(|| StoreError::timeout(StoreOp::WaitChange, key, start.elapsed()))
    }

    fn delete(&self, key: &str, deadline: Instant) -> Result<bool, StoreError> {
        let _lock = self.lock(StoreOp::Delete, key, deadline)?;
        let path = self.key_path(key);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io(path.display(), "remove", &error)),
        }
    }

    fn max_value(&self) -> usize {
        self.limits.max_value
    }
}
