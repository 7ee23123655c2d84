//! A small server: ranks on threads route the tokens of a recorded trace through a mixture of experts, and an engine per rank moves
//! the experts meanwhile. Every output of every step is compared, bit for bit, with what the model makes of the token.
//!
//! ```sh
//! cargo run --release -p eplb-engine --example serve -- --ranks 8 --steps 600
//! ```
//!
//! With `--gpu peer` (or `nccl`, `nccl-steps`, `pynccl`) each rank has a CUDA device: slots and maps lie there, and passes run on two streams of
//! it. With `--processes 1` each such rank is a process. `--rounds` ends it after so many rounds, `--storm 0.04` fails each wave on each rank with that
//! chance, `--quiesce` and `--reform` do so every so many steps, `--hook 1` derives a tensor after each commit, `--stand-by 0` has
//! steps make their commits themselves, `--moves` limits what a round moves, and `--moment` is how many steps other experts are popular for.
//!
//! Prints the time of a step with and without balancing (each token and choice takes `--token-us` on the device of the rank
//! that serves it, so a rank with more tokens is slower), what the rounds did, and how long steps stood in the engine.

mod card;
mod mail;
mod model;
mod rank;
mod storm;
#[cfg(unix)]
mod wire;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eplb_comm::store::{FileStore, InProcessStore, Limits, Store};
use eplb_comm_nccl::Backend;
use eplb_core::{ExpertId, LayerId, RankId, SlotId, TensorLayout, Topology};
use eplb_engine::engine::{Device, Engine, EngineConfig, Report, RoundOutcome, SetId, TriggerConfig, World};
use eplb_engine::process::{DevicePeerTransport, LocalTransport, NcclTransport, Transport};
use eplb_plan::Policy;
use eplb_trace::Trace;

use card::Card;
use card::derived::Derived;
use mail::{Mail, Post};
use model::{Model, small_tensors};
use rank::{Hands, Plain, Seen, Server};
use storm::Stormy;

/// What may be chosen on the command line.
struct Options {
    trace: String,
    ranks: usize,
    slots: usize,
    layers: usize,
    tokens: usize,
    steps: u64,
    token_us: u64,
    interval_ms: u64,
    /// Rounds after which it ends; none: after the steps.
    rounds: Option<u64>,
    /// Chance of a rank to fail a wave.
    storm: f64,
    /// Most experts that a round moves.
    moves: Option<usize>,
    /// Steps from one moment of the trace to the next.
    moment: Option<u64>,
    margin: u64,
    /// Steps after which all ranks close everything and open it again, or form a new epoch.
    quiesce: Option<u64>,
    reform: Option<u64>,
    /// Whether a tensor is derived from weights after commits.
    hook: bool,
    /// Microseconds that steps wait for the engine's thread to make their commits; none: the engine's default.
    stand_by: Option<u64>,
    /// What carries experts between devices; none: host memory.
    gpu: Option<String>,
    /// Size of an expert on a device.
    expert_kib: usize,
    /// Whether ranks are processes.
    processes: bool,
}

