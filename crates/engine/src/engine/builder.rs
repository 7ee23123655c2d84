//! Putting an engine together: layer sets, their tensors, and the other ranks.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use eplb_comm::Stream;
use eplb_comm::host::HostMemory;
use eplb_comm::store::Store;
use eplb_core::{LayerId, ModelLayout, Placement, RankId, TensorLayout, Topology};
use eplb_cuda::kernels::Kernels;
use eplb_cuda::{DeviceMemory, TallyShape};
use eplb_exchange::Limits;
use eplb_exchange::plan::SERVING_WAVE_COST;
use eplb_trace::Trace;

use super::config::EngineConfig;
use super::device::{Device, DeviceSide};
use super::device_counts::DeviceCounts;
use super::lead::Lead;
use super::maps::{History, make};
use super::progress::Progress;
use super::record::Counters;
use super::reform::agree;
use super::register::{Claims, RegisterError, TensorView};
use super::shared::{Lane, Set, Shared, lock};
use super::slots::Slots;
use super::stream::{AfterCommit, Compute, Hook, Hooked, InlineStream};
use super::window::Window;
use super::{Engine, SetId};
use crate::driver::Driver;
use crate::error::EngineError;
use crate::process::session::Fact;
use crate::process::{Session, Source, Transport};

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

/// A layer set so far.
struct Draft {
    name: String,
    topology: Topology,
    experts: usize,
    layers: usize,
    tensors: BTreeMap<usize, (Vec<TensorLayout>, Option<Bases>)>,
    placement: Option<Placement>,
    stream: Option<MakeStream>,
}

/// Makes a stream on the memory of a set.
type MakeStream = Box<dyn FnOnce(Arc<HostMemory>) -> Box<dyn Stream> + Send>;

/// Addresses of the tensors of a registered layer; addresses alone, so that a builder may change threads.
type Bases = Vec<usize>;

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

    /// The compute stream of a set, or several joined ([`JoinedStreams`](super::JoinedStreams)). Default: [`InlineStream`].
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
    /// inside [`Engine::step`] or [`Engine::tick`], behind the copies on the compute stream, and must not call the engine.
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
        let place = device.as_ref().zip(kernels.as_ref());
        for (at, draft) in drafts.into_iter().enumerate() {
            let (set, lane) = draft.build(SetId(at), rank, &config, hook.clone(), place)?;
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
        let mut session = Session::join(store, rank, world_size, &deadlines)?;
        agree(&shared, &mut session, transport.name(), source.as_deref(), true)?;
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

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, layers, experts, .. } = self;
        f.debug_struct("Draft")
            .field("name", name)
            .field("layers", layers)
            .field("experts", experts)
            .finish_non_exhaustive()
    }
}

impl Draft {
    fn check_layer(&self, layer: usize) -> Result<(), RegisterError> {
        if layer >= self.layers {
            return Err(RegisterError::NoSuchLayer { layer, set: self.name.clone(), layers: self.layers });
        }
        if self.tensors.contains_key(&layer) {
            return Err(RegisterError::Twice { layer: LayerId::at(layer), set: self.name.clone() });
        }
        Ok(())
    }

    fn check_placement(&self, placement: &Placement) -> Result<(), EngineError> {
        let expected = (self.layers, self.experts, self.topology.slots());
        let found = (placement.layers(), placement.experts(), placement.slots());
        if found == expected {
            return Ok(());
        }
        let text = format!(
            "layer set {:?}: a placement of (layers, experts, slots) {found:?}, expected {expected:?}",
            self.name
        );
        Err(EngineError::Options(text))
    }

