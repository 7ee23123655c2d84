//! Counting tokens: what a pass reports, folded to logical experts with the maps that it ran with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eplb_comm::kernels::{Choices, Counting, Faults, KernelError, RoutedId, record};
use eplb_core::CoreError;
use ndarray::{Array3, ArrayView2};

use super::device_counts::view;
use super::maps::{History, Maps};

/// Which forward pass counts are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pass {
    /// Its step: counts of slots are folded with the maps of that step.
    pub step: u64,
    /// Kind of pass, a position in [`EngineConfig::tags`](super::EngineConfig::tags).
    pub tag: usize,
    /// A dummy or warm-up pass: nothing is counted.
    pub dummy: bool,
}

/// What was counted in a pass on this rank, tokens.
#[derive(Debug, Clone, Copy)]
pub enum Counts<'a> {
    /// Tokens that each slot got, `[L, P]`.
    Slots(ArrayView2<'a, u64>),
    /// Tokens that chose each expert, `[L, E]`.
    Experts(ArrayView2<'a, u64>),
    /// Choices of the router in one layer, as 64-bit ids.
    TopK {
        /// The layer.
        layer: usize,
        /// The ids `[tokens, k]`, and which tokens are padding.
        choices: Choices<'a, i64>,
        /// Whether ids are slots, not experts.
        slots: bool,
    },
    /// The same as 32-bit ids.
    TopK32 {
        /// The layer.
        layer: usize,
        /// The ids `[tokens, k]`, and which tokens are padding.
        choices: Choices<'a, i32>,
        /// Whether ids are slots, not experts.
        slots: bool,
    },
}

/// Why counts were not taken. Nothing was counted then.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Counts of another shape than the maps.
    #[error(transparent)]
    Shape(#[from] CoreError),
    /// Top-k ids whose shape makes no sense.
    #[error(transparent)]
    Choices(#[from] KernelError),
    /// A tag that is not configured.
    #[error("tag {tag}: there are {tags} tags, 0..{tags}; name more in `tags` of the configuration")]
    Tag {
        /// The tag.
        tag: usize,
        /// Number of tags.
        tags: usize,
    },
    /// A layer that does not exist.
    #[error("layer {layer}: the layer set has layers 0..{layers}")]
    Layer {
        /// The layer.
        layer: usize,
        /// Number of layers.
        layers: usize,
    },
    /// Nothing can be launched.
    #[error("tokens cannot be counted on the device: {why}")]
    NoKernels {
        /// Why.
        why: String,
    },
    /// The maps of the step are forgotten, so that slots cannot be told from experts.
    #[error(
        "the maps of step {step} are forgotten; the oldest remembered begin at step {oldest}: report counts sooner, or set \
         `remembered_maps` higher"
    )]
    MapForgotten {
        /// The step.
        step: u64,
        /// First step of the oldest maps remembered.
        oldest: u64,
    },
}

/// Tokens counted on this rank since the start; they only grow. `[tags, L, E]`.
#[derive(Debug)]
pub(super) struct Counters {
    totals: Mutex<Totals>,
    /// Planted by tests: slots are folded with the newest maps, whichever they were counted under.
    #[cfg(test)]
    pub(super) folds_with_newest: bool,
}

#[derive(Debug)]
struct Totals {
    tokens: Array3<u64>,
    faults: Faults,
    passes: u64,
    /// What kernels have counted on the device, as last copied.
    device: Option<(Array3<u64>, Faults)>,
}

