//! How a communicator behaves.

use std::time::Duration;

use nccl_rs::Config;

/// Which library carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// The library that [`nccl_rs::Library::open`] finds.
    #[default]
    Nccl,
    /// The copy that the process has loaded, as servers do that carry NCCL themselves; never another one.
    PyNccl,
}

impl Backend {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Nccl => "nccl",
            Backend::PyNccl => "pynccl",
        }
    }
}

/// From where groups are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Launch {
    /// From a thread of the communicator's own, for servers that have no other work of NCCL in flight on the same devices. Beside it nothing says
    /// in which order a device takes the kernels of both, so that ranks may take them in different ones. Refused where
    /// `NCCL_LAUNCH_ORDER_IMPLICIT` is set: NCCL then takes launches on a device from one thread alone.
    #[default]
    Thread,
    /// From [`Pump::step`](crate::Pump::step), which the server calls on its own thread before each step: every rank launches a
    /// wave before the same step, so in the same order with the server's own collectives.
    Pump,
}

/// How rows with gaps and small tensors are gathered into messages and scattered from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gather {
    /// By one launch of the kernel before and after each group where its machine code is found, else by copies.
    #[default]
    Auto,
    /// By a copy for each tensor.
    Copies,
}

/// How a communicator behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Options of NCCL's communicator. By default thread blocks are not capped: beside matrix products on an H200, fewer blocks made an
    /// exchange longer by as much as they made it gentler (docs/benchmarks/nccl.md). Three or four ranks are given as many as there are, where a
    /// device has multiprocessors enough, so that a message has 16 channels and not 8; `min_ctas: Some(1)` leaves that to NCCL, which takes 1.3 GiB less for its buffers then.
    pub config: Config,
    /// Most sends and receives of a rank in one group. Groups of about 2,000 have hung NCCL before 2.30.
    pub operations: usize,
    /// Bytes of device memory for each direction in which rows with gaps and small tensors are packed; 4 MiB if no rank has gaps,
    /// nothing if there is nothing to pack.
    pub pack_bytes: usize,
    /// Tensors of fewer bytes travel together, one message for each expert and peer; larger ones go from where they lie.
    pub gather_below: usize,
    /// How rows are packed.
    pub gather: Gather,
    /// From where groups are launched.
    pub launch: Launch,
    /// How often a rank looks whether another has given up.
    pub watch: Duration,
    /// Priority of the streams: lower runs first, 0 is the default.
    pub stream_priority: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config: Config::default(),
            operations: 256,
            pack_bytes: 16 << 20,
            gather_below: 1 << 20,
            gather: Gather::Auto,
            launch: Launch::Thread,
            watch: Duration::from_millis(5),
            stream_priority: 0,
        }
    }
}
