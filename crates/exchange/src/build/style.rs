//! How waves may be built: how large they are, and whether chains go through staging.
//!
//! The least time of an exchange is what its busiest port has to carry. Large waves need few agreements; small ones keep ports busy
//! together, since what a slot waits for comes sooner. Through staging a chain of slots changes at once, but only as much of it as
//! staging holds. Which of these is best depends on the moves, so several are tried whole ([`super::predict`]).

use eplb_core::{ModelLayout, Topology};

use super::Draft;
use super::layer::LayerState;
use super::ports::Ports;
use crate::plan::Limits;

/// Fixed sizes that are tried: parts of what the busiest rank receives.
const CUTS: [u64; 3] = [12, 24, 48];
/// Sizes that are tried for a wave where it is weighed by itself, each half of the one before.
const SIZES: usize = 6;
/// What bytes count that do not go into the busiest port, beside those that do.
const ELSEWHERE: f64 = 0.02;

/// What goes through staging that could do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ways {
    /// Slots that could wait for a drain.
    pub(super) followers: bool,
    /// Slots that could be drained, and are sources as long as they are not.
    pub(super) sources: bool,
}

impl Ways {
    /// Only what must.
    const FEW: Self = Self { followers: false, sources: false };

    /// All that are worth a try.
    fn all(followers: bool) -> &'static [Self] {
        const FOLLOW: Ways = Ways { followers: true, sources: false };
        const KEEP: Ways = Ways { followers: true, sources: true };
        if followers { &[Ways::FEW, FOLLOW, KEEP] } else { &[Ways::FEW] }
    }
}

/// A way to build waves.
#[derive(Debug)]
pub(super) struct Style {
    pub(super) ways: Ways,
    /// Sizes of which the best is chosen for each wave.
    sizes: Vec<u64>,
    cost: u64,
    overlap: bool,
}

impl Style {
    /// All that are worth a try.
    pub(super) fn all(
        layers: &[LayerState],
        topology: &Topology,
        layout: &ModelLayout,
        limits: &Limits,
    ) -> Vec<Self> {
        let overlap = limits.overlap && limits.overlaps(layout);
        let style = |ways, sizes| Self { ways, sizes, cost: limits.wave_cost.max(1), overlap };
        let all = Ways::all(limits.followers).iter().copied();
        if let Some(bytes) = limits.wave_bytes {
            return all.map(|ways| style(ways, vec![bytes])).collect();
        }
        let busiest = remaining(layers, topology, layout).into_iter().max().unwrap_or(0);
        let least = layout.largest_staged() as u64;
        let most = Ports::limit(busiest).min(busiest.max(least));
        if limits.wave_cost >= busiest {
            // One agreement takes longer than all bytes: the fewest waves are the best.
            return all.map(|ways| style(ways, vec![u64::MAX])).collect();
        }
        let mut fixed: Vec<u64> = CUTS.into_iter().map(|cuts| (busiest / cuts).max(least)).collect();
        fixed.push(most);
        // Where an agreement takes longer than such waves, nobody gains by small ones.
        if limits.wave_cost > most {
            fixed = vec![u64::MAX, most];
        }
        fixed.sort_unstable();
        fixed.dedup();
        let halves: Vec<u64> = std::iter::successors(Some(most), |size| Some(size / 2))
            .take(SIZES)
            .filter(|&size| size == most || size >= least)
            .collect();
        let sizes = || fixed.iter().map(|&size| vec![size]).chain([halves.clone()]);
        all.flat_map(|ways| sizes().map(move |sizes| style(ways, sizes))).collect()
    }

    /// The largest size of a wave.
    pub(super) fn most(&self) -> u64 {
        self.sizes[0]
    }

    /// Drafts the next wave in all sizes, and keeps the best with the state in which drafting it left the layers.
    ///
    /// A wave lasts as long as its busiest port, so it is worth what it takes off the least time that is left, for each byte of its own
    /// time and of the agreement on it. That looks no further than one wave: what pays only later, such as a lead of one rank
    /// that frees slots for others, counts for a little.
    pub(super) fn choose(
        &self,
        layers: &mut Vec<LayerState>,
        staging: (usize, usize),
        topology: &Topology,
        layout: &ModelLayout,
        draft: impl Fn(&mut [LayerState], &mut Draft),
    ) -> Draft {
        if let [size] = self.sizes[..] {
            let mut made = Draft::new(topology.ranks(), staging, size);
            draft(layers, &mut made);
            return made;
        }
        let before = remaining(layers, topology, layout);
        let mut best: Option<(f64, Draft, Vec<LayerState>)> = None;
        for &size in &self.sizes {
            let mut made = Draft::new(topology.ranks(), staging, size);
            let mut drafted = layers.clone();
            draft(&mut drafted, &mut made);
            let worth = self.worth(&before, &made.ports);
            if best.as_ref().is_none_or(|(most, ..)| worth > *most) {
                best = Some((worth, made, drafted));
            }
        }
        let Some((_, made, drafted)) = best else { return Draft::new(topology.ranks(), staging, 0) };
        *layers = drafted;
        made
    }

    fn worth(&self, before: &[u64], ports: &Ports) -> f64 {
        let left = before.iter().zip(ports.into()).map(|(before, now)| before.saturating_sub(*now));
        let taken = before.iter().max().unwrap_or(&0) - left.max().unwrap_or(0);
        let moved = ports.into().iter().sum::<u64>() as f64 / before.len().max(1) as f64;
        let busiest = ports.busiest();
        let time = if self.overlap { busiest.max(self.cost) } else { busiest + self.cost };
        (taken as f64 + ELSEWHERE * moved) / time as f64
    }
}

/// Bytes that each rank has yet to receive.
fn remaining(layers: &[LayerState], topology: &Topology, layout: &ModelLayout) -> Vec<u64> {
    let mut into = vec![0u64; topology.ranks()];
    layers.iter().for_each(|state| state.add_arrivals(topology, layout, &mut into));
    into
}
