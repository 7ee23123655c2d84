//! What lands where, and how it is counted.

use eplb_core::{Landing, LayerId, Transfer};

use super::scene::{Scene, sort};
use super::{Backend, Setup, Stage, Violation};
use crate::communicator::Carried;

/// A wave of every kind of transfer: to the next ranks and inside the rank, in place and staged, one expert to several
/// ranks.
fn every_kind(scene: &Scene<'_>) -> Vec<Transfer> {
    let world = scene.world();
    let mut wave = scene.ring();
    for rank in 0..world {
        let mut offset = 0;
        for layer in 0..scene.layers() {
            let staged_bytes = scene.setup.layouts[rank].layer(LayerId::at(layer)).staged_bytes();
            // The same expert as the ring's, to a third rank; and one from inside the rank.
            for source in [(rank + world - 1) % world, rank] {
                wave.push(scene.transfer(layer, (source, 0), (rank, 0), Landing::Staged { offset }));
                offset += staged_bytes;
            }
        }
    }
    sort(&mut wave);
    wave
}

pub(super) fn bytes(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    for setup in Setup::all(stage.options.ranks).map_err(|error| stage.violation(error.to_string()))? {
        let mut scene = Scene::new(stage, backend, Ok(setup))?;
        scene.run(every_kind(&scene))?;
        // What arrived is sent on: slot 1 of a rank to slot 2 of the one before.
        let world = scene.world();
        let on = |scene: &Scene<'_>, layer, rank| {
            scene.transfer(layer, (rank, 1), ((rank + world - 1) % world, 2), Landing::InPlace)
        };
        let mut wave: Vec<Transfer> = (0..scene.layers())
            .flat_map(|l| (0..world).map(move |r| (l, r)))
            .map(|(l, r)| on(&scene, l, r))
            .collect();
        sort(&mut wave);
        scene.run(wave)?;
    }
    Ok(())
}

pub(super) fn alone(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(1))?;
    let staged = scene.setup.layouts[0].layer(LayerId(1)).staged_bytes();
    let mut wave = vec![
        scene.transfer(0, (0, 0), (0, 1), Landing::InPlace),
        scene.transfer(0, (0, 0), (0, 2), Landing::InPlace),
        scene.transfer(1, (0, 3), (0, 0), Landing::Staged { offset: staged }),
    ];
    sort(&mut wave);
    scene.run(wave)
}

pub(super) fn carried(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    let mut expected = vec![Carried::default(); scene.world()];
    for _ in 0..2 {
        let wave = every_kind(&scene);
        for transfer in &wave {
            let carried = &mut expected[transfer.dest.index()];
            let bytes = scene.setup.layouts[0].layer(transfer.layer).expert_bytes() as u64;
            *(if transfer.is_local() { &mut carried.local_bytes } else { &mut carried.link_bytes }) += bytes;
            carried.transfers += 1;
        }
        scene.run(wave)?;
        for (rank, expected) in expected.iter().enumerate() {
            let found = scene.ranks[rank].communicator.carried();
            if found != *expected {
                return Err(scene.violation(format!("rank {rank} counts {found:?}, carried {expected:?}")));
            }
        }
    }
    Ok(())
}
