//! What a card looks at besides outputs: the maps on the device as passes find them, and the bytes of all slots as late work finds them.

use std::sync::Arc;

use eplb_comm::Fence;
use eplb_cuda::{Context, DeviceBlock, PinnedBlock};
use eplb_engine::engine::Maps;

use super::super::rank::{Failure, Seen, Server};
use super::kernel::{bytes, number};
use super::{Card, STREAMS};

/// What a pass reads of all slots, behind everything else.
#[derive(Debug)]
pub(super) struct Audit {
    sums: DeviceBlock,
    sums_host: PinnedBlock,
    /// The maps of the pass, and the fences behind the reads.
    open: Option<(Arc<Maps>, u64, Vec<Fence>)>,
}

impl Audit {
    /// Room for what is read of `count` slots.
    pub(super) fn new(context: &Arc<Context>, count: usize) -> Result<Self, Failure> {
        let (sums, sums_host) =
            (DeviceBlock::new(context, 8 * count)?, PinnedBlock::new(context, 8 * count)?);
        Ok(Self { sums, sums_host, open: None })
    }
}

impl Card {
    /// Enqueues reads of all slots of this rank behind the pass, and looks at what the last but one found.
    pub(super) fn read_all(
        &mut self,
        server: &Server,
        maps: &Arc<Maps>,
        seen: &mut Seen,
    ) -> Result<(), Failure> {
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

    /// Looks at what an earlier pass read of all slots.
    pub(super) fn look(&mut self, at: usize, server: &Server, seen: &mut Seen) -> Result<(), Failure> {
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
    pub(super) fn compare(&self, lane: usize, maps: &Maps, seen: &mut Seen) {
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
