//! What a server embeds: one [`Engine`] per rank counts tokens, decides when to rebalance, plans with the other ranks, and moves
//! experts while the server serves.
//!
//! [`Engine::step`] is called before each forward pass and [`Engine::record`] with what it counted; everything that takes time
//! is done by one progress thread, and everything between ranks goes through a [`Store`](eplb_comm::store::Store). A rank that
//! is alone (world size 1) has nothing to balance: it has no thread, no store and no communicator.
//!
//! ```
//! use eplb_core::{TensorLayout, Topology};
//! use eplb_engine::engine::{Counts, Engine, EngineConfig, Pass, World};
//!
//! // One layer, 4 experts of 64 bytes, 6 slots; the engine lends the memory.
//! let mut builder = Engine::builder(EngineConfig::default(), World::Alone);
//! let main = builder.layer_set("main", Topology::uniform(1, 6)?, 4, 1)?;
//! builder.lend_layer(main, 0, &[TensorLayout::contiguous("weights", 64)])?;
//! let engine = builder.start()?;
//! engine.step(0)?;
//! assert_eq!(engine.maps(main).phy2log, ndarray::array![[0, 1, 2, 3, 0, 1]]);
//! let counts = ndarray::array![[5u64, 1, 0, 2]];
//! engine.record(main, &Pass { step: 0, ..Pass::default() }, Counts::Experts(counts.view()))?;
//! engine.shutdown(std::time::Duration::from_secs(1))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Threads.** `step` and `tick` are called by one thread at a time. Everything else may be called from any thread. Hooks run
//! inside `step` and `tick` and must not call the engine.
//!
//! **Rounds.** The lowest live rank sums the counts of all ranks, looks at the triggers and plans; it announces a round
//! in the store, all ranks take part in it, and the next is announced when all have shown that they ended it. A rank that runs no
//! passes delays at most a round's waves: `tick` lets them go on.

mod builder;
mod closed;
mod config;
mod control;
mod desk;
mod device;
mod device_counts;
mod draft;
mod facts;
mod handover;
mod joined;
mod lead;
mod leading;
mod maps;
mod meters;
mod metrics;
mod progress;
mod record;
mod reform;
mod register;
mod report;
mod running;
mod shared;
mod slots;
mod spans;
mod state;
mod step;
mod stream;
mod trigger;
mod window;
mod wire;

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use eplb_comm::host::HostMemory;
use eplb_comm::kernels::Faults;
use eplb_core::{LayerId, Placement, RankId, Share};
use eplb_cuda::DeviceMemory;

pub use builder::{Builder, World};
pub use config::{BudgetConfig, ConfigError, EngineConfig, KEYS, TriggerConfig, WorthConfig};
pub use device::{Device, DeviceMapsView};
pub use device_counts::{DeviceCountersView, DeviceSlots, DeviceTokens};
pub use eplb_cuda::kernels::{DeviceChoices, IdType};
pub use joined::JoinedStreams;
pub use maps::Maps;
pub use record::{Counts, Pass, RecordError};
pub use register::{RegisterError, TensorView};
pub use report::{Reason, Report, RoundOutcome};
pub use state::State;
pub use stream::{AfterCommit, InlineStream};

use crate::error::EngineError;
use shared::{Shared, lock};
use slots::Slots;

/// A layer set of an engine: layers with one number of experts and slots, such as a model, or its draft model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetId(pub usize);

