//! Cutting a wave into groups, alike on every rank.
//!
//! A large tensor without gaps on both sides is one message, sent from where it lies to where it lands. All the rest of an expert, that
//! is small tensors and rows with gaps, is gathered into one message for its peer (several, where it is larger than a piece): a
//! message of NCCL's costs some microseconds whatever it holds. A group ends before any rank has too many operations in it, or
//! too many bytes to pack; both are counted for all ranks, so that every rank ends its groups at the same messages.

use eplb_core::{RankId, Transfer};

use crate::peers::Peers;

/// Most bytes that are gathered into one message; a longer row travels by itself.
const PIECE_BYTES: usize = 4 << 20;

/// Rows of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) tensor: usize,
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// Where it begins in a message that is packed.
    pub(crate) offset: usize,
}

/// A message between two ranks: rows of one transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// Number of the transfer in the wave.
    pub(crate) transfer: usize,
    /// At least one; exactly one unless packed.
    pub(crate) parts: Vec<Part>,
    /// Bytes sent.
    pub(crate) bytes: usize,
    /// Whether it takes room in the pack block, on both sides: a side where it is one run of bytes need not use it.
    pub(crate) packed: bool,
}

impl Message {
    /// Bytes that it takes of the pack block.
    pub(crate) fn room(&self) -> usize {
        if self.packed { self.bytes.next_multiple_of(PACK_ALIGN) } else { 0 }
    }
}

/// Limits of a group, for each rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) operations: usize,
    /// In each direction.
    pub(crate) pack_bytes: usize,
    /// Tensors of fewer bytes are gathered.
    pub(crate) gather_below: usize,
}

/// Least bytes to pack per direction: a piece must fit.
pub(crate) fn least_pack_bytes() -> usize {
    PIECE_BYTES.next_multiple_of(PACK_ALIGN)
}

/// Alignment of a packed piece, in bytes.
pub(crate) const PACK_ALIGN: usize = 256;

/// Alignment of a part in it: the widest word of the kernel that copies rows.
pub(crate) const PART_ALIGN: usize = 16;

/// The messages of a wave, group by group: those between ranks, in the order of the wave. Every rank gets the same.
pub(crate) fn groups(peers: &Peers, transfers: &[Transfer], limits: Limits) -> Vec<Vec<Message>> {
    let mut cutter =
        Cutter { limits, used: vec![Used::default(); peers.len()], groups: Vec::new(), open: Vec::new() };
    for (number, transfer) in transfers.iter().enumerate().filter(|(_, transfer)| !transfer.is_local()) {
        let mut parcel = Parcel { transfer: number, parts: Vec::new(), bytes: 0, runs: true };
        for (tensor, shape) in peers.layout().layer(transfer.layer).tensors().iter().enumerate() {
            let gaps = peers.has_gaps(transfer, tensor);
            let (bytes, whole) =
                (shape.rows * shape.row_bytes, Part { tensor, first_row: 0, rows: shape.rows, offset: 0 });
            if !gaps && (bytes >= limits.gather_below || bytes > PIECE_BYTES) {
                cutter.add(transfer, alone(number, whole, bytes));
                continue;
            }
            if shape.row_bytes > PIECE_BYTES {
                for first_row in 0..shape.rows {
                    let part = Part { first_row, rows: 1, ..whole };
                    cutter.add(transfer, alone(number, part, shape.row_bytes));
                }
                continue;
            }
            let mut first_row = 0;
            while first_row < shape.rows {
                let fit = parcel.room() / shape.row_bytes.max(1);
                // Rows without gaps stay together: they are one run for whoever has no need to pack.
                let want = shape.rows - first_row;
                if fit == 0 || (!gaps && fit < want) {
                    cutter.close_parcel(transfer, &mut parcel);
                    continue;
                }
                let rows = fit.min(want);
                parcel.push(Part { first_row, rows, ..whole }, shape.row_bytes, gaps && rows > 1);
                first_row += rows;
            }
        }
        cutter.close_parcel(transfer, &mut parcel);
    }
    cutter.close();
    cutter.groups
}

