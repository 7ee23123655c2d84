//! What really lies in slots and staging, and who reads and writes it.

use std::collections::BTreeMap;

use eplb_core::{Placement, RankId};

use super::transport::Submission;

/// Content of a slot or of a place in staging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Never written.
    Nothing,
    /// All bytes of an expert of a layer.
    Expert { layer: usize, expert: i32 },
    /// Some bytes of this and some of that.
    Torn,
}

#[derive(Debug, Clone)]
struct Cell {
    content: Content,
    /// Counts beginnings and ends of writes: equal versions at two times mean that nothing was written in between.
    version: u64,
    readers: usize,
    writers: usize,
}

/// Slots of all ranks, and each rank's staging.
#[derive(Debug)]
pub(super) struct Memory {
    slots: usize,
    cells: Vec<Cell>,
    /// By rank and offset: what lies there, and what brought it.
    staging: BTreeMap<(RankId, usize), (Content, Submission)>,
    /// Bytes that an expert takes in staging.
    staged_bytes: usize,
}

impl Memory {
    pub(super) fn new(placement: &Placement, staged_bytes: usize) -> Self {
        let slots = placement.slots();
        let phy2log = placement.phy2log();
        let cells = phy2log.indexed_iter().map(|((layer, _), &expert)| Cell {
            content: if expert < 0 { Content::Nothing } else { Content::Expert { layer, expert } },
            version: 0,
            readers: 0,
            writers: 0,
        });
        Self { slots, cells: cells.collect(), staging: BTreeMap::new(), staged_bytes }
    }

    fn cell(&mut self, layer: usize, slot: usize) -> &mut Cell {
        &mut self.cells[layer * self.slots + slot]
    }

    pub(super) fn content(&self, layer: usize, slot: usize) -> Content {
        self.cells[layer * self.slots + slot].content
    }

    pub(super) fn version(&self, layer: usize, slot: usize) -> u64 {
        self.cells[layer * self.slots + slot].version
    }

    /// Versions of all slots, layer by layer.
    pub(super) fn versions(&self) -> Vec<u64> {
        self.cells.iter().map(|cell| cell.version).collect()
    }

    /// Begins to read a slot; returns what to give to [`Memory::end_read`].
    pub(super) fn begin_read(&mut self, layer: usize, slot: usize) -> u64 {
        let cell = self.cell(layer, slot);
        cell.readers += 1;
        cell.version
    }

    /// Ends reading; returns what was read.
    pub(super) fn end_read(&mut self, layer: usize, slot: usize, begun: u64) -> Content {
        let cell = self.cell(layer, slot);
        cell.readers -= 1;
        if cell.version == begun { cell.content } else { Content::Torn }
    }

    /// Begins to write a slot from elsewhere: what was there is gone. False if somebody reads it.
    #[must_use]
    pub(super) fn begin_write(&mut self, layer: usize, slot: usize) -> bool {
        let cell = self.cell(layer, slot);
        cell.content = Content::Torn;
        cell.writers += 1;
        self.touch(layer, slot)
    }

    /// Whether a write to the slot is under way.
    pub(super) fn is_written(&self, layer: usize, slot: usize) -> bool {
        self.cells[layer * self.slots + slot].writers > 0
    }

    /// A commit begins to write a slot.
    pub(super) fn begin_commit(&mut self, layer: usize, slot: usize) {
        self.cell(layer, slot).writers += 1;
    }

    /// A commit that writes the slot begins; what was there may be read by the commit itself, in its own order. False
    /// if somebody else reads it.
    #[must_use]
    pub(super) fn touch(&mut self, layer: usize, slot: usize) -> bool {
        let cell = self.cell(layer, slot);
        cell.version += 1;
        cell.readers == 0
    }

    pub(super) fn end_write(&mut self, layer: usize, slot: usize, content: Content) {
        let cell = self.cell(layer, slot);
        cell.version += 1;
        cell.writers = cell.writers.saturating_sub(1);
        cell.content = content;
    }

    /// Writes a place in staging; what overlapped it is gone.
    pub(super) fn stage(&mut self, rank: RankId, offset: usize, content: Content, by: Submission) {
        for (at, by) in self.staged_near(rank, offset) {
            self.staging.insert((rank, at), (Content::Torn, by));
        }
        self.staging.insert((rank, offset), (content, by));
    }

    /// Places in staging that an expert at `offset` overlaps, and what brought their content.
    pub(super) fn staged_near(&self, rank: RankId, offset: usize) -> Vec<(usize, Submission)> {
        let near = offset.saturating_sub(self.staged_bytes - 1)..offset + self.staged_bytes;
        let over = self.staging.range((rank, near.start)..(rank, near.end));
        over.map(|(&(_, at), &(_, by))| (at, by)).collect()
    }

    pub(super) fn staged(&self, rank: RankId, offset: usize) -> Content {
        self.staging.get(&(rank, offset)).map_or(Content::Nothing, |&(content, _)| content)
    }
}
