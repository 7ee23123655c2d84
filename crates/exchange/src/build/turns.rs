//! How long waves take where a source serves one reader at a time.
//!
//! Two ranks that read from one source at once halve each other's speed while other sources idle, so that ranks take turns (`peer`) or lose as
//! much (others). This plays that through: a rank reads from one source, and goes on with one that nobody reads from, of the earliest wave, where
//! most is left. Times are in bytes that a port carries.

use std::cmp::Reverse;
use std::collections::VecDeque;

use eplb_core::{ModelLayout, Topology, Transfer};

use crate::plan::{Limits, Portion, WaveParts};

/// Most ranks for which it is played: their pairs are looked at after every read.
pub(super) const RANKS: usize = 16;

/// A rank that reads.
#[derive(Debug, Clone, Copy)]
struct Read {
    wave: usize,
    source: usize,
    end: u128,
}

/// What a rank has yet to read from a source: waves and bytes, in the order in which they may go.
#[derive(Debug, Clone, Default)]
struct Queue {
    reads: VecDeque<(usize, u128)>,
    bytes: u128,
}

/// How far a wave is.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Transfers over links that have not ended.
    left: usize,
    /// Parts that may go.
    goes: [bool; 2],
    settled: Option<u128>,
}

impl State {
    fn is_settled(&self, now: u128) -> bool {
        self.settled.is_some_and(|at| at <= now)
    }
}

/// When the last wave is settled.
pub(super) fn time(
    waves: &[WaveParts],
    topology: &Topology,
    layout: &ModelLayout,
    limits: &Limits,
    overlap: bool,
) -> u128 {
    let ranks = topology.ranks();
    let mut queues = vec![Queue::default(); ranks * ranks];
    let mut reading: Vec<Option<Read>> = vec![None; ranks];
    let links = |portion: &Portion| portion.transfers.iter().filter(|transfer| !transfer.is_local()).count();
    let state = |wave: &WaveParts| State {
        left: links(&wave.early) + links(&wave.late),
        goes: [false; 2],
        settled: None,
    };
    let mut states: Vec<State> = waves.iter().map(state).collect();
    let (mut now, mut first) = (0, 0);
    loop {
        // Waves settle in their order, and none but the next may go before the first has. One without transfers settles at once.
        let mut seen = usize::MAX;
        while seen != first {
            seen = first;
            for wave in first..waves.len().min(first + 2) {
                release(waves, wave, (now, overlap), &mut states, |transfer| {
                    let bytes = layout.layer(transfer.layer).expert_bytes() as u128;
                    let queue = &mut queues[transfer.dest.index() * ranks + transfer.source.index()];
                    queue.reads.push_back((wave, bytes));
                    queue.bytes += bytes;
                });
                let state = &mut states[wave];
                if state.settled.is_none() && state.left == 0 && state.goes == [true; 2] {
                    state.settled = Some(now + u128::from(limits.wave_cost));
                }
            }
            first += states[first..].iter().take_while(|state| state.is_settled(now)).count();
        }
        begin(&mut reading, &mut queues, now);
        let ends = reading.iter().flatten().map(|read| read.end);
        let settles = states[first..].iter().take(2).filter_map(|state| state.settled);
        let Some(next) = ends.chain(settles).filter(|&at| at > now).min() else { break };
        now = next;
        for read in &mut reading {
            if let Some(Read { wave, end, .. }) = *read
                && end <= now
            {
                states[wave].left -= 1;
                *read = None;
            }
        }
    }
    states.iter().filter_map(|state| state.settled).max().unwrap_or(0)
}

/// Gives out the transfers over links of the parts of a wave that may go from now on.
fn release(
    waves: &[WaveParts],
    wave: usize,
    (now, overlap): (u128, bool),
    states: &mut [State],
    mut give: impl FnMut(&Transfer),
) {
    let settled =
        |behind: usize| wave.checked_sub(behind).is_none_or(|before| states[before].is_settled(now));
    let may = [settled(if overlap { 2 } else { 1 }), settled(1)];
    for (part, portion) in [&waves[wave].early, &waves[wave].late].into_iter().enumerate() {
        if may[part] && !states[wave].goes[part] {
            states[wave].goes[part] = true;
            portion.transfers.iter().filter(|transfer| !transfer.is_local()).for_each(&mut give);
        }
    }
}

