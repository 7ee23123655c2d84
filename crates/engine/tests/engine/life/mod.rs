//! Lives of engines drawn from a seed: hosts serve, pause, ask for rounds, quiesce, reform, are started anew and end, each at its own moment, while
//! rounds are always under way. Deadlines of the engine are ten minutes, so that whatever waits for a rank that does not come is late here, and
//! nothing else is.
//!
//! 12 lives in a process and 3 over TCP; `EPLB_LIFE_SEEDS=1000` or `EPLB_LIFE_SEEDS=70..80` says which others; 1000 where `EPLB_FAULTS=all`.

mod aside;
mod host;
mod script;
mod trouble;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eplb_comm::store::tcp::{ServerOptions, StoreServer, TcpStore};
use eplb_comm::store::{Deadlines, InProcessStore, InterceptedStore, Store};
use eplb_core::{Placement, RankId, TensorLayout, Topology};
use eplb_engine::EngineError;
use eplb_engine::engine::{Builder, Engine, EngineConfig, SetId, TriggerConfig, World};
use eplb_engine::process::{MadeUp, Transport};

use aside::Aside;
use host::{Doings, Host};
use ndarray::Array2;
use script::{Act, Script};
use trouble::{Filled, Planted, Trouble};

/// Through what the ranks of a case meet.
#[derive(Debug)]
enum Place {
    InProcess(InProcessStore),
    Tcp(StoreServer),
}

/// One life of a group.
#[derive(Debug)]
struct Case {
    script: Script,
    /// Longest time of a call that waits for nobody who does not come.
    limit: Duration,
    trouble: Trouble,
    place: Place,
    transport: Arc<Filled>,
    doings: Doings,
    aside: Aside,
}

impl Case {
    fn new(script: Script, place: Place, planted: Planted, limit: Duration) -> Self {
        let trouble = Trouble::new(planted, script.seed);
        let start = Placement::round_robin(script.layers, script.experts, script.slots).unwrap();
        let transport = Arc::new(Filled::new(start, trouble.clone()));
        let aside = Aside::new(script.acts.len());
        Self { script, limit, trouble, place, transport, doings: Doings::default(), aside }
    }

    fn planted(&self) -> Planted {
        self.trouble.planted()
    }

    fn config(&self) -> EngineConfig {
        let trigger = TriggerConfig { interval_s: Some(0.0), rest_s: 0.0, ..TriggerConfig::default() };
        let margin = self.script.margin;
        let mut config =
            EngineConfig { trigger, sample_ms: 2, poll_ms: 2, margin, ..EngineConfig::default() };
        let minutes = [
            "store.operation",
            "store.join",
            "store.collective",
            "store.peer_timeout",
            "exchange.transfer",
            "exchange.answer",
            "exchange.peer",
            "exchange.commit_hold",
            "exchange.settle",
            "communicator",
            "plan",
        ];
        config.deadlines.extend(minutes.map(|name| (name.to_owned(), 600_000)));
        config.deadlines.insert("store.renew".into(), 50);
        config
    }

    fn store(&self) -> Arc<dyn Store> {
        let store: Arc<dyn Store> = match &self.place {
            Place::InProcess(store) => Arc::new(store.clone()),
            Place::Tcp(server) => {
                let deadline = Instant::now() + Duration::from_secs(60);
                let address = server.local_address().to_string();
                Arc::new(TcpStore::connect(&address, None, &patient(), deadline).unwrap())
            }
        };
        Arc::new(InterceptedStore::new(store, self.trouble.clone()))
    }

    fn builder(&self, rank: RankId) -> Result<(Builder, SetId), EngineError> {
        let Script { layers, experts, slots, .. } = self.script;
        let ranks = self.script.acts.len();
        let transport: Arc<dyn Transport> = self.transport.clone();
        let world = World::Group { rank, world_size: ranks, store: self.store(), transport };
        let mut builder = Engine::builder(self.config(), world);
        let set = builder.layer_set("main", Topology::uniform(ranks, slots)?, experts, layers)?;
        for layer in 0..layers {
            builder.lend_layer(set, layer, &[TensorLayout::contiguous("w", 128)])?;
        }
        builder.source(Arc::new(MadeUp));
        Ok((builder, set))
    }

