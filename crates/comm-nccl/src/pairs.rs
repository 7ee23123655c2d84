//! Batches of messages between pairs of ranks, on the devices.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::{Group, PrefixStore};
use eplb_comm::{BatchHeader, CommError, FenceState, Message, Pairs};
use eplb_core::RankId;
use eplb_cuda::{Context, CudaStream, DeviceBlock, Events, Mirror};
use nccl_rs::{Comm, Group as Launch, Library};

use crate::agree::Agreement;
use crate::connect::{GREETING_BYTES, LAST_WAIT, Rendezvous, begin, greet};
use crate::error::{NcclCommError, foreign};
use crate::options::{Backend, Options};

/// How long a wait looks without a pause; what is short ends before.
const EAGER: Duration = Duration::from_micros(500);

/// [`Pairs`] on device memory, over a communicator of NCCL of our own and a stream of our own.
///
/// Headers travel first, as a group of small messages; a receiver compares them before it takes a byte in. Then the messages travel in
/// rounds: in a round each pair of ranks has its next few messages, so that a round of one rank needs nothing but the same round of
/// others, and no order of calls can block. The host waits for the device, within the deadline; a rank that gives up says why in the
/// store, and the others, which look there while they wait, end with its cause.
///
/// The device's other work with NCCL is not known here: on devices where another communicator is used at the same time, all ranks must
/// launch in one order, as for any two communicators (`NCCL_LAUNCH_ORDER_IMPLICIT=1` with NCCL 2.26 and later).
#[derive(Debug)]
pub struct NcclPairs {
    backend: Backend,
    rank: RankId,
    /// Gone after an error.
    comm: Option<Comm>,
    library: Library,
    size: usize,
    context: Arc<Context>,
    stream: Arc<CudaStream>,
    events: Arc<Events>,
    /// Headers to each rank, then from each rank.
    headers: Mirror,
    alarm: Agreement,
    /// Messages of a pair in a round.
    share: usize,
    watch: Duration,
    failed: Option<CommError>,
    received_bytes: u64,
}

/// Of a batch: when it began, and its deadline.
#[derive(Debug, Clone, Copy)]
struct Clock {
    begin: Instant,
    deadline: Instant,
}

impl NcclPairs {
    /// Connects rank `rank` with the others, on a device whose number is `device`: its primary context, which PyTorch and NCCL use too.
    /// Every rank calls it with the same rendezvous, of at least two ranks; it blocks until all have come and every pair is opened.
    ///
    /// # Errors
    /// There is no such library or device, the rendezvous does not count this rank, or the ranks do not come in time.
    pub fn connect(
        backend: Backend,
        device: usize,
        rank: RankId,
        rendezvous: &Rendezvous,
        options: &Options,
        deadline: Instant,
    ) -> Result<Self, NcclCommError> {
        let (store, size, epoch) = (&rendezvous.store, rendezvous.size, rendezvous.epoch);
        if size < 2 || rank.index() >= size {
            let reason = format!(
                "it is rank {} of {size}; there must be at least 2, and it must be one of them",
                rank.0
            );
            return Err(NcclCommError::Peer { rank, reason });
        }
        let context = Context::primary(device)?;
        let stream = CudaStream::new(&context, options.stream_priority)?;
        let events = Events::new(&context, 4)?;
        let headers = Mirror::new(&context, 2 * size * BatchHeader::BYTES)?;
        let scratch = DeviceBlock::new(&context, 2 * GREETING_BYTES * size)?;
        let members: Vec<RankId> = (0..size).map(RankId::at).collect();
        let corner = PrefixStore::new(store.clone(), &format!("nccl-pairs-meet/{epoch}/"))?;
        let mut group = Group::new(Arc::new(corner), epoch, rank, &members)?;
        let entered = context.enter()?;
        let comm = begin(backend, &mut group, &options.config, &context, deadline)?;
        let library = comm.library().clone();
        let comm = greet(comm, &scratch, &stream, &events, rank, deadline)?;
        drop(entered);
        // Nobody sends before all are here.
        group.barrier("greeted", deadline)?;
        let corner = PrefixStore::new(store.clone(), &format!("nccl-pairs/{epoch}/"))?;
        Ok(Self {
            backend,
            rank,
            comm: Some(comm),
            library,
            size,
            context,
            stream,
            events,
            headers,
            alarm: Agreement::new(Arc::new(corner), rank, size, false),
            share: (options.operations / (2 * (size - 1))).max(1),
            watch: options.watch,
            failed: None,
            received_bytes: 0,
        })
    }

    /// The library that carries the bytes: where it was found.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Where the header of a pair lies: of messages to `peer`, or from it.
    fn header(&self, peer: usize, incoming: bool) -> Range<usize> {
        let at = (peer + if incoming { self.size } else { 0 }) * BatchHeader::BYTES;
        at..at + BatchHeader::BYTES
    }

