//! The library's log, handed to the host.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::call::{self, Failure};
use crate::status::Status;

/// Log nothing.
pub const EPLB_LOG_OFF: u32 = 0;
/// What went wrong.
pub const EPLB_LOG_ERROR: u32 = 1;
/// What may go wrong.
pub const EPLB_LOG_WARN: u32 = 2;
/// A line for each round.
pub const EPLB_LOG_INFO: u32 = 3;
/// Changes of state.
pub const EPLB_LOG_DEBUG: u32 = 4;
/// Everything.
pub const EPLB_LOG_TRACE: u32 = 5;

/// Gets a line of the log: one of the `EPLB_LOG_..` numbers, the part of the library that says it, and what it says, as texts that are valid
/// during the call. It is called from any thread of the library or of the host, perhaps from several at once, within a forward pass
/// too: it should be quick. It must not call `eplb_log_set`, nor end or free what the library is busy with.
pub type LogFn = Option<
    unsafe extern "C" fn(state: *mut c_void, level: u32, target: *const c_char, message: *const c_char),
>;

#[derive(Clone, Copy)]
struct Host {
    function: unsafe extern "C" fn(*mut c_void, u32, *const c_char, *const c_char),
    state: *mut c_void,
}

// SAFETY: the host promises that its function may be called with its state from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

/// Who gets the log. Held for reading during calls, so that who takes it away waits for those under way.
static HOST: RwLock<Option<Host>> = RwLock::new(None);

/// The most that is wanted, one of the numbers above.
static WANTED: AtomicU8 = AtomicU8::new(0);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Has the library's log handed to a function, up to a level; null, or `EPLB_LOG_OFF`: to nobody any more. When it returns, the function
/// given before is not called any more. One function serves the whole process, whichever engine speaks.
///
/// # Safety
/// `log` is null or a function that does what its documentation says, valid with its state until another call of this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eplb_log_set(log: LogFn, state: *mut c_void, level: u32) -> Status {
    call::run(|| {
        if level > EPLB_LOG_TRACE {
            return Err(Failure::argument(format!("level is {level}; there are 0 (off) to 5 (trace)")));
        }
        if INSIDE.get() {
            return Err(Failure::new(
                Status::State,
                "eplb_log_set inside the log's own function: it would wait for itself",
            ));
        }
        static IS_OURS: OnceLock<bool> = OnceLock::new();
        // Another subscriber is there only where this crate is part of a Rust program that has one: it gets the log as ever.
        if !IS_OURS.get_or_init(|| tracing::subscriber::set_global_default(ToHost::default()).is_ok()) {
            return Err(Failure::new(Status::State, "the program collects the log of its crates already"));
        }
        let host = log.filter(|_| level > 0).map(|function| Host { function, state });
        let wanted = if host.is_some() { level as u8 } else { 0 };
        *HOST.write().unwrap_or_else(PoisonError::into_inner) = host;
        WANTED.store(wanted, Ordering::Release);
        // What call sites remember of who wants them is asked anew.
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    })
}

fn number(level: &Level) -> u32 {
    match *level {
        Level::ERROR => EPLB_LOG_ERROR,
        Level::WARN => EPLB_LOG_WARN,
        Level::INFO => EPLB_LOG_INFO,
        Level::DEBUG => EPLB_LOG_DEBUG,
        Level::TRACE => EPLB_LOG_TRACE,
    }
}

/// Takes events of the library's crates to the host. Spans have no place in lines: they are numbered and forgotten.
#[derive(Debug, Default)]
struct ToHost {
    spans: AtomicU64,
}

impl Subscriber for ToHost {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.enabled(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && number(metadata.level()) <= u32::from(WANTED.load(Ordering::Acquire))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match WANTED.load(Ordering::Acquire) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        let number = self.spans.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        span::Id::from_non_zero_u64(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        if !self.enabled(event.metadata()) || INSIDE.get() {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let text = |text: String| CString::new(text.replace('\0', " ")).unwrap_or_default();
        let (target, message) = (text(event.metadata().target().to_owned()), text(line.0));
        let host = HOST.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Host { function, state }) = *host {
            INSIDE.set(true);
            // SAFETY: the host's function, with what its documentation says; it is not taken away while the lock is held.
            unsafe { function(state, number(event.metadata().level()), target.as_ptr(), message.as_ptr()) };
            INSIDE.set(false);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// An event as a line: its message, then its fields.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a text cannot fail.
        let _ = match field.name() {
            "message" => {
                let rest = std::mem::take(&mut self.0);
                write!(self.0, "{value:?}{rest}")
            }
            name => write!(self.0, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
