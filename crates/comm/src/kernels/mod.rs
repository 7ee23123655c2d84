//! Twins on the CPU of the GPU kernels in `kernels/*.cu`, and the lists that both work on.
//!
//! | kernel | entry points | twin |
//! |---|---|---|
//! | load recording | `eplb_record_i32`, `eplb_record_i64` | [`record()`] |
//! | dispatch, fused with recording | `eplb_dispatch_i32`, `eplb_dispatch_i64` | [`dispatch()`] |
//! | gather from and scatter to strided rows | `eplb_copy_rows` | [`copy_rows`] |
//! | commit: rows and entries of the maps | `eplb_commit` | [`commit()`] |
//! | checksum of experts | `eplb_checksum_parts` | [`checksum()`], [`tensor_sum`] |
//!
//! The definitions stand here; a kernel gives the same bits. [`vectors`] makes up inputs with the outputs that they must
//! give: the program `kernels/test/check.cu` compares the kernels with them, on a GPU or, compiled as plain C++, on the
//! CPU.

pub mod checksum;
pub mod choices;
pub mod commit;
pub mod dispatch;
pub mod error;
pub mod record;
pub mod rows;
pub mod vectors;

pub use checksum::{ChecksumPart, checksum, tensor_sum};
pub use choices::{Choices, RoutedId};
pub use commit::{WordWrite, commit};
pub use dispatch::{LayerMaps, dispatch};
pub use error::KernelError;
pub use record::{Counting, Faults, record};
pub use rows::{RowCopy, copy_rows, gather_list, number_units, scatter_list};

/// 2^64 over the golden ratio: the increment of splitmix64, which spreads neighbouring numbers far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
