//! Memory for messages that must be packed: made once, handed out and taken back.

use eplb_comm::CommError;
use eplb_core::RankId;
use eplb_cuda::PinnedBlock;

/// Number of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell(usize);

/// The cells of one lane, all of one size.
#[derive(Debug)]
pub(crate) struct Cells {
    memory: Packing,
    count: usize,
    free: Vec<usize>,
}

#[derive(Debug)]
enum Packing {
    Own(Vec<Box<[u8]>>),
    /// One after another in memory that devices copy from and to, so many bytes each.
    Pinned(PinnedBlock, usize),
}

impl Cells {
    pub(crate) fn new(rank: RankId, count: usize, bytes: usize) -> Result<Self, CommError> {
        let missing = || CommError::NoMemory { rank, what: "packing messages".into(), bytes: count * bytes };
        let mut cells = Vec::new();
        for _ in 0..count {
            let mut cell = Vec::new();
            cell.try_reserve_exact(bytes).map_err(|_| missing())?;
            // Written, so that its pages are there before the first wave.
            cell.resize(bytes, 0xa5);
            cells.push(cell.into_boxed_slice());
        }
        Ok(Self { memory: Packing::Own(cells), count, free: (0..count).collect() })
    }

    /// Cells of `bytes` bytes in a block of `count` times as many.
    pub(crate) fn pinned(block: PinnedBlock, count: usize, bytes: usize) -> Self {
        assert!(count * bytes <= block.bytes(), "{count} cells of {bytes} bytes in {} bytes", block.bytes());
        Self { memory: Packing::Pinned(block, bytes), count, free: (0..count).collect() }
    }

    /// A cell, if one is free.
    pub(crate) fn take(&mut self) -> Option<Cell> {
        self.free.pop().map(Cell)
    }

    /// Back after [`Cells::take`], when no operation is left on it.
    pub(crate) fn put(&mut self, cell: Cell) {
        self.free.push(cell.0);
    }

    /// The bytes of a cell. No operation and no copy of a device may be using them.
    pub(crate) fn bytes(&mut self, cell: Cell) -> &mut [u8] {
        match &mut self.memory {
            Packing::Own(cells) => &mut cells[cell.0],
            Packing::Pinned(block, bytes) => {
                assert!(cell.0 < self.count, "cell {} of {}", cell.0, self.count);
                // SAFETY: cells lie in the block, as `pinned` has made sure of, apart from each other; the block's bytes are initialised and its
                // own; the borrow keeps the host's other accesses out, and callers those of devices and of the network.
                unsafe { std::slice::from_raw_parts_mut(block.base().add(cell.0 * *bytes), *bytes) }
            }
        }
    }

    /// Takes back all cells, when no operation is left on any.
    pub(crate) fn reset(&mut self) {
        self.free = (0..self.count).collect();
    }
}

/// How many cells a lane gets and of how many bytes: as many as the window wants and the budget has room for, at least two.
pub(crate) fn size(largest: usize, window: usize, lanes: usize, budget: usize) -> (usize, usize) {
    let bytes = largest.next_multiple_of(64);
    let room = budget / lanes.max(1) / bytes.max(1);
    (room.min(window).max(2), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_keep_within_the_budget_or_are_two() {
        assert_eq!(size(65, 16, 2, 1 << 20), (16, 128));
        assert_eq!(size(4 << 20, 16, 2, 32 << 20), (4, 4 << 20));
        assert_eq!(size(4 << 20, 16, 2, 0), (2, 4 << 20));
    }

    #[test]
    fn what_is_taken_is_not_free() {
        let mut cells = Cells::new(RankId(0), 2, 8).unwrap();
        let (a, b) = (cells.take().unwrap(), cells.take().unwrap());
        assert!(a != b && cells.take().is_none());
        cells.put(a);
        assert_eq!(cells.take(), Some(a));
        cells.reset();
        assert!(cells.take().is_some() && cells.take().is_some() && cells.take().is_none());
    }
}
