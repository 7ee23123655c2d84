//! A lock between processes that ends with its holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::store::deadlines::{Backoff, left};

/// A lock file, held. Dropping it closes the file, which gives the lock back; so does any end of the process.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    number: u64,
}

impl Lock {
    /// Which of the lock files.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// Takes the lock at `path`, or says after how long it gave up. The file is opened anew each time: the lock belongs
/// to that opening, so threads exclude each other as processes do.
pub(crate) fn lock_file(path: &Path, number: u64, deadline: Instant) -> io::Result<Result<Lock, Duration>> {
    let start = Instant::now();
    if left(deadline).is_zero() {
        return Ok(Err(Duration::ZERO));
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    // There is no way to wait for a lock with a deadline. Holders are quick: one file write.
    let mut backoff = Backoff::new(Duration::from_micros(200), Duration::from_millis(10));
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Ok(Lock { _file: file, number })),
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(error);
            }
            Err(_) => {}
        }
        if !backoff.pause(deadline) {
            return Ok(Err(start.elapsed()));
        }
    }
}
