//! The words of the expert-parallel load balancer: ids, [`Topology`], [`LoadMatrix`], [`Placement`], [`Share`],
//! the metrics and the bound that plans are judged by, the [`layout`] of expert weights and the [`wave`] types.
//!
//! No IO, no threads, no clocks. Letters in shapes: `T` steps, `L` layers, `E` logical experts, `P` slots
//! (physical experts), `C` columns of `log2phy`.
#![forbid(unsafe_code)]

pub mod bound;
pub mod error;
pub mod ids;
pub mod layout;
pub mod load;
pub mod metrics;
pub mod placement;
pub mod share;
pub mod topology;
pub mod wave;

pub use error::CoreError;
pub use ids::{ExpertId, LayerId, NodeId, RankId, SlotId};
pub use layout::{LayerLayout, ModelLayout, TensorLayout};
pub use load::LoadMatrix;
pub use metrics::{Balance, Changes};
pub use placement::Placement;
pub use share::Share;
pub use topology::Topology;
pub use wave::{Fill, Landing, SlotCommit, Transfer, Wave};
