//! How notes and the decision record look in a store: little-endian fields behind a version byte.

use eplb_core::RankId;
use eplb_exchange::{Note, Part, Touched, Verdict};

/// Version of both formats. Ranks compare it before anything else, with the version of the program.
pub(crate) const FORMAT: u8 = 3;

/// Longest cause in a note, bytes; longer ones are cut.
const LONGEST_CAUSE: usize = 1024;

/// What is wrong with a value found in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(&'static str);

const SHORT: Malformed = Malformed("it ends before its last field");

/// The decision record of an epoch, numbered over all of its exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// Waves decided in this epoch.
    pub(super) version: u64,
    /// What was decided of the last.
    pub(super) verdict: Verdict,
    /// Whether the epoch is closed.
    pub(super) closed: bool,
}

impl Decision {
    /// Of a new epoch: the key is absent.
    pub(super) const OPEN: Self = Self { version: 0, verdict: Verdict::Commit { step: None }, closed: false };

    /// Whether this one comes after another.
    pub(super) fn is_after(&self, other: &Self) -> bool {
        (self.version, self.closed) > (other.version, other.closed)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT, u8::from(self.closed)];
        out.extend(self.version.to_le_bytes());
        match self.verdict {
            Verdict::Commit { step: None } => out.push(0),
            Verdict::Commit { step: Some(step) } => {
                out.push(1);
                out.extend(step.to_le_bytes());
            }
            Verdict::Abort => out.push(2),
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        fields.format()?;
        let closed = flag(u64::from(fields.u8()?))?;
        let version = fields.u64()?;
        let verdict = match fields.u8()? {
            0 => Verdict::Commit { step: None },
            1 => Verdict::Commit { step: Some(fields.u64()?) },
            2 => Verdict::Abort,
            _ => return Err(Malformed("its verdict is none that this version knows")),
        };
        fields.end()?;
        Ok(Self { version, verdict, closed })
    }
}

/// A note with the number of its exchange in the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) exchange: u64,
    pub(super) note: Note,
}

/// What ranks of one host say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Posted {
    Note(Numbered),
    /// What the record in the store says now.
    Decision(Decision),
}

impl Posted {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Note(note) => encode_notes(0, std::iter::once(note)),
            Self::Decision(decision) => {
                let mut out = vec![!FORMAT];
                out.extend(decision.encode());
                out
            }
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.split_first() {
            Some((&kind, rest)) if kind == !FORMAT => Ok(Self::Decision(Decision::decode(rest)?)),
            _ => {
                let (_, notes) = decode_notes(bytes)?;
                notes.into_iter().next().map(Self::Note).ok_or(SHORT)
            }
        }
    }
}

/// The notes of a rank that may still be needed; the first has number `first` in the epoch.
pub(super) fn encode_notes<'a>(first: u64, notes: impl ExactSizeIterator<Item = &'a Numbered>) -> Vec<u8> {
    let mut out = vec![FORMAT];
    out.extend(first.to_le_bytes());
    out.extend((notes.len() as u32).to_le_bytes());
    for Numbered { exchange, note } in notes {
        out.extend(exchange.to_le_bytes());
        encode_note(&mut out, note);
    }
    out
}

/// Number of the first note, and the notes.
pub(super) fn decode_notes(bytes: &[u8]) -> Result<(u64, Vec<Numbered>), Malformed> {
    let mut fields = Fields(bytes);
    fields.format()?;
    let first = fields.u64()?;
    let count = fields.u32()?;
    // Not reserved by `count`: every note takes bytes, so a count that lies ends soon.
    let mut notes = Vec::new();
    for _ in 0..count {
        notes.push(Numbered { exchange: fields.u64()?, note: decode_note(&mut fields)? });
    }
    fields.end()?;
    Ok((first, notes))
}

/// The wave that a note is about, if it is about one.
pub(super) fn wave_of(note: &Note) -> Option<usize> {
    match *note {
        Note::Plan { .. } => Some(0),
        Note::Failed { .. } => None,
        Note::Drained { wave, .. }
        | Note::Prepared { wave, .. }
        | Note::Proposed { wave, .. }
        | Note::Acknowledged { wave }
        | Note::TooLate { wave, .. }
        | Note::Committed { wave, .. }
        | Note::Broken { wave, .. }
        | Note::Stopped { wave, .. } => Some(wave),
    }
}

fn encode_note(out: &mut Vec<u8>, note: &Note) {
    let mut put = |kind: u8, numbers: &[u64]| {
        out.push(kind);
        numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
    };
    match note {
        Note::Plan { hash, next_step } => put(0, &[*hash, *next_step]),
        Note::Drained { wave, part: Part::Late, first_step } => put(1, &[*wave as u64, *first_step]),
        Note::Drained { wave, part: Part::Early, first_step } => put(11, &[*wave as u64, *first_step]),
        Note::Prepared { wave, last_step: None } => put(2, &[*wave as u64]),
        Note::Prepared { wave, last_step: Some(last) } => put(3, &[*wave as u64, *last]),
        Note::Proposed { wave, step } => put(4, &[*wave as u64, *step]),
        Note::Acknowledged { wave } => put(5, &[*wave as u64]),
        Note::TooLate { wave, rank } => put(6, &[*wave as u64, u64::from(rank.0)]),
        Note::Committed { wave, first_step } => put(7, &[*wave as u64, *first_step]),
        Note::Stopped { wave, touched } => put(8, &[*wave as u64, bits(*touched)]),
        Note::Failed { cause } => {
            let cause = cut(cause);
            put(9, &[cause.len() as u64]);
            out.extend(cause.as_bytes());
        }
        Note::Broken { wave, detail } => {
            let detail = cut(detail);
            put(10, &[*wave as u64, detail.len() as u64]);
            out.extend(detail.as_bytes());
        }
    }
}

