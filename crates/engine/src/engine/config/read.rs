//! Configuration from a TOML text and the environment.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use eplb_plan::{Dispatch, Policy};
use serde::de::{Deserialize, Deserializer, Error as _};
use toml::{Table, Value};

use super::EngineConfig;

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A text that is no TOML, or has keys or types that do not exist.
    #[error("{origin}: {detail}")]
    Text {
        /// The file, or "the configuration".
        origin: String,
        /// Line, key and what was expected, as the parser says it.
        detail: String,
    },
    /// A value that means nothing.
    #[error("{key} is {value:?}: {expected}")]
    Value {
        /// The key, or the environment variable.
        key: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A file that cannot be read.
    #[error("{file}: {detail}; give a TOML file that this process may read")]
    File {
        /// The file.
        file: String,
        /// The system's answer.
        detail: String,
    },
}

/// What the values of a key look like in the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text, as it stands.
    Text,
    /// A whole number.
    Whole,
    /// A number.
    Number,
    /// `true` or `false`, `1` or `0`.
    Flag,
    /// Texts, divided by commas.
    List,
}

/// Every key that the environment may override, but for `deadlines`: their variables are `EPLB_DEADLINES_` and the name of the
/// deadline in capitals, with `_` for `.`.
pub const KEYS: &[(&str, Kind)] = &[
    ("policy", Kind::Text),
    ("target", Kind::Number),
    ("max_replicas", Kind::Whole),
    ("dispatch", Kind::Text),
    ("budget.moves", Kind::Whole),
    ("budget.moves_per_rank", Kind::Whole),
    ("budget.bytes", Kind::Whole),
    ("budget.bytes_per_rank", Kind::Whole),
    ("trigger.interval_s", Kind::Number),
    ("trigger.below", Kind::Number),
    ("trigger.drift", Kind::Number),
    ("trigger.rest_s", Kind::Number),
    ("trigger.tokens", Kind::Whole),
    ("trigger.worth.steps", Kind::Number),
    ("trigger.worth.layer_seconds", Kind::Number),
    ("trigger.worth.link_gbps", Kind::Number),
    ("sample_ms", Kind::Whole),
    ("window", Kind::Whole),
    ("tags", Kind::List),
    ("plan_tags", Kind::List),
    ("dry_run", Kind::Flag),
    ("threads", Kind::Whole),
    ("start_plan", Kind::Text),
    ("load_window", Kind::Text),
    ("staging_bytes", Kind::Whole),
    ("drain_floor", Kind::Number),
    ("margin", Kind::Whole),
    ("poll_ms", Kind::Whole),
    ("remembered_maps", Kind::Whole),
    ("versions", Kind::Text),
];

/// The environment variable of a key.
pub(super) fn variable_of(key: &str) -> String {
    format!("EPLB_{}", key.replace('.', "_").to_uppercase())
}

impl EngineConfig {
    /// Reads a TOML text (empty: the defaults), then what the environment says instead. A variable that is empty is not set.
    ///
    /// # Errors
    /// [`ConfigError`]; messages name the key or variable, and its value.
    pub fn from_toml(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        Self::read("the configuration", text, &variable)
    }

    /// Reads a TOML file, then what the environment of the process says instead.
    ///
    /// # Errors
    /// As [`EngineConfig::from_toml`]; a file that cannot be read.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::File { file: file.clone(), detail: error.to_string() })?;
        Self::read(&file, &text, &|name| std::env::var(name).ok())
    }

    fn read(
        origin: &str,
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let wrong = |error: &dyn fmt::Display| ConfigError::Text {
            origin: origin.into(),
            detail: error.to_string().trim_end().to_owned(),
        };
        // Read once as it stands, so that an error shows its line.
        toml::from_str::<Self>(text).map_err(|error| wrong(&error))?;
        let mut table: Table = toml::from_str(text).map_err(|error| wrong(&error))?;
        let set = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        for &(key, kind) in KEYS {
            let name = variable_of(key);
            if let Some(value) = set(&name) {
                put(&mut table, key, parse(&name, &value, kind)?);
            }
        }
        let names = crate::deadlines::Deadlines::new().rows().into_iter().map(|(name, _)| name);
        for deadline in names {
            let name = variable_of(&format!("deadlines.{deadline}"));
            if let Some(value) = set(&name) {
                let value = parse(&name, &value, Kind::Whole)?;
                if let Value::Table(deadlines) =
                    table.entry("deadlines").or_insert_with(|| Value::Table(Table::new()))
                {
                    deadlines.insert(deadline.to_owned(), value);
                }
            }
        }
        let config: Self = table.try_into().map_err(|error| ConfigError::Text {
            origin: "the environment".into(),
            detail: format!("{error}", error = error).trim_end().to_owned(),
        })?;
        config.check()?;
        Ok(config)
    }
}

