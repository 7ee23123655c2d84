//! A socket that never blocks, with the message that is coming in and the ones that are going out.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use mio::net::TcpStream;

use super::message::{LENGTH_BYTES, Piece};

/// Own bytes are gathered into pieces of up to this size: one system call for many small messages.
const GATHERED: usize = 16 << 10;

/// What reading brought.
#[derive(Debug)]
pub(super) enum Input {
    /// A whole message, without its length.
    Message(Vec<u8>),
    /// Nothing more for now; an event follows when there is.
    Blocked,
    /// The message that begins is this long, and its bytes were not admitted.
    NotAdmitted(usize),
    /// The message that begins is longer than any may be.
    TooLong(usize),
    /// The other side closed the connection.
    Closed,
}

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    longest_message: usize,
    length: [u8; LENGTH_BYTES],
    length_have: usize,
    body: Option<Vec<u8>>,
    body_have: usize,
    received: u64,
    outgoing: VecDeque<Piece>,
    /// How much of the first outgoing piece is sent.
    sent: usize,
    outgoing_bytes: usize,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, longest_message: usize) -> Self {
        Self {
            stream,
            longest_message,
            length: [0; LENGTH_BYTES],
            length_have: 0,
            body: None,
            body_have: 0,
            received: 0,
            outgoing: VecDeque::new(),
            sent: 0,
            outgoing_bytes: 0,
        }
    }

    pub(super) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Bytes received so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that wait to be sent.
    pub(super) fn outgoing_bytes(&self) -> usize {
        self.outgoing_bytes
    }

    /// Whether a message has begun to come in and is not complete.
    pub(super) fn in_message(&self) -> bool {
        self.length_have > 0
    }

    /// Reads on, up to the end of a message. `admit` is asked once per message, with its length, before memory is
    /// taken for it.
    pub(super) fn read(&mut self, admit: &mut dyn FnMut(usize) -> bool) -> io::Result<Input> {
        while self.length_have < LENGTH_BYTES {
            let mut length = self.length;
            match self.read_some(&mut length[self.length_have..])? {
                Some(0) => return Ok(Input::Closed),
                Some(count) => {
                    self.length = length;
                    self.length_have += count;
                }
                None => return Ok(Input::Blocked),
            }
        }
        let length = u32::from_le_bytes(self.length) as usize;
        let mut body = match self.body.take() {
            Some(body) => body,
            None if length > self.longest_message => return Ok(Input::TooLong(length)),
            None if !admit(length) => return Ok(Input::NotAdmitted(length)),
            None => vec![0; length],
        };
        while self.body_have < length {
            let read = self.read_some(&mut body[self.body_have..]);
            match read {
                Ok(Some(0)) => return Ok(Input::Closed),
                Ok(Some(count)) => self.body_have += count,
                Ok(None) => {
                    self.body = Some(body);
                    return Ok(Input::Blocked);
                }
                Err(error) => return Err(error),
            }
        }
        self.length_have = 0;
        self.body_have = 0;
        Ok(Input::Message(body))
    }

    /// Reads what there is into `into`; `None` when there is nothing for now, 0 bytes at the end of the stream.
    pub(super) fn read_some(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.stream.read(into) {
                Ok(count) => {
                    self.received += count as u64;
                    return Ok(Some(count));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Queues bytes to be sent.
    pub(super) fn push(&mut self, piece: Piece) {
        self.outgoing_bytes += piece.bytes().len();
        // A piece that is partly sent may grow as well: what is sent of it counts against its size.
        if let (Piece::Own(new), Some(Piece::Own(last))) = (&piece, self.outgoing.back_mut())
            && last.len() + new.len() <= GATHERED
        {
            last.extend_from_slice(new);
            return;
        }
        self.outgoing.push_back(piece);
    }

    /// Sends what the socket takes.
    ///
    /// With `write`, never `write_vectored`: only the former asks for no SIGPIPE, which would end a host process
    /// that has not set that signal to be ignored.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some(piece) = self.outgoing.front() {
            match self.stream.write(&piece.bytes()[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    self.outgoing_bytes -= count;
                    if self.sent == piece.bytes().len() {
                        self.outgoing.pop_front();
                        self.sent = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
