//! Tests of the stores and what stands on them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conformance::Opener;
use super::deadlines::after;
use super::tcp::{ServerOptions, StoreServer, TcpStore};
use super::{Deadlines, InProcessStore, Limits, Store, StoreError};

mod codec;
mod conformance;
mod file;
mod group;
mod identity;
mod interrupt;
mod liveness;
mod raw;
mod tcp;
mod tcp_bounds;
mod tcp_junk;

/// Far enough ahead that a busy machine does not matter; nothing that passes waits for it.
fn soon() -> Instant {
    after(Duration::from_secs(30))
}

/// A deadline for what must not happen before it.
fn shortly() -> Instant {
    after(Duration::from_millis(30))
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A server on loopback.
fn serve(options: ServerOptions) -> StoreServer {
    StoreServer::bind(loopback(), options).unwrap()
}

/// A client of it.
fn connect(server: &StoreServer) -> TcpStore {
    let address = server.local_address().to_string();
    TcpStore::connect(&address, None, &Deadlines::DEFAULT, soon()).unwrap()
}

/// Values small enough that the largest one is written quickly, large enough to be split over several reads.
fn small_limits() -> Limits {
    Limits { max_value: 100_000, ..Limits::default() }
}

/// Handles of one in-process store.
fn in_process_opener() -> Opener {
    let store = InProcessStore::with_limits(small_limits());
    Arc::new(move || Ok(Arc::new(store.clone()) as Arc<dyn Store>))
}

/// Waits until a condition holds that another thread brings about.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "{what} never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asserts that an error is `Lost` and returns its cause.
#[track_caller]
fn lost_cause<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Lost { cause, .. }) => cause,
        other => panic!("not lost: {other:?}"),
    }
}
