//! Who uses which part of staging, and what it holds.

use std::collections::BTreeMap;
use std::ops::Range;

use eplb_core::LayerId;

use super::content::{Content, Generation};

/// An access under way.
#[derive(Debug)]
struct Held {
    range: Range<usize>,
    /// 0 for a writer.
    readers: u32,
}

/// What was last written at an offset.
#[derive(Debug, Clone, Copy)]
struct Entry {
    end: usize,
    layer: LayerId,
    content: Content,
    generation: Generation,
}

/// The accesses and contents of one rank's staging. Lives under a mutex that is held for a few instructions; its
/// lock and unlock are the acquire and release that order the bytes.
#[derive(Debug, Default)]
pub(crate) struct StagingBook {
    held: Vec<Held>,
    entries: BTreeMap<usize, Entry>,
    writes: Generation,
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn describe(held: &Held) -> String {
    let what = if held.readers == 0 { "being written" } else { "being read" };
    format!("bytes {}..{} are {what}", held.range.start, held.range.end)
}

impl StagingBook {
    /// Enters as a reader of a range, or says who is in the way.
    pub(crate) fn try_read(&mut self, range: Range<usize>) -> Result<(), String> {
        if let Some(held) = self.held.iter().find(|h| h.readers == 0 && overlap(&h.range, &range)) {
            return Err(describe(held));
        }
        match self.held.iter_mut().find(|h| h.range == range) {
            Some(held) => held.readers += 1,
            None => self.held.push(Held { range, readers: 1 }),
        }
        Ok(())
    }

    /// Enters as the writer of a range, or says who is in the way.
    pub(crate) fn try_write(&mut self, range: Range<usize>) -> Result<(), String> {
        if let Some(held) = self.held.iter().find(|h| overlap(&h.range, &range)) {
            return Err(describe(held));
        }
        self.held.push(Held { range, readers: 0 });
        Ok(())
    }

    /// Leaves after a successful `try_read` or `try_write` of the same range.
    pub(crate) fn leave(&mut self, range: &Range<usize>) {
        if let Some(at) = self.held.iter().position(|h| h.range == *range) {
            self.held[at].readers = self.held[at].readers.saturating_sub(1);
            if self.held[at].readers == 0 {
                self.held.swap_remove(at);
            }
        }
    }

    /// What a range holds as an expert of a layer.
    pub(crate) fn content(&self, layer: LayerId, range: &Range<usize>) -> (Content, Generation) {
        match self.entries.get(&range.start) {
            Some(e) if e.layer == layer && e.end == range.end => (e.content, e.generation),
            // Part of a staged expert, or one of another layer: its bytes are no expert of this one.
            Some(e) => (Content::Unknown, e.generation),
            None => match self.overlapping(range).is_empty() {
                true => (Content::Empty, 0),
                false => (Content::Unknown, 0),
            },
        }
    }

    /// Forgets what a range overlaps and starts an unknown entry there. Only for the writer of the range.
    pub(crate) fn begin_write(&mut self, layer: LayerId, range: &Range<usize>) {
        for start in self.overlapping(range) {
            self.entries.remove(&start);
        }
        self.writes = self.writes.wrapping_add(1);
        let entry = Entry { end: range.end, layer, content: Content::Unknown, generation: self.writes };
        self.entries.insert(range.start, entry);
    }

    /// Names the content of a range. Only for its writer, after `begin_write`.
    pub(crate) fn set(&mut self, range: &Range<usize>, content: Content) {
        if let Some(entry) = self.entries.get_mut(&range.start) {
            entry.content = content;
        }
    }

    /// Starts of the entries that overlap a range. Entries are disjoint, so their ends rise with their starts.
    fn overlapping(&self, range: &Range<usize>) -> Vec<usize> {
        let before = self.entries.range(..range.start).next_back().filter(|(_, e)| e.end > range.start);
        before.into_iter().chain(self.entries.range(range.clone())).map(|(&start, _)| start).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eplb_core::ExpertId;

    #[test]
    fn overlapping_accesses_are_refused() {
        let mut book = StagingBook::default();
        book.try_read(0..32).unwrap();
        book.try_read(0..32).unwrap();
        book.try_read(16..48).unwrap();
        assert_eq!(book.try_write(40..64).unwrap_err(), "bytes 16..48 are being read");
        book.try_write(48..64).unwrap();
        assert_eq!(book.try_read(32..64).unwrap_err(), "bytes 48..64 are being written");
        book.leave(&(0..32));
        assert!(book.try_write(0..16).is_err());
        book.leave(&(0..32));
        book.try_write(0..16).unwrap();
        book.leave(&(48..64));
        book.try_write(48..64).unwrap();
    }

    #[test]
    fn a_write_forgets_what_it_overlaps() {
        let (layer, expert) = (LayerId(0), Content::Expert(ExpertId(5)));
        let mut book = StagingBook::default();
        for range in [0..32, 32..64, 64..96] {
            book.begin_write(layer, &range);
            book.set(&range, expert);
        }
        assert_eq!(book.content(layer, &(32..64)).0, expert);
        assert_eq!(book.content(LayerId(1), &(32..64)).0, Content::Unknown);
        assert_eq!(book.content(layer, &(32..48)).0, Content::Unknown);
        assert_eq!(book.content(layer, &(96..128)).0, Content::Empty);
        book.begin_write(layer, &(16..48));
        assert_eq!(book.content(layer, &(0..32)).0, Content::Unknown);
        assert_eq!(book.content(layer, &(16..48)).0, Content::Unknown);
        assert_eq!(book.content(layer, &(32..64)).0, Content::Unknown);
        assert_eq!(book.content(layer, &(64..96)).0, expert);
    }
}
