//! Unix sockets that carry descriptors, and tell when the other side has ended.

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
/// How long a stranger who says nothing holds up the others.
const PATIENCE: Duration = Duration::from_millis(500);
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
        while lines.iter().flatten().count() + 1 < world
            && !over.load(Ordering::Relaxed)
            && Instant::now() < deadline
        {
            let Ok((stream, _)) = self.listener.accept() else {
                std::thread::sleep(LOOK);
                continue;
            };
            // Who does not keep the protocol is left to its own deadline.
            if let Ok(caller) = self.receive(&stream, files)
                && caller != rank
                && let Some(line) = lines.get_mut(caller as usize)
            {
                *line = Some(Line(stream));
            }
        }
        lines.into_iter().flatten().collect()
    }

    /// Hears a caller and gives it the descriptors; its rank.
    fn receive(&self, mut stream: &UnixStream, files: &[BorrowedFd<'_>]) -> Result<u32> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut heard = [0; 32];
        stream.read_exact(&mut heard)?;
        let caller = u32::from_le_bytes([heard[24], heard[25], heard[26], heard[27]]);
        if heard != greeting(self.nonce, caller) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        for batch in files.chunks(BATCH) {
            send(stream, batch)?;
        }
        Ok(caller)
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
            assert!(line.is_cut());
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
