//! `eplb trace`.

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use eplb_trace::generate::{PRESETS, Skew, Spec};
use eplb_trace::info::{Glyphs, HeatMap, Info};

use crate::args::{Steps, open};
use crate::output::{Failure, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show shape, skew and drift of a trace, and a heat map of its loads
    Info(InfoArgs),
    /// Make up a trace: Zipf or lognormal skew, drift, switches of domain, idle layers; the same for the same seed
    Generate(Box<GenerateArgs>),
    /// Copy a trace, whole or in part, to another format (by the name's end: .npz, .npy, .csv)
    Convert(ConvertArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct InfoArgs {
    /// Trace: .npy, .npz or CSV
    #[arg(value_name = "FILE")]
    trace: PathBuf,

    /// Steps per window: drift is between neighbouring windows
    #[arg(long, default_value = "10", value_name = "T")]
    window: NonZeroUsize,

    /// Steps A..B-1 (default: all)
    #[arg(long, value_name = "A:B", value_parser = Steps::parse)]
    steps: Option<Steps>,

    /// Sort each layer's experts in the heat map, hottest first
    #[arg(long)]
    sorted: bool,

    /// Draw with ASCII characters only
    #[arg(long)]
    ascii: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// Where to write it (.npz, .npy or .csv)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Start from named settings: dsv3-zipf, dsv3-lognormal, dsv3-zeros, the same for k2 and qwen3, or day
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,

    /// Same settings and seed, same trace
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,

    /// Steps
    #[arg(long, value_name = "T")]
    steps: Option<usize>,

    /// MoE layers
    #[arg(long, value_name = "L")]
    layers: Option<usize>,

    /// Logical experts per layer
    #[arg(long, value_name = "E")]
    experts: Option<usize>,

    /// Tokens per step
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,

    /// Experts that each token goes to
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// How unequally popular the experts of a layer are
    #[arg(long, value_enum)]
    skew: Option<SkewArg>,

    /// Least and largest exponent of --skew zipf
    #[arg(long, num_args = 2, value_names = ["LOW", "HIGH"])]
    zipf: Option<Vec<f64>>,

    /// Standard deviation of the logarithm for --skew lognormal
    #[arg(long, value_name = "SIGMA")]
    sigma: Option<f64>,

    /// Each step multiplies each expert's popularity by exp(DRIFT N(0,1)), for good
    #[arg(long)]
    drift: Option<f64>,

    /// Each step multiplies each expert's popularity by exp(NOISE N(0,1)), for that step
    #[arg(long)]
    noise: Option<f64>,

    /// Kinds of traffic that follow each other
    #[arg(long, value_name = "N")]
    domains: Option<usize>,

    /// Steps from one domain to the next
    #[arg(long, value_name = "STEPS")]
    switch_every: Option<usize>,

    /// Part of the experts with another popularity in another domain, 0..1
    #[arg(long, value_name = "PART")]
    domain_shift: Option<f64>,

    /// Layers without tokens
    #[arg(long, value_name = "N")]
    idle_layers: Option<usize>,

    /// Part of each layer's experts that never get a token, 0..1
    #[arg(long, value_name = "PART")]
    idle_experts: Option<f64>,

    /// Streams that the steps are divided into
    #[arg(long, value_name = "N")]
    streams: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SkewArg {
    /// All experts alike
    Even,
    /// A power law over a random order of the experts
    Zipf,
    /// exp(sigma N(0,1))
    Lognormal,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// Trace: .npy, .npz or CSV, also SGLang's, vLLM's and vllm-ascend's load arrays in an .npz
    #[arg(value_name = "FILE")]
    trace: PathBuf,

    /// Where to write it (.npz, .npy, or .csv with the sum over steps)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Steps A..B-1 (default: all)
    #[arg(long, value_name = "A:B", value_parser = Steps::parse)]
    steps: Option<Steps>,
}

pub(crate) fn run(command: &Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Info(args) => info(args),
        Command::Generate(args) => generate(args),
        Command::Convert(args) => {
            open(&args.trace, args.steps)?.write(&args.out)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn info(args: &InfoArgs) -> Result<ExitCode, Failure> {
    let trace = open(&args.trace, args.steps)?;
    let info = Info::of(&trace, args.window)?;
    if args.json {
        let object = serde_json::to_value(&info)
            .map_err(|error| Failure::Run(format!("cannot write the facts as JSON: {error}")))?;
        print_json(&object)?;
        return Ok(ExitCode::SUCCESS);
    }
    let unknown = || "-".to_owned();
    let number = |value: Option<f64>, digits: usize| value.map_or_else(unknown, |v| format!("{v:.digits$}"));
    let drift = &info.drift;
    let mut text = format!(
        "{} {}: {} steps, {} layers, {} experts\n",
        info.source, info.dtype, info.steps, info.layers, info.experts
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<34}{value}\n"));
    line("tokens per step and layer", number(info.tokens_per_step, 1));
    line("hottest expert / mean, all steps", number(info.max_over_mean, 2));
    line("hottest expert / mean, per step", number(info.max_over_mean_per_step, 2));
    line("Gini coefficient", number(info.gini, 3));
    line(&format!("drift between windows of {}", drift.window), number(drift.mean, 3));
    line(
        "largest drift",
        drift.largest.map_or_else(unknown, |(value, step)| format!("{value:.3} (before step {step})")),
    );
    line(
        "idle layers",
        if info.idle_layers.is_empty() { "none".into() } else { format!("{:?}", info.idle_layers) },
    );
    line("idle experts in other layers", info.idle_experts.to_string());
    line("streams", info.streams.len().to_string());
    let loads = trace.loads(0..trace.steps())?;
    let glyphs = if args.ascii { Glyphs::Ascii } else { Glyphs::Blocks };
    let width = if std::io::stdout().is_terminal() { 96 } else { 64 };
    let map = HeatMap { width, glyphs, sorted: args.sorted, ..HeatMap::default() };
    print(&format!("{text}\n{}", map.render(loads.sum().view())))?;
    Ok(ExitCode::SUCCESS)
}

fn generate(args: &GenerateArgs) -> Result<ExitCode, Failure> {
    let base = match &args.preset {
        None => Spec::default(),
        Some(name) => Spec::preset(name).ok_or_else(|| {
            let known: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
            Failure::input(format!("no preset {name:?}; there are {}", known.join(", ")))
        })?,
    };
    let spec = Spec {
        steps: args.steps.unwrap_or(base.steps),
        layers: args.layers.unwrap_or(base.layers),
        experts: args.experts.unwrap_or(base.experts),
        tokens: args.tokens.unwrap_or(base.tokens),
        top_k: args.top_k.unwrap_or(base.top_k),
        skew: skew(args, base.skew)?,
        drift: args.drift.unwrap_or(base.drift),
        noise: args.noise.unwrap_or(base.noise),
        domains: args.domains.unwrap_or(base.domains),
        switch_every: args.switch_every.unwrap_or(base.switch_every),
        domain_shift: args.domain_shift.unwrap_or(base.domain_shift),
        idle_layers: args.idle_layers.unwrap_or(base.idle_layers),
        idle_experts: args.idle_experts.unwrap_or(base.idle_experts),
        streams: args.streams.unwrap_or(base.streams),
        seed: args.seed,
        ..base
    };
    spec.generate()?.write(&args.out)?;
    Ok(ExitCode::SUCCESS)
}

fn skew(args: &GenerateArgs, base: Skew) -> Result<Skew, Failure> {
    let kind = match (args.skew, &args.zipf, args.sigma) {
        (Some(kind), ..) => kind,
        (None, Some(_), None) => SkewArg::Zipf,
        (None, None, Some(_)) => SkewArg::Lognormal,
        (None, None, None) => return Ok(base),
        (None, Some(_), Some(_)) => {
            return Err(Failure::input("--zipf and --sigma are two kinds of skew; give one"));
        }
    };
    match kind {
        SkewArg::Zipf if args.sigma.is_some() => Err(Failure::input("--sigma goes with --skew lognormal")),
        SkewArg::Lognormal if args.zipf.is_some() => Err(Failure::input("--zipf goes with --skew zipf")),
        SkewArg::Even if args.zipf.is_some() || args.sigma.is_some() => {
            Err(Failure::input("--skew even has no exponents"))
        }
        SkewArg::Even => Ok(Skew::Even),
        SkewArg::Zipf => match args.zipf.as_deref() {
            Some(&[low, high]) => Ok(Skew::Zipf { low, high }),
            _ => Ok(Skew::Zipf { low: 0.6, high: 1.2 }),
        },
        SkewArg::Lognormal => Ok(Skew::Lognormal { sigma: args.sigma.unwrap_or(1.0) }),
    }
}
