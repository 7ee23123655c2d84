//! Which ranks share a host: found out through the store, not from addresses.

use std::fs;
use std::time::Instant;

use eplb_comm::store::Group;
use eplb_core::{NodeId, RankId};

use crate::error::EngineError;

/// The variable that replaces what is found out, where an operator knows better.
pub const VARIABLE: &str = "EPLB_HOST_ID";

/// Longest name taken from another rank, bytes.
const LONGEST: usize = 256;

/// Names a host as far as ranks can reach each other's memory: the running kernel, the host's name, and the namespaces of network
/// and shared memory. Two containers of one machine that share neither are two hosts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(String);

impl HostId {
    /// Of the host that this process runs on; [`VARIABLE`] goes before everything. What the system does not tell is left out.
    pub fn here() -> Self {
        Self::from_facts(std::env::var(VARIABLE).ok().filter(|id| !id.is_empty()), |path| {
            let link = fs::read_link(path).map(|target| target.to_string_lossy().into_owned());
            link.or_else(|_| fs::read_to_string(path)).unwrap_or_default()
        })
    }

    fn from_facts(given: Option<String>, read: impl Fn(&str) -> String) -> Self {
        if let Some(given) = given {
            return Self::from_name(&given);
        }
        let name = read("/proc/sys/kernel/hostname").trim().to_owned();
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for fact in [
            "/proc/sys/kernel/random/boot_id",
            "/proc/self/ns/net",
            "/proc/self/ns/ipc",
            "/proc/sys/kernel/hostname",
        ] {
            hasher.update(read(fact).trim().as_bytes());
            hasher.update(&[0xff]);
        }
        Self::from_name(&format!("{name}-{:016x}", hasher.digest()))
    }

    fn from_name(name: &str) -> Self {
        Self(name.chars().take(LONGEST / 4).collect())
    }

    /// This host under another name, of which the first 64 characters count: one that is to be taken for several.
    pub fn named(name: &str) -> Self {
        Self::from_name(name)
    }

    /// This host as the one of a rank that is to be taken for a rank of another node: what [`VARIABLE`] is set to for its process.
    pub fn pretended(&self, node: NodeId) -> Self {
        // In front, since long names are cut.
        Self::from_name(&format!("node{}-{}", node.0, self.0))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The hosts of all members of a group, in their order.
    ///
    /// # Errors
    /// Those of [`Group::all_gather`].
    pub fn gather(&self, group: &mut Group, deadline: Instant) -> Result<Vec<(RankId, Self)>, EngineError> {
        let names = group.all_gather("hosts", self.0.as_bytes(), deadline)?;
        let hosts = names.iter().map(|name| Self::from_name(&String::from_utf8_lossy(name)));
        Ok(group.members().iter().copied().zip(hosts).collect())
    }
}

/// Nodes of ranks on these hosts, in the order of the ranks: hosts are numbered as they first occur.
pub fn nodes<'a>(hosts: impl IntoIterator<Item = &'a HostId>) -> Vec<NodeId> {
    let mut known: Vec<&HostId> = Vec::new();
    let mut nodes = Vec::new();
    for host in hosts {
        let node = known.iter().position(|&other| other == host).unwrap_or_else(|| {
            known.push(host);
            known.len() - 1
        });
        nodes.push(NodeId(node as u32));
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(changed: &str) -> HostId {
        HostId::from_facts(
            None,
            |path| if path == changed { format!("other {path}") } else { path.to_owned() },
        )
    }

    #[test]
    fn a_host_is_a_kernel_a_name_and_its_namespaces() {
        assert_eq!(with("nothing"), with("nothing"));
        for fact in [
            "/proc/sys/kernel/random/boot_id",
            "/proc/self/ns/net",
            "/proc/self/ns/ipc",
            "/proc/sys/kernel/hostname",
        ] {
            assert_ne!(with(fact), with("nothing"), "{fact}");
        }
        assert_eq!(HostId::from_facts(Some("rack 3".into()), |_| "x".into()).name(), "rack 3");
        assert_eq!(HostId::here(), HostId::here());
    }

    #[test]
    fn nodes_are_numbered_as_they_occur() {
        let host = |name: &str| HostId::from_name(name);
        let hosts = [host("b"), host("a"), host("b"), host("c"), host("a")];
        assert_eq!(nodes(&hosts), [0, 1, 0, 2, 1].map(NodeId));
    }
}
