//! Slots in host memory: guards keep others away from them, and rows without gaps are sent from and received into their place.

use std::ptr::NonNull;
use std::sync::Arc;

use eplb_comm::host::{Content, HostMemory, ReadGuard, WriteGuard, copy};
use eplb_comm::local::LocalGroup;
use eplb_comm::{CommError, Communicator, Memory, Place};
use eplb_core::{ExpertId, RankId, Transfer};

use super::{Ground, Hold, Load, Over, Porter};
use crate::cells::Cells;
use crate::cut::{Cut, LayerCut, Piece};
use crate::options::Options;
use crate::run::Trouble;

impl Ground for Arc<HostMemory> {
    fn rank(&self) -> RankId {
        HostMemory::rank(self)
    }

    fn memory(&self) -> &dyn Memory {
        &**self
    }

    fn alone(&self) -> Result<Box<dyn Communicator>, CommError> {
        let mut group = LocalGroup::new(vec![self.clone()], 1)?;
        // One memory makes one communicator.
        let unmade = || CommError::NoThread { what: "a group of one rank".into(), detail: String::new() };
        Ok(Box::new(group.pop().ok_or_else(unmade)?))
    }

    fn largest_packed(&self, cut: &Cut) -> usize {
        cut.largest_packed(self.layout())
    }

    fn packs_pinned(&self) -> bool {
        false
    }

    fn lane(&self, count: usize, bytes: usize, _: &Options) -> Result<(Cells, Box<dyn Porter>), CommError> {
        let cells = Cells::new(HostMemory::rank(self), count, bytes)?;
        Ok((cells, Box::new(HostPorter(self.clone()))))
    }
}

struct HostPorter(Arc<HostMemory>);

impl Porter for HostPorter {
    fn open(&mut self, place: Place, read: Option<ExpertId>) -> Result<Box<dyn Hold>, CommError> {
        Ok(match read {
            Some(expert) => {
                let guard = self.0.read(place)?;
                guard.expect(expert)?;
                Box::new(Source(guard))
            }
            None => Box::new(Landing(self.0.write(place)?)),
        })
    }

    fn copy(&mut self, transfer: &Transfer, _: Over<'_>) -> Result<(), Trouble> {
        let source = self.0.read(Place::source(transfer))?;
        let mut landing = self.0.write(Place::landing(transfer))?;
        Ok(copy(&source, &mut landing, transfer.expert)?)
    }
}

/// A place that is read from: nobody writes it.
struct Source(ReadGuard);

/// A place that is written: nobody else uses it.
struct Landing(WriteGuard);

impl Hold for Source {
    fn straight(&mut self, tensor: usize) -> Option<NonNull<[u8]>> {
        // Only read from: the operation is a send.
        self.0.whole(tensor).map(NonNull::from)
    }

    fn pack(&mut self, load: Load<'_>, to: &mut [u8], _: Over<'_>) -> Result<(), Trouble> {
        match load {
            Load::Small(cut) => pack(&self.0, cut, to),
            Load::Piece(piece) => gather(&self.0, piece, to),
        }
        Ok(())
    }

    fn unpack(&mut self, _: Load<'_>, _: &[u8], _: Over<'_>) -> Result<(), Trouble> {
        Ok(())
    }

    fn name(&mut self, _: ExpertId) -> Result<(), Trouble> {
        Ok(())
    }
}

impl Hold for Landing {
    fn straight(&mut self, tensor: usize) -> Option<NonNull<[u8]>> {
        // No reference to it: earlier pieces of the tensor may be landing.
        self.0.landing(tensor)
    }

    fn pack(&mut self, _: Load<'_>, _: &mut [u8], _: Over<'_>) -> Result<(), Trouble> {
        Ok(())
    }

    fn unpack(&mut self, load: Load<'_>, from: &[u8], _: Over<'_>) -> Result<(), Trouble> {
        match load {
            Load::Small(cut) => unpack(from, cut, &mut self.0),
            Load::Piece(piece) => scatter(from, piece, &mut self.0),
        }
        Ok(())
    }

    fn name(&mut self, expert: ExpertId) -> Result<(), Trouble> {
        self.0.set_content(Content::Expert(expert));
        Ok(())
    }
}

/// Small tensors, one after another.
fn pack(guard: &ReadGuard, cut: &LayerCut, mut to: &mut [u8]) {
    for &tensor in cut.small() {
        for row in guard.rows(tensor) {
            let (place, rest) = to.split_at_mut(row.len());
            place.copy_from_slice(row);
            to = rest;
        }
    }
}

fn unpack(mut from: &[u8], cut: &LayerCut, guard: &mut WriteGuard) {
    for &tensor in cut.small() {
        for row in guard.rows_mut(tensor) {
            let (bytes, rest) = from.split_at(row.len());
            row.copy_from_slice(bytes);
            from = rest;
        }
    }
}

/// The part of a row that a piece covers, and where it lies in the piece: `(in the row, in the piece)`.
fn overlap(
    piece: Piece,
    row: usize,
    row_bytes: usize,
) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let begin = row * row_bytes;
    let from = piece.offset.max(begin);
    let to = (piece.offset + piece.bytes).min(begin + row_bytes);
    (from < to).then(|| (from - begin..to - begin, from - piece.offset..to - piece.offset))
}

/// A piece of a tensor whose rows have gaps.
fn gather(guard: &ReadGuard, piece: Piece, to: &mut [u8]) {
    for (number, row) in guard.rows(piece.tensor).enumerate() {
        if let Some((in_row, in_piece)) = overlap(piece, number, row.len()) {
            to[in_piece].copy_from_slice(&row[in_row]);
        }
    }
}

fn scatter(from: &[u8], piece: Piece, guard: &mut WriteGuard) {
    for (number, row) in guard.rows_mut(piece.tensor).enumerate() {
        if let Some((in_row, in_piece)) = overlap(piece, number, row.len()) {
            row[in_row].copy_from_slice(&from[in_piece]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_row_once() {
        let (rows, row_bytes) = (7, 10);
        for most in [1, 3, 10, 25, 70] {
            let mut seen = vec![0; rows * row_bytes];
            for offset in (0..rows * row_bytes).step_by(most) {
                let piece = Piece { tensor: 0, offset, bytes: most.min(rows * row_bytes - offset) };
                let mut filled = 0;
                for row in 0..rows {
                    if let Some((in_row, in_piece)) = overlap(piece, row, row_bytes) {
                        assert_eq!(in_row.len(), in_piece.len());
                        assert_eq!(in_piece.start, filled);
                        filled = in_piece.end;
                        in_row.for_each(|byte| seen[row * row_bytes + byte] += 1);
                    }
                }
                assert_eq!(filled, piece.bytes);
            }
            assert!(seen.iter().all(|&times| times == 1));
        }
    }
}
