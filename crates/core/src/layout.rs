//! Where the bytes of an expert lie inside the server's tensors.

use crate::error::CoreError;
use crate::ids::LayerId;

/// Alignment of a tensor inside a staged expert, in bytes: the widest vector load of a GPU.
pub const STAGING_ALIGN: usize = 16;

/// One tensor of a layer that has a first axis of slots: weights, scales, any dtype, as bytes.
///
/// Each slot is a block of `rows` rows of `row_bytes` bytes, `pitch` bytes apart; slots are `slot_stride` bytes
/// apart. A contiguous tensor has one row per slot and `slot_stride == row_bytes`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorLayout {
    /// Name, for messages.
    pub name: String,
    /// Rows per slot.
    pub rows: usize,
    /// Bytes of a row that belong to the expert.
    pub row_bytes: usize,
    /// Bytes from one row to the next.
    pub pitch: usize,
    /// Bytes from one slot to the next.
    pub slot_stride: usize,
}

impl TensorLayout {
    /// A tensor whose slots are contiguous blocks of `bytes` bytes, one after another.
    pub fn contiguous(name: impl Into<String>, bytes: usize) -> Self {
        Self { name: name.into(), rows: 1, row_bytes: bytes, pitch: bytes, slot_stride: bytes }
    }

    /// Bytes of one expert in this tensor, without gaps.
    pub fn expert_bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// Bytes from the first to after the last byte of a slot, gaps included.
    pub fn slot_span(&self) -> usize {
        (self.rows - 1) * self.pitch + self.row_bytes
    }

    fn check(&self, layer: LayerId) -> Result<(), CoreError> {
        let fail = |reason: String| Err(CoreError::Layout { layer, tensor: self.name.clone(), reason });
        if self.rows == 0 || self.row_bytes == 0 {
            return fail(
                "a slot has no bytes: give at least one row of one byte, or leave the tensor out".into(),
            );
        }
        if self.rows > 1 && self.pitch < self.row_bytes {
            return fail(format!("rows of {} bytes overlap at a pitch of {}", self.row_bytes, self.pitch));
        }
        let span = (self.rows - 1)
            .checked_mul(self.pitch)
            .and_then(|n| n.checked_add(self.row_bytes))
            .filter(|&n| n <= isize::MAX as usize);
        match span {
            None => fail("a slot is larger than the address space".into()),
            // Slots may interleave row by row (slot_stride < span) only where the rows stay apart.
            Some(span) if self.slot_stride < span => {
                fail(format!("slots of {span} bytes overlap at a stride of {}", self.slot_stride))
            }
            Some(_) => Ok(()),
        }
    }
}

/// The tensors of one layer. All of them move together, as one expert.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerLayout {
    tensors: Vec<TensorLayout>,
    staging_offset: Vec<usize>,
    expert_bytes: usize,
    staged_bytes: usize,
}

impl LayerLayout {
    fn new(layer: LayerId, tensors: Vec<TensorLayout>) -> Result<Self, CoreError> {
        if tensors.is_empty() {
            return Err(CoreError::Layout {
                layer,
                tensor: String::new(),
                reason: "the layer has no tensors".into(),
            });
        }
        let mut staging_offset = Vec::with_capacity(tensors.len());
        let (mut expert_bytes, mut staged_bytes) = (0usize, 0usize);
        for tensor in &tensors {
            tensor.check(layer)?;
            staging_offset.push(staged_bytes);
            // At least as many as those of the expert without gaps. A tensor's own were compared with the address space just before.
            let end = staged_bytes.checked_add(tensor.expert_bytes().next_multiple_of(STAGING_ALIGN));
            staged_bytes =
                end.filter(|&end| end <= isize::MAX as usize).ok_or_else(|| CoreError::Layout {
                    layer,
                    tensor: tensor.name.clone(),
                    reason: "with the tensors before it an expert is larger than the address space".into(),
                })?;
            expert_bytes += tensor.expert_bytes();
        }
        Ok(Self { tensors, staging_offset, expert_bytes, staged_bytes })
    }

    /// The tensors.
    pub fn tensors(&self) -> &[TensorLayout] {
        &self.tensors
    }

