//! Putting an engine together: layer sets, their tensors, and the other ranks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use eplb_comm::Stream;
use eplb_comm::host::HostMemory;
use eplb_comm::store::Store;
use eplb_core::{LayerId, Placement, RankId, TensorLayout, Topology};

use super::config::EngineConfig;
use super::device::Device;
use super::draft::{Draft, Plans};
use super::facts::load_window;
use super::lead::Lead;
use super::progress::Progress;
use super::reform::{agree, join};
use super::register::{Claims, RegisterError, TensorView};
use super::shared::Shared;
use super::stream::{AfterCommit, Hook};
use super::{Engine, SetId};
use crate::error::EngineError;
use crate::process::{Source, Transport};

/// The other ranks.
#[derive(Debug, Clone)]
pub enum World {
    /// There are none.
    Alone,
    /// There are some.
    Group {
        /// This rank.
        rank: RankId,
        /// Number of ranks.
        world_size: usize,
        /// Through what ranks find each other and agree.
        store: Arc<dyn Store>,
        /// Makes communicators.
        transport: Arc<dyn Transport>,
    },
}

impl World {
    /// This rank, and how many there are.
    fn place(&self) -> (RankId, usize) {
        match self {
            Self::Group { rank, world_size, .. } if *world_size > 1 => (*rank, *world_size),
            _ => (RankId(0), 1),
        }
    }

    /// What carries experts, if there are other ranks.
    fn transport(&self) -> Option<&dyn Transport> {
        match self {
            Self::Group { world_size, transport, .. } if *world_size > 1 => Some(&**transport),
            _ => None,
        }
    }
}

/// An engine that is being put together: layer sets first, then their layers, then [`Builder::start`].
#[derive(Debug)]
pub struct Builder {
    config: EngineConfig,
    world: World,
    sets: Vec<Draft>,
    claims: Claims,
    hook: Option<Hook>,
    source: Option<Arc<dyn Source>>,
    device: Option<Device>,
}

impl Builder {
    pub(super) fn new(config: EngineConfig, world: World) -> Self {
        Self {
            config,
            world,
            sets: Vec::new(),
            claims: Claims::default(),
            hook: None,
            source: None,
            device: None,
        }
    }

    /// All slots of this rank lie on a device. To be said before the first layer is registered or lent; without it they lie in host memory.
    ///
    /// # Errors
    /// Layers are there already.
    pub fn device(&mut self, device: Device) -> Result<(), EngineError> {
        if self.sets.iter().any(|set| !set.tensors.is_empty() || set.stream.is_some()) {
            let late = "name the device before layers are registered or lent and before streams are given";
            return Err(EngineError::Options(late.into()));
        }
        self.device = Some(device);
        Ok(())
    }

    /// Names a layer set: `layers` layers of `experts` experts, whose slots the ranks own as the topology says.
    ///
    /// # Errors
    /// A topology of another number of ranks, fewer slots than experts, or a name given twice.
    pub fn layer_set(
        &mut self,
        name: &str,
        topology: Topology,
        experts: usize,
        layers: usize,
    ) -> Result<SetId, EngineError> {
        let (_, world_size) = self.world.place();
        let refuse = |why: String| Err(EngineError::Options(format!("layer set {name:?}: {why}")));
        if topology.ranks() != world_size {
            return refuse(format!(
                "its topology has {} ranks, the group has {world_size}",
                topology.ranks()
            ));
        }
        if experts == 0 || layers == 0 || topology.slots() < experts {
            let slots = topology.slots();
            return refuse(format!(
                "{layers} layers of {experts} experts in {slots} slots: give at least one of each, and a slot per expert"
            ));
        }
        if self.sets.iter().any(|set| set.name == name) {
            return refuse("the name is taken; layer sets need different names".into());
        }
        let tensors = BTreeMap::new();
        let name = name.to_owned();
        self.sets.push(Draft { name, topology, experts, layers, tensors, placement: None, stream: None });
        Ok(SetId(self.sets.len() - 1))
    }

    fn draft(&mut self, set: SetId) -> Result<&mut Draft, EngineError> {
        let unknown = || EngineError::Options(format!("there is no layer set {}; name it first", set.0));
        self.sets.get_mut(set.0).ok_or_else(unknown)
    }

    /// Registers the tensors of a layer in the server's memory, each from this rank's first slot on; their slots hold what
    /// [`Builder::placement`] says.
    ///
    /// # Errors
    /// [`RegisterError`]: a layer that does not exist or is registered already, addresses that are null or misaligned, tensors
    /// that share bytes.
    ///
    /// # Safety
    /// Until [`Engine::shutdown`] has returned `Ok` (dropping the engine shuts it down too, but gives up after 5 s and cannot say so):
    /// - each address, of the host or of the engine's [`Device`], is valid for reads and writes of `(slots - 1) * slot_stride + (rows - 1) * pitch + row_bytes` bytes;
    /// - whoever else uses these bytes reads a slot only while the maps of the step that runs name it, and never writes one.
    #[allow(unsafe_code)]
    pub unsafe fn register_layer(
        &mut self,
        set: SetId,
        layer: usize,
        tensors: &[TensorView],
    ) -> Result<(), EngineError> {
        let rank = self.world.place().0;
        let draft = self.draft(set)?;
        draft.check_layer(layer)?;
        let (slots, name) = (draft.topology.slot_count(rank), draft.name.clone());
        let layouts: Vec<TensorLayout> = tensors.iter().map(TensorView::layout).collect();
        let mut bases = Vec::new();
        for tensor in tensors {
            let (base, bytes) = self.claims.claim(&name, LayerId::at(layer), slots, tensor)?;
            if let Some(device) = &self.device {
                let checked = device.context.check_address(base.as_ptr().addr() as u64, bytes);
                checked.map_err(|error| {
                    let (layer, tensor, why) = (LayerId::at(layer), tensor.name.clone(), error.to_string());
                    RegisterError::OffDevice { layer, tensor, why }
                })?;
            }
            bases.push(base.as_ptr().expose_provenance());
        }
        self.draft(set)?.tensors.insert(layer, (layouts, Some(bases)));
        Ok(())
    }

