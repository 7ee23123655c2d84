//! The command line of the server.

use std::sync::Arc;

use eplb_comm::store::StoreAddress;
use eplb_comm_nccl::Backend;
use eplb_core::TensorLayout;
use eplb_engine::EngineError;
use eplb_engine::process::{
    AutoTransport, DevicePeerTransport, GlooTransport, LocalTransport, NcclTransport, Transport,
};

use super::model::small_tensors;
use super::storm::Stormy;

/// What may be chosen on the command line.
pub(crate) struct Options {
    pub(crate) trace: String,
    pub(crate) ranks: usize,
    pub(crate) slots: usize,
    pub(crate) layers: usize,
    pub(crate) tokens: usize,
    pub(crate) steps: u64,
    pub(crate) token_us: u64,
    pub(crate) interval_ms: u64,
    /// Rounds after which it ends; none: after the steps.
    pub(crate) rounds: Option<u64>,
    /// Chance of a rank to fail a wave.
    pub(crate) storm: f64,
    /// Most experts that a round moves.
    pub(crate) moves: Option<usize>,
    /// Steps from one moment of the trace to the next.
    pub(crate) moment: Option<u64>,
    pub(crate) margin: u64,
    /// Steps after which all ranks close everything and open it again, or form a new epoch.
    pub(crate) quiesce: Option<u64>,
    pub(crate) reform: Option<u64>,
    /// Whether a tensor is derived from weights after commits.
    pub(crate) hook: bool,
    /// What carries experts between devices; none: host memory.
    pub(crate) gpu: Option<String>,
    /// Size of an expert on a device.
    pub(crate) expert_kib: usize,
    /// Whether ranks are processes.
    pub(crate) processes: bool,
    /// Hosts that those are to be taken for ranks of.
    pub(crate) nodes: usize,
}

impl Options {
    /// Tensors of an expert.
    pub(crate) fn tensors(&self) -> Vec<TensorLayout> {
        match self.gpu {
            None => small_tensors(),
            Some(_) => {
                let half = self.expert_kib.max(2) * 512;
                let rows = TensorLayout {
                    name: "w2".into(),
                    rows: 4,
                    row_bytes: half / 4,
                    pitch: half / 4 + 256,
                    slot_stride: half + 1024,
                };
                vec![TensorLayout::contiguous("w13", half), rows, TensorLayout::contiguous("scale", 96)]
            }
        }
    }

    /// What carries experts.
    pub(crate) fn transport(&self) -> Result<Arc<dyn Transport>, String> {
        let inner: Arc<dyn Transport> = match self.gpu.as_deref() {
            None => LocalTransport::new(1),
            Some("peer") if self.processes => DevicePeerTransport::processes(),
            Some("peer") => DevicePeerTransport::threads(),
            Some("auto") if self.processes => Arc::new(AutoTransport::new(gloo())),
            Some("gloo") => Arc::new(gloo().map_err(|error| error.to_string())?),
            Some("nccl") => Arc::new(NcclTransport::new(Backend::Nccl)),
            Some("nccl-steps") => Arc::new(NcclTransport::in_steps(Backend::Nccl)),
            Some("pynccl") => Arc::new(NcclTransport::new(Backend::PyNccl)),
            Some(other) => {
                return Err(format!(
                    "--gpu is {other:?}; it is peer, nccl, nccl-steps, pynccl, gloo, or with --processes auto"
                ));
            }
        };
        Ok(if self.storm > 0.0 { Stormy::around(inner, self.storm) } else { inner })
    }
}

/// Ranks of this example are of one host.
fn gloo() -> Result<GlooTransport, EngineError> {
    GlooTransport::new(None, &StoreAddress::File("/".into()))
}

/// Those that were chosen.
pub(crate) fn options() -> Result<Options, String> {
    let mut options = Options {
        trace: concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/day_26x64.npz").into(),
        ranks: 8,
        slots: 80,
        layers: 3,
        tokens: 64,
        steps: 600,
        token_us: 10,
        interval_ms: 100,
        rounds: None,
        storm: 0.0,
        moves: None,
        moment: None,
        margin: 8,
        quiesce: None,
        reform: None,
        hook: false,
        gpu: None,
        expert_kib: 256,
        processes: false,
        nodes: 1,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} is {value:?}, which is no number"));
        match name.as_str() {
            "--trace" => options.trace = value,
            "--gpu" => options.gpu = Some(value),
            "--processes" => options.processes = number()? > 0,
            "--nodes" => options.nodes = number()?.max(1) as usize,
            "--expert-kib" => options.expert_kib = number()? as usize,
            "--ranks" => options.ranks = number()? as usize,
            "--slots" => options.slots = number()? as usize,
            "--layers" => options.layers = number()? as usize,
            "--tokens" => options.tokens = number()? as usize,
            "--steps" => options.steps = number()?,
            "--token-us" => options.token_us = number()?,
            "--rounds" => options.rounds = Some(number()?),
            "--storm" => {
                let chance = value.parse().ok().filter(|chance| (0.0..=1.0).contains(chance));
                options.storm = chance.ok_or_else(|| format!("--storm is {value:?}, which is no chance"))?;
            }
            "--moves" => options.moves = Some(number()? as usize),
            "--moment" => options.moment = Some(number()?),
            "--margin" => options.margin = number()?,
            "--quiesce" => options.quiesce = Some(number()?.max(1)),
            "--reform" => options.reform = Some(number()?.max(1)),
            "--hook" => options.hook = number()? > 0,
            "--interval-ms" => options.interval_ms = number()?,
            _ => return Err(format!("{name} is not known")),
        }
    }
    if options.processes && options.rounds.is_some() {
        return Err("--rounds is for ranks that are threads: those of processes end after --steps".into());
    }
    Ok(options)
}
