//! A piece of raw memory, owned or borrowed.

use std::alloc::{self, Layout};
use std::ptr::NonNull;
#[cfg(target_os = "linux")]
use std::sync::Arc;

#[cfg(target_os = "linux")]
use super::shared::Segment;

/// Alignment of owned memory, in bytes: a cache line, so that ranks' buffers never share one.
pub(super) const ALIGN: usize = 64;

/// Bytes that live as long as the region. Nothing here touches them: guards do.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    bytes: usize,
    owned: Option<Layout>,
    /// The segment that it is a part of, which keeps it mapped.
    #[cfg(target_os = "linux")]
    _segment: Option<Arc<Segment>>,
}

// SAFETY: a region only stores an address. It owns what it frees, and all access to the bytes goes through guards,
// which keep readers and writers of a place apart.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives nothing but an address and a length.
unsafe impl Sync for Region {}

impl Region {
    /// Zeroed memory, or `None` if there is not that much.
    pub(crate) fn allocate(bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes, ALIGN).ok()?;
        if bytes == 0 {
            return Some(Self::plain(NonNull::dangling(), bytes, None));
        }
        // SAFETY: the layout has a size above 0, tested just before.
        let base = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        Some(Self::plain(base, bytes, Some(layout)))
    }

    fn plain(base: NonNull<u8>, bytes: usize, owned: Option<Layout>) -> Self {
        Self {
            base,
            bytes,
            owned,
            #[cfg(target_os = "linux")]
            _segment: None,
        }
    }

    /// A part of a segment, if it lies inside.
    #[cfg(target_os = "linux")]
    pub(crate) fn part(segment: &Arc<Segment>, offset: usize, bytes: usize) -> Option<Self> {
        let base = segment.mapping().at(offset, bytes)?;
        Some(Self { base, bytes, owned: None, _segment: Some(segment.clone()) })
    }

    /// Someone else's memory; never freed here.
    ///
    /// # Safety
    /// `base` is valid for reads and writes of `bytes` bytes while the region lives.
    pub(crate) unsafe fn borrow(base: NonNull<u8>, bytes: usize) -> Self {
        Self::plain(base, bytes, None)
    }

    /// Address of a byte range, if it lies inside.
    pub(crate) fn at(&self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(bytes)? > self.bytes {
            return None;
        }
        // SAFETY: offset <= self.bytes, tested just before, so the result is inside the allocation or one past it.
        Some(unsafe { self.base.add(offset) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(layout) = self.owned {
            // SAFETY: `owned` is set only by `allocate`, with the layout that the memory was allocated with, and
            // regions are not cloned.
            unsafe { alloc::dealloc(self.base.as_ptr(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_outside_have_no_address() {
        let region = Region::allocate(100).unwrap();
        assert!(region.at(0, 100).is_some());
        assert!(region.at(100, 0).is_some());
        assert!(region.at(1, 100).is_none());
        assert!(region.at(usize::MAX, 2).is_none());
        assert!(Region::allocate(usize::MAX).is_none());
        assert!(Region::allocate(0).unwrap().at(0, 1).is_none());
    }
}
