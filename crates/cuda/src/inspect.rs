//! Filling device memory with the pattern, and checking it against it, from the host.

use std::sync::Arc;

use cudarc::driver::sys;
use eplb_comm::conformance::RankMemory;
use eplb_comm::kernels::{ChecksumPart, tensor_sum};
use eplb_comm::{CommError, Memory, Place, pattern};
use eplb_core::{ExpertId, LayerId, SlotId};

use crate::call::check;
use crate::copy::Rows;
use crate::error::CudaError;
use crate::kernels::{DeviceList, Kernels};
use crate::memory::DeviceMemory;
use crate::pool::{DeviceBlock, PinnedBlock};
use crate::stream::CudaStream;

/// Bytes that go between host and device at a time.
const PIECE_BYTES: usize = 4 << 20;

/// Reads and writes a rank's places from the host, over a stream and a pinned block of its own. Waits for its copies:
/// for start-up, checks and tests.
#[derive(Debug)]
pub struct Inspector {
    memory: Arc<DeviceMemory>,
    stream: Arc<CudaStream>,
    pinned: PinnedBlock,
    sums: Option<Sums>,
}

/// What computes checksums on the device.
#[derive(Debug)]
struct Sums {
    kernels: Arc<Kernels>,
    /// The list of a launch: a part for each tensor of a layer.
    list: DeviceBlock,
    sum: DeviceBlock,
}

impl Inspector {
    /// Access to a rank's memory.
    ///
    /// # Errors
    /// No stream or no pinned memory.
    pub fn new(memory: Arc<DeviceMemory>) -> Result<Self, CudaError> {
        let stream = CudaStream::new(memory.context(), 0)?;
        let pinned = PinnedBlock::new(memory.context(), PIECE_BYTES)?;
        Ok(Self { memory, stream, pinned, sums: None })
    }

    /// Compares checksums from now on, too: the kernel's of what a slot holds with its twin's of what the slot should hold.
    ///
    /// # Errors
    /// There is no device memory.
    pub fn with_checksums(mut self, kernels: Arc<Kernels>) -> Result<Self, CudaError> {
        let layout = self.memory.layout();
        let tensors =
            (0..layout.layers()).map(|layer| layout.layer(LayerId::at(layer)).tensors().len()).max();
        let list = DeviceBlock::new(self.memory.context(), tensors.unwrap_or(0) * ChecksumPart::BYTES)?;
        let sum = DeviceBlock::new(self.memory.context(), size_of::<u64>())?;
        self.sums = Some(Sums { kernels, list, sum });
        Ok(self)
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Number of bytes of a slot that are not those of the expert, over all tensors; where checksums are compared, one at least if those
    /// differ.
    ///
    /// # Errors
    /// There is no such slot, or a copy failed.
    pub fn count_wrong(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<u64, CommError> {
        let place = Place::slot(layer, slot);
        let mut wrong = 0;
        for tensor in 0..self.memory.layout().layer(layer).tensors().len() {
            self.pieces(place, tensor, |at, bytes| {
                wrong += pattern::count_wrong(layer, expert, tensor, at, bytes);
            })?;
        }
        let rank = self.memory.rank();
        let found = self.checksum(layer, place).map_err(|error| error.at(rank))?;
        if found.is_some_and(|found| found != self.expected_checksum(layer, expert)) {
            wrong = wrong.max(1);
        }
        Ok(wrong)
    }

    /// The checksum of a place as the kernel computes it; `None` if checksums are not compared.
    fn checksum(&mut self, layer: LayerId, place: Place) -> Result<Option<u64>, CudaError> {
        let Some(Sums { kernels, list, sum }) = &self.sums else { return Ok(None) };
        let (kernels, (entries, sum)) = (kernels.clone(), (list.base(), sum.base()));
        let mut parts = Vec::new();
        for (number, tensor) in (0..self.memory.layout().layer(layer).tensors().len()).zip(0..) {
            let Rows { base, rows, row_bytes, pitch } = self.memory.rows(place, number)?;
            let [rows, row_bytes, pitch] = [rows, row_bytes, pitch].map(|n| n as u64);
            parts.push(ChecksumPart { base, rows, row_bytes, pitch, first_unit: 0, tensor, sum: 0 });
        }
        let units = ChecksumPart::number_units(&mut parts);
        let bytes: Vec<u8> = parts.iter().flat_map(ChecksumPart::to_bytes).collect();
        self.pinned.as_mut_slice()[..bytes.len()].copy_from_slice(&bytes);
        self.upload(entries, bytes.len())?;
        self.pinned.as_mut_slice()[..size_of::<u64>()].fill(0);
        self.upload(sum, size_of::<u64>())?;
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        // SAFETY: list and sum live in `self`, the parts in its memory; `download` waits for the launch. Who calls sees to it that nobody
        // writes the slot meanwhile, as for every look at it.
        unsafe { kernels.checksum(&self.stream, DeviceList { entries, count, units }, sum)? };
        self.download(sum, size_of::<u64>())?;
        Ok(self.pinned.as_slice().first_chunk().copied().map(u64::from_le_bytes))
    }

    /// What the checksum of an expert must be, from the pattern alone.
    fn expected_checksum(&self, layer: LayerId, expert: ExpertId) -> u64 {
        let tensors = self.memory.layout().layer(layer).tensors().iter().enumerate();
        tensors.zip(0..).fold(0, |sum: u64, ((tensor, shape), number)| {
            let mut bytes = vec![0; shape.rows * shape.row_bytes];
            pattern::fill(layer, expert, tensor, 0, &mut bytes);
            sum.wrapping_add(tensor_sum(number, [&bytes[..]]))
        })
    }

    /// Calls `visit` with every piece of a tensor and its position, rows counted without gaps.
    fn pieces(
        &mut self,
        place: Place,
        tensor: usize,
        mut visit: impl FnMut(usize, &[u8]),
    ) -> Result<(), CommError> {
        let rank = self.memory.rank();
        for (at, device, bytes) in cut(self.memory.rows(place, tensor)?) {
            self.download(device, bytes).map_err(|error| error.at(rank))?;
            visit(at, &self.pinned.as_slice()[..bytes]);
        }
        Ok(())
    }

    fn download(&mut self, from: u64, bytes: usize) -> Result<(), CudaError> {
        let _entered = self.stream.context().enter()?;
        let to = self.pinned.base().cast();
        // SAFETY: `cut` keeps inside one live place and the pinned block; `settle` waits before either is used again.
        check("cuMemcpyDtoHAsync", unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, self.stream.raw()) })?;
        self.stream.settle()
    }

