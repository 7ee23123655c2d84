//! Which array of an `.npz` file holds the loads: our own name, those of other systems, or the only one there is.
//!
//! | array | shape | written by |
//! |---|---|---|
//! | `counts` | `[T, L, E]` or `[L, E]` | this crate |
//! | `logical_count` | `[T, L, E]` or `[L, E]` | SGLang's expert distribution recorder (its dump is a torch file; the `.npz` form is the same array under the same name) |
//! | `logical_expert_load_window`, `global_expert_load_window`, `global_expert_load` | `[T, L, E]` or `[L, E]` | vLLM's EPLB state |
//! | `physical_count` + map | `[T, L, P]` or `[L, P]` | SGLang's recorder, detailed modes |
//! | `expert_load_window`, `expert_load_pass` + map | `[T, L, P]` or `[L, P]` | vLLM's EPLB state |
//! | `moe_load` + map | `[T, L, G, P/G]`, `[L, G, P/G]`, `[T, L, P]` or `[L, P]` | vllm-ascend |
//!
//! The map is an integer array `physical_to_logical_map`, `phy2log` or `phy2log_map`, `[L, P]` (or `[L, G, P/G]`,
//! -1 = empty slot): counts of physical experts are folded to logical ones with it. Without a map and without a name
//! of the first three rows, the only array of the file is taken for logical loads, whatever its name; numbers
//! without axes, arrays that hold no numbers (names, times, objects) and `stream` are not counted. Several are an
//! error: nothing is guessed.

use eplb_core::{LayerId, SlotId};
use ndarray::{Array2, Array3, ArrayD};

use crate::counts::Counts;
use crate::error::TraceError;
use crate::npy::NpyArray;
use crate::npz::{Member, Npz};

/// Names of logical loads, after `counts`.
const LOGICAL: [&str; 4] =
    ["logical_count", "logical_expert_load_window", "global_expert_load_window", "global_expert_load"];

/// Names of physical loads, which need a map.
const PHYSICAL: [&str; 4] = ["physical_count", "expert_load_window", "expert_load_pass", BY_RANK];

/// The array of physical loads that has an axis of ranks.
const BY_RANK: &str = "moe_load";

/// Names of maps from physical to logical experts.
const MAPS: [&str; 3] = ["physical_to_logical_map", "phy2log", "phy2log_map"];

/// Name of the array of stream numbers.
pub(crate) const STREAM: &str = "stream";

/// Name of our own array of loads.
pub(crate) const COUNTS: &str = "counts";

/// The loads of an `.npz` file.
pub(crate) fn counts(npz: &Npz) -> Result<Counts, TraceError> {
    if npz.contains(COUNTS) {
        return Counts::new(npz.array(COUNTS)?);
    }
    let ambiguous = || TraceError::Ambiguous { file: npz.file().to_owned(), arrays: npz.describe() };
    match present(npz, &LOGICAL)[..] {
        [name] => return Counts::new(npz.array(name)?),
        [] => {}
        _ => return Err(ambiguous()),
    }
    if let [map] = present(npz, &MAPS)[..] {
        match present(npz, &PHYSICAL)[..] {
            [name] => return fold(npz, name, map),
            [] => {}
            _ => return Err(ambiguous()),
        }
    }
    let members = npz.members();
    let could_be = |m: &&Member| m.name != STREAM && m.numeric && !m.shape.is_empty();
    match members.iter().filter(could_be).collect::<Vec<_>>()[..] {
        [member] => Counts::new(npz.array(&member.name)?),
        // A single array that is no loads says itself why not.
        [] if members.len() == 1 => Counts::new(npz.array(&members[0].name)?),
        [] if members.is_empty() => Err(TraceError::NoArrays { file: npz.file().to_owned() }),
        _ => Err(ambiguous()),
    }
}

