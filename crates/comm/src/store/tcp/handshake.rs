//! The first bytes of a connection. Every message here has a fixed size.
//!
//! ```text
//! client -> server  magic (8)  version (2)  client nonce (32)
//! server -> client  magic (8)  version (2)  verdict (1)  server nonce (32)
//! client -> server  proof (32)                                             only on verdict PROVE
//! server -> client  verdict (1)  proof (32, zero without token)  largest value (8)  keepalive in ms (4)
//! ```
//! Numbers are little-endian. A side that refuses closes the connection after its verdict.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::message::LARGEST_MAX_VALUE;
use super::token::{Side, Token};
use crate::store::deadlines::left;
use crate::store::error::StoreError;
use crate::store::fields::Fields;

/// First bytes in both directions.
pub(crate) const MAGIC: &[u8; 8] = b"EPLBSTOR";
/// Version of the whole protocol; both sides must have the same.
pub(crate) const VERSION: u16 = 1;
pub(crate) const NONCE_BYTES: usize = 32;
pub(crate) const PROOF_BYTES: usize = 32;
pub(crate) const CLIENT_HELLO_BYTES: usize = 8 + 2 + NONCE_BYTES;
pub(crate) const SERVER_HELLO_BYTES: usize = 8 + 2 + 1 + NONCE_BYTES;
pub(crate) const WELCOME_BYTES: usize = 1 + PROOF_BYTES + 8 + 4;

/// What a server answers to a hello or a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Verdict {
    /// Go on.
    Welcome = 0,
    /// Prove that you know the token.
    Prove = 1,
    /// Other versions of the protocol cannot be served.
    Version = 2,
    /// As many clients as it takes.
    Busy = 3,
    /// The proof is wrong.
    WrongToken = 4,
}

impl Verdict {
    fn of(byte: u8) -> Option<Self> {
        [Self::Welcome, Self::Prove, Self::Version, Self::Busy, Self::WrongToken]
            .into_iter()
            .find(|verdict| *verdict as u8 == byte)
    }
}

/// What a client learns of its server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Welcome {
    pub(super) max_value: usize,
    pub(super) keepalive: Duration,
}

/// Fresh random bytes.
pub(super) fn draw_nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(nonce)
}

/// The client's nonce, when its hello is a hello of this version.
pub(super) fn parse_client_hello(hello: &[u8]) -> Result<[u8; NONCE_BYTES], Verdict> {
    // The magic was compared while it came in; what is left to be wrong is the version.
    let mut fields = Fields::new(hello);
    let refuse = |_| Verdict::Version;
    fields.take(MAGIC.len()).map_err(refuse)?;
    match fields.u16().map_err(refuse)? {
        VERSION => fields.array().map_err(refuse),
        _ => Err(Verdict::Version),
    }
}

pub(super) fn server_hello(verdict: Verdict, nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &[verdict as u8], nonce].concat()
}

pub(super) fn welcome(verdict: Verdict, proof: &[u8; PROOF_BYTES], welcome: Welcome) -> Vec<u8> {
    let max_value = (welcome.max_value as u64).to_le_bytes();
    // Keepalives of a month and more are as good as none.
    let keepalive = u32::try_from(welcome.keepalive.as_millis()).unwrap_or(u32::MAX).to_le_bytes();
    [&[verdict as u8], &proof[..], &max_value, &keepalive].concat()
}

/// Why a client's handshake did not succeed.
#[derive(Debug)]
pub(super) enum HandshakeFailure {
    /// It may succeed later: the server is starting, stopping, or out of reach.
    Retry(io::Error),
    /// It will not.
    Final(StoreError),
}

impl From<io::Error> for HandshakeFailure {
    fn from(error: io::Error) -> Self {
        Self::Retry(error)
    }
}