impl Options {
    /// Tensors of an expert.
    fn tensors(&self) -> Vec<TensorLayout> {
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

    fn transport(&self) -> Result<Arc<dyn Transport>, String> {
        let inner: Arc<dyn Transport> = match self.gpu.as_deref() {
            None => LocalTransport::new(1),
            Some("peer") if self.processes => DevicePeerTransport::processes(),
            Some("peer") => DevicePeerTransport::threads(),
            Some("nccl") => Arc::new(NcclTransport::new(Backend::Nccl)),
            Some("nccl-steps") => Arc::new(NcclTransport::in_steps(Backend::Nccl)),
            Some("pynccl") => Arc::new(NcclTransport::new(Backend::PyNccl)),
            Some(other) => return Err(format!("--gpu is {other:?}; it is peer, nccl, nccl-steps or pynccl")),
        };
        Ok(if self.storm > 0.0 { Stormy::around(inner, self.storm) } else { inner })
    }
}

fn options() -> Result<Options, String> {
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
        stand_by: None,
        gpu: None,
        expert_kib: 256,
        processes: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} is {value:?}, which is no number"));
        match name.as_str() {
            "--trace" => options.trace = value,
            "--gpu" => options.gpu = Some(value),
            "--processes" => options.processes = number()? > 0,
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
            "--stand-by" => options.stand_by = Some(number()?),
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

fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    let trace = Trace::open(&options.trace)?;
    if options.processes {
        return processes(&options, &trace);
    }
    let mut wrong = 0;
    // What many rounds do is compared with what must come out, not with a run that never moves.
    let runs = if options.rounds.is_some() { &[true][..] } else { &[false, true] };
    for &balancing in runs {
        let server = server(&options, &trace, Mail::boxed(options.ranks))?;
        let (store, transport) = (Arc::new(InProcessStore::new()), options.transport()?);
        let serve =
            |rank| serve(&options, &server, (rank, rank), (store.clone(), transport.clone()), balancing);
        let ranks = std::thread::scope(|scope| {
            let serve = &serve;
            let threads: Vec<_> = (0..options.ranks).map(|rank| scope.spawn(move || serve(rank))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a rank panicked".into())))
                .collect::<Result<Vec<_>, String>>()
        })?;
        wrong += tell(&options, balancing, &ranks);
    }
    if wrong > 0 { Err(format!("{wrong} outputs are wrong").into()) } else { Ok(()) }
}

/// Starts a process for each rank, with and without balancing; or is one of them.
#[cfg(unix)]
fn processes(options: &Options, trace: &Trace) -> Result<(), Box<dyn Error>> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let number = |name: &str| std::env::var(name)?.parse::<usize>().map_err(Box::<dyn Error>::from);
        let (rank, balancing) = (number(RANK)?, number(BALANCING)? > 0);
        let folder = std::path::PathBuf::from(folder);
        let mail = wire::Wire::open(&folder, rank, options.ranks)?;
        let deadline = std::time::Instant::now() + mail::LONGEST;
        let store = FileStore::open(&folder.join("store"), Limits::default(), deadline)?;
        let server = server(options, trace, Box::new(mail))?;
        // A process that sees one device alone was given its own.
        let device = if eplb_cuda::context::device_count()? == 1 { 0 } else { rank };
        let served =
            serve(options, &server, (rank, device), (Arc::new(store), options.transport()?), balancing)?;
        let wrong = tell(options, balancing, &[served]);
        return if wrong > 0 {
            Err(format!("rank {rank}: {wrong} outputs are wrong").into())
        } else {
            Ok(())
        };
    }
    if options.gpu.is_none() {
        return Err("--processes is for ranks on devices: give --gpu too".into());
    }
    for balancing in ["0", "1"] {
        let folder = std::env::temp_dir().join(format!("eplb-serve-{}-{balancing}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let start = |rank: usize| {
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command.args(std::env::args_os().skip(1)).env(FOLDER, &folder).env(BALANCING, balancing);
            if rank > 0 {
                command.stdout(std::process::Stdio::null());
            }
            command.env(RANK, rank.to_string()).spawn()
        };
        let children: Vec<_> = (0..options.ranks).map(start).collect();
        let mut failed = Vec::new();
        for (rank, child) in children.into_iter().enumerate() {
            if !child.and_then(|mut child| child.wait())?.success() {
                failed.push(rank);
            }
        }
        std::fs::remove_dir_all(&folder)?;
        if !failed.is_empty() {
            return Err(format!("ranks {failed:?} failed").into());
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn processes(_: &Options, _: &Trace) -> Result<(), Box<dyn Error>> {
    Err("--processes needs Unix sockets".into())
}

/// Variables that tell a process which rank it is, where the others are, and whether it balances.
#[cfg(unix)]
const RANK: &str = "EPLB_SERVE_RANK";
#[cfg(unix)]
const FOLDER: &str = "EPLB_SERVE_FOLDER";
#[cfg(unix)]
const BALANCING: &str = "EPLB_SERVE_BALANCING";

/// What a rank saw, the rounds that it took part in, and its metrics.
type Served = (Seen, Vec<Report>, String);

/// Prints what ranks of this process saw; how much of it was wrong.
fn tell(options: &Options, balancing: bool, ranks: &[Served]) -> u64 {
    let seen: Vec<&Seen> = ranks.iter().map(|(seen, ..)| seen).collect();
    let (_, reports, metrics) = &ranks[0];
    let mut times: Vec<Duration> = seen.iter().flat_map(|seen| seen.times.iter().copied()).collect();
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{}: {} steps on {} ranks; ms per step p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}",
        if balancing { "balancing" } else { "not balancing" },
        seen[0].steps,
        seen.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    let bad: u64 = seen.iter().map(|seen| seen.wrong).sum();
    let tokens = seen[0].steps * (options.tokens * seen.len()) as u64;
    println!("  outputs: {tokens} compared bit for bit, {bad} wrong");
    if let Some(first) = seen.iter().find_map(|seen| seen.first_wrong.as_ref()) {
        println!("  first wrong: {first}");
    }
    if balancing {
        let moved: Vec<&Report> = reports.iter().filter(|r| r.outcome == RoundOutcome::Moved).collect();
        let mean = |of: fn(&Report) -> f64| {
            moved.iter().map(|report| of(report)).sum::<f64>() / moved.len().max(1) as f64
        };
        let count = |name: &str| reports.iter().filter(|report| report.outcome.name() == name).count();
        let (aborted, late) = (count("aborted"), count("too_late"));
        println!("  rounds broken off: {aborted}; that came too late for a step: {late}");
        println!(
            "  rounds: {} of {} moved experts: {} moves, {} waves; balancedness {:.3} before, {:.3} planned, {:.3} reached, \
             bound {:.3}; ms planning {:.2}, in all {:.1}",
            moved.len(),
            reports.len(),
            moved.iter().map(|report| report.moves).sum::<usize>(),
            moved.iter().map(|report| report.waves).sum::<usize>(),
            mean(|report| report.before),
            mean(|report| report.predicted),
            mean(|report| report.reached),
            mean(|report| report.bound),
            mean(|report| report.plan_time.as_secs_f64() * 1e3),
            mean(|report| report.time.as_secs_f64() * 1e3)
        );
        let switches: u64 = seen.iter().map(|seen| seen.switches).sum();
        println!(
            "  maps changed before {switches} of the ranks' steps; in the engine these took, on rank 0:"
        );
        for line in metrics
            .lines()
            .filter(|line| line.starts_with("eplb_stall") || line.contains("hold") || line.contains("launch"))
        {
            println!("    {line}");
        }
    }
    let calls = |only: fn(&(Duration, bool)) -> bool| {
        let all = seen.iter().flat_map(|seen| seen.calls.iter().filter(|call| only(call)));
        let mut times: Vec<Duration> = all.map(|(time, _)| *time).collect();
        times.sort_unstable();
        times
    };
    for (which, calls) in [("all", calls(|_| true)), ("those that changed maps", calls(|call| call.1))] {
        let at = |part: f64| calls[((calls.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        if !calls.is_empty() {
            let (p50, p99, most) = (at(0.5), at(0.99), at(1.0));
            let count = calls.len();
            println!(
                "  us of steps in the engine, {which}, {count}: p50 {p50:.2}, p99 {p99:.2}, max {most:.2}"
            );
        }
    }
    bad
}

/// What all ranks of this process share.
fn server(options: &Options, trace: &Trace, mail: Box<dyn Post>) -> Result<Server, Box<dyn Error>> {
    Ok(Server {
        model: Model::new(trace, options.layers, options.tensors())?,
        topology: Topology::uniform(options.ranks, options.slots)?,
        mail,
        tokens: options.tokens,
        steps_per_moment: options.moment.unwrap_or(options.steps / trace.steps() as u64).max(1),
        token_time: Duration::from_micros(options.token_us),
        over: AtomicBool::new(false),
    })
}

/// Serves with one rank until its last step.
fn serve(
    options: &Options,
    server: &Server,
    (rank, device): (usize, usize),
    (store, transport): (Arc<dyn Store>, Arc<dyn Transport>),
    balancing: bool,
) -> Result<Served, String> {
    let interval = balancing.then_some(options.interval_ms as f64 / 1e3);
    let mut config = EngineConfig {
        policy: Policy::Incremental,
        trigger: TriggerConfig { interval_s: interval, rest_s: 0.0, ..TriggerConfig::default() },
        window: 8,
        sample_ms: (options.interval_ms / 4).max(1),
        poll_ms: (options.interval_ms / 4).clamp(1, 5),
        margin: options.margin,
        stand_by_us: options.stand_by,
        ..EngineConfig::default()
    };
    config.budget.moves = options.moves;
    let world = World::Group { rank: RankId::at(rank), world_size: options.ranks, store, transport };
    let text = |error: &dyn std::fmt::Display| format!("rank {rank}: {error}");
    let made = start(server, config, world, options.gpu.as_ref().map(|_| (device, options.hook)));
    let (engine, set, mut hands) = made.map_err(|error| {
        server.mail.leave();
        text(&error)
    })?;
    let (mut reports, mut rounds) = (Vec::new(), 0);
    let seen = server.serve(&engine, set, &mut *hands, |step| {
        if engine.rounds() > rounds {
            rounds = engine.rounds();
            reports.extend(engine.last_report(set));
        }
        // All ranks end after the same step, whether they share this or not; rounds are counted by one that they do share it with.
        let enough = rank == 0 && options.rounds.is_some_and(|most| rounds >= most);
        if enough || step + 1 >= options.steps {
            server.over.store(true, Ordering::SeqCst);
        }
        // All ranks after the same step, and none is at the next before it is through.
        if options.quiesce.is_some_and(|every| (step + 1) % every == 0) {
            engine.quiesce(mail::LONGEST)?;
            engine.reopen(mail::LONGEST)?;
        }
        if options.reform.is_some_and(|every| (step + 1) % every == 0) {
            engine.reform(mail::LONGEST)?;
        }
        Ok(())
    });
    let metrics = engine.metrics(false);
    let ended = engine.shutdown(Duration::from_secs(20)).map_err(|error| text(&error));
    // Waits for what is enqueued on slots, which go with the engine.
    drop(hands);
    drop(engine);
    let seen = seen.map_err(|error| text(&error))?;
    ended.map(|()| (seen, reports, metrics))
}

/// An engine, its layer set, and what computes with it.
type Made = (Engine, SetId, Box<dyn Hands>);

/// An engine that lends the memory, with the model's weights in it, and what computes with it.
fn start(
    server: &Server,
    config: EngineConfig,
    world: World,
    device: Option<(usize, bool)>,
) -> Result<Made, Box<dyn Error>> {
    let mut builder = Engine::builder(config, world);
    let derived = Derived::default();
    if let Some((ordinal, hook)) = device {
        builder.device(Device::new(ordinal)?)?;
        if hook {
            builder.after_commit(derived.hook());
        }
    }
    let (model, topology) = (&server.model, &server.topology);
    let set = builder.layer_set("main", topology.clone(), model.experts(), model.layers())?;
    for layer in 0..model.layers() {
        builder.lend_layer(set, layer, &model.tensors)?;
    }
    let engine = builder.start()?;
    if let Some((_, hook)) = device {
        let mut card = Card::new(&engine, set)?;
        if hook {
            card.derive(&engine, set, &derived)?;
        }
        return Ok((engine, set, Box::new(card)));
    }
    let maps = engine.maps(set);
    for ((layer, slot), &expert) in maps.phy2log.indexed_iter() {
        if topology.rank_of(SlotId::at(slot)) == engine.rank() && expert >= 0 {
            let (layer, slot) = (LayerId::at(layer), SlotId::at(slot));
            engine.memory(set).fill(layer, slot, ExpertId(expert as u32))?;
        }
    }
    Ok((engine, set, Box::new(Plain)))
}
