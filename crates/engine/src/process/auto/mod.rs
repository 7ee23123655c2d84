//! The backends that fit best, found out when ranks meet.
//!
//! Every rank tries to open the memory of all others of its host, and tells all what came of it. Where one group has them all, `peer` carries every
//! byte. Else each rank says what it has that joins ranks of several groups: for devices NCCL and, where not all have that, Gloo; for host memory Gloo. All ranks choose by the same facts
//! with the same function (`choice.rs`), and compare what they chose before they connect.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use eplb_comm::host::HostMemory;
use eplb_comm::store::{Group, PrefixStore, Store};
use eplb_comm::{Communicator, Mixed};
use eplb_comm_nccl::Backend;
use eplb_comm_peer::HOST_BACKEND;
use eplb_core::{ModelLayout, NodeId, RankId};
use eplb_cuda::DeviceMemory;

use super::device::NcclTransport;
use super::gloo::GlooTransport;
use super::hosts::HostId;
use super::peer::PeerTransport;
use super::transport::{Meeting, Transport};
use crate::error::EngineError;
use crate::machine::Reason;
use choice::{Choice, Found, Taken, Way, choose};

mod choice;
mod survey;

pub(crate) use survey::Joined;
use survey::Surveyed;

const AUTO: &str = "auto";
const PEER: &str = "peer";
const GLOO: &str = "gloo";

/// `peer` between ranks that can open each other's memory, tried out by a copy; between others NCCL where slots lie on devices and every rank has it, else
/// Gloo; both in one wave where some can and some cannot. For ranks that are processes.
///
/// Every meeting finds out anew, so after a change of members too. The whole of it is agreed: a rank that dies or stops amid it is an error of all
/// others at their deadline, never a choice of some.
#[derive(Debug)]
pub struct AutoTransport {
    host: HostId,
    gloo: Result<GlooTransport, String>,
    nccl: NcclTransport,
    peer: eplb_comm_peer::Options,
    reasons: Mutex<Vec<Reason>>,
    /// A fault for tests: what other ranks found is not listened to.
    #[cfg(test)]
    deaf: bool,
}

impl AutoTransport {
    /// With Gloo, or why it is not there.
    pub fn new(gloo: Result<GlooTransport, EngineError>) -> Self {
        Self {
            host: HostId::here(),
            gloo: gloo.map_err(why),
            nccl: NcclTransport::new(Backend::Nccl),
            peer: eplb_comm_peer::Options::default(),
            reasons: Mutex::default(),
            #[cfg(test)]
            deaf: false,
        }
    }

    /// With NCCL of another kind than [`Backend::Nccl`], or with options.
    #[must_use]
    pub fn with_nccl(self, nccl: NcclTransport) -> Self {
        Self { nccl, ..self }
    }

    /// With options of `peer` on devices.
    #[must_use]
    pub fn with_peer(self, peer: eplb_comm_peer::Options) -> Self {
        Self { peer, ..self }
    }

    /// On a host of another name than [`HostId::here`]: ranks of different names do not try to open each other's memory.
    #[must_use]
    pub fn on_host(self, host: HostId) -> Self {
        Self { host, ..self }
    }

