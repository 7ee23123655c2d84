//! Pictures of placements and reports of replays: self-contained SVG and HTML, nothing fetched.
#![forbid(unsafe_code)]

mod chart;
pub mod colour;
pub mod placement;
pub mod replay;

pub use placement::PlacementPicture;
pub use replay::ReplayReport;
