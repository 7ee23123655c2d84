//! Which wave is launched next, on all ranks alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::CommError;
use eplb_comm::store::{CasOutcome, Store};
use eplb_core::RankId;

use crate::error::store;

/// Longest time that an operation of the store may take: it is small, and others wait for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Agreement of the ranks of a communicator, through the store.
///
/// A rank that is ready for a wave compares its hash with the first that came, then counts itself. Who completes the count
/// gives the wave the next position in the order of launches. Every rank launches by position. So no rank launches a
/// wave before all are ready for it, and all launch in one order, however their fences pass.
///
/// Where the server launches, at its steps, a rank that finds all ready when it begins step `n` proposes step `n + 2`. Ranks are at
/// most one step apart, so a rank that begins `n + 2` does so after the proposer has begun `n + 1`, that is after the
/// proposal, and finds it: every rank launches before the same step.
///
/// Keys, below a prefix of the communicator's own: `hash/<wave>`, `ready/<wave>`, `order`, `launch/<position>`,
/// `over/<position>`, `failed`. The keys of a wave are deleted when every rank is done with it.
#[derive(Debug)]
pub(crate) struct Agreement {
    store: Arc<dyn Store>,
    rank: RankId,
    size: usize,
    position: u64,
    /// Whether waves are launched at steps, which ranks propose, and not as soon as all are ready.
    by_step: bool,
}

/// A wave's place in the order of launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position(u64);

/// What `launch/<position>` holds: wave and step.
fn launch(wave: u64, step: u64) -> Vec<u8> {
    [wave, step].iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

impl Agreement {
    pub(crate) fn new(store: Arc<dyn Store>, rank: RankId, size: usize, by_step: bool) -> Self {
        Self { store, rank, size, position: 0, by_step }
    }

    /// This rank is ready for a wave.
    ///
    /// # Errors
    /// Another rank has another wave of this number, or the store failed.
    pub(crate) fn ready(&self, wave: u64, hash: u64) -> Result<(), CommError> {
        let lost = |error| store(error, self.rank);
        let mut mine = hash.to_le_bytes().to_vec();
        mine.extend(self.rank.0.to_le_bytes());
        let key = format!("hash/{wave}");
        match self.store.compare_and_set(&key, None, &mine, deadline()).map_err(lost)? {
            CasOutcome::Swapped => {}
            CasOutcome::Current(theirs) => {
                let theirs = theirs.unwrap_or_default();
                if theirs.get(..8) != mine.get(..8) {
                    let peer =
                        theirs.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
                    return Err(CommError::Transfer {
                        rank: self.rank,
                        peer: RankId(peer.unwrap_or(u32::MAX)),
                        cause: format!(
                            "its wave {wave} is another than ours; the ranks planned differently and nothing was sent"
                        ),
                    });
                }
            }
        }
        if self.add(&format!("ready/{wave}"))? == self.size as i64 && !self.by_step {
            let position = self.add("order")? - 1;
            let key = format!("launch/{position}");
            self.store.set(&key, &launch(wave, 0), deadline()).map_err(lost)?;
        }
        Ok(())
    }

    /// Gives a wave that all ranks are ready for the next position, to be launched before step `step`, if no other rank was
    /// faster. This rank is about to begin a step at least two before it.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn propose(&self, wave: u64, step: u64) -> Result<(), CommError> {
        let lost = |error| store(error, self.rank);
        let ready = self.store.get(&format!("ready/{wave}"), deadline()).map_err(lost)?;
        let all = self.size.to_string();
        if ready.as_deref() == Some(all.as_bytes()) {
            let key = format!("launch/{}", self.position);
            // Another rank's proposal stands; it is read at the next step.
            let _ = self.store.compare_and_set(&key, None, &launch(wave, step), deadline()).map_err(lost)?;
        }
        Ok(())
    }

    /// The wave to launch next and the first step that must not begin before, once they are known.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn next(&self) -> Result<Option<(u64, u64)>, CommError> {
        let value = self.store.get(&format!("launch/{}", self.position), deadline());
        let value = value.map_err(|error| store(error, self.rank))?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        Ok(value.and_then(|bytes| Some((number(bytes.get(..8)?)?, number(bytes.get(8..)?)?))))
    }

    /// The wave of [`Agreement::next`] is launched; on to the one behind it.
    pub(crate) fn launched(&mut self) -> Position {
        self.position += 1;
        Position(self.position - 1)
    }

    /// This rank is done with a wave; the last one clears up.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn over(&self, position: Position, wave: u64) -> Result<(), CommError> {
        let over = format!("over/{}", position.0);
        if self.add(&over)? == self.size as i64 {
            let launch = format!("launch/{}", position.0);
            for key in [over, launch, format!("hash/{wave}"), format!("ready/{wave}")] {
                self.store.delete(&key, deadline()).map_err(|error| store(error, self.rank))?;
            }
        }
        Ok(())
    }

    /// Tells the others that this rank gave up. As good as it goes: they have deadlines of their own.
    pub(crate) fn fail(&self, cause: &str) {
        let mut told = self.rank.0.to_le_bytes().to_vec();
        told.extend(cause.as_bytes());
        // The first that failed is the one to be named.
        let _ = self.store.compare_and_set("failed", None, &told, deadline());
    }

    /// Which rank gave up first, and why.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) fn failed(&self) -> Result<Option<(RankId, String)>, CommError> {
        let told = self.store.get("failed", deadline()).map_err(|error| store(error, self.rank))?;
        Ok(told.map(|told| {
            let rank =
                told.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(u32::MAX, u32::from_le_bytes);
            let cause = String::from_utf8_lossy(told.get(4..).unwrap_or_default()).into_owned();
            (RankId(rank), cause)
        }))
    }

    fn add(&self, key: &str) -> Result<i64, CommError> {
        self.store.add(key, 1, deadline()).map_err(|error| store(error, self.rank))
    }
}