    fn build(
        self,
        id: SetId,
        rank: RankId,
        config: &EngineConfig,
        hook: Option<Hook>,
        place: Option<(&Device, &Result<Arc<Kernels>, String>)>,
    ) -> Result<(Set, Lane), EngineError> {
        let missing = (0..self.layers).find(|layer| !self.tensors.contains_key(layer));
        if let Some(layer) = missing {
            return Err(RegisterError::Missing { layer: LayerId::at(layer), set: self.name }.into());
        }
        let start = match (&self.placement, &config.start_plan) {
            (Some(placement), _) => placement.clone(),
            (None, Some(path)) if id.0 == 0 => {
                let placement = crate::plan_file::read(path, self.experts)?;
                self.check_placement(&placement)?;
                placement
            }
            _ => Placement::round_robin(self.layers, self.experts, self.topology.slots())?,
        };
        let Self { name, topology, experts, layers, tensors, stream, .. } = self;
        let (layouts, bases): (Vec<_>, Vec<_>) = tensors.into_values().unzip();
        let layout = Arc::new(ModelLayout::new(layouts)?);
        let slots = topology.slots_of(rank);
        let mut limits = Limits::new(&layout, &topology);
        limits.staging_bytes =
            config.staging_bytes.unwrap_or(limits.staging_bytes).max(layout.largest_staged());
        limits.drain_floor = config.drain_floor;
        limits.wave_cost = SERVING_WAVE_COST;
        // A replica on every rank at most, and never more than the slots that other experts leave.
        let most = topology.ranks().min(topology.slots() - experts + 1);
        let columns = config.max_replicas.unwrap_or(most).max(start.max_replicas());
        limits.max_replicas = Some(columns);
        let device = place.map(|(device, _)| device);
        let memory = memory(rank, &layout, slots, &bases, limits.staging_bytes, (&name, device))?;
        memory.declare(&start)?;
        let expert_bytes = (0..layers).map(|layer| layout.layer(LayerId::at(layer)).expert_bytes() as u64);
        let options = config.options(expert_bytes.collect(), columns);
        let first = make(&start.phy2log().to_owned(), experts, columns, None)?;
        let topology = Arc::new(topology);
        let (inner, device_maps) = match (&memory, stream) {
            (Slots::Host(memory), Some(make)) => (Compute::Host(make(memory.clone())), None),
            (Slots::Host(memory), None) => (Compute::Host(Box::new(InlineStream::new(memory.clone()))), None),
            (Slots::Device(memory), _) => {
                let kernels = place.and_then(|(_, kernels)| kernels.as_ref().ok().cloned());
                let (side, block) = DeviceSide::new(memory.clone(), kernels, &first)?;
                (Compute::Device(Box::new(side)), Some(block))
            }
        };
        let driver = Driver::new(rank, topology.clone(), Hooked::new(inner, rank, id, hook), &start);
        let lane = Lane {
            published: driver.phy2log().clone(),
            driver,
            communicator: None,
            wanted: None,
            ready: Vec::new(),
            reshared: false,
            version: 0,
        };
        let device_counts = match (&memory, place) {
            (Slots::Device(memory), Some((_, kernels))) => {
                let shape = TallyShape { tags: config.tags.len(), layers, experts };
                let slots = topology.slots();
                Some(DeviceCounts::new(memory.context(), rank, kernels.clone(), shape, slots)?)
            }
            _ => None,
        };
        let set = Set {
            counters: Counters::new(config.tags.len(), layers, experts),
            history: History::new(first, config.remembered_maps),
            window: Mutex::new(Window::new(config.window)),
            report: Mutex::new(None),
            name,
            topology,
            experts,
            columns,
            layout,
            memory,
            device_maps,
            device_counts,
            limits,
            options,
            start,
        };
        Ok((set, lane))
    }
}

