//! What is wrong with the input of a kernel.

/// An input that no kernel may be started with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// An array is too short for the shape it is said to have.
    #[error("{what} has {found} elements, but {need} are needed: {why}")]
    Short {
        /// The array.
        what: &'static str,
        /// Its elements.
        found: usize,
        /// Elements that the shape needs.
        need: usize,
        /// The shape.
        why: String,
    },
    /// A number is outside what a kernel can work with.
    #[error("{what} is {value}; it must be {allowed}")]
    Range {
        /// The number.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// An entry of a list reaches outside the memory it names.
    #[error("entry {entry} of the list reaches byte {end} of {what}, which has {bytes}")]
    Outside {
        /// Number of the entry.
        entry: usize,
        /// The memory.
        what: &'static str,
        /// First byte after what the entry touches.
        end: u64,
        /// Bytes of the memory.
        bytes: usize,
    },
}

/// Checks that an array has at least `need` elements.
pub(super) fn at_least(
    what: &'static str,
    found: usize,
    need: usize,
    why: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    if found >= need { Ok(()) } else { Err(KernelError::Short { what, found, need, why: why() }) }
}
