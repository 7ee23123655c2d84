//! Threads of a planner, each with scratch memory that lives as long as the planner.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use crate::error::PlanError;
use crate::policy::Scratch;

/// A rayon pool of its own, never the global one, and one [`Scratch`] per thread.
///
/// Layers are handed out one by one. What a layer computes may depend on the layer alone and on nothing left in
/// the scratch, so results do not depend on the number of threads. The closures must not use rayon themselves: a
/// thread that waits inside a layer could be handed another one and find its scratch taken.
#[derive(Debug)]
pub(crate) struct Workers {
    pool: Option<rayon::ThreadPool>,
    scratch: Vec<Mutex<Scratch>>,
}

impl Workers {
    /// `threads` workers; one thread means the caller's own.
    pub(crate) fn new(threads: usize) -> Result<Self, PlanError> {
        if threads == 0 {
            return Err(PlanError::Option {
                option: "threads",
                value: "0".into(),
                expected: "give at least 1",
            });
        }
        let pool = if threads == 1 {
            None
        } else {
            let built = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|i| format!("eplb-plan-{i}"))
                .build();
            Some(built.map_err(|e| PlanError::Threads { threads, reason: e.to_string() })?)
        };
        Ok(Self { pool, scratch: (0..threads).map(|_| Mutex::default()).collect() })
    }

    /// Number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.scratch.len()
    }

    /// Runs `work(layer, row of that layer, scratch)` for every layer of `rows`, `[L, slots]` in C order.
    pub(crate) fn for_each_layer<T, F>(&self, rows: &mut [T], slots: usize, work: F)
    where
        T: Send,
        F: Fn(usize, &mut [T], &mut Scratch) + Sync,
    {
        match &self.pool {
            None => {
                let scratch = &mut *self.scratch_of(0);
                rows.chunks_exact_mut(slots).enumerate().for_each(|(l, row)| work(l, row, scratch));
            }
            Some(pool) => pool.install(|| {
                rows.par_chunks_exact_mut(slots).enumerate().for_each(|(layer, row)| {
                    work(layer, row, &mut self.own_scratch());
                });
            }),
        }
    }

    /// `work(layer, scratch)` for every layer, results in order of layer.
    pub(crate) fn map_layers<R, F>(&self, layers: usize, work: F) -> Vec<R>
    where
        R: Send,
        F: Fn(usize, &mut Scratch) -> R + Sync,
    {
        match &self.pool {
            None => {
                let scratch = &mut *self.scratch_of(0);
                (0..layers).map(|layer| work(layer, scratch)).collect()
            }
            Some(pool) => pool.install(|| {
                (0..layers).into_par_iter().map(|layer| work(layer, &mut self.own_scratch())).collect()
            }),
        }
    }

    fn own_scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch_of(rayon::current_thread_index().unwrap_or(0))
    }

    /// A panic elsewhere leaves nothing in a scratch that the next layer reads: every user clears what it needs.
    fn scratch_of(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
