//! Memory for messages that must be packed: made once, handed out and taken back.

use eplb_comm::CommError;
use eplb_core::RankId;

/// Number of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell(usize);

/// The cells of one lane, all of one size.
#[derive(Debug)]
pub(crate) struct Cells {
    cells: Vec<Box<[u8]>>,
    free: Vec<usize>,
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
        Ok(Self { cells, free: (0..count).collect() })
    }

    /// A cell, if one is free.
    pub(crate) fn take(&mut self) -> Option<Cell> {
        self.free.pop().map(Cell)
    }

    /// Back after [`Cells::take`], when no operation is left on it.
    pub(crate) fn put(&mut self, cell: Cell) {
        self.free.push(cell.0);
    }

    pub(crate) fn bytes(&mut self, cell: Cell) -> &mut [u8] {
        &mut self.cells[cell.0]
    }

    /// Takes back all cells, when no operation is left on any.
    pub(crate) fn reset(&mut self) {
        self.free = (0..self.cells.len()).collect();
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
