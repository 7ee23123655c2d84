//! Tensors of the server in which slots lie, and checks that they can be what they are said to be.

use std::ptr::NonNull;

use eplb_core::{LayerId, TensorLayout};

/// One tensor of a layer in the server's memory, from this rank's first slot on.
#[derive(Debug, Clone)]
pub struct TensorView {
    /// Name, for messages and for the comparison over ranks.
    pub name: String,
    /// Address of the first local slot.
    pub data: *mut u8,
    /// Rows of a slot.
    pub rows: usize,
    /// Bytes of a row that belong to the expert.
    pub row_bytes: usize,
    /// Bytes from one row to the next.
    pub pitch: usize,
    /// Bytes from one slot to the next.
    pub slot_stride: usize,
}

/// Why tensors cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// An address that is none.
    #[error("{layer}, tensor {tensor:?}: its address is null; register after the weights are allocated")]
    Null {
        /// The layer.
        layer: LayerId,
        /// The tensor.
        tensor: String,
    },
    /// An address at which rows of such bytes do not begin.
    #[error(
        "{layer}, tensor {tensor:?}: address {address:#x} is no multiple of {align}, but its rows and strides are; is it that of \
         the first slot?"
    )]
    Misaligned {
        /// The layer.
        layer: LayerId,
        /// The tensor.
        tensor: String,
        /// Its address.
        address: usize,
        /// What it should be a multiple of, bytes.
        align: usize,
    },
    /// Two tensors that share bytes.
    #[error("{layer}, tensor {tensor:?} shares bytes with {other}; every tensor needs memory of its own")]
    Overlap {
        /// The layer.
        layer: LayerId,
        /// The tensor.
        tensor: String,
        /// The other, in words.
        other: String,
    },
    /// A layer that was not announced.
    #[error("layer {layer} of set {set:?}: it has layers 0..{layers}")]
    NoSuchLayer {
        /// The layer.
        layer: usize,
        /// Name of the layer set.
        set: String,
        /// Number of its layers.
        layers: usize,
    },
    /// A layer that was registered before.
    #[error("{layer} of set {set:?} is registered twice")]
    Twice {
        /// The layer.
        layer: LayerId,
        /// Name of the layer set.
        set: String,
    },
    /// A layer that was left out.
    #[error("{layer} of set {set:?} has no tensors: register or lend every layer before the start")]
    Missing {
        /// The layer.
        layer: LayerId,
        /// Name of the layer set.
        set: String,
    },
    /// A set of which some layers are the server's and some the engine's.
    #[error(
        "{layer} of set {set:?}: the set is partly registered and partly lent; choose one for all of its layers"
    )]
    Mixed {
        /// The first layer that differs.
        layer: LayerId,
        /// Name of the layer set.
        set: String,
    },
    /// An address of the host, or of another device.
    #[error("{layer}, tensor {tensor:?}: {why}")]
    OffDevice {
        /// The layer.
        layer: LayerId,
        /// The tensor.
        tensor: String,
        /// Where it lies.
        why: String,
    },
    /// Memory that does not fit the address space.
    #[error(
        "{layer}, tensor {tensor:?}: {slots} slots from address {address:#x} on do not fit the address space"
    )]
    TooLarge {
        /// The layer.
        layer: LayerId,
        /// The tensor.
        tensor: String,
        /// Local slots.
        slots: usize,
        /// Its address.
        address: usize,
    },
}

impl TensorView {
    pub(super) fn layout(&self) -> TensorLayout {
        TensorLayout {
            name: self.name.clone(),
            rows: self.rows,
            row_bytes: self.row_bytes,
            pitch: self.pitch,
            slot_stride: self.slot_stride,
        }
    }

    /// Largest power of two, at most 4, that divides all steps of the tensor: elements of that size begin nowhere else.
    fn align(&self) -> usize {
        let pitch = if self.rows > 1 { self.pitch } else { 0 };
        let bits = self.row_bytes | pitch | self.slot_stride | 4;
        1 << bits.trailing_zeros()
    }
}

