//! A small mixture of experts whose outputs show every byte of the weights that made them.

use eplb_comm::host::ReadGuard;
use eplb_comm::pattern;
use eplb_core::{ExpertId, LayerId, TensorLayout};
use eplb_trace::Trace;
use ndarray::Array2;

/// Numbers in a token's state.
pub(crate) const WIDTH: usize = 8;

/// The state of a token.
pub(crate) type State = [f32; WIDTH];

/// Experts, what they compute, and which of them a token chooses.
#[derive(Debug)]
pub(crate) struct Model {
    /// Choices of a token in each layer.
    pub(crate) top_k: usize,
    /// Tensors of an expert.
    pub(crate) tensors: Vec<TensorLayout>,
    /// Bytes of every expert without gaps, computed from its name; `[layers][experts]`.
    bytes: Vec<Vec<Vec<u8>>>,
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
        top_k: usize,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let tensors = vec![
            TensorLayout::contiguous("w13", 192),
            TensorLayout { name: "w2".into(), rows: 4, row_bytes: 24, pitch: 32, slot_stride: 128 },
            TensorLayout::contiguous("scale", 5),
        ];
        let layers = layers.min(trace.layers());
        let expert = |layer, expert| {
            let mut all = Vec::new();
            for (at, tensor) in tensors.iter().enumerate() {
                let mut bytes = vec![0; tensor.expert_bytes()];
                pattern::fill(LayerId::at(layer), ExpertId::at(expert), at, 0, &mut bytes);
                all.extend(bytes);
            }
            all
        };
        let experts = trace.experts();
        let bytes = (0..layers).map(|l| (0..experts).map(|e| expert(l, e)).collect()).collect();
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
        Ok(Self { top_k, tensors, bytes, chances })
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.bytes.len()
    }

    /// Number of experts of a layer.
    pub(crate) fn experts(&self) -> usize {
        self.bytes[0].len()
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
        let mut chosen: Vec<(usize, f32)> = Vec::with_capacity(self.top_k);
        let mut draw = mix(token ^ ((layer as u64 + 1) << 48));
        while chosen.len() < self.top_k {
            draw = mix(draw.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let point = (draw >> 11) as f64 / (1u64 << 53) as f64 * total;
            let expert = sums.iter().position(|&sum| point < sum).unwrap_or(self.experts() - 1);
            if chosen.iter().all(|&(other, _)| other != expert) {
                chosen.push((expert, 1.0 / (chosen.len() + 2) as f32));
            }
        }
        chosen
    }

    /// What an expert makes of a state, from the bytes of a slot.
    pub(crate) fn by_slot(slot: &ReadGuard, state: &State) -> State {
        let tensors = slot.layout().tensors().len();
        apply((0..tensors).flat_map(|tensor| slot.rows(tensor)).flatten().copied(), state)
    }

    /// What an expert makes of a state, from the bytes that its name says.
    pub(crate) fn by_name(&self, layer: usize, expert: usize, state: &State) -> State {
        apply(self.bytes[layer][expert].iter().copied(), state)
    }

    /// The states of a token after each layer, without any placement: what every run must come to.
    pub(crate) fn expected(&self, moment: usize, token: u64) -> State {
        let mut state = Self::embed(token);
        for layer in 0..self.layers() {
            let chosen = self.route(moment, token, layer);
            let parts = chosen.iter().map(|&(expert, weight)| (weight, self.by_name(layer, expert, &state)));
            let parts: Vec<_> = parts.collect();
            combine(&mut state, &parts);
        }
        state
    }
}

/// Every byte has its part in one of the outputs, in a fixed order.
fn apply(bytes: impl Iterator<Item = u8>, state: &State) -> State {
    let mut out = [0.0f32; WIDTH];
    for (at, byte) in bytes.enumerate() {
        out[at % WIDTH] += f32::from(byte as i8) * state[at / WIDTH % WIDTH] / 128.0;
    }
    out
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
