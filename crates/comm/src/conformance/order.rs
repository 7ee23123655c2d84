//! What waits for what.

use std::sync::{Arc, mpsc};

use eplb_core::{Landing, RankId, Transfer};

use super::scene::{Scene, sort};
use super::{Backend, Rank, Setup, Stage, Violation};
use crate::communicator::{Progress, Ticket};
use crate::error::CommError;
use crate::fence::Fence;
use crate::host::HostFence;

type Submitted = (Vec<Rank>, Result<Vec<Ticket>, CommError>);

/// Submits on all ranks from another thread, so that a `submit` that blocks is seen and not joined.
fn submit_watched(
    scene: &mut Scene<'_>,
    wave: &Arc<[Transfer]>,
    after: &Fence,
) -> Result<Vec<Ticket>, Violation> {
    let (send, receive) = mpsc::channel::<Submitted>();
    let mut ranks = std::mem::take(&mut scene.ranks);
    // Later than this check gives up, so that a submit that waits for the deadline is seen to block.
    let deadline = scene.deadline() + scene.stage.options.patience;
    let (wave, after) = (wave.clone(), after.clone());
    let submit = move || {
        let submitted =
            ranks.iter_mut().map(|rank| rank.communicator.submit(&wave, after.clone(), deadline)).collect();
        // Nobody listens once the check has given up.
        let _ = send.send((ranks, submitted));
    };
    let started = std::thread::Builder::new().name("submit".into()).spawn(submit);
    started.map_err(|error| scene.violation(error))?;
    match receive.recv_timeout(scene.stage.options.patience) {
        Ok((ranks, tickets)) => {
            scene.ranks = ranks;
            tickets.map_err(|error| scene.violation(error))
        }
        Err(_) => Err(scene.violation("submit did not return while its fence was closed")),
    }
}

pub(super) fn in_flight(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    let wave: Arc<[Transfer]> = scene.ring().into();
    let gate = HostFence::new();
    let tickets = submit_watched(&mut scene, &wave, &gate.fence())?;
    let fences: Vec<Fence> = (0..scene.world())
        .map(|rank| scene.ranks[rank].communicator.done(tickets[rank]))
        .collect::<Result<_, _>>()
        .map_err(|error| scene.violation(error))?;
    // Nothing has moved: every slot still holds what it was filled with.
    scene.verify_quiet()?;
    for rank in 0..scene.world() {
        let found = (scene.poll(rank, tickets[rank]), fences[rank].poll());
        if found != (Ok(Progress::Pending), Ok(false)) {
            return Err(
                scene.violation(format!("rank {rank} behind a closed fence: {found:?}, must be pending"))
            );
        }
    }
    gate.pass();
    for (rank, fence) in fences.iter().enumerate() {
        let passed = fence.wait(RankId::at(rank), "the fence of done", scene.deadline());
        passed.map_err(|error| scene.violation(error))?;
    }
    scene.landed(&wave);
    scene.verify()?;
    scene.finish(&tickets)
}

pub(super) fn failed_fence(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let cause = CommError::Aborted { rank: RankId(0), cause: "planted".into() };
    // Failed before the submission, and after it.
    for late in [false, true] {
        let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
        let wave: Arc<[Transfer]> = scene.ring().into();
        let gate = HostFence::new();
        if !late {
            gate.fail(cause.clone());
        }
        let tickets = scene.submit(&wave, &gate.fence())?;
        gate.fail(cause.clone());
        for (rank, &ticket) in tickets.iter().enumerate() {
            scene.failure(rank, ticket)?;
        }
        scene.verify_quiet()?;
    }
    Ok(())
}

pub(super) fn chain(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    let world = scene.world();
    let layers = 0..scene.layers();
    let mut first: Vec<_> =
        layers.clone().map(|layer| scene.transfer(layer, (0, 0), (1, 1), Landing::InPlace)).collect();
    // The second wave sends on what the first one brings.
    let mut second: Vec<_> = layers
        .map(|layer| Transfer {
            expert: scene.expert(0, layer, scene.slot(0, 0)),
            ..scene.transfer(layer, (1, 1), (2 % world, 2), Landing::InPlace)
        })
        .collect();
    sort(&mut first);
    sort(&mut second);
    let (first, second): (Arc<[_]>, Arc<[_]>) = (first.into(), second.into());
    let gate = HostFence::new();
    let firsts = scene.submit(&first, &gate.fence())?;
    let between = scene.ranks[1].communicator.done(firsts[1]).map_err(|error| scene.violation(error))?;
    let seconds = scene.submit(&second, &between)?;
    scene.verify_quiet()?;
    gate.pass();
    scene.finish(&firsts)?;
    scene.finish(&seconds)?;
    scene.landed(&first);
    scene.landed(&second);
    scene.verify()
}
