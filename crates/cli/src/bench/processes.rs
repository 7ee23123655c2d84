//! Benches whose ranks are processes: each is started with the arguments of this one, and its number.

use std::process::Command;
use std::sync::Arc;

use eplb_comm::store::{Store, StoreAddress};
use eplb_core::{RankId, Topology};
use eplb_engine::deadlines::Deadlines;
use eplb_engine::process::{Flags, HostId, Join, Launch, Rendezvous, Session, hosts};

use crate::output::Failure;

/// The variable with the file that NCCL logs to.
const NCCL_LOG: &str = "NCCL_DEBUG_FILE";

/// What says that this process is one rank of a bench.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Own {
    /// This process is this rank; set by the process that starts all
    #[arg(long, hide = true, requires = "store")]
    pub(super) rank: Option<usize>,

    /// Where ranks meet; set by the process that starts all
    #[arg(long, hide = true, value_parser = address)]
    store: Option<StoreAddress>,
}

fn address(text: &str) -> Result<StoreAddress, String> {
    text.parse().map_err(|error: eplb_comm::store::locate::BadStoreAddress| error.to_string())
}

/// This process as one rank.
pub(super) struct Joined {
    pub(super) store: Arc<dyn Store>,
    pub(super) session: Session,
}

/// Ranks that run.
pub(super) struct Started(pub(super) Launch);

/// Starts a process per rank with the arguments of this one, on so many nodes as far as they are told.
pub(super) fn start(ranks: usize, nodes: usize) -> Result<Started, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::Run(format!("this program's own file cannot be found: {error}")))?;
    let hosts = pretended(ranks, nodes)?;
    let launch = Launch::start(ranks, |rank, store| {
        let mut command = Command::new(&program);
        if let Some(host) = hosts.get(rank.index()) {
            command.env(hosts::VARIABLE, host.name());
        }
        command.args(std::env::args_os().skip(1));
        command.args(["--rank", &rank.0.to_string(), "--store", &store.to_string()]);
        // NCCL prints its version to stdout otherwise, when it is asked to warn.
        if std::env::var_os(NCCL_LOG).is_none() {
            command.env(NCCL_LOG, "/dev/stderr");
        }
        command
    })?;
    Ok(Started(launch))
}

/// The hosts that ranks on several nodes of this one are to be taken for, in their order; none for one node.
pub(crate) fn pretended(ranks: usize, nodes: usize) -> Result<Vec<HostId>, Failure> {
    if nodes < 2 {
        return Ok(Vec::new());
    }
    let topology = Topology::new(&vec![1; ranks]).and_then(|topology| topology.with_nodes(nodes));
    let topology = topology.map_err(|error| Failure::input(error.to_string()))?;
    let here = HostId::here();
    Ok(topology.all_ranks().map(|rank| here.pretended(topology.node_of(rank))).collect())
}

impl Started {
    /// What each rank printed, and the failures, if there were any.
    pub(super) fn wait_all(self) -> Result<(Vec<String>, Option<Failure>), Failure> {
        self.wait_but(None)
    }

    /// As [`Started::wait_all`], but for one rank, whose end is expected.
    pub(super) fn wait_but(
        self,
        expected: Option<RankId>,
    ) -> Result<(Vec<String>, Option<Failure>), Failure> {
        let ends = self.0.wait()?;
        let failed: Vec<String> = ends
            .iter()
            .filter(|end| !end.status.success() && Some(end.rank) != expected)
            .map(ToString::to_string)
            .collect();
        let failure = (!failed.is_empty()).then(|| Failure::Run(failed.join("\n       ")));
        Ok((ends.into_iter().map(|end| end.stdout).collect(), failure))
    }
}

impl Own {
    /// The store and the session of this process, if it is one rank of `ranks`.
    pub(super) fn join(&self, ranks: usize) -> Result<Option<Joined>, Failure> {
        self.join_within(ranks, &Deadlines::new())
    }

    /// As [`Own::join`], with deadlines.
    pub(super) fn join_within(&self, ranks: usize, deadlines: &Deadlines) -> Result<Option<Joined>, Failure> {
        if self.rank.is_none() {
            return Ok(None);
        }
        let flags = Flags { rank: self.rank, world_size: Some(ranks), store: self.store.clone() };
        let Some(join) = Join::find(&flags, |_| None)? else { return Ok(None) };
        let store = Rendezvous::open(&join, None, None, deadlines)?.store();
        let session = Session::join(store.clone(), join.rank, ranks, deadlines)?;
        Ok(Some(Joined { store, session }))
    }
}
