//! Which changes of which layers a budget pays for.

use super::climb::Path;
use super::holding::{Change, Places};
use crate::budget::Budget;

/// What is left of a budget.
#[derive(Debug)]
struct Left {
    moves: u64,
    bytes: u64,
    /// To each live rank.
    rank_moves: Vec<u64>,
    rank_bytes: Vec<u64>,
}

/// Ranks that a change sends an expert to.
fn receivers(change: Change, places: &Places) -> impl Iterator<Item = usize> {
    let (one, two) = match change {
        Change::Put { place, .. } => (place, None),
        Change::Swap { a, b } => (a, Some(b)),
    };
    let rank = |place: u32| places.rank[place as usize] as usize;
    [Some(rank(one)), two.map(rank)].into_iter().flatten()
}

impl Left {
    fn new(budget: &Budget, ranks: usize) -> Self {
        let moves = |limit: Option<usize>| limit.map_or(u64::MAX, |moves| moves as u64);
        Self {
            moves: moves(budget.moves),
            bytes: budget.bytes.unwrap_or(u64::MAX),
            rank_moves: vec![moves(budget.moves_per_rank); ranks],
            rank_bytes: vec![budget.bytes_per_rank.unwrap_or(u64::MAX); ranks],
        }
    }

    /// Whether a change of a layer with experts of `bytes` bytes fits.
    fn fits(&self, change: Change, bytes: u64, places: &Places) -> bool {
        let moves = change.moves() as u64;
        self.moves >= moves
            && self.bytes / moves >= bytes
            && receivers(change, places)
                .all(|rank| self.rank_moves[rank] >= 1 && self.rank_bytes[rank] >= bytes)
    }

    /// Takes a change off; what is not there to take is forgiven.
    fn take(&mut self, change: Change, bytes: u64, places: &Places) {
        let take = |from: &mut u64, amount: u64| {
            if *from != u64::MAX {
                *from = from.saturating_sub(amount);
            }
        };
        for rank in receivers(change, places) {
            take(&mut self.moves, 1);
            take(&mut self.bytes, bytes);
            take(&mut self.rank_moves[rank], 1);
            take(&mut self.rank_bytes[rank], bytes);
        }
    }
}

/// Changes to make of each layer, from the start of its path: again and again the layer whose next change gains most per
/// move, ties to the lower layer, until its next change does not fit. What had to be put back is paid for first, whatever
/// it costs. `bytes` are those of one expert of each layer.
pub(super) fn spend(paths: &[Path], places: &Places, budget: &Budget, bytes: &[u64]) -> Vec<usize> {
    if *budget == Budget::default() {
        return paths.iter().map(|path| path.steps.len()).collect();
    }
    let mut left = Left::new(budget, places.ranks());
    for (path, &bytes) in paths.iter().zip(bytes) {
        path.restored.iter().for_each(|&change| left.take(change, bytes, places));
    }
    let mut taken = vec![0usize; paths.len()];
    let rate = |layer: usize, at: usize| {
        let step = paths[layer].steps.get(at)?;
        Some(step.gain / step.change.moves() as f32)
    };
    let mut open: Vec<usize> = (0..paths.len()).collect();
    loop {
        let offers = open.iter().enumerate();
        let next = offers
            .filter_map(|(i, &layer)| Some((rate(layer, taken[layer])?, layer, i)))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let Some((_, layer, i)) = next else { return taken };
        let change = paths[layer].steps[taken[layer]].change;
        if left.fits(change, bytes[layer], places) {
            left.take(change, bytes[layer], places);
            taken[layer] += 1;
        } else {
            open.swap_remove(i);
        }
    }
}
