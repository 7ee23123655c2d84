//! The engine on device memory with no device: whole rounds on the recording fake of `libcuda.so.1` (`tests/fakes`), with the server of the
//! example on two streams per rank. Outputs, maps and what late work reads are compared; the calls are audited; faults are planted in both.
//!
//! The fake must be there when a process starts, so each test runs this program again, for the test that it leaves out (`inner`).

mod audit;
#[path = "../../../../tests/fakes/build.rs"]
mod build;
mod inner;
#[path = "../../../../tests/fakes/log.rs"]
#[allow(dead_code, reason = "other tests read more of it")]
mod log;
mod outer;

/// The server of the example.
#[path = "../../examples/serve"]
#[allow(dead_code, reason = "ranks on the host are for other tests")]
mod serve {
    pub(crate) mod card;
    pub(crate) mod mail;
    pub(crate) mod model;
    pub(crate) mod rank;
    pub(crate) mod storm;
}
