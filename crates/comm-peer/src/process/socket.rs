//! Unix sockets that carry descriptors, and tell when the other side has ended.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Result, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::card::Nonce;

/// Most descriptors in one message; the system takes 253.
const BATCH: usize = 64;
/// First word of a greeting.
const MAGIC: u64 = u64::from_le_bytes(*b"eplbpeer");
/// Callers that are heard at a time, beside the ranks that are awaited: strangers who say nothing take no more.
const STRANGERS: usize = 64;
/// How long a caller may take to accept what it is given.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between looks for callers.
const LOOK: Duration = Duration::from_micros(500);

/// A connection to a peer that stays open, so that the end of its process is seen.
#[derive(Debug)]
pub(super) struct Line(UnixStream);

impl Line {
    /// Whether the other side has ended or hung up. Never blocks.
    pub(super) fn is_cut(&self) -> bool {
        let mut byte = [MaybeUninit::uninit(); 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.0, &mut byte, flags) {
            // Nobody says anything after the greeting; what is not an end is a peer that lives.
            Ok((_, length)) => length == 0,
            Err(error) => error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR,
        }
    }

    #[cfg(test)]
    pub(super) fn pair() -> Result<(Self, Self)> {
        UnixStream::pair().map(|(a, b)| (Self(a), Self(b)))
    }
}

/// What a rank's socket wants to hear.
fn greeting(nonce: Nonce, rank: u32) -> [u8; 32] {
    let mut words = [0; 32];
    for (bytes, word) in words.chunks_exact_mut(8).zip([MAGIC, nonce[0], nonce[1], u64::from(rank)]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    words
}

/// The socket of a rank, in the abstract namespace: it has no file, and is gone with its process.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    nonce: Nonce,
}

