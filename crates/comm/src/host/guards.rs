//! Access to the bytes of one place.

use std::ptr::NonNull;
use std::sync::Arc;

use eplb_core::{ExpertId, LayerLayout};

use super::content::{Content, Generation};
use super::memory::HostMemory;
use super::site::{Site, View};
use crate::error::CommError;
use crate::memory::Place;

/// Read access to a place: nobody writes it while this lives.
#[derive(Debug)]
pub struct ReadGuard {
    memory: Arc<HostMemory>,
    place: Place,
    site: Site,
}

/// Write access to a place: nobody else reads or writes it while this lives.
#[derive(Debug)]
pub struct WriteGuard {
    memory: Arc<HostMemory>,
    place: Place,
    site: Site,
    begun: bool,
}

impl ReadGuard {
    pub(super) fn new(memory: Arc<HostMemory>, place: Place, site: Site) -> Self {
        Self { memory, place, site }
    }

    /// The place.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Tensors of the place's layer.
    pub fn layout(&self) -> &LayerLayout {
        self.memory.layer(&self.site)
    }

    /// What the place holds, and how often it was written.
    pub fn content(&self) -> (Content, Generation) {
        self.memory.content_at(&self.site)
    }

    /// Checks that the place holds an expert.
    ///
    /// # Errors
    /// It holds something else.
    pub fn expect(&self, expert: ExpertId) -> Result<(), CommError> {
        let (found, _) = self.content();
        if found == Content::Expert(expert) {
            return Ok(());
        }
        Err(CommError::WrongContent {
            rank: self.memory.rank(),
            place: self.place,
            found: found.to_string(),
            expected: expert,
        })
    }

    /// The rows of a tensor. Panics if the layer has no such tensor.
    pub fn rows(&self, tensor: usize) -> impl ExactSizeIterator<Item = &[u8]> {
        let view = self.view(tensor);
        (0..view.rows).map(move |row| {
            // SAFETY: rows 0..rows of a view lie inside one live region (HostMemory::view), all bytes of which are
            // initialised; the lock that this guard holds keeps every writer out while the guard, which the slice
            // borrows, lives.
            unsafe { std::slice::from_raw_parts(view.base.as_ptr().add(row * view.pitch), view.row_bytes) }
        })
    }

    /// All rows of a tensor as one slice, where they lie without gaps. Panics if the layer has no such tensor.
    pub fn whole(&self, tensor: usize) -> Option<&[u8]> {
        let view = self.view(tensor);
        // SAFETY: as in `rows`; without gaps the rows fill `rows * row_bytes` bytes of the region.
        let slice = || unsafe { std::slice::from_raw_parts(view.base.as_ptr(), view.rows * view.row_bytes) };
        view.is_gapless().then(slice)
    }

    pub(super) fn view(&self, tensor: usize) -> View {
        self.memory.view(&self.site, tensor)
    }
}

impl Drop for ReadGuard {
    fn drop(&mut self) {
        self.memory.leave_read(&self.site);
    }
}

impl WriteGuard {
    pub(super) fn new(memory: Arc<HostMemory>, place: Place, site: Site) -> Self {
        Self { memory, place, site, begun: false }
    }

    /// The place.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Tensors of the place's layer.
    pub fn layout(&self) -> &LayerLayout {
        self.memory.layer(&self.site)
    }

    /// What the place holds, and how often it was written.
    pub fn content(&self) -> (Content, Generation) {
        self.memory.content_at(&self.site)
    }

    /// The rows of a tensor, to be written: the content is unknown from now on, until
    /// [`WriteGuard::set_content`]. Panics if the layer has no such tensor.
    pub fn rows_mut(&mut self, tensor: usize) -> impl ExactSizeIterator<Item = &mut [u8]> {
        self.begin();
        let view = self.view(tensor);
        (0..view.rows).map(move |row| {
            // SAFETY: rows 0..rows of a view lie inside one live region (HostMemory::view), all bytes of which are
            // initialised, and do not overlap (pitch >= row_bytes where there is more than one row, checked by
            // ModelLayout::new); each is given out once. The lock that this guard holds keeps everyone else out while
            // the guard, which the slice borrows mutably, lives.
            unsafe {
                std::slice::from_raw_parts_mut(view.base.as_ptr().add(row * view.pitch), view.row_bytes)
            }
        })
    }

    /// All rows of a tensor as one slice to be written, where they lie without gaps: the content is unknown from now
    /// on. Panics if the layer has no such tensor.
    pub fn whole_mut(&mut self, tensor: usize) -> Option<&mut [u8]> {
        self.begin();
        let view = self.view(tensor);
        // SAFETY: as in `rows_mut`; without gaps the rows fill `rows * row_bytes` bytes of the region.
        let slice =
            || unsafe { std::slice::from_raw_parts_mut(view.base.as_ptr(), view.rows * view.row_bytes) };
        view.is_gapless().then(slice)
    }

    /// Where all rows of a tensor lie, if without gaps, for something that is not this program's own code to write them while the guard is
    /// held: unlike [`WriteGuard::whole_mut`] it may be asked for again while parts are being written. The content is unknown from now on.
    /// Panics if the layer has no such tensor.
    pub fn landing(&mut self, tensor: usize) -> Option<NonNull<[u8]>> {
        self.begin();
        let view = self.view(tensor);
        view.is_gapless().then(|| NonNull::slice_from_raw_parts(view.base, view.rows * view.row_bytes))
    }

    /// States what was written. A write after it makes the content unknown again.
    pub fn set_content(&mut self, content: Content) {
        self.memory.set_content(&self.site, content);
        self.begun = false;
    }

    /// The content is unknown from now on.
    pub(super) fn begin(&mut self) {
        if !self.begun {
            self.memory.begin_write(&self.site);
            self.begun = true;
        }
    }

    pub(super) fn memory(&self) -> &HostMemory {
        &self.memory
    }

    pub(super) fn view(&self, tensor: usize) -> View {
        self.memory.view(&self.site, tensor)
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        self.memory.leave_write(&self.site);
    }
}
