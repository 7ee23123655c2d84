//! The host twin of a compute stream.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use eplb_comm::fault::{FaultyStream, StreamFault, Strike};
use eplb_comm::host::{Content, HostFence, HostMemory, HostStream, StreamOptions, copy};
use eplb_comm::{CommError, Fence, FenceState, Place, Stream};
use eplb_core::{ExpertId, Fill, LayerId, ModelLayout, RankId, SlotCommit, SlotId, TensorLayout};

const L: LayerId = LayerId(0);

fn rank() -> (Arc<HostMemory>, HostStream) {
    let tensors = vec![TensorLayout::contiguous("w", 100), TensorLayout::contiguous("scale", 3)];
    let layout = Arc::new(ModelLayout::new(vec![tensors]).unwrap());
    let memory = HostMemory::new(RankId(3), layout, 8..12, 256).unwrap();
    for slot in 8..12 {
        memory.fill(L, SlotId(slot), ExpertId(slot)).unwrap();
    }
    let stream = HostStream::new(memory.clone(), StreamOptions::default()).unwrap();
    (memory, stream)
}

fn passed(fence: &Fence) -> Result<(), CommError> {
    fence.wait(RankId(3), "a fence of the test", Instant::now() + Duration::from_secs(30))
}

fn from_slot(slot: u32, source: u32, expert: u32) -> SlotCommit {
    let fill = Fill::FromSlot { expert: ExpertId(expert), slot: SlotId(source) };
    SlotCommit { layer: L, slot: SlotId(slot), fill }
}

fn staged(slot: u32, offset: usize, expert: u32) -> SlotCommit {
    let fill = Fill::Staged { expert: ExpertId(expert), offset };
    SlotCommit { layer: L, slot: SlotId(slot), fill }
}

/// Puts an expert into staging by way of a slot.
fn stage(memory: &Arc<HostMemory>, offset: usize, slot: u32) {
    let (source, mut dest) =
        (memory.read(Place::slot(L, SlotId(slot))).unwrap(), memory.write(Place::staged(L, offset)).unwrap());
    copy(&source, &mut dest, ExpertId(slot)).unwrap();
}

fn holds(memory: &Arc<HostMemory>, slot: u32, expert: u32) -> bool {
    let right = memory.count_wrong(L, SlotId(slot), ExpertId(expert)).unwrap() == 0;
    let named = memory.content(Place::slot(L, SlotId(slot))).unwrap().0 == Content::Expert(ExpertId(expert));
    assert_eq!(right, named, "bytes and name of slot {slot} disagree");
    right
}

#[test]
fn a_commit_copies_in_order() {
    let (memory, mut stream) = rank();
    // 8 and 9 change places, 8's expert by way of staging; 10 gets what 9 holds by then.
    stage(&memory, 128, 8);
    let swap = [from_slot(8, 9, 9), staged(9, 128, 8), from_slot(10, 9, 8)];
    let in_place = SlotCommit { layer: L, slot: SlotId(11), fill: Fill::InPlace(ExpertId(11)) };
    let empty = SlotCommit { layer: L, slot: SlotId(11), fill: Fill::Empty };
    let fence = stream.commit(&[swap.as_slice(), &[in_place, empty]].concat()).unwrap();
    passed(&fence).unwrap();
    assert!(holds(&memory, 8, 9) && holds(&memory, 9, 8) && holds(&memory, 10, 8) && holds(&memory, 11, 11));
}

#[test]
fn a_commit_that_names_no_place_enqueues_nothing() {
    let (memory, mut stream) = rank();
    for bad in [from_slot(12, 8, 8), from_slot(9, 7, 8), staged(9, 256, 8)] {
        let refused = stream.commit(&[from_slot(10, 8, 8), bad]);
        assert!(matches!(refused, Err(CommError::NoSuchPlace { .. })), "{refused:?}");
    }
    passed(&stream.record().unwrap()).unwrap();
    assert!(holds(&memory, 10, 10));
}

#[test]
fn later_work_waits_for_a_fence_and_earlier_work_does_not() {
    /// A fence of no known kind, which the stream must poll.
    #[derive(Debug)]
    struct Foreign(Arc<HostFence>);
    impl FenceState for Foreign {
        fn poll(&self) -> Result<bool, CommError> {
            self.0.poll()
        }
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }
    for foreign in [false, true] {
        let (memory, mut stream) = rank();
        let gate = HostFence::new();
        let fence = if foreign { Fence::new(Arc::new(Foreign(gate.clone()))) } else { gate.fence() };
        let before = stream.commit(&[from_slot(8, 9, 9)]).unwrap();
        stream.wait(&fence).unwrap();
        let after = stream.commit(&[from_slot(10, 11, 11)]).unwrap();
        let recorded = stream.record().unwrap();
        passed(&before).unwrap();
        // Long enough for a stream that does not wait to be found out.
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!((after.poll(), recorded.poll()), (Ok(false), Ok(false)));
        assert!(holds(&memory, 8, 9) && holds(&memory, 10, 10));
        gate.pass();
        passed(&recorded).unwrap();
        assert_eq!(after.poll(), Ok(true));
        assert!(holds(&memory, 10, 11));
    }
}

