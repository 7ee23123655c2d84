//! Where the time of an exchange goes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use eplb_comm::Timeline;
use eplb_comm::timeline::{Mark, Moment};

use crate::error::EngineError;

/// Where the time of an exchange went: a row for each kind of wait, over all waves and ranks recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// From the first moment to the last, on the slowest rank.
    pub total: Duration,
    /// Time in which a rank had no transfer enqueued, between its first and its last: the mean over ranks, and the most.
    pub idle: (Duration, Duration),
    /// What there was to wait for.
    pub rows: Vec<Wait>,
}

/// One kind of wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// A phase, or a stage of a submission.
    pub name: &'static str,
    /// How often, over all ranks recorded.
    pub count: usize,
    /// The sum of a rank, mean over ranks.
    pub sum: Duration,
    /// The mean of one.
    pub mean: Duration,
    /// The longest.
    pub most: Duration,
}

/// One kind of wait in the making.
#[derive(Debug, Default)]
struct Row {
    count: usize,
    sum: Duration,
    most: Duration,
}

/// Kinds of waits, in the order in which they are printed.
const ROWS: [&str; 15] = [
    "agreeing",
    "draining",
    "clearing",
    "moving",
    "prepared",
    "armed",
    "committing",
    "settling",
    "call of submit",
    "submit to announced",
    "announced to first enqueued",
    "first to all enqueued",
    "all enqueued to landed",
    "landed to arrived",
    "commit enqueued to complete",
];

impl Table {
    /// Adds up what ranks recorded in one exchange.
    fn of(ranks: &[Vec<Mark>]) -> Self {
        let mut rows: BTreeMap<&'static str, Row> = BTreeMap::new();
        let (mut total, mut idle_sum, mut idle_most) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for marks in ranks {
            let span = marks.first().zip(marks.last()).map(|(first, last)| last.at - first.at);
            total = total.max(span.unwrap_or_default());
            let idle = add(marks, &mut rows);
            idle_sum += idle;
            idle_most = idle_most.max(idle);
        }
        let count = u32::try_from(ranks.len().max(1)).unwrap_or(u32::MAX);
        let rows = ROWS.into_iter().filter_map(|name| {
            let row = rows.remove(name)?;
            let mean = row.sum / u32::try_from(row.count.max(1)).unwrap_or(u32::MAX);
            Some(Wait { name, count: row.count, sum: row.sum / count, mean, most: row.most })
        });
        Self { total, idle: (idle_sum / count, idle_most), rows: rows.collect() }
    }
}

/// Adds a rank's waits; returns how long it had nothing enqueued.
fn add(marks: &[Mark], rows: &mut BTreeMap<&'static str, Row>) -> Duration {
    let mut spend = |name: &'static str, time: Duration| {
        let row = rows.entry(name).or_default();
        row.count += 1;
        row.sum += time;
        row.most = row.most.max(time);
    };
    let mut phase: Option<(&'static str, Duration)> = None;
    // By ticket, the moment before.
    let mut tickets: BTreeMap<u64, Duration> = BTreeMap::new();
    let mut commits: BTreeMap<usize, Duration> = BTreeMap::new();
    let mut submitting: Option<Duration> = None;
    let (mut open, mut quiet_since, mut idle) = (0usize, None, Duration::ZERO);
    let mut enqueued = std::collections::BTreeSet::new();
    for mark in marks {
        match mark.what {
            Moment::Phase { name, .. } => {
                if let Some((before, since)) = phase.replace((name, mark.at)) {
                    spend(before, mark.at - since);
                }
            }
            Moment::Submitting => submitting = Some(mark.at),
            Moment::Submitted { ticket, .. } => {
                tickets.insert(ticket.0, mark.at);
                if let Some(since) = submitting.take() {
                    spend("call of submit", mark.at - since);
                }
            }
            Moment::Announced(ticket)
            | Moment::FirstEnqueued(ticket)
            | Moment::AllEnqueued(ticket)
            | Moment::Landed(ticket)
            | Moment::Arrived(ticket) => {
                let name = match mark.what {
                    Moment::Announced(_) => "submit to announced",
                    Moment::FirstEnqueued(_) => "announced to first enqueued",
                    Moment::AllEnqueued(_) => "first to all enqueued",
                    Moment::Landed(_) => "all enqueued to landed",
                    _ => "landed to arrived",
                };
                // The communicator's thread may be faster than the one that submits.
                let since = tickets.insert(ticket.0, mark.at).unwrap_or(mark.at);
                spend(name, mark.at.saturating_sub(since));
                if let Moment::FirstEnqueued(ticket) = mark.what {
                    enqueued.insert(ticket.0);
                    if open == 0 {
                        idle += quiet_since.map_or(Duration::ZERO, |since| mark.at - since);
                    }
                    open += 1;
                }
                if let Moment::Landed(ticket) = mark.what
                    && enqueued.remove(&ticket.0)
                {
                    open -= 1;
                    quiet_since = Some(mark.at);
                }
            }
            Moment::CommitEnqueued(wave) => drop(commits.insert(wave, mark.at)),
            Moment::Committed(wave) => {
                let since = commits.remove(&wave).unwrap_or(mark.at);
                spend("commit enqueued to complete", mark.at - since);
            }
            Moment::Began | Moment::Ended => {}
        }
    }
    if let (Some((name, since)), Some(last)) = (phase, marks.last()) {
        spend(name, last.at - since);
    }
    idle
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let (mean, most) = self.idle;
        writeln!(
            f,
            "last exchange: {:.0} us; a rank had nothing enqueued for {:.0} us (most {:.0})",
            us(self.total),
            us(mean),
            us(most)
        )?;
        writeln!(f, "{:<28} {:>6} {:>10} {:>10} {:>10}", "", "times", "a rank us", "mean us", "most us")?;
        for Wait { name, count, sum, mean, most } in self.rows.iter().copied() {
            let (sum, mean, most) = (us(sum), us(mean), us(most));
            writeln!(f, "{name:<28} {count:>6} {sum:>10.0} {mean:>10.1} {most:>10.1}")?;
        }
        Ok(())
    }
}

