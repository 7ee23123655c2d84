//! The best change between a rank that takes long and one that does not.

use super::descend::{Descent, Found};
use super::facts::{Facts, Layer};
use super::state::{NONE, Put, State};
use super::trial::Swap;

/// How many of the most loaded ranks are tried before a search gives up.
const WORST_TRIED: usize = 2;

/// Partners are tried in such numbers at a time, the least loaded first; the best change with any of them is made.
const PARTNERS: usize = 2;

/// Only so many of them, the least loaded, get replicas of what a worst rank holds.
const COPY_PARTNERS: usize = 8;

/// A place of which something may change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replica {
    pub(super) place: u32,
    pub(super) expert: u32,
    /// Tokens it gets.
    pub(super) size: f64,
    /// Tokens each replica would get if there were one more; infinite if there may not be one.
    copied: f64,
    /// Whether it could be given up.
    pub(super) spare: bool,
}

impl Replica {
    const NOTHING: Self = Self { place: 0, expert: NONE, size: 0.0, copied: f64::INFINITY, spare: true };

    /// A replica of which no other is made.
    pub(super) fn of(place: u32, expert: u32, size: f64, spare: bool) -> Self {
        Self { place, expert, size, copied: f64::INFINITY, spare }
    }

    /// `None` if what the place holds stays there.
    pub(super) fn read(facts: &Facts, layer: &Layer, state: &State, place: u32) -> Option<Self> {
        let expert = state.expert[place as usize];
        if expert == NONE {
            return Some(Self { place, ..Self::NOTHING });
        }
        if layer.pinned[expert as usize] {
            return None;
        }
        let count = state.count[expert as usize];
        let weight = layer.weight[expert as usize];
        let copied =
            if (count as usize) < facts.limit { weight / f64::from(count + 1) } else { f64::INFINITY };
        let size = weight * state.part[place as usize];
        Some(Self { place, expert, size, copied, spare: count > 1 })
    }
}

/// What ranks hold, in the order that changes are looked for, and which pairs of ranks are known to have none.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    order: Vec<(f64, usize)>,
    /// Replicas of each rank by size descending, `[ranks * stride]`, and how many; those that could be given up, likewise.
    replicas: Vec<Replica>,
    count: Vec<usize>,
    spare: Vec<Replica>,
    spares: Vec<usize>,
    /// Ranks whose replicas have to be read again.
    stale: Vec<bool>,
    /// Replicas of the rank that is to be relieved, and whether others could do without them.
    ours: Vec<(Replica, bool)>,
    /// Ranks that were to be relieved when nothing was found, and ranks that have changed since.
    tried: Vec<bool>,
    changed: Vec<bool>,
}

impl Pairs {
    /// Forgets everything.
    pub(super) fn start(&mut self, facts: &Facts) {
        let ranks = facts.ranks.len();
        for (flags, value) in [(&mut self.tried, false), (&mut self.changed, true), (&mut self.stale, true)] {
            flags.clear();
            flags.resize(ranks, value);
        }
        self.replicas.resize(ranks * facts.stride, Replica::NOTHING);
        self.spare.resize(ranks * facts.stride, Replica::NOTHING);
        self.count.resize(ranks, 0);
        self.spares.resize(ranks, 0);
    }

    /// Something on a rank has changed.
    pub(super) fn change(&mut self, rank: usize) {
        (self.changed[rank], self.stale[rank]) = (true, true);
    }

    /// Reads what has changed.
    pub(super) fn refresh(&mut self, facts: &Facts, layer: &Layer, state: &State) {
        for rank in 0..facts.ranks.len() {
            if !std::mem::replace(&mut self.stale[rank], false) {
                continue;
            }
            let start = rank * facts.stride;
            let own = &mut self.replicas[start..start + facts.stride];
            let read =
                state.places(facts, rank).filter_map(|place| Replica::read(facts, layer, state, place));
            let count = own.iter_mut().zip(read).map(|(at, replica)| *at = replica).count();
            let own = &mut own[..count];
            own.sort_unstable_by(|a, b| b.size.total_cmp(&a.size).then(a.place.cmp(&b.place)));
            let spare = own.iter().filter(|replica| replica.spare);
            self.spares[rank] =
                self.spare[start..].iter_mut().zip(spare).map(|(at, replica)| *at = *replica).count();
            self.count[rank] = count;
        }
    }

    /// Replicas of a rank that may change, by size descending; empty places come last.
    pub(super) fn of(&self, facts: &Facts, rank: usize) -> &[Replica] {
        &self.replicas[rank * facts.stride..][..self.count[rank]]
    }

    fn spare_of(&self, facts: &Facts, rank: usize) -> &[Replica] {
        &self.spare[rank * facts.stride..][..self.spares[rank]]
    }

    /// Replicas of the rank that is to be relieved.
    fn relieve(&mut self, facts: &Facts, layer: &Layer, state: &State, (most, from): (f64, usize)) {
        let mut ours = std::mem::take(&mut self.ours);
        ours.clear();
        for replica in self.of(facts, from).iter().filter(|replica| replica.expert != NONE) {
            let less = replica.spare && others_bear(facts, layer, state, replica.place, most);
            ours.push((*replica, less));
        }
        self.ours = ours;
    }
}

