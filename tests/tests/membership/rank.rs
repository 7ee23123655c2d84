//! One rank of a case.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use eplb_comm::Place;
use eplb_comm::host::{Content, HostMemory};
use eplb_comm::store::deadlines::after;
use eplb_comm::store::{InterceptedStore, Store, StoreAddress};
use eplb_core::{ExpertId, LayerId, LoadMatrix, Placement, RankId, SlotId, Topology};
use eplb_engine::EngineError;
use eplb_engine::cluster::{Settings, weights};
use eplb_engine::process::membership::{Stayed, suspects};
use eplb_engine::process::{GlooTransport, Job, MadeUp, Member, Reform, Reformed, Session, Source};
use eplb_plan::{Options, Planner, Policy, Request};
use eplb_tests::child::{hear, say};
use ndarray::Array2;

use crate::case::{Case, Kind, RANKS};
use crate::strike::{Around, Strike, Watched};

const LAYERS: usize = 3;
const EXPERTS: usize = 14;
const SLOTS: usize = 24;
const EXPERT_BYTES: usize = 20_000;

fn loads() -> Array2<f64> {
    Array2::from_shape_fn((LAYERS, EXPERTS), |(l, e)| (1 + (l * 7 + e * 5) % 11) as f64)
}

fn topology() -> Topology {
    Topology::uniform(RANKS, SLOTS).unwrap()
}

fn random(seed: u64, topology: &Topology) -> Placement {
    let loads = LoadMatrix::from_sum(loads()).unwrap();
    let options = Options { policy: Policy::Random, seed, ..Options::default() };
    Planner::new(1).unwrap().plan(&Request::new(&loads, topology, &options)).unwrap().placement
}

fn replan(placement: &Placement, topology: &Topology) -> Result<(Placement, Array2<f64>), EngineError> {
    let matrix = LoadMatrix::from_sum(loads())?;
    let options = Options { policy: Policy::Incremental, target: Some(0.9), ..Options::default() };
    let request = Request::new(&matrix, topology, &options).with_current(placement);
    Ok((Planner::new(1)?.plan(&request)?.placement, loads()))
}

/// Planted: says that an expert is there, and fetches nothing.
#[derive(Debug)]
struct Nothing;

impl Source for Nothing {
    fn fill(
        &self,
        memory: &Arc<HostMemory>,
        layer: LayerId,
        slot: SlotId,
        expert: ExpertId,
    ) -> Result<(), EngineError> {
        Ok(memory.declare(Place::slot(layer, slot), Content::Expert(expert))?)
    }
}

fn job(case: &Case, strike: &Arc<Strike>, more: usize, topology: Topology, address: &StoreAddress) -> Job {
    let layout = weights::layout(LAYERS, EXPERT_BYTES + more).unwrap();
    let mut settings = Settings::new(&layout, &topology);
    settings.limits.staging_bytes = 4 * weights::layout(LAYERS, EXPERT_BYTES + 1).unwrap().largest_staged();
    settings.deadlines = case.deadlines().exchange;
    settings.margin = 64;
    settings.hooks = Arc::new(Around(strike.clone()));
    Job {
        start: random(900, &topology),
        topology,
        layout: Arc::new(layout),
        settings,
        versions: "1".into(),
        transport: Arc::new(GlooTransport::new(None, address).unwrap()),
        source: Arc::new(MadeUp),
    }
}

/// Tells whether every expert is somewhere, and every slot of this rank holds what the placement says.
fn check(member: &Member) {
    match member.check() {
        Ok(0) if member.placement().missing().next().is_none() => say("true"),
        Ok(wrong) => say(&format!("wrong {wrong} bytes, {} missing", member.placement().missing().count())),
        Err(error) => say(&format!("wrong {error}")),
    }
}

/// What the members want: the same on all.
fn reform_of(case: &Case, topology: &Topology, suspects: &[RankId]) -> Reform {
    match case.kind {
        Kind::Leave => Reform::leave(topology, &[RankId::at(case.target)]).unwrap(),
        Kind::Join | Kind::Late | Kind::OtherExperts => {
            Reform::join(topology, &vec![SLOTS / RANKS; case.kind.joiners()]).unwrap()
        }
        Kind::Renumber => {
            let mut reform = Reform::survivors(topology, &[]);
            reform.mapping.rotate_left(1);
            reform
        }
        _ => Reform::survivors(topology, suspects),
    }
}