    /// What this rank chooses by.
    fn heard(&self, found: &Found) -> Found {
        #[cfg(test)]
        if self.deaf {
            return Found { groups: vec![NodeId(0); found.groups.len()], ..found.clone() };
        }
        found.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Reason>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The choice of all ranks, once all have made the same.
    fn agree(&self, place: &Place, found: &Found, ways: &[Look<'_>]) -> Result<Choice, EngineError> {
        let Place { rank, world_size, store, deadline } = place;
        let members: Vec<RankId> = (0..*world_size).map(RankId::at).collect();
        let mut group = Group::new(corner(store, AUTO)?, 1, *rank, &members)?;
        let there = |label: &str, mine: &Result<String, String>, group: &mut Group| {
            let said = match mine {
                Ok(version) => format!("+{version}"),
                Err(why) => format!("-{why}"),
            };
            let told = group.all_gather(label, said.as_bytes(), *deadline)?;
            let read = |(rank, said): (&RankId, Vec<u8>)| {
                let unreadable = EngineError::Unreadable { rank: *rank, what: "the backends that it has" };
                let said = String::from_utf8(said)
                    .map_err(|_| EngineError::Unreadable { rank: *rank, what: "the backends that it has" })?;
                match said.split_at_checked(1) {
                    Some(("+", version)) => Ok(Ok(version.to_owned())),
                    Some(("-", why)) => Ok(Err(why.to_owned())),
                    _ => Err(unreadable),
                }
            };
            members.iter().zip(told).map(read).collect::<Result<Vec<_>, EngineError>>()
        };
        // Nothing is opened, and nothing of it said, where it is of no use.
        let mut known = Vec::new();
        for way in ways.iter().filter(|_| !found.is_one()) {
            let there = there(way.backend, &(way.look)(), &mut group)?;
            let mixed = mixed_name(found.peer, way.backend);
            known.push(Way { backend: way.backend, mixed, same: way.same, there });
        }
        let chosen = choose(&self.heard(found), &known);
        let words = |choice: &Choice| {
            let groups: Vec<String> = found.groups.iter().map(|group| group.0.to_string()).collect();
            format!("{:?}, groups {}", choice.taken, groups.join(" "))
        };
        let mine = chosen.as_ref().map_or_else(|_| "nothing".to_owned(), words);
        let told = group.all_gather("chosen", mine.as_bytes(), *deadline)?;
        let told: Vec<String> = told.iter().map(|said| String::from_utf8_lossy(said).into_owned()).collect();
        if let Some(other) = told.iter().position(|said| *said != told[0]) {
            return Err(EngineError::Differs {
                what: "what backend auto chose".into(),
                lowest: RankId(0),
                ours: told[0].clone(),
                rank: RankId::at(other),
                theirs: told[other].clone(),
            });
        }
        chosen.map_err(|reasons| {
            let looked_at = reasons.iter().map(|reason| format!("{}: {}", reason.backend, reason.why));
            let detail = format!("nothing joins all ranks; {}", looked_at.collect::<Vec<_>>().join("; "));
            EngineError::Backend { backend: AUTO, detail }
        })
    }

    /// Keeps the reasons of a choice, and logs them.
    fn tell(&self, choice: &Choice) {
        if let Some((taken, passed)) = choice.reasons.split_last() {
            for Reason { backend, why } in passed {
                tracing::warn!(backend, why, "backend passed over");
            }
            tracing::info!(backend = taken.backend, why = taken.why, "backend taken");
        }
        *self.lock() = choice.reasons.clone();
    }

    /// Makes this rank's communicator of what was surveyed and what else there is.
    fn connect_as<M>(
        &self,
        meeting: Meeting<M>,
        surveyed: Surveyed,
        ways: &[Look<'_>],
        connect: impl FnOnce(&'static str, Meeting<M>) -> Result<Box<dyn Communicator>, EngineError>,
    ) -> Result<Box<dyn Communicator>, EngineError> {
        let Surveyed { found, inside } = surveyed;
        let place = Place {
            rank: meeting.rank,
            world_size: meeting.world_size,
            store: meeting.store.clone(),
            deadline: meeting.deadline,
        };
        let choice = self.agree(&place, &found, ways)?;
        let of = |backend: &str| -> Result<Meeting<M>, EngineError> {
            Ok(Meeting { store: corner(&place.store, backend)?, ..meeting })
        };
        // Of every choice but of the others alone, the survey has made its part.
        let inside = inside.ok_or_else(|| EngineError::Backend {
            backend: found.peer,
            detail: format!("{} has no communicator of its group", place.rank),
        });
        let made = match choice.taken {
            Taken::Peer => inside?,
            Taken::Other(backend) => connect(backend, of(backend)?)?,
            Taken::Mixed(backend) => mix(inside?, connect(backend, of(backend)?)?, found.groups)?,
        };
        self.tell(&choice);
        Ok(made)
    }

    /// Gloo, where it is there.
    fn gloo(&self) -> Result<&GlooTransport, EngineError> {
        let missing = |why: &String| EngineError::Backend { backend: GLOO, detail: why.clone() };
        self.gloo.as_ref().map_err(missing)
    }

    /// Version of Gloo, or why it cannot be used.
    fn find_gloo(&self) -> Result<String, String> {
        self.gloo().and_then(|_| GlooTransport::find_library()).map_err(why)
    }

    /// As [`Transport::connect_device`], with the memory of all ranks as far as it is open here.
    pub(crate) fn join_device(&self, meeting: Meeting<Arc<DeviceMemory>>) -> Result<Joined, EngineError> {
        let (surveyed, memories) = survey::device(self, &meeting)?;
        let one = surveyed.found.is_one();
        let through_host =
            || self.find_gloo().map(|version| format!("{version}, through pinned host memory,"));
        let ways = [
            Look { backend: self.nccl.name(), same: true, look: &|| self.nccl.find_library() },
            Look { backend: GLOO, same: false, look: &through_host },
        ];
        let connect = |backend: &'static str, meeting| match backend {
            GLOO => self.gloo()?.connect_device(meeting),
            _ => self.nccl.connect_device(meeting),
        };
        let communicator = self.connect_as(meeting, surveyed, &ways, connect)?;
        Ok(Joined { communicator, memories: memories.filter(|_| one) })
    }
}

/// What an error says, without the name of the backend that it is said of anyway.
fn why(error: EngineError) -> String {
    match error {
        EngineError::Backend { detail, .. } => detail,
        other => other.to_string(),
    }
}

/// Where ranks come together.
struct Place {
    rank: RankId,
    world_size: usize,
    store: Arc<dyn Store>,
    deadline: Instant,
}

/// A backend that joins ranks wherever they are, as this rank looks for it.
struct Look<'a> {
    backend: &'static str,
    /// Whether all ranks need the same version.
    same: bool,
    look: &'a dyn Fn() -> Result<String, String>,
}

fn corner(store: &Arc<dyn Store>, name: &str) -> Result<Arc<dyn Store>, EngineError> {
    Ok(Arc::new(PrefixStore::new(store.clone(), name)?))
}

/// One communicator of two: `inside` for ranks of one node, `between` for the others. `nodes` are those of the ranks, in their order.
///
/// # Errors
/// Those of [`Mixed::new`].
pub(crate) fn mix(
    inside: Box<dyn Communicator>,
    between: Box<dyn Communicator>,
    nodes: Vec<NodeId>,
) -> Result<Box<dyn Communicator>, EngineError> {
    let name = mixed_name(inside.backend(), between.backend());
    Ok(Box::new(Mixed::new(name, inside, between, nodes)?))
}

/// What two backends in one wave are called.
fn mixed_name(inside: &str, between: &str) -> &'static str {
    match (inside, between) {
        (PEER, "nccl") => "peer and nccl",
        (PEER, "pynccl") => "peer and pynccl",
        (PEER, GLOO) => "peer and gloo",
        (HOST_BACKEND, GLOO) => "peer (host memory) and gloo",
        _ => "mixed",
    }
}

impl Transport for AutoTransport {
    fn name(&self) -> &'static str {
        AUTO
    }