impl Counters {
    pub(super) fn new(tags: usize, layers: usize, experts: usize) -> Self {
        let tokens = Array3::zeros((tags, layers, experts));
        Self {
            totals: Mutex::new(Totals { tokens, faults: Faults::default(), passes: 0, device: None }),
            #[cfg(test)]
            folds_with_newest: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Totals> {
        // Sums stay sums if a thread panics between two additions.
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sums, `[tags, L, E]`, and how many passes they are of.
    pub(super) fn read(&self) -> (Array3<u64>, u64) {
        let totals = self.lock();
        let tokens = match &totals.device {
            Some((device, _)) => &totals.tokens + device,
            None => totals.tokens.clone(),
        };
        (tokens, totals.passes)
    }

    /// Takes over the sums that kernels keep on the device. That they grew counts as a pass.
    pub(super) fn set_device(&self, sums: Array3<u64>, faults: Faults) {
        let mut totals = self.lock();
        let known = totals.device.as_ref().map_or(0, |(known, _)| known.sum());
        totals.passes += u64::from(sums.sum() != known);
        totals.device = Some((sums, faults));
    }

    /// Adds what a pass counted on the device: of slots, by the maps that it ran with, or of experts.
    pub(super) fn add_arrived(&self, tag: usize, tokens: &[u64], maps: Option<&Maps>) {
        let mut totals = self.lock();
        let (_, layers, experts) = totals.tokens.dim();
        match maps {
            Some(maps) => {
                if let Some(slots) = view(tokens, maps.phy2log.dim()) {
                    let faults = fold(&mut totals.tokens, tag, slots, maps);
                    totals.faults.missing += faults.missing;
                }
            }
            None => {
                if let Some(counted) = view(tokens, (layers, experts)) {
                    let mut row = totals.tokens.index_axis_mut(ndarray::Axis(0), tag);
                    row.zip_mut_with(&counted, |sum, &count| *sum = sum.wrapping_add(count));
                }
            }
        }
        totals.passes += 1;
    }

    /// Checks a pass, and a layer if one is named.
    pub(super) fn check(&self, pass: &Pass, layer: Option<usize>) -> Result<(), RecordError> {
        let (tags, layers, _) = self.lock().tokens.dim();
        match layer {
            _ if pass.tag >= tags => Err(RecordError::Tag { tag: pass.tag, tags }),
            Some(layer) if layer >= layers => Err(RecordError::Layer { layer, layers }),
            _ => Ok(()),
        }
    }

    /// The maps that counts of slots of a step are folded with.
    pub(super) fn maps_of(&self, step: u64, history: &History) -> Result<Arc<Maps>, RecordError> {
        #[cfg(test)]
        if self.folds_with_newest {
            return Ok(history.now());
        }
        history.at(step).ok_or_else(|| RecordError::MapForgotten { step, oldest: history.oldest() })
    }

    /// Number of passes counted.
    pub(super) fn passes(&self) -> u64 {
        self.lock().passes
    }

    /// Choices that could not be counted since the start.
    pub(super) fn faults(&self) -> Faults {
        let totals = self.lock();
        let device = totals.device.as_ref().map_or(Faults::default(), |(_, faults)| *faults);
        Faults {
            out_of_range: totals.faults.out_of_range + device.out_of_range,
            missing: totals.faults.missing + device.missing,
        }
    }

    /// Adds what a pass counted; what could not be counted comes back.
    pub(super) fn add(
        &self,
        pass: &Pass,
        counts: Counts<'_>,
        history: &History,
    ) -> Result<Faults, RecordError> {
        let mut totals = self.lock();
        let (tags, layers, experts) = totals.tokens.dim();
        if pass.tag >= tags {
            return Err(RecordError::Tag { tag: pass.tag, tags });
        }
        if pass.dummy {
            return Ok(Faults::default());
        }
        let maps = || self.maps_of(pass.step, history);
        let in_set = |layer| match layer < layers {
            true => Ok(()),
            false => Err(RecordError::Layer { layer, layers }),
        };
        let faults = match counts {
            Counts::Slots(slots) => {
                let maps = maps()?;
                same_shape(slots.shape(), [layers, maps.phy2log.ncols()])?;
                fold(&mut totals.tokens, pass.tag, slots, &maps)
            }
            Counts::Experts(counted) => {
                same_shape(counted.shape(), [layers, experts])?;
                let mut row = totals.tokens.index_axis_mut(ndarray::Axis(0), pass.tag);
                row.zip_mut_with(&counted, |sum, &count| *sum = sum.wrapping_add(count));
                Faults::default()
            }
            Counts::TopK { layer, choices, slots } => {
                in_set(layer)?;
                let maps = slots.then(maps).transpose()?;
                choose(&mut totals.tokens, pass.tag, layer, &choices, maps.as_deref())?
            }
            Counts::TopK32 { layer, choices, slots } => {
                in_set(layer)?;
                let maps = slots.then(maps).transpose()?;
                choose(&mut totals.tokens, pass.tag, layer, &choices, maps.as_deref())?
            }
        };
        totals.passes += 1;
        totals.faults.missing += faults.missing;
        totals.faults.out_of_range += faults.out_of_range;
        Ok(faults)
    }
}

fn same_shape(found: &[usize], expected: [usize; 2]) -> Result<(), RecordError> {
    if found == expected {
        return Ok(());
    }
    let expected = format!("{expected:?}, as the layer set has");
    Err(CoreError::Shape { what: "counts", found: found.to_vec(), expected }.into())
}

/// Adds counts of slots to the experts that the maps name.
fn fold(tokens: &mut Array3<u64>, tag: usize, slots: ArrayView2<'_, u64>, maps: &Maps) -> Faults {
    let mut faults = Faults::default();
    for ((layer, slot), &count) in slots.indexed_iter() {
        match usize::try_from(maps.phy2log[(layer, slot)]) {
            Ok(expert) => {
                let sum = &mut tokens[(tag, layer, expert)];
                *sum = sum.wrapping_add(count);
            }
            Err(_) => faults.missing += count,
        }
    }
    faults
}

/// Adds the choices of one layer.
fn choose<I: RoutedId>(
    tokens: &mut Array3<u64>,
    tag: usize,
    layer: usize,
    choices: &Choices<'_, I>,
    maps: Option<&Maps>,
) -> Result<Faults, RecordError> {
    let (_, layers, experts) = tokens.dim();
    let row = maps.and_then(|maps| maps.phy2log.row(layer).to_slice());
    let counting = Counting { phy2log: row, ..Counting::new(experts) };
    // The sums are in C order, as they were made.
    let all = tokens.as_slice_mut().unwrap_or_default();
    let at = (tag * layers + layer) * experts;
    Ok(record(choices, &counting, &mut all[at..at + experts])?)
}

#[cfg(test)]
mod tests {
    use super::super::maps::make;
    use super::*;
    use ndarray::{Array2, array};

    fn history() -> History {
        let history = History::new(make(&array![[0, 1, 0]], 2, 2, None).unwrap(), 2);
        history.publish(make(&array![[1, 0, -1]], 2, 2, None).unwrap(), 10);
        history
    }

    fn late_counts(counters: &Counters) -> Array3<u64> {
        // Counted in step 9, reported after step 10 switched maps.
        let pass = Pass { step: 9, ..Pass::default() };
        let counts = array![[5, 7, 1]];
        assert_eq!(counters.add(&pass, Counts::Slots(counts.view()), &history()), Ok(Faults::default()));
        counters.read().0
    }

    #[test]
    fn slots_are_folded_with_the_maps_that_they_were_counted_under() {
        assert_eq!(late_counts(&Counters::new(1, 1, 2)), array![[[6, 7]]]);
    }

    #[test]
    fn counts_folded_with_newer_maps_are_noticed() {
        let planted = Counters { folds_with_newest: true, ..Counters::new(1, 1, 2) };
        let pass = Pass { step: 9, ..Pass::default() };
        let faults = planted.add(&pass, Counts::Slots(array![[5, 7, 1]].view()), &history()).unwrap();
        assert_ne!((planted.read().0, faults), (array![[[6, 7]]], Faults::default()));
    }

    #[test]
    fn dummies_padding_and_tags() {
        let counters = Counters::new(2, 2, 3);
        let history = History::new(make(&Array2::from_elem((2, 3), 0), 3, 3, None).unwrap(), 1);
        let ids = [0i64, 2, 1, 1, 9, 0];
        let choices = Choices::new(&ids, 3, 2, 2).unwrap().with_mask(&[1, 0, 1]).unwrap();
        let counts = Counts::TopK { layer: 1, choices, slots: false };
        let dummy = Pass { dummy: true, ..Pass::default() };
        assert_eq!(counters.add(&dummy, counts, &history), Ok(Faults::default()));
        assert_eq!(counters.passes(), 0);
        let pass = Pass { tag: 1, ..Pass::default() };
        assert_eq!(counters.add(&pass, counts, &history).unwrap().out_of_range, 1);
        let (sums, passes) = counters.read();
        assert_eq!((sums.sum(), sums[(1, 1, 0)], sums[(1, 1, 2)], passes), (3, 2, 1, 1));
        assert_eq!(counters.faults().out_of_range, 1);
        let ids = [2i32, 2];
        let choices = Choices::new(&ids, 2, 1, 1).unwrap();
        counters.add(&pass, Counts::TopK32 { layer: 0, choices, slots: true }, &history).unwrap();
        assert_eq!(counters.read().0[(1, 0, 0)], 2);
    }

    #[test]
    fn what_cannot_be_counted_is_refused_by_name() {
        let (counters, history) = (Counters::new(1, 1, 2), history());
        let refused = |pass: Pass, counts| counters.add(&pass, counts, &history).unwrap_err().to_string();
        let wide = Array2::zeros((1, 4));
        assert!(refused(Pass { step: 10, ..Pass::default() }, Counts::Slots(wide.view())).contains("[1, 4]"));
        assert!(refused(Pass::default(), Counts::Experts(wide.view())).contains("[1, 2]"));
        assert!(refused(Pass { tag: 1, ..Pass::default() }, Counts::Experts(wide.view())).contains("tag 1"));
        let choices = Choices::new(&[0i32], 1, 1, 1).unwrap();
        let counts = Counts::TopK32 { layer: 1, choices, slots: false };
        assert!(refused(Pass::default(), counts).contains("layer 1"));
        history.publish(make(&array![[1, 0, -1]], 2, 2, None).unwrap(), 20);
        let slots = Array2::zeros((1, 3));
        let forgotten = refused(Pass { step: 9, ..Pass::default() }, Counts::Slots(slots.view()));
        assert!(forgotten.contains("step 9") && forgotten.contains("step 10"), "{forgotten}");
        assert_eq!(counters.read().0.sum(), 0);
    }
}
