//! Errors of the binding.

use crate::bindings::{
    eplb_gloo_status, eplb_gloo_status_EPLB_GLOO_INVALID, eplb_gloo_status_EPLB_GLOO_IO,
    eplb_gloo_status_EPLB_GLOO_RESOURCE, eplb_gloo_status_EPLB_GLOO_STORE,
};

/// Why the library cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// This program was compiled where Gloo's headers or a C++ compiler were missing, and no library was found either.
    #[error(
        "gloo is not built into this program ({reason}): install libgloo-dev and g++ (Debian, Ubuntu) and build again, or \
         point EPLB_GLOO_SO at a libeplb_gloo.so of the same version"
    )]
    NotBuilt {
        /// What the build missed.
        reason: String,
    },
    /// The library was built, but is at none of the places that are looked at.
    #[error(
        "libeplb_gloo.so is missing (looked at {}): put it beside the program or point EPLB_GLOO_SO at it", looked.join(", ")
    )]
    Missing {
        /// Paths that were tried.
        looked: Vec<String>,
    },
    /// A library is there but cannot be used.
    #[error("{path} cannot be loaded: {detail}; if libgloo.so is what is missing, install libgloo-dev")]
    Broken {
        /// Its path.
        path: String,
        /// What the loader said.
        detail: String,
    },
    /// A library of another version of this program.
    #[error("{path} speaks version {found} of the interface, this program {expected}: build both together")]
    Version {
        /// Its path.
        path: String,
        /// Version found.
        found: u32,
        /// Version wanted.
        expected: u32,
    },
}

/// What kind of failure a call had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// An argument that no call may have.
    Invalid,
    /// A connection was closed, refused or broken, or a wait ran out of time.
    Io,
    /// The store failed.
    Store,
    /// No memory, thread or descriptor.
    Resource,
    /// Gloo found one of its own rules broken.
    Internal,
}

impl Kind {
    pub(crate) fn of(status: eplb_gloo_status) -> Self {
        #[allow(non_upper_case_globals)] // Names as bindgen makes them.
        match status {
            eplb_gloo_status_EPLB_GLOO_INVALID => Kind::Invalid,
            eplb_gloo_status_EPLB_GLOO_IO => Kind::Io,
            eplb_gloo_status_EPLB_GLOO_STORE => Kind::Store,
            eplb_gloo_status_EPLB_GLOO_RESOURCE => Kind::Resource,
            _ => Kind::Internal,
        }
    }
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {detail}")]
pub struct GlooError {
    /// The call.
    pub call: &'static str,
    /// What kind of failure.
    pub kind: Kind,
    /// Gloo's own words.
    pub detail: String,
}