    fn upload(&mut self, to: u64, bytes: usize) -> Result<(), CudaError> {
        let _entered = self.stream.context().enter()?;
        let from = self.pinned.base().cast();
        // SAFETY: as in `download`.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, self.stream.raw()) })?;
        self.stream.settle()
    }
}

/// Runs of bytes that make up rows: position without gaps, device address, bytes.
fn cut(rows: Rows) -> impl Iterator<Item = (usize, u64, usize)> {
    let (count, bytes, pitch) = match rows.is_gapless() {
        true => (1, rows.bytes(), 0),
        false => (rows.rows, rows.row_bytes, rows.pitch),
    };
    (0..count).flat_map(move |row| {
        (0..bytes).step_by(PIECE_BYTES).map(move |at| {
            (row * bytes + at, rows.base + (row * pitch + at) as u64, PIECE_BYTES.min(bytes - at))
        })
    })
}

impl RankMemory for Inspector {
    fn fill(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<(), CommError> {
        let rank = self.memory.rank();
        self.memory.extent().locate(self.memory.layout(), Place::slot(layer, slot))?;
        for tensor in 0..self.memory.layout().layer(layer).tensors().len() {
            for (at, device, bytes) in cut(self.memory.rows(Place::slot(layer, slot), tensor)?) {
                pattern::fill(layer, expert, tensor, at, &mut self.pinned.as_mut_slice()[..bytes]);
                self.upload(device, bytes).map_err(|error| error.at(rank))?;
            }
        }
        Ok(())
    }

    fn read(&mut self, place: Place) -> Result<Vec<Vec<u8>>, CommError> {
        let (Place::Slot { layer, .. } | Place::Staging { layer, .. }) = place;
        self.memory.extent().locate(self.memory.layout(), place)?;
        let mut tensors = Vec::new();
        for tensor in 0..self.memory.layout().layer(layer).tensors().len() {
            let mut all = Vec::new();
            self.pieces(place, tensor, |_, bytes| all.extend_from_slice(bytes))?;
            tensors.push(all);
        }
        Ok(tensors)
    }
}
