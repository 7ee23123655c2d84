//! Ranks of a local group behind fault wrappers.

use std::sync::Arc;

use eplb_comm::CommError;
use eplb_comm::conformance::{Rank, Setup};
use eplb_comm::fault::{FaultLog, Faults, FaultyCommunicator};
use eplb_comm::host::HostMemory;
use eplb_comm::local::LocalGroup;
use eplb_core::RankId;

/// Ranks for a setup, each behind the faults that `faults` gives for its number and memory; logs go to `logs`.
pub(crate) fn local(
    setup: &Setup,
    threads: usize,
    logs: &mut Vec<FaultLog>,
    faults: impl Fn(usize, &Arc<HostMemory>) -> Faults,
) -> Result<Vec<Rank>, CommError> {
    let memories = (0..setup.slots.len())
        .map(|rank| {
            let (layout, slots) = (setup.layouts[rank].clone(), setup.slots[rank].clone());
            HostMemory::new(RankId::at(rank), layout, slots, setup.staging_bytes)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let group = LocalGroup::new(memories.clone(), threads)?;
    let ranks = group.into_iter().zip(memories).enumerate().map(|(rank, (communicator, memory))| {
        let communicator = FaultyCommunicator::around(communicator, faults(rank, &memory));
        logs.push(communicator.log());
        Rank::new(communicator, memory)
    });
    Ok(ranks.collect())
}
