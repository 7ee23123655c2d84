//! Every default deadline of the engine, in one place. The table for people is `docs/deadlines.md`; a test compares it with
//! these.

use std::time::Duration;

use eplb_comm::store;
use eplb_exchange as exchange;

/// Deadlines and intervals of everything that a rank waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Rendezvous and control traffic.
    pub store: store::Deadlines,
    /// Exchanges.
    pub exchange: exchange::Deadlines,
    /// Making a communicator between all ranks.
    pub communicator: Duration,
    /// The leading rank planning, while the others wait for its plan.
    pub plan: Duration,
    /// Members changing.
    pub reform: Reform,
}

/// Deadlines of a change of members, in time in which a rank was looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reform {
    /// Members that are not suspected to be dead coming to form the next epoch, before it forms without them.
    pub gather: Duration,
    /// Processes coming that are to join, before the epoch forms without them.
    pub join: Duration,
    /// The whole agreement on the next epoch, deaths on the way included.
    pub whole: Duration,
}

impl Deadlines {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            store: store::Deadlines::DEFAULT,
            exchange: exchange::Deadlines::default(),
            communicator: Duration::from_secs(30),
            plan: Duration::from_secs(120),
            reform: Reform {
                gather: Duration::from_secs(10),
                join: Duration::from_secs(30),
                whole: Duration::from_secs(120),
            },
        }
    }

    /// Changes one by the name that the table gives it; false for a name that is not in it.
    pub fn set(&mut self, name: &str, time: Duration) -> bool {
        let Self { store, exchange, communicator, plan, reform } = self;
        let field = match name {
            "store.connect" => &mut store.connect,
            "store.operation" => &mut store.operation,
            "store.join" => &mut store.join,
            "store.accept" => &mut store.accept,
            "store.collective" => &mut store.collective,
            "store.renew" => &mut store.renew,
            "store.peer_timeout" => &mut store.peer_timeout,
            "store.keepalive" => &mut store.keepalive,
            "store.silence" => &mut store.silence,
            "store.handshake" => &mut store.handshake,
            "store.frame" => &mut store.frame,
            "store.reply_grace" => &mut store.reply_grace,
            "exchange.transfer" => &mut exchange.transfer,
            "exchange.answer" => &mut exchange.answer,
            "exchange.peer" => &mut exchange.peer,
            "exchange.commit_hold" => &mut exchange.commit_hold,
            "exchange.settle" => &mut exchange.settle,
            "communicator" => communicator,
            "plan" => plan,
            "reform.gather" => &mut reform.gather,
            "reform.join" => &mut reform.join,
            "reform.whole" => &mut reform.whole,
            _ => return false,
        };
        *field = time;
        true
    }

    /// All of them as the table names them, in its order.
    pub fn rows(&self) -> Vec<(&'static str, Duration)> {
        // Taken apart whole, so that a new field cannot be left out.
        let Self { store, exchange, communicator, plan, reform } = *self;
        let Reform { gather, join: joining, whole } = reform;
        let store::Deadlines {
            connect,
            operation,
            join,
            accept,
            collective,
            renew,
            peer_timeout,
            keepalive,
            silence,
            handshake,
            frame,
            reply_grace,
        } = store;
        let exchange::Deadlines { transfer, answer, peer, commit_hold, settle } = exchange;
        vec![
            ("store.connect", connect),
            ("store.operation", operation),
            ("store.join", join),
            ("store.accept", accept),
            ("store.collective", collective),
            ("store.renew", renew),
            ("store.peer_timeout", peer_timeout),
            ("store.keepalive", keepalive),
            ("store.silence", silence),
            ("store.handshake", handshake),
            ("store.frame", frame),
            ("store.reply_grace", reply_grace),
            ("exchange.transfer", transfer),
            ("exchange.answer", answer),
            ("exchange.peer", peer),
            ("exchange.commit_hold", commit_hold),
            ("exchange.settle", settle),
            ("communicator", communicator),
            ("plan", plan),
            ("reform.gather", gather),
            ("reform.join", joining),
            ("reform.whole", whole),
        ]
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a table of the form `| name | default | meaning |`.
    fn table(text: &str) -> Vec<(String, Duration)> {
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let rows = text.lines().map(cells).filter(|row| row.len() == 5 && row[1].starts_with('`'));
        rows.map(|row| (row[1].trim_matches('`').to_owned(), duration(&row[2]))).collect()
    }

    fn duration(text: &str) -> Duration {
        let (number, unit) = text.split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        match unit {
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => panic!("unit {unit}"),
        }
    }

    #[test]
    fn every_deadline_is_changed_by_its_name() {
        let odd = Duration::from_millis(12_345);
        for (at, (name, _)) in Deadlines::new().rows().into_iter().enumerate() {
            let mut deadlines = Deadlines::new();
            assert!(deadlines.set(name, odd), "{name}");
            let changed: Vec<usize> =
                (0..).zip(deadlines.rows()).filter(|(_, (_, t))| *t == odd).map(|(i, _)| i).collect();
            assert_eq!(changed, [at], "{name}");
        }
        assert!(!Deadlines::new().set("tea", odd));
    }

    #[test]
    fn the_table_in_the_docs_says_what_the_defaults_are() {
        let text = include_str!("../../../docs/deadlines.md");
        let defaults: Vec<_> =
            Deadlines::new().rows().into_iter().map(|(name, time)| (name.to_owned(), time)).collect();
        assert_eq!(table(text), defaults);
        // The comparison sees a changed default and a row that is missing.
        assert_ne!(table(&text.replace("`store.accept` | 2 s", "`store.accept` | 3 s")), defaults);
        assert_ne!(table(&text.replace("| `plan` ", "| plan ")), defaults);
    }
}
