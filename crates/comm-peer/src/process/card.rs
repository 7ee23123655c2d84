//! What a rank says of itself and of its memory.

use std::ops::Range;
use std::sync::Arc;

use eplb_core::{LayerId, ModelLayout, RankId};
use eplb_cuda::ipc::{Chunk, Handle, Spot};

/// Changes with the form of cards and pages.
const VERSION: u64 = 1;
/// First bytes of a card.
const MAGIC: u64 = u64::from_le_bytes(*b"eplbcard");
/// Longest text in a card, bytes.
const LONGEST: usize = 512;

/// Drawn for each communicator of each start of a rank.
pub(super) type Nonce = [u64; 2];

/// One rank's card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) rank: RankId,
    pub(super) nonce: Nonce,
    /// The host that it is on.
    pub(super) host: String,
    /// Name of its socket, in the abstract namespace.
    pub(super) socket: String,
    /// [`ModelLayout::hash64`].
    pub(super) layout: u64,
    pub(super) slots: Range<usize>,
    pub(super) staging_bytes: usize,
    /// `[layer][tensor]`: pitch and stride of slots.
    pub(super) pitches: Vec<Vec<(usize, usize)>>,
    /// Descriptors that its socket gives.
    pub(super) files: usize,
    pub(super) memory: Memory,
}

/// How its slots are opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Memory {
    /// Not at all.
    None { reason: String },
    /// Host memory behind the second descriptor.
    Host { bytes: usize, nonce: [u64; 2], tags: usize, blocks: Vec<Vec<usize>>, staging: usize },
    /// Device memory: its allocations, where slots lie in them (`[layer][tensor]`), and where a mark of `seed` lies.
    Device { ranges: Vec<Vec<Chunk>>, spots: Vec<Vec<Spot>>, mark: Spot, seed: u64 },
    /// It need not be: another backend carries the bytes.
    Elsewhere,
}

impl Memory {
    /// In words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None { .. } => "no memory for others",
            Self::Host { .. } => "host memory",
            Self::Device { .. } => "device memory",
            Self::Elsewhere => "memory that another backend reaches",
        }
    }
}

impl Card {
    /// The owner's layout: that of this rank with the owner's pitches. `None` if it has another shape.
    pub(super) fn layout_of(&self, ours: &ModelLayout) -> Option<Arc<ModelLayout>> {
        if self.pitches.len() != ours.layers() {
            return None;
        }
        let mut layers = Vec::new();
        for (layer, pitches) in self.pitches.iter().enumerate() {
            let mut tensors = ours.layer(LayerId::at(layer)).tensors().to_vec();
            if tensors.len() != pitches.len() {
                return None;
            }
            for (tensor, &(pitch, stride)) in tensors.iter_mut().zip(pitches) {
                (tensor.pitch, tensor.slot_stride) = (pitch, stride);
            }
            layers.push(tensors);
        }
        ModelLayout::new(layers).ok().map(Arc::new)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Fields(Vec::new());
        out.word(MAGIC).word(VERSION).word(u64::from(self.rank.0)).word(self.nonce[0]).word(self.nonce[1]);
        out.text(&self.host).text(&self.socket).word(self.layout);
        out.size(self.slots.start).size(self.slots.end).size(self.staging_bytes).size(self.files);
        out.table(&self.pitches, |out, &(pitch, stride)| {
            out.size(pitch).size(stride);
        });
        match &self.memory {
            Memory::None { reason } => {
                out.word(0).text(reason);
            }
            Memory::Host { bytes, nonce, tags, blocks, staging } => {
                out.word(1).size(*bytes).word(nonce[0]).word(nonce[1]).size(*tags).size(*staging);
                out.table(blocks, |out, &offset| {
                    out.size(offset);
                });
            }
            Memory::Device { ranges, spots, mark, seed } => {
                out.word(2).word(*seed).size(mark.range).size(mark.offset);
                out.table(spots, |out, spot| {
                    out.size(spot.range).size(spot.offset);
                });
                out.table(ranges, |out, chunk| {
                    out.size(chunk.bytes);
                    match &chunk.handle {
                        Handle::Descriptor => {
                            out.word(0);
                        }
                        Handle::Legacy(bytes) => out.word(1).0.extend(&bytes[..]),
                        Handle::Fabric(bytes) => out.word(2).0.extend(&bytes[..]),
                    }
                });
            }
            Memory::Elsewhere => {
                out.word(3);
            }
        }
        out.0
    }