    /// Lives it; what must not be is an error.
    fn live(&self) -> Result<(), String> {
        let ranks = self.script.acts.len();
        let lives: Vec<_> =
            std::thread::scope(|scope| {
                let live = move |rank: usize| {
                    let mut host = Host::new(self, RankId::at(rank));
                    let lived = host.live();
                    if lived.is_err() {
                        self.trouble.pass();
                    }
                    lived
                };
                let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || live(rank))).collect();
                let aside = self.script.asked_aside.then(|| scope.spawn(|| self.aside.run(self.script.seed)));
                let panicked = |_| Err("a host panicked".to_owned());
                let mut lives: Vec<_> =
                    threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect();
                self.aside.end();
                lives.extend(aside.map(|thread| {
                    thread.join().unwrap_or_else(|_| Err("aside panicked".into())).map(|()| None)
                }));
                lives
            });
        let seed = self.script.seed;
        let findings: Vec<String> = lives.iter().filter_map(|life| life.clone().err()).collect();
        if !findings.is_empty() {
            return Err(format!("seed {seed}: {}\n{:#?}", findings.join("\n  "), self.script));
        }
        let left: Vec<&Array2<i32>> = lives.iter().flatten().flatten().collect();
        // A slot for whose bytes a rank cannot vouch when another has left is empty to it, and need not be to others.
        let differ =
            |a: &Array2<i32>, b: &Array2<i32>| a.iter().zip(b).any(|(&a, &b)| a != b && a >= 0 && b >= 0);
        match left.iter().find(|other| differ(left[0], other)) {
            None => Ok(()),
            Some(other) => {
                Err(format!("seed {seed}: placements differ: {} and {other}\n{:#?}", left[0], self.script))
            }
        }
    }
}

/// What a call that must succeed may take at most, on any machine.
const LIMIT: Duration = Duration::from_secs(60);

fn seeds(small: u64) -> Range<u64> {
    let Ok(text) = std::env::var("EPLB_LIFE_SEEDS") else {
        let all = std::env::var("EPLB_FAULTS").is_ok_and(|which| which == "all");
        return 0..if all { 1000 } else { small };
    };
    let number =
        |text: &str| text.parse().expect("EPLB_LIFE_SEEDS is a number of seeds, or a range as 70..80");
    match text.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&text),
    }
}

/// Deadlines of a connection that no busy machine comes near.
fn patient() -> Deadlines {
    let long = Duration::from_secs(600);
    Deadlines { silence: long, handshake: long, frame: long, ..Deadlines::DEFAULT }
}

fn in_process() -> Place {
    Place::InProcess(InProcessStore::new())
}

fn over_tcp() -> Place {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let options = ServerOptions { deadlines: patient(), ..ServerOptions::default() };
    Place::Tcp(StoreServer::bind(address, options).unwrap())
}

fn lives(seeds: Range<u64>, place: fn() -> Place) {
    let (mut rounds, mut struck, mut refused) = (0, 0, 0);
    let mut findings = Vec::new();
    for seed in seeds.clone() {
        let case = Case::new(Script::draw(seed), place(), Planted::Nothing, LIMIT);
        findings.extend(case.live().err());
        let Doings { rounds: r, struck: s, refused: f, .. } = case.doings;
        (rounds, struck, refused) =
            (rounds + r.into_inner(), struck + s.into_inner(), refused + f.into_inner());
    }
    println!("{seeds:?}: {rounds} rounds, {struck} shutdowns amid one, {refused} steps refused");
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    // Of a few, none need wait for one.
    assert!(rounds > 0 || seeds.end - seeds.start < 12, "there was no round in {seeds:?}");
}

#[test]
fn whatever_hosts_do_nothing_waits_for_a_rank_that_has_gone() {
    lives(seeds(12), in_process);
}

#[test]
fn nor_over_tcp() {
    let seeds = seeds(12);
    lives(seeds.start..seeds.start + (seeds.end - seeds.start).div_ceil(4), over_tcp);
}

/// A script of two ranks.
fn fixed(seed: u64, acts: [&[Act]; 2]) -> Script {
    let acts = acts.map(<[Act]>::to_vec).to_vec();
    Script { seed, layers: 1, experts: 12, slots: 16, margin: 8, asked_aside: false, acts }
}

/// Lives of a script with a fault come to what those words say. Not every one of them meets the fault.
fn finds(acts: [&[Act]; 2], planted: Planted, words: &str) {
    let life = |seed| Case::new(fixed(seed, acts), in_process(), planted, Duration::from_secs(3)).live();
    let found = (0..100).any(|seed| life(seed).is_err_and(|why| why.contains(words)));
    assert!(found, "{planted:?} was not found");
}

#[test]
fn a_wait_in_the_store_that_nothing_ends_is_found() {
    let alone = [Act::ServeRound, Act::Quiesce, Act::ReformBriefly, Act::Shutdown];
    finds([&alone, &[Act::ServeRound, Act::Shutdown]], Planted::DeafInStore, "shutdown was not over");
}

#[test]
fn a_wait_in_the_transport_that_nothing_ends_is_found() {
    let both = [Act::ServeRound, Act::Reform, Act::Shutdown];
    finds([&both; 2], Planted::DeafInTransport, "reform was not over");
}

#[test]
fn bytes_of_another_expert_are_found() {
    finds([&[Act::Serve(8), Act::Shutdown]; 2], Planted::WrongBytes, "are not");
}
