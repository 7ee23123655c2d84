//! The two sides of the TCP protocol by hand: clients and servers that do what good ones do not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::store::tcp::{
    CLIENT_HELLO_BYTES, MAGIC, Reply, Request, SERVER_HELLO_BYTES, StoreServer, VERSION, WELCOME_BYTES,
    decode_reply, encode_reply,
};

/// A client's hello.
pub(super) fn hello(version: u16) -> Vec<u8> {
    let hello = [&MAGIC[..], &version.to_le_bytes(), &[7; 32]].concat();
    assert_eq!(hello.len(), CLIENT_HELLO_BYTES);
    hello
}

/// A connection with no manners. Reads give up after a time that no passing test needs.
pub(super) fn connection(server: &StoreServer) -> TcpStream {
    let stream = TcpStream::connect(server.local_address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// A connection that is past its handshake with a server without token.
pub(super) fn client(server: &StoreServer) -> TcpStream {
    let mut stream = connection(server);
    stream.write_all(&hello(VERSION)).unwrap();
    stream.read_exact(&mut [0; SERVER_HELLO_BYTES + WELCOME_BYTES]).unwrap();
    stream
}

/// The next reply that is no sign of life; `None` at the end of the connection.
pub(super) fn reply(stream: &mut TcpStream) -> Option<(u64, Reply)> {
    let deadline = super::soon();
    loop {
        assert!(Instant::now() < deadline, "the server only shows life");
        let mut length = [0; 4];
        stream.read_exact(&mut length).ok()?;
        let mut message = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut message).ok()?;
        match decode_reply(&message, "server").unwrap() {
            (_, Reply::Alive) => {}
            reply => return Some(reply),
        }
    }
}

/// Whether the server has closed the connection, once what it said before is read.
pub(super) fn is_closed(stream: &mut TcpStream) -> bool {
    let deadline = super::soon();
    while Instant::now() < deadline {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
    false
}

pub(super) fn set(key: &str, value: &[u8]) -> Vec<u8> {
    Request::Set { key, value }.encode(1)
}

/// Largest value that servers by hand take.
const MAX_VALUE: u64 = 1 << 20;

/// A server by hand: accepts one connection, lets it in without a token, and runs `then` on it.
pub(super) fn server_that(then: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(super::loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; CLIENT_HELLO_BYTES]).unwrap();
        stream.write_all(&server_hello(0)).unwrap();
        stream.write_all(&welcome(0, 10)).unwrap();
        then(stream);
    });
    address
}

pub(super) fn server_hello(verdict: u8) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &[verdict], &[9; 32]].concat()
}

/// A welcome with a proof of zeros.
pub(super) fn welcome(verdict: u8, keepalive_ms: u32) -> Vec<u8> {
    let welcome = [&[verdict], &[0; 32][..], &MAX_VALUE.to_le_bytes(), &keepalive_ms.to_le_bytes()].concat();
    assert_eq!(welcome.len(), WELCOME_BYTES);
    welcome
}

/// Shows life until the client has gone.
pub(super) fn show_life(mut stream: TcpStream) {
    let alive: Vec<u8> =
        encode_reply(0, &Reply::Alive).iter().flat_map(|piece| piece.bytes().to_vec()).collect();
    while stream.write_all(&alive).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = stream.shutdown(Shutdown::Both);
}
