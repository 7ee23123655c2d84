//! Something that happens around the calls of a board.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use eplb_core::RankId;
use eplb_exchange::{Note, Record};

use super::{Board, Reader};

/// What happens around the calls of a board. A method that is not written passes the call on.
pub trait BoardIntercept: Debug + Send + Sync {
    /// In place of [`Board::publish`].
    fn publish(&self, inner: &dyn Board, from: RankId, note: Note) {
        inner.publish(from, note);
    }

    /// In place of [`Board::collect`].
    fn collect(&self, inner: &dyn Board, reader: &mut Reader) -> Vec<(RankId, Note)> {
        inner.collect(reader)
    }

    /// In place of [`Board::record`].
    fn record(&self, inner: &dyn Board) -> Record {
        inner.record()
    }

    /// In place of [`Board::decide`].
    fn decide(&self, inner: &dyn Board, from: Record, to: Record, until: Option<Instant>) -> Option<Record> {
        inner.decide(from, to, until)
    }
}

/// A board around whose calls something happens.
#[derive(Debug)]
pub struct InterceptedBoard<I> {
    inner: Arc<dyn Board>,
    by: I,
}

impl<I: BoardIntercept> InterceptedBoard<I> {
    /// Puts `by` around a board.
    pub fn new(inner: Arc<dyn Board>, by: I) -> Self {
        Self { inner, by }
    }
}

impl<I: BoardIntercept> Board for InterceptedBoard<I> {
    fn publish(&self, from: RankId, note: Note) {
        self.by.publish(&*self.inner, from, note);
    }

    fn collect(&self, reader: &mut Reader) -> Vec<(RankId, Note)> {
        self.by.collect(&*self.inner, reader)
    }

    fn renew(&self, rank: RankId) {
        self.inner.renew(rank);
    }

    fn signs(&self) -> Vec<(RankId, u64)> {
        self.inner.signs()
    }

    fn looks(&self) -> u64 {
        self.inner.looks()
    }

    fn left(&self) -> Vec<RankId> {
        self.inner.left()
    }

    fn record(&self) -> Record {
        self.by.record(&*self.inner)
    }

    fn decide(&self, from: Record, to: Record, until: Option<Instant>) -> Option<Record> {
        self.by.decide(&*self.inner, from, to, until)
    }

    fn lost(&self) -> Option<String> {
        self.inner.lost()
    }
}
