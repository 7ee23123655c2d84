//! Which rank this process is, and where the store is: from flags, or from what a launcher has put into the environment.
//!
//! Rank and world size come together from the first of these that has any of its two:
//!
//! 1. `--rank` and `--world-size`;
//! 2. torchrun's `RANK` and `WORLD_SIZE`;
//! 3. vLLM's `VLLM_DP_RANK` and `VLLM_DP_SIZE`.
//!
//! One that has only one of its two is an error: halves of different origins are never put together. The store is `--store` if that is
//! given; else a TCP store at the origin's `MASTER_ADDR` or `VLLM_DP_MASTER_IP`. Its port is `EPLB_STORE_PORT`, or else 1000 above
//! `MASTER_PORT` or `VLLM_DP_MASTER_PORT` (below, where there is none above): those ports themselves, and the next ones, belong to
//! the server's own rendezvous. A variable that is empty is not set.

use eplb_comm::store::StoreAddress;
use eplb_core::RankId;

use crate::error::EngineError;

/// The variable with the port of the store.
pub const PORT_VARIABLE: &str = "EPLB_STORE_PORT";

/// From a launcher's port to the store's.
const PORT_OFFSET: u16 = 1000;

/// Where rank and world size came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `--rank` and `--world-size`.
    Flags,
    /// torchrun.
    Torchrun,
    /// vLLM's data-parallel ranks.
    Vllm,
}

impl Origin {
    /// Names of rank, world size, address and port.
    fn names(self) -> [&'static str; 4] {
        match self {
            Self::Flags => ["--rank", "--world-size", "--store", "--store"],
            Self::Torchrun => ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"],
            Self::Vllm => ["VLLM_DP_RANK", "VLLM_DP_SIZE", "VLLM_DP_MASTER_IP", "VLLM_DP_MASTER_PORT"],
        }
    }
}

/// What the user gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--rank`.
    pub rank: Option<usize>,
    /// `--world-size`.
    pub world_size: Option<usize>,
    /// `--store`.
    pub store: Option<StoreAddress>,
}

/// A process's place among all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// This rank.
    pub rank: RankId,
    /// Number of ranks.
    pub world_size: usize,
    /// The store. `None` for a rank that is alone: it needs none.
    pub store: Option<StoreAddress>,
    /// Where rank and world size came from.
    pub origin: Origin,
}

