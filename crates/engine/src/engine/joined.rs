//! Several compute streams that count as one.

use std::sync::Arc;

use eplb_comm::{CommError, Fence, FenceState, Stream};
use eplb_core::SlotCommit;

/// All streams of a rank that read slots or maps (two batches at once, pipeline stages, a draft model), as one: a commit waits for
/// what was enqueued on any of them, and what is enqueued on any of them later waits for the commit. The copies run on the first.
#[derive(Debug)]
pub struct JoinedStreams {
    first: Box<dyn Stream>,
    others: Vec<Box<dyn Stream>>,
}

impl JoinedStreams {
    /// The first stream carries the copies of commits.
    pub fn new(first: Box<dyn Stream>, others: Vec<Box<dyn Stream>>) -> Self {
        Self { first, others }
    }
}

/// Passed when all are.
#[derive(Debug)]
struct All(Vec<Fence>);

impl FenceState for All {
    fn poll(&self) -> Result<bool, CommError> {
        for fence in &self.0 {
            if !fence.poll()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Stream for JoinedStreams {
    fn commit(&mut self, commits: &[SlotCommit]) -> Result<Fence, CommError> {
        for other in &mut self.others {
            let before = other.record()?;
            self.first.wait(&before)?;
        }
        let done = self.first.commit(commits)?;
        for other in &mut self.others {
            other.wait(&done)?;
        }
        Ok(done)
    }

    fn record(&mut self) -> Result<Fence, CommError> {
        let mut fences = vec![self.first.record()?];
        for other in &mut self.others {
            fences.push(other.record()?);
        }
        Ok(Fence::new(Arc::new(All(fences))))
    }

    fn wait(&mut self, fence: &Fence) -> Result<(), CommError> {
        self.first.wait(fence)?;
        self.others.iter_mut().try_for_each(|other| other.wait(fence))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use eplb_comm::Place;
    use eplb_comm::fault::{FaultyStream, StreamFault, Strike};
    use eplb_comm::host::{Content, HostMemory, HostStream, StreamOptions};
    use eplb_core::{ExpertId, Fill, LayerId, ModelLayout, RankId, SlotId, TensorLayout};

    use super::*;

    /// Longest wait for anything.
    const LONG: Duration = Duration::from_secs(20);

    /// Two streams on one memory; slot 0 is read by a pass on the second until `go` is told, and a commit is to overwrite it. The pass goes on until
    /// that has come too early, `patience` at most. Whether it found the old expert to its end.
    fn commit_behind_a_pass(patience: Duration, plant: impl Fn(HostStream) -> Box<dyn Stream>) -> bool {
        let layout = Arc::new(ModelLayout::new(vec![vec![TensorLayout::contiguous("w", 64)]]).unwrap());
        let memory = HostMemory::new(RankId(0), layout, 0..2, 64).unwrap();
        let (slot, other) = (Place::slot(LayerId(0), SlotId(0)), SlotId(1));
        memory.fill(LayerId(0), SlotId(0), ExpertId(3)).unwrap();
        memory.fill(LayerId(0), other, ExpertId(5)).unwrap();
        let stream = || HostStream::new(memory.clone(), StreamOptions::default()).unwrap();
        let (first, mut second) = (stream(), stream());
        let (go, gone) = channel::<()>();
        let (tell, told) = channel();
        second.run(move |memory| {
            let _ = gone.recv_timeout(2 * LONG);
            let found = memory.content(slot)?.0;
            let _ = tell.send(found == Content::Expert(ExpertId(3)));
            Ok(())
        });
        let mut joined = JoinedStreams::new(plant(first), vec![Box::new(second)]);
        let commit = SlotCommit {
            layer: LayerId(0),
            slot: SlotId(0),
            fill: Fill::FromSlot { expert: ExpertId(5), slot: other },
        };
        let done = joined.commit(&[commit]).unwrap();
        let end = Instant::now() + patience;
        while memory.content(slot).unwrap().0 != Content::Expert(ExpertId(5)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        go.send(()).unwrap();
        done.wait(RankId(0), "the commit", Instant::now() + LONG).unwrap();
        assert_eq!(memory.content(slot).unwrap().0, Content::Expert(ExpertId(5)));
        let all = joined.record().unwrap();
        all.wait(RankId(0), "both streams", Instant::now() + LONG).unwrap();
        told.recv().unwrap()
    }

    #[test]
    fn a_commit_waits_for_passes_on_every_stream() {
        assert!(commit_behind_a_pass(Duration::from_millis(50), |first| Box::new(first)));
    }

    #[test]
    fn a_fence_that_is_left_out_is_noticed() {
        let planted = |first| -> Box<dyn Stream> {
            Box::new(FaultyStream::new(first, StreamFault::WaitSkipped, Strike::Always, 1))
        };
        assert!(!commit_behind_a_pass(LONG, planted));
    }
}
