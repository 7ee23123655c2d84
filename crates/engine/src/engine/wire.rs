//! What engines say to each other through the store: the status of each, and the rounds that the leading one announces.

use eplb_core::RankId;
use ndarray::{Array2, Array3};

use super::report::Reason;

/// How the last round ended on a rank, as its status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Well,
    TooLate,
    /// Broken off.
    Aborted,
}

/// What a rank shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    /// The last round that it has ended.
    pub(super) round: u64,
    pub(super) done: Done,
    /// Whether it would take part in a round.
    pub(super) ready: bool,
    /// Whether it has communicators.
    pub(super) connected: bool,
    /// Demands for a round that none before this epoch has answered.
    pub(super) demands: u64,
    /// Hash of the placements in force.
    pub(super) placements: u64,
    /// Why it has failed, if it has.
    pub(super) failed: Option<String>,
}

/// What the leading rank announces. Numbers rise by one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Round {
    pub(super) number: u64,
    pub(super) task: Task,
}

/// What all ranks do in a round.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Task {
    /// Make communicators.
    Connect,
    /// Move experts.
    Move(Box<Plan>),
    /// Nothing any more: a rank has failed.
    Fail { rank: RankId, cause: String },
}

/// A plan, with what it was made on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) set: usize,
    pub(super) reason: Reason,
    pub(super) dry: bool,
    pub(super) margin: u64,
    pub(super) plan_nanos: u64,
    pub(super) before: f64,
    pub(super) predicted: f64,
    pub(super) bound: f64,
    /// `[L, P]`
    pub(super) phy2log: Array2<i32>,
    /// `[L, P]`
    pub(super) share: Option<Array2<f64>>,
    /// `[L, E]`
    pub(super) loads: Array2<f64>,
}