/// Takes what ranks recorded: every moment becomes a line of the file (rank, microseconds, what), and all together a table.
pub(super) fn take(path: &Path, timelines: &[Arc<Timeline>]) -> Result<Table, EngineError> {
    let ranks: Vec<Vec<Mark>> = timelines.iter().map(|timeline| timeline.take()).collect();
    let mut lines = String::new();
    for (timeline, marks) in timelines.iter().zip(&ranks) {
        for Mark { at, what } in marks {
            lines += &format!("{}\t{:.1}\t{what:?}\n", timeline.rank.0, at.as_secs_f64() * 1e6);
        }
    }
    std::fs::write(path, lines)
        .map_err(|error| EngineError::Options(format!("{}: {error}", path.display())))?;
    Ok(Table::of(&ranks))
}

#[cfg(test)]
mod tests {
    use eplb_comm::Ticket;

    use super::*;

    fn marks(list: &[(u64, Moment)]) -> Vec<Mark> {
        list.iter().map(|&(us, what)| Mark { at: Duration::from_micros(us), what }).collect()
    }

    #[test]
    fn waits_are_added_up_and_gaps_between_transfers_are_idle() {
        let phase = |name| Moment::Phase { wave: 0, name };
        let (first, second) = (Ticket(4), Ticket(5));
        let submitted = |ticket| Moment::Submitted { wave: 0, early: false, ticket };
        let rank = marks(&[
            (0, Moment::Began),
            (0, phase("agreeing")),
            (10, phase("moving")),
            (10, Moment::Submitting),
            (13, submitted(first)),
            (20, Moment::Announced(first)),
            (25, Moment::FirstEnqueued(first)),
            (30, Moment::AllEnqueued(first)),
            (90, Moment::Landed(first)),
            (92, Moment::Arrived(first)),
            (92, phase("prepared")),
            (100, phase("moving")),
            (101, submitted(second)),
            (110, Moment::FirstEnqueued(second)),
            (150, Moment::Landed(second)),
            (160, Moment::CommitEnqueued(0)),
            (200, Moment::Committed(0)),
            (210, Moment::Ended),
        ]);
        let table = Table::of(&[rank.clone(), marks(&[(5, Moment::Began), (6, Moment::Ended)])]);
        let us = Duration::from_micros;
        assert_eq!((table.total, table.idle), (us(210), (us(10), us(20))));
        let row = |name| *table.rows.iter().find(|row| row.name == name).unwrap();
        assert_eq!(
            row("moving"),
            Wait { name: "moving", count: 2, sum: us(96), mean: us(96), most: us(110) }
        );
        assert_eq!((row("call of submit").most, row("all enqueued to landed").most), (us(3), us(60)));
        assert_eq!((row("commit enqueued to complete").most, row("prepared").most), (us(40), us(8)));
        assert!(table.rows.iter().all(|row| row.name != "draining"), "nothing that was not");
        let text = table.to_string();
        assert!(text.starts_with("last exchange: 210 us") && text.contains("landed to arrived"), "{text}");
    }
}
