//! What lies between ranks: stores and transports whose operations take a moment longer here and there, and faults planted in them.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::Communicator;
use eplb_comm::host::HostMemory;
use eplb_comm::store::{Store, StoreError, StoreIntercept, StoreOp};
use eplb_core::{LayerId, ModelLayout, Placement, RankId};
use eplb_engine::EngineError;
use eplb_engine::process::{LocalTransport, Meeting, Transport};
use fastrand::Rng;

/// Longest wait without a look whether the case is over.
const LOOK: Duration = Duration::from_millis(50);

/// What is wrong, in tests that want it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planted {
    Nothing,
    /// Who waits in the store for others to form an epoch hears of nothing else.
    DeafInStore,
    /// Who has made communicators once waits in the transport, whatever happens.
    DeafInTransport,
    /// Two slots of a rank have been exchanged behind its back.
    WrongBytes,
}

/// One for all ranks of a case: what is planted, its end, and the pauses.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    planted: Planted,
    over: Arc<AtomicBool>,
    draw: Arc<Mutex<Rng>>,
}

impl Trouble {
    pub(super) fn new(planted: Planted, seed: u64) -> Self {
        let draw = Rng::with_seed(seed ^ 0x7265_7469_6b61);
        Self { planted, over: Arc::default(), draw: Arc::new(Mutex::new(draw)) }
    }

    pub(super) fn planted(&self) -> Planted {
        self.planted
    }

    /// Ends what is planted, so that threads do.
    pub(super) fn pass(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    fn is_deaf(&self, planted: Planted) -> bool {
        self.planted == planted && !self.over.load(Ordering::SeqCst)
    }

    /// A wait that ends when the case does, and, of one that is deaf, not when its time is over.
    fn pieces<T>(
        &self,
        deaf: bool,
        deadline: Instant,
        wait: impl Fn(Instant) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        loop {
            let now = Instant::now();
            let piece = if deaf { now + LOOK } else { deadline.min(now + LOOK) };
            match wait(piece) {
                Err(error) if error.is_timeout() && (deaf || piece < deadline) => {
                    self.before(StoreOp::Wait, &[])?
                }
                ended => return ended,
            }
        }
    }

    /// Mostly nothing.
    fn pause(&self) {
        let micros = {
            let mut draw = self.draw.lock().unwrap();
            if draw.u32(..16) == 0 { draw.u64(..3_000) } else { 0 }
        };
        if micros > 0 {
            std::thread::sleep(Duration::from_micros(micros));
        }
    }
}

impl StoreIntercept for Trouble {
    fn before(&self, _: StoreOp, _: &[&str]) -> Result<(), StoreError> {
        self.pause();
        if self.over.load(Ordering::SeqCst) {
            return Err(StoreError::Lost { store: "the case".into(), cause: "something was found".into() });
        }
        Ok(())
    }

    fn wait(&self, inner: &dyn Store, keys: &[&str], deadline: Instant) -> Result<(), StoreError> {
        self.pieces(false, deadline, |piece| inner.wait(keys, piece))
    }

    fn wait_change(
        &self,
        inner: &dyn Store,
        key: &str,
        known: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let deaf = self.planted == Planted::DeafInStore && (key == "hello-bell" || key == "epoch");
        self.pieces(deaf, deadline, |piece| inner.wait_change(key, known, piece))
    }
}

/// The `local` backend, with memory that holds the experts of the placement to start with.
#[derive(Debug)]
pub(super) struct Filled {
    inner: Arc<LocalTransport>,
    start: Placement,
    trouble: Trouble,
    /// Whether the first communicators are made.
    met: AtomicBool,
}

impl Filled {
    pub(super) fn new(start: Placement, trouble: Trouble) -> Self {
        Self { inner: LocalTransport::new(1), start, trouble, met: AtomicBool::new(false) }
    }
}

impl Transport for Filled {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn memory(
        &self,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<HostMemory>, EngineError> {
        let memory = self.inner.memory(rank, layout, slots.clone(), staging_bytes)?;
        for layer in (0..self.start.layers()).map(LayerId::at) {
            for slot in slots.clone().map(eplb_core::SlotId::at) {
                if let Some(expert) = self.start.expert_at(layer, slot) {
                    memory.fill(layer, slot, expert)?;
                }
            }
        }
        Ok(memory)
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        self.trouble.pause();
        while self.met.load(Ordering::SeqCst) && self.trouble.is_deaf(Planted::DeafInTransport) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Not for as long as the engine would wait, once something was found: nothing ends a wait here.
        let made = self.inner.connect(meeting)?;
        self.met.store(true, Ordering::SeqCst);
        Ok(made)
    }
}
