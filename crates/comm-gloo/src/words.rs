//! Words that Gloo reads and writes by their address.

use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// Words of our own that others use by their address while this one is moved about. A box would not do: moving it says that nobody else
/// uses what it holds.
///
/// Whoever hands an address on keeps this until it is used no more.
#[derive(Debug)]
pub(crate) struct Words(NonNull<[u64]>);

// SAFETY: it owns its words as a box does, which may be sent; through a shared one they cannot be reached but by their address.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    pub(crate) fn new(words: &[u64]) -> Self {
        Self(NonNull::from(Box::leak(Box::<[u64]>::from(words))))
    }

    /// Where they lie, the first one first.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = NonNull<u8>> {
        let first = self.0.cast::<u64>();
        // SAFETY: each number is one of a word here.
        (0..self.0.len()).map(move |number| unsafe { first.add(number) }.cast())
    }

    /// The first address and the bytes from there on.
    pub(crate) fn whole(&self) -> (NonNull<u8>, usize) {
        (self.0.cast(), size_of::<u64>() * self.0.len())
    }

    /// What is in them, once nobody uses their addresses.
    pub(crate) fn into_box(self) -> Box<[u64]> {
        let words = ManuallyDrop::new(self).0;
        // SAFETY: it was leaked from a box by `new`, and is not dropped here.
        unsafe { Box::from_raw(words.as_ptr()) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: it was leaked from a box by `new`, and is taken back once: `into_box` forgets this.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_by_address_is_there_wherever_the_owner_went() {
        let words = Words::new(&[1, 2, 3]);
        let addresses: Vec<_> = words.addresses().collect();
        assert_eq!((words.whole(), addresses.len()), ((addresses[0], 24), 3));
        let moved = vec![words];
        // SAFETY: the second word, which lives.
        unsafe { addresses[1].cast::<u64>().write(7) };
        let found = moved.into_iter().map(Words::into_box).collect::<Vec<_>>();
        assert_eq!(*found[0], [1, 7, 3]);
        drop(Words::new(&[]));
    }
}
