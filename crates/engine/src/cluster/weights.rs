//! The experts of a model that is made up: sizes and bytes follow from numbers alone.

use eplb_core::{CoreError, ModelLayout, TensorLayout};

/// Tensors of an expert of `expert_bytes` bytes in each of `layers` layers, shaped as real ones are: a large contiguous
/// matrix, a smaller one with padded rows, and a few bytes of scales. Their sizes add up to `expert_bytes` exactly; experts
/// below 64 bytes are one tensor.
///
/// # Errors
/// No layer, or experts of no bytes.
pub fn layout(layers: usize, expert_bytes: usize) -> Result<ModelLayout, CoreError> {
    let tensors = if expert_bytes < 64 {
        vec![TensorLayout::contiguous("w13", expert_bytes)]
    } else {
        let scales = (expert_bytes / 1024).max(1) | 1;
        let w2_rows = 8;
        let w2_row = expert_bytes / 3 / w2_rows;
        let w13 = expert_bytes - scales - w2_rows * w2_row;
        let pitch = w2_row.next_multiple_of(16) + 16;
        vec![
            TensorLayout::contiguous("w13", w13),
            TensorLayout {
                name: "w2".into(),
                rows: w2_rows,
                row_bytes: w2_row,
                pitch,
                slot_stride: pitch * w2_rows,
            },
            TensorLayout::contiguous("scale", scales),
        ]
    };
    ModelLayout::new(vec![tensors; layers])
}

#[cfg(test)]
mod tests {
    use super::*;
    use eplb_core::LayerId;

    #[test]
    fn sizes_add_up_to_what_was_asked_for() {
        for bytes in [1, 63, 64, 65, 1000, 65536, 44_040_192] {
            assert_eq!(layout(2, bytes).unwrap().layer(LayerId(1)).expert_bytes(), bytes);
        }
        assert!(layout(2, 0).is_err());
        assert!(layout(0, 8).is_err());
    }
}
