//! A rank's side of its pipes to the driver, and its end.

use std::io::{BufRead, Write};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// Says a line to the driver. A driver that is gone ends this process.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap_or_else(|_| std::process::exit(9));
}

/// Waits for a line of the driver. A driver that is gone ends this process.
pub fn hear() -> String {
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(0) | Err(_) => std::process::exit(9),
        Ok(_) => line.trim().to_owned(),
    }
}

/// Ends this process as SIGKILL does, with no chance to tidy up.
pub fn kill() {
    send(Signal::KILL);
}

/// Stops this process until it is told to go on.
pub fn stop() {
    send(Signal::STOP);
    // Any thread of the process may be the first to take it: this one goes no further until then.
    std::thread::sleep(Duration::from_millis(100));
}

fn send(signal: Signal) {
    let sent = kill_process(getpid(), signal);
    assert!(sent.is_ok(), "no {signal:?} to this process: {sent:?}");
}
