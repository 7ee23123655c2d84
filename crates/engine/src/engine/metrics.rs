//! Metrics as Prometheus reads them.

use std::fmt::{Display, Write};

use super::state::State;
use super::{Engine, SetId};

/// Lines of one exposition, metric by metric.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP eplb_{name} {help}\n# TYPE eplb_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let _ = write!(self.0, "eplb_{name}{{");
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at > 0 { "," } else { "" });
        }
        let _ = writeln!(self.0, "}} {value}");
    }

    fn one(&mut self, (name, kind, help): (&str, &str, &str), rank: u32, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, &[("rank", &rank)], value);
    }
}

impl Engine {
    /// All metrics of this rank as text in the format of Prometheus; the host serves it. `per_layer` adds the balancedness of each
    /// layer. Balancedness is measured by the leading rank; the numbers of rounds are known to all.
    pub fn metrics(&self, per_layer: bool) -> String {
        let (shared, numbers) = (&self.shared, self.shared.meters.read());
        let rank = shared.rank.0;
        let mut text = Text::default();
        let state = shared.state();
        text.head("state", "gauge", "1 for the state that the engine is in.");
        for name in State::NAMES {
            text.line("state", &[("rank", &rank), ("state", &name)], u8::from(state.name() == name));
        }
        text.head("state_seconds_total", "counter", "Time spent in states that were left.");
        for (name, time) in &numbers.spent {
            text.line("state_seconds_total", &[("rank", &rank), ("state", name)], time.as_secs_f64());
        }
        text.head("rounds_total", "counter", "Rounds by how they ended.");
        for (name, count) in &numbers.rounds {
            text.line("rounds_total", &[("rank", &rank), ("outcome", name)], count);
        }
        text.head("round_reasons_total", "counter", "Rounds by what began them.");
        for (name, count) in &numbers.reasons {
            text.line("round_reasons_total", &[("rank", &rank), ("reason", name)], count);
        }
        text.head("errors_total", "counter", "Failures and broken-off rounds by cause.");
        for (cause, count) in &numbers.errors {
            text.line("errors_total", &[("rank", &rank), ("cause", cause)], count);
        }
        text.one(
            ("moves_total", "counter", "Experts that crossed links, over all ranks."),
            rank,
            numbers.moves,
        );
        text.one(
            ("local_copies_total", "counter", "Experts copied inside ranks."),
            rank,
            numbers.local_copies,
        );
        text.one(
            ("link_bytes_total", "counter", "Bytes over links, over all ranks."),
            rank,
            numbers.link_bytes,
        );
        text.one(
            (
                "round_link_gbps",
                "gauge",
                "10^9 bytes per second over links, of all ranks together, while the last round that moved took its time.",
            ),
            rank,
            numbers.gbps,
        );
        text.one(("waves_total", "counter", "Waves committed."), rank, numbers.waves);
        let planned = numbers.plan_time.as_secs_f64();
        text.one(("plan_seconds_total", "counter", "Time that the leading rank planned."), rank, planned);
        text.one(("stalls_total", "counter", "Steps that did more than pass by."), rank, numbers.stalls);
        let stalled = numbers.stall_time.as_secs_f64();
        text.one(
            ("stall_seconds_total", "counter", "Time that these steps took in the engine."),
            rank,
            stalled,
        );
        let longest = numbers.longest_stall.as_secs_f64();
        text.one(("stall_longest_seconds", "gauge", "The longest of them."), rank, longest);
        let held = numbers.held.as_secs_f64();
        text.one(("commit_hold_seconds_total", "counter", "Waits of steps for a decision."), rank, held);
        let launched = numbers.launches.as_secs_f64();
        text.one(
            ("launch_seconds_total", "counter", "Time of steps in launching waves, where steps do that."),
            rank,
            launched,
        );
        let longest = numbers.longest_launch.as_secs_f64();
        text.one(("launch_longest_seconds", "gauge", "The longest of it in one step."), rank, longest);
        text.head("stall_seconds", "summary", "Time of the last of them.");
        let mut recent = numbers.recent;
        recent.sort_unstable();
        for quantile in [0.5, 0.99] {
            if let Some(nanos) = quantile_of(&recent, quantile) {
                text.line("stall_seconds", &[("rank", &rank), ("quantile", &quantile)], nanos as f64 / 1e9);
            }
        }
        self.set_metrics(&mut text, per_layer);
        text.0
    }