    fn launches_in_steps(&self) -> bool {
        self.nccl.launches_in_steps()
    }

    fn reasons(&self) -> Vec<Reason> {
        self.lock().clone()
    }

    fn memory(
        &self,
        rank: RankId,
        layout: Arc<ModelLayout>,
        slots: Range<usize>,
        staging_bytes: usize,
    ) -> Result<Arc<HostMemory>, EngineError> {
        let shared = PeerTransport.memory(rank, layout.clone(), slots.clone(), staging_bytes);
        // Gloo takes any memory; that this one cannot be shared, the meeting will say.
        shared.or_else(|_| Ok(HostMemory::new(rank, layout, slots, staging_bytes)?))
    }

    fn connect(&self, meeting: Meeting) -> Result<Box<dyn Communicator>, EngineError> {
        let surveyed = survey::host(self, &meeting)?;
        let ways = [Look { backend: GLOO, same: false, look: &|| self.find_gloo() }];
        self.connect_as(meeting, surveyed, &ways, |_, meeting| self.gloo()?.connect(meeting))
    }

    fn connect_device(
        &self,
        meeting: Meeting<Arc<DeviceMemory>>,
    ) -> Result<Box<dyn Communicator>, EngineError> {
        // What others may read is closed before this rank's communicator says so.
        let Joined { communicator, memories } = self.join_device(meeting)?;
        drop(memories);
        Ok(communicator)
    }
}

#[cfg(test)]
mod tests;
