//! Ranks that are processes: started here, or one of a group that something else has started.

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use eplb_comm::store::{StoreAddress, Token};
use eplb_core::RankId;
use eplb_engine::EngineError;
use eplb_engine::deadlines::Deadlines;
use eplb_engine::machine::{Found, Machine, Pair, Reason};
use eplb_engine::process::elastic::{Schedule, Walked};
use eplb_engine::process::{
    AutoTransport, Flags, GlooTransport, Join, Launch, PeerTransport, RankEnd, Rendezvous, Session,
    Transport, hosts,
};
use eplb_engine::rebalance::{Position, Rebalance};
use eplb_trace::Trace;

use crate::bench::pretended;
use crate::output::Failure;

/// How long processes that joined may take to end after those that began.
const GRACE: Duration = Duration::from_secs(60);

/// What carries experts between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    /// What fits best; the reason is told on stderr
    Auto,
    /// Copies between ranks that are threads of this process
    Local,
    /// TCP through Gloo, between processes
    Gloo,
    /// Pulls between processes of one host, from memory that they share
    Peer,
}

/// Which rank this process is, if it is one of several.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProcessArgs {
    /// What carries experts: gloo and peer (and auto with --processes) start a process per rank, or join as one rank
    #[arg(long, value_enum, default_value_t = BackendArg::Local)]
    pub(crate) backend: BackendArg,

    /// With `auto`, start a process per rank (gloo and peer do anyway); those on several --nodes are taken for ranks of as many hosts
    #[arg(long)]
    processes: bool,

    /// Join as this rank (or RANK of torchrun, or VLLM_DP_RANK)
    #[arg(long, value_name = "R")]
    rank: Option<usize>,

    /// Ranks that join (or WORLD_SIZE, or VLLM_DP_SIZE)
    #[arg(long, value_name = "W")]
    world_size: Option<usize>,

    /// Where ranks meet: tcp://host:port or file:///shared/folder
    #[arg(long, value_name = "URL", value_parser = store)]
    store: Option<StoreAddress>,

    /// Rank that serves a tcp store: the run ends with it; `none` if something else serves it
    #[arg(long, value_name = "R", default_value = "0", value_parser = server)]
    store_server: Server,

    /// Network interface or address at which this rank is reached (default: the one towards the store)
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
}