    fn set_metrics(&self, text: &mut Text, per_layer: bool) {
        let (shared, rank) = (&self.shared, self.shared.rank.0);
        let measured = shared.meters.read().measured;
        text.head("tokens_total", "counter", "Choices counted on this rank, by kind of pass.");
        for set in &shared.sets {
            let (tokens, _) = set.counters.read();
            for (tag, counts) in shared.config.tags.iter().zip(tokens.outer_iter()) {
                text.line("tokens_total", &[("rank", &rank), ("set", &set.name), ("tag", tag)], counts.sum());
            }
        }
        text.head("lost_choices_total", "counter", "Choices that could not be counted.");
        for set in &shared.sets {
            let faults = set.counters.faults();
            for (why, count) in [("out_of_range", faults.out_of_range), ("missing", faults.missing)] {
                text.line("lost_choices_total", &[("rank", &rank), ("set", &set.name), ("why", &why)], count);
            }
        }
        text.head(
            "counts_dropped_total",
            "counter",
            "Passes whose counts found no room on their way from the device.",
        );
        for set in &shared.sets {
            let dropped = set.device_counts.as_ref().map_or(0, |counts| counts.dropped());
            text.line("counts_dropped_total", &[("rank", &rank), ("set", &set.name)], dropped);
        }
        text.head("maps_version", "gauge", "Version of the maps in force.");
        for set in &shared.sets {
            text.line("maps_version", &[("rank", &rank), ("set", &set.name)], set.history.now().version);
        }
        text.head("memory_bytes", "gauge", "Slots and staging of this rank.");
        for set in &shared.sets {
            text.line("memory_bytes", &[("rank", &rank), ("set", &set.name)], set.memory_bytes());
        }
        text.head(
            "balancedness",
            "gauge",
            "Mean over ranks of rank load, over the largest; mean over layers.",
        );
        for (at, set) in shared.sets.iter().enumerate() {
            let mut line = |what: &str, value: f64| {
                text.line("balancedness", &[("rank", &rank), ("set", &set.name), ("what", &what)], value);
            };
            if let Some(&value) = measured.get(&at) {
                line("measured", value);
            }
            if let Some(report) = self.last_report(SetId(at)) {
                line("before", report.before);
                line("predicted", report.predicted);
                line("achieved", report.reached);
                line("bound", report.bound);
            }
        }
        if !per_layer {
            return;
        }
        text.head("layer_balancedness", "gauge", "Balancedness of each layer after the last round.");
        for (at, set) in shared.sets.iter().enumerate() {
            let Some(report) = self.last_report(SetId(at)) else { continue };
            for (layer, value) in report.per_layer.iter().enumerate() {
                if let Some(value) = value {
                    let labels: [(&str, &dyn Display); 3] =
                        [("rank", &rank), ("set", &set.name), ("layer", &layer)];
                    text.line("layer_balancedness", &labels, value);
                }
            }
        }
    }
}

/// A quantile of ascending values: the smallest that at least that part of them does not exceed.
fn quantile_of(ascending: &[u64], quantile: f64) -> Option<u64> {
    let at = (ascending.len() as f64 * quantile).ceil() as usize;
    ascending.get(at.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(
            [0.5, 0.99, 1.0, 0.0].map(|q| quantile_of(&values, q)),
            [Some(50), Some(99), Some(100), Some(1)]
        );
        assert_eq!(quantile_of(&[], 0.5), None);
    }

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.line("x", &[("a", &"say \"hi\"\\\n"), ("b", &2)], 0.5);
        assert_eq!(text.0, "eplb_x{a=\"say \\\"hi\\\"\\\\\\n\",b=\"2\"} 0.5\n");
    }
}
