//! A tensor that a server derives from weights: the sum over the bytes of each slot, made anew after each commit by the engine's hook.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use eplb_core::{LayerId, SlotId};
use eplb_cuda::module::Kernel;
use eplb_cuda::{CudaStream, DeviceBlock, PinnedBlock};
use eplb_engine::engine::{AfterCommit, Engine, Maps, SetId};

use super::super::rank::{Failure, Seen, Server};
use super::kernel::{bytes, module, number};
use super::{Card, STREAMS};

/// What the hook and the card share; the hook is given to the engine before there is a card.
#[derive(Debug, Clone, Default)]
pub(crate) struct Derived(Arc<Mutex<Option<Sums>>>);

/// The tensor, and what makes it.
#[derive(Debug)]
struct Sums {
    kernel: Kernel,
    stream: Arc<CudaStream>,
    /// Of each layer: where the tensors of slots lie, and how many there are.
    tensors: Vec<(u64, u32)>,
    /// Where the numbers of all local slots lie.
    all: u64,
    first: usize,
    count: usize,
    sums: DeviceBlock,
    failed: Option<String>,
}

impl Sums {
    fn make(&self, layer: usize, slot: usize) -> Result<(), Failure> {
        let local = slot - self.first;
        let (tensors, tensor_count) = self.tensors[layer];
        let (slots, count) = (self.all + 4 * local as u64, 1u32);
        let sums = self.sums.base() + 8 * (layer * self.count + local) as u64;
        let arg = |value: *const c_void| value.cast_mut();
        let mut arguments = [
            arg((&raw const slots).cast()),
            arg((&raw const count).cast()),
            arg((&raw const tensors).cast()),
            arg((&raw const tensor_count).cast()),
            arg((&raw const sums).cast()),
        ];
        // SAFETY: the arguments are those that the source declares; the blocks live as long as the card, which outlives the engine.
        unsafe { self.kernel.launch(&self.stream, (1, 256), &mut arguments) }?;
        Ok(())
    }
}

impl Derived {
    /// What the engine calls after commits, on the first stream of passes.
    pub(crate) fn hook(&self) -> AfterCommit {
        let this = self.clone();
        Box::new(move |_: SetId, layer: LayerId, slots: &[SlotId]| {
            let mut sums = this.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(sums) = sums.as_mut() else { return };
            let made = slots.iter().try_for_each(|slot| sums.make(layer.index(), slot.index()));
            if let Err(error) = made {
                sums.failed = Some(error.to_string());
            }
        })
    }
}

impl Card {
    /// Makes the tensor for all slots, and compares it in each pass from now on.
    pub(crate) fn derive(&mut self, engine: &Engine, set: SetId, derived: &Derived) -> Result<(), Failure> {
        let context = engine.device_memory(set).ok_or("the slots lie on no device")?.context();
        let bytes = 8 * self.own.len() * self.maps.shape.layers;
        let sums = Sums {
            kernel: module(context)?.kernel("serve_sums")?,
            stream: self.lanes[0].stream.clone(),
            tensors: self.tensors.iter().map(|(block, count)| (block.base(), *count)).collect(),
            all: self.all.base(),
            first: self.own.start,
            count: self.own.len(),
            sums: DeviceBlock::new(context, bytes)?,
            failed: None,
        };
        for layer in 0..self.maps.shape.layers {
            self.own.clone().try_for_each(|slot| sums.make(layer, slot))?;
        }
        let fence = self.fence(0)?;
        self.wait(&fence)?;
        *derived.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sums);
        self.derived = Some((derived.clone(), PinnedBlock::new(context, bytes)?));
        Ok(())
    }

    /// Compares the tensor, as the last stream of the pass finds it, with the experts that the maps of the pass name.
    pub(super) fn compare_derived(
        &self,
        server: &Server,
        maps: &Maps,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        let Some((derived, host)) = &self.derived else { return Ok(()) };
        {
            let sums = derived.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(sums) = sums.as_ref() else { return Ok(()) };
            if let Some(failed) = &sums.failed {
                return Err(failed.clone().into());
            }
            // SAFETY: both blocks live as long as this card, and are of one size; the host's is read behind the fence alone.
            unsafe { self.lanes[STREAMS - 1].stream.to_host(sums.sums.base(), host.base(), host.bytes()) }?;
        }
        let fence = self.fence(STREAMS - 1)?;
        self.wait(&fence)?;
        // SAFETY: the copy to it was just waited for.
        let found = unsafe { bytes(host) };
        for layer in 0..self.maps.shape.layers {
            for (local, slot) in self.own.clone().enumerate() {
                let Ok(expert) = usize::try_from(maps.phy2log[(layer, slot)]) else { continue };
                let at = 8 * (layer * self.own.len() + local);
                if number(&found[at..at + 8]) != server.model.sum_of_expert(layer, expert) {
                    seen.note_wrong(|| {
                        format!(
                            "what is derived from layer {layer} slot {slot} is not that of expert {expert}"
                        )
                    });
                }
            }
        }
        Ok(())
    }
}
