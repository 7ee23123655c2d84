//! Options that only some of the compared policies plan for.

use eplb_plan::{Aim, Policy};
use eplb_sim::Schedule;

use crate::objective::flag;
use crate::output::Failure;

/// A policy, and what was asked for that it is planned without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Without {
    policy: Policy,
    aims: Vec<Aim>,
}

impl Without {
    /// Options of the command line.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.aims.iter().map(|&aim| flag(aim)).collect()
    }
}

/// Takes out of each schedule's options what its policy does not plan for.
///
/// # Errors
/// Something is asked for that none of the policies plans for.
pub(super) fn apart(schedules: Vec<Schedule>) -> Result<(Vec<Schedule>, Vec<Without>), Failure> {
    let none_plans_for = |aim: &&Aim| {
        let asked = schedules.iter().any(|schedule| aim.is_asked(&schedule.options));
        asked && !schedules.iter().any(|schedule| schedule.options.policy.plans_for(**aim))
    };
    if let Some(&aim) = Aim::ALL.iter().find(none_plans_for) {
        let names: Vec<_> = schedules.iter().map(|schedule| schedule.options.policy.name()).collect();
        let able = Policy::ALL.iter().filter(|policy| policy.plans_for(aim)).map(|policy| policy.name());
        return Err(Failure::input(format!(
            "{} changes nothing here: none of the policies ({}) plans for it; add {} to --policy, or leave it out",
            flag(aim),
            names.join(", "),
            able.collect::<Vec<_>>().join(" or "),
        )));
    }
    let apart = schedules.into_iter().map(|schedule| {
        let (options, aims) = schedule.options.for_policy();
        let without = Without { policy: options.policy, aims };
        (Schedule { options, ..schedule }, without)
    });
    Ok(apart.unzip())
}

/// A line for each policy that is planned without something.
pub(super) fn text(without: &[Without]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for of_policy in without.iter().filter(|without| !without.aims.is_empty()) {
        let names = of_policy.names().join(", ");
        let line = format!("{} does not plan for {names}: its plans are made without\n", of_policy.policy);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}
