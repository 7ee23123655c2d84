//! One direction of a wave on one lane: messages are posted in canonical order, a window of them at a time, and waited for in the same order.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use eplb_comm::{CommError, Place};
use eplb_core::{RankId, Transfer};
use gloo_sys::{Buffer, Wait};

use crate::cells::{Cell, Cells};
use crate::cut::{HEADER_BYTES, LayerCut, Piece};
use crate::header;
use crate::memory::{Hold, Load, Porter};
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
struct Parcel {
    transfer: Transfer,
    hold: Box<dyn Hold>,
    peer: RankId,
    sends: bool,
}

/// What a message carries.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// Header and small tensors, in a cell.
    Packed(Cell),
    /// A piece that lies in a cell because the network cannot use it in its place.
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

/// A wave being carried. Fields drop in their order: buffers, which end their operations, before the holds on places; cells belong to the lane, which
/// takes them back after the run is gone and what it began on a device has ended.
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
    porter: &'a mut dyn Porter,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        ticket: &'a GlooTicket,
        lane: usize,
        direction: Direction,
        (cells, porter): (&'a mut Cells, &'a mut dyn Porter),
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
            porter,
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

    /// Tells whether the wave must not go on.
    fn over(&self) -> impl Fn() -> bool + 'a {
        let (shared, ticket) = (self.shared, self.ticket);
        move || shared.is_stopping() || !ticket.may_go_on()
    }

    /// Posts the next message, or copies the next expert that stays on this rank. False: nothing is left, or no cell is free.
    fn post(&mut self) -> Result<bool, Trouble> {
        let Some(&index) = self.ticket.part(self.direction).get(self.next.own) else { return Ok(false) };
        let over = self.over();
        if over() {
            return Err(Trouble::Stopped);
        }
        let transfer = self.ticket.transfers[index];
        if transfer.is_local() {
            // It holds neither place any more when the wave counts as done: whoever sees that may use both.
            self.porter.copy(&transfer, &over)?;
            self.next.own += 1;
            self.shared.transferred(self.ticket, &transfer);
            return Ok(true);
        }
        let cut = self.shared.cut.layer(transfer.layer);
        let piece = self.next.message.checked_sub(1).map(|number| cut.pieces()[number]);
        let in_cell = match piece {
            None => true,
            Some(piece) => !self.goes_straight(&transfer, piece.tensor)?,
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

    /// Whether the network uses a tensor in its place, at this rank's end of a transfer.
    fn goes_straight(&mut self, transfer: &Transfer, tensor: usize) -> Result<bool, Trouble> {
        // Messages after the first find the expert's hold at the end of the queue.
        match self.parcels.back_mut() {
            Some(parcel) => Ok(parcel.hold.straight(tensor).is_some()),
            None => Err(Trouble::Own(lost(self.shared.rank, transfer))),
        }
    }

    /// Takes hold of the place of an expert.
    fn open(&mut self, transfer: Transfer) -> Result<(), Trouble> {
        let sends = transfer.source == self.shared.rank;
        let (place, read, peer) = match sends {
            true => (Place::source(&transfer), Some(transfer.expert), transfer.dest),
            false => (Place::landing(&transfer), None, transfer.source),
        };
        let hold = self.porter.open(place, read)?;
        self.parcels.push_back(Parcel { transfer, hold, peer, sends });
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
        let over = self.over();
        let Self { parcels, cells, shared, ticket, .. } = self;
        let Some(parcel) = parcels.back_mut() else {
            return Err(Trouble::Own(lost(shared.rank, &ticket.transfers[index])));
        };
        let (transfer, peer, sends) = (parcel.transfer, parcel.peer, parcel.sends);
        let (base, bytes, body) = match (piece, cell) {
            (None, Some(cell)) => {
                let bytes = cut.packed_bytes();
                let place = &mut cells.bytes(cell)[..bytes];
                if sends {
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
                    parcel.hold.pack(Load::Small(cut), rest, &over)?;
                }
                (NonNull::from(place).cast::<u8>(), bytes, Body::Packed(cell))
            }
            (Some(piece), Some(cell)) => {
                let place = &mut cells.bytes(cell)[..piece.bytes];
                if sends {
                    parcel.hold.pack(Load::Piece(piece), place, &over)?;
                }
                (NonNull::from(place).cast::<u8>(), piece.bytes, Body::Gathered(cell, piece))
            }
            (Some(piece), None) => {
                let all = parcel.hold.straight(piece.tensor);
                let base = all.and_then(|all| part(all, piece.offset, piece.bytes));
                let Some(base) = base else { return Err(Trouble::Own(lost(shared.rank, &transfer))) };
                (base, piece.bytes, Body::Straight)
            }
            (None, None) => return Err(Trouble::Own(lost(shared.rank, &transfer))),
        };
        let link = |error: gloo_sys::GlooError| Trouble::Link { peer, cause: error.to_string() };
        // SAFETY: the memory is that of a cell, which stays taken, or that of a place which stays held (`Hold::straight`), until
        // the message has landed or the run ends; the run drops its buffers before its holds, and the lane takes its cells back
        // after the run is gone. A hold to read keeps writers away for a send, one to write everyone for a receive. Nobody
        // touches a cell between here and `landed`: copies of a device to it have ended (`Hold::pack`).
        let buffer = unsafe { shared.mesh.context.buffer(base, bytes) }.map_err(link)?;
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
        let over = self.over();
        let Some(parcel) = self.parcels.front_mut() else { return Ok(()) };
        let transfer = parcel.transfer;
        match body {
            Body::Packed(cell) if !sends => {
                let cut = self.shared.cut.layer(transfer.layer);
                let (head, rest) = self.cells.bytes(cell)[..cut.packed_bytes()].split_at(HEADER_BYTES);
                let bytes = self.shared.expert_bytes(&transfer);
                let checked = header::check(head, &self.ticket.wave, &transfer, bytes);
                if !self.shared.options.has(Planted::HeaderIgnored) {
                    checked.map_err(|cause| Trouble::Link { peer: parcel.peer, cause })?;
                }
                if !self.shared.options.has(Planted::NotUnpacked) {
                    parcel.hold.unpack(Load::Small(cut), rest, &over)?;
                }
            }
            Body::Gathered(cell, piece) if !sends => {
                parcel.hold.unpack(Load::Piece(piece), &self.cells.bytes(cell)[..piece.bytes], &over)?;
            }
            Body::Packed(_) | Body::Gathered(..) | Body::Straight => {}
        }
        if let Body::Packed(cell) | Body::Gathered(cell, _) = body {
            self.cells.put(cell);
        }
        if last {
            if let Some(mut parcel) = self.parcels.pop_front()
                && !sends
            {
                parcel.hold.name(transfer.expert)?;
            }
            // The hold is gone.
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
