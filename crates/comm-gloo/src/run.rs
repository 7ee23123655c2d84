//! One direction of a wave on one lane: messages are posted in canonical order, a window of them at a time, and waited for in the same order.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use eplb_comm::host::{Content, ReadGuard, WriteGuard, copy};
use eplb_comm::{CommError, Place};
use eplb_core::{RankId, Transfer};
use gloo_sys::{Buffer, Wait};

use crate::cells::{Cell, Cells};
use crate::cut::{HEADER_BYTES, LayerCut, Piece};
use crate::header;
use crate::options::Planted;
use crate::shared::{Shared, Waiting};
use crate::ticket::{Direction, GlooTicket};

/// Why a wave ended early.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Somebody else stopped it.
    Stopped,
    /// Something of this rank is wrong.
    Own(CommError),
    /// The connection with a peer, or what came over it.
    Link { peer: RankId, cause: String },
}

impl From<CommError> for Trouble {
    fn from(error: CommError) -> Self {
        Trouble::Own(error)
    }
}

/// An expert under way, and the hold on its place.
enum Hold {
    Source(ReadGuard),
    Landing(WriteGuard),
}

struct Parcel {
    transfer: Transfer,
    hold: Hold,
    peer: RankId,
}

/// What a message carries.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// Header and small tensors, in a cell.
    Packed(Cell),
    /// A piece that lies in a cell because its rows have gaps here.
    Gathered(Cell, Piece),
    /// A piece that goes straight from or to its place.
    Straight,
}

/// A message under way.
struct Flying {
    buffer: Arc<Buffer>,
    body: Body,
    sends: bool,
    /// The expert's last one.
    last: bool,
}

/// The next message to post.
#[derive(Debug, Clone, Copy, Default)]
struct Next {
    /// Index into the ticket's part.
    own: usize,
    /// Message of the expert.
    message: usize,
}

