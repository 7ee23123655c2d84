//! What a plan is made from.

use eplb_core::metrics::check_shapes;
use eplb_core::{CoreError, LayerId, LoadMatrix, Placement, Topology};

use crate::error::PlanError;
use crate::layer::MAX_IDS;
use crate::options::Options;

/// Loads, ranks and, if there is one, the placement in force.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Tokens per logical expert: a window `[T, L, E]` or one matrix `[L, E]`.
    pub loads: &'a LoadMatrix,
    /// Ranks, their slots, speeds, nodes, and which are dead.
    pub topology: &'a Topology,
    /// The placement in force, `[L, P]`; experts may be missing in it.
    pub current: Option<&'a Placement>,
    /// Policy and limits.
    pub options: &'a Options,
}

impl<'a> Request<'a> {
    /// A request without a current placement.
    pub fn new(loads: &'a LoadMatrix, topology: &'a Topology, options: &'a Options) -> Self {
        Self { loads, topology, current: None, options }
    }

    /// The same request, starting from the placement in force.
    #[must_use]
    pub fn with_current(self, current: &'a Placement) -> Self {
        Self { current: Some(current), ..self }
    }

    /// Loads of one layer summed over the window, `[E]`.
    pub(crate) fn layer_loads(&self, layer: usize) -> &'a [f64] {
        let experts = self.loads.experts();
        // Summed loads are in C order.
        let all = self.loads.sum().as_slice().unwrap_or_default();
        &all[layer * experts..(layer + 1) * experts]
    }

    /// What is in each slot of a layer now, `[P]`.
    pub(crate) fn current_row(&self, layer: usize) -> Option<&'a [i32]> {
        // Rows of a placement are in C order.
        self.current?.layer(LayerId::at(layer)).to_slice()
    }

    /// Bytes of one expert of a layer, `None` if not known.
    pub(crate) fn expert_bytes(&self, layer: usize) -> Option<u64> {
        let bytes = &self.options.expert_bytes;
        bytes.get(layer).or(bytes.first().filter(|_| bytes.len() == 1)).copied()
    }

    /// Checks what does not depend on the policy.
    ///
    /// # Errors
    /// Fewer slots than experts, a current placement of another shape, options that mean nothing.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        self.options.check()?;
        let (slots, experts) = (self.topology.slots(), self.loads.experts());
        for (what, found) in [("experts", experts), ("slots", slots)] {
            if found > MAX_IDS {
                return Err(PlanError::TooMany { what, found, most: MAX_IDS });
            }
        }
        let known = self.options.expert_bytes.len();
        if known > 1 && known != self.loads.layers() {
            return Err(PlanError::Core(CoreError::Shape {
                what: "expert_bytes",
                found: vec![known],
                expected: format!("one number, or {} as there are layers", self.loads.layers()),
            }));
        }
        if slots < experts {
            return Err(PlanError::TooFewSlots { slots, experts });
        }
        if let Some(current) = self.current {
            let expected = [self.loads.layers(), experts, slots];
            let found = vec![current.layers(), current.experts(), current.slots()];
            if found != expected {
                return Err(PlanError::Core(CoreError::Shape {
                    what: "current placement [layers, experts, slots]",
                    found,
                    expected: format!("{expected:?}, as loads and topology say"),
                }));
            }
            check_shapes(self.loads.sum().dim(), current, self.topology)?;
        }
        Ok(())
    }
}
