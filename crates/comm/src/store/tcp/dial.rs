//! Reaching a server: names, addresses, handshake.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::handshake::{HandshakeFailure, Welcome, shake_hands};
use super::token::Token;
use crate::store::deadlines::{Backoff, Deadlines, after, left};
use crate::store::error::{StoreError, StoreOp};

/// Longest wait for one address to answer: a silent first address must not use up the time of a second.
const ATTEMPT: Duration = Duration::from_secs(3);

/// A connection to `host:port` that is past its handshake. While nothing listens there it tries again.
pub(super) fn dial(
    address: &str,
    token: Option<&Token>,
    deadlines: &Deadlines,
    deadline: Instant,
) -> Result<(TcpStream, Welcome), StoreError> {
    let start = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(250));
    let mut last: Option<io::Error> = None;
    loop {
        let error = match attempt(address, token, deadlines, deadline) {
            Ok(connected) => return Ok(connected),
            Err(HandshakeFailure::Final(error)) => return Err(error),
            Err(HandshakeFailure::Retry(error)) => error,
        };
        // That the time ran out says less than what an earlier attempt failed of.
        let error = match last {
            Some(earlier) if error.kind() == io::ErrorKind::TimedOut => earlier,
            _ => error,
        };
        // Not tried again without time: the cause would be that there was none.
        if !backoff.pause(deadline) || left(deadline).is_zero() {
            let what = format!("{address} ({error})");
            return Err(StoreError::timeout(StoreOp::Connect, what, start.elapsed()));
        }
        last = Some(error);
    }
}

/// One try to reach any of the addresses of a name.
fn attempt(
    address: &str,
    token: Option<&Token>,
    deadlines: &Deadlines,
    deadline: Instant,
) -> Result<(TcpStream, Welcome), HandshakeFailure> {
    let mut last = None;
    for socket_address in resolve(address, deadline)? {
        let patience = left(deadline).min(ATTEMPT);
        if patience.is_zero() {
            last.get_or_insert(io::ErrorKind::TimedOut.into());
            break;
        }
        let connected = TcpStream::connect_timeout(&socket_address, patience).and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        match connected {
            Ok(mut stream) => {
                let deadline = deadline.min(after(deadlines.handshake));
                match shake_hands(&mut stream, address, token, deadline) {
                    Ok(welcome) => return Ok((stream, welcome)),
                    Err(HandshakeFailure::Retry(error)) => last = Some(error),
                    Err(refused) => return Err(refused),
                }
            }
            Err(error) => last = Some(error),
        }
    }
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    Err(HandshakeFailure::Retry(last.unwrap_or_else(none)))
}

/// The addresses of `host:port`. Names are looked up on a thread of their own: the system's resolver knows no
/// deadline.
fn resolve(address: &str, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(literal) = address.parse() {
        return Ok(vec![literal]);
    }
    let name = address.to_owned();
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new().name("eplb-resolve".to_owned()).spawn(move || {
        // Nobody listens any more when the deadline has passed.
        let _ = sender.send(name.to_socket_addrs().map(Iterator::collect));
    })?;
    receiver.recv_timeout(left(deadline)).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
