//! Typed ids. Every id is a position counted from zero; the types keep a rank from being used as a slot.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $word:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// The id at a position. Positions beyond `u32::MAX` do not occur: every constructor of this
            /// crate that takes sizes refuses them first.
            #[inline]
            pub const fn at(index: usize) -> Self {
                Self(index as u32)
            }

            /// The position, for indexing.
            #[inline]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}"), self.0)
            }
        }
    };
}

id!(
    /// A Mixture-of-Experts layer of a layer set, `0..L`.
    LayerId,
    "layer"
);
id!(
    /// A logical expert of one layer, `0..E`.
    ExpertId,
    "expert"
);
id!(
    /// A rank of the expert-parallel group: one process with one GPU, or none.
    RankId,
    "rank"
);
id!(
    /// A node: ranks joined by NVLink or shared memory.
    NodeId,
    "node"
);
id!(
    /// A physical expert of one layer, `0..P`: a place for one expert's weights.
    SlotId,
    "slot"
);
