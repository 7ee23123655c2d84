//! Which backend carries experts between two ranks, and why not another.

use eplb_comm_peer::HOST_BACKEND;

use super::Found;
use crate::doctor::Facts;

const PEER: &str = "peer";

/// Where two ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// One rank: no bytes leave it.
    Same,
    /// Two threads of one process.
    Threads,
    /// Two processes of one host.
    Host,
    /// Two hosts.
    Hosts,
}

/// A backend that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Its name.
    pub backend: &'static str,
    /// Why it is taken, or is not.
    pub why: String,
}

impl Reason {
    /// A line for each backend that was looked at, of which the last was taken.
    pub fn lines(reasons: &[Self]) -> Vec<String> {
        let line = |(at, Self { backend, why }): (usize, &Self)| {
            let taken = if at + 1 == reasons.len() { "taken" } else { "passed over" };
            format!("backend {backend}: {taken}: {why}")
        };
        reasons.iter().enumerate().map(line).collect()
    }
}

/// What `auto` takes for a pair of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The backend; `None` if there is none.
    pub backend: Option<&'static str>,
    /// Every backend that was looked at, in the order of preference, the one taken last.
    pub reasons: Vec<Reason>,
}

impl Found {
    /// What carries experts in host memory between two ranks of the given kind. Same rank: a copy; same process: `local`; same host: `peer`,
    /// on memory that processes share; else `gloo`. `nccl` carries experts on GPUs alone, which is said.
    pub fn backends(&self, pair: Pair) -> Choice {
        let mut reasons = Vec::new();
        let mut pass = |backend, why: String| reasons.push(Reason { backend, why });
        let taken = match pair {
            Pair::Same => Some(("copy", "bytes stay on the rank".to_owned())),
            Pair::Threads => Some(("local", "both ranks are threads of one process".to_owned())),
            Pair::Host if self.sharing.is_ok() => Some((
                HOST_BACKEND,
                "processes share memory: a copy was tried out here, and every path is again when ranks meet"
                    .to_owned(),
            )),
            Pair::Host | Pair::Hosts => {
                match (pair, &self.sharing) {
                    (Pair::Host, Err(why)) => pass(HOST_BACKEND, why.clone()),
                    _ => pass(HOST_BACKEND, "the ranks are on different hosts".into()),
                }
                pass(
                    "nccl",
                    match self.library("libnccl.so.2").and_then(|library| library.path.as_ref()) {
                        None if !self.gpus.is_empty() => "libnccl.so.2 is missing".into(),
                        _ => self.why_no_nccl(),
                    },
                );
                match &self.gloo {
                    Ok(version) => Some(("gloo", format!("TCP on host memory, version {version}"))),
                    Err(why) => {
                        pass("gloo", why.clone());
                        None
                    }
                }
            }
        };
        if let Some((backend, why)) = &taken {
            reasons.push(Reason { backend, why: why.clone() });
        }
        Choice { backend: taken.map(|(backend, _)| backend), reasons }
    }

    /// What carries experts on GPUs between two ranks that are processes, as far as it can be told before they meet: what the driver says of the paths
    /// between GPUs, and whether NCCL is there. Same rank: a copy; same process and same host: `peer`, where every GPU reaches every other; else `nccl`, and
    /// where that is not to be had `gloo`, through host memory.
    pub fn backends_of_devices(&self, facts: &Facts, pair: Pair) -> Choice {
        let mut reasons = Vec::new();
        let reach = match &facts.cuda {
            Err(why) => Err(format!("there is no GPU to be used: {why}")),
            Ok(probe) => {
                let apart = probe.peer_access.iter().enumerate().find_map(|(from, row)| {
                    let to = row.iter().enumerate().position(|(to, can)| to != from && !can)?;
                    Some(format!("GPU {from} does not reach GPU {to}, the driver says; ranks on others may"))
                });
                apart.map_or(Ok(()), Err)
            }
        };
        let taken = match (pair, reach) {
            (_, Err(why)) if facts.cuda.is_err() => {
                reasons.push(Reason { backend: PEER, why });
                None
            }
            (Pair::Same, _) => Some(("copy", "bytes stay on the rank".to_owned())),
            (Pair::Threads | Pair::Host, Ok(())) => {
                let why = match pair {
                    Pair::Threads => "every GPU reaches every other",
                    _ => {
                        "every GPU reaches every other; whether processes may open each other's memory (containers: --ipc=host) is tried out when ranks meet"
                    }
                };
                Some((PEER, why.to_owned()))
            }
            (pair, reach) => {
                let why = reach.err().filter(|_| pair != Pair::Hosts);
                let why = why.unwrap_or_else(|| "the ranks are on different hosts".into());
                reasons.push(Reason { backend: PEER, why });
                match &facts.nccl {
                    Ok((path, version)) => Some(("nccl", format!("version {version}, {path}"))),
                    Err(why) => {
                        reasons.push(Reason { backend: "nccl", why: why.clone() });
                        match &self.gloo {
                            Ok(version) => {
                                Some(("gloo", format!("TCP through pinned host memory, version {version}")))
                            }
                            Err(why) => {
                                reasons.push(Reason { backend: "gloo", why: why.clone() });
                                None
                            }
                        }
                    }
                }
            }
        };
        if let Some((backend, why)) = &taken {
            reasons.push(Reason { backend, why: why.clone() });
        }
        Choice { backend: taken.map(|(backend, _)| backend), reasons }
    }

    fn why_no_nccl(&self) -> String {
        if self.gpus.is_empty() {
            "there is no GPU here".into()
        } else {
            "these experts are in host memory; between GPUs it is taken".into()
        }
    }
}
