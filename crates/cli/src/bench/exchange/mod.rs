//! `eplb bench exchange`.

mod printed;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use eplb_comm_nccl::{Backend, Launch};
use eplb_cuda::ipc::HandleKind;
use eplb_engine::bench::{Carrier, Commit, ExchangeBench, Moves};

use super::processes::{self, Own};
use crate::output::{Failure, print, print_json};
use printed::text;
pub(super) use printed::{backend, check, object};

/// Arguments of `eplb bench exchange`.
#[derive(Debug, clap::Args)]
pub(crate) struct Exchange {
    /// What carries the bytes; all but `local` and `gloo` want a device per rank
    #[arg(long, value_enum, default_value_t = BackendArg::Local)]
    backend: BackendArg,

    /// With `gloo`: slots on a device per rank, and not in host memory
    #[arg(long)]
    on_devices: bool,

    /// Ranks; each is a thread of this process, or a process of its own with --processes
    #[arg(long, visible_alias = "gpus", default_value_t = 4, value_name = "W")]
    pub(super) ranks: usize,

    /// MoE layers
    #[arg(long, default_value_t = 8, value_name = "L")]
    layers: usize,

    /// Logical experts per layer
    #[arg(long, default_value_t = 64, value_name = "E")]
    experts: usize,

    /// Slots beyond one per expert, per layer over all ranks
    #[arg(long, default_value_t = 16, value_name = "R")]
    redundant: usize,

    /// Bytes of each tensor of an expert, several lists for the layers in turn; by default 44 MB of a large model on devices, 1 MiB on host
    /// memory
    #[arg(long, value_name = "B,B,..[/B,B,..]", value_parser = sizes)]
    tensors: Option<Sizes>,

    /// Gap in bytes behind each of ROWS rows of every tensor whose size divides by ROWS
    #[arg(long, value_name = "BYTES:ROWS", value_parser = gaps)]
    gaps: Option<(usize, usize)>,

    /// What moves: same, few2, shift, random, plan or holes (random, with slots that are emptied and filled with copies)
    #[arg(long, default_value = "random")]
    placement: Moves,

    /// Exchanges measured
    #[arg(long, default_value_t = 10, value_name = "N")]
    iters: usize,

    /// Begin no exchange after this many seconds, even if fewer than --iters were made; not with --processes
    #[arg(long, value_name = "S", conflicts_with = "processes")]
    for_seconds: Option<u64>,

    /// Exchanges before them
    #[arg(long, default_value_t = 2, value_name = "N")]
    warmup: usize,

    /// Staging memory per rank (default: the smaller of 256 MiB and a layer's slots, at least one expert)
    #[arg(long, value_name = "S")]
    staging_bytes: Option<usize>,

    /// Whether transfers of a wave run while the wave before moves, is decided and committed (default: true)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    overlap: Option<bool>,

    /// Most bytes that a wave carries into a rank and out of one (default: what is predicted to take the least time)
    #[arg(long, value_name = "BYTES")]
    wave_bytes: Option<u64>,

    /// Measure plain sends of NCCL between the same pairs, too, over a communicator with the same options (nccl and pynccl)
    #[arg(long, conflicts_with = "beside")]
    sends: bool,

    /// Check slots by the checksum kernel, too, on devices
    #[arg(long)]
    checksums: bool,

    /// Let only what cannot be drained go through staging
    #[arg(long)]
    drain_only: bool,

    /// Streams of each rank for pulls with `peer`: so many for each other rank where ranks are threads, for all where they are processes
    #[arg(long, default_value_t = 1, value_name = "N")]
    streams: usize,

    /// Take the ranks for those of so many nodes, with `peer` or `auto`: `peer` inside them, nccl (or gloo) between them, in one wave
    #[arg(long, default_value_t = 1, value_name = "N")]
    nodes: usize,

    /// Pull no more than this many 10^9 bytes per second into a rank, with `peer` on devices
    #[arg(long, value_name = "GB/S")]
    max_gbps: Option<f64>,

    /// Whether ranks take turns at sources, so that no two pull from one at a time, with `peer` on devices (default: true)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    turns: Option<bool>,

    /// Record what happens when in the last exchange: a line of FILE each (of FILE.<rank> with --processes), and a table
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,

    /// Fewest thread blocks that NCCL prepares channels for; more than its default gives each message more of them
    #[arg(long, value_name = "N")]
    min_ctas: Option<u32>,

    /// Most thread blocks that a group of NCCL may take
    #[arg(long, value_name = "N")]
    max_ctas: Option<u32>,

    /// Thread blocks per cluster of NCCL's kernels, 0 to 8
    #[arg(long, value_name = "N")]
    cga_cluster_size: Option<u32>,

    /// Network module of NCCL, such as IB or Socket
    #[arg(long, value_name = "NAME")]
    net_name: Option<String>,

    /// Traffic class of NCCL on networks that know them
    #[arg(long, value_name = "N")]
    traffic_class: Option<i32>,

