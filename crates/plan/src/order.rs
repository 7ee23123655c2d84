//! Sorting and choosing by packed keys: a value in the high bits, an id in the low ones.

/// Lists shorter than this are left to the standard sort.
const SHORT: usize = 48;

/// Sorts keys ascending. `coarse` must not decrease with the key: a radix sort by it brings nearly all keys to their
/// places, an insertion sort does the rest. Where it does not tell keys apart, the standard sort takes over.
/// `memory` is scratch.
pub(crate) fn sort_keys(keys: &mut Vec<u64>, memory: &mut Vec<u64>, coarse: impl Fn(u64) -> u16) {
    if keys.len() < SHORT {
        keys.sort_unstable();
        return;
    }
    // What it holds is overwritten; only its length matters.
    memory.resize(keys.len(), 0);
    let mut starts = [[0u32; 256]; 2];
    for &key in keys.iter() {
        let [low, high] = coarse(key).to_le_bytes();
        starts[0][low as usize] += 1;
        starts[1][high as usize] += 1;
    }
    for (byte, starts) in starts.iter_mut().enumerate() {
        let mut sum = 0;
        for start in starts.iter_mut() {
            (*start, sum) = (sum, sum + *start);
        }
        for &key in keys.iter() {
            let at = &mut starts[coarse(key).to_le_bytes()[byte] as usize];
            memory[*at as usize] = key;
            *at += 1;
        }
        std::mem::swap(keys, memory);
    }
    insertion_sort(keys);
}

/// For keys that are nearly sorted.
fn insertion_sort(keys: &mut [u64]) {
    let mut patience = 8 * keys.len();
    for i in 1..keys.len() {
        let key = keys[i];
        let mut at = i;
        while at > 0 && keys[at - 1] > key {
            keys[at] = keys[at - 1];
            at -= 1;
        }
        keys[at] = key;
        match patience.checked_sub(i - at) {
            Some(left) => patience = left,
            None => return keys.sort_unstable(),
        }
    }
}

/// A tournament: holds one key per entrant and knows the least. Changing a key costs the logarithm of the number of
/// entrants, with no branch to mispredict.
#[derive(Debug, Default)]
pub(crate) struct Tournament {
    /// A binary tree from node 1: the least keys under the two children of each node, or two entrants' keys.
    nodes: Vec<[u64; 2]>,
    /// Nodes that hold entrants are numbered from here.
    leaves: usize,
}

impl Tournament {
    /// Starts with the given keys; the largest key means that an entrant does not take part.
    pub(crate) fn start(&mut self, keys: impl ExactSizeIterator<Item = u64>) {
        self.leaves = keys.len().div_ceil(2).next_power_of_two();
        self.nodes.clear();
        self.nodes.resize(2 * self.leaves, [u64::MAX; 2]);
        let (inner, leaves) = self.nodes.split_at_mut(self.leaves);
        for (leaf, key) in leaves.as_flattened_mut().iter_mut().zip(keys) {
            *leaf = key;
        }
        let mut level = leaves;
        let mut inner = inner;
        while inner.len() > 1 {
            let (rest, parents) = inner.split_at_mut(inner.len() / 2);
            for (parent, children) in parents.iter_mut().zip(level.chunks_exact(2)) {
                *parent = [children[0][0].min(children[0][1]), children[1][0].min(children[1][1])];
            }
            (inner, level) = (rest, parents);
        }
    }

    /// The least key; `u64::MAX` if nobody takes part.
    #[inline]
    pub(crate) fn top(&self) -> u64 {
        self.nodes[1][0].min(self.nodes[1][1])
    }

    /// Changes the key of an entrant; returns the least key.
    #[inline]
    pub(crate) fn set(&mut self, entrant: usize, key: u64) -> u64 {
        let nodes = self.nodes.as_mut_slice();
        let (mut node, mut side, mut least) = (self.leaves + entrant / 2, entrant % 2, key);
        while node > 0 {
            // What is compared with does not depend on what was just written: it can be loaded long before.
            let pair = &mut nodes[node];
            let other = pair[1 - side];
            pair[side] = least;
            least = least.min(other);
            side = node % 2;
            node /= 2;
        }
        least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, shift: u32) -> Vec<u64> {
        let mut state = 1u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> shift
        };
        (0..n).map(next).collect()
    }

    #[test]
    fn keys_are_sorted_however_coarse_the_first_step() {
        for (n, shift, by) in [(1000, 7, 41), (300, 40, 16), (300, 40, 8), (2000, 30, 63), (10, 7, 41)] {
            let mut keys = numbers(n, shift);
            let mut sorted = keys.clone();
            sorted.sort_unstable();
            sort_keys(&mut keys, &mut Vec::new(), |key| (key >> by) as u16);
            assert_eq!(keys, sorted, "{n} {shift} {by}");
        }
    }

    #[test]
    fn tournament_knows_the_least() {
        for n in [1, 2, 3, 5, 8] {
            let mut tournament = Tournament::default();
            let mut keys: Vec<u64> = (0..n as u64).map(|i| (i * 7 + 3) % 11).collect();
            tournament.start(keys.iter().copied());
            for step in 0..40 {
                assert_eq!(tournament.top(), *keys.iter().min().unwrap());
                let entrant = (step * 5) % n;
                keys[entrant] = (step as u64 * 13) % 17;
                assert_eq!(tournament.set(entrant, keys[entrant]), *keys.iter().min().unwrap());
            }
        }
    }
}
