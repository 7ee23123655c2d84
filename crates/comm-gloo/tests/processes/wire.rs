//! What parent and children say to each other: frames of numbers and byte strings.

use std::io::{Read, Result, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use eplb_comm::{CommError, Place};
use eplb_core::{ExpertId, Landing, LayerId, RankId, SlotId, Transfer};

/// One message, written and read in the same order.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    bytes: Vec<u8>,
    at: usize,
}

impl Frame {
    pub(crate) fn new(kind: u64) -> Self {
        Self::default().number(kind)
    }

    pub(crate) fn number(mut self, number: u64) -> Self {
        self.bytes.extend(number.to_le_bytes());
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.raw(text.as_bytes())
    }

    pub(crate) fn raw(self, raw: &[u8]) -> Self {
        let mut frame = self.number(raw.len() as u64);
        frame.bytes.extend(raw);
        frame
    }

    pub(crate) fn take(&mut self) -> u64 {
        let word = self.bytes[self.at..self.at + 8].try_into().unwrap();
        self.at += 8;
        u64::from_le_bytes(word)
    }

    pub(crate) fn take_size(&mut self) -> usize {
        usize::try_from(self.take()).unwrap()
    }

    pub(crate) fn take_raw(&mut self) -> Vec<u8> {
        let bytes = self.take_size();
        self.at += bytes;
        self.bytes[self.at - bytes..self.at].to_vec()
    }

    pub(crate) fn take_text(&mut self) -> String {
        String::from_utf8(self.take_raw()).unwrap()
    }

    pub(crate) fn send(&self, to: &mut impl Write) -> Result<()> {
        to.write_all(&(self.bytes.len() as u64).to_le_bytes())?;
        to.write_all(&self.bytes)?;
        to.flush()
    }

    pub(crate) fn receive(from: &mut impl Read) -> Result<Self> {
        let mut length = [0; 8];
        from.read_exact(&mut length)?;
        let mut bytes = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap()];
        from.read_exact(&mut bytes)?;
        Ok(Self { bytes, at: 0 })
    }

    /// A moment, by the clock that all processes of a machine share. A process that is stopped amid it makes it later and never earlier.
    pub(crate) fn moment(self, at: Instant) -> Self {
        let left = at.saturating_duration_since(Instant::now());
        let then = SystemTime::now() + left;
        self.number(then.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64)
    }

    pub(crate) fn take_moment(&mut self) -> Instant {
        let then = UNIX_EPOCH + Duration::from_nanos(self.take());
        let left = then.duration_since(SystemTime::now()).unwrap_or_default();
        Instant::now() + left
    }

    pub(crate) fn transfer(self, t: &Transfer) -> Self {
        let landing = match t.landing {
            Landing::InPlace => u64::MAX,
            Landing::Staged { offset } => offset as u64,
        };
        [t.layer.0, t.expert.0, t.source.0, t.source_slot.0, t.dest.0, t.dest_slot.0]
            .into_iter()
            .fold(self, |frame, number| frame.number(number.into()))
            .number(landing)
    }

    pub(crate) fn take_transfer(&mut self) -> Transfer {
        let mut id = || u32::try_from(self.take()).unwrap();
        Transfer {
            layer: LayerId(id()),
            expert: ExpertId(id()),
            source: RankId(id()),
            source_slot: SlotId(id()),
            dest: RankId(id()),
            dest_slot: SlotId(id()),
            landing: match self.take() {
                u64::MAX => Landing::InPlace,
                offset => Landing::Staged { offset: usize::try_from(offset).unwrap() },
            },
        }
    }

    pub(crate) fn place(self, place: Place) -> Self {
        match place {
            Place::Slot { layer, slot } => self.number(0).number(layer.0.into()).number(slot.0.into()),
            Place::Staging { layer, offset } => self.number(1).number(layer.0.into()).number(offset as u64),
        }
    }

    pub(crate) fn take_place(&mut self) -> Place {
        let (staged, layer, at) = (self.take() == 1, LayerId::at(self.take_size()), self.take_size());
        if staged { Place::staged(layer, at) } else { Place::slot(layer, SlotId::at(at)) }
    }

    /// An error: its kind as far as the suite asks for it, and its words.
    pub(crate) fn error(self, error: &CommError) -> Self {
        let (kind, rank, extra) = match error {
            CommError::Timeout { rank, .. } => (1, rank.0, 0),
            CommError::Aborted { rank, .. } => (2, rank.0, 0),
            CommError::NoSuchPlace { rank, .. } => (3, rank.0, 0),
            CommError::UnknownTicket { rank, ticket } => (4, rank.0, *ticket),
            CommError::Transfer { rank, peer, .. } => (5, rank.0, peer.0.into()),
            _ => (6, 0, 0),
        };
        self.number(kind).number(rank.into()).number(extra).text(&error.to_string())
    }

    pub(crate) fn take_error(&mut self) -> CommError {
        let (kind, rank, extra) = (self.take(), RankId::at(self.take_size()), self.take());
        let text = self.take_text();
        match kind {
            1 => CommError::Timeout { rank, what: text, waited: Duration::ZERO },
            2 => CommError::Aborted { rank, cause: text },
            3 => CommError::NoSuchPlace { rank, place: Place::slot(LayerId(0), SlotId(0)), reason: text },
            4 => CommError::UnknownTicket { rank, ticket: extra },
            5 => CommError::Transfer { rank, peer: RankId(extra as u32), cause: text },
            _ => CommError::Panicked { rank, what: "a child's call".into(), detail: text },
        }
    }
}
