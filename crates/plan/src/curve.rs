//! Balance against moves.

/// A stop on the way from the placement in force to the best that can be reached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CurvePoint {
    /// Moves from the placement in force, over all layers.
    pub moves: usize,
    /// Moves as a part of the slots of all layers, those of dead ranks included, 0..1.
    pub moved_fraction: f64,
    /// Bytes that the moves take; `None` if [`Options::expert_bytes`](crate::Options::expert_bytes) are not known.
    pub bytes: Option<u64>,
    /// Balancedness at even split on the loads planned for, mean over the layers that are not idle, 0..1.
    pub balancedness: f64,
}
