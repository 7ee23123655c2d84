//! Load recording: how many tokens chose each expert.

use super::choices::{Choices, RoutedId};
use super::error::{KernelError, at_least};

/// How choices of one layer are counted.
#[derive(Debug, Clone, Copy)]
pub struct Counting<'a> {
    /// Number of logical experts `E`.
    pub experts: usize,
    /// Number of tags (prefill and decode counted apart: 2); at least 1.
    pub tags: usize,
    /// Entries of `loads` from one tag's row of this layer to the next tag's; at least `experts`.
    pub tag_stride: usize,
    /// The tag of this step, on the device a word that is read at run time: `None` is 0, and a tag outside `0..tags` counts
    /// nothing (warm-up and dummy steps).
    pub tag: Option<i32>,
    /// `[slots]`: ids are slots, and are counted under the expert that this map names. `None`: ids are logical experts.
    pub phy2log: Option<&'a [i32]>,
}

impl Counting<'_> {
    /// Logical ids of `experts` experts under the only tag.
    pub fn new(experts: usize) -> Self {
        Self { experts, tags: 1, tag_stride: experts, tag: None, phy2log: None }
    }

    /// First entry of `loads` that this step counts into; `None` = it counts nothing.
    ///
    /// # Errors
    /// A shape that makes no sense, or `loads` too short for it.
    pub(super) fn row(&self, loads: &[u64]) -> Result<Option<usize>, KernelError> {
        if self.experts == 0 || self.experts > i32::MAX as usize {
            return Err(KernelError::Range {
                what: "the number of experts",
                value: self.experts as u64,
                allowed: "1 to 2^31 - 1",
            });
        }
        if self.tags == 0 || (self.tags > 1 && self.tag_stride < self.experts) {
            return Err(KernelError::Range {
                what: "the stride of a tag",
                value: self.tag_stride as u64,
                allowed: "at least the number of experts, for at least one tag",
            });
        }
        let need = (self.tags - 1) * self.tag_stride + self.experts;
        at_least("loads", loads.len(), need, || format!("{} tags of {} experts", self.tags, self.experts))?;
        let tag = usize::try_from(self.tag.unwrap_or(0)).ok().filter(|&tag| tag < self.tags);
        Ok(tag.map(|tag| tag * self.tag_stride))
    }

    /// The expert that an id names.
    pub(super) fn expert(&self, id: i64) -> Named {
        let limit = self.phy2log.map_or(self.experts, <[i32]>::len);
        match usize::try_from(id).ok().filter(|&id| id < limit) {
            None if id == -1 => Named::Nothing,
            None => Named::OutOfRange,
            Some(id) => match self.phy2log {
                None => Named::Expert(id),
                Some(map) => match usize::try_from(map[id]).ok().filter(|&e| e < self.experts) {
                    Some(expert) => Named::Expert(expert),
                    None => Named::EmptySlot,
                },
            },
        }
    }
}

/// What an id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Nothing,
    OutOfRange,
    EmptySlot,
    Expert(usize),
}

/// Choices that could not be counted or sent anywhere. They only grow, like the loads, and stand still while the tag
/// counts nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Ids below -1, or not below the number of experts (of slots, where ids are slots): a router and an engine that
    /// disagree about the model.
    pub out_of_range: u64,
    /// Choices of an expert that has no slot, or of a slot that holds no expert: tokens that nobody serves.
    pub missing: u64,
}

/// Adds the choices of one step and layer to `loads`, and returns what could not be counted.
///
/// `loads` begins at this layer's row under tag 0, `[tags, .., experts]`; it counts tokens as 64-bit numbers and only ever
/// grows, so that a reader takes differences of two snapshots and nothing is reset while a graph may replay.
///
/// # Errors
/// `loads` is too short, or the numbers of `counting` make no sense.
pub fn record<I: RoutedId>(
    choices: &Choices<'_, I>,
    counting: &Counting<'_>,
    loads: &mut [u64],
) -> Result<Faults, KernelError> {
    let mut faults = Faults::default();
    let Some(row) = counting.row(loads)? else { return Ok(faults) };
    let loads = &mut loads[row..][..counting.experts];
    for token in (0..choices.tokens()).filter(|&token| choices.counts(token)) {
        for &id in choices.of(token) {
            match counting.expert(id.into()) {
                Named::Expert(expert) => loads[expert] = loads[expert].wrapping_add(1),
                Named::OutOfRange => faults.out_of_range += 1,
                Named::EmptySlot => faults.missing += 1,
                Named::Nothing => {}
            }
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_strange_ids_are_not_counted() {
        // Three tokens, two choices, a gap of one; the last token is padding.
        let ids = [0i32, 2, 99, -1, 3, 99, 1, 1];
        let mut loads = [10u64, 0, 0];
        let choices = Choices::new(&ids, 3, 2, 3).unwrap().with_valid(2);
        let faults = record(&choices, &Counting::new(3), &mut loads).unwrap();
        assert_eq!(loads, [11, 0, 1]);
        assert_eq!(faults, Faults { out_of_range: 1, missing: 0 });
    }

    #[test]
    fn a_tag_chooses_the_row_and_another_counts_nothing() {
        let ids = [1i64, 1, -7];
        let choices = Choices::new(&ids, 1, 3, 3).unwrap();
        let mut loads = [0u64; 7];
        let mut counting = Counting { tags: 2, tag_stride: 5, tag: Some(1), ..Counting::new(2) };
        assert_eq!(record(&choices, &counting, &mut loads).unwrap().out_of_range, 1);
        assert_eq!(loads, [0, 0, 0, 0, 0, 0, 2]);
        for tag in [-1, 2, i32::MIN, i32::MAX] {
            counting.tag = Some(tag);
            assert_eq!(record(&choices, &counting, &mut loads).unwrap(), Faults::default());
        }
        assert_eq!(loads.iter().sum::<u64>(), 2);
    }

    #[test]
    fn slots_are_counted_under_the_expert_in_force() {
        let ids = [0i32, 1, 2, 3];
        let counting = Counting { phy2log: Some(&[1, 0, 1, -1]), ..Counting::new(2) };
        let mut loads = [0u64; 2];
        let faults = record(&Choices::new(&ids, 1, 4, 4).unwrap(), &counting, &mut loads).unwrap();
        assert_eq!((loads, faults), ([1, 2], Faults { out_of_range: 0, missing: 1 }));
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let choices = Choices::new(&[0i32], 1, 1, 1).unwrap();
        assert!(record(&choices, &Counting::new(3), &mut [0; 2]).is_err());
        assert!(record(&choices, &Counting::new(0), &mut [0; 2]).is_err());
        assert!(record(&choices, &Counting { tags: 0, ..Counting::new(2) }, &mut [0; 2]).is_err());
        assert!(
            record(&choices, &Counting { tags: 2, tag_stride: 1, ..Counting::new(2) }, &mut [0; 9]).is_err()
        );
    }
}