/// Tells which backend was taken and which were passed over.
fn tell(reasons: &[Reason]) {
    Reason::lines(reasons).iter().for_each(|line| crate::output::note(line));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Server(Option<RankId>);

fn server(text: &str) -> Result<Server, String> {
    if text == "none" {
        return Ok(Server(None));
    }
    text.parse()
        .map(|rank| Server(Some(RankId(rank))))
        .map_err(|_| format!("{text:?} is neither a rank nor none"))
}

fn store(text: &str) -> Result<StoreAddress, String> {
    text.parse().map_err(|error: eplb_comm::store::locate::BadStoreAddress| error.to_string())
}

/// How a run is to be carried out.
#[derive(Debug)]
pub(crate) enum Way {
    /// All ranks are threads of this process.
    Threads,
    /// This process starts one per rank.
    Launch,
    /// This process is one rank.
    Rank(Join),
}

impl ProcessArgs {
    /// How a run of `ranks` ranks is to be carried out, and on how many.
    pub(crate) fn way(&self, ranks: Option<usize>) -> Result<(Way, usize), Failure> {
        let flags = Flags { rank: self.rank, world_size: self.world_size, store: self.store.clone() };
        if self.backend == BackendArg::Local {
            if self.processes {
                return Err(Failure::input(
                    "--processes: `local` is for threads; add --backend auto, gloo or peer",
                ));
            }
            if flags != Flags::default() {
                return Err(Failure::input(
                    "--rank, --world-size and --store are for ranks that are processes: add --backend gloo or peer (or auto)",
                ));
            }
            let ranks =
                ranks.ok_or_else(|| Failure::input("--ranks is missing: how many ranks are there?"))?;
            return Ok((Way::Threads, ranks));
        }
        let join = Join::find(&flags, |name| std::env::var(name).ok())?;
        let (way, pair) = match (join, ranks) {
            (Some(join), Some(ranks)) if ranks != join.world_size => {
                let text = format!(
                    "--ranks {ranks} contradicts the world size {} ({:?})",
                    join.world_size, join.origin
                );
                return Err(Failure::input(text));
            }
            (Some(join), _) if join.world_size == 1 => ((Way::Threads, 1), Pair::Same),
            (Some(join), _) => {
                let ranks = join.world_size;
                ((Way::Rank(join), ranks), Pair::Host)
            }
            (None, Some(ranks)) if (self.backend == BackendArg::Auto && !self.processes) || ranks == 1 => {
                ((Way::Threads, ranks), Pair::Threads)
            }
            (None, Some(ranks)) => ((Way::Launch, ranks), Pair::Host),
            (None, None) => {
                return Err(Failure::input(
                    "--ranks is missing, and so is what says which rank this is (--rank or torchrun's RANK)",
                ));
            }
        };
        // Ranks that are processes find out when they meet.
        if self.backend == BackendArg::Auto && matches!(way.0, Way::Threads) {
            let choice = Found::look(&Machine::here()).backends(pair);
            tell(&choice.reasons);
        }
        Ok(way)
    }

    /// Runs as one rank; what carried experts, and the report of the whole run.
    pub(crate) fn run_rank(
        &self,
        join: &Join,
        rebalance: &Rebalance,
        trace: &Trace,
        elastic: Option<(usize, &Schedule)>,
        progress: &mut dyn FnMut(Position),
    ) -> Result<(&'static str, Walked), Failure> {
        let deadlines = Deadlines::new();
        let token = Token::from_env().map_err(EngineError::from)?;
        let store = join.store.as_ref().ok_or_else(|| Failure::input("no store is named"))?;
        // Before anyone is kept waiting.
        let gloo = || GlooTransport::new(self.interface.as_deref(), store);
        let mut auto = None;
        let transport: Arc<dyn Transport> = match self.backend {
            BackendArg::Peer => Arc::new(PeerTransport),
            BackendArg::Auto => auto.insert(Arc::new(AutoTransport::new(gloo()))).clone(),
            BackendArg::Local | BackendArg::Gloo => Arc::new(gloo()?),
        };
        let mut name = transport.name();
        let job = rebalance.job(trace, transport)?;
        let rendezvous = Rendezvous::open(join, self.store_server.0, token.as_ref(), &deadlines)?;
        let outcome = match elastic {
            Some(elastic) => {
                rebalance.run_elastic(trace, elastic, &rendezvous.store(), job, &deadlines, progress)
            }
            None => Session::join(rendezvous.store(), join.rank, join.world_size, &deadlines)
                .and_then(|session| rebalance.run_as_rank(trace, session, job, progress))
                .map(|report| {
                    let (rank, ranks) = (Some(join.rank), join.world_size);
                    Walked { report, changes: Vec::new(), rank, ranks }
                }),
        };
        rendezvous.leave();
        let reasons = auto.map(|auto| auto.reasons()).unwrap_or_default();
        tell(&reasons);
        if let Some(taken) = reasons.last() {
            name = taken.backend;
        }
        Ok((name, outcome?))
    }

    /// Starts a process per rank with the arguments of this one, and those that join later; prints what the lowest at the end
    /// has to say.
    pub(crate) fn launch(
        &self,
        (ranks, nodes): (usize, usize),
        schedule: Option<&Schedule>,
    ) -> Result<ExitCode, Failure> {
        // A library that is missing is missing for all.
        if self.backend == BackendArg::Gloo {
            GlooTransport::find_library()?;
        }
        let hosts = if self.backend == BackendArg::Auto { pretended(ranks, nodes)? } else { Vec::new() };
        let program = std::env::current_exe()
            .map_err(|error| Failure::Run(format!("this program's own file cannot be found: {error}")))?;
        let processes = schedule.map_or(ranks, Schedule::processes);
        let launch = Launch::start(processes, |process, store| {
            let mut command = Command::new(&program);
            command.args(std::env::args_os().skip(1));
            // Those that join come to the last node.
            if let Some(host) = hosts.get(process.index()).or(hosts.last()) {
                command.env(hosts::VARIABLE, host.name());
            }
            let rank = if process.index() < ranks { process.0 } else { 0 };
            command.args(["--rank", &rank.to_string(), "--world-size", &ranks.to_string()]);
            if schedule.is_some() {
                command.args(["--process", &process.0.to_string()]);
            }
            command.args(["--store", &store.to_string(), "--store-server", "none"]);
            command
        })?;
        let ends = launch.wait_for(ranks, GRACE)?;
        let killed = schedule.map(Schedule::killed).unwrap_or_default();
        let failed = |end: &&RankEnd| !end.status.success() && !killed.contains(&end.rank.index());
        let failed: Vec<String> = ends.iter().filter(failed).map(ToString::to_string).collect();
        let lowest = schedule.map_or(0, |schedule| schedule.last()[0]);
        if let Some(first) = ends.get(lowest).filter(|end| end.status.success()) {
            // What auto took, and why.
            let told = first.stderr.lines().filter(|line| line.starts_with("backend "));
            told.for_each(|line| eprintln!("{line}"));
            crate::output::print(&first.stdout)?;
        }
        if failed.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        // Bad input is bad input on every rank.
        let text = failed.join("\n       ");
        let bad_input = ends.iter().all(|end| end.status.code() == Some(2));
        Err(if bad_input { Failure::Input(text) } else { Failure::Run(text) })
    }
}