    /// Bytes of one expert over all tensors: what crosses a link.
    pub fn expert_bytes(&self) -> usize {
        self.expert_bytes
    }

    /// Bytes that one expert takes in staging: tensors without gaps, each aligned to [`STAGING_ALIGN`].
    pub fn staged_bytes(&self) -> usize {
        self.staged_bytes
    }

    /// Where each tensor begins inside a staged expert, `[tensors]`.
    pub fn staging_offsets(&self) -> &[usize] {
        &self.staging_offset
    }
}

/// The tensors of every layer of a layer set. Layers may differ in tensors and sizes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelLayout {
    layers: Vec<LayerLayout>,
}

impl ModelLayout {
    /// Checks and keeps the tensors of each layer.
    ///
    /// # Errors
    /// No layer, a layer with no tensors, empty rows, or rows or slots that overlap.
    pub fn new(layers: Vec<Vec<TensorLayout>>) -> Result<Self, CoreError> {
        if layers.is_empty() {
            return Err(CoreError::Shape {
                what: "layouts",
                found: vec![0],
                expected: "one list of tensors per layer, at least one layer".into(),
            });
        }
        let layers = layers
            .into_iter()
            .enumerate()
            .map(|(layer, tensors)| LayerLayout::new(LayerId::at(layer), tensors))
            .collect::<Result<_, _>>()?;
        Ok(Self { layers })
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// One layer.
    pub fn layer(&self, layer: LayerId) -> &LayerLayout {
        &self.layers[layer.index()]
    }

    /// Staged bytes of the largest expert: the least staging budget that can move everything.
    pub fn largest_staged(&self) -> usize {
        self.layers.iter().map(LayerLayout::staged_bytes).max().unwrap_or(0)
    }

    /// 64-bit hash of what ranks must agree on: tensors, rows and row bytes of every layer. Pitches and strides
    /// are each rank's own.
    pub fn hash64(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for layer in &self.layers {
            hasher.update(&(layer.tensors.len() as u64).to_le_bytes());
            for tensor in &layer.tensors {
                for n in [tensor.name.len(), tensor.rows, tensor.row_bytes] {
                    hasher.update(&(n as u64).to_le_bytes());
                }
                hasher.update(tensor.name.as_bytes());
            }
        }
        hasher.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pitched(rows: usize, row_bytes: usize, pitch: usize, slot_stride: usize) -> TensorLayout {
        TensorLayout { name: "w".into(), rows, row_bytes, pitch, slot_stride }
    }

    #[test]
    fn sizes_add_up() {
        let model = ModelLayout::new(vec![vec![
            TensorLayout::contiguous("w13", 100),
            pitched(3, 7, 8, 40),
            TensorLayout::contiguous("scale", 3),
        ]])
        .unwrap();
        let layer = model.layer(LayerId(0));
        assert_eq!(layer.expert_bytes(), 100 + 21 + 3);
        assert_eq!(layer.staging_offsets(), &[0, 112, 144]);
        assert_eq!(layer.staged_bytes(), 160);
        assert_eq!(layer.tensors()[1].slot_span(), 23);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(ModelLayout::new(vec![]).is_err());
        assert!(ModelLayout::new(vec![vec![]]).is_err());
        for bad in
            [pitched(0, 4, 4, 4), pitched(2, 4, 3, 8), pitched(2, 4, 4, 7), pitched(2, 4, usize::MAX, 8)]
        {
            assert!(ModelLayout::new(vec![vec![bad]]).is_err());
        }
        // Each by itself is as large as the address space lets it be.
        let whole = |name| TensorLayout::contiguous(name, isize::MAX as usize - 15);
        let error = ModelLayout::new(vec![vec![whole("w13"), whole("w2"), whole("w3")]]).unwrap_err();
        assert!(matches!(&error, CoreError::Layout { tensor, .. } if tensor == "w2"), "{error}");
    }

    #[test]
    fn hash_ignores_pitch_but_not_size() {
        let hash = |t| ModelLayout::new(vec![vec![t]]).unwrap().hash64();
        assert_eq!(hash(pitched(2, 4, 4, 8)), hash(pitched(2, 4, 16, 64)));
        assert_ne!(hash(pitched(2, 4, 4, 8)), hash(pitched(4, 2, 2, 8)));
    }
}
