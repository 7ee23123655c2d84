//! Bringing replicas back to the node of their group.

use super::descend::{Descent, Found};
use super::facts::{Facts, Layer};
use super::find::Replica;
use super::state::{NONE, Put, State};
use super::trial::Swap;

/// Most passes before the search looks at the worst ranks again.
const MOST_PASSES: usize = 8;

/// Replicas of a rank that are tried in return, beside those that go home in turn: the lightest that fit, as what
/// leaves home has its price.
const TRIED: usize = 3;

impl Descent {
    /// Passes over the replicas on other nodes than the home of their group: each goes home, for the replica there that
    /// is best swapped for it, if that gains. Returns whether any went. One pass where moves count.
    pub(super) fn bring_home(&mut self, facts: &Facts, layer: &Layer, state: &mut State) -> bool {
        let mut any = false;
        for _ in 0..MOST_PASSES {
            let more = self.pass_home(facts, layer, state);
            any |= more;
            if !more || self.counts_moves() {
                break;
            }
        }
        any
    }

    fn pass_home(&mut self, facts: &Facts, layer: &Layer, state: &mut State) -> bool {
        let mut any = false;
        self.pairs.refresh(facts, layer, state);
        let mut worst = state.worst(facts, layer);
        for from in 0..facts.ranks.len() {
            for a in state.places(facts, from) {
                let Some(home) = self.astray(facts, layer, state, (from, a)) else { continue };
                let mut best = self.nothing(facts, state);
                self.swaps_home(facts, layer, state, (from, a), (home, worst), &mut best);
                if best.used > 0 {
                    self.make(facts, layer, state, &best);
                    self.pairs.refresh(facts, layer, state);
                    worst = state.worst(facts, layer);
                    any = true;
                }
            }
        }
        any
    }

    /// The home of the group of a replica that is on another node.
    fn astray(&self, facts: &Facts, layer: &Layer, state: &State, (from, a): (usize, u32)) -> Option<usize> {
        let i = state.expert[a as usize];
        if i == NONE || layer.pinned[i as usize] {
            return None;
        }
        let home = state.home(facts.group_of(i));
        (home != facts.node[from] as usize).then_some(home)
    }

    fn swaps_home(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        (from, a): (usize, u32),
        (home, worst): (usize, f64),
        best: &mut Found,
    ) {
        let i = state.expert[a as usize];
        let size = layer.weight[i as usize] * state.part[a as usize];
        let less = state.count[i as usize] > 1;
        let ours = Replica::of(a, i, size, less);
        let pairs = std::mem::take(&mut self.pairs);
        let room = |state: &State, rank: usize| {
            (worst - state.time(facts, layer, rank)) / (layer.per_all * facts.ranks.slowness[rank])
        };
        let room_from = room(state, from);
        for &to in &facts.of_node[home] {
            if state.has(facts, to, i) {
                continue;
            }
            // A first guess, which leaves out what replicas elsewhere would get.
            let room_to = room(state, to);
            let lightest_first = pairs.of(facts, to).iter().rev();
            let fits = lightest_first
                .skip_while(|their| size - their.size > room_to)
                .take_while(|their| their.size - size <= room_from);
            let mut tried = 0;
            for their in fits {
                let j = their.expert;
                let back = || j != NONE && state.home(facts.group_of(j)) == facts.node[from] as usize;
                if (tried == TRIED && !back()) || (j != NONE && !state.may_get(facts, layer, from, j)) {
                    continue;
                }
                tried = (tried + 1).min(TRIED);
                self.weigh_swap(facts, layer, state, Swap { from, ours, to, theirs: *their }, best);
            }
        }
        self.pairs = pairs;
        if less {
            self.weigh(facts, layer, state, &[Put { place: a, expert: NONE }], best);
        }
    }
}