/// A wave being carried. Fields drop in their order: buffers, which end their operations, before the guards that hold the
/// memory; cells belong to the lane, which takes them back after the run is gone.
pub(crate) struct Run<'a> {
    flying: VecDeque<Flying>,
    parcels: VecDeque<Parcel>,
    next: Next,
    sent: usize,
    shared: &'a Shared,
    ticket: &'a GlooTicket,
    direction: Direction,
    waiting: &'a Waiting,
    cells: &'a mut Cells,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        ticket: &'a GlooTicket,
        lane: usize,
        direction: Direction,
        cells: &'a mut Cells,
    ) -> Self {
        Self {
            flying: VecDeque::new(),
            parcels: VecDeque::new(),
            next: Next::default(),
            sent: 0,
            shared,
            ticket,
            direction,
            waiting: &shared.waits[lane],
            cells,
        }
    }

    /// Carries the whole wave.
    pub(crate) fn go(mut self) -> Result<(), Trouble> {
        loop {
            while self.flying.len() < self.shared.options.window && self.post()? {}
            let Some(oldest) = self.flying.front() else { return Ok(()) };
            let (buffer, sends) = (oldest.buffer.clone(), oldest.sends);
            self.wait(&buffer, sends)?;
            // The only other handle is the one in the queue.
            drop(buffer);
            self.landed()?;
        }
    }

    /// Whether the wave must not go on.
    fn is_over(&self) -> bool {
        self.shared.is_stopping() || !self.ticket.may_go_on()
    }

    /// Posts the next message, or copies the next expert that stays on this rank. False: nothing is left, or no cell is free.
    fn post(&mut self) -> Result<bool, Trouble> {
        let Some(&index) = self.ticket.part(self.direction).get(self.next.own) else { return Ok(false) };
        if self.is_over() {
            return Err(Trouble::Stopped);
        }
        let transfer = self.ticket.transfers[index];
        if transfer.is_local() {
            let source = self.shared.memory.read(Place::source(&transfer))?;
            let mut landing = self.shared.memory.write(Place::landing(&transfer))?;
            copy(&source, &mut landing, transfer.expert)?;
            // Before the wave counts as done: whoever sees that may use both places.
            drop((source, landing));
            self.next.own += 1;
            self.shared.transferred(self.ticket, &transfer);
            return Ok(true);
        }
        let cut = self.shared.cut.layer(transfer.layer);
        let piece = self.next.message.checked_sub(1).map(|number| cut.pieces()[number]);
        let in_cell = match piece {
            None => true,
            Some(piece) => !self.lies_whole(&transfer, piece.tensor)?,
        };
        let cell = match in_cell.then(|| self.cells.take()) {
            Some(None) => return Ok(false),
            Some(cell) => cell,
            None => None,
        };
        if self.next.message == 0 {
            self.open(transfer)?;
        }
        self.launch(index, cut, piece, cell)?;
        self.next.message += 1;
        if self.next.message == cut.messages() {
            self.next = Next { own: self.next.own + 1, message: 0 };
        }
        Ok(true)
    }

    /// Whether a tensor lies without gaps at this rank's end of a transfer.
    fn lies_whole(&mut self, transfer: &Transfer, tensor: usize) -> Result<bool, Trouble> {
        // Messages after the first find the expert's hold at the end of the queue.
        Ok(match self.parcels.back_mut().map(|parcel| &mut parcel.hold) {
            Some(Hold::Source(guard)) => guard.whole(tensor).is_some(),
            Some(Hold::Landing(guard)) => guard.landing(tensor).is_some(),
            None => return Err(Trouble::Own(lost(self.shared.rank, transfer))),
        })
    }

    /// Takes hold of the place of an expert.
    fn open(&mut self, transfer: Transfer) -> Result<(), Trouble> {
        let sends = transfer.source == self.shared.rank;
        let (hold, peer) = match sends {
            true => {
                let guard = self.shared.memory.read(Place::source(&transfer))?;
                guard.expect(transfer.expert)?;
                (Hold::Source(guard), transfer.dest)
            }
            false => (Hold::Landing(self.shared.memory.write(Place::landing(&transfer))?), transfer.source),
        };
        self.parcels.push_back(Parcel { transfer, hold, peer });
        Ok(())
    }

    /// Starts the operation of a message of the youngest parcel.
    fn launch(
        &mut self,
        index: usize,
        cut: &LayerCut,
        piece: Option<Piece>,
        cell: Option<Cell>,
    ) -> Result<(), Trouble> {
        let Self { parcels, cells, shared, ticket, .. } = self;
        let Some(parcel) = parcels.back_mut() else {
            return Err(Trouble::Own(lost(shared.rank, &ticket.transfers[index])));
        };
        let (transfer, peer) = (parcel.transfer, parcel.peer);
        let (base, bytes, body) = match (piece, cell) {
            (None, Some(cell)) => {
                let bytes = cut.packed_bytes();
                let place = &mut cells.bytes(cell)[..bytes];
                if let Hold::Source(guard) = &parcel.hold {
                    let named = match shared.options.has(Planted::OtherExpert) {
                        true => Transfer { expert: eplb_core::ExpertId(transfer.expert.0 + 1), ..transfer },
                        false => transfer,
                    };
                    let (head, rest) = place.split_at_mut(HEADER_BYTES);
                    head.copy_from_slice(&header::write(
                        &ticket.wave,
                        &named,
                        shared.expert_bytes(&transfer),
                    ));
                    pack(guard, cut, rest);
                }
                (NonNull::from(place).cast::<u8>(), bytes, Body::Packed(cell))
            }
            (Some(piece), Some(cell)) => {
                let place = &mut cells.bytes(cell)[..piece.bytes];
                if let Hold::Source(guard) = &parcel.hold {
                    gather(guard, piece, place);
                }
                (NonNull::from(place).cast::<u8>(), piece.bytes, Body::Gathered(cell, piece))
            }
            (Some(piece), None) => {
                let all = match &mut parcel.hold {
                    // Only read from: the operation is a send.
                    Hold::Source(guard) => guard.whole(piece.tensor).map(NonNull::from),
                    // No reference to it: earlier pieces of the tensor may be landing.
                    Hold::Landing(guard) => guard.landing(piece.tensor),
                };
                let base = all.and_then(|all| part(all, piece.offset, piece.bytes));
                let Some(base) = base else { return Err(Trouble::Own(lost(shared.rank, &transfer))) };
                (base, piece.bytes, Body::Straight)
            }
            (None, None) => return Err(Trouble::Own(lost(shared.rank, &transfer))),
        };
        let link = |error: gloo_sys::GlooError| Trouble::Link { peer, cause: error.to_string() };
        // SAFETY: the memory is that of a cell, which stays taken, or that of a place under a guard, which stays held, until
        // the message has landed or the run ends; the run drops its buffers before its guards, and the lane takes its cells back
        // after the run is gone. A read guard keeps writers away for a send, a write guard everyone for a receive. Nobody
        // touches a cell between here and `landed`.
        let buffer = unsafe { shared.mesh.context.buffer(base, bytes) }.map_err(link)?;
        let sends = matches!(parcel.hold, Hold::Source(_));
        let mut slot = ticket.wave.slot(index, self.next.message);
        if sends {
            let wrong = ticket.number == 0 && shared.options.has(Planted::WrongSlot { nth: self.sent });
            slot = if wrong { !slot } else { slot };
            self.sent += 1;
            buffer.send(peer.index(), slot).map_err(link)?;
            shared.sent();
        } else {
            buffer.recv(peer.index(), slot).map_err(link)?;
        }
        let last = self.next.message + 1 == cut.messages();
        self.flying.push_back(Flying { buffer: Arc::new(buffer), body, sends, last });
        Ok(())
    }

    /// Blocks until a message is through, its connection breaks, or the wave is over.
    fn wait(&mut self, buffer: &Arc<Buffer>, sends: bool) -> Result<(), Trouble> {
        let limit = self.shared.options.has(Planted::ExpiringWait).then_some(Duration::from_millis(20));
        loop {
            self.waiting.enter(buffer, sends);
            // After the entry: who stops the lanes cancels what has entered by then.
            let ended = match self.shared.is_stopping() {
                true => Ok(Wait::Cancelled),
                false if sends => buffer.wait_send(limit),
                false => buffer.wait_recv(limit),
            };
            self.waiting.leave();
            match ended {
                Ok(Wait::Complete) => return Ok(()),
                Ok(Wait::Cancelled) if self.shared.is_stopping() => return Err(Trouble::Stopped),
                // A cancellation meant for an earlier wait.
                Ok(Wait::Cancelled) => {}
                Err(error) => {
                    let peer = self.parcels.front().map_or(self.shared.rank, |parcel| parcel.peer);
                    return Err(Trouble::Link { peer, cause: error.to_string() });
                }
            }
        }
    }

    /// The oldest message is through: unpacks it, and ends its expert with its last one.
    fn landed(&mut self) -> Result<(), Trouble> {
        let Some(Flying { buffer, body, sends, last }) = self.flying.pop_front() else { return Ok(()) };
        drop(buffer);
        let Some(parcel) = self.parcels.front_mut() else { return Ok(()) };
        let transfer = parcel.transfer;
        match (&mut parcel.hold, body) {
            (Hold::Landing(guard), Body::Packed(cell)) => {
                let cut = self.shared.cut.layer(transfer.layer);
                let (head, rest) = self.cells.bytes(cell)[..cut.packed_bytes()].split_at(HEADER_BYTES);
                let bytes = self.shared.expert_bytes(&transfer);
                let checked = header::check(head, &self.ticket.wave, &transfer, bytes);
                if !self.shared.options.has(Planted::HeaderIgnored) {
                    checked.map_err(|cause| Trouble::Link { peer: parcel.peer, cause })?;
                }
                if !self.shared.options.has(Planted::NotUnpacked) {
                    unpack(rest, cut, guard);
                }
            }
            (Hold::Landing(guard), Body::Gathered(cell, piece)) => {
                scatter(&self.cells.bytes(cell)[..piece.bytes], piece, guard);
            }
            (Hold::Source(_), _) | (_, Body::Straight) => {}
        }
        if let Body::Packed(cell) | Body::Gathered(cell, _) = body {
            self.cells.put(cell);
        }
        if last {
            if let (Some(Parcel { hold: Hold::Landing(mut guard), .. }), false) =
                (self.parcels.pop_front(), sends)
            {
                guard.set_content(Content::Expert(transfer.expert));
            }
            // The guard is gone.
            self.shared.transferred(self.ticket, &transfer);
        }
        Ok(())
    }
}

/// Where some bytes of a run begin, if they lie in it.
fn part(all: NonNull<[u8]>, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
    let end = offset.checked_add(bytes)?;
    // SAFETY: offset <= end <= the length, so the result is inside the run or one past it.
    (end <= all.len()).then(|| unsafe { all.cast::<u8>().add(offset) })
}

/// A rule of this file was broken.
fn lost(rank: RankId, transfer: &Transfer) -> CommError {
    let what = format!("a message for {} of {}", transfer.expert, transfer.layer);
    CommError::Panicked { rank, what, detail: "its place was lost".into() }
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
