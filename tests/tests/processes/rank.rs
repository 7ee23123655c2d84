//! One rank of a case: joins, moves experts, fails or not, checks its bytes, joins again, moves experts again.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use eplb_comm::store::deadlines::after;
use eplb_comm::store::{Store, StoreAddress, Token};
use eplb_comm::{Memory, Place};
use eplb_core::{LayerId, LoadMatrix, Placement, RankId, SlotId, Topology};
use eplb_engine::EngineError;
use eplb_engine::cluster::{Settings, weights};
use eplb_engine::process::{GlooTransport, Job, MadeUp, Member, PeerTransport, Session, Stage, Transport};
use eplb_exchange::{ExchangePlan, Limits};
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_tests::child::{hear, say};
use ndarray::Array2;

use crate::case::{Carrier, Case, Fault, Phase, deadlines};
use crate::gate::{Gate, Gated};
use crate::junk::Visited;

const LAYERS: usize = 3;
const EXPERTS: usize = 14;
const SLOTS: usize = 20;
const EXPERT_BYTES: usize = 30_000;
/// Experts that fit the staging of a rank.
const STAGED: usize = 4;

fn topology(ranks: usize) -> Topology {
    Topology::uniform(ranks, SLOTS).unwrap()
}

fn random(seed: u64, topology: &Topology) -> Placement {
    let loads = LoadMatrix::from_sum(Array2::from_elem((LAYERS, EXPERTS), 1.0)).unwrap();
    let options = Options { policy: Policy::Random, seed, ..Options::default() };
    Planner::new(1).unwrap().plan(&Request::new(&loads, topology, &options)).unwrap().placement
}

fn open(rank: usize, address: &StoreAddress) -> Result<Arc<dyn Store>, EngineError> {
    let deadlines = deadlines();
    let token = Token::from_env().map_err(|error| EngineError::Options(error.to_string()))?;
    let opened = address.open(token.as_ref(), &deadlines.store, after(deadlines.store.connect));
    let (rank, stage) = (RankId::at(rank), Stage::Store);
    opened.map_err(|error| EngineError::AtStage { rank, stage, error: Box::new(error.into()) })
}

/// A random placement on the way to which every phase occurs: drains, an agreed step, and more than one wave. The same on all
/// ranks: it depends on the placement before and the seed alone.
fn eventful(seed: u64, before: &Placement, topology: &Topology) -> Placement {
    let layout = weights::layout(LAYERS, EXPERT_BYTES).unwrap();
    let limits = Limits { staging_bytes: STAGED * layout.largest_staged(), ..Limits::new(&layout, topology) };
    let loads = loads();
    let found = (seed * 1000..).map(|seed| random(seed, topology)).find(|new| {
        let plan = ExchangePlan::new(before, new, topology, &layout, Some(loads.view()), &limits).unwrap();
        let waves = plan.waves();
        let agreed = waves.iter().any(|wave| wave.needs_agreed_step());
        waves.len() > 1 && agreed && waves.iter().any(|wave| !wave.drains.is_empty())
    });
    found.unwrap()
}

fn loads() -> Array2<f64> {
    Array2::from_shape_fn((LAYERS, EXPERTS), |(l, e)| (1 + (l * 7 + e * 5) % 11) as f64)
}

fn job(
    rank: usize,
    ranks: usize,
    case: Case,
    seed: u64,
    address: &StoreAddress,
) -> (Job, Option<Arc<Gate>>, Arc<AtomicUsize>) {
    let topology = topology(ranks);
    let target = rank == case.target;
    let more = usize::from(target && case.fault == Fault::OtherExperts);
    let layout = weights::layout(LAYERS, EXPERT_BYTES + more).unwrap();
    let mut settings = Settings::new(&layout, &topology);
    settings.limits.staging_bytes =
        STAGED * weights::layout(LAYERS, EXPERT_BYTES + 1).unwrap().largest_staged();
    settings.deadlines = deadlines().exchange;
    settings.margin = 64;
    let gate = target.then(|| Gate::new(case, random(seed + 500, &topology)));
    if let Some(gate) = &gate {
        settings.hooks = Arc::new(Gated(gate.clone()));
    }
    let version = if target && case.fault == Fault::OtherVersion { "2" } else { "1" };
    let transport: Arc<dyn Transport> = match case.carrier {
        Carrier::Gloo => Arc::new(GlooTransport::new(None, address).unwrap()),
        Carrier::Peer => Arc::new(PeerTransport),
    };
    let (transport, visits) = Visited::around(transport, case.fault, seed);
    let job = Job {
        start: random(900, &topology),
        topology,
        layout: Arc::new(layout),
        settings,
        versions: version.to_owned(),
        transport,
        source: Arc::new(MadeUp),
    };
    (job, gate, visits)
}

