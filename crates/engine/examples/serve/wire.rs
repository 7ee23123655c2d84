//! Letters between ranks that are processes: a Unix socket for each pair.

use std::io::{Error, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::mail::{LONGEST, Letter, Post};
use super::model::WIDTH;

/// 32-bit words of a letter.
const WORDS: usize = 4 + WIDTH;

/// A rank's lines to the others; none to itself.
#[derive(Debug)]
pub(crate) struct Wire {
    lines: Vec<Option<Mutex<UnixStream>>>,
}

impl Wire {
    /// Meets the others in a folder: listens for ranks above this one, calls those below.
    pub(crate) fn open(folder: &Path, rank: usize, ranks: usize) -> Result<Self, Error> {
        let place = |rank: usize| folder.join(format!("rank-{rank}"));
        let listener = UnixListener::bind(place(rank))?;
        let mut lines: Vec<Option<UnixStream>> = (0..ranks).map(|_| None).collect();
        let start = Instant::now();
        for below in 0..rank {
            let mut line = loop {
                match UnixStream::connect(place(below)) {
                    Ok(line) => break line,
                    Err(error) if start.elapsed() > LONGEST => return Err(error),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            };
            line.write_all(&(rank as u32).to_le_bytes())?;
            lines[below] = Some(line);
        }
        for _ in rank + 1..ranks {
            let (mut line, _) = listener.accept()?;
            let mut who = [0; 4];
            line.set_read_timeout(Some(LONGEST))?;
            line.read_exact(&mut who)?;
            let who = u32::from_le_bytes(who) as usize;
            let unknown = || Error::other(format!("rank {who} has called, of {ranks}"));
            *lines.get_mut(who).filter(|line| line.is_none()).ok_or_else(unknown)? = Some(line);
        }
        for line in lines.iter().flatten() {
            line.set_read_timeout(Some(LONGEST))?;
            line.set_write_timeout(Some(LONGEST))?;
        }
        Ok(Self { lines: lines.into_iter().map(|line| line.map(Mutex::new)).collect() })
    }

    fn exchange(&self, mut out: Vec<Vec<Letter>>) -> Result<Vec<Letter>, Error> {
        let mut all = Vec::new();
        for (other, line) in self.lines.iter().enumerate() {
            let letters = out.get_mut(other).map(std::mem::take).unwrap_or_default();
            match line {
                // A pile is far smaller than what a socket takes in before it waits.
                Some(line) => {
                    line.lock().unwrap_or_else(PoisonError::into_inner).write_all(&encode(&letters))?
                }
                None => all.extend(letters),
            }
        }
        for line in self.lines.iter().flatten() {
            let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
            let mut head = [0; 4];
            line.read_exact(&mut head)?;
            let mut body = vec![0; u32::from_le_bytes(head) as usize * WORDS * 4];
            line.read_exact(&mut body)?;
            all.extend(body.chunks_exact(WORDS * 4).map(decode));
        }
        Ok(all)
    }
}

fn encode(letters: &[Letter]) -> Vec<u8> {
    let mut bytes = (letters.len() as u32).to_le_bytes().to_vec();
    for letter in letters {
        let Letter { from, place: (token, choice), slot, state } = letter;
        let numbers = [from, token, choice, slot].map(|&n| n as u32);
        bytes.extend(numbers.into_iter().chain(state.map(f32::to_bits)).flat_map(u32::to_le_bytes));
    }
    bytes
}

fn decode(bytes: &[u8]) -> Letter {
    let word =
        |at: usize| bytes[4 * at..4 * at + 4].iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
    let number = |at: usize| word(at) as usize;
    Letter {
        from: number(0),
        place: (number(1), number(2)),
        slot: number(3),
        state: std::array::from_fn(|at| f32::from_bits(word(4 + at))),
    }
}

impl Post for Wire {
    fn turn(&self, _: usize, out: Vec<Vec<Letter>>) -> Result<Vec<Letter>, String> {
        self.exchange(out).map_err(|error| format!("another rank has left the loop: {error}"))
    }

    fn meet(&self, rank: usize) -> Result<(), String> {
        self.turn(rank, Vec::new()).map(drop)
    }

    fn leave(&self) {
        for line in self.lines.iter().flatten() {
            drop(line.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both));
        }
    }
}
