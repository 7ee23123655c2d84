//! Tickets and their ends.

use std::sync::Arc;

use eplb_core::{Landing, Transfer};

use super::scene::Scene;
use super::{Backend, Setup, Stage, Violation};
use crate::communicator::{Progress, Ticket};
use crate::error::CommError;
use crate::fence::Fence;
use crate::host::HostFence;

fn unknown(scene: &mut Scene<'_>, rank: usize, ticket: Ticket) -> Result<(), Violation> {
    let polled = scene.poll(rank, ticket).map(|_| ());
    let fence = scene.ranks[rank].communicator.done(ticket).map(|_| ());
    for (call, found) in [("poll", polled), ("done", fence)] {
        match found {
            Err(CommError::UnknownTicket { ticket: named, .. }) if named == ticket.0 => {}
            found => return Err(scene.violation(format!("{call} of a ticket never issued: {found:?}"))),
        }
    }
    Ok(())
}

pub(super) fn tickets(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    let world = scene.world();
    for rank in 0..world {
        unknown(&mut scene, rank, Ticket(u64::MAX))?;
    }
    let to = |scene: &Scene<'_>, slot: usize| -> Arc<[Transfer]> {
        (0..world)
            .map(|rank| scene.transfer(0, (rank, 0), ((rank + 1) % world, slot), Landing::InPlace))
            .collect()
    };
    let (held, free, last) = (to(&scene, 1), to(&scene, 2), to(&scene, 3));
    let gate = HostFence::new();
    let helds = scene.submit(&held, &gate.fence())?;
    let frees = scene.submit(&free, &Fence::passed())?;
    scene.finish(&frees)?;
    scene.landed(&free);
    scene.verify()?;
    for rank in 0..world {
        let again = (scene.poll(rank, frees[rank]), scene.poll(rank, helds[rank]));
        if again != (Ok(Progress::Done), Ok(Progress::Pending)) {
            return Err(scene.violation(format!("rank {rank}: done and held waves say {again:?}")));
        }
    }
    let lasts = scene.submit(&last, &Fence::passed())?;
    for rank in 0..world {
        if !(helds[rank] < frees[rank] && frees[rank] < lasts[rank]) {
            let found = (helds[rank], frees[rank], lasts[rank]);
            return Err(scene.violation(format!("rank {rank}: tickets do not rise: {found:?}")));
        }
    }
    scene.finish(&lasts)?;
    scene.landed(&last);
    gate.pass();
    scene.finish(&helds)?;
    scene.landed(&held);
    scene.verify()
}

pub(super) fn empty(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    scene.run(Vec::new())?;
    // Only rank 1 receives.
    let wave = vec![scene.transfer(0, (0, 0), (1, 1), Landing::InPlace)];
    scene.run(wave)
}
