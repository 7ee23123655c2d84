//! A rank that computes on a CUDA device, on two streams, as a server with two batches under way does.
//!
//! Each pass reads the maps from the device on both streams and compares them with the host's. Letters are served by a kernel from the bytes of
//! slots. Then every slot that the maps of the pass name is read once more, by work that is left to itself: its results are looked at a
//! pass later, so that passes are still under way on the device when the engine commits.

mod audit;
pub(crate) mod derived;
mod kernel;
mod tally;

use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::conformance::RankMemory;
use eplb_comm::{Fence, Memory};
use eplb_core::{ExpertId, LayerId, RankId, SlotId};
use eplb_cuda::module::Kernel;
use eplb_cuda::{Context, CudaStream, DeviceBlock, DeviceMemory, Events, Inspector, PinnedBlock};
use eplb_engine::engine::{DeviceMapsView, Engine, Maps, SetId};
use ndarray::Array2;

use audit::Audit;
use derived::Derived;
use kernel::{bytes, module, number, write};
use tally::Tallied;

use super::mail::Letter;
use super::model::TOP_K;
use super::rank::{Chosen, Failure, Hands, Seen, Server};

/// Longest wait for the device.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most letters that a rank is sent in a layer; more are served in turns.
const LETTERS: usize = 4096;
/// Most tokens of a rank in a pass.
const MOST_TOKENS: usize = 1024;
/// Streams of passes.
const STREAMS: usize = 2;

/// A rank's streams, kernel and buffers.
#[derive(Debug)]
pub(crate) struct Card {
    rank: RankId,
    /// Local slots of this rank, numbered over all ranks.
    own: std::ops::Range<usize>,
    lanes: Vec<Lane>,
    kernel: Kernel,
    events: Arc<Events>,
    /// Of each layer: where the tensors of slots lie, and how many there are.
    tensors: Vec<(DeviceBlock, u32)>,
    /// The numbers of all local slots.
    all: DeviceBlock,
    audits: [Audit; 2],
    passes: usize,
    /// What tokens chose, `[L, E]`.
    counted: Array2<u64>,
    tallies: [Tallied; 2],
    /// Whether kernels count what tokens chose, in half of the passes.
    pub(crate) launches: bool,
    /// Longest wait for counts at the end.
    pub(crate) patience: Duration,
    /// Begins (true) and ends the capture of a stream, in tests that try passes under capture between those that run.
    pub(crate) capture: Option<fn(u64, bool)>,
    /// Told before and after each call of the engine for a step, in tests that look at what it does.
    pub(crate) mark: Option<fn(&str)>,
    /// Planted by tests: the step whose maps counts of slots are folded with.
    pub(crate) folded_as: Option<u64>,
    /// What is derived from weights, and where it is looked at.
    derived: Option<(Derived, PinnedBlock)>,
    maps: DeviceMapsView,
    _uploads: Vec<PinnedBlock>,
}

/// One stream, with what goes to and from the device on it.
#[derive(Debug)]
struct Lane {
    stream: Arc<CudaStream>,
    slots_host: PinnedBlock,
    slots: DeviceBlock,
    sums: DeviceBlock,
    sums_host: PinnedBlock,
    maps_host: PinnedBlock,
}