/// The memory of a rank: the server's, or the engine's.
#[allow(unsafe_code)]
fn memory(
    rank: RankId,
    layout: &Arc<ModelLayout>,
    slots: std::ops::Range<usize>,
    bases: &[Option<Bases>],
    staging_bytes: usize,
    (name, device): (&str, Option<&Device>),
) -> Result<Slots, EngineError> {
    let registered = bases.first().is_some_and(Option::is_some);
    if let Some(layer) = bases.iter().position(|bases| bases.is_some() != registered) {
        return Err(RegisterError::Mixed { layer: LayerId::at(layer), set: name.to_owned() }.into());
    }
    let layout = layout.clone();
    match (registered, device) {
        (false, None) => {
            return Ok(Slots::Host(HostMemory::new(rank, layout, slots, staging_bytes)?));
        }
        (false, Some(device)) => {
            return Ok(Slots::Device(DeviceMemory::new(
                &device.context,
                rank,
                layout,
                slots,
                staging_bytes,
            )?));
        }
        (true, Some(device)) => {
            let bases = bases.iter().flatten().map(|bases| bases.iter().map(|&base| base as u64).collect());
            // SAFETY: as below, for memory of the device, which `register_layer` has checked that it is.
            let memory = unsafe {
                DeviceMemory::from_raw(&device.context, rank, layout, slots, bases.collect(), staging_bytes)
            }?;
            return Ok(Slots::Device(memory));
        }
        (true, None) => {}
    }
    let pointer = |&base: &usize| NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(base));
    // Claims refused null addresses.
    let bases: Vec<Vec<NonNull<u8>>> =
        bases.iter().flatten().map(|bases| bases.iter().filter_map(pointer).collect()).collect();
    // SAFETY: `Builder::register_layer` has the caller promise that each address is valid for the bytes of all local slots
    // until the engine, which alone owns this memory, is shut down or dropped, and that others keep the order of the engine;
    // `Claims` has checked that no two tensors share bytes.
    Ok(Slots::Host(unsafe { HostMemory::from_raw(rank, layout, slots, &bases, staging_bytes) }?))
}

/// What must be the same on all ranks.
pub(super) fn facts(shared: &Shared, backend: &str) -> Vec<Fact> {
    let config = &shared.config;
    let mut facts: Vec<Fact> = vec![
        ("version of eplb", env!("CARGO_PKG_VERSION").to_owned()),
        ("version of the host or its model", config.versions.clone()),
        ("backend", backend.to_owned()),
        ("layer sets", format!("{:?}", shared.sets.iter().map(|set| &set.name).collect::<Vec<_>>())),
    ];
    for set in &shared.sets {
        let slots: Vec<usize> = set.topology.all_ranks().map(|rank| set.topology.slot_count(rank)).collect();
        let nodes: Vec<u32> = set.topology.all_ranks().map(|rank| set.topology.node_of(rank).0).collect();
        facts.extend([
            ("slots and nodes of each rank", format!("{slots:?} {nodes:?}")),
            ("memory of slots", if set.device_maps.is_some() { "a device" } else { "the host" }.to_owned()),
            ("layers and experts", format!("{} and {}", set.layers(), set.experts)),
            ("layout of the experts", format!("{:016x}", set.layout.hash64())),
            ("placement to start with", format!("{:016x}", set.start.hash64())),
            ("limits of exchanges", format!("{:?}", set.limits)),
            ("options of plans", format!("{:?}", set.options)),
        ]);
    }
    facts.extend([
        ("tags", format!("{:?} {:?}", config.tags, config.plan_tags)),
        ("dry_run", config.dry_run.to_string()),
        ("triggers", format!("{:?}", config.trigger)),
    ]);
    facts
}

/// Fills the window of a set with loads on disk.
fn load_window(path: &Path, set: &Set) -> Result<(), EngineError> {
    let trace = Trace::open(path)?;
    if (trace.layers(), trace.experts()) != (set.layers(), set.experts) {
        let text = format!(
            "load_window {}: loads of {} layers and {} experts, the layer set {:?} has {} and {}",
            path.display(),
            trace.layers(),
            trace.experts(),
            set.name,
            set.layers(),
            set.experts
        );
        return Err(EngineError::Options(text));
    }
    for step in 0..trace.steps() {
        let loads = trace.step(step)?;
        lock(&set.window).push(loads);
    }
    Ok(())
}
