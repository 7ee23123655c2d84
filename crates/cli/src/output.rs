//! What goes to stdout and stderr, and how the program ends.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use eplb_engine::EngineError;
use eplb_plan::PlanError;
use eplb_trace::TraceError;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Number, Value};

/// Why a command failed: bad input ends with exit code 2, a failure with 1.
#[derive(Debug)]
pub(crate) enum Failure {
    Input(String),
    Run(String),
}

impl Failure {
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// Says on stderr what went wrong; stdout stays as it is.
    pub(crate) fn report(self) -> ExitCode {
        let (message, code) = match self {
            Self::Input(message) => (message, 2),
            Self::Run(message) => (message, 1),
        };
        // With stderr closed there is nobody to tell.
        drop(writeln!(std::io::stderr(), "error: {message}"));
        ExitCode::from(code)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        if error.is_bad_input() { Self::Input(error.to_string()) } else { Self::Run(error.to_string()) }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        EngineError::from(error).into()
    }
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Self {
        EngineError::from(error).into()
    }
}

/// Says something on stderr that is no error.
pub(crate) fn note(text: &str) {
    // With stderr closed there is nobody to tell.
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// Writes to stdout. A reader that has closed it early (`| head`) has seen what it wanted.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Run(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints exactly one JSON object.
pub(crate) fn print_json(object: &Value) -> Result<(), Failure> {
    print(&format!("{object}\n"))
}

/// A number, or null where it is not finite.
pub(crate) fn number(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// A number, or null where there is none.
pub(crate) fn optional(value: Option<f64>) -> Value {
    value.map_or(Value::Null, number)
}

/// A progress bar on stderr if that is a terminal.
pub(crate) fn progress(unit: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40.cyan} {pos}/{len} {msg} {elapsed} (left {eta})")
    {
        bar.set_style(style);
    }
    bar.set_message(unit);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Columns of text: the first row is the head, numbers are aligned to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:>w$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Bytes with a binary unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