    /// # Safety
    /// As [`Pairs::exchange`], until an error was dealt with by [`Self::fail`].
    unsafe fn carry(
        &mut self,
        sends: &[Message],
        receives: &[Message],
        clock: Clock,
    ) -> Result<(), CommError> {
        let (out, into) = (self.by_peer(sends), self.by_peer(receives));
        if sends.is_empty() && receives.is_empty() {
            return Ok(());
        }
        for (peer, messages) in out.iter().enumerate() {
            let place = self.header(peer, false);
            self.headers.host_mut()[place].copy_from_slice(&BatchHeader::of(messages).to_bytes());
        }
        let half = self.size * BatchHeader::BYTES;
        self.headers.push(&self.stream, 0..half).map_err(|error| error.at(self.rank))?;
        let told = |pairs: &Self, peer: usize, incoming: bool, is_empty: bool| {
            let at = pairs.headers.device() + pairs.header(peer, incoming).start as u64;
            (!is_empty).then_some((peer, at, BatchHeader::BYTES))
        };
        let sent: Vec<_> =
            (0..self.size).filter_map(|peer| told(self, peer, false, out[peer].is_empty())).collect();
        let taken: Vec<_> =
            (0..self.size).filter_map(|peer| told(self, peer, true, into[peer].is_empty())).collect();
        // SAFETY: each header has its place in the block, which lives as long as `self`.
        unsafe { self.launch(&sent, &taken, clock) }?;
        self.headers.pull(&self.stream, half..2 * half).map_err(|error| error.at(self.rank))?;
        self.settle(clock)?;
        for (peer, messages) in into.iter().enumerate().filter(|(_, messages)| !messages.is_empty()) {
            let mut told = [0; BatchHeader::BYTES];
            told.copy_from_slice(&self.headers.host()[self.header(peer, true)]);
            let (told, expected) = (BatchHeader::from_bytes(told), BatchHeader::of(messages));
            if told != expected {
                let cause = told.differs(expected);
                return Err(CommError::Transfer { rank: self.rank, peer: RankId::at(peer), cause });
            }
        }
        let (out, into) = (filled(&out), filled(&into));
        let most = out.iter().chain(&into).map(Vec::len).max().unwrap_or(0);
        for round in 0..most.div_ceil(self.share) {
            let (out, into) = (self.round(&out, round), self.round(&into, round));
            // SAFETY: as the caller promises.
            unsafe { self.launch(&out, &into, clock) }?;
        }
        self.settle(clock)?;
        self.received_bytes += receives.iter().map(|message| message.bytes as u64).sum::<u64>();
        Ok(())
    }

    fn by_peer(&self, messages: &[Message]) -> Vec<Vec<Message>> {
        let mut of = vec![Vec::new(); self.size];
        for message in messages {
            of[message.peer.index()].push(*message);
        }
        of
    }

    /// The messages of one round: peer, address, bytes.
    fn round(&self, messages: &[Vec<Message>], round: usize) -> Vec<(usize, u64, usize)> {
        let of = |(peer, messages): (usize, &Vec<Message>)| {
            let begin = (round * self.share).min(messages.len());
            let end = (begin + self.share).min(messages.len());
            let one = |message: &Message| (peer, message.base.as_ptr() as u64, message.bytes);
            messages[begin..end].iter().map(one).collect::<Vec<_>>()
        };
        messages.iter().enumerate().flat_map(of).collect()
    }

    /// Launches a group of messages, and waits until it is on the stream.
    ///
    /// # Safety
    /// What is named is device memory that stays as it is (`out`), or that nobody else touches (`into`), until the group has run.
    unsafe fn launch(
        &mut self,
        out: &[(usize, u64, usize)],
        into: &[(usize, u64, usize)],
        clock: Clock,
    ) -> Result<(), CommError> {
        let rank = self.rank;
        if out.is_empty() && into.is_empty() {
            return Ok(());
        }
        let entered = self.context.enter().map_err(|error| error.at(rank))?;
        let gone = || CommError::Aborted { rank, cause: "an earlier batch failed".into() };
        let comm = self.comm.as_mut().ok_or_else(gone)?;
        let stream = self.stream.as_raw();
        let mut launched = || {
            let group = Launch::start(&self.library)?;
            for &(peer, from, bytes) in out {
                // SAFETY: as the caller promises.
                unsafe { comm.send(&group, from, bytes, peer, stream) }?;
            }
            for &(peer, to, bytes) in into {
                // SAFETY: as the caller promises.
                unsafe { comm.recv(&group, to, bytes, peer, stream) }?;
            }
            group.end()
        };
        launched().map_err(|error| foreign(error, rank))?;
        drop(entered);
        self.wait(clock, |pairs| match &pairs.comm {
            Some(comm) => comm.is_ready().map_err(|error| foreign(error, rank)),
            None => Ok(true),
        })
    }

