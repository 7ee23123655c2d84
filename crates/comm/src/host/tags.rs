//! The tags of a rank's slots, where other processes see them or not.

use super::content::Tag;
#[cfg(target_os = "linux")]
use super::shared::{Segment, Spots};
#[cfg(target_os = "linux")]
use std::sync::Arc;

/// Tags of all slots of a rank: `[layer * local slots + local slot]`.
#[derive(Debug)]
pub(super) enum Tags {
    /// In memory of the process.
    Private(Box<[Tag]>),
    /// In a segment that others open.
    #[cfg(target_os = "linux")]
    Shared {
        segment: Arc<Segment>,
        /// Offset of the first.
        offset: usize,
        /// Number of tags.
        count: usize,
    },
}

impl Tags {
    pub(super) fn private(count: usize) -> Self {
        Self::Private(std::iter::repeat_with(Tag::default).take(count).collect())
    }

    /// Tags in a segment, where they were planned; `None` if they do not lie in it.
    #[cfg(target_os = "linux")]
    pub(super) fn shared(segment: Arc<Segment>, spots: &Spots, count: usize) -> Option<Self> {
        segment.mapping().at(spots.tags, count.checked_mul(8)?).filter(|_| spots.tags.is_multiple_of(8))?;
        Some(Self::Shared { segment, offset: spots.tags, count })
    }

    /// A tag. Panics if there are not that many.
    pub(super) fn get(&self, at: usize) -> &Tag {
        match self {
            Tags::Private(tags) => &tags[at],
            #[cfg(target_os = "linux")]
            Tags::Shared { segment, offset, count } => {
                assert!(at < *count, "tag {at} of {count}");
                match segment.mapping().word(offset + at * 8) {
                    Some(word) => Tag::on(word),
                    // All of them lie inside and are aligned, as `shared` has seen.
                    None => unreachable!("a tag lies in its segment"),
                }
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tag> {
        let count = match self {
            Tags::Private(tags) => tags.len(),
            #[cfg(target_os = "linux")]
            Tags::Shared { count, .. } => *count,
        };
        (0..count).map(|at| self.get(at))
    }
}
