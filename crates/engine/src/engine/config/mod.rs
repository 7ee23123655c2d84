//! What a server may choose: one struct, read from TOML and the environment, with defaults for everything.

mod read;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use eplb_plan::{Budget, Dispatch, Options, Policy, Worth};
use serde::Deserialize;

pub use read::{ConfigError, KEYS};

use crate::deadlines::Deadlines;

/// Configuration of an [`Engine`](super::Engine); the same on all ranks. Keys of TOML files are the names of the fields;
/// the environment variable of a key is `EPLB_` and the key in capitals, with `_` for `.` (`EPLB_TRIGGER_INTERVAL_S`). All of them with
/// their defaults: `docs/configuration.md`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// How placements are found: a name of [`Policy`]. Default `incremental`.
    #[serde(deserialize_with = "read::policy")]
    pub policy: Policy,
    /// Balancedness at which a plan is good enough, 0..1. Default none: as good as budgets allow.
    pub target: Option<f64>,
    /// Most replicas of one expert, and columns `C` of `log2phy`. Default: as many as fit, at most one per rank.
    pub max_replicas: Option<usize>,
    /// What the server does with replicas: `even`, `share` or `nearest`. Default `even`.
    #[serde(deserialize_with = "read::dispatch")]
    pub dispatch: Dispatch,
    /// Most that one round moves.
    pub budget: BudgetConfig,
    /// When a round begins by itself.
    pub trigger: TriggerConfig,
    /// Milliseconds from one sample of the loads to the next. Default 500.
    pub sample_ms: u64,
    /// Samples that a plan looks at, the newest; older ones are forgotten. Default 32.
    pub window: usize,
    /// Names of the kinds of passes that are counted apart; [`Pass::tag`](super::Pass::tag) is a position here. Default
    /// `["prefill", "decode"]`.
    pub tags: Vec<String>,
    /// Tags whose tokens are planned for. Default: all.
    pub plan_tags: Vec<String>,
    /// Plans and reports, and moves nothing. Default false.
    pub dry_run: bool,
    /// Threads that plan, on the leading rank. Default 1.
    pub threads: usize,
    /// A plan on disk ([`plan_file`](crate::plan_file)) that the slots hold at the start, for the first layer set. Default none:
    /// slot `p` holds expert `p % E`.
    pub start_plan: Option<PathBuf>,
    /// Loads on disk (what [`Engine::save`](super::Engine::save) writes, or any trace) that the first layer set's window starts
    /// with. Default none.
    pub load_window: Option<PathBuf>,
    /// Staging memory per rank and layer set, bytes. Default: [`eplb_exchange::default_staging_bytes`].
    pub staging_bytes: Option<usize>,
    /// How far draining may take a layer's balancedness below that before and after, 0..1. Default 0.02.
    pub drain_floor: f64,
    /// Steps from the last step begun anywhere to the step proposed for a commit; grows by itself where it proves too small.
    /// Default 8.
    pub margin: u64,
    /// Milliseconds between two looks of the progress thread while nothing moves. Default 20.
    pub poll_ms: u64,
    /// Versions of the maps that are remembered, for counts that come late. Default 64.
    pub remembered_maps: usize,
    /// What the host wants to be the same on all ranks beside what is compared anyway: versions of itself and its model.
    pub versions: String,
    /// Deadlines other than the defaults, in milliseconds, by the names of `docs/deadlines.md`.
    pub deadlines: BTreeMap<String, u64>,
}

/// Most that one round moves, over all layers together; what is left out has no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// Experts in all.
    pub moves: Option<usize>,
    /// Experts to any one rank.
    pub moves_per_rank: Option<usize>,
    /// Bytes in all.
    pub bytes: Option<u64>,
    /// Bytes to any one rank.
    pub bytes_per_rank: Option<u64>,
}

/// When a round begins by itself. Each trigger that is set may begin one; none set: only on demand.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TriggerConfig {
    /// Seconds from the end of one round to the beginning of the next. Default 60.
    pub interval_s: Option<f64>,
    /// A round begins when measured balancedness falls below this, 0..1. Default none.
    pub below: Option<f64>,
    /// A round begins when the loads have drifted this far from those of the last plan: half the sum of the differences of
    /// the experts' parts, mean over layers, 0..1. Default none.
    pub drift: Option<f64>,
    /// Least seconds between rounds, whatever triggers them. Default 1.
    pub rest_s: f64,
    /// Least tokens that must have been counted since the last round. Default 1.
    pub tokens: u64,
    /// Predicted gain against cost: layers move only where the seconds saved exceed those of the links.
    pub worth: Option<WorthConfig>,
}

/// The three numbers of [`Worth`].
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorthConfig {
    /// Steps that a plan is expected to serve.
    pub steps: f64,
    /// Seconds that the experts of one layer take in a step if perfectly balanced.
    pub layer_seconds: f64,
    /// What a rank's link carries, in 10^9 bytes per second.
    pub link_gbps: f64,
}

