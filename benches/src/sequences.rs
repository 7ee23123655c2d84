//! Traffic made of recorded domains, for planners that are judged on the steps to come.
//!
//! Every step of a domain is used once, so that what a plan is judged on is not in its window. The mixtures are
//! made up; the loads are recorded.

use eplb_trace::{Trace, TraceError};
use ndarray::{Array3, Axis, Slice};

/// Requests in a step of a mixture.
const REQUESTS: usize = 32;

/// Requests in a recorded step.
const RECORDED: f64 = 16.0;

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    /// A number from 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// Parts of domains that sum to 1, some large and some small.
    fn mix(&mut self, domains: usize) -> Vec<f64> {
        let parts: Vec<f64> = (0..domains).map(|_| self.unit().max(1e-9).ln().powi(2) + 0.02).collect();
        let sum: f64 = parts.iter().sum();
        parts.iter().map(|part| part / sum).collect()
    }
}

fn counts(domains: &[Trace]) -> Result<Vec<Array3<f64>>, TraceError> {
    domains.iter().map(|d| Ok(d.loads(0..d.steps())?.window().clone())).collect()
}

/// Mixtures that drift, stay, switch, or take turns, for 25 to 54 steps each; as long as the domains, which must be equally
/// long.
///
/// # Errors
/// A trace that cannot be read.
pub fn mixture(domains: &[Trace], seed: u64) -> Result<Trace, TraceError> {
    let counts = counts(domains)?;
    let mut random = Random(seed.wrapping_mul(7919));
    let kinds = counts.len();
    let mut made = counts[0].clone();
    let steps = made.len_of(Axis(0));
    let mut mix = random.mix(kinds);
    let first: Vec<usize> = counts.iter().map(|_| 37 * random.below(4)).collect();
    let (mut from, mut to, mut other) = (mix.clone(), mix.clone(), mix.clone());
    let (mut kind, mut length, mut left, mut turn) = (3, 1, 0, 1);
    for step in 0..steps {
        if left == 0 {
            kind = if step == 0 { 3 } else { random.below(4) };
            length = 25 + random.below(30);
            left = length;
            from = mix.clone();
            (to, other) = (random.mix(kinds), random.mix(kinds));
            turn = 6 + random.below(8);
        }
        let at = length - left;
        mix = match kind {
            0 => {
                let part = at as f64 / length as f64;
                from.iter().zip(&to).map(|(from, to)| from * (1.0 - part) + to * part).collect()
            }
            1 => to.clone(),
            2 => if (at / turn).is_multiple_of(2) { &to } else { &other }.clone(),
            _ => from.clone(),
        };
        left -= 1;
        let mut requests = vec![0usize; kinds];
        for _ in 0..REQUESTS {
            let (mut point, mut domain) = (random.unit(), 0);
            while domain + 1 < kinds && point >= mix[domain] {
                point -= mix[domain];
                domain += 1;
            }
            requests[domain] += 1;
        }
        let mut row = made.index_axis_mut(Axis(0), step);
        row.fill(0.0);
        for (domain, &requests) in requests.iter().enumerate() {
            let at = (step + first[domain]) % counts[domain].len_of(Axis(0));
            row.scaled_add(requests as f64 / RECORDED, &counts[domain].index_axis(Axis(0), at));
        }
        row.mapv_inplace(f64::round);
    }
    Trace::new(format!("mixture {seed}"), &made, None)
}

/// The domains in turn, a stream of each at a time. A planner is told where one ends (windows do not cross), not what comes.
///
/// # Errors
/// A trace that cannot be read.
pub fn in_turn(domains: &[Trace]) -> Result<Trace, TraceError> {
    let counts = counts(domains)?;
    let (mut parts, mut stream) = (Vec::new(), Vec::new());
    let most = domains.iter().map(|d| d.segments().len()).max().unwrap_or(0);
    for nth in 0..most {
        for (domain, counts) in domains.iter().zip(&counts) {
            if let Some(segment) = domain.segments().get(nth) {
                stream.resize(stream.len() + segment.len(), parts.len() as i64);
                parts.push(counts.slice_axis(Axis(0), Slice::from(segment.clone())));
            }
        }
    }
    // Domains of one model have one shape.
    let made = ndarray::concatenate(Axis(0), &parts)
        .map_err(|error| TraceError::Spec { field: "domains", reason: error.to_string() })?;
    Trace::new("domains in turn", &made, Some(stream))
}