impl Card {
    /// Takes what passes need, and writes the experts that the maps name into the slots.
    pub(crate) fn new(engine: &Engine, set: SetId) -> Result<Self, Failure> {
        let memory = engine.device_memory(set).ok_or("the slots lie on no device")?;
        let maps = engine.device_maps(set).ok_or("there are no maps on a device")?;
        let (context, own) = (memory.context(), memory.slots());
        let fill = CudaStream::new(context, 0)?;
        let events = Events::new(context, 16)?;
        let kernel = module(context)?.kernel("serve_sums")?;
        let mut uploads = Vec::new();
        let mut upload = |words: Vec<u8>| -> Result<DeviceBlock, Failure> {
            let device = DeviceBlock::new(context, words.len().max(1))?;
            let mut host = PinnedBlock::new(context, words.len())?;
            write(&mut host, words.iter().copied());
            // SAFETY: both live until the wait below.
            unsafe { fill.to_device(host.base(), device.base(), words.len()) }?;
            uploads.push(host);
            Ok(device)
        };
        let mut tensors = Vec::new();
        for layer in 0..maps.shape.layers {
            let layout = memory.layout().layer(LayerId::at(layer)).tensors();
            let mut words = Vec::new();
            for (at, tensor) in layout.iter().enumerate() {
                let base = memory.address(LayerId::at(layer), at).ok_or("a tensor is nowhere")?;
                let sizes =
                    [tensor.rows, tensor.row_bytes, tensor.pitch, tensor.slot_stride].map(|n| n as u64);
                words.extend(base.to_ne_bytes());
                words.extend(sizes.into_iter().flat_map(u64::to_ne_bytes));
            }
            tensors.push((upload(words)?, layout.len() as u32));
        }
        let all = upload((0..own.len() as u32).flat_map(u32::to_ne_bytes).collect())?;
        fill_slots(memory, &engine.maps(set))?;
        let count = own.len() * maps.shape.layers;
        let audits = [Audit::new(context, count)?, Audit::new(context, count)?];
        let shape = maps.shape;
        let bytes = (8 * shape.layers * shape.slots).max(4 * shape.layers * TOP_K * MOST_TOKENS);
        let tallies = [Tallied::new(context, bytes)?, Tallied::new(context, bytes)?];
        let counted = Array2::zeros((shape.layers, shape.experts));
        let lanes = (0..STREAMS).map(|_| Lane::new(context, &maps)).collect::<Result<Vec<_>, _>>()?;
        let rank = engine.rank();
        events.record(&fill, rank)?.fence().wait(rank, "uploads", Instant::now() + PATIENCE)?;
        Ok(Self {
            rank,
            own,
            lanes,
            kernel,
            events,
            tensors,
            all,
            audits,
            passes: 0,
            counted,
            tallies,
            launches: true,
            patience: PATIENCE,
            capture: None,
            mark: None,
            folded_as: None,
            derived: None,
            maps,
            _uploads: uploads,
        })
    }

    /// The streams of passes.
    pub(crate) fn handles(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.stream.as_raw() as u64).collect()
    }

    /// The id under which the engine knows a step.
    fn id_of(&self, step: u64) -> u64 {
        if self.capture.is_some() { 2 * step + 1 } else { step }
    }

    fn fence(&self, lane: usize) -> Result<Fence, Failure> {
        Ok(self.events.record(&self.lanes[lane].stream, self.rank)?.fence())
    }

    fn wait(&self, fence: &Fence) -> Result<(), Failure> {
        Ok(fence.wait(self.rank, "the device of the example", Instant::now() + PATIENCE)?)
    }

    /// Enqueues sums over `count` slots of a layer, whose local numbers lie at `slots`, to `sums`.
    fn launch(
        &self,
        lane: usize,
        layer: usize,
        (slots, count): (u64, u32),
        sums: u64,
    ) -> Result<(), Failure> {
        let (tensors, tensor_count) = &self.tensors[layer];
        let tensors = tensors.base();
        let arg = |value: *const c_void| value.cast_mut();
        let mut arguments = [
            arg((&raw const slots).cast()),
            arg((&raw const count).cast()),
            arg((&raw const tensors).cast()),
            arg(std::ptr::from_ref(tensor_count).cast()),
            arg((&raw const sums).cast()),
        ];
        // SAFETY: the arguments are those that the source declares; all blocks live as long as this card, which waits for its work.
        unsafe { self.kernel.launch(&self.lanes[lane].stream, (count, 256), &mut arguments) }?;
        Ok(())
    }
}

impl Lane {
    fn new(context: &Arc<Context>, maps: &DeviceMapsView) -> Result<Self, Failure> {
        Ok(Self {
            stream: CudaStream::new(context, 0)?,
            slots_host: PinnedBlock::new(context, 4 * LETTERS)?,
            slots: DeviceBlock::new(context, 4 * LETTERS)?,
            sums: DeviceBlock::new(context, 8 * LETTERS)?,
            sums_host: PinnedBlock::new(context, 8 * LETTERS)?,
            maps_host: PinnedBlock::new(context, map_bytes(maps))?,
        })
    }
}

/// Bytes from the first map to the end of the last.
fn map_bytes(maps: &DeviceMapsView) -> usize {
    let shape = maps.shape;
    let last = maps.addresses.log2phy - maps.addresses.phy2log;
    last as usize + 4 * shape.layers * shape.experts * shape.columns
}

