//! A store whose waits a rank can leave.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Store;
use super::error::{StoreError, StoreOp};
use super::intercept::{InterceptedStore, StoreIntercept};

/// Passes everything on; its waits end with [`StoreError::Interrupted`] soon after an [`Interrupt`] says so, whatever their deadlines. For waits
/// for other ranks, which a rank that is told to end must not sit out.
pub type InterruptibleStore = InterceptedStore<Interrupt>;

/// Longest time that a wait looks at the store without a look at its interrupt.
const LOOK: Duration = Duration::from_millis(50);

/// Says whether waits are to end now. Clones ask the same.
#[derive(Clone)]
pub struct Interrupt(Arc<dyn Fn() -> bool + Send + Sync>);

impl Interrupt {
    /// One that is asked at least every 50 ms of a wait, from the thread that waits.
    pub fn new(now: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// One that never ends anything.
    pub fn never() -> Self {
        Self::new(|| false)
    }

    /// A wait in pieces; `wait` is one until a moment, and a timeout of it has looked at the store.
    fn pieces<T>(
        &self,
        op: StoreOp,
        keys: &[&str],
        deadline: Instant,
        mut wait: impl FnMut(Instant) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        loop {
            if (self.0)() {
                let keys = keys.iter().map(|&key| key.to_owned()).collect();
                return Err(StoreError::Interrupted { op, keys });
            }
            let piece = deadline.min(Instant::now() + LOOK);
            match wait(piece) {
                Err(StoreError::Timeout { op, keys, .. }) => {
                    if piece == deadline {
                        return Err(StoreError::Timeout { op, keys, waited: begun.elapsed() });
                    }
                }
                ended => return ended,
            }
        }
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupt").field(&(self.0)()).finish()
    }
}

impl StoreIntercept for Interrupt {
    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        // A key that was there once need not be there again.
        let mut missing: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
        self.pieces(StoreOp::Wait, keys, deadline, |piece| {
            let waited = inner.wait(&missing.iter().map(String::as_str).collect::<Vec<_>>(), piece);
            if let Err(StoreError::Timeout { keys, .. }) = &waited {
                missing.clone_from(keys);
            }
            waited
        })
    }

    fn wait_change(
        &self,
        inner: &dyn Store,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.pieces(StoreOp::WaitChange, &[key], deadline, |piece| inner.wait_change(key, known, piece))
    }
}