    /// Most sends and receives of a rank in one group of NCCL
    #[arg(long, value_name = "N")]
    operations: Option<usize>,

    /// Tensors of fewer bytes are gathered into one message for each expert and peer (nccl and pynccl; default 1 MiB)
    #[arg(long, value_name = "BYTES")]
    gather_below: Option<usize>,

    /// Steps between the largest begun on any rank and the one proposed for a commit; where that is too late for a rank, all is
    /// measured again with more
    #[arg(long, default_value_t = 2, value_name = "N")]
    margin: u64,

    /// Milliseconds of a step; commits wait for agreed steps. 0 commits as soon as all agree
    #[arg(long, default_value_t = 0.0, value_name = "M")]
    step_ms: f64,

    /// All-reduce this many bytes meanwhile, as a server does, over a communicator of its own on the same devices
    #[arg(long, value_name = "BYTES")]
    beside: Option<usize>,

    /// Launch cooperative kernels meanwhile, one after the other on each device, each of which takes every multiprocessor
    #[arg(long)]
    crowd: bool,

    /// Check every byte after each so many exchanges, too, and not after the first and the last alone
    #[arg(long, value_name = "N")]
    check_every: Option<usize>,

    /// Let that server launch the waves, each before one step on all ranks, instead of a thread of our own
    #[arg(long, requires = "beside")]
    launch_in_steps: bool,

    /// Move the experts over the communicator that the server lends, and not over one of our own
    #[arg(long, requires = "launch_in_steps")]
    lent: bool,

    /// How bytes go from staging to slots on devices
    #[arg(long, value_enum, default_value_t = CommitArg::Auto)]
    commit: CommitArg,

    /// How slots on devices are opened by other processes, with `peer`
    #[arg(long, value_enum, default_value_t = HandlesArg::Legacy)]
    handles: HandlesArg,

    /// Seconds that any part may take
    #[arg(long, default_value_t = 60, value_name = "S")]
    patience: u64,

    /// Start a process per rank (nccl and pynccl, peer, gloo on devices); with peer, gloo and auto they share devices where these are fewer
    #[arg(long)]
    processes: bool,