/// Writes the experts that maps name into the slots of a rank.
fn fill_slots(memory: &Arc<DeviceMemory>, maps: &Maps) -> Result<(), Failure> {
    let mut inspector = Inspector::new(memory.clone())?;
    for layer in 0..maps.phy2log.nrows() {
        for slot in memory.slots() {
            if let Ok(expert) = u32::try_from(maps.phy2log[(layer, slot)]) {
                inspector.fill(LayerId::at(layer), SlotId::at(slot), ExpertId(expert))?;
            }
        }
    }
    Ok(())
}

impl Hands for Card {
    fn begin(
        &mut self,
        engine: &Engine,
        set: SetId,
        step: u64,
        seen: &mut Seen,
    ) -> Result<Arc<Maps>, Failure> {
        let streams = self.handles();
        if let Some(capture) = self.capture {
            let before = engine.maps(set).version;
            streams.iter().for_each(|&stream| capture(stream, true));
            // SAFETY: as below.
            let captured = unsafe { engine.step_on(2 * step, &streams) };
            streams.iter().for_each(|&stream| capture(stream, false));
            captured?;
            if engine.maps(set).version != before {
                seen.note_wrong(|| format!("the maps changed under the capture before step {step}"));
            }
        }
        self.mark.inspect(|mark| mark("step"));
        let start = Instant::now();
        // SAFETY: the streams live as long as this card, which outlives the engine.
        let stepped = unsafe { engine.step_on(self.id_of(step), &streams) };
        seen.calls.push((start.elapsed(), false));
        self.mark.inspect(|mark| mark("stepped"));
        stepped?;
        let maps = engine.maps(set);
        let mut fences = Vec::new();
        for at in 0..self.lanes.len() {
            let lane = &self.lanes[at];
            let (from, host) = (self.maps.addresses.phy2log, &lane.maps_host);
            // SAFETY: the maps live as long as the engine, the block as long as this card; it is read behind the fence alone.
            unsafe { lane.stream.to_host(from, host.base(), map_bytes(&self.maps)) }?;
            fences.push(self.fence(at)?);
        }
        for (at, fence) in fences.iter().enumerate() {
            self.wait(fence)?;
            self.compare(at, &maps, seen);
        }
        Ok(maps)
    }

    fn sums(
        &mut self,
        _: &Engine,
        _: SetId,
        layer: usize,
        letters: &[Letter],
        _: &mut Seen,
    ) -> Result<Vec<u64>, Failure> {
        let mut sums = Vec::with_capacity(letters.len());
        for turn in letters.chunks(STREAMS * LETTERS) {
            let halves: Vec<&[Letter]> = turn.chunks(turn.len().div_ceil(STREAMS).max(1)).collect();
            let mut fences = Vec::new();
            for (at, half) in halves.iter().enumerate() {
                let first = self.own.start;
                let locals = half.iter().flat_map(|letter| ((letter.slot - first) as u32).to_ne_bytes());
                write(&mut self.lanes[at].slots_host, locals);
                let lane = &self.lanes[at];
                // SAFETY: these blocks live as long as this card, and are used again only behind the fence.
                unsafe { lane.stream.to_device(lane.slots_host.base(), lane.slots.base(), 4 * half.len()) }?;
                self.launch(at, layer, (lane.slots.base(), half.len() as u32), lane.sums.base())?;
                // SAFETY: as above.
                unsafe { lane.stream.to_host(lane.sums.base(), lane.sums_host.base(), 8 * half.len()) }?;
                fences.push(self.fence(at)?);
            }
            for (at, half) in halves.iter().enumerate() {
                self.wait(&fences[at])?;
                // SAFETY: the copy to it was just waited for.
                let found = unsafe { bytes(&self.lanes[at].sums_host) };
                sums.extend(found.chunks_exact(8).take(half.len()).map(number));
            }
        }
        Ok(sums)
    }

    fn count(
        &mut self,
        engine: &Engine,
        set: SetId,
        chosen: &Chosen<'_>,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        self.tally(engine, set, chosen, seen)
    }

    fn end(&mut self, server: &Server, maps: &Arc<Maps>, seen: &mut Seen) -> Result<(), Failure> {
        self.compare_derived(server, maps, seen)?;
        self.read_all(server, maps, seen)
    }

    fn finish(
        &mut self,
        server: &Server,
        engine: &Engine,
        set: SetId,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        self.look(0, server, seen)?;
        self.look(1, server, seen)?;
        self.compare_counts(engine, set, seen)
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // The blocks go with this: what is enqueued must have run.
        for lane in 0..self.lanes.len() {
            if let Ok(fence) = self.fence(lane) {
                let _ = self.wait(&fence);
            }
        }
    }
}
