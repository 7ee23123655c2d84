//! Chains over three ranks: an exchange of the worst rank with a second one, which is too heavy then, and an exchange of
//! the second with a third one that makes up for it.
//!
//! An exchange alone needs a rank that has just what the worst one lacks, and room for what it gets. A chain hands on what
//! is too much: an ejection chain (Glover 1996) of two links. Of the exchanges with a second rank the one that gives it
//! least is the best, whatever comes next, so that one for each second rank is tried, those with the least to
//! hand on first.
//!
//! What chains need not be looked for, as exchanges do as well (both are tested):
//! - Rings, in which each rank takes one replica from the rank before and the worst one, which gave `x`, takes a lighter
//!   one from the last. Of the replicas passed on take the first that is lighter than `x`. The rank that passes it
//!   on has room for what came to it, which is as heavy as `x` or heavier: so it has room for `x`, and can exchange the two
//!   with the worst rank.
//! - Any, where ranks have two places. Let the worst rank hold `x` and a lighter `y`, and every other way of pairing be
//!   a better one: replicas as heavy as `x` have partners lighter than `y` in it, so that there are fewer of them, `x` left
//!   out, than of those. So one of those lighter than `y` has a partner lighter than `x`, and can be exchanged for `y`.

#[cfg(test)]
mod tests;

use super::exchange::{Exchange, ExchangeScratch, Kind};
use super::holders::Holders;
use super::state::State;

/// How many second ranks are tried.
const MOST_TRIED: usize = 32;

/// Most places of a rank with which exchanges do as well.
const TOO_FEW: usize = 2;

/// Memory of the search.
#[derive(Debug, Default)]
pub(super) struct ChainScratch {
    links: Vec<Link>,
    /// A fault, for tests: chains are left out.
    #[cfg(test)]
    pub(super) left_out: bool,
}

/// An exchange of the worst rank with another that is too heavy afterwards.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// By how many units.
    excess: f64,
    rank: usize,
    /// `(expert of the worst rank, expert of the other)`.
    experts: (u32, u32),
}

/// Lowers the worst rank `a` below `highest` by a chain that leaves all three ranks below it; the second exchange is
/// not bettered once it leaves its ranks at `goal` or below. Returns whether there was one.
pub(super) fn chain(
    state: &mut State,
    a: usize,
    [highest, goal]: [f64; 2],
    holders: &mut Holders,
    scratch: &mut ChainScratch,
    exchange: &mut ExchangeScratch,
) -> bool {
    #[cfg(test)]
    if scratch.left_out {
        return false;
    }
    if state.places(a).len() <= TOO_FEW {
        return false;
    }
    scratch.find_links(state, a, highest);
    for &Link { rank, experts: (given, taken), .. } in scratch.links.iter().take(MOST_TRIED) {
        state.exchange(a, rank, &[(given, taken)]);
        let mut second = Exchange::none(highest, goal);
        // Most ranks are of no help: all but the first are told at a glance.
        let _ = second.search(state, rank, 0..1, Kind::One, exchange)
            || second.search(state, rank, 1..state.ranks(), Kind::One, exchange);
        if second.is_some() {
            holders.exchanged(state, a, rank, &[(given, taken)]);
            second.apply(state, rank, holders);
            return true;
        }
        state.exchange(a, rank, &[(taken, given)]);
    }
    false
}

impl ChainScratch {
    /// For every other rank the exchange of one for one with `a` that brings `a` below `cost` and the other least above
    /// it, if that can fit on a third one; those with the least excess first.
    fn find_links(&mut self, state: &State, a: usize, cost: f64) {
        let room = |rank: usize| cost / state.slowness[rank] - state.load[rank];
        let others = || (0..state.ranks()).filter(|&rank| rank != a);
        let most = others().map(room).fold(0.0, f64::max);
        let too_much = -room(a);
        self.links.clear();
        for rank in others() {
            let (own, mut best) = (room(rank), None);
            let mut least = own + most;
            for p in state.places(a) {
                for q in state.places(rank) {
                    let given = state.place_load[p] - state.place_load[q];
                    if given > too_much && given < least && state.may_exchange(a, p, rank, q) {
                        least = given;
                        best = Some((state.expert[p], state.expert[q]));
                    }
                }
            }
            self.links.extend(best.map(|experts| Link { excess: least - own, rank, experts }));
        }
        self.links.sort_unstable_by(|a, b| a.excess.total_cmp(&b.excess).then(a.rank.cmp(&b.rank)));
    }
}
