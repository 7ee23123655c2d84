//! A small mixture of experts whose outputs show every byte of the weights that made them.

use eplb_comm::host::ReadGuard;
use eplb_comm::pattern;
use eplb_core::{ExpertId, LayerId, TensorLayout};
use eplb_trace::Trace;
use ndarray::Array2;

/// Numbers in a token's state.
pub(crate) const WIDTH: usize = 8;

/// Experts that a token chooses in a layer.
pub(crate) const TOP_K: usize = 2;

/// The state of a token.
pub(crate) type State = [f32; WIDTH];

/// Experts, what they compute, and which of them a token chooses.
#[derive(Debug)]
pub(crate) struct Model {
    /// Tensors of an expert.
    pub(crate) tensors: Vec<TensorLayout>,
    /// Sum over the bytes of every expert, computed from its name; `[layers][experts]`.
    sums: Vec<Vec<u64>>,
    /// Running sums of the experts' parts of the tokens, `[moments][L, E]`.
    chances: Vec<Array2<f64>>,
}

/// The finaliser of splitmix64: numbers that look random, the same everywhere.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Model {
    /// A model of the first `layers` layers of a trace, in whose steps experts are as popular as there.
    pub(crate) fn new(
        trace: &Trace,
        layers: usize,
        tensors: Vec<TensorLayout>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let layers = layers.min(trace.layers());
        let expert = |layer, expert| {
            let mut all = Vec::new();
            for (at, tensor) in tensors.iter().enumerate() {
                let mut bytes = vec![0; tensor.expert_bytes()];
                pattern::fill(LayerId::at(layer), ExpertId::at(expert), at, 0, &mut bytes);
                all.extend(bytes);
            }
            sum_of(all)
        };
        let experts = trace.experts();
        let sums = (0..layers).map(|l| (0..experts).map(|e| expert(l, e)).collect()).collect();
        let mut chances = Vec::new();
        for step in 0..trace.steps() {
            let mut sums = trace.step(step)?.slice(ndarray::s![..layers, ..]).to_owned();
            for mut row in sums.rows_mut() {
                let mut sum = 0.0;
                for value in &mut row {
                    // No expert is left out altogether.
                    sum += *value + 1e-3;
                    *value = sum;
                }
            }
            chances.push(sums);
        }
        Ok(Self { tensors, sums, chances })
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.sums.len()
    }

    /// Number of experts of a layer.
    pub(crate) fn experts(&self) -> usize {
        self.sums[0].len()
    }

    /// Number of moments, between which the popularity of experts changes.
    pub(crate) fn moments(&self) -> usize {
        self.chances.len()
    }

    /// The state that a token begins with.
    pub(crate) fn embed(token: u64) -> State {
        std::array::from_fn(|i| (mix(token.wrapping_add(i as u64 * 77)) % 2001) as f32 / 1000.0 - 1.0)
    }

    /// The experts that a token chooses in a layer, different ones, with their weights.
    pub(crate) fn route(&self, moment: usize, token: u64, layer: usize) -> Vec<(usize, f32)> {
        let sums = self.chances[moment % self.moments()].row(layer);
        let total = sums[self.experts() - 1];
        let mut chosen: Vec<(usize, f32)> = Vec::with_capacity(TOP_K);
        let mut draw = mix(token ^ ((layer as u64 + 1) << 48));
        while chosen.len() < TOP_K {
            draw = mix(draw.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let point = (draw >> 11) as f64 / (1u64 << 53) as f64 * total;
            let expert = sums.iter().position(|&sum| point < sum).unwrap_or(self.experts() - 1);
            if chosen.iter().all(|&(other, _)| other != expert) {
                chosen.push((expert, 1.0 / (chosen.len() + 2) as f32));
            }
        }
        chosen
    }

    /// The sum over the bytes of a slot.
    pub(crate) fn sum_of_slot(slot: &ReadGuard) -> u64 {
        let tensors = slot.layout().tensors().len();
        sum_of((0..tensors).flat_map(|tensor| slot.rows(tensor)).flatten().copied())
    }

    /// The sum over the bytes that an expert must have.
    pub(crate) fn sum_of_expert(&self, layer: usize, expert: usize) -> u64 {
        self.sums[layer][expert]
    }

    /// The states of a token after each layer, without any placement: what every run must come to.
    pub(crate) fn expected(&self, moment: usize, token: u64) -> State {
        let mut state = Self::embed(token);
        for layer in 0..self.layers() {
            let chosen = self.route(moment, token, layer);
            let parts =
                chosen.iter().map(|&(expert, weight)| (weight, apply(self.sums[layer][expert], &state)));
            let parts: Vec<_> = parts.collect();
            combine(&mut state, &parts);
        }
        state
    }
}

/// A sum in which every byte and its position count, in whatever order they are taken: what the kernel of `card.rs` computes.
fn sum_of(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let part = |(at, byte)| mix((at as u64) << 8 | u64::from(byte));
    bytes.into_iter().enumerate().map(part).fold(0, u64::wrapping_add)
}

/// What an expert of a sum over its bytes makes of a state, the same in every batch.
pub(crate) fn apply(sum: u64, state: &State) -> State {
    std::array::from_fn(|at| {
        let drawn = mix(sum ^ mix(u64::from(state[at].to_bits()) << 8 | at as u64));
        (drawn >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// Tensors of a small expert: with and without gaps, and of an odd size.
pub(crate) fn small_tensors() -> Vec<TensorLayout> {
    vec![
        TensorLayout::contiguous("w13", 192),
        TensorLayout { name: "w2".into(), rows: 4, row_bytes: 24, pitch: 32, slot_stride: 128 },
        TensorLayout::contiguous("scale", 5),
    ]
}

/// Adds what the experts made to a state, in the order of the choices.
pub(crate) fn combine(state: &mut State, parts: &[(f32, State)]) {
    for (i, value) in state.iter_mut().enumerate() {
        for (weight, part) in parts {
            *value += weight * part[i];
        }
        *value /= 1.0 + value.abs();
    }
}
