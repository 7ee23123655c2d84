//! A layer set that is being put together, and what becomes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eplb_comm::Stream;
use eplb_comm::host::HostMemory;
use eplb_core::{LayerId, ModelLayout, Placement, RankId, TensorLayout, Topology};
use eplb_cuda::kernels::Kernels;
use eplb_cuda::{DeviceMemory, TallyShape};
use eplb_exchange::Limits;
use eplb_exchange::plan::SERVING_WAVE_COST;

use super::SetId;
use super::config::EngineConfig;
use super::device::{Device, DeviceSide};
use super::device_counts::DeviceCounts;
use super::maps::{History, make};
use super::record::Counters;
use super::register::RegisterError;
use super::shared::{Lane, Set};
use super::slots::Slots;
use super::stream::{Compute, Hook, Hooked, InlineStream};
use super::window::Window;
use crate::driver::Driver;
use crate::error::EngineError;
use crate::process::Transport;

/// A layer set so far.
pub(super) struct Draft {
    pub(super) name: String,
    pub(super) topology: Topology,
    pub(super) experts: usize,
    pub(super) layers: usize,
    pub(super) tensors: BTreeMap<usize, (Vec<TensorLayout>, Option<Bases>)>,
    pub(super) placement: Option<Placement>,
    pub(super) stream: Option<MakeStream>,
}

/// Makes a stream on the memory of a set.
pub(super) type MakeStream = Box<dyn FnOnce(Arc<HostMemory>) -> Box<dyn Stream> + Send>;

/// Addresses of the tensors of a registered layer; addresses alone, so that a builder may change threads.
pub(super) type Bases = Vec<usize>;

/// What all layer sets of an engine are built with.
#[derive(Debug)]
pub(super) struct Plans<'a> {
    pub(super) rank: RankId,
    pub(super) config: &'a EngineConfig,
    /// What carries experts, if there are other ranks.
    pub(super) transport: Option<&'a dyn Transport>,
    pub(super) hook: Option<&'a Hook>,
    /// The device, and its kernels, or why there are none.
    pub(super) device: Option<(&'a Device, &'a Result<Arc<Kernels>, String>)>,
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
    pub(super) fn check_layer(&self, layer: usize) -> Result<(), RegisterError> {
        if layer >= self.layers {
            return Err(RegisterError::NoSuchLayer { layer, set: self.name.clone(), layers: self.layers });
        }
        if self.tensors.contains_key(&layer) {
            return Err(RegisterError::Twice { layer: LayerId::at(layer), set: self.name.clone() });
        }
        Ok(())
    }

    pub(super) fn check_placement(&self, placement: &Placement) -> Result<(), EngineError> {
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

    /// What the engine works with.
    pub(super) fn build(self, id: SetId, plans: &Plans<'_>) -> Result<(Set, Lane), EngineError> {
        let &Plans { rank, config, transport, hook, device: place } = plans;
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
        limits.overlap = transport.is_none_or(Transport::overlaps);
        // A replica on every rank at most, and never more than the slots that other experts leave.
        let most = topology.ranks().min(topology.slots() - experts + 1);
        let columns = config.max_replicas.unwrap_or(most).max(start.max_replicas());
        limits.max_replicas = Some(columns);
        let device = place.map(|(device, _)| device);
        let memory = memory(rank, &layout, slots, &bases, limits.staging_bytes, (&name, device, transport))?;
        memory.declare(&start)?;
        let expert_bytes = (0..layers).map(|layer| layout.layer(LayerId::at(layer)).expert_bytes() as u64);
        let options = config.options(expert_bytes.collect(), columns);
        let first = make(&start.phy2log().to_owned(), experts, columns, None)?;
        let topology = Arc::new(topology);
        let (inner, ahead) = match (&memory, stream) {
            (Slots::Host(memory), Some(make)) => (Compute::Host(make(memory.clone())), None),
            (Slots::Host(memory), None) => (Compute::Host(Box::new(InlineStream::new(memory.clone()))), None),
            (Slots::Device(memory), _) => {
                let kernels = place.and_then(|(_, kernels)| kernels.as_ref().ok().cloned());
                let (side, ahead) = DeviceSide::new(memory.clone(), kernels, &first)?;
                (Compute::Device(Box::new(side)), Some(ahead))
            }
        };
        let driver = Driver::new(rank, topology.clone(), Hooked::new(inner, rank, id, hook.cloned()), &start);
        let lane = Lane {
            published: driver.phy2log().clone(),
            driver,
            communicator: None,
            bulletin: None,
            launcher: None,
            launch: Duration::ZERO,
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
            device: ahead,
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
    (name, device, transport): (&str, Option<&Device>, Option<&dyn Transport>),
) -> Result<Slots, EngineError> {
    let registered = bases.first().is_some_and(Option::is_some);
    if let Some(layer) = bases.iter().position(|bases| bases.is_some() != registered) {
        return Err(RegisterError::Mixed { layer: LayerId::at(layer), set: name.to_owned() }.into());
    }
    let layout = layout.clone();
    match (registered, device) {
        (false, None) => {
            return Ok(Slots::Host(match transport {
                Some(transport) => transport.memory(rank, layout, slots, staging_bytes)?,
                None => HostMemory::new(rank, layout, slots, staging_bytes)?,
            }));
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
