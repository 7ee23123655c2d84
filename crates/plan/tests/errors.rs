//! Bad requests: errors that name the thing and say what to do.

use eplb_core::{LoadMatrix, Placement, RankId, Topology};
use eplb_plan::{Options, PlanError, Planner, Policy, Request};
use ndarray::{Array2, array};

fn message(
    loads: &Array2<f64>,
    topology: &Topology,
    current: Option<&Placement>,
    options: Options,
) -> String {
    let loads = LoadMatrix::from_sum(loads.clone()).unwrap();
    let request = Request { current, ..Request::new(&loads, topology, &options) };
    Planner::new(1).unwrap().plan(&request).unwrap_err().to_string()
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

fn of(policy: Policy) -> Options {
    Options { policy, ..Options::default() }
}

#[test]
fn bad_loads_name_layer_expert_and_value() {
    for (value, shown) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-2.5, "-2.5")] {
        let mut loads = Array2::ones((3, 4));
        loads[(2, 1)] = value;
        let error = PlanError::from(LoadMatrix::from_sum(loads).unwrap_err()).to_string();
        assert_says(&error, &["layer 2", "expert 1", shown, "0 or more"]);
    }
}

#[test]
fn too_few_slots_for_the_experts() {
    let topology = Topology::uniform(2, 6).unwrap();
    for &policy in Policy::ALL {
        let error = message(&Array2::ones((1, 7)), &topology, None, of(policy));
        assert_says(&error, &["6 slots for 7 experts", "give 7 or more"]);
    }
}

#[test]
fn a_current_placement_of_another_shape() {
    let topology = Topology::uniform(2, 6).unwrap();
    for (layers, experts, slots) in [(2, 4, 6), (1, 3, 6), (1, 4, 8)] {
        let current = Placement::round_robin(layers, experts, slots).unwrap();
        for &policy in Policy::ALL {
            let error = message(&Array2::ones((1, 4)), &topology, Some(&current), of(policy));
            assert_says(
                &error,
                &["current placement", "[1, 4, 6]", &format!("[{layers}, {experts}, {slots}]")],
            );
        }
    }
}

#[test]
fn deepseek_says_what_it_cannot_plan_for() {
    let loads = Array2::ones((1, 4));
    let uneven = Topology::new(&[3, 2, 1]).unwrap();
    assert_says(&message(&loads, &uneven, None, of(Policy::Deepseek)), &["as many slots", "another policy"]);
    let dead = Topology::uniform(2, 8).unwrap().with_dead(&[RankId(1)]).unwrap();
    assert_says(&message(&loads, &dead, None, of(Policy::Deepseek)), &["dead ranks", "another policy"]);
    let options = Options { max_replicas: Some(1), ..of(Policy::Deepseek) };
    assert_says(&message(&loads, &Topology::uniform(2, 8).unwrap(), None, options), &["max_replicas"]);
}

#[test]
fn options_that_mean_nothing() {
    let (loads, topology) = (array![[1.0, 2.0]], Topology::uniform(2, 4).unwrap());
    let options = [
        (Options { groups: 0, ..Options::default() }, "groups"),
        (Options { max_replicas: Some(0), ..Options::default() }, "max_replicas"),
        (Options { target: Some(f64::NAN), ..Options::default() }, "target"),
        (Options { target: Some(1.5), ..Options::default() }, "target"),
    ];
    for (options, name) in options {
        assert_says(&message(&loads, &topology, None, options), &["option", name]);
    }
    assert!(matches!(Planner::new(0), Err(PlanError::Option { option: "threads", .. })));
}

#[test]
fn policy_names() {
    for &policy in Policy::ALL {
        assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
    }
    let error = "balance".parse::<Policy>().unwrap_err().to_string();
    assert_says(&error, &["balance", "balanced", "deepseek", "static", "random", "split"]);
}
