//! How an expert's tokens are split over its replicas.

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::error::CoreError;
use crate::ids::{ExpertId, LayerId, SlotId};
use crate::placement::Placement;

/// How far the shares of an expert may sum away from 1 (rounding of the solver and of file formats).
pub const SHARE_TOLERANCE: f64 = 1e-6;

/// The part of its logical expert's tokens that each slot gets, `[L, P]`.
///
/// Invariant: 0..1, 0 at empty slots, and 1 in sum (within [`SHARE_TOLERANCE`]) over the replicas of an expert.
#[derive(Debug, Clone, PartialEq)]
pub struct Share(Array2<f64>);

impl Share {
    /// Every replica of an expert gets the same part.
    pub fn even(placement: &Placement) -> Self {
        let logcnt = placement.logcnt();
        let mut share = Array2::zeros((placement.layers(), placement.slots()));
        for ((layer, slot), &entry) in placement.phy2log().indexed_iter() {
            if entry >= 0 {
                share[(layer, slot)] = 1.0 / f64::from(logcnt[(layer, entry as usize)]);
            }
        }
        Self(share)
    }

    /// Shares `[L, P]` for a placement.
    ///
    /// # Errors
    /// Another shape, a value outside 0..1, a share on an empty slot, or shares that do not sum to 1.
    pub fn new(share: Array2<f64>, placement: &Placement) -> Result<Self, CoreError> {
        let shape = (placement.layers(), placement.slots());
        if share.dim() != shape {
            return Err(CoreError::Shape {
                what: "share",
                found: share.shape().to_vec(),
                expected: format!("[{}, {}] as phy2log", shape.0, shape.1),
            });
        }
        // This is part of every plan, hence slices: all three are in C order.
        let share = if share.is_standard_layout() { share } else { share.as_standard_layout().to_owned() };
        let (slots, experts) = (placement.slots(), placement.experts());
        let (values, entries, counts) = (share.as_slice(), placement.phy2log(), placement.logcnt());
        let (entries, counts) = (entries.as_slice(), counts.as_slice());
        let mut sums = vec![0.0; experts];
        for layer in 0..shape.0 {
            let values = values.map_or(&[][..], |values| &values[layer * slots..][..slots]);
            let entries = entries.map_or(&[][..], |entries| &entries[layer * slots..][..slots]);
            let counts = counts.map_or(&[][..], |counts| &counts[layer * experts..][..experts]);
            check_layer(LayerId::at(layer), values, entries, counts, &mut sums)?;
        }
        Ok(Self(share))
    }

    /// Shares, `[L, P]`.
    pub fn view(&self) -> ArrayView2<'_, f64> {
        self.0.view()
    }

    /// Shares of one layer, `[P]`.
    pub fn layer(&self, layer: LayerId) -> ArrayView1<'_, f64> {
        self.0.row(layer.index())
    }
}

/// Checks one layer: shares and experts by slot, replicas by expert; `sums` is memory, `[E]`.
fn check_layer(
    layer: LayerId,
    values: &[f64],
    entries: &[i32],
    counts: &[u32],
    sums: &mut [f64],
) -> Result<(), CoreError> {
    sums.fill(0.0);
    let mut of_empty = false;
    for (&value, &entry) in values.iter().zip(entries) {
        match sums.get_mut(entry as usize) {
            Some(sum) => *sum += value,
            None => of_empty |= value != 0.0,
        }
    }
    // Counted instead of told one from the other, for which there are vector instructions. Experts without a slot have 0 in
    // sum, so that those with 1 are all that have one if they are as many. What is wrong is named afterwards.
    let parts = values.iter().map(|&value| u64::from(is_part(value))).sum::<u64>() as usize;
    let whole = sums.iter().map(|&sum| u64::from(is_whole(sum))).sum::<u64>() as usize;
    let held = counts.iter().map(|&count| u32::from(count > 0)).sum::<u32>() as usize;
    if !of_empty && parts == values.len() && whole == held {
        return Ok(());
    }
    for (slot, (&value, &entry)) in values.iter().zip(entries).enumerate() {
        if (entry as usize) < sums.len() {
            if !is_part(value) {
                return Err(CoreError::Share { layer, expert: ExpertId::at(entry as usize), value });
            }
        } else if value != 0.0 {
            return Err(CoreError::ShareOfEmptySlot { layer, slot: SlotId::at(slot), value });
        }
    }
    match sums.iter().zip(counts).position(|(&sum, &count)| count > 0 && !is_whole(sum)) {
        Some(expert) => Err(CoreError::Share { layer, expert: ExpertId::at(expert), value: sums[expert] }),
        None => Ok(()),
    }
}

/// Whether shares are 1 in sum, within [`SHARE_TOLERANCE`].
fn is_whole(sum: f64) -> bool {
    (sum - 1.0).abs() <= SHARE_TOLERANCE
}

/// Whether a share is from 0 to 1, within [`SHARE_TOLERANCE`].
fn is_part(value: f64) -> bool {
    (-SHARE_TOLERANCE..=1.0 + SHARE_TOLERANCE).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn even_share_is_one_over_the_count() {
        let placement = Placement::new(2, array![[0, 1, 0, -1]]).unwrap();
        assert_eq!(Share::even(&placement).view(), array![[0.5, 1.0, 0.5, 0.0]]);
    }

    #[test]
    fn shares_are_checked() {
        let placement = Placement::new(2, array![[0, 1, 0, -1]]).unwrap();
        assert!(Share::new(array![[0.25, 1.0, 0.75, 0.0]], &placement).is_ok());
        for bad in [
            array![[0.5, 1.0, 0.6, 0.0]],
            array![[0.5, 1.0, 0.5, 0.1]],
            array![[1.5, 1.0, -0.5, 0.0]],
            array![[f64::NAN, 1.0, 0.5, 0.0]],
            array![[0.5, 1.0, 0.5]],
        ] {
            assert!(Share::new(bad.clone(), &placement).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let placement = Placement::new(3, array![[0, 1, 0, -1, 2], [1, 1, 2, 0, -1]]).unwrap();
        let refused = |first: [f64; 5], second: [f64; 5]| {
            let share = Array2::from_shape_fn((2, 5), |(l, p)| [first, second][l][p]);
            Share::new(share, &placement).unwrap_err()
        };
        let (first, second) = ([0.25, 1.0, 0.75, 0.0, 1.0], [0.5, 0.5, 1.0, 1.0, 0.0]);
        let share = |layer, expert, value| CoreError::Share {
            layer: LayerId::at(layer),
            expert: ExpertId::at(expert),
            value,
        };
        assert_eq!(refused(first, [0.5, 0.25, 1.0, 1.0, 0.0]), share(1, 1, 0.75));
        assert_eq!(refused(first, [0.5, 0.5, 2.0, 1.0, 0.0]), share(1, 2, 2.0));
        // The sum is right, the parts are not.
        assert_eq!(refused([-0.5, 1.0, 1.5, 0.0, 1.0], second), share(0, 0, -0.5));
        let of_empty = CoreError::ShareOfEmptySlot { layer: LayerId::at(0), slot: SlotId::at(3), value: 0.5 };
        assert_eq!(refused([0.25, 1.0, 0.75, 0.5, 1.0], second), of_empty);
    }
}
