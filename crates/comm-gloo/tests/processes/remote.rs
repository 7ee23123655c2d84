//! The parent's end: children as communicators and memories of the conformance suite.

use std::any::Any;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use eplb_comm::conformance::{Rank, RankMemory, Setup};
use eplb_comm::host::HostFence;
use eplb_comm::{Carried, CommError, Communicator, Fence, FenceState, Place, Progress, Ticket};
use eplb_core::{ExpertId, LayerId, RankId, SlotId, Transfer};

use crate::child;
use crate::wire::Frame;

/// The environment variable that makes a process a child.
pub(crate) const ROLE: &str = "EPLB_GLOO_TEST_CHILD";

/// A child process and the pipes to it. Ends with the last handle.
pub(crate) struct Link {
    process: Mutex<Child>,
    requests: Mutex<Box<dyn Write + Send>>,
    /// Locked for a whole call.
    replies: Mutex<Box<dyn Read + Send>>,
    gates: AtomicU64,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The pipe's end ends the child; one that is stopped or stuck is killed.
        *self.requests.get_mut().unwrap() = Box::new(std::io::sink());
        let process = self.process.get_mut().unwrap();
        let patience = Instant::now() + Duration::from_secs(10);
        while process.try_wait().unwrap().is_none() {
            if Instant::now() > patience {
                process.kill().unwrap();
                process.wait().unwrap();
                return;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

impl Link {
    fn tell(&self, frame: &Frame) {
        // A child that was killed on purpose hears nothing.
        let _ = frame.send(&mut *self.requests.lock().unwrap());
    }

    fn call(&self, frame: &Frame) -> Result<Frame, CommError> {
        let mut replies = self.replies.lock().unwrap();
        self.tell(frame);
        let mut reply = Frame::receive(&mut *replies).expect("the child lives");
        match reply.take() {
            0 => Ok(reply),
            _ => Err(reply.take_error()),
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        let pid = self.process.lock().unwrap().id();
        // SAFETY: a signal to a child of ours that was not waited for yet, so that its id is still its own.
        assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), signal) }, 0);
    }

    pub(crate) fn rebuild(&self) -> Result<(), CommError> {
        self.call(&Frame::new(child::REBUILD)).map(drop)
    }
}

/// Starts one child per rank of a setup.
pub(crate) fn start(setup: &Setup, store: SocketAddr) -> Vec<Arc<Link>> {
    let links: Vec<Arc<Link>> = (0..setup.slots.len()).map(|rank| spawn(setup, rank, store)).collect();
    for link in &links {
        let mut hello = Frame::receive(&mut *link.replies.lock().unwrap()).expect("the child starts");
        assert_eq!(hello.take(), 0);
    }
    links
}

fn spawn(setup: &Setup, rank: usize, store: SocketAddr) -> Arc<Link> {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .env(ROLE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (requests, replies) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
    let link = Arc::new(Link {
        process: Mutex::new(process),
        requests: Mutex::new(Box::new(std::io::BufWriter::new(requests))),
        replies: Mutex::new(Box::new(std::io::BufReader::new(replies))),
        gates: AtomicU64::new(1),
    });
    let (layout, slots) = (&setup.layouts[rank], &setup.slots[rank]);
    let mut frame = Frame::new(child::SETUP)
        .number(rank as u64)
        .number(setup.slots.len() as u64)
        .text(&store.to_string())
        .number(slots.start as u64)
        .number(slots.end as u64)
        .number(setup.staging_bytes as u64)
        .number(layout.layers() as u64);
    for layer in 0..layout.layers() {
        let tensors = layout.layer(LayerId::at(layer)).tensors();
        frame = frame.number(tensors.len() as u64);
        for t in tensors {
            frame = frame.text(&t.name);
            for number in [t.rows, t.row_bytes, t.pitch, t.slot_stride] {
                frame = frame.number(number as u64);
            }
        }
    }
    link.tell(&frame);
    link
}

/// Children as ranks of the suite.
pub(crate) fn ranks(setup: &Setup, store: SocketAddr) -> Vec<Rank> {
    let world = setup.slots.len();
    let rank = |(rank, link): (usize, Arc<Link>)| {
        Rank::new(Remote { link: link.clone(), rank: RankId::at(rank), world }, RemoteMemory { link })
    };
    start(setup, store).into_iter().enumerate().map(rank).collect()
}

#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) link: Arc<Link>,
    pub(crate) rank: RankId,
    pub(crate) world: usize,
}