/// The engine of one rank. See the [module](self).
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Begins to put an engine together.
    pub fn builder(config: EngineConfig, world: World) -> Builder {
        Builder::new(config, world)
    }

    /// This rank.
    pub fn rank(&self) -> RankId {
        self.shared.rank
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.shared.world_size
    }

    /// The layer sets, in the order in which they were named.
    pub fn sets(&self) -> impl Iterator<Item = (SetId, &str)> {
        self.shared.sets.iter().enumerate().map(|(at, set)| (SetId(at), set.name.as_str()))
    }

    /// Maps by which the pass of the last [`Engine::step`] routes its tokens.
    ///
    /// # Panics
    /// A set of another engine.
    pub fn maps(&self, set: SetId) -> Arc<Maps> {
        self.shared.sets[set.0].history.now()
    }

    /// Maps that a step ran with on this rank; `None` if they are forgotten ([`EngineConfig::remembered_maps`]).
    ///
    /// # Panics
    /// A set of another engine.
    pub fn maps_at(&self, set: SetId, step: u64) -> Option<Arc<Maps>> {
        self.shared.sets[set.0].history.at(step)
    }

    /// The placement in force on this rank: what its maps say, after the last step or tick.
    ///
    /// # Errors
    /// None that a sound engine has.
    pub fn placement(&self, set: SetId) -> Result<Placement, EngineError> {
        let maps = self.maps(set);
        Ok(Placement::with_missing(maps.logcnt.ncols(), maps.phy2log.clone())?)
    }

    /// Counts tokens of a pass; what could not be counted comes back. From any thread; cheap enough to follow each pass.
    ///
    /// # Errors
    /// Shapes, tags or layers that do not exist, or maps that are forgotten; nothing was counted then.
    pub fn record(&self, set: SetId, pass: &Pass, counts: Counts<'_>) -> Result<Faults, EngineError> {
        let set = self.set(set, "record")?;
        Ok(set.counters.add(pass, counts, &set.history)?)
    }

    /// Tokens counted on this rank since the start, `[tags, L, E]`. What lies on a device is counted as of the last look there
    /// ([`EngineConfig::sample_ms`]).
    ///
    /// # Errors
    /// There is no such set, or the device failed.
    pub fn counted(&self, set: SetId) -> Result<ndarray::Array3<u64>, EngineError> {
        let set = self.set(set, "counted")?;
        if self.shared.world_size == 1 {
            set.collect(true)?;
        }
        Ok(set.counters.read().0)
    }

    /// Address of the first local slot of a tensor that the engine lends; `None` where it does not exist. Of a set on a device it is an address
    /// there, which the host must not follow.
    pub fn lent(&self, set: SetId, layer: usize, tensor: usize) -> Option<NonNull<u8>> {
        self.shared.sets.get(set.0)?.memory.address(LayerId::at(layer), tensor)
    }

    /// This rank's slots and staging, for a server that reads them through guards.
    ///
    /// # Panics
    /// A set of another engine, or on a device: see [`Engine::device_memory`].
    pub fn memory(&self, set: SetId) -> &Arc<HostMemory> {
        match &self.shared.sets[set.0].memory {
            Slots::Host(memory) => memory,
            Slots::Device(_) => panic!("layer set {} lies on a device", set.0),
        }
    }

    /// This rank's slots and staging on a device; `None` if they lie in host memory.
    ///
    /// # Panics
    /// A set of another engine.
    pub fn device_memory(&self, set: SetId) -> Option<&Arc<DeviceMemory>> {
        match &self.shared.sets[set.0].memory {
            Slots::Host(_) => None,
            Slots::Device(memory) => Some(memory),
        }
    }

    /// What the last round of a set did.
    pub fn last_report(&self, set: SetId) -> Option<Report> {
        lock(&self.shared.sets.get(set.0)?.report).clone()
    }

    /// Writes plan and window of a set as an `.npz` file, which [`EngineConfig::start_plan`] and
    /// [`EngineConfig::load_window`] read. The window is known to the leading rank; on others there is none in the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, set: SetId, path: &std::path::Path) -> Result<(), EngineError> {
        let placement = self.placement(set)?;
        let set = self.set(set, "save")?;
        let window = match self.shared.world_size {
            1 => {
                let (tokens, passes) = set.counters.read();
                let sum = tokens.sum_axis(ndarray::Axis(0)).mapv(|n| n as f64);
                (passes > 0).then(|| sum.insert_axis(ndarray::Axis(0)))
            }
            _ => lock(&set.window).stacked(),
        };
        let share = Share::even(&placement);
        crate::plan_file::write_with_window(path, &placement, &share, window.as_ref())
    }

    fn set(&self, set: SetId, call: &'static str) -> Result<&shared::Set, EngineError> {
        let unknown = || EngineError::Options(format!("{call}: there is no layer set {}", set.0));
        self.shared.sets.get(set.0).ok_or_else(unknown)
    }
}
