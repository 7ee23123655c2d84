//! Slots and staging of one rank in device memory.

use std::ops::Range;
use std::sync::Arc;

use eplb_comm::{CommError, Extent, Located, Memory, Place};
use eplb_core::{CoreError, LayerId, ModelLayout, RankId, TensorLayout};

use crate::context::Context;
use crate::copy::Rows;
use crate::error::CudaError;
use crate::pool::DeviceBlock;

/// One rank's slots of every layer and its staging, on one device.
///
/// Only addresses are kept. Who may read or write a slot when is the order of the engine; nothing here checks it, as
/// the host twin does, because the device's accesses cannot be seen.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Arc<Context>,
    layout: Arc<ModelLayout>,
    extent: Extent,
    /// `[layer][tensor]`: address of the first local slot.
    bases: Vec<Vec<u64>>,
    /// Memory behind `bases` where it is our own, or opened here.
    _owned: Owned,
    staging: DeviceBlock,
}

/// What keeps slots where they are.
#[derive(Debug)]
enum Owned {
    /// The server does.
    Nothing,
    Blocks {
        _blocks: Vec<DeviceBlock>,
    },
    #[cfg(unix)]
    Vmm {
        _blocks: Vec<crate::ipc::VmmBlock>,
    },
    #[cfg(unix)]
    Opened {
        _opened: crate::ipc::Opened,
    },
}

/// Bytes that all local slots of a tensor span.
fn block_bytes(layer: usize, tensor: &TensorLayout, slots: usize) -> Result<usize, CommError> {
    let Some(gaps) = slots.checked_sub(1) else { return Ok(0) };
    gaps.checked_mul(tensor.slot_stride)
        .and_then(|n| n.checked_add(tensor.slot_span()))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(|| {
            let reason = format!("{slots} slots are larger than the address space");
            CoreError::Layout { layer: LayerId::at(layer), tensor: tensor.name.clone(), reason }.into()
        })
}

impl DeviceMemory {
    /// Memory of its own: `slots` (numbered over all ranks) of every layer, and staging. The bytes are whatever was there.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(
        context: &Arc<Context>,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<Self>, CudaError> {
        let (mut bases, mut owned) = (Vec::new(), Vec::new());
        for layer in 0..layout.layers() {
            let mut tensors = Vec::new();
            for tensor in layout.layer(LayerId::at(layer)).tensors() {
                let block = DeviceBlock::new(context, block_bytes(layer, tensor, slots.len())?)?;
                tensors.push(block.base());
                owned.push(block);
            }
            bases.push(tensors);
        }
        let staging = DeviceBlock::new(context, staging_bytes)?;
        let extent = Extent { rank, slots, staging_bytes };
        Ok(Arc::new(Self {
            context: context.clone(),
            layout,
            extent,
            bases,
            _owned: Owned::Blocks { _blocks: owned },
            staging,
        }))
    }

    /// Memory whose slots lie in the server's own tensors: `bases[layer][tensor]` is the device address of the first local
    /// slot. They are never freed here. Staging is taken here.
    ///
    /// # Errors
    /// `bases` has another shape than the layout, or the device has no room for staging.
    ///
    /// # Safety
    /// Until the last clone of the result is dropped:
    /// - each address is device memory of `context`, valid for `(slots - 1) * slot_stride + slot_span` bytes of its tensor;
    /// - the blocks of different tensors and layers do not overlap;
    /// - whoever else uses these bytes keeps the order of the engine: it reads a slot only while the map in
    ///   force names it and no commit writes it, and never writes one.
    pub unsafe fn from_raw(
        context: &Arc<Context>,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        bases: Vec<Vec<u64>>,
        staging_bytes: usize,
    ) -> Result<Arc<Self>, CudaError> {
        let expected: Vec<usize> =
            (0..layout.layers()).map(|layer| layout.layer(LayerId::at(layer)).tensors().len()).collect();
        let found: Vec<usize> = bases.iter().map(Vec::len).collect();
        if found != expected {
            let expected = format!("one address per tensor of each layer: {expected:?}");
            let shape = CoreError::Shape { what: "addresses", found, expected };
            return Err(CudaError::Comm(shape.into()));
        }
        let staging = DeviceBlock::new(context, staging_bytes)?;
        let extent = Extent { rank, slots, staging_bytes };
        Ok(Arc::new(Self {
            context: context.clone(),
            layout,
            extent,
            bases,
            _owned: Owned::Nothing,
            staging,
        }))
    }

