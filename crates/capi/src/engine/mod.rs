//! The embedded engine, as C sees it: put together (`builder`, `source`), asked to work (`serve`, `count`, `control`), and looked at (`maps`, `watch`);
//! on a device `device`, `device_count`.

mod builder;
mod control;
mod count;
mod device;
mod device_count;
mod maps;
mod serve;
mod source;
mod watch;

pub use builder::*;
pub use control::*;
pub use count::*;
pub use device::*;
pub use device_count::*;
pub use maps::*;
pub use serve::*;
pub use source::*;
pub use watch::*;

use eplb_engine::EngineError;
use eplb_engine::engine::SetId;

use crate::call::Failure;
use crate::status::Status;

/// The engine of one rank.
#[derive(Debug)]
pub struct Engine(pub(crate) eplb_engine::Engine);

/// What went wrong in an engine, as a status.
pub(crate) fn failed(error: EngineError) -> Failure {
    let status = match &error {
        EngineError::Undecided { .. } | EngineError::Broken { .. } | EngineError::Unformed { .. } => {
            Status::MustNotRun
        }
        EngineError::Late { .. } => Status::Timeout,
        EngineError::State { .. } => Status::State,
        EngineError::Panicked { .. } => Status::Internal,
        _ if error.is_bad_input() => Status::InvalidArgument,
        _ => Status::Engine,
    };
    Failure::new(status, error)
}

/// A layer set of an engine, as numbered by `eplb_builder_layer_set`.
fn set_of(engine: &eplb_engine::Engine, set: u32) -> Result<SetId, Failure> {
    let id = SetId(set as usize);
    let sets = engine.sets().count();
    match id.0 < sets {
        true => Ok(id),
        false => Err(Failure::argument(format!(
            "set is {set}; the engine has layer sets 0 to {}",
            sets.max(1) - 1
        ))),
    }
}
