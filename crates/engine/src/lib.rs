//! The engine of the expert-parallel load balancer.
//!
//! [`Driver`] runs one rank's part of an exchange over any communicator while the rank's steps go on. [`cluster`] runs
//! all ranks as threads of one process on host memory, and [`rebalance`] walks a trace with them. [`Engine`] is what a server
//! embeds.
#![deny(unsafe_code)]

pub mod bench;
pub mod board;
pub mod cluster;
pub mod deadlines;
pub mod doctor;
pub mod driver;
pub mod engine;
pub mod error;
pub mod machine;
mod margin;
pub mod plan_file;
pub mod process;
pub mod rebalance;

pub use board::{Board, BoardError, LocalBoard, StoreBoard};
pub use driver::Driver;
pub use engine::{Engine, EngineConfig};
pub use error::EngineError;