#[test]
fn the_first_failure_fails_all_that_follows() {
    type Break = fn(&Arc<HostMemory>, &mut HostStream) -> Fence;
    let breaks: [(Break, &str); 5] = [
        (|_, stream| stream.commit(&[from_slot(8, 9, 77)]).unwrap(), "holds expert 9, not expert 77"),
        (|_, stream| stream.commit(&[staged(8, 0, 9)]).unwrap(), "holds nothing, not expert 9"),
        (|_, stream| stream.commit(&[from_slot(9, 9, 9)]).unwrap(), "cannot be written: it has a reader"),
        (|_, stream| stream.run(|_| panic!("a planted panic")), "a planted panic"),
        (
            |_, stream| {
                let gate = HostFence::new();
                gate.fail(CommError::Aborted { rank: RankId(3), cause: "a planted failure".into() });
                stream.wait(&gate.fence()).unwrap();
                stream.record().unwrap()
            },
            "a planted failure",
        ),
    ];
    for (breaks, says) in breaks {
        let (memory, mut stream) = rank();
        let good = stream.record().unwrap();
        let broken = breaks(&memory, &mut stream);
        let later = stream.commit(&[from_slot(10, 11, 11)]).unwrap();
        let cause = passed(&broken).unwrap_err();
        assert!(cause.to_string().contains(says), "{cause}");
        assert_eq!(passed(&later), Err(cause));
        assert_eq!(passed(&good), Ok(()));
        assert!(holds(&memory, 10, 10), "work after a failure ran");
    }
}

#[test]
fn a_commit_over_a_slot_that_is_read_is_refused() {
    let (memory, mut stream) = rank();
    let reader = memory.read(Place::slot(L, SlotId(8))).unwrap();
    let cause = passed(&stream.commit(&[from_slot(8, 9, 9)]).unwrap()).unwrap_err();
    assert!(matches!(cause, CommError::Conflict { wanted: "written", .. }), "{cause:?}");
    assert_eq!(reader.count_wrong(ExpertId(8)), 0);
}

#[test]
fn work_of_the_host_runs_in_order_with_commits() {
    let (_, mut stream) = rank();
    let steps = Arc::new(AtomicUsize::new(0));
    let mut last = Fence::passed();
    for step in 0..20usize {
        let seen = steps.clone();
        let expert = ExpertId(8 + (step % 2) as u32);
        // Even steps must see expert 8 in slot 10, odd ones expert 9: what the commit before them put there.
        last = stream.commit(&[from_slot(10, expert.0, expert.0)]).unwrap();
        last = {
            drop(last);
            stream.run(move |memory| {
                let slot = memory.read(Place::slot(L, SlotId(10)))?;
                slot.expect(expert)?;
                assert_eq!(slot.count_wrong(expert), 0);
                assert_eq!(seen.fetch_add(1, Ordering::Relaxed), step);
                Ok(())
            })
        };
    }
    passed(&last).unwrap();
    assert_eq!(steps.load(Ordering::Relaxed), 20);
}

/// Runs `work` on a thread, and fails the test if it does not end.
fn ends(what: &str, work: impl FnOnce() + Send + 'static) {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        work();
        send.send(()).unwrap();
    });
    assert!(receive.recv_timeout(Duration::from_secs(30)).is_ok(), "{what} did not end");
}

#[test]
fn dropping_ends_whatever_is_waited_for() {
    let (_, mut stream) = rank();
    let never = HostFence::new();
    stream.wait(&never.fence()).unwrap();
    let fences = [stream.commit(&[from_slot(8, 9, 9)]).unwrap(), stream.record().unwrap()];
    ends("a stream behind a fence that is never passed", move || drop(stream));
    for fence in fences {
        assert!(matches!(fence.poll(), Err(CommError::Aborted { .. })), "{:?}", fence.poll());
    }
    // The fence is passed when nobody waits any more.
    never.pass();
}

#[test]
fn dropping_ends_a_delay() {
    let (memory, _) = rank();
    let options = StreamOptions { delay: Duration::from_secs(3600) };
    let mut stream = HostStream::new(memory.clone(), options).unwrap();
    let fence = stream.commit(&[from_slot(8, 9, 9)]).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(fence.poll(), Ok(false), "a delayed completion came at once");
    ends("a delayed stream", move || drop(stream));
    assert!(matches!(fence.poll(), Err(CommError::Aborted { .. })));
    assert!(holds(&memory, 8, 8));
}

#[test]
fn planted_faults_of_a_stream_strike_as_told() {
    let commit = [from_slot(8, 9, 9), from_slot(10, 11, 11)];
    let run = |fault: StreamFault| {
        let (memory, stream) = rank();
        let mut stream = FaultyStream::new(stream, fault, Strike::Wave(1), 0);
        let log = stream.log();
        let gate = HostFence::new();
        passed(&stream.commit(&[]).unwrap()).unwrap();
        if fault == StreamFault::CommitFenceEarly {
            stream.wait(&gate.fence()).unwrap();
        }
        let fence = stream.commit(&commit).unwrap();
        passed(&fence).unwrap();
        let found = (holds(&memory, 8, 9), holds(&memory, 10, 11));
        assert_eq!(log.struck(), ["wave 1: commit"]);
        gate.pass();
        found
    };
    assert_eq!(run(StreamFault::CommitSkipped), (false, false));
    assert_eq!(run(StreamFault::LastCopySkipped), (true, false));
    assert_eq!(run(StreamFault::CommitFenceEarly), (false, false));

    let (memory, stream) = rank();
    let mut stream = FaultyStream::new(stream, StreamFault::WaitSkipped, Strike::Wave(0), 0);
    stream.wait(&HostFence::new().fence()).unwrap();
    passed(&stream.commit(&commit).unwrap()).unwrap();
    assert!(holds(&memory, 8, 9));
    assert_eq!(stream.log().struck(), ["wave 0: wait"]);
}