/// As much of a text as a note carries.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_CAUSE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn decode_note(fields: &mut Fields<'_>) -> Result<Note, Malformed> {
    let kind = fields.u8()?;
    if kind == 9 {
        return Ok(Note::Failed { cause: fields.text()? });
    }
    if kind == 0 {
        return Ok(Note::Plan { hash: fields.u64()?, next_step: fields.u64()? });
    }
    let wave = fields.index()?;
    Ok(match kind {
        1 => Note::Drained { wave, part: Part::Late, first_step: fields.u64()? },
        11 => Note::Drained { wave, part: Part::Early, first_step: fields.u64()? },
        2 => Note::Prepared { wave, last_step: None },
        3 => Note::Prepared { wave, last_step: Some(fields.u64()?) },
        4 => Note::Proposed { wave, step: fields.u64()? },
        5 => Note::Acknowledged { wave },
        6 => Note::TooLate { wave, rank: fields.rank()? },
        7 => Note::Committed { wave, first_step: fields.u64()? },
        8 => Note::Stopped { wave, touched: touched(fields.u64()?)? },
        10 => Note::Broken { wave, detail: fields.text()? },
        _ => return Err(Malformed("a note in it is of a kind that this version does not know")),
    })
}

fn bits(touched: Touched) -> u64 {
    let Touched { early, late, ahead } = touched;
    u64::from(early) | u64::from(late) << 1 | u64::from(ahead) << 2
}

fn touched(bits: u64) -> Result<Touched, Malformed> {
    if bits > 7 {
        return Err(Malformed("what was touched is none that this version knows"));
    }
    Ok(Touched { early: bits & 1 != 0, late: bits & 2 != 0, ahead: bits & 4 != 0 })
}

fn flag(number: u64) -> Result<bool, Malformed> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("a flag in it is neither 0 nor 1")),
    }
}

/// Takes fields from the front; every length is checked against what is there.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| SHORT)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn index(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.u64()?).map_err(|_| Malformed("a number in it is too large for this machine"))
    }

    fn rank(&mut self) -> Result<RankId, Malformed> {
        u32::try_from(self.u64()?).map(RankId).map_err(|_| Malformed("a rank in it is none"))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.index()?;
        let text = std::str::from_utf8(self.take(length)?);
        Ok(text.map_err(|_| Malformed("a text in it is not UTF-8"))?.to_owned())
    }

    fn format(&mut self) -> Result<(), Malformed> {
        if self.u8()? == FORMAT { Ok(()) } else { Err(Malformed("it is of another version")) }
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("bytes follow its last field")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes() -> Vec<Note> {
        let wave = 3;
        vec![
            Note::Plan { hash: u64::MAX, next_step: 7 },
            Note::Drained { wave, part: Part::Early, first_step: 8 },
            Note::Drained { wave, part: Part::Late, first_step: 8 },
            Note::Prepared { wave, last_step: None },
            Note::Prepared { wave, last_step: Some(0) },
            Note::Proposed { wave, step: 99 },
            Note::Acknowledged { wave },
            Note::TooLate { wave, rank: RankId(u32::MAX) },
            Note::Committed { wave, first_step: 100 },
            Note::Stopped { wave, touched: Touched::ALL },
            Note::Stopped { wave, touched: Touched { ahead: true, ..Touched::default() } },
            Note::Broken { wave, detail: "no more".into() },
            Note::Failed { cause: "rank 2, wave 3: no".into() },
        ]
    }

    #[test]
    fn notes_and_decisions_are_read_as_written() {
        let numbered: Vec<_> =
            (5..).zip(notes()).map(|(exchange, note)| Numbered { exchange, note }).collect();
        assert_eq!(decode_notes(&encode_notes(41, numbered.iter())).unwrap(), (41, numbered));
        for verdict in
            [Verdict::Commit { step: None }, Verdict::Commit { step: Some(1 << 40) }, Verdict::Abort]
        {
            for closed in [false, true] {
                let decision = Decision { version: 6, verdict, closed };
                assert_eq!(Decision::decode(&decision.encode()).unwrap(), decision);
            }
        }
    }

    #[test]
    fn a_long_cause_is_cut_between_characters() {
        let note = Numbered { exchange: 0, note: Note::Failed { cause: "ä".repeat(600) + "x" } };
        let (_, read) = decode_notes(&encode_notes(0, [note].iter())).unwrap();
        assert!(
            matches!(&read[0].note, Note::Failed { cause } if cause.chars().all(|c| c == 'ä') && cause.len() == 1024)
        );
    }

    #[test]
    fn what_is_cut_off_or_changed_is_refused_or_read_as_something_else() {
        let numbered: Vec<_> = notes().into_iter().map(|note| Numbered { exchange: 1, note }).collect();
        let whole = encode_notes(1, numbered.iter());
        for end in 0..whole.len() {
            assert!(decode_notes(&whole[..end]).is_err(), "{end}");
        }
        assert!(decode_notes(&[&whole[..], &[0]].concat()).is_err());
        let decision = Decision { version: 1, verdict: Verdict::Abort, closed: false }.encode();
        for end in 0..decision.len() {
            assert!(Decision::decode(&decision[..end]).is_err());
        }
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] ^= 0x40;
            assert_ne!(decode_notes(&other).ok(), decode_notes(&whole).ok(), "byte {at}");
        }
    }
}