#[derive(Debug)]
pub(crate) struct RemoteMemory {
    pub(crate) link: Arc<Link>,
}

/// A fence in a child.
#[derive(Debug)]
struct RemoteFence {
    link: Arc<Link>,
    number: u64,
}

impl FenceState for RemoteFence {
    fn poll(&self) -> Result<bool, CommError> {
        Ok(self.link.call(&Frame::new(child::FENCE).number(self.number))?.take() == 1)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Tells a child what became of a gate.
fn settle(link: &Link, gate: u64, result: Result<(), CommError>) {
    let frame = Frame::new(child::GATE).number(gate);
    link.tell(&match result {
        Ok(()) => frame.number(0),
        Err(error) => frame.number(1).error(&error),
    });
}

impl Remote {
    /// The child's name for a fence of ours; 0 for one that is passed.
    fn gate(&self, after: &Fence) -> u64 {
        if after.poll() == Ok(true) {
            return 0;
        }
        let gate = self.link.gates.fetch_add(1, Ordering::Relaxed);
        let link = self.link.clone();
        match after.state().as_any().downcast_ref::<HostFence>() {
            Some(host) => {
                let link = Arc::downgrade(&link);
                host.on_settled(move |result| {
                    if let Some(link) = link.upgrade() {
                        settle(&link, gate, result);
                    }
                });
            }
            None => {
                let after = after.clone();
                std::thread::spawn(move || {
                    let until = Instant::now() + Duration::from_secs(60);
                    settle(&link, gate, after.wait(RankId(0), "another child", until));
                });
            }
        }
        gate
    }
}

impl Communicator for Remote {
    fn backend(&self) -> &'static str {
        "gloo in a process"
    }

    fn rank(&self) -> RankId {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world
    }

    fn submit(
        &mut self,
        transfers: &Arc<[Transfer]>,
        after: Fence,
        deadline: Instant,
    ) -> Result<Ticket, CommError> {
        let frame = Frame::new(child::SUBMIT).number(self.gate(&after)).moment(deadline);
        let frame = frame.number(transfers.len() as u64);
        let frame = transfers.iter().fold(frame, |frame, transfer| frame.transfer(transfer));
        Ok(Ticket(self.link.call(&frame)?.take()))
    }

    fn poll(&mut self, ticket: Ticket) -> Result<Progress, CommError> {
        let done = self.link.call(&Frame::new(child::POLL).number(ticket.0))?.take() == 1;
        Ok(if done { Progress::Done } else { Progress::Pending })
    }

    fn done(&mut self, ticket: Ticket) -> Result<Fence, CommError> {
        self.link.call(&Frame::new(child::DONE).number(ticket.0))?;
        Ok(Fence::new(Arc::new(RemoteFence { link: self.link.clone(), number: ticket.0 })))
    }

    fn abort(&mut self, cause: &str) -> Fence {
        self.link.call(&Frame::new(child::ABORT).text(cause)).unwrap();
        Fence::new(Arc::new(RemoteFence { link: self.link.clone(), number: u64::MAX }))
    }

    fn carried(&self) -> Carried {
        let mut reply = self.link.call(&Frame::new(child::CARRIED)).unwrap();
        Carried { link_bytes: reply.take(), local_bytes: reply.take(), transfers: reply.take() }
    }
}

impl RankMemory for RemoteMemory {
    fn fill(&mut self, layer: LayerId, slot: SlotId, expert: ExpertId) -> Result<(), CommError> {
        let frame = Frame::new(child::FILL).number(layer.0.into()).number(slot.0.into());
        self.link.call(&frame.number(expert.0.into())).map(drop)
    }

    fn read(&mut self, place: Place) -> Result<Vec<Vec<u8>>, CommError> {
        let mut reply = self.link.call(&Frame::new(child::READ).place(place))?;
        Ok((0..reply.take()).map(|_| reply.take_raw()).collect())
    }
}
