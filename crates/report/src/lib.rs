//! Pictures of placements, as self-contained SVG: no scripts, no fonts, nothing fetched.
#![forbid(unsafe_code)]

pub mod colour;
pub mod placement;

pub use placement::PlacementPicture;
