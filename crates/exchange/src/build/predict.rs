//! How long waves are going to take.
//!
//! A model of ports and agreements, in bytes: what a port could have carried in that time. A port takes the transfers of a part one after
//! another, from the moment at which the part may go; a wave is settled `wave_cost` after its last byte. The late part of a wave goes
//! when the wave before is settled; the early part when the one before that is.

use eplb_core::{ModelLayout, Topology};

use super::turns;
use crate::plan::{Limits, Part, WaveParts};

/// When the last wave is settled. Of few ranks their turns at sources are played through; of many, ports serve whom they like.
pub(super) fn time(
    waves: &[WaveParts],
    topology: &Topology,
    layout: &ModelLayout,
    limits: &Limits,
    overlap: bool,
) -> u128 {
    let model = if topology.ranks() <= turns::RANKS { turns::time } else { by_ports };
    model(waves, topology, layout, limits, overlap)
}

fn by_ports(
    waves: &[WaveParts],
    topology: &Topology,
    layout: &ModelLayout,
    limits: &Limits,
    overlap: bool,
) -> u128 {
    let mut ports = vec![[0u128; 2]; topology.ranks()];
    let cost = u128::from(limits.wave_cost);
    let (mut before, mut settled) = (0, 0);
    for wave in waves {
        let mut landed = settled;
        for part in Part::ALL {
            let gate = if overlap && part == Part::Early { before } else { settled };
            let portion = match part {
                Part::Early => &wave.early,
                Part::Late => &wave.late,
            };
            for transfer in portion.transfers.iter().filter(|transfer| !transfer.is_local()) {
                let bytes = layout.layer(transfer.layer).expert_bytes() as u128;
                for (rank, way) in [(transfer.dest, 0), (transfer.source, 1)] {
                    let port = &mut ports[rank.index()][way];
                    *port = (*port).max(gate) + bytes;
                    landed = landed.max(*port);
                }
            }
        }
        (before, settled) = (settled, landed + cost);
    }
    settled
}