    /// Waits until all that was enqueued has run.
    fn settle(&self, clock: Clock) -> Result<(), CommError> {
        let behind = self.events.record(&self.stream, self.rank).map_err(|error| error.at(self.rank))?;
        self.wait(clock, |pairs| {
            // An operation that failed never ends.
            if let Some(comm) = &pairs.comm {
                comm.is_ready().map_err(|error| foreign(error, pairs.rank))?;
            }
            behind.poll()
        })
    }

    fn wait(
        &self,
        clock: Clock,
        is_over: impl Fn(&Self) -> Result<bool, CommError>,
    ) -> Result<(), CommError> {
        let (start, mut watched) = (Instant::now(), Instant::now());
        while !is_over(self)? {
            let now = Instant::now();
            if now >= clock.deadline {
                let (what, waited) = ("the messages of a batch".to_owned(), now - clock.begin);
                return Err(CommError::Timeout { rank: self.rank, what, waited });
            }
            if now - watched >= self.watch {
                if let Some((peer, cause)) = self.alarm.failed()? {
                    return Err(CommError::Transfer { rank: self.rank, peer, cause });
                }
                watched = Instant::now();
            }
            match now - start < EAGER {
                true => std::thread::yield_now(),
                false => std::thread::sleep(Duration::from_micros(20)),
            }
        }
        Ok(())
    }

    /// Ends everything: nothing of a batch touches memory any more, and the other ranks learn the cause.
    fn fail(&mut self, error: CommError) -> CommError {
        let error = self.failed.get_or_insert(error).clone();
        self.alarm.fail(&error.to_string());
        self.end();
        error
    }

    fn end(&mut self) {
        let Ok(_entered) = self.context.enter() else { return };
        let Some(comm) = self.comm.take() else { return };
        comm.abort();
        if let Ok(behind) = self.events.record(&self.stream, self.rank) {
            // A device that does not come to an end is lost; nothing can be done about its memory here.
            let _ = behind.fence().wait(self.rank, "the end of an abort", Instant::now() + LAST_WAIT);
        }
    }
}

/// Messages that have bytes.
fn filled(messages: &[Vec<Message>]) -> Vec<Vec<Message>> {
    let some =
        |messages: &Vec<Message>| messages.iter().filter(|message| message.bytes > 0).copied().collect();
    messages.iter().map(some).collect()
}

impl Pairs for NcclPairs {
    fn backend(&self) -> &'static str {
        self.backend.name()
    }

    fn rank(&self) -> RankId {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.size
    }

    unsafe fn exchange(
        &mut self,
        sends: &[Message],
        receives: &[Message],
        deadline: Instant,
    ) -> Result<(), CommError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        check_peers(self.rank, self.size, sends, receives)?;
        let clock = Clock { begin: Instant::now(), deadline };
        // SAFETY: as the caller promises.
        unsafe { self.carry(sends, receives, clock) }.map_err(|error| self.fail(error))
    }

    fn received_bytes(&self) -> u64 {
        self.received_bytes
    }
}

/// Messages go to and come from other ranks.
fn check_peers(rank: RankId, size: usize, sends: &[Message], receives: &[Message]) -> Result<(), CommError> {
    let wrong =
        sends.iter().chain(receives).find(|message| message.peer == rank || message.peer.index() >= size);
    let Some(Message { peer, .. }) = wrong else { return Ok(()) };
    let cause = format!("a message to or from {peer} of {size} ranks on {rank}: name another rank");
    Err(CommError::Transfer { rank, peer: *peer, cause })
}

impl Drop for NcclPairs {
    fn drop(&mut self) {
        if self.comm.is_some() {
            self.alarm.fail("it closed its connections");
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;

    #[test]
    fn a_message_to_oneself_or_to_nobody_is_named() {
        let to = |peer| Message { peer: RankId(peer), base: NonNull::dangling(), bytes: 1 };
        assert_eq!(check_peers(RankId(0), 2, &[to(1)], &[to(1)]), Ok(()));
        for peer in [0, 2] {
            let said = check_peers(RankId(0), 2, &[], &[to(peer)]).unwrap_err().to_string();
            assert!(said.contains("name another rank"), "{said}");
        }
    }

    #[test]
    fn messages_without_bytes_do_not_travel() {
        let of = |bytes| Message { peer: RankId(1), base: NonNull::dangling(), bytes };
        assert_eq!(filled(&[vec![of(0), of(3), of(0)], vec![]]), [vec![of(3)], vec![]]);
    }
}
