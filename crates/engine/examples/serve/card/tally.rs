//! Tokens counted on the device, and on the host beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_cuda::{Context, DeviceBlock, PinnedBlock};
use eplb_engine::engine::{DeviceChoices, DeviceSlots, DeviceTokens, Engine, IdType, Maps, Pass, SetId};
use ndarray::{Array2, Axis};

use super::super::model::TOP_K;
use super::super::rank::{Chosen, Failure, Seen, replica};
use super::Card;
use super::kernel::{bytes, write};

/// What a pass counts, on its way to the device.
#[derive(Debug)]
pub(super) struct Tallied {
    host: PinnedBlock,
    device: DeviceBlock,
}

impl Tallied {
    /// Room for `bytes` bytes of counts or choices.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, Failure> {
        Ok(Self { host: PinnedBlock::new(context, bytes)?, device: DeviceBlock::new(context, bytes)? })
    }
}

impl Card {
    /// In turn: the experts that tokens chose, layer by layer; the same, turned into slots meanwhile; and twice the slots that a pass chose, at once.
    pub(super) fn tally(
        &mut self,
        engine: &Engine,
        set: SetId,
        chosen: &Chosen<'_>,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        let pass = Pass { step: self.id_of(chosen.pass.step), ..chosen.pass };
        let taken = if self.passes % 4 < 2 && self.launches {
            self.launch_layers(engine, set, &pass, chosen.experts, seen)?;
            true
        } else {
            self.copy_out(engine, set, &pass, chosen.slots)?
        };
        if taken {
            for (layer, experts) in chosen.experts.iter().enumerate() {
                experts.iter().for_each(|&expert| self.counted[(layer, expert as usize)] += 1);
            }
        }
        Ok(())
    }

    /// Counts choices by kernels, one for each layer, which turn them into slots too in every other pass.
    fn launch_layers(
        &mut self,
        engine: &Engine,
        set: SetId,
        pass: &Pass,
        experts: &[Vec<i32>],
        seen: &mut Seen,
    ) -> Result<(), Failure> {
        let (at, into_slots) = (self.passes % 2, self.passes % 4 == 1);
        let stream = self.lanes[at].stream.clone();
        let tally = &mut self.tallies[at];
        write(&mut tally.host, experts.iter().flatten().flat_map(|expert| expert.to_ne_bytes()));
        let words = 4 * experts[0].len();
        // SAFETY: these blocks live as long as this card, and are used again two passes later, behind a wait for the stream.
        unsafe { stream.to_device(tally.host.base(), tally.device.base(), words * experts.len()) }?;
        for (layer, experts) in experts.iter().enumerate() {
            let ids = tally.device.base() + (layer * words) as u64;
            let tokens = (experts.len() / TOP_K) as u32;
            let row_stride = TOP_K as u64;
            let choices = DeviceChoices { ids, row_stride, valid: 0, mask: 0, tokens, k: TOP_K as u32 };
            let (ids_of, handle) = ((IdType::I32, &choices), stream.as_raw() as u64);
            // SAFETY: as above; the ids are as many as said, and slots take their places.
            unsafe {
                if into_slots {
                    let slots = DeviceSlots { out: ids, out_stride: row_stride, salt: 0 };
                    engine.dispatch_topk(set, pass, layer, ids_of, &slots, handle)
                } else {
                    engine.record_topk(set, pass, layer, ids_of, false, handle)
                }
            }?;
        }
        if into_slots {
            // SAFETY: as above; read behind the fence alone.
            unsafe { stream.to_host(tally.device.base(), tally.host.base(), words * experts.len()) }?;
            let fence = self.fence(at)?;
            self.wait(&fence)?;
            self.compare_slots(at, &engine.maps(set), experts, seen);
        }
        Ok(())
    }

    /// Has what the pass counted of each slot copied out; whether there was room.
    fn copy_out(
        &mut self,
        engine: &Engine,
        set: SetId,
        pass: &Pass,
        slots: &Array2<u64>,
    ) -> Result<bool, Failure> {
        let at = self.passes % 2;
        let (stream, tally) = (self.lanes[at].stream.clone(), &mut self.tallies[at]);
        write(&mut tally.host, slots.iter().flat_map(|count| count.to_ne_bytes()));
        let tokens = DeviceTokens { data: tally.device.base(), kind: IdType::I64, slots: true };
        // The maps that the counts are folded with: those of the pass, unless a test wants others.
        let pass = Pass { step: self.folded_as.unwrap_or(pass.step), ..*pass };
        // SAFETY: as above; the counts are in the shape of the maps.
        unsafe {
            stream.to_device(tally.host.base(), tally.device.base(), 8 * slots.len())?;
            Ok(engine.record_counts(set, &pass, tokens, stream.as_raw() as u64)?)
        }
    }

    /// Compares the slots that the device chose with those that the maps of the pass mean.
    fn compare_slots(&self, at: usize, maps: &Maps, chosen: &[Vec<i32>], seen: &mut Seen) {
        // SAFETY: the copy to it was just waited for.
        let mut found = unsafe { bytes(&self.tallies[at].host) }.chunks_exact(4);
        for (layer, chosen) in chosen.iter().enumerate() {
            for (choice, &expert) in chosen.iter().enumerate() {
                let slot = found.next().and_then(|slot| Some(i32::from_le_bytes(slot.try_into().ok()?)));
                let token = (choice / TOP_K) as u32;
                let expected = replica(maps, layer, token, expert as usize).map(|slot| slot as i32);
                if slot != expected {
                    seen.note_wrong(|| {
                        format!(
                            "layer {layer}, token {token}: expert {expert} went to {slot:?}, not {expected:?}"
                        )
                    });
                }
            }
        }
    }

    /// Whether the engine has counted what tokens chose.
    pub(super) fn compare_counts(&self, engine: &Engine, set: SetId, seen: &mut Seen) -> Result<(), Failure> {
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
