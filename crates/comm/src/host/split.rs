//! One large copy shared out to several threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use eplb_core::ExpertId;

use super::content::Content;
use super::copy::{Run, runs};
use super::guards::{ReadGuard, WriteGuard};
use crate::error::CommError;

/// A copy of one expert cut into pieces that any thread may take.
///
/// Ordering: the thread that ends the last piece acquires what all the others released when they ended theirs,
/// then names the content and drops the guards, whose release passes all of it on to later guards.
#[derive(Debug)]
pub(crate) struct SplitCopy {
    pieces: Vec<Piece>,
    next: AtomicUsize,
    left: AtomicUsize,
    stopped: AtomicBool,
    expert: ExpertId,
    /// Held until the last piece is done, so that the pieces stay valid.
    guards: Mutex<Option<(ReadGuard, WriteGuard)>>,
}

/// Consecutive runs that one thread copies at a time.
#[derive(Debug)]
struct Piece(Vec<Run>);

// SAFETY: a piece is addresses only. They stay valid while the guards beside it are held, and `take` gives each piece to
// one thread.
unsafe impl Send for Piece {}
// SAFETY: as above; a shared piece is only read.
unsafe impl Sync for Piece {}

impl SplitCopy {
    /// Checks the copy and cuts it into pieces of about `piece_bytes`.
    ///
    /// # Errors
    /// As [`super::copy()`]; nothing was changed then.
    pub(crate) fn new(
        source: ReadGuard,
        mut dest: WriteGuard,
        expert: ExpertId,
        piece_bytes: usize,
    ) -> Result<Self, CommError> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut open = 0;
        runs(&source, &mut dest, expert, piece_bytes, |run| {
            match pieces.last_mut() {
                Some(piece) if open + run.bytes() <= piece_bytes => {
                    piece.0.push(run);
                    open += run.bytes();
                }
                _ => {
                    open = run.bytes();
                    pieces.push(Piece(vec![run]));
                }
            };
        })?;
        Ok(Self {
            left: AtomicUsize::new(pieces.len()),
            pieces,
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            expert,
            guards: Mutex::new(Some((source, dest))),
        })
    }

    /// Whether a piece is left to take.
    pub(crate) fn has_more(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed) && self.next.load(Ordering::Relaxed) < self.pieces.len()
    }

    /// No piece is taken from now on. The guards are dropped with the last handle on the copy.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Copies one piece, if one is left. Returns whether this ended the whole copy: then the content is named and
    /// both guards are gone.
    pub(crate) fn copy_next(&self) -> bool {
        if !self.has_more() {
            return false;
        }
        let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return false };
        for run in &piece.0 {
            // SAFETY: the guards are in `guards` until `left` is 0, and this piece still counts in `left`; the counter
            // `next` gave the piece to this thread alone.
            unsafe { run.copy() }
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return false;
        }
        if let Some((_, mut dest)) = self.guards.lock().unwrap_or_else(PoisonError::into_inner).take() {
            dest.set_content(Content::Expert(self.expert));
        }
        true
    }
}
