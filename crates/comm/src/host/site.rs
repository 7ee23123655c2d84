//! Places of a memory, checked and found.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{MutexGuard, PoisonError};

use eplb_core::{LayerId, LayerLayout};

use super::content::{Content, Generation, Tag};
use super::lock::SlotLock;
use super::memory::HostMemory;
use super::staging::StagingBook;
use crate::error::CommError;
use crate::memory::{Extent, Located, Place};

/// A checked place: inside the memory that it was resolved for.
#[derive(Debug, Clone)]
pub(super) enum Site {
    Slot { layer: LayerId, local: usize },
    Staging { layer: LayerId, range: Range<usize> },
}

/// Where one tensor of one place lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) base: NonNull<u8>,
    pub(super) rows: usize,
    pub(super) row_bytes: usize,
    pub(super) pitch: usize,
}

impl View {
    /// Whether its rows follow each other without gaps.
    pub(super) fn is_gapless(&self) -> bool {
        self.rows == 1 || self.pitch == self.row_bytes
    }
}

impl HostMemory {
    /// Finds a place.
    ///
    /// # Errors
    /// It does not exist; the reason says what there is.
    pub(super) fn resolve(&self, place: Place) -> Result<Site, CommError> {
        let extent = Extent { rank: self.rank, slots: self.slots.clone(), staging_bytes: self.staging_bytes };
        Ok(match extent.locate(&self.layout, place)? {
            Located::Slot { layer, local } => Site::Slot { layer, local },
            Located::Staging { layer, offset, bytes } => {
                Site::Staging { layer, range: offset..offset + bytes }
            }
        })
    }

    /// Lock of a slot that was resolved.
    fn lock(&self, layer: LayerId, local: usize) -> &SlotLock {
        &self.locks[layer.index() * self.slots.len() + local]
    }

    /// Tag of a slot that was resolved.
    fn tag(&self, layer: LayerId, local: usize) -> &Tag {
        self.tags.get(layer.index() * self.slots.len() + local)
    }

    /// Held for a few instructions; a panic under it leaves the list of accesses whole.
    fn book(&self) -> MutexGuard<'_, StagingBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a place as a reader, or says who is in the way.
    pub(super) fn enter_read(&self, site: &Site) -> Result<(), String> {
        match site {
            Site::Slot { layer, local } => self.lock(*layer, *local).try_read(),
            Site::Staging { range, .. } => self.book().try_read(range.clone()),
        }
    }

    /// Enters a place as the writer, or says who is in the way.
    pub(super) fn enter_write(&self, site: &Site) -> Result<(), String> {
        match site {
            Site::Slot { layer, local } => self.lock(*layer, *local).try_write(),
            Site::Staging { range, .. } => self.book().try_write(range.clone()),
        }
    }

    /// For the read guard, when it is dropped.
    pub(super) fn leave_read(&self, site: &Site) {
        match site {
            Site::Slot { layer, local } => self.lock(*layer, *local).leave_read(),
            Site::Staging { range, .. } => self.book().leave(range),
        }
    }

    /// For the write guard, when it is dropped.
    pub(super) fn leave_write(&self, site: &Site) {
        match site {
            Site::Slot { layer, local } => self.lock(*layer, *local).leave_write(),
            Site::Staging { range, .. } => self.book().leave(range),
        }
    }

    pub(super) fn content_at(&self, site: &Site) -> (Content, Generation) {
        match site {
            Site::Slot { layer, local } => self.tag(*layer, *local).get(),
            Site::Staging { layer, range } => self.book().content(*layer, range),
        }
    }

    /// For the holder of the write guard: content unknown, next generation.
    pub(super) fn begin_write(&self, site: &Site) {
        match site {
            Site::Slot { layer, local } => self.tag(*layer, *local).begin_write(),
            Site::Staging { layer, range } => self.book().begin_write(*layer, range),
        }
    }

    /// For the holder of the write guard.
    pub(super) fn set_content(&self, site: &Site, content: Content) {
        match site {
            Site::Slot { layer, local } => self.tag(*layer, *local).set(content),
            Site::Staging { range, .. } => self.book().set(range, content),
        }
    }

    pub(super) fn layer(&self, site: &Site) -> &LayerLayout {
        let (Site::Slot { layer, .. } | Site::Staging { layer, .. }) = site;
        self.layout.layer(*layer)
    }

    /// Where a tensor of a place lies: rows inside one region, of a place that no other overlaps. Panics if the
    /// layer has no such tensor.
    pub(super) fn view(&self, site: &Site, tensor: usize) -> View {
        let layout = &self.layer(site).tensors()[tensor];
        let (rows, row_bytes) = (layout.rows, layout.row_bytes);
        let (region, offset, pitch) = match site {
            Site::Slot { layer, local } => {
                (&self.blocks[layer.index()][tensor], local * layout.slot_stride, layout.pitch)
            }
            Site::Staging { range, .. } => {
                let inside = self.layer(site).staging_offsets()[tensor];
                (self.staging.as_ref(), range.start + inside, row_bytes)
            }
        };
        let span = (rows - 1) * pitch + row_bytes;
        match region.at(offset, span) {
            Some(base) => View { base, rows, row_bytes, pitch },
            // Regions span all local slots and all of staging, and sites are resolved against both.
            None => unreachable!("a resolved place lies in its region"),
        }
    }
}
