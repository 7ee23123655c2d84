//! What is there to work with, and whether it works.

use std::time::{Duration, Instant};

use eplb_comm::conformance::{self, Options as SuiteOptions, Rank, Setup};
use eplb_comm::{CommError, Communicator};
use eplb_comm_nccl::Options;
use eplb_cuda::{Inspector, Probe, probe};

use crate::bench::{Carrier, DeviceGroup};
use crate::error::EngineError;

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The driver and devices, or why there are none.
    pub cuda: Result<Probe, String>,
    /// Path and version of NCCL, or why there is none.
    pub nccl: Result<(String, String), String>,
    /// Variables that change how NCCL works, as they are set.
    pub variables: Vec<(String, String)>,
}

/// Looks at what is there; starts nothing and takes no device memory.
pub fn facts() -> Facts {
    let library = nccl_rs::Library::open();
    let mut variables: Vec<_> = std::env::vars()
        .filter(|(name, _)| {
            ["NCCL_", "CUDA_", "EPLB_", "VLLM_NCCL"].iter().any(|prefix| name.starts_with(prefix))
        })
        .collect();
    variables.sort();
    Facts {
        cuda: probe().map_err(|error| error.to_string()),
        nccl: library
            .map(|library| (library.path().to_owned(), library.version().to_string()))
            .map_err(|error| error.to_string()),
        variables,
    }
}

/// What one check of the suite said.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Its name.
    pub name: &'static str,
    /// What it makes sure of.
    pub about: &'static str,
    /// The violation, if any.
    pub result: Result<(), String>,
    /// How long it took.
    pub time: Duration,
}

/// How the suite of communicators runs on devices.
#[derive(Debug, Clone)]
pub struct Suite {
    /// What carries the bytes: NCCL, the copy engines of peers, or Gloo on devices.
    pub carrier: Carrier,
    /// Ranks, each on a device of its own; at least 2.
    pub ranks: usize,
    /// Options of the communicators.
    pub options: Options,
    /// Random waves.
    pub waves: usize,
}

impl Suite {
    /// Runs every check of [`conformance`] on device memory; `progress` hears of each as it ends.
    ///
    /// # Errors
    /// There are fewer devices than ranks.
    pub fn run(&self, mut progress: impl FnMut(&Checked)) -> Result<Vec<Checked>, EngineError> {
        let devices = probe()?.devices.len();
        if self.ranks < 2 || devices < self.ranks {
            return Err(EngineError::Options(format!(
                "the suite wants at least 2 ranks with a device each; {} asked for, {devices} devices seen",
                self.ranks
            )));
        }
        let suite = SuiteOptions { ranks: self.ranks, waves: self.waves, ..SuiteOptions::default() };
        let mut backend = |setup: &Setup| self.ranks(setup);
        let mut all = Vec::new();
        for check in conformance::CHECKS {
            let start = Instant::now();
            let result = check.run(&mut backend, &suite).map_err(|violation| violation.to_string());
            let checked = Checked { name: check.name, about: check.about, result, time: start.elapsed() };
            progress(&checked);
            all.push(checked);
        }
        Ok(all)
    }

    fn ranks(&self, setup: &Setup) -> Result<Vec<Rank>, CommError> {
        let made = || -> Result<Vec<Rank>, EngineError> {
            let group = DeviceGroup::of(&setup.layouts, &setup.slots, setup.staging_bytes)?;
            let deadline = Instant::now() + Duration::from_secs(60);
            let communicators: Vec<Box<dyn Communicator>> = match self.carrier {
                Carrier::Nccl(backend) => all(group.connect(backend, &self.options, deadline)?),
                Carrier::Peer => {
                    all(eplb_comm_peer::connect(&group.memories, &eplb_comm_peer::Options::default())?)
                }
                Carrier::DeviceGloo => all(group.connect_gloo(deadline)?),
                Carrier::Local | Carrier::Gloo | Carrier::Auto => {
                    let refused = "the suite on devices is for nccl, pynccl, peer, and gloo on devices";
                    return Err(EngineError::Options(refused.into()));
                }
            };
            communicators
                .into_iter()
                .zip(&group.memories)
                .map(|(communicator, memory)| Ok(Rank::new(communicator, Inspector::new(memory.clone())?)))
                .collect()
        };
        made().map_err(|error| match error {
            EngineError::Comm(error) => error,
            other => CommError::Foreign {
                rank: eplb_core::RankId(0),
                call: "connect".into(),
                code: -1,
                detail: other.to_string(),
            },
        })
    }
}

fn all(made: Vec<impl Communicator + 'static>) -> Vec<Box<dyn Communicator>> {
    made.into_iter().map(|communicator| Box::new(communicator) as Box<_>).collect()
}
