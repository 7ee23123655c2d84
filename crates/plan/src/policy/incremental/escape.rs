//! The way out of a local optimum, which layers with few slots per rank run into: there, one more replica of a heavy
//! expert pays only once the ranks that give and take are paired anew.

use super::climb::hottest;
use super::path::Path;
use super::ranks::RankTable;
use super::scan::{Reach, Scan, View};
use super::state::{Change, State};

/// Experts that may give a replica up, lightest first, tried for each expert that may get one.
const GIVERS: usize = 12;

/// Heavy experts of the hottest rank that may get a replica.
const TAKERS: usize = 2;

/// Exchanges that may follow.
const EXCHANGES: usize = 40;

/// The worst rank, or the sum over ranks, must fall by this part: less is rounding.
const LEAST_FALL: f64 = 1e-9;

/// With the worst rank this close to the aim, as a part of it, there is too little to gain.
const CLOSE: f64 = 0.01;

/// Memory of an escape.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Slots changed and what they held, to go back.
    undo: Vec<(u32, i32)>,
    /// Experts by load per replica left, ascending.
    givers: Vec<(f64, u32)>,
    takers: Vec<u32>,
}

/// Penalties of the worst rank and of all ranks together: what must fall.
fn standing(state: &State) -> (f64, f64) {
    let most = |most: f64, penalty: f64| if penalty > most { penalty } else { most };
    state.penalty.iter().fold((0.0, 0.0), |(worst, sum), &penalty| (most(worst, penalty), sum + penalty))
}

fn better(now: (f64, f64), before: (f64, f64)) -> bool {
    let fall = 1.0 - LEAST_FALL;
    now.0 < before.0 * fall || (now.0 <= before.0 && now.1 < before.1 * fall)
}

/// Forces one replica from a light expert on a heavy one, then exchanges slots while that helps. Keeps the first
/// attempt that leaves the worst rank less loaded, appends its changes and returns true; otherwise, or when the
/// path's patience is at its end or little is left to gain, leaves all as it was.
pub(super) fn escape(
    state: &mut State,
    scan: &mut Scan,
    ranks: &RankTable,
    hot: usize,
    caps: &[u32],
    path: &mut Path,
    memory: &mut Memory,
) -> bool {
    if state.excess[hot] <= CLOSE * state.aim {
        return false;
    }
    let before = standing(state);
    candidates(state, ranks, hot, memory);
    let length = path.changes.len();
    for taker in 0..memory.takers.len() {
        let taker = memory.takers[taker];
        for giver in 0..memory.givers.len().min(GIVERS) {
            if path.patience == 0 {
                return false;
            }
            let giver = memory.givers[giver].1;
            let view = View { state, ranks, caps };
            let Some(slot) = place(view, giver as usize, taker as i32) else { continue };
            memory.undo.clear();
            let first = Change::Replace { slot: slot as u32, expert: taker as i32 };
            carry_out(state, ranks, first, path, memory);
            for _ in 0..EXCHANGES {
                path.patience = path.patience.saturating_sub(1);
                let Some(hot) = hottest(state) else { break };
                let view = View { state, ranks, caps };
                let Some(change) = scan.best(view, hot, Reach::Swaps) else { break };
                carry_out(state, ranks, change, path, memory);
            }
            if better(standing(state), before) {
                return true;
            }
            path.changes.truncate(length);
            while let Some((slot, expert)) = memory.undo.pop() {
                state.apply(ranks, Change::Replace { slot, expert });
            }
        }
    }
    false
}

/// Applies a change and notes how to take it back.
fn carry_out(state: &mut State, ranks: &RankTable, change: Change, path: &mut Path, memory: &mut Memory) {
    let mut note = |slot: u32| memory.undo.push((slot, state.slot[slot as usize].expert));
    match change {
        Change::Replace { slot, .. } => note(slot),
        Change::Swap { one, other } => {
            note(one);
            note(other);
        }
    }
    state.apply(ranks, change);
    path.changes.push(change);
}

/// Who may get a replica (the heavy experts of the hot rank, and the heaviest of all) and who may give one.
fn candidates(state: &State, ranks: &RankTable, hot: usize, memory: &mut Memory) {
    let size = |expert: u32| state.part_of(expert as usize, state.count[expert as usize].max(1));
    let may_grow = |&expert: &u32| {
        let count = state.count[expert as usize];
        count > 0 && count < state.limit
    };
    let heavier = |a: &u32, b: &u32| size(*b).total_cmp(&size(*a)).then(a.cmp(b));
    memory.takers.clear();
    memory.takers.extend(ranks.slots(hot).filter_map(|slot| u32::try_from(state.slot[slot].expert).ok()));
    memory.takers.retain(may_grow);
    memory.takers.sort_unstable_by(heavier);
    memory.takers.truncate(TAKERS);
    let heaviest = (0..state.count.len() as u32).filter(may_grow).min_by(heavier);
    if let Some(heaviest) = heaviest
        && !memory.takers.contains(&heaviest)
    {
        memory.takers.push(heaviest);
    }
    memory.givers.clear();
    let replicated = (0..state.count.len() as u32).filter(|&expert| state.count[expert as usize] > 1);
    memory.givers.extend(
        replicated.map(|expert| (state.part_of(expert as usize, state.count[expert as usize] - 1), expert)),
    );
    memory.givers.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
}

/// The slot of `giver` on its least loaded rank that may take `taker`.
fn place(view: View<'_>, giver: usize, taker: i32) -> Option<usize> {
    let state = view.state;
    if giver == taker as usize {
        return None;
    }
    let mut best: Option<(f64, usize)> = None;
    for (at, slot) in state.replicas(giver) {
        let rank = slot.rank as usize;
        let load = state.load[rank];
        if !state.holds(rank, taker)
            && view.allows(rank, state.cost(rank, giver as i32, taker))
            && best.is_none_or(|(least, _)| load < least)
        {
            best = Some((load, at));
        }
    }
    best.map(|(_, slot)| slot)
}
