//! Which backend carries experts between two ranks, and why not another.

use eplb_comm_peer::HOST_BACKEND;

use super::Found;

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
                "processes share memory: a copy was tried out here, and is again when ranks meet; GPUs of processes are reached by \
                 `eplb bench exchange --backend peer --processes`"
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

    fn why_no_nccl(&self) -> String {
        if self.gpus.is_empty() {
            "there is no GPU here".into()
        } else {
            "these experts are in host memory; between GPUs, engines with slots there and `eplb bench exchange --backend nccl` use it".into()
        }
    }
}
