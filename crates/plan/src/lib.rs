//! Decides which expert lives in which slot: loads, topology and the placement in force go in, a [`Plan`] comes out.
//!
//! A [`Planner`] owns its threads; a [`Request`] names the inputs; [`Options`] choose the [`Policy`] and its limits.
//! Policies are pure functions of the request: the same request gives the same plan bit for bit, on any machine
//! and with any number of threads. Every plan comes with the best balancedness that any plan could have reached.
//!
//! ```
//! use eplb_core::{LoadMatrix, Topology};
//! use eplb_plan::{Options, Planner, Policy, Request};
//!
//! // One layer, 4 experts, 2 ranks with 3 slots each.
//! let loads = LoadMatrix::from_sum(ndarray::array![[8.0, 6.0, 2.0, 2.0]])?;
//! let topology = Topology::uniform(2, 6)?;
//! let options = Options { policy: Policy::Deepseek, ..Options::default() };
//! let plan = Planner::new(1)?.plan(&Request::new(&loads, &topology, &options))?;
//! assert_eq!(plan.after.mean, 1.0);
//! assert_eq!(plan.placement.slots(), 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Letters in shapes: `T` steps, `L` layers, `E` logical experts, `P` slots.
#![forbid(unsafe_code)]

mod aims;
mod budget;
mod curve;
mod error;
mod layer;
mod objective;
mod options;
mod order;
mod plan;
mod planner;
mod policy;
mod predict;
mod request;
pub mod split;
mod workers;

pub use aims::Aim;
pub use budget::{Budget, Worth};
pub use curve::CurvePoint;
pub use error::PlanError;
pub use objective::{CostModel, Dispatch, NodeRule};
pub use options::{Options, Policy, Window};
pub use plan::Plan;
pub use planner::Planner;
pub use predict::Prediction;
pub use request::Request;