fn rebalance(member: &mut Member, seed: u64) -> Result<(), EngineError> {
    let loads = loads();
    let new = eventful(seed, member.placement(), &topology(crate::driver::RANKS));
    let moved = member.rebalance(&new, &loads)?;
    if moved.bytes_wrong > 0 || moved.totals.moves == 0 {
        say(&format!("wrong {} bytes while moving {}", moved.bytes_wrong, moved.totals.moves));
    }
    Ok(())
}

/// Changes a byte of the first slot that holds an expert, behind everyone's back.
fn change_a_byte(member: &Member) {
    let layer = LayerId(0);
    let held = member
        .memory()
        .slots()
        .map(SlotId::at)
        .find(|&slot| member.placement().expert_at(layer, slot).is_some());
    let mut slot = member.memory().write(Place::slot(layer, held.unwrap())).unwrap();
    let content = slot.content().0;
    slot.rows_mut(0).next().unwrap()[0] ^= 1;
    slot.set_content(content);
}

/// Tells whether the placement that this rank reports is what its slots hold.
fn check(member: &Member) {
    match member.check() {
        Ok(0) if member.placement().missing().next().is_none() => say("true"),
        Ok(wrong) => say(&format!("wrong {wrong} bytes, {} missing", member.placement().missing().count())),
        Err(error) => say(&format!("wrong {error}")),
    }
}

/// `rank R of W at STORE with FAULT at PHASE on TARGET, seed S, over CARRIER`: its arguments, in this order.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let number = |at: usize| args[at].parse::<usize>().unwrap();
    let (rank, ranks, seed) = (number(0), number(1), number(6) as u64);
    let mut address: StoreAddress = args[2].parse().unwrap();
    let (fault, phase) = (args[3].parse().unwrap(), args[4].parse().unwrap());
    let case = Case { fault, phase, target: number(5), carrier: args[7].parse().unwrap() };
    let (job, gate, visits) = job(rank, ranks, case, seed, &address);
    let deadlines = deadlines();
    let store = open(rank, &address);
    if store.is_ok() {
        say("open");
    }
    if let Some(gate) = &gate {
        gate.pass(Phase::Rendezvous);
    }
    let session = store.and_then(|store| Session::join(store, RankId::at(rank), ranks, &deadlines));
    let mut member = None;
    let outcome = session.and_then(|session| {
        let member = member.insert(Member::start(session, job.clone())?);
        say("joined");
        rebalance(member, seed)
    });
    if let Some(member) = member.as_ref().filter(|_| rank == case.target && case.fault == Fault::WrongByte) {
        change_a_byte(member);
    }
    match visits.load(Ordering::Relaxed) {
        0 => {}
        ports => say(&format!("visited {ports}")),
    }
    match &outcome {
        Ok(()) => say("finished"),
        Err(error) => say(&format!("failed {error}")),
    }
    match &member {
        Some(member) => check(member),
        // Nothing was in service.
        None => say("true"),
    }
    let told = hear();
    let store = told.strip_prefix("go ").map(|place| {
        address = place.parse().unwrap();
        open(rank, &address)
    });
    let again = match member {
        Some(member) => store.transpose().and_then(|store| member.rejoin(store)),
        None => store
            .unwrap_or_else(|| open(rank, &address))
            .and_then(|store| Session::join(store, RankId::at(rank), ranks, &deadlines))
            .and_then(|session| Member::start(session, job)),
    };
    let again = again.and_then(|mut member| {
        rebalance(&mut member, seed + 1)?;
        check(&member);
        Ok(member)
    });
    match again {
        Ok(member) => say(&format!("again {:016x}", member.placement().hash64())),
        Err(error) => say(&format!("wrong again: {error}")),
    }
    // Until the driver has heard all.
    hear();
    ExitCode::SUCCESS
}
