//! Arguments for ranks that differ.

use std::fmt::Display;
use std::str::FromStr;

use clap::Args;
use eplb_core::{RankId, Topology};

use crate::output::Failure;

/// How ranks differ from one another.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RankArgs {
    /// Relative speeds: one per rank (1,1,0.5,1) or those that differ from 1 (2=0.5,7=2)
    #[arg(long, value_name = "S,..|R=S,..", value_parser = PerRank::<f64>::parse)]
    pub(crate) rank_speed: Option<PerRank<f64>>,

    /// Slots per layer of each rank, if they differ: one number per rank, --slots in sum (9,9,10,8)
    #[arg(long, value_name = "P,..", value_delimiter = ',')]
    pub(crate) rank_slots: Vec<usize>,

    /// Ranks that are dead: nothing is placed there, and what only they held is listed
    #[arg(long, value_name = "R,..", value_delimiter = ',')]
    pub(crate) dead: Vec<usize>,
}

/// A value for every rank, or for some of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PerRank<T> {
    /// One per rank, in order.
    All(Vec<T>),
    /// Rank and value.
    Some(Vec<(usize, T)>),
}

impl<T: FromStr<Err: Display>> PerRank<T> {
    /// For clap: `a,b,c` or `rank=value,rank=value`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value = |word: &str| word.trim().parse::<T>().map_err(|error| format!("{word:?}: {error}"));
        let words = || text.split(',');
        if !text.contains('=') {
            return words().map(value).collect::<Result<_, _>>().map(Self::All);
        }
        words()
            .map(|word| {
                let (rank, of) = word.split_once('=').ok_or_else(|| {
                    format!("{word:?} has no rank: write either rank=value throughout or values alone")
                })?;
                let rank = rank.trim().parse().map_err(|_| format!("{rank:?} is not a rank"))?;
                Ok((rank, value(of)?))
            })
            .collect::<Result<_, _>>()
            .map(Self::Some)
    }
}

impl RankArgs {
    /// Ranks with their slots, speeds and dead ones, all on one node. Slots that do not divide go to the first ranks.
    pub(crate) fn topology(&self, ranks: usize, slots: usize) -> Result<Topology, Failure> {
        let core = |error: eplb_core::CoreError| Failure::input(error.to_string());
        let topology = if self.rank_slots.is_empty() {
            Topology::uniform(ranks, slots).map_err(core)?
        } else {
            let given = &self.rank_slots;
            if given.len() != ranks {
                return Err(Failure::input(format!(
                    "--rank-slots has {} numbers for {ranks} ranks",
                    given.len()
                )));
            }
            let sum = given.iter().try_fold(0usize, |sum, &own| sum.checked_add(own));
            if sum != Some(slots) {
                let sum = sum.map_or("too much".into(), |sum| sum.to_string());
                return Err(Failure::input(format!("--rank-slots is {sum} in sum, but --slots is {slots}")));
            }
            Topology::new(given).map_err(core)?
        };
        let topology = match &self.rank_speed {
            None => topology,
            Some(given) => topology.with_speed(&speeds(given, ranks)?).map_err(core)?,
        };
        let dead: Vec<RankId> =
            self.dead.iter().map(|&rank| rank_id("--dead", rank, ranks)).collect::<Result<_, _>>()?;
        topology.with_dead(&dead).map_err(core)
    }
}

fn rank_id(option: &str, rank: usize, ranks: usize) -> Result<RankId, Failure> {
    if rank < ranks {
        return Ok(RankId::at(rank));
    }
    Err(Failure::input(format!("{option} names rank {rank}, which does not exist: ranks are 0..{ranks}")))
}

fn speeds(given: &PerRank<f64>, ranks: usize) -> Result<Vec<f64>, Failure> {
    match given {
        PerRank::All(all) => Ok(all.clone()),
        PerRank::Some(some) => {
            let mut speeds = vec![None; ranks];
            for &(rank, speed) in some {
                let rank = rank_id("--rank-speed", rank, ranks)?;
                if speeds[rank.index()].replace(speed).is_some() {
                    return Err(Failure::input(format!("--rank-speed names {rank} twice")));
                }
            }
            Ok(speeds.into_iter().map(|speed| speed.unwrap_or(1.0)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_for_all_ranks_or_for_some() {
        assert_eq!(PerRank::<f64>::parse("1, 0.5"), Ok(PerRank::All(vec![1.0, 0.5])));
        assert_eq!(PerRank::<f64>::parse("3=2,0=0.5"), Ok(PerRank::Some(vec![(3, 2.0), (0, 0.5)])));
        for bad in ["", "1,,2", "fast", "1=2,3", "x=1", "1=fast"] {
            assert!(PerRank::<f64>::parse(bad).is_err(), "{bad:?}");
        }
    }
}
