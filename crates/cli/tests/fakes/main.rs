//! The whole path to the GPUs with no GPU: `eplb` on recording fakes of `libcuda.so.1` and `libnccl.so.2` (`tests/fakes`), several
//! ranks as threads of one process, with the calls that it made audited and with planted faults.

mod audit;
mod auto;
#[path = "../../../../tests/fakes/build.rs"]
mod build;
mod bundle;
mod gloo;
mod interference;
mod interpose;
mod libraries;
#[path = "../../../../tests/fakes/log.rs"]
mod log;
mod peer;
mod processes;
mod runs;
