//! The `gloo` backend passes the suite: ranks as threads of one process, over TCP on the loopback interface.

mod support;

use std::time::Duration;

use eplb_comm::CommError;
use eplb_comm::conformance::{Options as Suite, Rank, Setup, run_all};
use eplb_comm_gloo::Options;

#[test]
fn ranks_as_threads_pass() {
    for ranks in [2, 3] {
        let suite = Suite { ranks, watch: Duration::from_millis(20), ..Suite::default() };
        let mut backend = |setup: &Setup| -> Result<Vec<Rank>, CommError> {
            Ok(support::ranks(setup, |_| Options::default()))
        };
        run_all(&mut backend, &suite).unwrap();
    }
}

#[test]
fn small_windows_and_pieces_pass() {
    // Everything in pieces of odd sizes, one or two messages at a time, two cells.
    for (window, small_bytes, piece_bytes) in [(1, 0, 300_007), (2, 1 << 20, 70_001)] {
        let options = Options { window, small_bytes, piece_bytes, packing_bytes: 0, ..Options::default() };
        let suite = Suite { ranks: 3, waves: 12, ..Suite::default() };
        let mut backend = |setup: &Setup| -> Result<Vec<Rank>, CommError> {
            Ok(support::ranks(setup, |_| options.clone()))
        };
        run_all(&mut backend, &suite).unwrap();
    }
}