impl Join {
    /// Finds out, by the rules of the [module](self). `Ok(None)`: this process is no rank of a group.
    ///
    /// # Errors
    /// Something is missing, is no number, or is out of range; the message names it.
    pub fn find(
        flags: &Flags,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, EngineError> {
        let set = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let flag = |n: Option<usize>| n.map(|n| n.to_string());
        let value = |origin: Origin, which: usize| match (origin, which) {
            (Origin::Flags, 0) => flag(flags.rank),
            (Origin::Flags, 1) => flag(flags.world_size),
            (Origin::Flags, _) => None,
            (origin, which) => set(origin.names()[which]),
        };
        let origins = [Origin::Flags, Origin::Torchrun, Origin::Vllm];
        let found = origins.into_iter().find(|&o| value(o, 0).is_some() || value(o, 1).is_some());
        let Some(origin) = found else {
            if let Some(store) = &flags.store {
                let text = format!(
                    "--store {store} was given, but not which rank this is: give --rank and --world-size, or start it with \
                     torchrun"
                );
                return Err(EngineError::Options(text));
            }
            return Ok(None);
        };
        let names = origin.names();
        let number = |which: usize| -> Result<usize, EngineError> {
            let other = names[1 - which];
            let text = value(origin, which).ok_or_else(|| {
                EngineError::Options(format!("{other} is given, but {} is not", names[which]))
            })?;
            text.parse().map_err(|_| {
                EngineError::Options(format!("{} is {text:?}, which is no number", names[which]))
            })
        };
        let (rank, world_size) = (number(0)?, number(1)?);
        if rank >= world_size {
            let text = format!(
                "{} {rank} is not below {} {world_size}: ranks are 0..{world_size}",
                names[0], names[1]
            );
            return Err(EngineError::Options(text));
        }
        let store = match &flags.store {
            _ if world_size == 1 => None,
            Some(store) => Some(store.clone()),
            None if origin == Origin::Flags => {
                let text = format!(
                    "--rank {rank} of {world_size} needs --store tcp://host:port or file:///shared/folder"
                );
                return Err(EngineError::Options(text));
            }
            None => Some(store_of(origin, &set)?),
        };
        Ok(Some(Self { rank: RankId::at(rank), world_size, store, origin }))
    }
}

fn store_of(origin: Origin, set: &impl Fn(&str) -> Option<String>) -> Result<StoreAddress, EngineError> {
    let [rank, _, address, port] = origin.names();
    let missing = |name: &str| {
        EngineError::Options(format!("{rank} is set, but {name} is not: set it, or give --store"))
    };
    let host = set(address).ok_or_else(|| missing(address))?;
    let parse = |name: &str, text: String| {
        let wrong = || EngineError::Options(format!("{name} is {text:?}, which is no port (1 to 65535)"));
        text.parse::<u16>().ok().filter(|&port| port > 0).ok_or_else(wrong)
    };
    let port = match set(PORT_VARIABLE) {
        Some(own) => parse(PORT_VARIABLE, own)?,
        None => {
            let port = parse(port, set(port).ok_or_else(|| missing(port))?)?;
            port.checked_add(PORT_OFFSET).unwrap_or(port - PORT_OFFSET)
        }
    };
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
    format!("tcp://{host}:{port}").parse().map_err(|error: eplb_comm::store::locate::BadStoreAddress| {
        EngineError::Options(format!("{address}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(flags: &Flags, variables: &[(&str, &str)]) -> Result<Option<Join>, String> {
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Join::find(flags, lookup).map_err(|error| error.to_string())
    }

    const TORCHRUN: [(&str, &str); 4] =
        [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "10.0.0.7"), ("MASTER_PORT", "29500")];
    const VLLM: [(&str, &str); 4] = [
        ("VLLM_DP_RANK", "2"),
        ("VLLM_DP_SIZE", "3"),
        ("VLLM_DP_MASTER_IP", "fd00::1"),
        ("VLLM_DP_MASTER_PORT", "65000"),
    ];

    fn place(join: &Join) -> (u32, usize, String, Origin) {
        let store = join.store.as_ref().map(ToString::to_string).unwrap_or_default();
        (join.rank.0, join.world_size, store, join.origin)
    }

    #[test]
    fn launchers_are_understood_in_a_fixed_order() {
        let none = Flags::default();
        assert_eq!(find(&none, &[]), Ok(None));
        assert_eq!(find(&none, &[("RANK", ""), ("MASTER_ADDR", "x")]), Ok(None));
        let torchrun = find(&none, &TORCHRUN).unwrap().unwrap();
        assert_eq!(place(&torchrun), (1, 4, "tcp://10.0.0.7:30500".into(), Origin::Torchrun));
        let vllm = find(&none, &VLLM).unwrap().unwrap();
        assert_eq!(place(&vllm), (2, 3, "tcp://[fd00::1]:64000".into(), Origin::Vllm));
        let both = [&VLLM[..], &TORCHRUN[..]].concat();
        assert_eq!(find(&none, &both).unwrap().unwrap(), torchrun);
        let own_port = [&TORCHRUN[..], &[(PORT_VARIABLE, "7")]].concat();
        assert_eq!(place(&find(&none, &own_port).unwrap().unwrap()).2, "tcp://10.0.0.7:7");
        // Flags go before both, whole; a store alone goes with the launcher's rank.
        let store: StoreAddress = "file:///shared".parse().unwrap();
        let flags = Flags { rank: Some(0), world_size: Some(2), store: Some(store.clone()) };
        assert_eq!(
            place(&find(&flags, &both).unwrap().unwrap()),
            (0, 2, "file:///shared".into(), Origin::Flags)
        );
        let only_store = Flags { store: Some(store), ..none };
        assert_eq!(
            place(&find(&only_store, &both).unwrap().unwrap()),
            (1, 4, "file:///shared".into(), Origin::Torchrun)
        );
    }

    #[test]
    fn one_rank_needs_no_store() {
        let flags = Flags { rank: Some(0), world_size: Some(1), store: None };
        assert_eq!(place(&find(&flags, &[]).unwrap().unwrap()), (0, 1, String::new(), Origin::Flags));
        let alone = find(&Flags::default(), &[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap().unwrap();
        assert_eq!(alone.store, None);
    }

    #[test]
    fn halves_are_not_put_together_and_nonsense_is_named() {
        let refused = |flags: Flags, variables: &[(&str, &str)], words: &[&str]| {
            let error = find(&flags, variables).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        let none = Flags::default;
        refused(Flags { rank: Some(0), ..none() }, &TORCHRUN, &["--rank", "--world-size"]);
        refused(
            none(),
            &[("WORLD_SIZE", "4"), ("VLLM_DP_RANK", "0")],
            &["WORLD_SIZE is given", "RANK is not"],
        );
        refused(none(), &[("RANK", "one"), ("WORLD_SIZE", "4")], &["RANK", "\"one\""]);
        refused(Flags { rank: Some(4), world_size: Some(4), store: None }, &[], &["--rank 4", "0..4"]);
        refused(Flags { rank: Some(0), world_size: Some(0), store: None }, &[], &["--rank 0"]);
        refused(Flags { rank: Some(0), world_size: Some(2), store: None }, &TORCHRUN, &["--store"]);
        refused(none(), &TORCHRUN[..3], &["MASTER_PORT is not"]);
        refused(none(), &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "1")], &["MASTER_ADDR"]);
        let bad_port = [&TORCHRUN[..3], &[("MASTER_PORT", "70000")]].concat();
        refused(none(), &bad_port, &["MASTER_PORT", "70000"]);
        let bad_own = [&TORCHRUN[..], &[(PORT_VARIABLE, "0")]].concat();
        refused(none(), &bad_own, &[PORT_VARIABLE]);
        refused(Flags { store: Some("file:///x".parse().unwrap()), ..none() }, &[], &["--rank", "torchrun"]);
    }
}
