//! A rank that computes on a CUDA device, on two streams, as a server with two batches under way does.
//!
//! Each pass reads the maps from the device on both streams and compares them with the host's. Letters are served by a kernel from the bytes of
//! slots. Then every slot that the maps of the pass name is read once more, by work that is left to itself: its results are looked at a
//! pass later, so that passes are still under way on the device when the engine commits.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::conformance::RankMemory;
use eplb_comm::{Fence, Memory};
use eplb_core::{ExpertId, LayerId, RankId, SlotId};
use eplb_cuda::module::Kernel;
use eplb_cuda::{Context, CudaStream, DeviceBlock, DeviceMemory, Events, Inspector, Module, PinnedBlock};
use eplb_engine::engine::{DeviceChoices, DeviceMapsView, DeviceTokens, Engine, IdType, Maps, Pass, SetId};
use ndarray::{Array2, Axis};

use super::mail::Letter;
use super::model::TOP_K;
use super::rank::{Failure, Hands, Seen, Server};

/// Longest wait for the device.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most letters that a rank is sent in a layer; more are served in turns.
const LETTERS: usize = 4096;
/// Most tokens of a rank in a pass.
const MOST_TOKENS: usize = 1024;
/// Streams of passes.
const STREAMS: usize = 2;

/// Sums over the bytes of slots: `sum_of` of `model.rs`, a block for each.
const SOURCE: &str = r#"
typedef unsigned long long u64;
struct Tensor { u64 base, rows, row_bytes, pitch, slot_stride; };
__device__ u64 mix(u64 z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
extern "C" __global__ void serve_sums(const unsigned* slots, unsigned count, const Tensor* tensors, unsigned tensor_count, u64* sums) {
  __shared__ u64 total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  u64 sum = 0, before = 0;
  for (unsigned t = 0; t < tensor_count; ++t) {
    const Tensor tensor = tensors[t];
    const unsigned char* slot = (const unsigned char*)(tensor.base + slots[blockIdx.x] * tensor.slot_stride);
    const u64 bytes = tensor.rows * tensor.row_bytes;
    for (u64 at = threadIdx.x; at < bytes; at += blockDim.x) {
      const u64 row = at / tensor.row_bytes;
      // Past the caches of this multiprocessor: what is asked about are the bytes in memory.
      sum += mix((before + at) << 8 | __ldcv(slot + row * tensor.pitch + (at - row * tensor.row_bytes)));
    }
    before += bytes;
  }
  atomicAdd(&total, sum);
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}
"#;

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
    /// Planted by tests: the step whose maps counts of slots are folded with.
    pub(crate) folded_as: Option<u64>,
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

/// What a pass counts, on its way to the device.
#[derive(Debug)]
struct Tallied {
    host: PinnedBlock,
    device: DeviceBlock,
}

/// What a pass reads of all slots, behind everything else.
#[derive(Debug)]
struct Audit {
    sums: DeviceBlock,
    sums_host: PinnedBlock,
    /// The maps of the pass, and the fences behind the reads.
    open: Option<(Arc<Maps>, u64, Vec<Fence>)>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// Bytes of a pinned block.
///
/// # Safety
/// No copy to it is under way, and it lives as long as the result is used.
unsafe fn bytes(block: &PinnedBlock) -> &[u8] {
    // SAFETY: initialised when it was taken; the rest is the caller's promise.
    unsafe { std::slice::from_raw_parts(block.base(), block.bytes()) }
}

fn write(block: &mut PinnedBlock, words: impl Iterator<Item = u8>) {
    for (at, byte) in words.enumerate().take(block.bytes()) {
        // SAFETY: inside the block, which nobody else uses: copies from it were waited for.
        unsafe { block.base().add(at).write(byte) };
    }
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
        let audit = || -> Result<Audit, Failure> {
            let (sums, sums_host) =
                (DeviceBlock::new(context, 8 * count)?, PinnedBlock::new(context, 8 * count)?);
            Ok(Audit { sums, sums_host, open: None })
        };
        let audits = [audit()?, audit()?];
        let shape = maps.shape;
        let bytes = (8 * shape.layers * shape.slots).max(4 * shape.layers * TOP_K * MOST_TOKENS);
        let tallied = || -> Result<Tallied, Failure> {
            Ok(Tallied { host: PinnedBlock::new(context, bytes)?, device: DeviceBlock::new(context, bytes)? })
        };
        let tallies = [tallied()?, tallied()?];
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
            folded_as: None,
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

    /// Looks at what an earlier pass read of all slots.
    fn look(&mut self, at: usize, server: &Server, seen: &mut Seen) -> Result<(), Failure> {
        let Some((maps, pass, fences)) = self.audits[at].open.take() else { return Ok(()) };
        for fence in &fences {
            self.wait(fence)?;
        }
        // SAFETY: the copies to it were just waited for.
        let sums = unsafe { bytes(&self.audits[at].sums_host) };
        for layer in 0..self.maps.shape.layers {
            for (local, slot) in self.own.clone().enumerate() {
                let Ok(expert) = usize::try_from(maps.phy2log[(layer, slot)]) else { continue };
                let place = 8 * (layer * self.own.len() + local);
                let found = number(&sums[place..place + 8]);
                if found != server.model.sum_of_expert(layer, expert) {
                    seen.note_wrong(|| {
                        format!("pass {pass} read other bytes in layer {layer} slot {slot} than those of expert {expert}")
                    });
                }
            }
        }
        Ok(())
    }

    /// Compares the maps on the device, as a stream of the pass finds them, with those of the host.
    fn compare(&self, lane: usize, maps: &Maps, seen: &mut Seen) {
        // SAFETY: the copy to it was waited for.
        let found = unsafe { bytes(&self.lanes[lane].maps_host) };
        let at = |address: u64| (address - self.maps.addresses.phy2log) as usize;
        let ints = |array: Option<&[i32]>| -> Vec<u8> {
            array.unwrap_or_default().iter().flat_map(|entry| entry.to_ne_bytes()).collect()
        };
        let shares = maps.share.as_slice().unwrap_or_default();
        let addresses = self.maps.addresses;
        let all = [
            ("phy2log", addresses.phy2log, ints(maps.phy2log.as_slice())),
            ("share", addresses.share, shares.iter().flat_map(|part| part.to_ne_bytes()).collect()),
            ("logcnt", addresses.logcnt, ints(maps.logcnt.as_slice())),
            ("log2phy", addresses.log2phy, ints(maps.log2phy.as_slice())),
        ];
        for (name, address, entries) in all {
            if entries.is_empty() || found[at(address)..at(address) + entries.len()] != entries[..] {
                let version = maps.version;
                seen.note_wrong(|| {
                    format!("{name} on the device, on stream {lane}, is not that of version {version}")
                });
            }
        }
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
        let start = Instant::now();
        // SAFETY: the streams live as long as this card, which outlives the engine.
        unsafe { engine.step_on(self.id_of(step), &streams) }?;
        seen.calls.push((start.elapsed(), false));
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

    /// In turn: the experts that tokens chose, layer by layer, and the slots that a pass chose, at once.
    fn count(
        &mut self,
        engine: &Engine,
        set: SetId,
        pass: &Pass,
        routed: &Array2<u64>,
        chosen: &[Vec<i32>],
    ) -> Result<(), Failure> {
        let pass = &Pass { step: self.id_of(pass.step), ..*pass };
        let at = self.passes % 2;
        let stream = self.lanes[at].stream.clone();
        let handle = stream.as_raw() as u64;
        let tally = &mut self.tallies[at];
        if self.passes % 4 < 2 && self.launches {
            write(&mut tally.host, chosen.iter().flatten().flat_map(|expert| expert.to_ne_bytes()));
            let words = 4 * chosen[0].len();
            // SAFETY: these blocks live as long as this card, and are used again two passes later, behind a wait for the stream.
            unsafe { stream.to_device(tally.host.base(), tally.device.base(), words * chosen.len()) }?;
            for (layer, chosen) in chosen.iter().enumerate() {
                let ids = tally.device.base() + (layer * words) as u64;
                let tokens = (chosen.len() / TOP_K) as u32;
                let choices = DeviceChoices {
                    ids,
                    row_stride: TOP_K as u64,
                    valid: 0,
                    mask: 0,
                    tokens,
                    k: TOP_K as u32,
                };
                // SAFETY: as above; the ids are as many as said.
                unsafe { engine.record_topk(set, pass, layer, (IdType::I32, &choices), false, handle) }?;
            }
        } else {
            write(&mut tally.host, routed.iter().flat_map(|count| count.to_ne_bytes()));
            let tokens = DeviceTokens { data: tally.device.base(), kind: IdType::I64, slots: true };
            // The maps that the counts are folded with: those of the pass, unless a test wants others.
            let pass = Pass { step: self.folded_as.unwrap_or(pass.step), ..*pass };
            // SAFETY: as above; the counts are in the shape of the maps.
            let taken = unsafe {
                stream.to_device(tally.host.base(), tally.device.base(), 8 * routed.len())?;
                engine.record_counts(set, &pass, tokens, handle)
            }?;
            if !taken {
                return Ok(());
            }
        }
        for (layer, chosen) in chosen.iter().enumerate() {
            for &expert in chosen {
                self.counted[(layer, expert as usize)] += 1;
            }
        }
        Ok(())
    }

    fn end(&mut self, server: &Server, maps: &Arc<Maps>, seen: &mut Seen) -> Result<(), Failure> {
        let at = self.passes % 2;
        self.look(at, server, seen)?;
        let count = self.own.len();
        for layer in 0..self.maps.shape.layers {
            let place = (8 * layer * count) as u64;
            let sums = self.audits[at].sums.base() + place;
            let lane = layer % STREAMS;
            self.launch(lane, layer, (self.all.base(), count as u32), sums)?;
            let to = self.audits[at].sums_host.base().wrapping_add(place as usize);
            // SAFETY: both lie in blocks of this card, which waits before it uses them again.
            unsafe { self.lanes[lane].stream.to_host(sums, to, 8 * count) }?;
        }
        let fences = (0..STREAMS).map(|lane| self.fence(lane)).collect::<Result<_, _>>()?;
        self.audits[at].open = Some((maps.clone(), self.passes as u64, fences));
        self.passes += 1;
        Ok(())
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
        // What was counted on the device reaches the host a little later.
        let start = Instant::now();
        loop {
            let counted = engine.counted(set)?.sum_axis(Axis(0));
            if counted == self.counted {
                return Ok(());
            }
            if counted.sum() == self.counted.sum() || start.elapsed() > self.patience {
                let (found, expected) = (counted.sum(), self.counted.sum());
                seen.note_wrong(|| {
                    format!(
                        "other experts were counted than chosen: {found} choices counted, {expected} made"
                    )
                });
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
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

/// The kernel: the image that `EPLB_SERVE_IMAGE` names, or what NVRTC makes of the source.
fn module(context: &Arc<Context>) -> Result<Arc<Module>, Failure> {
    match std::env::var_os("EPLB_SERVE_IMAGE") {
        Some(path) => Ok(Module::load(context, &std::fs::read(path)?)?),
        None => Ok(Module::compile(context, SOURCE)?),
    }
}