fn describe(stayed: &Stayed) -> String {
    let filled = stayed.filled.as_ref();
    let wrong =
        filled.map_or(0, |filled| filled.bytes_wrong) + stayed.drained.as_ref().map_or(0, |d| d.bytes_wrong);
    if wrong > 0 {
        return format!("wrong {wrong} bytes while moving");
    }
    let moves = |exchanged: Option<&eplb_engine::process::Exchanged>| exchanged.map_or(0, |e| e.totals.moves);
    format!(
        "reformed epoch {} absent {} fetched {} rolled {} drained {} filled {}",
        stayed.epoch,
        stayed.absent.len(),
        stayed.fetched.len(),
        u8::from(stayed.rolled_forward),
        moves(stayed.drained.as_ref()),
        moves(filled),
    )
}

/// `rank R at STORE in CASE with TARGET`: its arguments, in this order.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let rank: usize = args[0].parse().unwrap();
    let address: StoreAddress = args[1].parse().unwrap();
    let case = Case { kind: args[2].parse().unwrap(), target: args[3].parse().unwrap() };
    let strike = Strike::new(case, rank);
    let deadlines = case.deadlines();
    let store = address.open(None, &deadlines.store, after(deadlines.store.connect)).unwrap();
    let store: Arc<dyn Store> = Arc::new(InterceptedStore::new(store, Watched(strike.clone())));
    let outcome = if rank < RANKS {
        stays(&case, RankId::at(rank), store, &strike, &address)
    } else {
        joins(&case, RankId::at(rank), store, &strike, &address)
    };
    if let Err(error) = outcome {
        say(&format!("failed {error}"));
    }
    // Until the driver has heard all.
    hear();
    ExitCode::SUCCESS
}

fn stays(
    case: &Case,
    rank: RankId,
    store: Arc<dyn Store>,
    strike: &Arc<Strike>,
    address: &StoreAddress,
) -> Result<(), EngineError> {
    let session = Session::join(store, rank, RANKS, &case.deadlines())?;
    let mut member = Member::start(session, job(case, strike, 0, topology(), address))?;
    member.rebalance(&random(1, &topology()), &loads())?;
    say("ready");
    hear();
    strike.arm();
    let mut dead = Vec::new();
    if case.kind.in_a_wave() {
        match member.rebalance(&random(2, &topology()), &loads()) {
            Ok(_) => say("wrong: it noticed nothing"),
            Err(error) => {
                dead = suspects(&error);
                strike.cure();
                say(&format!("noticed {error}"));
            }
        }
    }
    if case.kind == Kind::PlantUnfetched {
        member.set_source(Arc::new(Nothing));
    }
    let stopped = case.kind.stops() && rank.index() == case.target;
    let reform = reform_of(case, member.topology(), &dead);
    match member.reform(&reform, &mut replan) {
        Ok(Reformed::Left { drained }) => {
            say(&format!("left {} {}", drained.totals.moves, drained.bytes_wrong));
            return Ok(());
        }
        Ok(Reformed::Stayed(stayed)) => say(&describe(&stayed)),
        Err(error) if stopped => {
            // It may neither go on with the others nor move anything by itself.
            let again = member.rebalance(&random(3, &topology()), &loads());
            let refused = again.map_or_else(|error| error.to_string(), |_| "wrong: it moved experts".into());
            say(&format!("excluded {error}; {refused}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    go_on(&mut member)
}

fn joins(
    case: &Case,
    rank: RankId,
    store: Arc<dyn Store>,
    strike: &Arc<Strike>,
    address: &StoreAddress,
) -> Result<(), EngineError> {
    let reform = reform_of(case, &topology(), &[]);
    let more = usize::from(case.kind == Kind::OtherExperts);
    let job = job(case, strike, more, reform.topology, address);
    // One that is late does not wait for long.
    let wait = Duration::from_secs(if case.kind == Kind::Late { 1 } else { 30 });
    let (mut member, stayed) = Member::join(store, rank, job, wait, &case.deadlines(), &mut replan)?;
    say(&describe(&stayed));
    go_on(&mut member)
}

/// The members check what they hold, move experts once more, and check again.
fn go_on(member: &mut Member) -> Result<(), EngineError> {
    check(member);
    let new = random(7, member.topology());
    let moved = member.rebalance(&new, &loads())?;
    if moved.bytes_wrong > 0 || moved.totals.moves == 0 {
        say(&format!("wrong {} bytes while moving {}", moved.bytes_wrong, moved.totals.moves));
    }
    check(member);
    say(&format!("again {:016x} of {} ranks", member.placement().hash64(), member.topology().ranks()));
    Ok(())
}
