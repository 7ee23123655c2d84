//! Waves that name what does not exist.

use std::sync::Arc;

use eplb_core::{Landing, LayerId, RankId, SlotId, Transfer};

use super::scene::{Scene, sort};
use super::{Backend, Setup, Stage, Violation};
use crate::communicator::Carried;
use crate::error::CommError;
use crate::fence::Fence;

/// Bad transfers, each with rank 1 at the end that must notice.
fn bad(scene: &Scene<'_>) -> Vec<(&'static str, Transfer)> {
    let good = scene.transfer(0, (0, 0), (1, 2), Landing::InPlace);
    let none = RankId::at(scene.world() + 3);
    let staging = scene.setup.staging_bytes;
    let staged = |offset| Transfer { landing: Landing::Staged { offset }, ..good };
    let back = scene.transfer(0, (1, 0), (0, 2), Landing::InPlace);
    vec![
        ("a source rank", Transfer { source: none, ..good }),
        ("a destination rank", Transfer { dest: none, ..back }),
        ("a layer", Transfer { layer: LayerId::at(scene.layers()), ..good }),
        ("a source slot", Transfer { source_slot: SlotId(u32::MAX), ..good }),
        ("a slot of another rank as the source", Transfer { source_slot: scene.slot(1, 0), ..good }),
        ("a destination slot", Transfer { dest_slot: SlotId(u32::MAX), ..good }),
        ("a slot of another rank as the destination", Transfer { dest_slot: scene.slot(0, 1), ..good }),
        ("staging past its end", staged(staging)),
        ("staging across its end", staged(staging - 16)),
        ("staging at the end of the address space", staged(usize::MAX - 15)),
    ]
}

pub(super) fn refused(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    for (what, bad) in bad(&scene) {
        // Beside it a good transfer inside rank 1, which must not be carried either.
        let mut wave = vec![scene.transfer(0, (1, 0), (1, 1), Landing::InPlace), bad];
        sort(&mut wave);
        let wave: Arc<[Transfer]> = wave.into();
        let deadline = scene.deadline();
        match scene.ranks[1].communicator.submit(&wave, Fence::passed(), deadline) {
            Err(CommError::NoSuchPlace { .. }) => {}
            found => return Err(scene.violation(format!("{what} that does not exist: {found:?}"))),
        }
    }
    scene.verify_quiet()?;
    let carried = scene.ranks[1].communicator.carried();
    if carried != Carried::default() {
        return Err(scene.violation(format!("refused waves were carried: {carried:?}")));
    }
    let wave = scene.ring();
    scene.run(wave)
}
