//! Copies of rows: gather from strided tensors, scatter to them.

use eplb_core::LayerLayout;

use super::error::KernelError;

/// Bytes of a unit of work of a copy: `UNIT` of `kernels/rows.cu`.
pub const COPY_UNIT: u64 = 4 << 10;

/// One entry of a list of copies: rows that are pitched at both ends.
///
/// `source` and `dest` are device addresses in a list for the device, and offsets into the memories given to
/// [`copy_rows`] in a list for the twin. Entries of one list write no byte twice and none that another entry reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowCopy {
    /// Where the first row is read.
    pub source: u64,
    /// Where it is written.
    pub dest: u64,
    /// Number of rows.
    pub rows: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// Bytes from one row to the next at the source.
    pub source_pitch: u64,
    /// Bytes from one row to the next at the destination.
    pub dest_pitch: u64,
    /// Units of the entries before this one in its list: [`number_units`].
    pub first_unit: u64,
}

impl RowCopy {
    /// Bytes of an entry on the device.
    pub const BYTES: usize = 64;

    /// A run of bytes without gaps.
    pub fn run(source: u64, dest: u64, bytes: u64) -> Self {
        Self {
            source,
            dest,
            rows: 1,
            row_bytes: bytes,
            source_pitch: bytes,
            dest_pitch: bytes,
            first_unit: 0,
        }
    }

    /// Bytes that are copied.
    pub fn bytes(&self) -> u64 {
        self.rows * self.row_bytes
    }

