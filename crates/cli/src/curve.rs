//! `eplb plan --curve`: balance against moves, for people and programs.

use eplb_plan::CurvePoint;
use serde_json::{Value, json};

use crate::output::number;

/// Steps of balancedness from row to row of the text.
const STEP: f64 = 0.01;

/// Every stop.
pub(crate) fn report(curve: &[CurvePoint]) -> Value {
    let point = |point: &CurvePoint| {
        json!({
            "balancedness": number(point.balancedness),
            "moves": point.moves,
            "moves_fraction": number(point.moved_fraction),
            "bytes": point.bytes,
        })
    };
    Value::Array(curve.iter().map(point).collect())
}

/// The start, the first stop beyond every hundredth of balancedness, and the end.
pub(crate) fn text(curve: &[CurvePoint]) -> String {
    let mut text = String::from("  balancedness     moves   of the slots   bytes\n");
    let mut level = f64::NEG_INFINITY;
    for (at, point) in curve.iter().enumerate() {
        if point.balancedness < level && at + 1 < curve.len() {
            continue;
        }
        level = (point.balancedness / STEP + 1e-9).floor() * STEP + STEP;
        let bytes = point.bytes.map_or("-".into(), |bytes| bytes.to_string());
        text.push_str(&format!(
            "  {:>12.4} {:>9} {:>13.2}%   {bytes}\n",
            point.balancedness,
            point.moves,
            point.moved_fraction * 100.0
        ));
    }
    text
}