/// Bytes being written. Whole numbers take 7 bits a byte, small ones first.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn whole(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn number(&mut self, n: f64) {
        self.0.extend(n.to_bits().to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.whole(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Bytes being read; `None` where they end too early or make no sense.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn whole(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            n |= bits << shift;
            if byte < 0x80 {
                return Some(n);
            }
        }
        None
    }

    fn flag(&mut self) -> Option<bool> {
        match self.whole()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<f64> {
        let (bytes, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(f64::from_bits(u64::from_le_bytes(*bytes)))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.whole()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn array(&mut self, shape: (usize, usize)) -> Option<Array2<f64>> {
        let values = (0..shape.0 * shape.1).map(|_| self.number()).collect::<Option<Vec<_>>>()?;
        Array2::from_shape_vec(shape, values).ok()
    }

    pub(super) fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

impl Status {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.whole(self.round);
        out.whole(self.done as u64);
        out.whole(u64::from(self.ready));
        out.whole(u64::from(self.connected));
        out.whole(self.demands);
        out.whole(self.placements);
        out.whole(u64::from(self.failed.is_some()));
        if let Some(cause) = &self.failed {
            out.text(cause);
        }
        out.done()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut read = Reader::new(bytes);
        let status = Self {
            round: read.whole()?,
            done: *[Done::Well, Done::TooLate, Done::Aborted].get(usize::try_from(read.whole()?).ok()?)?,
            ready: read.flag()?,
            connected: read.flag()?,
            demands: read.whole()?,
            placements: read.whole()?,
            failed: if read.flag()? { Some(read.text()?) } else { None },
        };
        read.end()?;
        Some(status)
    }
}

impl Round {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.whole(self.number);
        match &self.task {
            Task::Connect => out.whole(0),
            Task::Fail { rank, cause } => {
                out.whole(1);
                out.whole(u64::from(rank.0));
                out.text(cause);
            }
            Task::Move(plan) => {
                out.whole(2);
                plan.encode(&mut out);
            }
        }
        out.done()
    }

    /// Reads one for layer sets of the given shapes, `[layers, experts, slots]` each.
    pub(super) fn decode(bytes: &[u8], shapes: &[[usize; 3]]) -> Option<Self> {
        let mut read = Reader::new(bytes);
        let number = read.whole()?;
        let task = match read.whole()? {
            0 => Task::Connect,
            1 => Task::Fail { rank: RankId(u32::try_from(read.whole()?).ok()?), cause: read.text()? },
            2 => Task::Move(Box::new(Plan::decode(&mut read, shapes)?)),
            _ => return None,
        };
        read.end()?;
        Some(Self { number, task })
    }
}

impl Plan {
    fn encode(&self, out: &mut Writer) {
        out.whole(self.set as u64);
        out.whole(Reason::ALL.iter().position(|reason| *reason == self.reason).unwrap_or(0) as u64);
        out.whole(u64::from(self.dry));
        out.whole(self.margin);
        out.whole(self.plan_nanos);
        [self.before, self.predicted, self.bound].into_iter().for_each(|number| out.number(number));
        // -1 is 0.
        self.phy2log.iter().for_each(|&expert| out.whole((i64::from(expert) + 1) as u64));
        out.whole(u64::from(self.share.is_some()));
        self.share.iter().flatten().for_each(|&part| out.number(part));
        self.loads.iter().for_each(|&load| out.number(load));
    }

    fn decode(read: &mut Reader<'_>, shapes: &[[usize; 3]]) -> Option<Self> {
        let set = usize::try_from(read.whole()?).ok()?;
        let &[layers, experts, slots] = shapes.get(set)?;
        let reason = *Reason::ALL.get(usize::try_from(read.whole()?).ok()?)?;
        let (dry, margin, plan_nanos) = (read.flag()?, read.whole()?, read.whole()?);
        let (before, predicted, bound) = (read.number()?, read.number()?, read.number()?);
        let mut phy2log = Array2::zeros((layers, slots));
        for entry in &mut phy2log {
            *entry = i32::try_from(i64::try_from(read.whole()?).ok()? - 1).ok()?;
        }
        let share = if read.flag()? { Some(read.array((layers, slots))?) } else { None };
        let loads = read.array((layers, experts))?;
        Some(Self { set, reason, dry, margin, plan_nanos, before, predicted, bound, phy2log, share, loads })
    }
}

/// Counts of a rank since its epoch began: passes, and tokens `[tags, L, E]`.
pub(super) fn encode_counts(passes: u64, tokens: &Array3<u64>) -> Vec<u8> {
    let mut out = Writer::default();
    out.whole(passes);
    tokens.iter().for_each(|&n| out.whole(n));
    out.done()
}

/// Reads counts of the given shape.
pub(super) fn decode_counts(bytes: &[u8], shape: (usize, usize, usize)) -> Option<(u64, Array3<u64>)> {
    let mut read = Reader::new(bytes);
    let passes = read.whole()?;
    let count = shape.0 * shape.1 * shape.2;
    let tokens = (0..count).map(|_| read.whole()).collect::<Option<Vec<_>>>()?;
    read.end()?;
    Some((passes, Array3::from_shape_vec(shape, tokens).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn rounds() -> Vec<Round> {
        let plan = Plan {
            set: 1,
            reason: Reason::Drift,
            dry: true,
            margin: 300,
            plan_nanos: u64::MAX,
            before: 0.5,
            predicted: 0.75,
            bound: 1.0,
            phy2log: array![[0, -1, 1], [1, 0, 200]],
            share: Some(array![[1.0, 0.0, 1.0], [0.5, 0.5, 1.0]]),
            loads: array![[1.0, 2.5], [0.0, 1e18]],
        };
        let unshared = Plan { share: None, ..plan.clone() };
        vec![
            Round { number: 1, task: Task::Connect },
            Round { number: 2, task: Task::Fail { rank: RankId(3), cause: "why".into() } },
            Round { number: 3, task: Task::Move(Box::new(plan)) },
            Round { number: 4, task: Task::Move(Box::new(unshared)) },
        ]
    }

    #[test]
    fn rounds_are_read_as_written_and_not_otherwise() {
        let shapes = [[1, 1, 1], [2, 2, 3]];
        for round in rounds() {
            let bytes = round.encode();
            assert_eq!(Round::decode(&bytes, &shapes), Some(round));
            for end in 0..bytes.len() {
                assert_eq!(Round::decode(&bytes[..end], &shapes), None);
            }
            assert_eq!(Round::decode(&[&bytes[..], &[0]].concat(), &shapes), None);
        }
        let bytes = rounds()[2].encode();
        assert_eq!(Round::decode(&bytes, &[[2, 2, 3]]), None, "there is no second set");
    }

    #[test]
    fn statuses_and_counts_are_read_as_written() {
        let status = Status {
            round: 7,
            done: Done::Aborted,
            ready: true,
            connected: false,
            demands: 1 << 40,
            placements: u64::MAX,
            failed: Some("a cause".into()),
        };
        for status in [status.clone(), Status { failed: None, ready: false, ..status }] {
            let bytes = status.encode();
            assert_eq!(Status::decode(&bytes), Some(status));
            assert!((0..bytes.len()).all(|end| Status::decode(&bytes[..end]).is_none()));
        }
        let tokens = array![[[0u64, 1], [u64::MAX, 127]], [[128, 5], [6, 7]]];
        let bytes = encode_counts(9, &tokens);
        assert_eq!(decode_counts(&bytes, (2, 2, 2)), Some((9, tokens)));
        assert_eq!(decode_counts(&bytes, (2, 2, 3)), None);
        assert_eq!(Reader::new(&[0xff; 10]).whole(), None);
    }
}