/// A message that is one run of bytes on both sides.
fn alone(transfer: usize, part: Part, bytes: usize) -> Message {
    Message { transfer, parts: vec![part], bytes, packed: false }
}

/// What is gathered of a transfer.
struct Parcel {
    transfer: usize,
    parts: Vec<Part>,
    bytes: usize,
    /// Whether no part has gaps on any side.
    runs: bool,
}

impl Parcel {
    /// Bytes that still fit.
    fn room(&self) -> usize {
        PIECE_BYTES.saturating_sub(self.bytes.next_multiple_of(PART_ALIGN))
    }

    fn push(&mut self, part: Part, row_bytes: usize, gaps: bool) {
        let offset = self.bytes.next_multiple_of(PART_ALIGN);
        self.parts.push(Part { offset, ..part });
        self.bytes = offset + part.rows * row_bytes;
        self.runs &= !gaps;
    }
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
    /// Adds what has been gathered, and begins anew.
    fn close_parcel(&mut self, transfer: &Transfer, parcel: &mut Parcel) {
        let parts = std::mem::take(&mut parcel.parts);
        let bytes = std::mem::take(&mut parcel.bytes);
        let runs = std::mem::replace(&mut parcel.runs, true);
        // A single run needs no packing on either side.
        let packed = parts.len() > 1 || !runs;
        if !parts.is_empty() {
            self.add(transfer, Message { transfer: parcel.transfer, parts, bytes, packed });
        }
    }

