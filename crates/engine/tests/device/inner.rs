//! A server on the fakes, in a process of its own.

use std::ffi::c_void;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eplb_comm::store::{InProcessStore, StoreAddress};
use eplb_comm_nccl::Backend;
use eplb_core::{RankId, Topology};
use eplb_engine::engine::{Device, Engine, EngineConfig, RoundOutcome, SetId, State, TriggerConfig, World};
use eplb_engine::process::{DevicePeerTransport, GlooTransport, NcclTransport, Transport};
use eplb_plan::Policy;
use eplb_trace::Trace;

use super::serve::card::Card;
use super::serve::card::derived::Derived;
use super::serve::mail::Mail;
use super::serve::model::{Model, small_tensors};
use super::serve::rank::{Seen, Server};
use super::serve::storm::Stormy;

pub(crate) const RANKS: usize = 3;
/// Longest wait of a test for anything.
const LONG: Duration = Duration::from_secs(60);

/// What is served, as words in the environment.
pub(crate) const CASE: &str = "EPLB_DEVICE_CASE";

/// One of the words of the case.
fn word(name: &str) -> Option<String> {
    let case = std::env::var(CASE).expect("this test is run by the others, on the fakes");
    case.split(' ').find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

fn number(name: &str, default: u64) -> u64 {
    word(name).map_or(default, |number| number.parse().unwrap())
}

/// Writes a line into the log of the fakes: what comes between two of them is known.
fn mark(what: &str) {
    let Some(path) = std::env::var_os("EPLB_FAKE_LOG") else { return };
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    let thread = thread.file_name().unwrap().to_string_lossy().into_owned();
    let mut log = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    log.write_all(format!("t={thread} {what}\n").as_bytes()).unwrap();
}

/// What is no stream is refused by name, and changes nothing: the step's id is free.
fn refuses(engine: &Engine, handles: &[u64]) {
    for (streams, word) in [(&[0][..], "default stream"), (&[handles[0]; 17][..], "at most 16")] {
        // SAFETY: refused before any is used; the last one lives.
        let error = unsafe { engine.step_on(0, streams) }.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

fn transport() -> Arc<Stormy> {
    let inner: Arc<dyn Transport> = match word("backend").as_deref() {
        Some("nccl") => Arc::new(NcclTransport::new(Backend::Nccl)),
        Some("gloo") => Arc::new(GlooTransport::new(None, &StoreAddress::File("/".into())).unwrap()),
        Some("nccl-steps") => Arc::new(NcclTransport::in_steps(Backend::Nccl)),
        _ => DevicePeerTransport::threads(),
    };
    Stormy::around(inner, word("storm").map_or(0.0, |chance| chance.parse().unwrap()))
}

/// Begins or ends the capture of a stream, by the driver's own calls.
fn capture(stream: u64, begin: bool) {
    type Begin = unsafe extern "C" fn(*mut c_void, i32) -> i32;
    type End = unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> i32;
    // SAFETY: the fake, which is loaded already; the calls have these types, and the stream lives.
    let code = unsafe {
        let library = libloading::Library::new("libcuda.so.1").unwrap();
        let (stream, mut graph) = (stream as *mut c_void, std::ptr::null_mut());
        match begin {
            true => library.get::<Begin>(b"cuStreamBeginCapture_v2").unwrap()(stream, 2),
            false => library.get::<End>(b"cuStreamEndCapture").unwrap()(stream, &mut graph),
        }
    };
    assert_eq!(code, 0);
}

#[test]
#[ignore = "run by the others, on the fakes"]
fn serving_on_the_fakes() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/day_26x64.npz");
    let rounds = number("rounds", 10);
    let server = Server {
        model: Model::new(&Trace::open(file).unwrap(), 2, small_tensors()).unwrap(),
        topology: Topology::uniform(RANKS, number("slots", 72) as usize).unwrap(),
        mail: Mail::boxed(RANKS),
        tokens: 6,
        // Every few steps other experts are popular, so that every plan differs from the one before.
        steps_per_moment: 7,
        token_time: Duration::ZERO,
        over: AtomicBool::new(false),
    };
    let mut config = EngineConfig {
        policy: Policy::Incremental,
        trigger: TriggerConfig { interval_s: Some(0.0), rest_s: 0.0, ..TriggerConfig::default() },
        window: 2,
        sample_ms: 1,
        poll_ms: 1,
        margin: 64,
        ..EngineConfig::default()
    };
    config.budget.moves = Some(12);
    let (store, storm) = (Arc::new(InProcessStore::new()), transport());
    let start = |rank: usize| -> Result<(Engine, SetId, Card), Box<dyn std::error::Error>> {
        let (store, transport) = (store.clone(), storm.clone());
        let world = World::Group { rank: RankId::at(rank), world_size: RANKS, store, transport };
        let mut builder = Engine::builder(config.clone(), world);
        let device = Device::new(rank)?;
        builder.device(if word("kernels").as_deref() == Some("no") {
            device.without_kernels()
        } else {
            device
        })?;
        let set = builder.layer_set("main", server.topology.clone(), server.model.experts(), 2)?;
        for layer in 0..2 {
            builder.lend_layer(set, layer, &server.model.tensors)?;
        }
        let derived = Derived::default();
        if word("hook").is_some() {
            builder.after_commit(derived.hook());
        }
        let engine = builder.start()?;
        let mut card = Card::new(&engine, set)?;
        card.launches = word("kernels").as_deref() != Some("no");
        card.mark = word("marks").is_some().then_some(mark as fn(&str));
        card.capture = word("captures").is_some().then_some(capture as fn(u64, bool));
        card.patience = Duration::from_secs(number("patience", 60));
        card.folded_as = word("folded_as").map(|step| step.parse().unwrap());
        if word("hook").is_some() {
            card.derive(&engine, set, &derived)?;
        }
        Ok((engine, set, card))
    };
    let (moved, aborted, late) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let run = |rank: usize| -> (Option<Seen>, Option<String>, Option<State>) {
        let (engine, set, mut card) = match start(rank) {
            Ok(made) => made,
            Err(error) => {
                server.mail.leave();
                return (None, Some(error.to_string()), None);
            }
        };
        let handles = card.handles();
        refuses(&engine, &handles);
        mark(&format!("rank lead={:#x} other={:#x}", handles[0], handles[1]));
        // All ranks are past their start when the first begins to serve.
        if server.mail.meet(rank).is_err() {
            return (None, Some("another rank did not start".into()), None);
        }
        mark("serving");
        let mut known = 0;
        let seen = server.serve(&engine, set, &mut card, |step| {
            // All ranks after the same step, and none is at the next before it is through.
            let is_turn = |word: &str| number(word, 0) > 0 && (step + 1) % number(word, 0) == 0;
            if is_turn("quiesce") {
                engine.quiesce(LONG)?;
                engine.reopen(LONG)?;
            }
            if is_turn("reform") {
                engine.reform(LONG)?;
            }
            if step + 1 == number("fails", 0) {
                engine.quiesce(LONG)?;
                storm.refuse();
                engine.reopen(LONG)?;
                let start = Instant::now();
                while !matches!(engine.state(), State::Failed { .. }) {
                    assert!(start.elapsed() < LONG, "an engine that cannot connect is {}", engine.state());
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            if rank == 0 && engine.rounds() > known {
                known = engine.rounds();
                match engine.last_report(set).map(|report| report.outcome) {
                    Some(RoundOutcome::Moved) => moved.fetch_add(1, Ordering::SeqCst),
                    Some(RoundOutcome::Aborted { .. }) => aborted.fetch_add(1, Ordering::SeqCst),
                    // It is tried again by itself.
                    Some(RoundOutcome::TooLate) => late.fetch_add(1, Ordering::SeqCst),
                    _ => 0,
                };
            }
            let over = known >= rounds + late.load(Ordering::SeqCst);
            if rank == 0 && (over || step + 1 == number("steps", 0)) {
                server.over.store(true, Ordering::SeqCst);
            }
            Ok(())
        });
        mark("over");
        let state = engine.state();
        let ended = engine.shutdown(LONG);
        drop(card);
        let failed = seen.as_ref().err().map(|error| format!("{error}; the engine was {state}"));
        let failed = failed.or_else(|| ended.err().map(|error| error.to_string()));
        (seen.ok(), failed, Some(state))
    };
    let ends: Vec<_> = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..RANKS).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!();
    for (seen, failed, state) in ends {
        let state = state.map_or_else(String::new, |state| state.to_string());
        let seen = seen.unwrap_or_default();
        println!("SEEN steps={} switches={} wrong={} {state}", seen.steps, seen.switches, seen.wrong);
        if let Some(first) = seen.first_wrong {
            println!("WRONG {first}");
        }
        if let Some(failed) = failed {
            println!("FAILED {failed}");
        }
    }
    let [moved, aborted, late] = [moved, aborted, late].map(AtomicU64::into_inner);
    println!("ROUNDS moved={moved} aborted={aborted} late={late}");
}