impl Door {
    pub(super) fn open(name: &str, nonce: Nonce) -> Result<Self> {
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, nonce })
    }

    /// Gives the descriptors to each of the other `world` ranks, until all have come, `over` says so, or the deadline.
    pub(super) fn serve(
        &self,
        rank: u32,
        world: usize,
        files: &[BorrowedFd<'_>],
        over: &AtomicBool,
        deadline: Instant,
    ) -> Vec<Line> {
        let mut lines: Vec<Option<Line>> = (0..world).map(|_| None).collect();
        let mut callers: VecDeque<Caller> = VecDeque::new();
        while lines.iter().flatten().count() + 1 < world
            && !over.load(Ordering::Relaxed)
            && Instant::now() < deadline
        {
            let mut idle = true;
            if let Ok((stream, _)) = self.listener.accept() {
                idle = false;
                callers.extend(Caller::new(stream).ok());
                // Who has had the most time to speak goes.
                if callers.len() > world + STRANGERS {
                    callers.pop_front();
                }
            }
            // Nobody waits for one who speaks slowly. Who does not keep the protocol is left to its own deadline.
            for mut caller in std::mem::take(&mut callers) {
                match caller.hear() {
                    Ok(false) => callers.push_back(caller),
                    Ok(true) => {
                        if let Ok(theirs) = self.give(&caller, files)
                            && theirs != rank
                            && let Some(line) = lines.get_mut(theirs as usize)
                        {
                            *line = Some(Line(caller.stream));
                        }
                    }
                    Err(_) => {}
                }
            }
            if idle {
                std::thread::sleep(LOOK);
            }
        }
        lines.into_iter().flatten().collect()
    }

    /// Gives the descriptors to a caller who has said the greeting; its rank.
    fn give(&self, caller: &Caller, files: &[BorrowedFd<'_>]) -> Result<u32> {
        let heard = &caller.heard;
        let rank = u32::from_le_bytes([heard[24], heard[25], heard[26], heard[27]]);
        if *heard != greeting(self.nonce, rank) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        caller.stream.set_nonblocking(false)?;
        caller.stream.set_write_timeout(Some(PATIENCE))?;
        for batch in files.chunks(BATCH) {
            send(&caller.stream, batch)?;
        }
        Ok(rank)
    }
}

/// Somebody at the door, who has said a part of the greeting.
#[derive(Debug)]
struct Caller {
    stream: UnixStream,
    heard: [u8; 32],
    count: usize,
}

impl Caller {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, heard: [0; 32], count: 0 })
    }

    /// Hears what has been said; whether that is all. Never blocks.
    fn hear(&mut self) -> Result<bool> {
        match self.stream.read(&mut self.heard[self.count..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.count += count;
                Ok(self.count == self.heard.len())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Asks the rank behind `name`, drawn with `nonce`, for its `count` descriptors, as rank `rank`.
pub(super) fn ask(
    name: &str,
    nonce: Nonce,
    rank: u32,
    count: usize,
    deadline: Instant,
) -> Result<(Line, Vec<OwnedFd>)> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    stream.write_all(&greeting(nonce, rank))?;
    let mut files = Vec::new();
    while files.len() < count {
        receive(&stream, &mut files)?;
    }
    Ok((Line(stream), files))
}

/// Sends descriptors with one byte, since a message of none carries nothing.
fn send(stream: &UnixStream, files: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(files));
    retry_on_intr(|| rustix::net::sendmsg(stream, &[IoSlice::new(&[1])], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

fn receive(stream: &UnixStream, files: &mut Vec<OwnedFd>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    // With a time limit on the socket, a signal ends the call even where its handler asks for calls to go on.
    let got = retry_on_intr(|| {
        let mut bytes = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(stream, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if got.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let before = files.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    // With too few, a descriptor could not be made here: the limit on open files. The rest does not come any more.
    let cut_short = files.len() == before || got.flags.contains(ReturnFlags::CTRUNC);
    if cut_short { Err(ErrorKind::InvalidData.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn name(of: &str) -> String {
        format!("eplb-test-{}-{of}", std::process::id())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn descriptors_arrive_in_order_and_an_end_is_seen() {
        let (name, nonce) = (name("order"), [4, 5]);
        let door = Door::open(&name, nonce).unwrap();
        let made: Vec<std::fs::File> = (0..130u64)
            .map(|length| {
                let file = tempfile::tempfile().unwrap();
                file.set_len(length).unwrap();
                file
            })
            .collect();
        let files: Vec<_> = made.iter().map(AsFd::as_fd).collect();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| door.serve(1, 2, &files, &AtomicBool::new(false), soon()));
            let (line, got) = ask(&name, nonce, 0, 130, soon()).unwrap();
            for (length, file) in got.into_iter().enumerate() {
                assert_eq!(std::fs::File::from(file).metadata().unwrap().len(), length as u64);
            }
            let watched = server.join().unwrap();
            assert!(watched.len() == 1 && !line.is_cut());
            drop(watched);
            // A process that another test starts may have it open for a moment.
            let limit = soon();
            while !line.is_cut() {
                assert!(Instant::now() < limit, "the other end is gone, and it is not seen");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    #[test]
    fn who_speaks_slowly_holds_up_nobody_and_is_heard_in_the_end() {
        let (name, nonce) = (name("slow"), [4, 5]);
        let door = Door::open(&name, nonce).unwrap();
        let (file, over) = (tempfile::tempfile().unwrap(), AtomicBool::new(false));
        let call = || {
            let address = SocketAddr::from_abstract_name(&name).unwrap();
            UnixStream::connect_addr(&address).unwrap()
        };
        std::thread::scope(|scope| {
            // Before all others, some who say nothing.
            let silent: Vec<_> = (0..STRANGERS / 2).map(|_| call()).collect();
            let mut slow = call();
            let words = greeting(nonce, 2);
            slow.write_all(&words[..31]).unwrap();
            let server = scope.spawn(|| door.serve(1, 3, &[file.as_fd()], &over, soon()));
            assert_eq!(ask(&name, nonce, 0, 1, soon()).unwrap().1.len(), 1, "it is served first");
            slow.write_all(&words[31..]).unwrap();
            let mut files = Vec::new();
            slow.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            receive(&slow, &mut files).unwrap();
            assert_eq!((files.len(), server.join().unwrap().len()), (1, 2));
            drop(silent);
        });
    }

    #[test]
    fn who_does_not_know_the_number_gets_nothing() {
        let name = name("number");
        let door = Door::open(&name, [4, 5]).unwrap();
        let (file, over) = (tempfile::tempfile().unwrap(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let server = scope.spawn(|| door.serve(1, 3, &[file.as_fd()], &over, soon()));
            assert!(ask(&name, [4, 6], 0, 1, soon()).is_err());
            assert!(ask(&name, [4, 5], 0, 1, soon()).is_ok(), "the socket is not harmed");
            over.store(true, Ordering::Relaxed);
            assert_eq!(server.join().unwrap().len(), 1);
        });
        drop(door);
        assert!(ask(&name, [4, 5], 0, 1, soon()).is_err(), "gone with its process");
    }
}