/// The client's side, on a blocking socket.
pub(super) fn shake_hands(
    stream: &mut TcpStream,
    server: &str,
    token: Option<&Token>,
    deadline: Instant,
) -> Result<Welcome, HandshakeFailure> {
    let refused = |reason: &str| {
        HandshakeFailure::Final(StoreError::Refused { store: server.to_owned(), reason: reason.to_owned() })
    };
    let protocol = |detail: &str| {
        HandshakeFailure::Final(StoreError::Protocol { store: server.to_owned(), detail: detail.to_owned() })
    };

    let client_nonce = draw_nonce()?;
    write_all(stream, &[&MAGIC[..], &VERSION.to_le_bytes(), &client_nonce].concat(), deadline)?;
    let mut hello = [0; SERVER_HELLO_BYTES];
    read_exact(stream, &mut hello[..MAGIC.len()], deadline)?;
    if !hello.starts_with(MAGIC) {
        return Err(protocol("something else listens at this address"));
    }
    read_exact(stream, &mut hello[MAGIC.len()..], deadline)?;
    let mut fields = Fields::new(&hello[MAGIC.len()..]);
    let version = fields.u16().map_err(protocol)?;
    let verdict = Verdict::of(fields.u8().map_err(protocol)?);
    let server_nonce = fields.array().map_err(protocol)?;
    match (verdict, token) {
        _ if version != VERSION => {
            return Err(protocol(&format!("it speaks version {version}, this process {VERSION}")));
        }
        (Some(Verdict::Prove), Some(token)) => {
            let proof = token.prove(Side::Client, &client_nonce, &server_nonce);
            write_all(stream, &proof, deadline)?;
        }
        (Some(Verdict::Prove), None) => {
            return Err(refused("it needs a token; set EPLB_STORE_TOKEN as on the rank that serves it"));
        }
        (Some(Verdict::Welcome), None) => {}
        (Some(Verdict::Welcome), Some(_)) => {
            return Err(refused(
                "it runs without a token while this process has one; set EPLB_STORE_TOKEN on all ranks or on none",
            ));
        }
        (Some(Verdict::Busy), _) => {
            return Err(refused("it serves as many clients as it takes; raise `max_connections`"));
        }
        _ => return Err(protocol("its hello makes no sense")),
    }

    let mut welcome = [0; WELCOME_BYTES];
    read_exact(stream, &mut welcome[..1], deadline)?;
    match Verdict::of(welcome[0]) {
        Some(Verdict::Welcome) => {}
        Some(Verdict::WrongToken) => {
            return Err(refused("the tokens differ; set the same EPLB_STORE_TOKEN on all ranks"));
        }
        Some(Verdict::Busy) => {
            return Err(refused("it serves as many clients as it takes; raise `max_connections`"));
        }
        _ => return Err(protocol("its welcome makes no sense")),
    }
    read_exact(stream, &mut welcome[1..], deadline)?;
    let mut fields = Fields::new(&welcome[1..]);
    let proof = fields.array().map_err(protocol)?;
    if token.is_some_and(|token| !token.accepts(&proof, Side::Server, &client_nonce, &server_nonce)) {
        return Err(refused("it could not prove that it knows the token: it is not the store of this job"));
    }
    let max_value = fields.u64().map_err(protocol)?;
    let max_value = usize::try_from(max_value)
        .ok()
        .filter(|max_value| *max_value <= LARGEST_MAX_VALUE)
        .ok_or_else(|| protocol("its largest value is absurd"))?;
    let keepalive = Duration::from_millis(fields.u32().map_err(protocol)?.into());
    Ok(Welcome { max_value, keepalive })
}

/// Time for one blocking call; never zero, which sockets take for "for ever".
fn patience(deadline: Instant) -> io::Result<Duration> {
    match left(deadline) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left.max(Duration::from_millis(1))),
    }
}

fn read_exact(stream: &mut TcpStream, mut into: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !into.is_empty() {
        stream.set_read_timeout(Some(patience(deadline)?))?;
        match stream.read(into) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => into = &mut into[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_all(stream: &mut TcpStream, mut from: &[u8], deadline: Instant) -> io::Result<()> {
    while !from.is_empty() {
        stream.set_write_timeout(Some(patience(deadline)?))?;
        match stream.write(from) {
            Ok(count) => from = &from[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
