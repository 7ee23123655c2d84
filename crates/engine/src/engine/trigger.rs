//! When a round begins.

use std::time::Duration;

use ndarray::ArrayView2;

use super::config::TriggerConfig;
use super::report::Reason;

/// What is known when triggers are looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Situation {
    /// Whether a rank has asked for a round.
    pub(super) demanded: bool,
    /// Whether the round before has to be tried again.
    pub(super) retry: bool,
    /// Since the round before, or the start.
    pub(super) since: Duration,
    /// Rounds before that were broken off, one after another.
    pub(super) failures: u32,
    /// Tokens counted since the round before.
    pub(super) tokens: u64,
    /// Balancedness measured since then.
    pub(super) balancedness: f64,
    /// Distance of the loads from those of the last plan; `None` before the first.
    pub(super) drift: Option<f64>,
}

/// Longest rest after failures.
const LONGEST_REST: f64 = 60.0;

/// Why a round begins now, if one does.
pub(super) fn due(config: &TriggerConfig, now: &Situation) -> Option<Reason> {
    if now.demanded {
        return Some(Reason::Demand);
    }
    if now.retry {
        return Some(Reason::Retry);
    }
    let seconds = now.since.as_secs_f64();
    let rest = config.rest_s * f64::from(1u32 << now.failures.min(16));
    if seconds < rest.min(LONGEST_REST.max(config.rest_s)) || now.tokens < config.tokens.max(1) {
        return None;
    }
    if config.below.is_some_and(|below| now.balancedness < below) {
        return Some(Reason::Below);
    }
    if let (Some(limit), Some(drift)) = (config.drift, now.drift)
        && drift > limit
    {
        return Some(Reason::Drift);
    }
    config.interval_s.filter(|&interval| seconds >= interval).map(|_| Reason::Interval)
}

/// How far loads have moved: half the sum over the experts of the differences of their parts of the layer's tokens (the total
/// variation distance), mean over the layers that both know tokens of; 0..1.
pub(super) fn drift(before: ArrayView2<'_, f64>, now: ArrayView2<'_, f64>) -> f64 {
    let (mut sum, mut layers) = (0.0, 0u32);
    for (a, b) in before.rows().into_iter().zip(now.rows()) {
        let (total_a, total_b) = (a.sum(), b.sum());
        if total_a > 0.0 && total_b > 0.0 {
            let apart = a.iter().zip(b).map(|(a, b)| (a / total_a - b / total_b).abs()).sum::<f64>();
            sum += apart / 2.0;
            layers += 1;
        }
    }
    if layers == 0 { 0.0 } else { sum / f64::from(layers) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    const CALM: Situation = Situation {
        demanded: false,
        retry: false,
        since: Duration::from_secs(10),
        failures: 0,
        tokens: 100,
        balancedness: 0.8,
        drift: Some(0.3),
    };

    fn config() -> TriggerConfig {
        TriggerConfig { interval_s: None, rest_s: 2.0, ..TriggerConfig::default() }
    }

    #[test]
    fn each_trigger_fires_for_its_own_reason() {
        assert_eq!(due(&config(), &CALM), None);
        let fires = |config: TriggerConfig, now: Situation| due(&config, &now).map(Reason::name);
        assert_eq!(
            fires(config(), Situation { demanded: true, since: Duration::ZERO, ..CALM }),
            Some("demand")
        );
        assert_eq!(fires(config(), Situation { retry: true, tokens: 0, ..CALM }), Some("retry"));
        let interval = TriggerConfig { interval_s: Some(10.0), ..config() };
        assert_eq!(fires(interval, CALM), Some("interval"));
        assert_eq!(fires(TriggerConfig { interval_s: Some(10.1), ..config() }, CALM), None);
        assert_eq!(fires(TriggerConfig { below: Some(0.81), ..config() }, CALM), Some("below"));
        assert_eq!(fires(TriggerConfig { below: Some(0.8), ..config() }, CALM), None);
        assert_eq!(fires(TriggerConfig { drift: Some(0.2), ..config() }, CALM), Some("drift"));
        assert_eq!(
            fires(TriggerConfig { drift: Some(0.2), ..config() }, Situation { drift: None, ..CALM }),
            None
        );
    }

    #[test]
    fn nothing_fires_while_it_rests_or_without_tokens() {
        let eager = TriggerConfig { interval_s: Some(0.0), below: Some(1.0), drift: Some(0.0), ..config() };
        assert!(due(&eager, &CALM).is_some());
        assert_eq!(due(&eager, &Situation { since: Duration::from_millis(1999), ..CALM }), None);
        assert_eq!(due(&eager, &Situation { tokens: 0, ..CALM }), None);
        // After three failures it rests eight times as long, and never longer than a minute.
        assert_eq!(due(&eager, &Situation { failures: 3, ..CALM }), None);
        let later = Situation { failures: 3, since: Duration::from_secs(16), ..CALM };
        assert!(due(&eager, &later).is_some());
        assert!(due(&eager, &Situation { failures: 99, since: Duration::from_secs(60), ..CALM }).is_some());
    }

    #[test]
    fn drift_is_a_distance_of_parts() {
        let a = array![[1.0, 3.0], [0.0, 0.0]];
        assert_eq!(drift(a.view(), (&a * 7.0).view()), 0.0);
        assert_eq!(drift(a.view(), array![[3.0, 1.0], [5.0, 0.0]].view()), 0.5);
        assert_eq!(drift(a.view(), array![[0.0, 0.0], [1.0, 1.0]].view()), 0.0);
    }
}
