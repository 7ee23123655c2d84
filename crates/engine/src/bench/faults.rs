//! A rank that dies in the middle of an exchange: what the others hear of it, and how they go on without it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::deadlines::after;
use eplb_comm::store::{PrefixStore, Store, StoreAddress};
use eplb_core::RankId;

use super::processes::AsRank;
use super::{ExchangeBench, ExchangeReport, Team};
use crate::deadlines::Deadlines;
use crate::error::EngineError;
use crate::process::{Launch, Session};

/// Set by the lowest rank when the exchanges have begun in which a rank is to die.
const MOVING: &str = "bench/moving";

/// Set by each rank, with its number, when its exchange has failed.
const FAILED: &str = "bench/failed";

/// Most exchanges that ranks carry out while they wait for a death.
const MOST_EXCHANGES: usize = 1 << 20;

/// What a rank saw of another's death.
#[derive(Debug, Clone, PartialEq)]
pub struct Survival {
    /// Exchanges that went well before.
    pub exchanges: usize,
    /// The error by which it heard.
    pub error: String,
    /// Bytes of its slots, as the placement in force names them after the error, that were wrong.
    pub bytes_wrong: u64,
    /// What the ranks that are left measured over a new communicator.
    pub after: ExchangeReport,
}

impl ExchangeBench {
    /// Exchanges as one rank of a session until `victim` is gone, which is killed from outside ([`watch`]); then checks what this rank
    /// has, makes a new communicator with the ranks that are left, and measures exchanges over it.
    ///
    /// # Errors
    /// Nobody died, or the ranks that are left cannot go on.
    pub fn survive(
        &self,
        store: &Arc<dyn Store>,
        mut session: Session,
        victim: RankId,
        deadlines: &Deadlines,
    ) -> Result<Survival, EngineError> {
        let me = session.rank();
        let setup = self.setup()?;
        let mut rank = AsRank::join(self, &setup, &mut session)?;
        rank.fill()?;
        let mut placement = setup.start.clone();
        let mut exchanges = 0;
        let error = loop {
            let plan = Arc::new(self.plan(&setup, &placement, exchanges)?);
            placement = plan.target().clone();
            if exchanges == self.warmup && me == RankId(0) {
                store.set(MOVING, b"", after(deadlines.store.operation))?;
            }
            match rank.exchange_own(&plan, &setup.topology) {
                Ok(_) => exchanges += 1,
                Err(error) => break error,
            }
            if exchanges == MOST_EXCHANGES {
                let text = format!("{victim} is to be killed, but {exchanges} exchanges went well");
                return Err(EngineError::Options(text));
            }
        };
        if me == victim {
            // Stopped, and let run on: the others have gone on without it.
            return Err(error);
        }
        store.set(&format!("{FAILED}/{}", me.0), b"", after(deadlines.store.operation))?;
        let bytes_wrong = rank.worker().check()?;
        // Its communicator, its memory: what is left of them goes before anything new is made.
        drop(rank);
        drop(session);
        let corner: Arc<dyn Store> = Arc::new(PrefixStore::new(store.clone(), "bench/after/")?);
        let number = if me > victim { me.index() - 1 } else { me.index() };
        let rest = self.without_one();
        let session = Session::join(corner, RankId::at(number), rest.ranks, deadlines)?;
        let after = rest.run_as_rank(session)?;
        Ok(Survival { exchanges, error: error.to_string(), bytes_wrong, after })
    }

    /// The same bench with one rank less, and at least as many slots as experts.
    fn without_one(&self) -> Self {
        let ranks = self.ranks - 1;
        let slots = ((self.experts + self.redundant) / self.ranks).max(self.experts.div_ceil(ranks)) * ranks;
        Self { ranks, redundant: slots - self.experts, ..self.clone() }
    }
}

/// What befalls a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// `SIGKILL`.
    Killed,
    /// `SIGSTOP`, until the others have had their errors; then it runs on, and has to find that it belongs to them no more.
    Stopped,
}

/// Lets its fate befall `victim` of a launch, `delay` after the exchanges have begun in which it is to; when each of the others
/// had its error, counted from then, in the order of ranks.
///
/// # Errors
/// The exchanges do not begin, a rank does not hear of it within `patience`, or the store fails.
pub fn watch(
    launch: &mut Launch,
    ranks: usize,
    (victim, fate): (RankId, Fate),
    delay: Duration,
    patience: Duration,
) -> Result<Vec<(RankId, Duration)>, EngineError> {
    let deadlines = Deadlines::new();
    let address: StoreAddress = launch.store();
    let store = address.open(None, &deadlines.store, after(deadlines.store.connect))?;
    store.wait(&[MOVING], after(patience))?;
    std::thread::sleep(delay);
    match fate {
        Fate::Killed => launch.kill(victim)?,
        #[cfg(target_os = "linux")]
        Fate::Stopped => launch.hold(victim, true)?,
        #[cfg(not(target_os = "linux"))]
        Fate::Stopped => return Err(EngineError::Options("ranks are stopped on Linux only".into())),
    }
    let killed = Instant::now();
    let mut heard = Vec::new();
    for rank in (0..ranks).map(RankId::at).filter(|&rank| rank != victim) {
        // Those that had it before are seen at once, and not later than they were.
        store.wait(&[&format!("{FAILED}/{}", rank.0)], after(patience))?;
        heard.push((rank, killed.elapsed()));
    }
    #[cfg(target_os = "linux")]
    if fate == Fate::Stopped {
        launch.hold(victim, false)?;
    }
    Ok(heard)
}
