//! Plans on disk: `.npz` files that numpy, servers and this program read alike.
//!
//! | array | dtype, shape | content |
//! |---|---|---|
//! | `phy2log` | int64 `[L, P]` | expert in each slot, -1 = empty |
//! | `log2phy` | int64 `[L, E, C]` | slots of each expert, ascending, -1 padded; `C` = largest replica count |
//! | `logcnt` | int64 `[L, E]` | replicas of each expert |
//! | `share` | float64 `[L, P]` | part of its expert's tokens that a slot gets; 0 at empty slots |
//! | `counts` | float64 `[T, L, E]` | the window that it was planned on, where it is known |
//!
//! Only `phy2log` is needed to read one, in any integer dtype; what else there is must agree with it.

use std::path::Path;

use eplb_core::{CoreError, ExpertId, LayerId, Placement, Share};
use eplb_trace::npz::{Npz, NpzWriter};
use ndarray::{Array2, Array3};

use crate::error::EngineError;

/// Writes a plan, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, placement: &Placement, share: &Share) -> Result<(), EngineError> {
    write_with_window(path, placement, share, None)
}

/// As [`write()`], with the loads that led to the plan, `[T, L, E]`.
///
/// # Errors
/// The file cannot be written.
pub fn write_with_window(
    path: &Path,
    placement: &Placement,
    share: &Share,
    loads: Option<&Array3<f64>>,
) -> Result<(), EngineError> {
    let mut file = NpzWriter::create(path)?;
    file.array("phy2log", &placement.phy2log().mapv(i64::from))?;
    file.array("log2phy", &placement.log2phy(0).mapv(i64::from))?;
    file.array("logcnt", &placement.logcnt().mapv(i64::from))?;
    file.array("share", &share.view())?;
    if let Some(loads) = loads {
        file.array("counts", loads)?;
    }
    Ok(file.finish()?)
}

/// Reads the placement of a plan for a model with `experts` experts per layer.
///
/// # Errors
/// A file that cannot be read or has no `phy2log`, an entry that is no expert, an expert without a slot, or
/// another array that contradicts `phy2log`. Messages name the file.
pub fn read(path: &Path, experts: usize) -> Result<Placement, EngineError> {
    let named = |error: EngineError| match error {
        EngineError::Core(error) => EngineError::PlanFile { file: path.display().to_string(), error },
        other => other,
    };
    read_checked(path, experts).map_err(named)
}

fn read_checked(path: &Path, experts: usize) -> Result<Placement, EngineError> {
    let file = Npz::open(path)?;
    let wide: Array2<i64> = file.integers("phy2log")?;
    let mut phy2log = Array2::<i32>::zeros(wide.dim());
    for ((layer, slot), &value) in wide.indexed_iter() {
        let entry = i32::try_from(value).map_err(|_| CoreError::ExpertOutOfRange {
            layer: LayerId::at(layer),
            slot: eplb_core::SlotId::at(slot),
            value,
            experts,
        })?;
        phy2log[(layer, slot)] = entry;
    }
    let placement = Placement::new(experts, phy2log)?;
    if file.contains("logcnt") {
        let logcnt: Array2<i64> = file.integers("logcnt")?;
        same_shape("logcnt", logcnt.shape(), &[placement.layers(), experts])?;
        for ((layer, expert), &found) in logcnt.indexed_iter() {
            let expected = i64::from(placement.logcnt()[(layer, expert)]);
            if found != expected {
                return Err(disagree("logcnt", layer, expert, found.to_string(), expected.to_string()));
            }
        }
    }
    if file.contains("log2phy") {
        let log2phy: Array3<i64> = file.integers("log2phy")?;
        let columns = log2phy.shape()[2];
        same_shape("log2phy", &log2phy.shape()[..2], &[placement.layers(), experts])?;
        for layer in 0..placement.layers() {
            for expert in 0..experts {
                let mut found: Vec<i64> =
                    (0..columns).map(|c| log2phy[(layer, expert, c)]).filter(|&slot| slot != -1).collect();
                found.sort_unstable();
                let expected: Vec<i64> = placement
                    .replicas(LayerId::at(layer), ExpertId::at(expert))
                    .iter()
                    .map(|slot| i64::from(slot.0))
                    .collect();
                if found != expected {
                    let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
                    return Err(disagree("log2phy", layer, expert, found, expected));
                }
            }
        }
    }
    if file.contains("share") {
        Share::new(file.floats("share")?, &placement)?;
    }
    Ok(placement)
}

fn same_shape(what: &'static str, found: &[usize], expected: &[usize]) -> Result<(), EngineError> {
    if found == expected {
        return Ok(());
    }
    let expected = format!("{expected:?} (layers, experts), as phy2log and the loads say");
    Err(CoreError::Shape { what, found: found.to_vec(), expected }.into())
}

fn disagree(what: &'static str, layer: usize, expert: usize, found: String, expected: String) -> EngineError {
    CoreError::Disagree { what, layer: LayerId::at(layer), expert: ExpertId::at(expert), found, expected }
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("eplb-plan-file-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = folder("roundtrip");
        let placement = Placement::new(3, array![[0, 1, 2, 0], [2, -1, 1, 0]]).unwrap();
        let path = folder.join("plan.npz");
        write(&path, &placement, &Share::even(&placement)).unwrap();
        assert_eq!(read(&path, 3).unwrap(), placement);
        // Four experts: one of them has no slot.
        let error = read(&path, 4).unwrap_err().to_string();
        assert!(error.contains("plan.npz") && error.contains("layer 0 expert 3"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn arrays_that_disagree_are_refused() {
        let folder = folder("disagree");
        let path = folder.join("plan.npz");
        let with = |name: &str, array: &Array2<i64>| {
            let mut file = NpzWriter::create(&path).unwrap();
            file.array("phy2log", &array![[0i64, 1, 0]]).unwrap();
            file.array(name, array).unwrap();
            file.finish().unwrap();
            read(&path, 2)
        };
        assert!(with("logcnt", &array![[2, 1]]).is_ok());
        assert!(with("logcnt", &array![[1, 2]]).unwrap_err().to_string().contains("logcnt disagrees"));
        assert!(with("logcnt", &array![[2, 1, 0]]).is_err());
        assert!(with("share", &array![[1, 1, 1]]).is_err());
        let mut file = NpzWriter::create(&path).unwrap();
        file.array("phy2log", &array![[0i64, 1 << 40, 0]]).unwrap();
        file.finish().unwrap();
        assert!(read(&path, 2).unwrap_err().to_string().contains("1099511627776"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
