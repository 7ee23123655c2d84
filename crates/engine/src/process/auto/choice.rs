//! The choice itself: what all ranks know, in; which backends, and why, out. No IO: ranks that know the same choose the same.

use std::collections::BTreeMap;

use eplb_core::{NodeId, RankId};

use crate::machine::Reason;

/// What a survey found, the same on all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The backend inside groups.
    pub(super) peer: &'static str,
    /// The group of each rank: those of one can all open each other's memory.
    pub(super) groups: Vec<NodeId>,
    /// Why not all ranks are of one.
    pub(super) causes: Vec<String>,
}

impl Found {
    /// Whether one group has all ranks.
    pub(super) fn is_one(&self) -> bool {
        self.groups.iter().all(|group| *group == self.groups[0])
    }

    /// Whether no two ranks are of one group.
    pub(super) fn is_apart(&self) -> bool {
        self.groups.iter().enumerate().all(|(rank, group)| group.index() == rank)
    }

    /// The ranks of each group of several, in words.
    fn insides(&self) -> String {
        let mut ranks: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
        for (rank, group) in self.groups.iter().enumerate() {
            ranks.entry(*group).or_default().push(rank.to_string());
        }
        let several = ranks.into_values().filter(|ranks| ranks.len() > 1);
        several.map(|ranks| format!("ranks {}", ranks.join(" "))).collect::<Vec<_>>().join(", ")
    }
}

/// A backend that joins ranks wherever they are, as every rank has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) backend: &'static str,
    /// What it is called beside the backend inside groups.
    pub(super) mixed: &'static str,
    /// Whether all ranks need the same version.
    pub(super) same: bool,
    /// By rank: the version that is there, or why there is none.
    pub(super) there: Vec<Result<String, String>>,
}

impl Way {
    /// Its version, or why it does not join all ranks.
    fn usable(&self) -> Result<&str, String> {
        let mut first: Option<&str> = None;
        for (rank, there) in self.there.iter().enumerate() {
            let rank = RankId::at(rank);
            let version = there.as_deref().map_err(|why| format!("{rank}: {why}"))?;
            match first {
                Some(first) if self.same && first != version => {
                    return Err(format!(
                        "{rank} has version {version}, rank 0 has {first}: give all ranks the same"
                    ));
                }
                _ => first = first.or(Some(version)),
            }
        }
        Ok(first.unwrap_or("none"))
    }
}

/// What carries bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The backend inside groups alone.
    Peer,
    /// It inside groups, and another between them.
    Mixed(&'static str),
    /// Another alone.
    Other(&'static str),
}

/// A choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) taken: Taken,
    /// What was looked at and why, what is taken last.
    pub(super) reasons: Vec<Reason>,
}

/// Chooses: the backend inside groups where one has all ranks; else with the first of `ways` that every rank has, and that one alone where no two
/// ranks are of a group. Without any, everything that was looked at.
pub(super) fn choose(found: &Found, ways: &[Way]) -> Result<Choice, Vec<Reason>> {
    let peer = found.peer;
    if found.is_one() {
        let why =
            "all ranks opened each other's memory, and what was read there is what its owner had written"
                .into();
        return Ok(Choice { taken: Taken::Peer, reasons: vec![Reason { backend: peer, why }] });
    }
    let causes = found.causes.join("; ");
    let mut reasons = Vec::new();
    match found.is_apart() {
        true => reasons.push(Reason { backend: peer, why: causes.clone() }),
        false => {
            let why = format!("it joins {} alone: {causes}", found.insides());
            reasons.push(Reason { backend: peer, why });
        }
    }
    for way in ways {
        let version = match way.usable() {
            Ok(version) => version,
            Err(why) => {
                reasons.push(Reason { backend: way.backend, why });
                continue;
            }
        };
        let taken = if found.is_apart() {
            let why = format!("version {version} between all ranks");
            reasons.push(Reason { backend: way.backend, why });
            Taken::Other(way.backend)
        } else {
            let why = format!(
                "{peer} inside {}, {} of version {version} between all others, in one wave",
                found.insides(),
                way.backend
            );
            reasons.push(Reason { backend: way.mixed, why });
            Taken::Mixed(way.backend)
        };
        return Ok(Choice { taken, reasons });
    }
    Err(reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(groups: &[u32]) -> Found {
        let groups: Vec<NodeId> = groups.iter().copied().map(NodeId).collect();
        let one = groups.iter().all(|group| *group == groups[0]);
        let causes = if one { Vec::new() } else { vec!["rank 1 refused rank 0".to_owned()] };
        Found { peer: "peer", groups, causes }
    }

    fn way(backend: &'static str, same: bool, there: &[Result<&str, &str>]) -> Way {
        let there = there.iter().map(|there| there.map(str::to_owned).map_err(str::to_owned)).collect();
        let mixed = if backend == "nccl" { "peer and nccl" } else { "peer and gloo" };
        Way { backend, mixed, same, there }
    }

    fn taken(groups: &[u32], ways: &[Way]) -> (Taken, Vec<&'static str>, String) {
        let choice = choose(&found(groups), ways).unwrap();
        let names = choice.reasons.iter().map(|reason| reason.backend).collect();
        let words = choice.reasons.iter().map(|reason| reason.why.clone()).collect::<Vec<_>>().join(" | ");
        (choice.taken, names, words)
    }

    #[test]
    fn each_case_has_its_backends_and_its_reasons() {
        let both = [Ok("2.28"), Ok("2.28")];
        let nccl = way("nccl", true, &both);
        let none = way("nccl", true, &[Ok("2.28"), Err("libnccl.so.2 is missing")]);
        let old = way("nccl", true, &[Ok("2.28"), Ok("2.21")]);
        let gloo = way("gloo", false, &[Ok("a"), Ok("b")]);
        let all = |ways: &[&Way]| ways.iter().map(|way| (*way).clone()).collect::<Vec<_>>();

        assert_eq!(taken(&[0, 0], &[]).0, Taken::Peer);
        let (what, names, words) = taken(&[0, 1], &all(&[&nccl, &gloo]));
        assert_eq!((what, &*names), (Taken::Other("nccl"), &["peer", "nccl"][..]));
        assert!(words.contains("rank 1 refused rank 0") && words.contains("2.28"), "{words}");
        for (missing, word) in [(&none, "rank 1: libnccl.so.2 is missing"), (&old, "rank 1 has version 2.21")]
        {
            let (what, names, words) = taken(&[0, 1], &all(&[missing, &gloo]));
            assert_eq!((what, &*names), (Taken::Other("gloo"), &["peer", "nccl", "gloo"][..]));
            assert!(words.contains(word), "{words}");
            // A group of two with a third rank.
            let (what, names, words) = taken(&[0, 0, 1], &all(&[missing, &gloo]));
            assert_eq!((what, &*names), (Taken::Mixed("gloo"), &["peer", "nccl", "peer and gloo"][..]));
            assert!(words.contains("inside ranks 0 1,"), "{words}");
        }
        let (what, _, words) = taken(&[0, 1, 0, 1], &all(&[&nccl]));
        assert_eq!(what, Taken::Mixed("nccl"));
        assert!(words.contains("inside ranks 0 2, ranks 1 3,"), "{words}");
        let looked_at = choose(&found(&[0, 1]), &all(&[&none])).unwrap_err();
        assert_eq!(looked_at.iter().map(|reason| reason.backend).collect::<Vec<_>>(), ["peer", "nccl"]);
    }
}