/// Puts a value at a dotted key.
fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((head, rest)) => {
            let inner = table.entry(head).or_insert_with(|| Value::Table(Table::new()));
            // The text was read as a configuration before: where a key has parts, there is a table.
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

fn parse(name: &str, value: &str, kind: Kind) -> Result<Value, ConfigError> {
    let wrong = |expected| ConfigError::Value { key: name.into(), value: value.into(), expected };
    Ok(match kind {
        Kind::Text => Value::String(value.into()),
        Kind::Whole => Value::Integer(
            value
                .parse()
                .ok()
                .filter(|n: &i64| *n >= 0)
                .ok_or_else(|| wrong("give a whole number, 0 or more"))?,
        ),
        Kind::Number => Value::Float(value.parse().map_err(|_| wrong("give a number"))?),
        Kind::Flag => Value::Boolean(match value {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => return Err(wrong("give true or false")),
        }),
        Kind::List => Value::Array(value.split(',').map(|part| Value::String(part.trim().into())).collect()),
    })
}

pub(super) fn policy<'de, D: Deserializer<'de>>(from: D) -> Result<Policy, D::Error> {
    let name = String::deserialize(from)?;
    Policy::from_str(&name).map_err(D::Error::custom)
}

pub(super) fn dispatch<'de, D: Deserializer<'de>>(from: D) -> Result<Dispatch, D::Error> {
    let name = String::deserialize(from)?;
    Dispatch::from_str(&name).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn an_empty_text_is_the_defaults() {
        assert_eq!(EngineConfig::from_toml("", nothing), Ok(EngineConfig::default()));
    }

    #[test]
    fn the_environment_overrides_the_text() {
        let text = "policy = \"balanced\"\nmargin = 3\n[trigger]\nbelow = 0.9\n[deadlines]\n\"exchange.answer\" = 70\n";
        let plain = EngineConfig::from_toml(text, nothing).unwrap();
        assert_eq!((plain.policy, plain.margin, plain.trigger.below), (Policy::Balanced, 3, Some(0.9)));
        let env = |name: &str| match name {
            "EPLB_MARGIN" => Some("12".to_owned()),
            "EPLB_TRIGGER_INTERVAL_S" => Some("0.5".to_owned()),
            "EPLB_TAGS" => Some("a, b,c".to_owned()),
            "EPLB_DRY_RUN" => Some("1".to_owned()),
            "EPLB_DEADLINES_PLAN" => Some("900".to_owned()),
            "EPLB_POLICY" => Some("  ".to_owned()),
            _ => None,
        };
        let config = EngineConfig::from_toml(text, env).unwrap();
        assert_eq!((config.policy, config.margin, config.dry_run), (Policy::Balanced, 12, true));
        assert_eq!((config.trigger.interval_s, config.trigger.below), (Some(0.5), Some(0.9)));
        assert_eq!(config.tags, ["a", "b", "c"]);
        let deadlines = config.all_deadlines().unwrap();
        assert_eq!(deadlines.plan.as_millis(), 900);
        assert_eq!(deadlines.exchange.answer.as_millis(), 70);
    }

    #[test]
    fn every_key_is_read_from_the_environment() {
        for &(key, kind) in KEYS {
            let value = match (key, kind) {
                ("policy", _) => "deepseek",
                ("dispatch", _) => "share",
                ("plan_tags", _) => "decode",
                (_, Kind::Text) => "x",
                (_, Kind::Whole) => "77",
                (_, Kind::Number) => "0.25",
                (_, Kind::Flag) => "true",
                (_, Kind::List) => "decode,other",
            };
            let env = |name: &str| {
                let also = name.starts_with("EPLB_TRIGGER_WORTH_") && key.starts_with("trigger.worth.");
                if name == variable_of(key) { Some(value.to_owned()) } else { also.then(|| "2".to_owned()) }
            };
            let config = EngineConfig::from_toml("", env).unwrap();
            assert_ne!(config, EngineConfig::default(), "{key}");
        }
    }

    /// Keys, variables and defaults (empty: none) of the table for people.
    fn table(text: &str) -> Vec<(String, String, String)> {
        let plain = |cell: &str| cell.trim().strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
        let row = |line: &str| {
            let cells: Vec<&str> = line.split('|').collect();
            let [_, key, variable, default, _, _] = cells[..] else { return None };
            Some((plain(key)?, plain(variable)?, plain(default).unwrap_or_default()))
        };
        text.lines().filter_map(row).collect()
    }

    #[test]
    fn the_table_in_the_docs_says_keys_variables_and_defaults() {
        let text = include_str!("../../../../../docs/configuration.md");
        let rows = table(text);
        let named: Vec<_> = rows.iter().map(|(key, variable, _)| (key.as_str(), variable.clone())).collect();
        let known: Vec<_> = KEYS.iter().map(|&(key, _)| (key, variable_of(key))).collect();
        assert_eq!(named, known);
        let with = |variable: &str, value: &str| {
            EngineConfig::from_toml("", |name| (name == variable).then(|| value.to_owned()))
        };
        for (key, variable, default) in &rows {
            assert_eq!(with(variable, default), Ok(EngineConfig::default()), "{key}");
        }
        // The comparison sees a default that is another, and a row that is missing.
        let changed = table(&text.replace("| `500` |", "| `501` |"));
        assert!(
            changed.iter().any(|(_, variable, value)| with(variable, value) != Ok(EngineConfig::default()))
        );
        assert_eq!(table(&text.replace("| `margin` |", "| margin |")).len(), KEYS.len() - 1);
    }

    #[test]
    fn every_field_has_a_key() {
        // The parser itself lists the fields.
        for (text, prefix) in
            [("zz = 1", ""), ("[budget]\nzz = 1", "budget."), ("[trigger]\nzz = 1", "trigger.")]
        {
            let error = EngineConfig::from_toml(text, nothing).unwrap_err().to_string();
            let (_, listed) = error.split_once("expected one of").unwrap();
            let fields: Vec<&str> = listed.split('`').skip(1).step_by(2).collect();
            assert!(fields.len() > 3, "{error}");
            for field in fields {
                let whole = format!("{prefix}{field}");
                let known = |&(key, _): &(&str, Kind)| key == whole || key.starts_with(&format!("{whole}."));
                assert!(whole == "deadlines" || KEYS.iter().any(known), "{whole}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value() {
        let refused = |text: &str, words: &[&str]| {
            let error = EngineConfig::from_toml(text, nothing).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{text}: {error}");
            }
        };
        refused("target = 1.5", &["target", "1.5"]);
        refused("polcy = \"x\"", &["polcy"]);
        refused("policy = \"greedy\"", &["policy", "greedy"]);
        refused("margin = 0", &["margin", "\"0\""]);
        refused("sample_ms = \"often\"", &["sample_ms", "often"]);
        refused("plan_tags = [\"train\"]", &["plan_tags", "train"]);
        refused("tags = [\"a\", \"a\"]", &["tags", "\"a\""]);
        refused("deadlines = { tea = 5 }", &["deadlines", "tea"]);
        refused(
            "[trigger]\nworth = { steps = 0, layer_seconds = 1, link_gbps = 1 }",
            &["trigger.worth.steps"],
        );
        let env = |name: &str| (name == "EPLB_WINDOW").then(|| "many".to_owned());
        let error = EngineConfig::from_toml("", env).unwrap_err().to_string();
        assert!(error.contains("EPLB_WINDOW") && error.contains("many"), "{error}");
    }
}