    /// As [`DeviceMemory::new`], with slots and staging that other processes open by descriptors or fabric handles.
    ///
    /// # Errors
    /// The device has no room, or no such handles.
    #[cfg(unix)]
    pub fn exportable(
        context: &Arc<Context>,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
        kind: crate::ipc::HandleKind,
    ) -> Result<Arc<Self>, CudaError> {
        if kind == crate::ipc::HandleKind::Legacy {
            return Self::new(context, rank, layout, slots, staging_bytes);
        }
        let (mut bases, mut owned) = (Vec::new(), Vec::new());
        for layer in 0..layout.layers() {
            let mut tensors = Vec::new();
            for tensor in layout.layer(LayerId::at(layer)).tensors() {
                let bytes = block_bytes(layer, tensor, slots.len())?;
                let block = crate::ipc::VmmBlock::new(context, bytes, kind)?;
                tensors.push(block.base());
                owned.push(block);
            }
            bases.push(tensors);
        }
        let staging = DeviceBlock::exportable(context, staging_bytes, kind)?;
        let extent = Extent { rank, slots, staging_bytes };
        let _owned = Owned::Vmm { _blocks: owned };
        Ok(Arc::new(Self { context: context.clone(), layout, extent, bases, _owned, staging }))
    }

    /// The slots of a rank that is another process, open here to be read by `context`'s device. `layout` and `slots` are the owner's,
    /// `spots` (`[layer][tensor]`) says where the first local slot of each tensor lies. It has no staging.
    ///
    /// # Errors
    /// What was said of the memory does not fit into what was opened.
    #[cfg(unix)]
    pub fn opened(
        context: &Arc<Context>,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        spots: &[Vec<crate::ipc::Spot>],
        opened: crate::ipc::Opened,
    ) -> Result<Arc<Self>, CudaError> {
        let outside =
            |what: String| CudaError::NotShareable(format!("it has no room for {what} where it says"));
        if spots.len() != layout.layers() {
            return Err(outside(format!("{} layers", layout.layers())));
        }
        let mut bases = Vec::new();
        for (layer, spots) in spots.iter().enumerate() {
            let tensors = layout.layer(LayerId::at(layer)).tensors();
            if tensors.len() != spots.len() {
                return Err(outside(format!("{} tensors of layer {layer}", tensors.len())));
            }
            let mut addresses = Vec::new();
            for (tensor, &spot) in tensors.iter().zip(spots) {
                let bytes = block_bytes(layer, tensor, slots.len())?;
                let address = opened.address(spot, bytes);
                addresses.push(
                    address.ok_or_else(|| outside(format!("tensor {:?} of layer {layer}", tensor.name)))?,
                );
            }
            bases.push(addresses);
        }
        let staging = DeviceBlock::new(context, 0)?;
        let extent = Extent { rank, slots, staging_bytes: 0 };
        let _owned = Owned::Opened { _opened: opened };
        Ok(Arc::new(Self { context: context.clone(), layout, extent, bases, _owned, staging }))
    }

    /// Address on the device of the first local slot of a tensor.
    pub fn address(&self, layer: LayerId, tensor: usize) -> Option<u64> {
        self.bases.get(layer.index())?.get(tensor).copied()
    }

    /// Where slots lie: address and bytes of all local slots of each tensor of each layer, in that order.
    ///
    /// # Errors
    /// None for memory that was made.
    pub fn pieces(&self) -> Result<Vec<(u64, usize)>, CommError> {
        let mut pieces = Vec::new();
        for (layer, bases) in self.bases.iter().enumerate() {
            for (&base, tensor) in bases.iter().zip(self.layout.layer(LayerId::at(layer)).tensors()) {
                pieces.push((base, block_bytes(layer, tensor, self.extent.slots.len())?));
            }
        }
        Ok(pieces)
    }

    /// Where staging lies, and its bytes.
    pub fn staging(&self) -> (u64, usize) {
        (self.staging.base(), self.staging.bytes())
    }

    /// The device's context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The rank that owns the memory.
    pub fn rank(&self) -> RankId {
        self.extent.rank
    }

    /// What places there are.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// Where a tensor of a place lies: inside this memory.
    ///
    /// # Errors
    /// There is no such place. Panics if the layer has no such tensor.
    pub fn rows(&self, place: Place, tensor: usize) -> Result<Rows, CommError> {
        let located = self.extent.locate(&self.layout, place)?;
        Ok(match located {
            Located::Slot { layer, local } => {
                let shape = &self.layout.layer(layer).tensors()[tensor];
                let base = self.bases[layer.index()][tensor] + (local * shape.slot_stride) as u64;
                Rows { base, rows: shape.rows, row_bytes: shape.row_bytes, pitch: shape.pitch }
            }
            Located::Staging { layer, offset, .. } => {
                let layout = self.layout.layer(layer);
                let shape = &layout.tensors()[tensor];
                let base = self.staging.base() + (offset + layout.staging_offsets()[tensor]) as u64;
                Rows { base, rows: shape.rows, row_bytes: shape.row_bytes, pitch: shape.row_bytes }
            }
        })
    }
}

impl Memory for DeviceMemory {
    fn layout(&self) -> &Arc<ModelLayout> {
        &self.layout
    }

    fn slots(&self) -> Range<usize> {
        self.extent.slots.clone()
    }

    fn staging_bytes(&self) -> usize {
        self.extent.staging_bytes
    }
}