impl Default for TriggerConfig {
    fn default() -> Self {
        Self { interval_s: Some(60.0), below: None, drift: None, rest_s: 1.0, tokens: 1, worth: None }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            policy: Policy::Incremental,
            target: None,
            max_replicas: None,
            dispatch: Dispatch::Even,
            budget: BudgetConfig::default(),
            trigger: TriggerConfig::default(),
            sample_ms: 500,
            window: 32,
            tags: vec!["prefill".into(), "decode".into()],
            plan_tags: Vec::new(),
            dry_run: false,
            threads: 1,
            start_plan: None,
            load_window: None,
            staging_bytes: None,
            drain_floor: eplb_exchange::plan::DEFAULT_DRAIN_FLOOR,
            margin: 8,
            poll_ms: 20,
            remembered_maps: 64,
            versions: String::new(),
            deadlines: BTreeMap::new(),
        }
    }
}

impl EngineConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key, the value and what it should be.
    pub fn check(&self) -> Result<(), ConfigError> {
        fraction("target", self.target)?;
        fraction("trigger.below", self.trigger.below)?;
        fraction("trigger.drift", self.trigger.drift)?;
        fraction("drain_floor", Some(self.drain_floor))?;
        let seconds =
            [("trigger.interval_s", self.trigger.interval_s), ("trigger.rest_s", Some(self.trigger.rest_s))];
        for (key, value) in seconds {
            let good = |value: f64| (0.0..=1e9).contains(&value);
            require(key, value.unwrap_or(0.0), value.is_none_or(good), "give seconds, 0 to 1e9")?;
        }
        let worth = self.trigger.worth;
        let numbers = worth.map(|w| [w.steps, w.layer_seconds, w.link_gbps]).unwrap_or([1.0; 3]);
        for (key, value) in ["trigger.worth.steps", "trigger.worth.layer_seconds", "trigger.worth.link_gbps"]
            .into_iter()
            .zip(numbers)
        {
            require(key, value, value.is_finite() && value > 0.0, "give a number above 0")?;
        }
        let counts = [
            ("sample_ms", self.sample_ms),
            ("window", self.window as u64),
            ("threads", self.threads as u64),
            ("margin", self.margin),
            ("poll_ms", self.poll_ms),
            ("remembered_maps", self.remembered_maps as u64),
            ("max_replicas", self.max_replicas.map_or(1, |n| n as u64)),
        ];
        for (key, value) in counts {
            require(key, value, (1..=1 << 30).contains(&value), "give a whole number from 1 to 2^30")?;
        }
        require(
            "tags",
            self.tags.len(),
            (1..=64).contains(&self.tags.len()),
            "name 1 to 64 kinds of passes",
        )?;
        let twice = self.tags.iter().enumerate().find(|(at, tag)| self.tags[..*at].contains(tag));
        require("tags", twice.map_or("", |(_, tag)| tag), twice.is_none(), "name every kind once")?;
        for tag in &self.plan_tags {
            let known = "name some of `tags`, or none for all";
            require("plan_tags", tag, self.tags.contains(tag), known)?;
        }
        self.all_deadlines().map(drop)
    }

    /// The deadlines: the defaults, and what [`EngineConfig::deadlines`] says instead.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for a name that is no deadline.
    pub fn all_deadlines(&self) -> Result<Deadlines, ConfigError> {
        let mut all = Deadlines::new();
        for (name, &ms) in &self.deadlines {
            let known = all.set(name, Duration::from_millis(ms)) && ms > 0;
            let key = format!("deadlines.{name:?}");
            require(&key, ms, known, "names are those of docs/deadlines.md, values milliseconds above 0")?;
        }
        Ok(all)
    }

    /// Positions in [`EngineConfig::tags`] of the tags that are planned for.
    pub(super) fn planned_tags(&self) -> Vec<usize> {
        let wanted = |tag: &String| self.plan_tags.is_empty() || self.plan_tags.contains(tag);
        (0..self.tags.len()).filter(|&at| wanted(&self.tags[at])).collect()
    }

    /// What plans are asked for, for experts of the given bytes (`[L]`) and at most `max_replicas` replicas.
    pub(super) fn options(&self, expert_bytes: Vec<u64>, max_replicas: usize) -> Options {
        let BudgetConfig { moves, moves_per_rank, bytes, bytes_per_rank } = self.budget;
        let worth = self.trigger.worth;
        Options {
            policy: self.policy,
            target: self.target,
            budget: Budget { moves, moves_per_rank, bytes, bytes_per_rank },
            expert_bytes,
            worth: worth.map(|w| Worth {
                steps: w.steps,
                layer_seconds: w.layer_seconds,
                link_gbps: w.link_gbps,
            }),
            max_replicas: Some(max_replicas),
            dispatch: self.dispatch,
            ..Options::default()
        }
    }
}

fn fraction(key: &str, value: Option<f64>) -> Result<(), ConfigError> {
    let good = value.is_none_or(|value| (0.0..=1.0).contains(&value));
    require(key, value.unwrap_or(0.0), good, "give a fraction from 0 to 1")
}

fn require(key: &str, value: impl ToString, good: bool, expected: &'static str) -> Result<(), ConfigError> {
    if good {
        return Ok(());
    }
    Err(ConfigError::Value { key: key.into(), value: value.to_string(), expected })
}