impl Descent {
    /// The best change that relieves one of the worst ranks; `None` if none is found.
    pub(super) fn find(&mut self, facts: &Facts, layer: &Layer, state: &mut State) -> Option<Found> {
        let ranks = facts.ranks.len();
        let mut pairs = std::mem::take(&mut self.pairs);
        pairs.refresh(facts, layer, state);
        pairs.order.clear();
        pairs.order.extend((0..ranks).map(|rank| (state.time(facts, layer, rank), rank)));
        pairs.order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut best = self.nothing(facts, state);
        let worst = WORST_TRIED.min(ranks);
        'found: for nth in 0..worst {
            let (most, from) = pairs.order[ranks - 1 - nth];
            pairs.relieve(facts, layer, state, (most, from));
            self.give_up(facts, layer, state, &pairs, &mut best);
            for (at, partners) in pairs.order[..ranks - 1 - nth].chunks(PARTNERS).enumerate() {
                let copies = at * PARTNERS < COPY_PARTNERS;
                for &(_, to) in partners {
                    // What gained nothing then gains hardly anything now.
                    if !pairs.tried[from] || pairs.changed[from] || pairs.changed[to] {
                        self.between(facts, layer, state, &pairs, (from, to, copies), &mut best);
                    }
                }
                if best.used > 0 {
                    break 'found;
                }
            }
        }
        if best.used == 0 {
            pairs.tried.fill(false);
            pairs.changed.fill(false);
            pairs.order[ranks - worst..].iter().for_each(|&(_, from)| pairs.tried[from] = true);
        }
        self.pairs = pairs;
        (best.used > 0).then_some(best)
    }

    /// Changes between a rank that takes long and another.
    fn between(
        &mut self,
        facts: &Facts,
        layer: &Layer,
        state: &mut State,
        pairs: &Pairs,
        (from, to, copies): (usize, usize, bool),
        best: &mut Found,
    ) {
        let (most, time_to) = (state.time(facts, layer, from), state.time(facts, layer, to));
        // A first guess at the other rank's time: it may not become the new worst.
        let room = (most - time_to) / (layer.per_all * facts.ranks.slowness[to]);
        let (theirs, spare) = (pairs.of(facts, to), pairs.spare_of(facts, to));
        // Both are sorted: what is lighter than ours begins farther and farther back.
        let mut lighter = 0;
        for &(ours, less) in &pairs.ours {
            let Replica { place: a, expert: i, size, copied, .. } = ours;
            while theirs.get(lighter).is_some_and(|their| their.size >= size) {
                lighter += 1;
            }
            let fit = theirs[lighter..].iter().take_while(|their| size - their.size < room).count();
            let copies = copies && spare.first().is_some_and(|their| copied - their.size < room);
            // Most have nothing to offer, which takes less to see than whether the rank may get ours.
            if (copies || fit > 0) && state.may_get(facts, layer, to, i) {
                for their in spare.iter().filter(|their| copies && copied - their.size < room) {
                    self.weigh_one(facts, layer, state, Put { place: their.place, expert: i }, best);
                }
                for their in &theirs[lighter..lighter + fit] {
                    if their.expert == NONE || state.may_get(facts, layer, from, their.expert) {
                        self.weigh_swap(facts, layer, state, Swap { from, ours, to, theirs: *their }, best);
                    }
                }
            }
            if less {
                for their in theirs.iter().filter(|their| their.copied < size) {
                    if state.may_get(facts, layer, from, their.expert) {
                        self.weigh_one(facts, layer, state, Put { place: a, expert: their.expert }, best);
                    }
                }
            }
        }
    }

    /// A rank gives up replicas of experts that others hold as well, and gets nothing for them: worth it where experts cost
    /// time whatever their tokens.
    fn give_up(&mut self, facts: &Facts, layer: &Layer, state: &mut State, pairs: &Pairs, best: &mut Found) {
        if layer.per_active == 0.0 {
            return;
        }
        for (ours, _) in pairs.ours.iter().filter(|(_, less)| *less) {
            self.weigh(facts, layer, state, &[Put { place: ours.place, expert: NONE }], best);
        }
    }
}

/// Whether the other replicas of an expert could take what the one in a place gets without a rank as late as `most`, if
/// they took equal parts of it; a split may find a better way.
fn others_bear(facts: &Facts, layer: &Layer, state: &State, place: u32, most: f64) -> bool {
    let expert = state.expert[place as usize];
    let holders = state.holders(facts, expert);
    let each = layer.weight[expert as usize] * state.part[place as usize] / (holders.len() - 1) as f64;
    facts.splitter.is_some()
        || holders.iter().filter(|&&other| other != place).all(|&other| {
            let rank = facts.rank_of(other);
            let more = each * layer.per_all * facts.ranks.slowness[rank];
            state.time(facts, layer, rank) + more < most
        })
}
