//! Ranks as they run in processes, on threads here: sessions, placements after failures, groups of one job.

mod alone;
mod holds;
mod reforms;
mod rolls;
mod sessions;
mod support;
