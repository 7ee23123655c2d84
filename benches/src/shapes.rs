//! Models, clusters and loads that planners are measured on.

use std::path::Path;

use eplb_core::LoadMatrix;
use eplb_trace::generate::Spec;
use eplb_trace::{Trace, TraceError};

/// Two kinds of loads: power laws, and lognormal.
pub const KINDS: [&str; 2] = ["zipf", "lognormal"];

/// A model on a number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The model, as [`Spec::preset`] names it.
    pub model: &'static str,
    /// Slots per layer.
    pub slots: usize,
    /// Ranks.
    pub ranks: usize,
}

impl Shape {
    /// Model, slots and ranks, for tables.
    pub fn name(&self) -> String {
        format!("{} {} slots {} ranks", self.model, self.slots, self.ranks)
    }

    /// The loads of one of [`KINDS`] before and after a drift: the first and second of two steps.
    ///
    /// # Errors
    /// A kind that does not exist.
    pub fn loads(&self, kind: &str, seed: u64) -> Result<[LoadMatrix; 2], TraceError> {
        let name = format!("{}-{kind}", self.model);
        let spec = Spec::preset(&name).ok_or_else(|| TraceError::Spec {
            field: "preset",
            reason: format!("{name:?} does not exist: give a model of SHAPES and a kind of KINDS"),
        })?;
        let trace = Spec { seed, ..spec }.generate()?;
        Ok([trace.loads(0..1)?, trace.loads(1..2)?])
    }

    /// The same from the file `<model>_<kind>.npy` of a folder: counts `[2, L, E]`.
    ///
    /// # Errors
    /// A file that cannot be read or has fewer steps.
    pub fn loads_in(&self, folder: &Path, kind: &str) -> Result<[LoadMatrix; 2], TraceError> {
        let trace = Trace::open(folder.join(format!("{}_{kind}.npy", self.model)))?;
        Ok([trace.loads(0..1)?, trace.loads(1..2)?])
    }
}

/// What is measured.
pub const SHAPES: [Shape; 7] = [
    Shape { model: "dsv3", slots: 288, ranks: 32 },
    Shape { model: "k2", slots: 448, ranks: 64 },
    Shape { model: "k2", slots: 512, ranks: 128 },
    Shape { model: "dsv3", slots: 288, ranks: 72 },
    Shape { model: "qwen3", slots: 160, ranks: 32 },
    Shape { model: "dsv3", slots: 256, ranks: 8 },
    Shape { model: "k2", slots: 2048, ranks: 1024 },
];