    fn add(&mut self, transfer: &Transfer, message: Message) {
        let room = message.room();
        let used = |rank: RankId| self.used[rank.index()];
        let full =
            [transfer.source, transfer.dest].map(used).iter().any(|u| u.operations >= self.limits.operations)
                || used(transfer.source).packed_out + room > self.limits.pack_bytes
                || used(transfer.dest).packed_in + room > self.limits.pack_bytes;
        if full {
            self.close();
        }
        let source = &mut self.used[transfer.source.index()];
        source.operations += 1;
        source.packed_out += room;
        let dest = &mut self.used[transfer.dest.index()];
        dest.operations += 1;
        dest.packed_in += room;
        self.open.push(message);
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.groups.push(std::mem::take(&mut self.open));
            self.used.fill(Used::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use eplb_core::{ExpertId, Landing, LayerId, ModelLayout, SlotId, TensorLayout};

    use super::*;

    const LIMITS: Limits = Limits { operations: 256, pack_bytes: 16 << 20, gather_below: 1 << 20 };

    fn tensor(number: usize, rows: usize, row_bytes: usize, gap: usize) -> TensorLayout {
        let pitch = row_bytes + gap;
        TensorLayout { name: format!("t{number}"), rows, row_bytes, pitch, slot_stride: rows * pitch }
    }

    /// Three ranks with four slots each of one layer; each sends two experts to the next one.
    fn case(tensors: &[TensorLayout]) -> (Peers, Vec<Transfer>) {
        let layout = Arc::new(ModelLayout::new(vec![tensors.to_vec()]).unwrap());
        let gaps = vec![tensors.iter().map(|t| t.rows > 1 && t.pitch != t.row_bytes).collect()];
        let transfer = |n: u32| Transfer {
            layer: LayerId(0),
            expert: ExpertId(n),
            source: RankId(n % 3),
            source_slot: SlotId(4 * (n % 3) + n / 3),
            dest: RankId((n + 1) % 3),
            dest_slot: SlotId(4 * ((n + 1) % 3) + 2 + n / 3),
            landing: Landing::InPlace,
        };
        (Peers::of(layout, 4, &[gaps.clone(), gaps.clone(), gaps]), (0..6).map(transfer).collect())
    }

    /// Every row of every tensor of every transfer travels once, in pieces that fit and do not meet; groups keep the limits.
    fn check(peers: &Peers, transfers: &[Transfer], limits: Limits) -> Vec<Vec<Message>> {
        let groups = groups(peers, transfers, limits);
        let tensors = peers.layout().layer(LayerId(0)).tensors().to_vec();
        let mut seen: Vec<Vec<Vec<usize>>> =
            transfers.iter().map(|_| tensors.iter().map(|t| vec![0; t.rows]).collect()).collect();
        for group in &groups {
            let mut used = vec![Used::default(); peers.len()];
            for message in group {
                let mut end = 0;
                for part in &message.parts {
                    assert!(part.offset >= end && part.offset % PART_ALIGN == 0, "{message:?}");
                    end = part.offset + part.rows * tensors[part.tensor].row_bytes;
                    for row in part.first_row..part.first_row + part.rows {
                        seen[message.transfer][part.tensor][row] += 1;
                    }
                }
                assert_eq!(message.bytes, end);
                assert!(!message.packed || end <= PIECE_BYTES);
                let one_run = message.parts.len() == 1 && {
                    let (part, shape) = (message.parts[0], &tensors[message.parts[0].tensor]);
                    part.rows == 1 || shape.pitch == shape.row_bytes
                };
                assert_eq!(message.packed, !one_run, "{message:?}");
                let transfer = &transfers[message.transfer];
                used[transfer.source.index()].operations += 1;
                used[transfer.source.index()].packed_out += message.room();
                used[transfer.dest.index()].operations += 1;
                used[transfer.dest.index()].packed_in += message.room();
            }
            for used in used {
                assert!(used.operations <= limits.operations);
                assert!(used.packed_out <= limits.pack_bytes && used.packed_in <= limits.pack_bytes);
            }
        }
        assert!(seen.iter().flatten().flatten().all(|&times| times == 1));
        groups
    }

    #[test]
    fn small_tensors_share_a_message_and_large_ones_go_from_where_they_lie() {
        let expert = [
            tensor(0, 4096, 7168, 0),
            tensor(1, 2048, 7168, 0),
            tensor(2, 1, 7168, 0),
            tensor(3, 1, 3584, 0),
        ];
        let (peers, transfers) = case(&expert);
        let groups = check(&peers, &transfers, LIMITS);
        assert_eq!(groups.len(), 1);
        let mine: Vec<_> = groups[0].iter().filter(|message| message.transfer == 0).collect();
        assert_eq!(mine.iter().map(|message| message.parts.len()).collect::<Vec<_>>(), [1, 1, 2]);
        assert_eq!(
            mine.iter().map(|message| message.bytes).sum::<usize>(),
            4096 * 7168 + 2048 * 7168 + 10752
        );
        // An expert of small tensors alone is one message, and a single tensor needs no room at all.
        let (peers, transfers) = case(&[tensor(0, 3, 1001, 0), tensor(1, 1, 7, 0), tensor(2, 8, 64, 32)]);
        assert_eq!(check(&peers, &transfers, LIMITS)[0].len(), transfers.len());
        let (peers, transfers) = case(&[tensor(0, 3, 1001, 0)]);
        assert!(check(&peers, &transfers, LIMITS)[0].iter().all(|message| message.room() == 0));
        // Unless nothing is to be gathered.
        let (peers, transfers) = case(&[tensor(0, 3, 1001, 0), tensor(1, 1, 7, 0)]);
        let apart = Limits { gather_below: 0, ..LIMITS };
        assert_eq!(check(&peers, &transfers, apart)[0].len(), 2 * transfers.len());
    }

    #[test]
    fn every_row_travels_once_whatever_the_shapes() {
        let mut random = 7u64;
        let mut next = |most: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % most
        };
        for _ in 0..300 {
            let tensors: Vec<_> = (0..1 + next(5) as usize)
                .map(|n| {
                    let row_bytes = [1, 17, 4096, 100_000, PIECE_BYTES, PIECE_BYTES + 1][next(6) as usize];
                    tensor(n, 1 + next(20) as usize, row_bytes, [0, 0, 16, 5][next(4) as usize])
                })
                .collect();
            let (peers, transfers) = case(&tensors);
            let limits = Limits {
                operations: 1 + next(12) as usize,
                pack_bytes: least_pack_bytes() * (1 + next(3) as usize),
                gather_below: [0, 5000, usize::MAX][next(3) as usize],
            };
            check(&peers, &transfers, limits);
        }
    }
}
