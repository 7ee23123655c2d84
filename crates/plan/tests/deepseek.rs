//! `deepseek` against the published example and against placements made by an independent script
//! (`tests/goldens/deepseek.py` at the root of the workspace).

use eplb_core::{LoadMatrix, Topology};
use eplb_plan::{Options, PlanError, Planner, Policy, Request};
use ndarray::{Array2, array};
use serde_json::Value;

fn plan(
    loads: &Array2<f64>,
    slots: usize,
    groups: usize,
    nodes: usize,
    gpus: usize,
) -> Result<Array2<i32>, PlanError> {
    let loads = LoadMatrix::from_sum(loads.clone()).unwrap();
    let topology = Topology::uniform(gpus, slots).unwrap().with_nodes(nodes).unwrap();
    let options = Options { policy: Policy::Deepseek, groups, ..Options::default() };
    let placement = Planner::new(1).unwrap().place(&Request::new(&loads, &topology, &options))?;
    Ok(placement.phy2log().to_owned())
}

fn numbers(value: &Value) -> Array2<f64> {
    let rows: Vec<Vec<f64>> = value
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect())
        .collect();
    Array2::from_shape_fn((rows.len(), rows[0].len()), |(i, j)| rows[i][j])
}

#[test]
fn published_example() {
    let loads = array![
        [90.0, 132.0, 40.0, 61.0, 104.0, 165.0, 39.0, 4.0, 73.0, 56.0, 183.0, 86.0],
        [20.0, 107.0, 104.0, 64.0, 19.0, 197.0, 187.0, 157.0, 172.0, 86.0, 16.0, 27.0]
    ];
    let expected = array![
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]
    ];
    assert_eq!(plan(&loads, 16, 4, 2, 8).unwrap(), expected);
}

#[test]
fn goldens() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens/deepseek.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 50);
    for (i, case) in cases.iter().enumerate() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let loads = numbers(&case["loads"]);
        let made = plan(&loads, number("slots"), number("groups"), number("nodes"), number("gpus")).unwrap();
        let shape = format!("case {i}: {:?} {} slots {} groups", loads.dim(), case["slots"], case["groups"]);
        assert_eq!(made.mapv(f64::from), numbers(&case["phy2log"]), "{shape}");
    }
}

#[test]
fn loads_in_any_unit_give_the_same_plan() {
    let loads = Array2::from_shape_fn((2, 12), |(l, e)| ((e * e * 7 + 13 * l + 3) % 101) as f64);
    let made = plan(&loads, 16, 4, 2, 8).unwrap();
    for exponent in [-1000, -300, -20, 1, 30, 300, 1000] {
        assert_eq!(plan(&(&loads * 2f64.powi(exponent)), 16, 4, 2, 8).unwrap(), made, "2^{exponent}");
    }
}

#[test]
fn shapes_that_do_not_divide_are_named() {
    let loads = Array2::ones((1, 12));
    let message = |r: Result<_, PlanError>| r.map(|_: Array2<i32>| ()).unwrap_err().to_string();
    assert!(message(plan(&loads, 18, 1, 1, 8)).contains("slots (18) is not a multiple of ranks (8)"));
    assert!(message(plan(&loads, 16, 5, 1, 8)).contains("experts (12) is not a multiple of groups (5)"));
    assert!(message(plan(&loads, 21, 6, 3, 7)).contains("ranks (7) is not a multiple of nodes (3)"));
    assert!(message(plan(&loads, 8, 1, 1, 8)).contains("8 slots for 12 experts"));
}
