//! What a slot or a staged place holds, as far as anyone knows.

use std::fmt;

use eplb_core::ExpertId;

use crate::atomics::{AtomicU64, Ordering, fence};

/// What a place holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Nothing was ever written, or the owner declared it empty.
    Empty,
    /// Bytes of no one expert: a copy that was not finished, or a write that nobody named.
    Unknown,
    /// All bytes of this expert.
    Expert(ExpertId),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Empty => f.write_str("nothing"),
            Content::Unknown => f.write_str("bytes of no known expert"),
            Content::Expert(expert) => write!(f, "{expert}"),
        }
    }
}

/// Counts the writes to a place; wraps at 2^30.
pub type Generation = u32;

const GENERATION_MASK: u64 = (1 << 30) - 1;

/// Content and generation of one slot in one word: kind in bits 0..2, generation in 2..32, expert in 32..64.
///
/// Guards order the bytes of one process; there the tag rides along: who holds a guard of the slot reads it exactly, anyone else gets a
/// value that was true at some moment. A reader in another process has no guard but the tag, as in a sequence lock: the writer changes it,
/// then (a release fence) writes bytes, then names them (a release store); the reader looks (an acquire load), reads
/// bytes, and looks again behind an acquire fence. The same tag both times: no byte of a later write was read. `tests/orders` tries it.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Tag(AtomicU64);

impl Tag {
    /// A word of memory that is shared with others, as a tag.
    #[cfg(target_os = "linux")]
    pub(crate) fn on(word: &AtomicU64) -> &Self {
        // SAFETY: a tag is a word and nothing else (`repr(transparent)`), and lives as long as the word.
        unsafe { &*std::ptr::from_ref(word).cast::<Self>() }
    }

    pub(crate) fn get(&self) -> (Content, Generation) {
        let word = self.0.load(Ordering::Acquire);
        let content = match word & 3 {
            0 => Content::Empty,
            1 => Content::Unknown,
            _ => Content::Expert(ExpertId((word >> 32) as u32)),
        };
        (content, (word >> 2 & GENERATION_MASK) as Generation)
    }

    /// Sets the content and keeps the generation. Only for the holder of the slot's write guard.
    pub(crate) fn set(&self, content: Content) {
        self.put(content, self.get().1);
    }

    /// Sets the content to [`Content::Unknown`] in a new generation. Only for the holder of the slot's write guard.
    pub(crate) fn begin_write(&self) {
        self.put(Content::Unknown, self.get().1.wrapping_add(1));
        fence(Ordering::Release);
    }

    fn put(&self, content: Content, generation: Generation) {
        let (kind, expert) = match content {
            Content::Empty => (0, 0),
            Content::Unknown => (1, 0),
            Content::Expert(expert) => (2, u64::from(expert.0)),
        };
        let generation = u64::from(generation) & GENERATION_MASK;
        self.0.store(expert << 32 | generation << 2 | kind, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_keeps_what_it_is_given() {
        let tag = Tag::default();
        assert_eq!(tag.get(), (Content::Empty, 0));
        for content in [Content::Expert(ExpertId(0)), Content::Expert(ExpertId(u32::MAX)), Content::Empty] {
            let before = tag.get().1;
            tag.begin_write();
            assert_eq!(tag.get(), (Content::Unknown, before + 1));
            tag.set(content);
            assert_eq!(tag.get(), (content, before + 1));
        }
    }

    #[test]
    fn generations_wrap_without_touching_the_expert() {
        let tag = Tag::default();
        tag.put(Content::Expert(ExpertId(7)), GENERATION_MASK as u32);
        tag.begin_write();
        tag.set(Content::Expert(ExpertId(7)));
        assert_eq!(tag.get(), (Content::Expert(ExpertId(7)), 0));
    }
}