    /// The entry in its layout on the device: eight little-endian 64-bit numbers, the last one 0.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let numbers = [
            self.source,
            self.dest,
            self.rows,
            self.row_bytes,
            self.source_pitch,
            self.dest_pitch,
            self.first_unit,
        ];
        for (field, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// Fills in `first_unit` of a list of copies, and returns the units of the whole list, which the launch is given.
pub fn number_units(list: &mut [RowCopy]) -> u64 {
    let mut units = 0;
    for copy in list {
        copy.first_unit = units;
        units += copy.bytes().div_ceil(COPY_UNIT);
    }
    units
}

/// First byte after what pitched rows touch, `None` if that is no number.
fn end_of(base: u64, rows: u64, row_bytes: u64, pitch: u64) -> Option<u64> {
    rows.saturating_sub(1).checked_mul(pitch)?.checked_add(row_bytes)?.checked_add(base)
}

/// Carries out a list of copies from one memory to another.
///
/// # Errors
/// An entry reaches outside a memory, has no rows or bytes, or its rows overlap; nothing was copied then.
pub fn copy_rows(list: &[RowCopy], source: &[u8], dest: &mut [u8]) -> Result<(), KernelError> {
    for (entry, copy) in list.iter().enumerate() {
        if copy.rows == 0 || copy.row_bytes == 0 {
            return Err(KernelError::Range {
                what: "rows or row bytes of a copy",
                value: 0,
                allowed: "1 or more",
            });
        }
        for (what, base, pitch, bytes) in [
            ("the source", copy.source, copy.source_pitch, source.len()),
            ("the destination", copy.dest, copy.dest_pitch, dest.len()),
        ] {
            if copy.rows > 1 && pitch < copy.row_bytes {
                return Err(KernelError::Range {
                    what: "the pitch of a copy",
                    value: pitch,
                    allowed: "at least the bytes of a row",
                });
            }
            let end = end_of(base, copy.rows, copy.row_bytes, pitch).unwrap_or(u64::MAX);
            if end > bytes as u64 {
                return Err(KernelError::Outside { entry, what, end, bytes });
            }
        }
    }
    // All ends lie in slices: the numbers fit in usize.
    for copy in list {
        let bytes = copy.row_bytes as usize;
        for row in 0..copy.rows {
            let from = (copy.source + row * copy.source_pitch) as usize;
            let to = (copy.dest + row * copy.dest_pitch) as usize;
            dest[to..to + bytes].copy_from_slice(&source[from..from + bytes]);
        }
    }
    Ok(())
}

/// Copies that gather one expert into staging: all tensors of `slot`, where `bases` are the addresses of slot 0 of each
/// tensor, `[tensors]`, to `staged` on, laid out as [`LayerLayout::staging_offsets`].
///
/// Panics if `bases` has fewer entries than the layer has tensors.
pub fn gather_list(layer: &LayerLayout, bases: &[u64], slot: usize, staged: u64) -> Vec<RowCopy> {
    let tensors = layer.tensors().iter().zip(layer.staging_offsets()).enumerate();
    tensors
        .map(|(at, (tensor, &offset))| {
            let source = bases[at] + (slot * tensor.slot_stride) as u64;
            let (dest, row_bytes) = (staged + offset as u64, tensor.row_bytes as u64);
            if tensor.rows == 1 || tensor.pitch == tensor.row_bytes {
                return RowCopy::run(source, dest, tensor.expert_bytes() as u64);
            }
            RowCopy {
                rows: tensor.rows as u64,
                row_bytes,
                source_pitch: tensor.pitch as u64,
                dest_pitch: row_bytes,
                ..RowCopy::run(source, dest, row_bytes)
            }
        })
        .collect()
}

/// Copies that scatter one staged expert into a slot: [`gather_list`] the other way round.
///
/// Panics if `bases` has fewer entries than the layer has tensors.
pub fn scatter_list(layer: &LayerLayout, staged: u64, bases: &[u64], slot: usize) -> Vec<RowCopy> {
    let back = |copy: RowCopy| RowCopy {
        source: copy.dest,
        dest: copy.source,
        source_pitch: copy.dest_pitch,
        dest_pitch: copy.source_pitch,
        ..copy
    };
    gather_list(layer, bases, slot, staged).into_iter().map(back).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use eplb_core::{LayerId, ModelLayout, TensorLayout};
    use proptest::prelude::*;

    #[test]
    fn rows_land_where_they_should_and_gaps_stay() {
        let copy = RowCopy {
            source: 1,
            dest: 2,
            rows: 2,
            row_bytes: 2,
            source_pitch: 3,
            dest_pitch: 4,
            first_unit: 0,
        };
        let source: Vec<u8> = (0..6).collect();
        let mut dest = [99; 9];
        copy_rows(&[copy], &source, &mut dest).unwrap();
        assert_eq!(dest, [99, 99, 1, 2, 99, 99, 4, 5, 99]);
    }

    #[test]
    fn what_reaches_outside_is_refused_before_the_first_byte() {
        let mut dest = [9u8; 8];
        let outside = RowCopy::run(0, 5, 4);
        let error = copy_rows(&[RowCopy::run(0, 0, 2), outside], &[1; 8], &mut dest).unwrap_err();
        assert_eq!(error, KernelError::Outside { entry: 1, what: "the destination", end: 9, bytes: 8 });
        assert!(copy_rows(&[RowCopy::run(5, 0, 4)], &[1; 8], &mut dest).is_err());
        assert!(copy_rows(&[RowCopy::run(u64::MAX, 0, 4)], &[1; 8], &mut dest).is_err());
        assert!(copy_rows(&[RowCopy::run(0, 0, 0)], &[1; 8], &mut dest).is_err());
        assert!(
            copy_rows(&[RowCopy { rows: 2, dest_pitch: 1, ..RowCopy::run(0, 0, 2) }], &[1; 8], &mut dest)
                .is_err()
        );
        assert_eq!(dest, [9; 8]);
    }

    #[test]
    fn units_are_numbered_over_the_list() {
        let mut list =
            [RowCopy::run(0, 0, COPY_UNIT), RowCopy::run(0, 0, COPY_UNIT + 1), RowCopy::run(0, 0, 1)];
        assert_eq!(number_units(&mut list), 4);
        assert_eq!(list.map(|copy| copy.first_unit), [0, 1, 3]);
        let bytes = list[2].to_bytes();
        assert_eq!((bytes[24], bytes[48]), (1, 3));
    }

    fn tensor() -> impl Strategy<Value = TensorLayout> {
        (1usize..5, 1usize..40, 0usize..9, 0usize..9).prop_map(|(rows, row_bytes, gap, slot_gap)| {
            TensorLayout {
                name: "w".into(),
                rows,
                row_bytes,
                pitch: row_bytes + gap,
                slot_stride: rows * (row_bytes + gap) + slot_gap,
            }
        })
    }

    proptest! {
        #[test]
        fn scatter_undoes_gather(tensors in proptest::collection::vec(tensor(), 1..5), slots in 1usize..4, pick: u64) {
            let slot = (pick % slots as u64) as usize;
            let model = ModelLayout::new(vec![tensors]).unwrap();
            let layer = model.layer(LayerId(0));
            let mut bases = Vec::new();
            let mut bytes = 0usize;
            for tensor in layer.tensors() {
                bases.push(bytes as u64 + 1);
                bytes += 1 + slots * tensor.slot_stride;
            }
            let memory: Vec<u8> = (0..bytes).map(|at| (at * 31 + 7) as u8 | 1).collect();
            let mut staged = vec![0u8; layer.staged_bytes() + 16];
            copy_rows(&gather_list(layer, &bases, slot, 16), &memory, &mut staged).unwrap();
            let mut back = vec![0u8; bytes];
            copy_rows(&scatter_list(layer, 16, &bases, slot), &staged, &mut back).unwrap();
            // The slot's bytes and no others came back; no byte of the memory is 0.
            prop_assert_eq!(back.iter().filter(|&&b| b != 0).count(), layer.expert_bytes());
            prop_assert!(back.iter().zip(&memory).all(|(&b, &m)| b == 0 || b == m));
            for (tensor, &base) in layer.tensors().iter().zip(&bases) {
                for row in 0..tensor.rows {
                    let at = base as usize + slot * tensor.slot_stride + row * tensor.pitch;
                    prop_assert_eq!(&back[at..][..tensor.row_bytes], &memory[at..][..tensor.row_bytes]);
                }
            }
        }
    }
}