    #[command(flatten)]
    own: Own,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendArg {
    /// Copies between threads, on host memory
    Local,
    /// Gloo over the loopback interface, on host memory, or with --on-devices through pinned host memory
    Gloo,
    /// NCCL, as `eplb doctor` finds it
    Nccl,
    /// The copy of NCCL that the process has loaded
    Pynccl,
    /// Copy engines that pull from the memory of peers; without a CUDA driver threads, between processes on host memory
    Peer,
    /// What fits best between processes, found out when they meet: peer where they can open each other's memory, nccl (gloo on host memory
    /// and where NCCL is missing) where they cannot, both in one wave where some can; the reasons are told
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CommitArg {
    /// By the kernel where EPLB_KERNELS, or a folder `kernels` beside this program, has it; else by copies
    Auto,
    /// A copy for each tensor
    Copies,
    /// One launch of the commit kernel
    Kernel,
}

/// How slots on devices are opened by other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HandlesArg {
    /// Legacy handles of cuMemAlloc's memory
    Legacy,
    /// Descriptors of virtual memory
    Descriptor,
    /// Fabric handles of virtual memory
    Fabric,
}

/// Whether `peer`, as it is or in `auto`, is its twin on host memory, since there is no CUDA driver.
fn on_host(args: &Exchange) -> bool {
    matches!(args.backend, BackendArg::Peer | BackendArg::Auto) && eplb_cuda::probe().is_err()
}

/// Bytes of tensors, of layers in turn.
type Sizes = Vec<Vec<usize>>;

fn sizes(text: &str) -> Result<Sizes, String> {
    let wrong = |text: &str| format!("{text:?} is no list of sizes in bytes, such as 4096,512");
    let layer = |text: &str| -> Result<Vec<usize>, String> {
        text.split(',').map(|size| size.trim().parse().map_err(|_| wrong(text))).collect()
    };
    text.split('/').map(layer).collect()
}

fn gaps(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("{text:?} is not BYTES:ROWS with at least one row");
    let (gap, rows) = text.split_once(':').ok_or_else(wrong)?;
    let parsed = (gap.parse().map_err(|_| wrong())?, rows.parse().map_err(|_| wrong())?);
    if parsed.1 == 0 { Err(wrong()) } else { Ok(parsed) }
}

/// An expert of a large model in 8-bit floats: two matrices and their scales.
const DEVICE_TENSORS: [usize; 4] = [29_360_128, 14_680_064, 7168, 3584];

/// 1 MiB.
const HOST_TENSORS: [usize; 3] = [699_051, 347_477, 2048];

impl Exchange {
    /// The bench that the arguments describe.
    pub(super) fn bench(&self) -> Result<ExchangeBench, Failure> {
        let (carrier, tensors) = match self.backend {
            BackendArg::Local => (Carrier::Local, HOST_TENSORS.to_vec()),
            BackendArg::Gloo if self.on_devices => (Carrier::DeviceGloo, DEVICE_TENSORS.to_vec()),
            BackendArg::Gloo => (Carrier::Gloo, HOST_TENSORS.to_vec()),
            BackendArg::Nccl => (Carrier::Nccl(Backend::Nccl), DEVICE_TENSORS.to_vec()),
            BackendArg::Pynccl => (Carrier::Nccl(Backend::PyNccl), DEVICE_TENSORS.to_vec()),
            BackendArg::Peer if on_host(self) => (Carrier::Peer, HOST_TENSORS.to_vec()),
            BackendArg::Peer => (Carrier::Peer, DEVICE_TENSORS.to_vec()),
            BackendArg::Auto if on_host(self) => (Carrier::Auto, HOST_TENSORS.to_vec()),
            BackendArg::Auto => (Carrier::Auto, DEVICE_TENSORS.to_vec()),
        };
        if self.on_devices && self.backend != BackendArg::Gloo {
            return Err(Failure::input(
                "--on-devices is for --backend gloo; the others have one kind of memory",
            ));
        }
        if !self.step_ms.is_finite() || self.step_ms < 0.0 {
            return Err(Failure::input(format!("--step-ms {} is no length of time", self.step_ms)));
        }
        Ok(ExchangeBench {
            carrier,
            ranks: self.ranks,
            layers: self.layers,
            experts: self.experts,
            redundant: self.redundant,
            tensors: self.tensors.clone().unwrap_or_else(|| vec![tensors]),
            gaps: self.gaps,
            moves: self.placement,
            iterations: self.iters,
            time: self.for_seconds.map(Duration::from_secs),
            warmup: self.warmup,
            staging_bytes: self.staging_bytes,
            overlap: self.overlap,
            wave_bytes: self.wave_bytes,
            sends: self.sends,
            checksums: self.checksums,
            followers: !self.drain_only,
            streams: self.streams,
            max_gbps: self.max_gbps,
            nodes: self.nodes,
            turns: self.turns,
            timeline: self.timeline.clone(),
            config: nccl_rs::Config {
                min_ctas: self.min_ctas,
                max_ctas: self.max_ctas,
                cga_cluster_size: self.cga_cluster_size,
                net_name: self.net_name.clone(),
                traffic_class: self.traffic_class,
                name: Some("eplb".into()),
            },
            operations: self.operations,
            gather_below: self.gather_below,
            margin: self.margin,
            beside_bytes: self.beside,
            crowd: self.crowd,
            check_every: self.check_every,
            launch: if self.launch_in_steps { Launch::Pump } else { Launch::Thread },
            lent: self.lent,
            step: Duration::from_secs_f64(self.step_ms / 1e3),
            commit: match self.commit {
                CommitArg::Auto => Commit::Auto,
                CommitArg::Copies => Commit::Copies,
                CommitArg::Kernel => Commit::Kernel,
            },
            handles: match self.handles {
                HandlesArg::Legacy => HandleKind::Legacy,
                HandlesArg::Descriptor => HandleKind::Descriptor,
                HandlesArg::Fabric => HandleKind::Fabric,
            },
            patience: Duration::from_secs(self.patience),
        })
    }

    /// In a server the library is loaded already; here this command plays the server.
    pub(super) fn load_library(&self) -> Result<(), Failure> {
        if self.backend == BackendArg::Pynccl {
            nccl_rs::Library::open().map_err(|error| Failure::Run(error.to_string()))?;
        }
        Ok(())
    }

    pub(super) fn own(&self) -> &Own {
        &self.own
    }
}

pub(super) fn run(args: &Exchange) -> Result<ExitCode, Failure> {
    let bench = args.bench()?;
    // Threads of a process need no shared memory: host memory is pulled between processes only.
    let apart = args.processes || args.backend == BackendArg::Auto || on_host(args);
    if apart && args.own.rank.is_none() {
        let (outputs, failed) = processes::start(args.ranks, args.nodes)?.wait_all()?;
        // All ranks come to the same report; a failure is told by who has it.
        if let (Some(first), true) = (outputs.first(), failed.is_none()) {
            print(first)?;
        }
        return failed.map_or(Ok(ExitCode::SUCCESS), Err);
    }
    args.load_library()?;
    let report = match args.own.join(args.ranks)? {
        Some(joined) => bench.run_as_rank(joined.session)?,
        None => bench.run()?,
    };
    if args.json {
        print_json(&object(&bench, &report, args))?;
    } else {
        print(&text(&report, args))?;
    }
    if let Some(times) = &report.times {
        // Beside the one object, where that is what is printed.
        if args.json { eprint!("{times}") } else { print(&times.to_string())? }
    }
    check(&report)?;
    Ok(ExitCode::SUCCESS)
}
