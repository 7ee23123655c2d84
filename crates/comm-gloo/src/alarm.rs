//! How a failure reaches all ranks: one record per generation, where the first failure stays, and a bell for each rank.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::CommError;
use eplb_comm::store::{CasOutcome, Store, StoreError};
use eplb_core::RankId;

/// Key of the record of a generation.
const FAULT: &str = "fault";

/// How long a listener waits before it looks at the record although nobody rang: whoever made it may have died before
/// ringing.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What ended a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The rank that noticed or decided it.
    pub(crate) origin: RankId,
    /// The rank that it blames, itself if it gave up by itself.
    pub(crate) blamed: RankId,
    /// Whether somebody asked for it.
    pub(crate) abort: bool,
    pub(crate) cause: String,
}

/// Longest cause that is recorded, bytes.
const CAUSE_BYTES: usize = 600;

impl Fault {
    /// A rank that failed in its own part.
    pub(crate) fn own(rank: RankId, cause: String) -> Self {
        Self { origin: rank, blamed: rank, abort: false, cause }
    }

    fn encode(&self) -> Vec<u8> {
        let kind = if self.abort { 'a' } else { 'f' };
        let mut cut = self.cause.len().min(CAUSE_BYTES);
        while !self.cause.is_char_boundary(cut) {
            cut -= 1;
        }
        format!("{kind} {} {} {}", self.origin.0, self.blamed.0, &self.cause[..cut]).into_bytes()
    }

    /// Any record says that the generation is over, one that cannot be read as well.
    fn decode(record: &[u8]) -> Self {
        let text = String::from_utf8_lossy(record);
        let mut parts = text.splitn(4, ' ');
        let kind = parts.next();
        let mut rank = || parts.next().and_then(|part| part.parse().ok()).map(RankId);
        match (kind, rank(), rank(), parts.next()) {
            (Some(kind), Some(origin), Some(blamed), Some(cause)) => {
                Self { origin, blamed, abort: kind == "a", cause: cause.to_owned() }
            }
            _ => Self::own(RankId(0), format!("an unreadable record: {text:.80}")),
        }
    }

    /// What a rank reports of it.
    pub(crate) fn error(&self, rank: RankId) -> CommError {
        let said = match self.origin == rank {
            true => self.cause.clone(),
            false => format!("{} says: {}", self.origin, self.cause),
        };
        match self.abort {
            true => CommError::Aborted { rank, cause: said },
            false => CommError::Transfer { rank, peer: self.blamed, cause: said },
        }
    }
}

/// The record and the bells of one generation. `store` is the corner of that generation.
#[derive(Debug, Clone)]
pub(crate) struct Alarm {
    store: Arc<dyn Store>,
    rank: RankId,
    world_size: usize,
}

fn bell(rank: usize) -> String {
    format!("bell/{rank}")
}

impl Alarm {
    pub(crate) fn new(store: Arc<dyn Store>, rank: RankId, world_size: usize) -> Self {
        Self { store, rank, world_size }
    }

