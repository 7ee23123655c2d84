//! A rank that is a process: carries out what its parent says, until the parent's pipe ends.

use std::collections::HashMap;
use std::io::{stdin, stdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::conformance::RankMemory;
use eplb_comm::host::{HostFence, HostMemory};
use eplb_comm::store::{Deadlines, TcpStore};
use eplb_comm::{CommError, Communicator, Fence, Progress, Ticket};
use eplb_comm_gloo::{GlooCommunicator, Options};
use eplb_core::{ExpertId, LayerId, ModelLayout, RankId, SlotId, TensorLayout};

use crate::wire::Frame;

pub(crate) const SETUP: u64 = 0;
pub(crate) const SUBMIT: u64 = 1;
pub(crate) const GATE: u64 = 2;
pub(crate) const POLL: u64 = 3;
pub(crate) const DONE: u64 = 4;
pub(crate) const FENCE: u64 = 5;
pub(crate) const ABORT: u64 = 6;
pub(crate) const CARRIED: u64 = 7;
pub(crate) const FILL: u64 = 8;
pub(crate) const READ: u64 = 9;
pub(crate) const REBUILD: u64 = 10;

struct Child {
    communicator: Option<GlooCommunicator>,
    memory: Arc<HostMemory>,
    gates: HashMap<u64, Arc<HostFence>>,
    /// Fences that were handed out: of `done` by ticket, of `abort` as `u64::MAX`.
    fences: HashMap<u64, Fence>,
}

/// The child's whole life.
pub(crate) fn live() {
    let mut first = Frame::receive(&mut stdin().lock()).unwrap();
    assert_eq!(first.take(), SETUP);
    let mut child = set_up(&mut first);
    Frame::new(0).send(&mut stdout().lock()).unwrap();
    while let Ok(mut frame) = Frame::receive(&mut stdin().lock()) {
        if let Some(reply) = child.answer(&mut frame) {
            reply.send(&mut stdout().lock()).unwrap();
        }
    }
}

fn set_up(frame: &mut Frame) -> Child {
    let (rank, world, store) = (frame.take_size(), frame.take_size(), frame.take_text());
    let slots = frame.take_size()..frame.take_size();
    let staging = frame.take_size();
    let layers = (0..frame.take_size())
        .map(|_| {
            (0..frame.take_size())
                .map(|_| TensorLayout {
                    name: frame.take_text(),
                    rows: frame.take_size(),
                    row_bytes: frame.take_size(),
                    pitch: frame.take_size(),
                    slot_stride: frame.take_size(),
                })
                .collect()
        })
        .collect();
    let layout = Arc::new(ModelLayout::new(layers).unwrap());
    let memory = HostMemory::new(RankId::at(rank), layout, slots, staging).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let store = TcpStore::connect(&store, None, &Deadlines::DEFAULT, deadline).unwrap();
    // Of a rank that cannot say in time why it closes its connections, the others would take it for the one that died.
    let options = Options { report: Duration::from_secs(20), ..Options::default() };
    let communicator = GlooCommunicator::connect(memory.clone(), world, Arc::new(store), options, deadline);
    let communicator = Some(communicator.unwrap());
    Child { communicator, memory, gates: HashMap::new(), fences: HashMap::new() }
}

fn outcome<T>(result: Result<T, CommError>, good: impl FnOnce(Frame, T) -> Frame) -> Frame {
    match result {
        Ok(value) => good(Frame::new(0), value),
        Err(error) => Frame::new(1).error(&error),
    }
}

impl Child {
    fn answer(&mut self, frame: &mut Frame) -> Option<Frame> {
        let Self { communicator: held, memory, gates, fences } = self;
        let communicator = held.as_mut().unwrap();
        Some(match frame.take() {
            SUBMIT => {
                let (gate, deadline) = (frame.take(), frame.take_moment());
                let wave: Vec<_> = (0..frame.take()).map(|_| frame.take_transfer()).collect();
                let after = match gate {
                    0 => Fence::passed(),
                    _ => gates.entry(gate).or_insert_with(HostFence::new).fence(),
                };
                outcome(communicator.submit(&wave.into(), after, deadline), |f, ticket| f.number(ticket.0))
            }
            GATE => {
                let gate = gates.entry(frame.take()).or_insert_with(HostFence::new);
                match frame.take() {
                    0 => gate.pass(),
                    _ => gate.fail(frame.take_error()),
                };
                return None;
            }
            POLL => outcome(communicator.poll(Ticket(frame.take())), |f, progress| {
                f.number(u64::from(progress == Progress::Done))
            }),
            DONE => {
                let ticket = frame.take();
                outcome(communicator.done(Ticket(ticket)), |f, fence| {
                    fences.insert(ticket, fence);
                    f
                })
            }
            FENCE => outcome(fences[&frame.take()].poll(), |f, passed| f.number(passed.into())),
            ABORT => {
                fences.insert(u64::MAX, communicator.abort(&frame.take_text()));
                Frame::new(0)
            }
            CARRIED => {
                let carried = communicator.carried();
                Frame::new(0).number(carried.link_bytes).number(carried.local_bytes).number(carried.transfers)
            }
            FILL => {
                let (layer, slot, expert) = (frame.take_size(), frame.take_size(), frame.take_size());
                outcome(
                    RankMemory::fill(memory, LayerId::at(layer), SlotId::at(slot), ExpertId::at(expert)),
                    |f, ()| f,
                )
            }
            READ => outcome(RankMemory::read(memory, frame.take_place()), |f, tensors| {
                tensors.iter().fold(f.number(tensors.len() as u64), |f, tensor| f.raw(tensor))
            }),
            REBUILD => {
                let old = held.take().unwrap();
                *held = Some(old.rebuild(Instant::now() + Duration::from_secs(30)).unwrap());
                Frame::new(0)
            }
            other => panic!("request {other}"),
        })
    }
}
