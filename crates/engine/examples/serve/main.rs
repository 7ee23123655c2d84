//! A small server: ranks on threads route the tokens of a recorded trace through a mixture of experts, and an engine per rank moves
//! the experts meanwhile. Every output of every step is compared, bit for bit, with what the model makes of the token.
//!
//! ```sh
//! cargo run --release -p eplb-engine --example serve -- --ranks 8 --steps 600
//! ```
//!
//! With `--gpu peer` (or `nccl`, `nccl-steps`, `pynccl`) each rank has a CUDA device: slots and maps lie there, and passes run on two streams of
//! it. With `--processes 1` each such rank is a process; then there is `--gpu auto` too, and `--nodes 2` takes the ranks for those of two hosts.
//! `--rounds` ends it after so many rounds, `--storm 0.04` fails each wave on each rank with that chance, `--quiesce` and `--reform` do so every so
//! many steps, `--hook 1` derives a tensor after each commit, `--moves` limits what a round moves, and `--moment` is how many steps other experts
//! are popular for.
//!
//! Prints the time of a step with and without balancing (each token and choice takes `--token-us` on the device of the rank
//! that serves it, so a rank with more tokens is slower), what the rounds did, and how long steps stood in the engine.

mod card;
mod mail;
mod model;
mod options;
mod processes;
mod rank;
mod storm;
mod tell;
#[cfg(unix)]
mod wire;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eplb_comm::store::{InProcessStore, Store};
use eplb_core::{ExpertId, LayerId, RankId, SlotId, Topology};
use eplb_engine::engine::{Device, Engine, EngineConfig, SetId, TriggerConfig, World};
use eplb_engine::process::Transport;
use eplb_plan::Policy;
use eplb_trace::Trace;

use card::Card;
use card::derived::Derived;
use mail::{Mail, Post};
use model::Model;
use options::{Options, options};
use processes::processes;
use rank::{Hands, Plain, Server};
use tell::{Served, tell};

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