/// The stream numbers of an `.npz` file, if it has any.
pub(crate) fn stream(npz: &Npz, steps: usize) -> Result<Option<Vec<i64>>, TraceError> {
    if !npz.contains(STREAM) {
        return Ok(None);
    }
    let array = npz.array(STREAM)?;
    if array.shape() != [steps] || !array.dtype().scalar.is_integer() {
        let found = format!("dtype {} and shape {:?}", array.dtype(), array.shape());
        return Err(TraceError::Stream { file: npz.file().to_owned(), found, steps });
    }
    let numbers: ndarray::Array1<i64> = array.integers()?;
    Ok(Some(numbers.to_vec()))
}

fn present<'a>(npz: &Npz, names: &[&'a str]) -> Vec<&'a str> {
    names.iter().copied().filter(|name| npz.contains(name)).collect()
}

/// Adds the counts of an expert's slots up.
fn fold(npz: &Npz, name: &str, map_name: &str) -> Result<Counts, TraceError> {
    let array = npz.array(name)?;
    let map = map(npz, map_name)?;
    let (layers, slots) = map.dim();
    let physical = physical(&array, name == BY_RANK, layers, slots)?;
    let bad = |reason: String| TraceError::SlotMap { file: format!("{}[{map_name}]", npz.file()), reason };
    let experts = map.iter().copied().max().map_or(0, |largest| largest + 1);
    let experts = usize::try_from(experts).ok().filter(|&n| n > 0 && n <= slots).ok_or_else(|| {
        bad(format!("its largest expert is {}, but {slots} slots can hold experts 0..{slots}", experts - 1))
    })?;
    let mut counts = Array3::zeros((physical.dim().0, layers, experts));
    for ((step, layer, slot), &value) in physical.indexed_iter() {
        match usize::try_from(map[[layer, slot]]) {
            Ok(expert) => counts[[step, layer, expert]] += value,
            Err(_) if map[[layer, slot]] == -1 && value == 0.0 => {}
            Err(_) => {
                return Err(bad(format!(
                    "{} {} is {} but counts {value} tokens at step {step}; -1 means an empty slot",
                    LayerId::at(layer),
                    SlotId::at(slot),
                    map[[layer, slot]]
                )));
            }
        }
    }
    Counts::of_values(array.file().to_owned(), counts.view())
}

/// The map as `[L, P]`.
fn map(npz: &Npz, name: &str) -> Result<Array2<i64>, TraceError> {
    let map: ArrayD<i64> = npz.integers(name)?;
    let shape = map.shape().to_vec();
    let slots = shape.get(1..).map_or(0, |axes| axes.iter().product());
    (matches!(shape.len(), 2 | 3) && slots > 0)
        .then(|| map.into_shape_with_order((shape[0], slots)).ok())
        .flatten()
        .ok_or_else(|| TraceError::Dimensions {
            file: format!("{}[{name}]", npz.file()),
            shape,
            expected: "[layers, slots] or [layers, ranks, slots per rank]".into(),
        })
}

/// Physical counts as `[T, L, P]`.
fn physical(array: &NpyArray, by_rank: bool, layers: usize, slots: usize) -> Result<Array3<f64>, TraceError> {
    let shape = array.shape();
    let divided = |l: usize, ranks: usize, per_rank: usize| {
        by_rank && l == layers && ranks.checked_mul(per_rank) == Some(slots)
    };
    let steps = match *shape {
        [l, p] if (l, p) == (layers, slots) => Some(1),
        [l, ranks, per_rank] if divided(l, ranks, per_rank) => Some(1),
        [steps, l, p] if (l, p) == (layers, slots) => Some(steps),
        [steps, l, ranks, per_rank] if divided(l, ranks, per_rank) => Some(steps),
        _ => None,
    };
    let wrong = || TraceError::Dimensions {
        file: array.file().to_owned(),
        shape: shape.to_vec(),
        expected: format!("[steps, {layers}, {slots}] as the map of physical to logical experts says"),
    };
    let values: ArrayD<f64> = array.floats()?;
    values.into_shape_with_order((steps.ok_or_else(wrong)?, layers, slots)).map_err(|_| wrong())
}
