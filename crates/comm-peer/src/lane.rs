//! The order of waves and pulls on one rank: events in, steps out. No threads, no clock, no IO.

use std::collections::VecDeque;

use crate::words::Ready;

/// What the progress thread must do, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Say in this rank's word which waves may start here.
    Announce {
        /// All that may.
        waves: Ready,
        /// The one that was added.
        newest: u64,
    },
    /// Enqueue a pull of a wave on the stream of its source.
    Pull {
        /// Number of the wave.
        wave: u64,
        /// Number of the pull in the wave, as given to [`Lane::submit`].
        pull: usize,
    },
    /// All pulls of a wave are enqueued: put a fence behind them, and report when it is passed ([`Lane::landed`]).
    Fence(u64),
    /// The wave is done.
    Done(u64),
    /// A wave cannot be carried out, because a source gave up. No more steps of it follow.
    Failed {
        /// Number of the wave.
        wave: u64,
        /// The source.
        source: usize,
    },
}

/// One rank's part of a wave.
#[derive(Debug)]
struct Wave {
    number: u64,
    /// Pulls not enqueued yet, as (source, number of the pull), in canonical order.
    pulls: VecDeque<(usize, usize)>,
    /// Whether what the wave has to run after is over here.
    gate_open: bool,
    announced: bool,
    fenced: bool,
}

/// One rank's waves.
///
/// Invariants, whatever the order of events:
/// 1. A pull is enqueued only after its source announced the wave, and after this rank's own gate is open: its destination
///    may be written.
/// 2. A wave is announced once its gate is open here; one that waits holds none back but those beyond [`Ready::WINDOW`].
/// 3. Every pull of a wave is enqueued once, before its fence; a wave is done once, after its fence.
/// 4. After [`Lane::stop`] no step comes.
#[derive(Debug)]
pub struct Lane {
    waves: VecDeque<Wave>,
    next: u64,
    ready: Ready,
    stopped: bool,
}

impl Default for Lane {
    fn default() -> Self {
        Self::new()
    }
}

impl Lane {
    /// No waves yet.
    pub fn new() -> Self {
        Self { waves: VecDeque::new(), next: 0, ready: Ready::default(), stopped: false }
    }

    /// Takes the next wave: the source of each of this rank's pulls, in canonical order. Returns its number.
    pub fn submit(&mut self, sources: impl IntoIterator<Item = usize>) -> u64 {
        let number = self.next;
        self.next += 1;
        let pulls = sources.into_iter().enumerate().map(|(pull, source)| (source, pull)).collect();
        self.waves.push_back(Wave { number, pulls, gate_open: false, announced: false, fenced: false });
        number
    }

    /// What a wave has to run after is over on this rank.
    pub fn open_gate(&mut self, wave: u64) {
        if let Some(wave) = self.waves.iter_mut().find(|w| w.number == wave) {
            wave.gate_open = true;
        }
    }

    /// The fence behind a wave's pulls is passed.
    pub fn landed(&mut self, wave: u64, steps: &mut Vec<Step>) {
        if !self.stopped && self.waves.iter().any(|w| w.number == wave && w.fenced) {
            self.waves.retain(|w| w.number != wave);
            steps.push(Step::Done(wave));
        }
    }

