//! Several named arrays in one file: numpy's `.npz`, a zip file of `.npy` members, stored or deflated.
//!
//! ```
//! use eplb_trace::npz::{Npz, NpzWriter};
//! use ndarray::{Array2, array};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("plan.npz");
//! let mut plan = NpzWriter::create(&path)?;
//! plan.array("phy2log", &array![[0i64, 1, 0]])?;
//! plan.array("share", &array![[0.5, 1.0, 0.5]])?;
//! plan.finish()?;
//!
//! let plan = Npz::open(&path)?;
//! assert_eq!(plan.describe(), "phy2log <i8 [1, 3], share <f8 [1, 3]");
//! let phy2log: Array2<i64> = plan.integers("phy2log")?;
//! let share: Array2<f64> = plan.floats("share")?;
//! assert!(!plan.contains("logcnt"));
//! # assert_eq!((phy2log, share), (array![[0, 1, 0]], array![[0.5, 1.0, 0.5]]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod read;
mod write;

pub use read::{Member, Npz};
pub use write::NpzWriter;
