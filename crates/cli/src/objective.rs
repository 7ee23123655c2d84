//! Arguments for what a plan is good for.

use clap::Args;
use eplb_plan::{Aim, CostModel, Dispatch, NodeRule, Options, Plan, PlanError, Prediction};
use serde_json::{Value, json};

use crate::output::{number, optional};

/// What counts beside tokens at even split.
#[derive(Debug, Clone, Args)]
pub(crate) struct ObjectiveArgs {
    /// Price of tokens that cross nodes beyond what whole groups would: 1 = a hundredth of the tokens for a hundredth of
    /// balance
    #[arg(long, value_name = "X", conflicts_with = "strict")]
    node_price: Option<f64>,

    /// Keep expert groups whole on nodes, equally many on each, as DeepSeek's hierarchical rule does
    #[arg(long)]
    strict: bool,

    /// Time of a rank for each of its slots that got tokens (memory-bound decode reads an expert's weights for any token)
    #[arg(long, default_value_t = 0.0, value_name = "A")]
    expert_cost: f64,

    /// Time of a rank for each token
    #[arg(long, default_value_t = 1.0, value_name = "B")]
    token_cost: f64,

    /// What the server does with replicas: even, share (the solved split) or nearest (own rank, own node, all)
    #[arg(long, default_value = "even", value_name = "D", value_parser = dispatch)]
    dispatch: Dispatch,

    /// Put the K hottest experts of each layer on every live rank
    #[arg(long, default_value_t = 0, value_name = "K")]
    replicate_top: usize,
}

/// The option that asks for an aim.
pub(crate) fn flag(aim: Aim) -> &'static str {
    match aim {
        Aim::NodePrice => "--node-price",
        Aim::Strict => "--strict",
        Aim::Cost => "--expert-cost",
        Aim::Dispatch => "--dispatch",
        Aim::ReplicateTop => "--replicate-top",
        Aim::Worth => "--worth-steps",
        _ => aim.name(),
    }
}

/// For clap.
fn dispatch(name: &str) -> Result<Dispatch, String> {
    name.parse().map_err(|error: PlanError| error.to_string())
}

impl ObjectiveArgs {
    /// The same options with this objective.
    pub(crate) fn apply(&self, options: Options) -> Options {
        let nodes = match self.node_price {
            _ if self.strict => NodeRule::Strict,
            None => NodeRule::Free,
            Some(price) => NodeRule::Priced(price),
        };
        let cost = CostModel { per_expert: self.expert_cost, per_token: self.token_cost };
        Options { nodes, cost, dispatch: self.dispatch, replicate_top: self.replicate_top, ..options }
    }

    /// Price of the crossing that a plan has.
    fn paid(&self, predicted: &Prediction) -> f64 {
        self.price_of(predicted.mean_crossing())
    }

    /// Price of tokens that cross nodes, 0..1 of all.
    pub(crate) fn price_of(&self, crossing: f64) -> f64 {
        self.node_price.unwrap_or(0.0) * crossing
    }

    /// What a plan is predicted to do, for `--json`.
    pub(crate) fn report(&self, plan: &Plan) -> Value {
        let one = |predicted: &Prediction| {
            json!({
                "time": number(predicted.total()),
                "balance": number(predicted.balance.mean),
                "crossing": number(predicted.mean_crossing()),
                "price_paid": number(self.paid(predicted)),
            })
        };
        json!({
            "dispatch": self.dispatch.name(),
            "before": plan.predicted_before.as_ref().map(one),
            "after": one(&plan.predicted),
            "strict_bound": optional(plan.strict_bound.as_ref().map(|bound| bound.mean)),
        })
    }

    /// Lines of text on what a plan is predicted to do: name and value.
    pub(crate) fn lines(&self, plan: &Plan, nodes: usize) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        let Prediction { balance, .. } = &plan.predicted;
        let before = |value: fn(&Prediction) -> f64, digits: usize| match &plan.predicted_before {
            None => String::new(),
            Some(before) => format!(" (before {:.digits$})", value(before)),
        };
        lines.push(("predicted time", format!("{:.4e}{}", plan.predicted.total(), before_time(plan))));
        let of_times =
            format!("{:.4}{} with {} dispatch", balance.mean, before(|p| p.balance.mean, 4), self.dispatch);
        lines.push(("  balance of times", of_times));
        if nodes > 1 {
            let crossing = plan.predicted.mean_crossing() * 100.0;
            let before = before(|p| p.mean_crossing() * 100.0, 2);
            lines.push((
                "tokens across nodes",
                format!("{crossing:.2}%{before}, price {:.4}", self.paid(&plan.predicted)),
            ));
        }
        if let Some(bound) = &plan.strict_bound {
            lines.push(("bound of strict", format!("{:.4} (groups whole on nodes)", bound.mean)));
        }
        lines
    }
}

fn before_time(plan: &Plan) -> String {
    plan.predicted_before.as_ref().map_or(String::new(), |before| format!(" (before {:.4e})", before.total()))
}