    /// Has the engine allocate a layer (zeroed in host memory); see [`Engine::lent`] for addresses. Strides are those given.
    ///
    /// # Errors
    /// [`RegisterError`]: a layer that does not exist or is registered already.
    pub fn lend_layer(
        &mut self,
        set: SetId,
        layer: usize,
        tensors: &[TensorLayout],
    ) -> Result<(), EngineError> {
        let draft = self.draft(set)?;
        draft.check_layer(layer)?;
        draft.tensors.insert(layer, (tensors.to_vec(), None));
        Ok(())
    }

    /// What the slots of a set hold at the start. Default: [`EngineConfig::start_plan`] for the first set, else slot `p` holds
    /// expert `p % E`.
    ///
    /// # Errors
    /// A placement of another shape.
    pub fn placement(&mut self, set: SetId, placement: Placement) -> Result<(), EngineError> {
        let draft = self.draft(set)?;
        draft.check_placement(&placement)?;
        draft.placement = Some(placement);
        Ok(())
    }

    /// The compute stream of a set, or several joined ([`JoinedStreams`](super::JoinedStreams)). Default: [`InlineStream`](super::InlineStream).
    ///
    /// # Errors
    /// There is no such set.
    pub fn stream(&mut self, set: SetId, stream: Box<dyn Stream>) -> Result<(), EngineError> {
        self.stream_on(set, move |_| stream)
    }

    /// As [`Builder::stream`], for a stream that works on the set's memory, which [`Builder::start`] makes.
    ///
    /// # Errors
    /// There is no such set.
    pub fn stream_on(
        &mut self,
        set: SetId,
        make: impl FnOnce(Arc<HostMemory>) -> Box<dyn Stream> + Send + 'static,
    ) -> Result<(), EngineError> {
        if self.device.is_some() {
            let how = "the streams of a device are given to Engine::step_on";
            return Err(EngineError::Options(how.into()));
        }
        self.draft(set)?.stream = Some(Box::new(make));
        Ok(())
    }

    /// Called after each commit with the slots of a layer that it filled, for tensors that the server derives from weights. It runs
    /// inside [`Engine::step`] or [`Engine::tick`], behind the copies on the compute stream, and must not call the engine. It is not called for
    /// slots that [`Engine::reform`] fills from the [`source`](Self::source): what is derived from those, the source or who called `reform` puts there.
    pub fn after_commit(&mut self, hook: AfterCommit) {
        self.hook = Some(Hook::new(hook));
    }

    /// Where experts come from that no rank holds any more, in [`Engine::reform`].
    pub fn source(&mut self, source: Arc<dyn Source>) {
        self.source = Some(source);
    }

    /// Starts the engine. In a group it returns when all ranks have come, hold the same layouts and options, and have their
    /// communicators.
    ///
    /// # Errors
    /// What is missing or contradicts itself; in a group also who did not come, or what differs.
    pub fn start(self) -> Result<Engine, EngineError> {
        let Self { config, world, sets: drafts, claims: _, hook, source, device } = self;
        config.check()?;
        let deadlines = config.all_deadlines()?;
        let (rank, world_size) = world.place();
        if drafts.is_empty() {
            return Err(EngineError::Options("an engine needs at least one layer set".into()));
        }
        let (mut sets, mut lanes) = (Vec::new(), Vec::new());
        let kernels = device.as_ref().map(Device::load);
        #[cfg(unix)]
        if device.is_some() {
            let found = eplb_cuda::nvtx::find();
            tracing::debug!(found, "NVTX");
        }
        let plans = Plans {
            rank,
            config: &config,
            transport: world.transport(),
            hook: hook.as_ref(),
            device: device.as_ref().zip(kernels.as_ref()),
        };
        for (at, draft) in drafts.into_iter().enumerate() {
            let (set, lane) = draft.build(SetId(at), &plans)?;
            sets.push(set);
            lanes.push(lane);
        }
        if let Some(path) = &config.load_window {
            load_window(path, &sets[0])?;
        }
        let shared = Arc::new(Shared::new(config, deadlines, (rank, world_size), sets, lanes));
        let World::Group { store, transport, .. } = world else {
            return Ok(Engine { shared, thread: Mutex::new(None) });
        };
        if world_size == 1 {
            return Ok(Engine { shared, thread: Mutex::new(None) });
        }
        let mut session = join(&shared, store)?;
        agree(&shared, &mut session, &*transport, source.as_deref(), true)?;
        let lead = Lead::new(&shared.sets, &shared.config, session.members().len());
        let mut progress = Progress::new(shared.clone(), transport, source, session, lead);
        progress.open()?;
        let refused =
            |error: std::io::Error| EngineError::RankLost { rank, detail: format!("no thread: {error}") };
        let thread = std::thread::Builder::new()
            .name(format!("eplb-progress-{}", rank.0))
            .spawn(move || progress.live())
            .map_err(refused)?;
        Ok(Engine { shared, thread: Mutex::new(Some(thread)) })
    }
}