/// Bytes of registered tensors, to tell overlaps.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// First byte and byte after the last, and whose they are; ascending and apart.
    taken: Vec<(usize, usize, String)>,
}

impl Claims {
    /// Takes a tensor's bytes; its address, and how many they are.
    pub(super) fn claim(
        &mut self,
        set: &str,
        layer: LayerId,
        slots: usize,
        tensor: &TensorView,
    ) -> Result<(NonNull<u8>, usize), RegisterError> {
        let name = || tensor.name.clone();
        let data = NonNull::new(tensor.data).ok_or_else(|| RegisterError::Null { layer, tensor: name() })?;
        let (address, align) = (tensor.data as usize, tensor.align());
        if !address.is_multiple_of(align) {
            return Err(RegisterError::Misaligned { layer, tensor: name(), address, align });
        }
        let span =
            tensor.rows.saturating_sub(1).saturating_mul(tensor.pitch).saturating_add(tensor.row_bytes);
        let bytes = slots.saturating_sub(1).saturating_mul(tensor.slot_stride).saturating_add(span);
        let end = match address.checked_add(bytes) {
            Some(end) if bytes <= isize::MAX as usize => end,
            _ => return Err(RegisterError::TooLarge { layer, tensor: name(), slots, address }),
        };
        if slots == 0 {
            return Ok((data, 0));
        }
        let at = self.taken.partition_point(|(start, ..)| *start < address);
        let before =
            at.checked_sub(1).and_then(|at| self.taken.get(at)).filter(|(_, last, _)| *last > address);
        if let Some((_, _, other)) = before.or(self.taken.get(at).filter(|(start, ..)| *start < end)) {
            return Err(RegisterError::Overlap { layer, tensor: name(), other: other.clone() });
        }
        self.taken.insert(at, (address, end, format!("tensor {:?} of {layer} of set {set:?}", tensor.name)));
        Ok((data, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, address: usize, bytes: usize) -> TensorView {
        let (data, name) = (std::ptr::without_provenance_mut(address), name.to_owned());
        TensorView { name, data, rows: 1, row_bytes: bytes, pitch: bytes, slot_stride: bytes }
    }

    #[test]
    fn overlaps_are_found_on_both_sides() {
        let mut claims = Claims::default();
        let mut claim = |name: &str, at: usize, bytes: usize| {
            claims.claim("main", LayerId(1), 4, &tensor(name, at, bytes)).map(|(at, _)| at.as_ptr() as usize)
        };
        assert_eq!(claim("a", 4096, 64), Ok(4096));
        assert_eq!(claim("b", 4096 + 256, 64), Ok(4096 + 256));
        for (at, bytes) in [(4096, 64), (4096 + 252, 4), (4096 - 252, 64), (4000, 4096), (4096 + 508, 64)] {
            let error = claim("c", at, bytes).unwrap_err().to_string();
            assert!(error.contains("\"c\"") && error.contains("of layer 1"), "{error}");
        }
        assert!(claim("d", 4096 - 256, 64).is_ok());
    }

    #[test]
    fn addresses_that_cannot_be_are_refused() {
        let mut claims = Claims::default();
        let mut refused = |tensor: &TensorView, word: &str| {
            let error = claims.claim("main", LayerId(0), 4, tensor).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refused(&tensor("w", 0, 64), "null");
        refused(&tensor("w", 4098, 64), "0x1002");
        refused(&tensor("w", usize::MAX - 10, 7), "address space");
        refused(&tensor("w", 4096, usize::MAX / 4), "address space");
        assert!(claims.claim("main", LayerId(0), 4, &tensor("bytes", 4099, 7)).is_ok());
        assert!(claims.claim("main", LayerId(0), 0, &tensor("none", 4099, 7)).is_ok(), "no slots, no bytes");
    }
}
