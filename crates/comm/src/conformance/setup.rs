//! Ranks, slots and layouts that checks run on.

use std::ops::Range;
use std::sync::Arc;

use eplb_core::{CoreError, ModelLayout, TensorLayout};

/// What the ranks of a check own.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What is special about it.
    pub name: &'static str,
    /// Tensors per layer of each rank: the same rows, maybe other pitches.
    pub layouts: Vec<Arc<ModelLayout>>,
    /// Slots of each rank, numbered over all ranks.
    pub slots: Vec<Range<usize>>,
    /// Bytes of staging of each rank.
    pub staging_bytes: usize,
}

fn pitched(name: &str, rows: usize, row_bytes: usize, gap: usize) -> TensorLayout {
    let pitch = row_bytes + gap;
    TensorLayout { name: name.into(), rows, row_bytes, pitch, slot_stride: rows * pitch + 5 * gap }
}

impl Setup {
    /// Ranks with `slots(rank)` slots each and staging for two experts of every layer.
    fn new(
        name: &'static str,
        ranks: usize,
        slots: impl Fn(usize) -> usize,
        tensors: impl Fn(usize) -> Vec<Vec<TensorLayout>>,
    ) -> Result<Self, CoreError> {
        let layouts: Vec<_> =
            (0..ranks).map(|rank| ModelLayout::new(tensors(rank)).map(Arc::new)).collect::<Result<_, _>>()?;
        let mut next = 0;
        let slots = (0..ranks)
            .map(|rank| {
                let first = next;
                next += slots(rank);
                first..next
            })
            .collect();
        let staged = |layer| layouts[0].layer(eplb_core::LayerId::at(layer)).staged_bytes();
        let staging_bytes = 2 * (0..layouts[0].layers()).map(staged).sum::<usize>();
        Ok(Self { name, layouts, slots, staging_bytes })
    }

    /// Small tensors of round sizes; ranks differ by one slot.
    pub(super) fn plain(ranks: usize) -> Result<Self, CoreError> {
        Self::new(
            "plain",
            ranks,
            |rank| 4 + rank % 2,
            |_| {
                let layer = vec![
                    TensorLayout::contiguous("w13", 4096),
                    TensorLayout::contiguous("w2", 2048),
                    TensorLayout::contiguous("scale", 64),
                ];
                vec![layer.clone(), layer]
            },
        )
    }

    /// Copies that take a while: 4 slots of 1 MiB and 40 bytes.
    pub(super) fn heavy(ranks: usize) -> Result<Self, CoreError> {
        Self::new(
            "heavy",
            ranks,
            |_| 4,
            |_| vec![vec![TensorLayout::contiguous("w", 1 << 20), TensorLayout::contiguous("scale", 40)]],
        )
    }

    /// Layouts that break copies which assume too much: odd sizes, single bytes, rows with gaps that differ by rank, layers
    /// that differ, an expert large enough to be cut.
    pub(super) fn all(ranks: usize) -> Result<Vec<Self>, CoreError> {
        let odd = Self::new(
            "odd sizes",
            ranks,
            |_| 3,
            |_| {
                let sizes = [1, 3, 17, 4097, 255];
                vec![
                    sizes.iter().map(|&bytes| TensorLayout::contiguous(format!("t{bytes}"), bytes)).collect(),
                ]
            },
        )?;
        let rows = Self::new(
            "pitched rows",
            ranks,
            |_| 3,
            |rank| {
                vec![
                    vec![pitched("w", 5, 7, 1 + rank), pitched("scale", 1, 3, 2), pitched("flat", 4, 16, 0)],
                    // Gaps on some ranks only: a copy must not take a tensor for contiguous because one side is.
                    vec![pitched("w", 33, 100, if rank % 2 == 0 { 0 } else { 28 })],
                ]
            },
        )?;
        let mixed = Self::new(
            "layers that differ",
            ranks,
            |_| 3,
            |rank| {
                vec![
                    vec![TensorLayout::contiguous("bias", 1)],
                    vec![
                        TensorLayout::contiguous("w", (4 << 20) + 13),
                        TensorLayout::contiguous("scale", 24),
                    ],
                    vec![pitched("w", 700, 1000, 24 * rank)],
                ]
            },
        )?;
        Ok(vec![Self::plain(ranks)?, odd, rows, mixed])
    }
}
