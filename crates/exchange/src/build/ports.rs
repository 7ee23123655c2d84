//! Waves that keep all ports busy.
//!
//! A wave lasts as long as its busiest port, so a wave in which one rank receives everything wastes the ports of the others.
//! What may go first is often on one rank only (the slots whose experts have a second copy), and only what it frees is next.
//! So a wave takes a bounded number of bytes from and to each rank: the first is short, what it frees joins in the second
//! while the first rank goes on, and soon every port has its share in every wave.

use eplb_core::{RankId, SlotId, Topology};

use super::Draft;

/// Waves that the busiest port's bytes are cut into, where they are many. More keep ports busier, and cost more agreements.
const CUTS: u64 = 12;
/// What a wave may always carry through a port, bytes: about what a fast link moves while ranks agree on a wave.
const LEAST: u64 = 256 << 20;

/// Bytes that a wave carries through each rank's port, and how many it may.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    into: Vec<u64>,
    out_of: Vec<u64>,
    most: u64,
}

impl Ports {
    /// Idle ports. `most`: bytes that one wave may carry through a port, each way.
    pub(super) fn new(ranks: usize, most: u64) -> Self {
        Self { into: vec![0; ranks], out_of: vec![0; ranks], most }
    }

    /// Bytes into each rank.
    pub(super) fn into(&self) -> &[u64] {
        &self.into
    }

    /// Bytes through the busiest port, either way.
    pub(super) fn busiest(&self) -> u64 {
        self.into.iter().chain(&self.out_of).copied().max().unwrap_or(0)
    }

    /// The limit for an exchange whose busiest rank receives so many bytes.
    pub(super) fn limit(busiest: u64) -> u64 {
        (busiest / CUTS).max(LEAST)
    }

    /// A port takes one transfer, whatever its size: every wave makes progress.
    fn has_room(&self, used: u64, bytes: u64) -> bool {
        used == 0 || used.saturating_add(bytes) <= self.most
    }
}

/// A transfer that finds room: where it comes from, if it crosses a link at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The rank has the expert already.
    Local,
    /// Over the ports of two ranks.
    Link { source: RankId, dest: RankId },
}

impl Draft {
    /// How an expert held in the slots given may come to a rank in this wave; `None` if the ports are full. The source that
    /// the wave ends up with may be another, because holders may still be drained.
    pub(super) fn way(
        &self,
        holders: &[SlotId],
        dest: RankId,
        topology: &Topology,
        bytes: u64,
    ) -> Option<Way> {
        let ranks = || holders.iter().map(|&slot| topology.rank_of(slot));
        if ranks().any(|rank| rank == dest) {
            return Some(Way::Local);
        }
        let source = ranks().min_by_key(|rank| (self.ports.out_of[rank.index()], *rank))?;
        let (into, out_of) = (self.ports.into[dest.index()], self.ports.out_of[source.index()]);
        let room = self.ports.has_room(into, bytes) && self.ports.has_room(out_of, bytes);
        room.then_some(Way::Link { source, dest })
    }

    /// Whether each of the ranks may send one expert and receive one.
    pub(super) fn has_way_around(&self, ranks: impl IntoIterator<Item = RankId>, bytes: u64) -> bool {
        let ports = &self.ports;
        let room = |rank: RankId| {
            let (into, out_of) = (ports.into[rank.index()], ports.out_of[rank.index()]);
            ports.has_room(into, bytes) && ports.has_room(out_of, bytes)
        };
        ranks.into_iter().all(room)
    }

    /// Counts a transfer.
    pub(super) fn take_way(&mut self, way: Way, bytes: u64) {
        if let Way::Link { source, dest } = way {
            self.ports.into[dest.index()] += bytes;
            self.ports.out_of[source.index()] += bytes;
        }
    }
}
