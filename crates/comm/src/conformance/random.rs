//! Many random waves.

use eplb_core::{Landing, LayerId, Transfer};

use super::scene::{Scene, sort};
use super::{Backend, Setup, Stage, Violation};
use crate::random::Random;

/// A wave that writes some slots and some of staging, and reads only slots that it does not write.
fn wave(scene: &Scene<'_>, random: &mut Random) -> Vec<Transfer> {
    let mut wave = Vec::new();
    let mut offsets = vec![0; scene.world()];
    for layer in 0..scene.layers() {
        let staged_bytes = scene.setup.layouts[0].layer(LayerId::at(layer)).staged_bytes();
        let mut slots: Vec<(usize, usize)> = scene
            .setup
            .slots
            .iter()
            .enumerate()
            .flat_map(|(rank, s)| (0..s.len()).map(move |n| (rank, n)))
            .collect();
        random.shuffle(&mut slots);
        let (sources, dests) = slots.split_at(1 + random.below(slots.len() - 1));
        for &to in dests {
            let from = sources[random.below(sources.len())];
            if random.below(4) > 0 {
                wave.push(scene.transfer(layer, from, to, Landing::InPlace));
            } else if offsets[to.0] + staged_bytes <= scene.setup.staging_bytes {
                wave.push(scene.transfer(layer, from, to, Landing::Staged { offset: offsets[to.0] }));
                offsets[to.0] += staged_bytes;
            }
        }
    }
    sort(&mut wave);
    wave
}

pub(super) fn random(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut random = Random::new(stage.options.seed);
    let setups = Setup::all(stage.options.ranks).map_err(|error| stage.violation(error.to_string()))?;
    // The last setup is for the check of bytes: large.
    for setup in setups.into_iter().take(3) {
        let mut scene = Scene::new(stage, backend, Ok(setup))?;
        for _ in 0..stage.options.waves.div_ceil(3) {
            let wave = wave(&scene, &mut random);
            scene.run(wave)?;
        }
    }
    Ok(())
}
