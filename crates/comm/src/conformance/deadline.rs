//! Waves that end too late.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_core::Transfer;

use super::scene::Scene;
use super::{Backend, Setup, Stage, Violation};
use crate::communicator::Progress;
use crate::error::CommError;
use crate::fence::Fence;
use crate::host::HostFence;

const SOON: Duration = Duration::from_millis(30);

pub(super) fn deadline(stage: &Stage<'_>, backend: &mut dyn Backend) -> Result<(), Violation> {
    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    let wave: Arc<[Transfer]> = scene.ring().into();
    // A wave that ended in time stays done, however late one asks.
    let deadline = Instant::now() + 4 * SOON;
    let tickets: Vec<_> = (0..scene.world())
        .map(|rank| scene.submit_on(rank, &wave, Fence::passed(), deadline))
        .collect::<Result<_, _>>()?;
    let fence = scene.ranks[0].communicator.done(tickets[0]).map_err(|error| scene.violation(error))?;
    let mut in_time = false;
    while !in_time && Instant::now() < deadline {
        scene.ranks.iter_mut().zip(&tickets).skip(1).for_each(|(rank, &ticket)| {
            // Only to drive backends that move on when polled; what it says is asked below.
            let _ = rank.communicator.poll(ticket);
        });
        in_time = match fence.poll() {
            Ok(passed) => passed,
            // The deadline has passed since the look at the clock.
            Err(_) if Instant::now() >= deadline => break,
            Err(error) => return Err(scene.violation(error)),
        };
        std::thread::sleep(Duration::from_micros(50));
    }
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    let found = scene.poll(0, tickets[0]);
    if in_time && found != Ok(Progress::Done) {
        return Err(scene.violation(format!("ended before its deadline, but says {found:?}")));
    }

    let mut scene = Scene::new(stage, backend, Setup::plain(stage.options.ranks))?;
    let gate = HostFence::new();
    let deadline = Instant::now() + SOON;
    for rank in 0..scene.world() {
        let ticket = scene.submit_on(rank, &wave, gate.fence(), deadline)?;
        let fence = scene.ranks[rank].communicator.done(ticket).map_err(|error| scene.violation(error))?;
        let error = scene.failure(rank, ticket)?;
        let CommError::Timeout { rank: named, .. } = &error else {
            return Err(
                scene.violation(format!("rank {rank} behind a closed fence: {error:?}, not a timeout"))
            );
        };
        if named.index() != rank {
            return Err(scene.violation(format!("rank {rank} times out as {named}")));
        }
        // Once failed, always failed.
        let again = (scene.poll(rank, ticket), fence.poll());
        if !matches!(again, (Err(CommError::Timeout { .. }), Ok(false) | Err(_))) {
            return Err(scene.violation(format!("rank {rank} after its timeout: {again:?}")));
        }
    }
    scene.verify()?;
    scene.abort_all()?;
    // Opened too late: nothing may move any more.
    gate.pass();
    scene.verify_quiet()
}