    /// Puts a fault on record, unless there is one: the one that counts, and whether it is this one.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn record(&self, fault: &Fault, deadline: Instant) -> Result<(Fault, bool), StoreError> {
        match self.store.compare_and_set(FAULT, None, &fault.encode(), deadline)? {
            CasOutcome::Swapped => Ok((fault.clone(), true)),
            // Absent again cannot be: records are not deleted.
            CasOutcome::Current(record) => Ok((Fault::decode(&record.unwrap_or_default()), false)),
        }
    }

    /// Wakes the listeners of all other ranks.
    ///
    /// # Errors
    /// The store failed; the others look by themselves after a while.
    pub(crate) fn ring(&self, deadline: Instant) -> Result<(), StoreError> {
        (0..self.world_size)
            .filter(|&rank| rank != self.rank.index())
            .try_for_each(|rank| self.store.set(&bell(rank), b"fault", deadline))
    }

    /// The record, if there is one.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn look(&self, deadline: Instant) -> Result<Option<Fault>, StoreError> {
        Ok(self.store.get(FAULT, deadline)?.map(|record| Fault::decode(&record)))
    }

    /// Waits until there is a record; `None` once [`Alarm::dismiss`] was called.
    ///
    /// # Errors
    /// The store failed for good, or cannot be asked.
    pub(crate) fn listen(&self) -> Result<Option<Fault>, StoreError> {
        let own = bell(self.rank.index());
        loop {
            let rung = match self.store.wait_change(&own, None, Instant::now() + LOOK_AGAIN) {
                Ok(rung) => rung,
                Err(error) if error.is_timeout() => None,
                Err(error) => return Err(error),
            };
            if rung.as_deref() == Some(b"dismissed") {
                return Ok(None);
            }
            match self.look(Instant::now() + LOOK_AGAIN) {
                Ok(Some(fault)) => return Ok(Some(fault)),
                Ok(None) => {}
                Err(error) if error.is_timeout() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends this rank's listening.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn dismiss(&self, deadline: Instant) -> Result<(), StoreError> {
        self.store.set(&bell(self.rank.index()), b"dismissed", deadline)
    }

    /// Removes this rank's bell.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn remove(&self, deadline: Instant) -> Result<(), StoreError> {
        self.store.delete(&bell(self.rank.index()), deadline).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eplb_comm::store::InProcessStore;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn fault(origin: u32, cause: &str) -> Fault {
        Fault { origin: RankId(origin), blamed: RankId(7), abort: false, cause: cause.into() }
    }

    #[test]
    fn records_are_read_as_written() {
        for one in [fault(3, "cable cut"), Fault { abort: true, ..fault(0, "") }] {
            assert_eq!(Fault::decode(&one.encode()), one);
        }
        let long = fault(1, &"ü".repeat(CAUSE_BYTES));
        assert!(Fault::decode(&long.encode()).cause.len() <= CAUSE_BYTES);
        assert!(Fault::decode(b"\xff").cause.contains("unreadable"));
    }

    #[test]
    fn the_first_record_stays() {
        let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
        let alarms: Vec<_> = (0..2).map(|rank| Alarm::new(store.clone(), RankId(rank), 2)).collect();
        assert_eq!(alarms[0].look(soon()), Ok(None));
        let (first, second) = (fault(0, "first"), fault(1, "second"));
        assert_eq!(alarms[0].record(&first, soon()), Ok((first.clone(), true)));
        assert_eq!(alarms[1].record(&second, soon()), Ok((first.clone(), false)));
        assert_eq!(alarms[1].look(soon()), Ok(Some(first)));
    }

    #[test]
    fn a_listener_hears_the_bell_and_its_dismissal() {
        let store: Arc<dyn Store> = Arc::new(InProcessStore::new());
        let alarms: Vec<_> = (0..3).map(|rank| Alarm::new(store.clone(), RankId(rank), 3)).collect();
        let listeners: Vec<_> =
            alarms[1..].iter().cloned().map(|alarm| std::thread::spawn(move || alarm.listen())).collect();
        alarms[2].dismiss(soon()).unwrap();
        let said = fault(0, "cable cut");
        alarms[0].record(&said, soon()).unwrap();
        alarms[0].ring(soon()).unwrap();
        let heard: Vec<_> = listeners.into_iter().map(|listener| listener.join().unwrap()).collect();
        assert_eq!(heard[0], Ok(Some(said.clone())));
        // Rung and dismissed at about the same time: either.
        assert!(heard[1] == Ok(None) || heard[1] == Ok(Some(said)));
    }

    #[test]
    fn a_record_is_found_without_a_bell() {
        let alarm = Alarm::new(Arc::new(InProcessStore::new()), RankId(0), 2);
        let said = fault(1, "died before it rang");
        alarm.record(&said, soon()).unwrap();
        assert_eq!(alarm.listen(), Ok(Some(said)));
    }
}
