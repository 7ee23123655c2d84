//! Waves that are given up.

use std::sync::{Arc, mpsc};

use eplb_core::{Landing, Transfer};

use super::scene::{Scene, sort};
use super::{Backend, Setup, Stage, Violation};
use crate::communicator::{Progress, Ticket};
use crate::error::CommError;
use crate::fence::Fence;
use crate::host::HostFence;

/// An open wave must fail with the abort; one that ended before may say so.
fn fails(scene: &mut Scene<'_>, tickets: &[Ticket], may_be_done: bool) -> Result<(), Violation> {
    for (rank, &ticket) in tickets.iter().enumerate() {
        match scene.poll(rank, ticket) {
            Err(CommError::Aborted { rank: named, .. }) if named.index() == rank => {}
            Ok(Progress::Done) if may_be_done => {}
            found => return Err(scene.violation(format!("rank {rank}, poll after abort: {found:?}"))),
        }
        let empty: Arc<[Transfer]> = Arc::new([]);
        let deadline = scene.deadline();
        match scene.ranks[rank].communicator.submit(&empty, Fence::passed(), deadline) {
            Err(CommError::Aborted { .. }) => {}
            found => return Err(scene.violation(format!("rank {rank}, submit after abort: {found:?}"))),
        }
    }
    Ok(())
}

pub(super) fn gated(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    let wave: Arc<[Transfer]> = scene.ring().into();
    let gate = HostFence::new();
    let tickets = scene.submit(&wave, &gate.fence())?;
    scene.abort_all()?;
    gate.pass();
    scene.verify_quiet()?;
    fails(&mut scene, &tickets, false)?;
    // Again: nothing more to stop.
    scene.abort_all()?;
    scene.verify()
}

pub(super) fn running(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    // The abort comes at another moment each time.
    for round in 0..3u32 {
        let mut scene = Scene::new(stage, backend, Setup::heavy(stage.options.ranks))?;
        let world = scene.world();
        let mut wave = Vec::new();
        for rank in 0..world {
            for slot in 1..4 {
                wave.push(scene.transfer(0, ((rank + slot) % world, 0), (rank, slot), Landing::InPlace));
            }
        }
        sort(&mut wave);
        let tickets = scene.submit(&wave.into(), &Fence::passed())?;
        std::thread::sleep(std::time::Duration::from_micros(100) * round);
        scene.abort_all()?;
        let quiet = scene.snapshot()?;
        std::thread::sleep(scene.stage.options.watch);
        if scene.snapshot()? != quiet {
            return Err(scene.violation("bytes changed after the fence of the abort was passed"));
        }
        fails(&mut scene, &tickets, true)?;
    }
    Ok(())
}

pub(super) fn dropped(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    let wave: Arc<[Transfer]> = scene.ring().into();
    let gate = HostFence::new();
    scene.submit(&wave, &gate.fence())?;
    let mut memories = Vec::new();
    let mut communicators = Vec::new();
    for rank in std::mem::take(&mut scene.ranks) {
        memories.push(rank.memory);
        communicators.push(rank.communicator);
    }
    let (send, receive) = mpsc::channel::<()>();
    let ended = std::thread::Builder::new().name("drop".into()).spawn(move || {
        drop(communicators);
        // Nobody listens once the check has given up.
        let _ = send.send(());
    });
    ended.map_err(|error| scene.violation(error))?;
    match receive.recv_timeout(stage.options.patience) {
        Ok(()) => Ok(()),
        Err(_) => Err(scene.violation("dropping communicators with an open wave did not end")),
    }
}