    /// Nothing more is to be enqueued.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.waves.clear();
    }

    /// Whether a wave is under way.
    pub fn is_busy(&self) -> bool {
        !self.waves.is_empty()
    }

    /// Goes on as far as the words of the sources allow; `ready` tells which waves may start at a rank, `None` if it gave up. `may` is asked
    /// for each pull (wave, number) that could go, in their order, whether it may go now.
    pub fn advance(
        &mut self,
        ready: impl Fn(usize) -> Option<Ready>,
        mut may: impl FnMut(u64, usize) -> bool,
        steps: &mut Vec<Step>,
    ) {
        if self.stopped {
            return;
        }
        let mut failed = Vec::new();
        for wave in &mut self.waves {
            if !wave.gate_open || wave.fenced {
                continue;
            }
            if !wave.announced
                && let Some(more) = self.ready.with(wave.number)
            {
                (self.ready, wave.announced) = (more, true);
                steps.push(Step::Announce { waves: more, newest: wave.number });
            }
            let mut gone = None;
            wave.pulls.retain(|&(source, pull)| match ready(source) {
                Some(ready) if ready.has(wave.number) && may(wave.number, pull) => {
                    steps.push(Step::Pull { wave: wave.number, pull });
                    false
                }
                Some(_) => true,
                None => {
                    gone.get_or_insert(source);
                    true
                }
            });
            if let Some(source) = gone {
                failed.push(wave.number);
                steps.push(Step::Failed { wave: wave.number, source });
            } else if wave.announced && wave.pulls.is_empty() {
                wave.fenced = true;
                steps.push(Step::Fence(wave.number));
            }
        }
        self.waves.retain(|wave| !failed.contains(&wave.number));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// What happens to one of several ranks.
    #[derive(Debug, Clone)]
    enum Event {
        Submit(usize, Vec<usize>),
        OpenGate(usize, u64),
        Look(usize),
        Land(usize),
        GiveUp(usize),
    }

    const RANKS: usize = 3;

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            3 => (0..RANKS, prop::collection::vec(0..RANKS, 0..4)).prop_map(|(rank, sources)| Event::Submit(rank, sources)),
            4 => (0..RANKS, 0..40u64).prop_map(|(rank, wave)| Event::OpenGate(rank, wave)),
            6 => (0..RANKS).prop_map(Event::Look),
            4 => (0..RANKS).prop_map(Event::Land),
            1 => (0..RANKS).prop_map(Event::GiveUp),
        ];
        prop::collection::vec(event, 0..200)
    }

    /// What one rank did.
    #[derive(Default)]
    struct Seen {
        lane: Lane,
        waves: BTreeMap<u64, Vec<usize>>,
        gates: BTreeSet<u64>,
        pulled: BTreeSet<(u64, usize)>,
        fenced: BTreeSet<u64>,
        over: BTreeSet<u64>,
        gone: bool,
    }

    fn apply(ranks: &mut [Seen], words: &mut [Option<Ready>], rank: usize, steps: Vec<Step>) {
        let gates: Vec<BTreeSet<u64>> = ranks.iter().map(|seen| seen.gates.clone()).collect();
        let seen = &mut ranks[rank];
        assert!(steps.is_empty() || !seen.gone, "steps after the end: {steps:?}");
        for step in steps {
            match step {
                Step::Announce { waves: ready, newest } => {
                    assert!(ready.has(newest));
                    assert!((0..200).all(|wave| !ready.has(wave) || seen.gates.contains(&wave)));
                    words[rank] = Some(ready);
                }
                Step::Pull { wave, pull } => {
                    let source = seen.waves[&wave][pull];
                    assert!(seen.gates.contains(&wave), "pulled before its destination may be written");
                    assert!(gates[source].contains(&wave), "pulled before its source said so");
                    assert!(seen.pulled.insert((wave, pull)), "pulled twice");
                    assert!(!seen.fenced.contains(&wave), "pulled behind its fence");
                }
                Step::Fence(wave) => {
                    assert!((0..seen.waves[&wave].len()).all(|pull| seen.pulled.contains(&(wave, pull))));
                    assert!(seen.fenced.insert(wave));
                }
                Step::Done(wave) => assert!(seen.fenced.contains(&wave) && seen.over.insert(wave)),
                Step::Failed { wave, source } => {
                    assert!(words[source].is_none() && seen.over.insert(wave));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_order_of_events_breaks_an_invariant(events in events()) {
            let mut ranks: Vec<Seen> = (0..RANKS).map(|_| Seen::default()).collect();
            let mut words = vec![Some(Ready::default()); RANKS];
            for event in events {
                let mut steps = Vec::new();
                let rank = match event {
                    Event::Submit(rank, sources) => {
                        let wave = ranks[rank].lane.submit(sources.clone());
                        ranks[rank].waves.insert(wave, sources);
                        rank
                    }
                    Event::OpenGate(rank, wave) => {
                        if ranks[rank].waves.contains_key(&wave) && ranks[rank].gates.insert(wave) {
                            ranks[rank].lane.open_gate(wave);
                        }
                        rank
                    }
                    Event::Look(rank) => {
                        ranks[rank].lane.advance(|source| words[source], |_, _| true, &mut steps);
                        rank
                    }
                    Event::Land(rank) => {
                        let landed = ranks[rank].fenced.difference(&ranks[rank].over).next().copied();
                        if let Some(wave) = landed {
                            ranks[rank].lane.landed(wave, &mut steps);
                        }
                        rank
                    }
                    Event::GiveUp(rank) => {
                        ranks[rank].lane.stop();
                        ranks[rank].gone = true;
                        words[rank] = None;
                        rank
                    }
                };
                apply(&mut ranks, &mut words, rank, steps);
            }
            // Everything that may go on does: with all gates open and all words read, each wave of a rank that lives and
            // that all have submitted comes to an end.
            let common = ranks.iter().filter(|seen| !seen.gone).map(|seen| seen.waves.len() as u64).min().unwrap_or(0);
            for _ in 0..3 * 70 {
                for rank in 0..RANKS {
                    let mut steps = Vec::new();
                    for wave in 0..common {
                        if ranks[rank].gates.insert(wave) {
                            ranks[rank].lane.open_gate(wave);
                        }
                    }
                    if ranks[rank].gone {
                        continue;
                    }
                    ranks[rank].lane.advance(|source| words[source], |_, _| true, &mut steps);
                    apply(&mut ranks, &mut words, rank, steps);
                    let landed: Vec<u64> = ranks[rank].fenced.difference(&ranks[rank].over).copied().collect();
                    let mut steps = Vec::new();
                    for wave in landed {
                        ranks[rank].lane.landed(wave, &mut steps);
                    }
                    apply(&mut ranks, &mut words, rank, steps);
                }
            }
            for seen in ranks.iter().filter(|seen| !seen.gone) {
                prop_assert!((0..common).all(|wave| seen.over.contains(&wave)), "a wave did not end");
            }
        }
    }
}
