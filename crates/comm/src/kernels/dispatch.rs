//! Dispatch: from the expert that a token chose to one of the slots that hold it.

use super::choices::{Choices, RoutedId};
use super::error::{KernelError, at_least};
use super::record::{Counting, Faults, Named};
use super::{GOLDEN, mix};

/// The maps of one layer, as the device holds them at fixed addresses.
#[derive(Debug, Clone, Copy)]
pub struct LayerMaps<'a> {
    /// `[E, C]`: slots of each expert, -1 padded.
    pub log2phy: &'a [i32],
    /// `[E]`: number of replicas.
    pub logcnt: &'a [i32],
    /// `[P]`: the part of its expert's tokens that a slot gets.
    pub share: &'a [f32],
    /// `C`: most replicas of an expert.
    pub columns: usize,
    /// Number of the layer: tokens go to other replicas in other layers.
    pub layer: u32,
    /// Mixed into the choice among replicas. A server that counts it up with every step spreads small batches evenly over
    /// time; one that keeps it sends a token position to the same replica in every step.
    pub salt: u64,
}

impl LayerMaps<'_> {
    fn check(&self, experts: usize) -> Result<(), KernelError> {
        if self.columns == 0 || self.share.len() > i32::MAX as usize {
            return Err(KernelError::Range {
                what: "the number of columns of log2phy",
                value: self.columns as u64,
                allowed: "1 or more, over at most 2^31 - 1 slots",
            });
        }
        let columns = self.columns;
        at_least("log2phy", self.log2phy.len(), experts.saturating_mul(columns), || {
            format!("[{experts}, {columns}]")
        })?;
        at_least("logcnt", self.logcnt.len(), experts, || format!("[{experts}]"))
    }

    fn slot(&self, entry: i32) -> Option<usize> {
        usize::try_from(entry).ok().filter(|&slot| slot < self.share.len())
    }

    /// The slot to which an expert's token goes; `None` = the expert has none.
    ///
    /// With one replica there is nothing to choose. With more, the token draws a point in 0..1: the upper 24 bits of
    /// `mix(mix(salt + golden * (layer + 1)) ^ (token << 32 | expert))`, over 2^24, and takes the first replica, in the
    /// order of `log2phy`, at which the running sum of shares (in f32, from the left) passes the point. Replicas with no
    /// positive share take nothing; if rounding leaves the point above the whole sum, the last one with a share takes it,
    /// and if none has a share, the first replica does.
    pub fn replica(&self, token: u32, expert: usize) -> Option<usize> {
        let count = usize::try_from(self.logcnt[expert]).unwrap_or(0).min(self.columns);
        let row = &self.log2phy[expert * self.columns..][..count];
        let mut chosen = row.first().and_then(|&entry| self.slot(entry));
        if count < 2 {
            return chosen;
        }
        let key = mix(self.salt.wrapping_add(GOLDEN.wrapping_mul(u64::from(self.layer) + 1)));
        let hash = mix(key ^ (u64::from(token) << 32 | expert as u64));
        // 24 bits: exact in f32.
        let point = (hash >> 40) as f32 * (1.0 / 16_777_216.0);
        let mut sum = 0.0f32;
        for slot in row.iter().filter_map(|&entry| self.slot(entry)).filter(|&slot| self.share[slot] > 0.0) {
            chosen = Some(slot);
            sum += self.share[slot];
            if point < sum {
                break;
            }
        }
        chosen
    }
}

