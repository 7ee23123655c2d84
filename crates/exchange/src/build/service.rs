//! What a layer's ranks carry while slots are drained.

use eplb_core::metrics::layer_balancedness;
use eplb_core::{RankId, SlotId, Topology};

/// Slack for rounding in comparisons of balancedness.
const EPSILON: f64 = 1e-9;

/// Rank loads of one layer, at even split over the slots in service, as slots are drained one by one.
#[derive(Debug)]
pub(crate) struct Service<'a> {
    row: &'a [f64],
    floor: f64,
    topology: &'a Topology,
    loads: Vec<f64>,
    above: bool,
}

impl<'a> Service<'a> {
    /// Nothing drained yet. `current` is the row of `phy2log`, `counts` its replica counts.
    pub(crate) fn new(
        row: &'a [f64],
        floor: f64,
        current: &[i32],
        counts: &[u32],
        topology: &'a Topology,
    ) -> Self {
        let mut loads = vec![0.0; topology.ranks()];
        for (slot, &entry) in current.iter().enumerate() {
            if let Ok(expert) = usize::try_from(entry) {
                let rank = topology.rank_of(SlotId::at(slot));
                loads[rank.index()] += row[expert] / f64::from(counts[expert]) / topology.speed(rank);
            }
        }
        let mut service = Self { row, floor, topology, loads, above: false };
        service.above = service.holds();
        service
    }

    fn holds(&self) -> bool {
        layer_balancedness(&self.loads, self.topology).is_none_or(|b| b >= self.floor - EPSILON)
    }

    /// Whether the layer is above the floor with nothing drained: only then may anything be.
    pub(crate) fn is_above(&self) -> bool {
        self.above
    }

    /// Drains one of `in_service` slots of an expert (`in_service[at]`) if the layer stays above the floor, and says
    /// whether it did.
    pub(crate) fn drain(&mut self, expert: usize, in_service: &[SlotId], at: usize) -> bool {
        if !self.above {
            return false;
        }
        let count = in_service.len() as f64;
        let (part, grown) = (self.row[expert] / count, self.row[expert] / (count - 1.0).max(1.0));
        let ranks: Vec<(RankId, f64)> = in_service
            .iter()
            .enumerate()
            .map(|(i, &slot)| {
                let rank = self.topology.rank_of(slot);
                (rank, (if i == at { -part } else { grown - part }) / self.topology.speed(rank))
            })
            .collect();
        let kept: Vec<f64> = ranks.iter().map(|&(rank, _)| self.loads[rank.index()]).collect();
        ranks.iter().for_each(|&(rank, change)| self.loads[rank.index()] += change);
        let holds = self.holds();
        if !holds {
            // In reverse, so that a rank listed twice gets its first value back.
            for (&(rank, _), &load) in ranks.iter().zip(&kept).rev() {
                self.loads[rank.index()] = load;
            }
        }
        holds
    }
}
