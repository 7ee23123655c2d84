//! The progress thread while it stands by for a step ([`stand_in`](super::stand_in)).

use std::time::{Duration, Instant};

use eplb_exchange::Phase;

use super::progress::Progress;
use super::shared::lock;

/// How long it stands by between two looks at the exchange.
const SLICE: Duration = Duration::from_micros(500);
/// How long it stands by for one boundary; then it sleeps between two looks, as ever.
const LONGEST: Duration = Duration::from_millis(50);
/// How often it touches the driver.
const TOUCH: Duration = Duration::from_micros(50);

impl Progress {
    /// Whether the next boundary has something to do, so that this thread stands by for it.
    pub(super) fn look_ahead(&mut self, phase: Phase, agreed: Option<u64>) {
        let next = self.shared.hand.next_step();
        let due = match phase {
            Phase::Draining => true,
            Phase::Committing => agreed.is_none_or(|step| next >= step),
            _ => false,
        };
        let Some(running) = &mut self.running else { return };
        running.stands = match running.stands {
            _ if !due || self.shared.stands_in.is_none() => None,
            Some(since) => Some(since),
            None => Some(Instant::now()),
        };
    }

    /// Stands by for a while, if that is what is to be done; `false`: it is not.
    pub(super) fn stand_by(&mut self) -> bool {
        let stands = self.running.as_ref().and_then(|running| running.stands);
        let Some(set) = stands.filter(|since| since.elapsed() < LONGEST).and_then(|_| self.moving()) else {
            self.leave();
            return false;
        };
        let shared = self.shared.clone();
        shared.stand_in.come();
        let begun = Instant::now();
        let mut touched: Option<Instant> = None;
        while begun.elapsed() < SLICE {
            if self.serve_step() {
                break;
            }
            if touched.is_none_or(|at| at.elapsed() >= TOUCH) {
                if let Err(error) = shared.sets[set].device.as_ref().map_or(Ok(()), |device| device.touch()) {
                    // What the driver refuses shows where it is needed.
                    tracing::debug!(%error, "the driver was not touched");
                }
                touched = Some(Instant::now());
            }
            std::hint::spin_loop();
        }
        true
    }

    /// The layer set whose experts move.
    fn moving(&self) -> Option<usize> {
        lock(&self.shared.core).moving
    }

    /// Carries out the boundary that a step asks for, if one does.
    fn serve_step(&self) -> bool {
        let shared = &*self.shared;
        shared.stand_in.serve(|| {
            let id = lock(&shared.errand).id;
            let outcome = shared.boundary(Some(id), None);
            lock(&shared.errand).outcome = Some(outcome);
        })
    }

    /// Stands by no more.
    pub(super) fn leave(&self) {
        while !self.shared.stand_in.go() {
            self.serve_step();
            std::hint::spin_loop();
        }
    }
}