/// Writes the slot of every choice to `out`, `[tokens, k]` with tokens `out_stride` apart, and counts the choices as
/// [`record`](super::record()) does, if `loads` is given.
///
/// -1 is written where a token does not count, where nothing was chosen, where an id is out of range, and where the expert
/// has no slot; the last two are faults.
///
/// # Errors
/// A map, `out` or `loads` is too short, or the numbers make no sense.
pub fn dispatch<I: RoutedId>(
    choices: &Choices<'_, I>,
    counting: &Counting<'_>,
    maps: &LayerMaps<'_>,
    out: &mut [I],
    out_stride: usize,
    mut loads: Option<&mut [u64]>,
) -> Result<Faults, KernelError> {
    let (tokens, k) = (choices.tokens(), choices.k());
    maps.check(counting.experts)?;
    if out_stride < k {
        return Err(KernelError::Range {
            what: "the stride of a token in the output",
            value: out_stride as u64,
            allowed: "at least k",
        });
    }
    let need = tokens.saturating_sub(1).saturating_mul(out_stride) + if tokens > 0 { k } else { 0 };
    at_least("the output", out.len(), need, || format!("[{tokens}, {k}], tokens {out_stride} apart"))?;
    let row = match &loads {
        Some(loads) => counting.row(loads)?,
        None => None,
    };
    let mut faults = Faults::default();
    for token in 0..tokens {
        let counts = choices.counts(token);
        for (&id, out) in choices.of(token).iter().zip(&mut out[token * out_stride..]) {
            *out = I::cut(-1);
            if !counts {
                continue;
            }
            match counting.expert(id.into()) {
                Named::Nothing => {}
                Named::OutOfRange => faults.out_of_range += 1,
                Named::EmptySlot => faults.missing += 1,
                Named::Expert(expert) => {
                    if let (Some(loads), Some(row)) = (&mut loads, row) {
                        loads[row + expert] = loads[row + expert].wrapping_add(1);
                    }
                    match maps.replica(token as u32, expert) {
                        Some(slot) => *out = I::cut(slot as i64),
                        None => faults.missing += 1,
                    }
                }
            }
        }
    }
    Ok(if row.is_some() { faults } else { Faults::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: LayerMaps<'static> = LayerMaps {
        log2phy: &[2, -1, 0, 3, -1, -1],
        logcnt: &[1, 2, 0],
        share: &[0.25, 0.0, 1.0, 0.75],
        columns: 2,
        layer: 0,
        salt: 0,
    };

    #[test]
    fn tokens_go_to_replicas_by_share() {
        let maps = MAPS;
        let first = (0..40_000).filter(|&token| maps.replica(token, 1) == Some(0)).count();
        assert!((9_700..10_300).contains(&first), "{first} of 40000 at a share of 0.25");
        assert!((0..100).all(|token| maps.replica(token, 0) == Some(2)));
        assert_eq!(maps.replica(0, 2), None);
        let other = LayerMaps { layer: 1, ..maps };
        let salted = LayerMaps { salt: 1, ..maps };
        let differ =
            |maps: &LayerMaps<'_>| (0..1000).filter(|&t| maps.replica(t, 1) != MAPS.replica(t, 1)).count();
        // Independent draws differ with probability 2 * 0.25 * 0.75.
        assert!((300..450).contains(&differ(&other)) && (300..450).contains(&differ(&salted)));
    }

    #[test]
    fn choices_are_fixed() {
        // Worked out apart, from the definition.
        let found: Vec<_> = (0..16).map(|token| MAPS.replica(token, 1).unwrap()).collect();
        assert_eq!(found, GOLDEN_SLOTS);
    }

    const GOLDEN_SLOTS: [usize; 16] = [3, 0, 3, 0, 0, 0, 3, 3, 3, 0, 3, 3, 0, 3, 0, 3];

    #[test]
    fn shares_that_are_wrong_still_give_a_replica() {
        let with = |share| LayerMaps { share, ..MAPS };
        for token in 0..100 {
            assert_eq!(with(&[0.0, 0.0, 1.0, 0.0]).replica(token, 1), Some(0), "no share: the first");
            assert_eq!(with(&[0.0, 0.0, 1.0, 1.0]).replica(token, 1), Some(3));
            assert_eq!(with(&[1.0, 0.0, 1.0, 0.0]).replica(token, 1), Some(0));
            assert_eq!(with(&[f32::NAN, 0.0, 1.0, 1e-9]).replica(token, 1), Some(3), "the last with a share");
        }
        let broken = LayerMaps { log2phy: &[2, -1, -1, 3, 77, -1], logcnt: &[1, 2, 1], ..MAPS };
        assert!((0..100).all(|token| broken.replica(token, 1) == Some(3)));
        assert_eq!(broken.replica(0, 2), None);
        let many = LayerMaps { logcnt: &[1, i32::MAX, -3], ..MAPS };
        assert!(many.replica(7, 1).is_some() && many.replica(7, 2).is_none());
    }

    #[test]
    fn padding_and_missing_experts_become_minus_one() {
        let ids = [0i32, 2, -1, 0, 0, 1, 9, -9];
        let mut out = [55i32; 12];
        let mut loads = [0u64; 3];
        let choices = Choices::new(&ids, 4, 2, 2).unwrap().with_mask(&[1, 1, 0, 1]).unwrap();
        let faults = dispatch(&choices, &Counting::new(3), &MAPS, &mut out, 3, Some(&mut loads)).unwrap();
        assert_eq!(out, [2, -1, 55, -1, 2, 55, -1, -1, 55, -1, -1, 55]);
        assert_eq!((loads, faults), ([2, 0, 1], Faults { out_of_range: 2, missing: 1 }));
        let faults = dispatch(&choices, &Counting::new(3), &MAPS, &mut out, 3, None).unwrap();
        assert_eq!(faults, Faults::default(), "nothing is counted, so neither are faults");
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let choices = Choices::new(&[0i32, 0], 1, 2, 2).unwrap();
        let run = |maps: &LayerMaps<'_>, out: &mut [i32], stride| {
            dispatch(&choices, &Counting::new(3), maps, out, stride, None).is_err()
        };
        assert!(!run(&MAPS, &mut [0; 2], 2));
        assert!(run(&MAPS, &mut [0; 1], 2));
        assert!(run(&MAPS, &mut [0; 2], 1));
        assert!(run(&LayerMaps { columns: 3, ..MAPS }, &mut [0; 2], 2));
        assert!(run(&LayerMaps { columns: 0, ..MAPS }, &mut [0; 2], 2));
        assert!(run(&LayerMaps { logcnt: &[1], ..MAPS }, &mut [0; 2], 2));
    }
}