    /// Reads a card; `None` if it is none of this version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut card = Reader(bytes);
        if card.word()? != MAGIC || card.word()? != VERSION {
            return None;
        }
        let rank = RankId(u32::try_from(card.word()?).ok()?);
        let nonce = [card.word()?, card.word()?];
        let (host, socket, layout) = (card.text()?, card.text()?, card.word()?);
        let slots = card.size()?..card.size()?;
        let (staging_bytes, files) = (card.size()?, card.size()?);
        let pitches = card.table(|card| Some((card.size()?, card.size()?)))?;
        let memory = match card.word()? {
            0 => Memory::None { reason: card.text()? },
            1 => {
                let (bytes, nonce) = (card.size()?, [card.word()?, card.word()?]);
                let (tags, staging) = (card.size()?, card.size()?);
                Memory::Host { bytes, nonce, tags, staging, blocks: card.table(Reader::size)? }
            }
            2 => {
                let (seed, mark) = (card.word()?, card.spot()?);
                let spots = card.table(Reader::spot)?;
                Memory::Device { seed, mark, spots, ranges: card.table(Reader::chunk)? }
            }
            3 => Memory::Elsewhere,
            _ => return None,
        };
        let card_is_whole = card.0.is_empty() && slots.start <= slots.end;
        let found = Self { rank, nonce, host, socket, layout, slots, staging_bytes, pitches, files, memory };
        card_is_whole.then_some(found)
    }
}

/// Numbers of 8 bytes, texts behind their lengths.
struct Fields(Vec<u8>);

impl Fields {
    fn word(&mut self, word: u64) -> &mut Self {
        self.0.extend(word.to_le_bytes());
        self
    }

    fn size(&mut self, size: usize) -> &mut Self {
        self.word(size as u64)
    }

    fn text(&mut self, text: &str) -> &mut Self {
        let mut end = text.len().min(LONGEST);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.size(end).0.extend(&text.as_bytes()[..end]);
        self
    }

    fn table<T>(&mut self, rows: &[Vec<T>], put: impl Fn(&mut Self, &T)) -> &mut Self {
        self.size(rows.len());
        for row in rows {
            self.size(row.len());
            row.iter().for_each(|entry| put(self, entry));
        }
        self
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn word(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }

    fn size(&mut self) -> Option<usize> {
        usize::try_from(self.word()?).ok()
    }

    /// A number of entries, each of which takes at least a word.
    fn count(&mut self) -> Option<usize> {
        self.size().filter(|&count| count <= self.0.len() / 8)
    }

    fn spot(&mut self) -> Option<Spot> {
        Some(Spot { range: self.size()?, offset: self.size()? })
    }

    fn chunk(&mut self) -> Option<Chunk> {
        let (bytes, kind) = (self.size()?, self.word()?);
        let mut handle = || {
            let (handle, rest) = self.0.split_first_chunk::<64>()?;
            self.0 = rest;
            Some(Box::new(*handle))
        };
        let handle = match kind {
            0 => Handle::Descriptor,
            1 => Handle::Legacy(handle()?),
            2 => Handle::Fabric(handle()?),
            _ => return None,
        };
        Some(Chunk { bytes, handle })
    }

    fn text(&mut self) -> Option<String> {
        let bytes = self.size().filter(|&bytes| bytes <= LONGEST)?;
        let (text, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn table<T>(&mut self, mut take: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<Vec<T>>> {
        let rows = self.count()?;
        (0..rows)
            .map(|_| {
                let entries = self.count()?;
                (0..entries).map(|_| take(self)).collect()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(memory: Memory) -> Card {
        Card {
            rank: RankId(3),
            nonce: [1, u64::MAX],
            host: "host ü".into(),
            socket: "eplb".into(),
            layout: 77,
            slots: 4..9,
            staging_bytes: 640,
            pitches: vec![vec![(1, 2), (3, 4)], vec![]],
            files: 2,
            memory,
        }
    }

    fn host() -> Memory {
        Memory::Host { bytes: 9, nonce: [5, 6], tags: 64, blocks: vec![vec![128], vec![]], staging: 256 }
    }

    fn device() -> Memory {
        let chunk = |handle| Chunk { bytes: 9, handle };
        let ranges = vec![
            vec![chunk(Handle::Legacy(Box::new([7; 64])))],
            vec![chunk(Handle::Descriptor), chunk(Handle::Fabric(Box::new([8; 64])))],
        ];
        let spot = |range, offset| Spot { range, offset };
        Memory::Device { ranges, spots: vec![vec![spot(0, 1), spot(1, 2)]], mark: spot(1, 0), seed: 3 }
    }

    #[test]
    fn cards_are_read_as_written_and_whole_or_not_at_all() {
        for memory in [host(), device(), Memory::None { reason: "no".into() }] {
            let card = card(memory);
            let bytes = card.encode();
            assert_eq!(Card::decode(&bytes), Some(card));
            for end in 0..bytes.len() {
                assert_eq!(Card::decode(&bytes[..end]), None, "{end}");
            }
            assert_eq!(Card::decode(&[&bytes[..], &[0]].concat()), None);
        }
    }

    #[test]
    fn junk_takes_no_memory() {
        let bytes = card(device()).encode();
        for at in 0..bytes.len() {
            let mut junk = bytes.clone();
            junk[at] = 0xff;
            // Whatever it is taken for, it is no larger than what came.
            drop(Card::decode(&junk));
        }
        let mut other = bytes;
        other[8] += 1;
        assert_eq!(Card::decode(&other), None, "another version");
    }
}