/// Lets ranks that read nothing go on, each with the best source that nobody reads from.
fn begin(reading: &mut [Option<Read>], queues: &mut [Queue], now: u128) {
    let ranks = reading.len();
    for me in 0..ranks {
        if reading[me].is_some() {
            continue;
        }
        let is_free = |source: &usize| reading.iter().flatten().all(|read| read.source != *source);
        let order = |source: usize| {
            let queue = &queues[me * ranks + source];
            let wave = queue.reads.front()?.0;
            Some(((wave, Reverse(queue.bytes), (me + ranks - source) % ranks), source))
        };
        let Some((_, source)) = (0..ranks).filter(is_free).filter_map(order).min() else { continue };
        let queue = &mut queues[me * ranks + source];
        if let Some((wave, bytes)) = queue.reads.pop_front() {
            queue.bytes -= bytes;
            reading[me] = Some(Read { wave, source, end: now + bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use eplb_core::{ExpertId, Landing, LayerId, RankId, SlotId, TensorLayout};
    use proptest::prelude::*;

    use super::*;

    const RANKS: usize = 4;
    const EXPERT: u64 = 40 << 20;
    const READ: u128 = EXPERT as u128;
    const COST: u64 = 7 << 20;

    fn portion(pairs: &[(usize, usize)]) -> Portion {
        let transfer = |&(source, dest): &(usize, usize)| Transfer {
            layer: LayerId(0),
            expert: ExpertId(0),
            source: RankId::at(source),
            source_slot: SlotId(0),
            dest: RankId::at(dest),
            dest_slot: SlotId(0),
            landing: Landing::InPlace,
        };
        Portion { drains: Vec::new(), transfers: pairs.iter().map(transfer).collect() }
    }

    fn wave(early: &[(usize, usize)], late: &[(usize, usize)]) -> WaveParts {
        WaveParts { early: portion(early), late: portion(late) }
    }

    fn setup() -> (Topology, ModelLayout, Limits) {
        let topology = Topology::uniform(RANKS, RANKS).unwrap();
        let layout = ModelLayout::new(vec![vec![TensorLayout::contiguous("w", EXPERT as usize)]]).unwrap();
        let mut limits = Limits::new(&layout, &topology);
        limits.wave_cost = COST;
        (topology, layout, limits)
    }

    fn time_of(waves: &[WaveParts], overlap: bool) -> u128 {
        let (topology, layout, limits) = setup();
        time(waves, &topology, &layout, &limits, overlap)
    }

    #[test]
    fn two_readers_of_a_source_read_one_after_the_other() {
        assert_eq!(time_of(&[], true), 0);
        let cost = u128::from(COST);
        assert_eq!(time_of(&[wave(&[], &[(0, 1)])], true), READ + cost);
        assert_eq!(time_of(&[wave(&[], &[(0, 1), (0, 2)])], true), 2 * READ + cost);
        assert_eq!(time_of(&[wave(&[], &[(0, 1), (2, 3)])], true), READ + cost);
        // All from all others: three rounds, in each of which every source is read once.
        let all: Vec<_> =
            (0..RANKS).flat_map(|s| (0..RANKS).map(move |d| (s, d))).filter(|(s, d)| s != d).collect();
        assert_eq!(time_of(&[wave(&[], &all)], true), 3 * READ + cost);
        // Copies inside a rank take no port.
        assert_eq!(time_of(&[wave(&[], &[(1, 1)])], true), cost);
    }

    #[test]
    fn a_part_goes_when_the_waves_before_it_are_settled() {
        let cost = u128::from(COST);
        let two = |early: &[_], late: &[_]| [wave(&[], &[(0, 1)]), wave(early, late)];
        assert_eq!(time_of(&two(&[], &[(0, 1)]), true), 2 * (READ + cost));
        assert_eq!(time_of(&two(&[(0, 1)], &[]), true), 2 * READ + cost, "while the first is agreed on");
        assert_eq!(time_of(&two(&[(2, 3)], &[]), true), READ + 2 * cost, "beside the first");
        assert_eq!(time_of(&two(&[(2, 3)], &[]), false), 2 * (READ + cost));
        // The third waits for the first, though nothing else keeps it.
        let three = [wave(&[], &[(0, 1)]), wave(&[], &[]), wave(&[(2, 3)], &[])];
        assert_eq!(time_of(&three, true), READ + cost + READ + cost);
    }

    #[test]
    fn waves_that_carry_nothing_end() {
        let (topology, layout, mut limits) = setup();
        limits.wave_cost = 0;
        let waves = vec![wave(&[], &[]); 9];
        assert_eq!(time(&waves, &topology, &layout, &limits, true), 0);
        let mut waves = waves;
        waves.push(wave(&[(0, 1)], &[]));
        assert_eq!(time(&waves, &topology, &layout, &limits, true), READ);
    }

    fn waves() -> impl Strategy<Value = Vec<WaveParts>> {
        let pairs = || proptest::collection::vec((0..RANKS, 0..RANKS), 0..8);
        proptest::collection::vec((pairs(), pairs()).prop_map(|(early, late)| wave(&early, &late)), 0..6)
    }

    proptest! {
        /// Ports that serve any number at a time are never slower, and one read at a time in all is never faster.
        #[test]
        fn turns_lie_between_ports_and_one_after_another(waves in waves(), overlap in any::<bool>()) {
            let (topology, layout, limits) = setup();
            let turns = time(&waves, &topology, &layout, &limits, overlap);
            let links = |wave: &WaveParts| {
                let all = wave.early.transfers.iter().chain(wave.late.transfers.iter());
                all.filter(|transfer| !transfer.is_local()).count() as u128
            };
            let alone: u128 = waves.iter().map(|wave| links(wave) * READ + u128::from(COST)).sum();
            let mut into = [0u128; RANKS];
            for transfer in waves.iter().flat_map(|wave| wave.early.transfers.iter().chain(wave.late.transfers.iter())) {
                if !transfer.is_local() {
                    into[transfer.dest.index()] += READ;
                }
            }
            prop_assert!(turns <= alone, "{turns} > {alone}");
            prop_assert!(turns >= into.into_iter().max().unwrap_or(0));
        }
    }
}
