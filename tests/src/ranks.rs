//! The driver's side: ranks that are processes, and what they say.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

/// What a rank said, and when.
#[derive(Debug)]
pub struct Line {
    /// The rank.
    pub rank: usize,
    /// When the driver heard it.
    pub at: Instant,
    /// The line; `None`: the rank says nothing any more.
    pub text: Option<String>,
    start: usize,
}

/// Processes with a pipe in and out. Dropping them ends them.
#[derive(Debug)]
pub struct Ranks {
    children: Vec<Child>,
    /// How often each rank was started.
    starts: Vec<usize>,
    lines: Receiver<Line>,
    sender: Sender<Line>,
}

impl Default for Ranks {
    fn default() -> Self {
        let (sender, lines) = channel();
        Self { children: Vec::new(), starts: Vec::new(), lines, sender }
    }
}

impl Ranks {
    /// Starts the next rank.
    ///
    /// # Errors
    /// The system's, in words.
    pub fn start(&mut self, command: Command) -> Result<(), String> {
        let rank = self.children.len();
        self.starts.push(0);
        let child = self.spawn(rank, command)?;
        self.children.push(child);
        Ok(())
    }

    /// Starts a rank anew, and ends the process that was it.
    ///
    /// # Errors
    /// The system's, in words.
    pub fn replace(&mut self, rank: usize, command: Command) -> Result<(), String> {
        end(&mut self.children[rank]);
        self.children[rank] = self.spawn(rank, command)?;
        Ok(())
    }

    fn spawn(&mut self, rank: usize, mut command: Command) -> Result<Child, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("rank {rank} does not start: {error}"))?;
        let out = child.stdout.take().ok_or("no pipe")?;
        self.starts[rank] += 1;
        let (sender, start) = (self.sender.clone(), self.starts[rank]);
        std::thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok).map(Some);
            // Whoever does not listen any more has judged.
            lines
                .chain([None])
                .all(|text| sender.send(Line { rank, start, at: Instant::now(), text }).is_ok());
        });
        Ok(child)
    }

    /// Says a line to a rank.
    ///
    /// # Errors
    /// It has ended.
    pub fn tell(&mut self, rank: usize, text: &str) -> Result<(), String> {
        let pipe = self.children[rank].stdin.as_mut().ok_or("no pipe")?;
        writeln!(pipe, "{text}").map_err(|error| format!("rank {rank} does not listen: {error}"))
    }

    /// The next line of the latest start of any rank; `None` when none came by the deadline.
    pub fn line(&self, deadline: Instant) -> Option<Line> {
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
            if line.start == self.starts[line.rank] {
                return Some(line);
            }
        }
    }

    /// Has a rank that was stopped go on.
    ///
    /// # Errors
    /// The system's, in words.
    pub fn resume(&self, rank: usize) -> Result<(), String> {
        let sent = kill_process(Pid::from_child(&self.children[rank]), Signal::CONT);
        sent.map_err(|error| format!("rank {rank} does not go on: {error}"))
    }

    /// Ids of the processes, by rank.
    pub fn ids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.children.iter_mut().for_each(end);
    }
}

fn end(child: &mut Child) {
    // One that has ended cannot be killed any more.
    let _ = child.kill();
    let _ = child.wait();
}
