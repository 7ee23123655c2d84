//! Cutting a wave into groups, alike on every rank.
//!
//! A tensor without gaps on both sides is one message. Where a side has gaps, the rows go in pieces: a long row by itself, short
//! rows some at a time, packed by the side that has the gaps. A group ends before any rank has too many operations in it, or
//! too many bytes to pack; both are counted for all ranks, so that every rank ends its groups at the same messages.

use eplb_core::{RankId, Transfer};

use crate::peers::Peers;

/// Rows are packed up to about this many bytes; longer rows travel by themselves.
const PIECE_BYTES: usize = 1 << 20;

/// Some rows of one tensor of a transfer between two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    /// Number of the transfer in the wave.
    pub(crate) transfer: usize,
    pub(crate) tensor: usize,
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// Whether a side with gaps packs it.
    pub(crate) packed: bool,
}

/// Limits of a group, for each rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) operations: usize,
    /// In each direction.
    pub(crate) pack_bytes: usize,
}

/// Least bytes to pack per direction: a piece must fit.
pub(crate) fn least_pack_bytes() -> usize {
    PIECE_BYTES.next_multiple_of(PACK_ALIGN)
}

/// Alignment of a packed piece, in bytes.
pub(crate) const PACK_ALIGN: usize = 256;

/// The messages of a wave, group by group: those between ranks, in the order of the wave. Every rank gets the same.
pub(crate) fn groups(peers: &Peers, transfers: &[Transfer], limits: Limits) -> Vec<Vec<Message>> {
    let mut cutter =
        Cutter { limits, used: vec![Used::default(); peers.len()], groups: Vec::new(), open: Vec::new() };
    for (number, transfer) in transfers.iter().enumerate().filter(|(_, transfer)| !transfer.is_local()) {
        for (tensor, shape) in peers.layout().layer(transfer.layer).tensors().iter().enumerate() {
            let whole = Message { transfer: number, tensor, first_row: 0, rows: shape.rows, packed: false };
            if !peers.has_gaps(transfer, tensor) {
                cutter.add(transfer, whole, shape.row_bytes);
                continue;
            }
            let rows = (PIECE_BYTES / shape.row_bytes).clamp(1, shape.rows);
            for first_row in (0..shape.rows).step_by(rows) {
                let rows = rows.min(shape.rows - first_row);
                cutter.add(transfer, Message { first_row, rows, packed: rows > 1, ..whole }, shape.row_bytes);
            }
        }
    }
    cutter.close();
    cutter.groups
}

/// What a rank has in the open group.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    operations: usize,
    packed_out: usize,
    packed_in: usize,
}

struct Cutter {
    limits: Limits,
    used: Vec<Used>,
    groups: Vec<Vec<Message>>,
    open: Vec<Message>,
}

impl Cutter {
    fn add(&mut self, transfer: &Transfer, message: Message, row_bytes: usize) {
        let bytes = match message.packed {
            true => (message.rows * row_bytes).next_multiple_of(PACK_ALIGN),
            false => 0,
        };
        let used = |rank: RankId| self.used[rank.index()];
        let full =
            [transfer.source, transfer.dest].map(used).iter().any(|u| u.operations >= self.limits.operations)
                || used(transfer.source).packed_out + bytes > self.limits.pack_bytes
                || used(transfer.dest).packed_in + bytes > self.limits.pack_bytes;
        if full {
            self.close();
        }
        let source = &mut self.used[transfer.source.index()];
        source.operations += 1;
        source.packed_out += bytes;
        let dest = &mut self.used[transfer.dest.index()];
        dest.operations += 1;
        dest.packed_in += bytes;
        self.open.push(message);
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.groups.push(std::mem::take(&mut self.open));
            self.used.fill(Used::default());
        }
    }
}
