//! The options of a plan, from the fields of a request.

use eplb_plan::{Budget, CostModel, NodeRule, Options, Policy, Window, Worth};

use crate::call::{self, Failure};
use crate::request::{PlanRequest, plan_failure};

/// A limit, -1 = none.
fn limit<T: TryFrom<i64>>(value: i64, name: &str) -> Result<Option<T>, Failure> {
    if value == -1 {
        return Ok(None);
    }
    let limit = T::try_from(value);
    limit.map(Some).map_err(|_| Failure::argument(format!("{name} is {value}; give a limit, or -1 for none")))
}

/// A number, NaN = the default.
fn number(value: f64, default: f64) -> f64 {
    if value.is_nan() { default } else { value }
}

impl PlanRequest {
    /// # Safety
    /// As [`PlanRequest::take`].
    pub(crate) unsafe fn options(&self, policy: Policy) -> Result<Options, Failure> {
        let default = Options::default();
        let expert_bytes = if self.expert_bytes_of_layer.is_null() {
            Vec::from_iter((self.expert_bytes > 0).then_some(self.expert_bytes))
        } else {
            // SAFETY: as the caller promises.
            unsafe { call::array(self.expert_bytes_of_layer, self.layers, "expert_bytes_of_layer") }?.to_vec()
        };
        let dispatch = if self.dispatch.is_null() {
            default.dispatch
        } else {
            // SAFETY: as the caller promises.
            unsafe { call::text(self.dispatch, "dispatch") }?.parse().map_err(plan_failure)?
        };
        Ok(Options {
            policy,
            groups: self.groups,
            target: (!self.target.is_nan()).then_some(self.target),
            budget: Budget {
                moves: limit(self.max_moves, "max_moves")?,
                moves_per_rank: limit(self.max_moves_per_rank, "max_moves_per_rank")?,
                bytes: limit(self.max_bytes, "max_bytes")?,
                bytes_per_rank: limit(self.max_bytes_per_rank, "max_bytes_per_rank")?,
            },
            expert_bytes,
            worth: self.worth()?,
            move_price: number(self.move_price, default.move_price),
            window: Window {
                half_life: number(self.half_life, default.window.half_life),
                shrinkage: number(self.shrinkage, default.window.shrinkage),
                scenarios: if self.scenarios == 0 { default.window.scenarios } else { self.scenarios },
                drift: self.drift,
            },
            seed: self.seed,
            max_replicas: (self.max_replicas > 0).then_some(self.max_replicas),
            nodes: self.node_rule()?,
            cost: CostModel { per_expert: self.expert_cost, per_token: self.token_cost },
            dispatch,
            replicate_top: self.replicate_top,
        })
    }

    /// All three numbers, or none.
    fn worth(&self) -> Result<Option<Worth>, Failure> {
        let (steps, layer_seconds, link_gbps) =
            (self.worth_steps, self.worth_layer_seconds, self.worth_link_gbps);
        match [steps, layer_seconds, link_gbps].iter().filter(|number| number.is_nan()).count() {
            3 => Ok(None),
            0 => Ok(Some(Worth { steps, layer_seconds, link_gbps })),
            _ => Err(Failure::argument(
                "worth_steps, worth_layer_seconds and worth_link_gbps go together: give all three, or none (NaN)",
            )),
        }
    }

    fn node_rule(&self) -> Result<NodeRule, Failure> {
        match (self.strict_nodes != 0, self.node_price.is_nan()) {
            (true, true) => Ok(NodeRule::Strict),
            (true, false) => {
                Err(Failure::argument("strict_nodes and node_price exclude each other: give one of them"))
            }
            (false, true) => Ok(NodeRule::Free),
            (false, false) => Ok(NodeRule::Priced(self.node_price)),
        }
    }
}
