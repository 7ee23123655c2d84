//! How an expert is cut into messages: by the sizes of its tensors alone, which all ranks agree on, never by pitches, which are each
//! rank's own.

use eplb_core::{LayerId, LayerLayout, ModelLayout};

/// Bytes of the header in front of the packed tensors.
pub const HEADER_BYTES: usize = 64;

/// A part of a large tensor that is a message of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The tensor.
    pub tensor: usize,
    /// Where it begins in the tensor, rows without gaps, bytes.
    pub offset: usize,
    /// Its bytes.
    pub bytes: usize,
}

/// The messages of an expert of one layer: number 0 is the header and the small tensors, the others are the pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCut {
    small: Vec<usize>,
    packed_bytes: usize,
    pieces: Vec<Piece>,
}

impl LayerCut {
    fn new(layer: &LayerLayout, small_bytes: usize, piece_bytes: usize) -> Self {
        let mut cut = Self { small: Vec::new(), packed_bytes: HEADER_BYTES, pieces: Vec::new() };
        for (tensor, layout) in layer.tensors().iter().enumerate() {
            let bytes = layout.expert_bytes();
            if bytes < small_bytes {
                cut.small.push(tensor);
                cut.packed_bytes += bytes;
                continue;
            }
            let starts = (0..bytes).step_by(piece_bytes.max(1));
            let piece = |offset| Piece { tensor, offset, bytes: piece_bytes.min(bytes - offset) };
            cut.pieces.extend(starts.map(piece));
        }
        cut
    }

    /// Tensors that travel with the header, in this order.
    pub fn small(&self) -> &[usize] {
        &self.small
    }

    /// Bytes of the message with the header.
    pub fn packed_bytes(&self) -> usize {
        self.packed_bytes
    }

    /// The other messages.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Number of messages.
    pub fn messages(&self) -> usize {
        1 + self.pieces.len()
    }
}

/// The messages of the experts of all layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    layers: Vec<LayerCut>,
}

impl Cut {
    /// Tensors below `small_bytes` are packed, larger ones cut in pieces of at most `piece_bytes` (at least 1).
    pub fn new(layout: &ModelLayout, small_bytes: usize, piece_bytes: usize) -> Self {
        let layer = |layer| LayerCut::new(layout.layer(LayerId::at(layer)), small_bytes, piece_bytes);
        Self { layers: (0..layout.layers()).map(layer).collect() }
    }

    /// Messages of an expert of a layer.
    pub fn layer(&self, layer: LayerId) -> &LayerCut {
        &self.layers[layer.index()]
    }

    /// Bytes of the largest message of any layer.
    pub fn largest(&self) -> usize {
        let bytes = |layer: &LayerCut| {
            layer.pieces.iter().map(|piece| piece.bytes).fold(layer.packed_bytes, usize::max)
        };
        self.layers.iter().map(bytes).max().unwrap_or(0)
    }

    /// Bytes of the largest message that this rank must pack: one with a header, or a piece of a tensor whose rows have
    /// gaps here.
    pub fn largest_packed(&self, layout: &ModelLayout) -> usize {
        let mut largest = 0;
        for (number, layer) in self.layers.iter().enumerate() {
            largest = largest.max(layer.packed_bytes);
            let tensors = layout.layer(LayerId::at(number)).tensors();
            let gaps = |piece: &&Piece| {
                let tensor = &tensors[piece.tensor];
                tensor.rows > 1 && tensor.pitch != tensor.row_bytes
            };
            largest = layer.pieces.iter().filter(gaps).map(|piece| piece.bytes).fold(largest, usize::max);
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eplb_core::TensorLayout;

    fn model(pitch: usize) -> ModelLayout {
        ModelLayout::new(vec![vec![
            TensorLayout::contiguous("w", 1000),
            TensorLayout::contiguous("scale", 7),
            TensorLayout { name: "rows".into(), rows: 4, row_bytes: 50, pitch, slot_stride: 4 * pitch },
            TensorLayout::contiguous("bias", 99),
        ]])
        .unwrap()
    }

    #[test]
    fn every_byte_is_in_one_message() {
        let cut = Cut::new(&model(50), 100, 300);
        let layer = cut.layer(LayerId(0));
        assert_eq!(layer.small(), &[1, 3]);
        assert_eq!(layer.packed_bytes(), HEADER_BYTES + 7 + 99);
        let pieces: Vec<_> = layer.pieces().iter().map(|p| (p.tensor, p.offset, p.bytes)).collect();
        assert_eq!(pieces, [(0, 0, 300), (0, 300, 300), (0, 600, 300), (0, 900, 100), (2, 0, 200)]);
        assert_eq!(layer.messages(), 6);
    }

    #[test]
    fn the_cut_does_not_depend_on_gaps_but_the_packing_does() {
        let (plain, pitched) = (model(50), model(64));
        let (a, b) = (Cut::new(&plain, 100, 150), Cut::new(&pitched, 100, 150));
        assert_eq!(a, b);
        assert_eq!(a.largest_packed(&plain), HEADER_BYTES + 106);
        assert_eq!(Cut::new(&plain, 100, 190).largest_packed(&pitched), 190);
        assert_eq!(
            (Cut::new(&plain, 100, 190).largest(), Cut::new(&plain, 100, 100).largest()),
            (190, HEADER_BYTES + 106)
        );
    }
}
