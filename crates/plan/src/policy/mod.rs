//! The policies: each finds `phy2log [L, P]` for a request.
//!
//! What every policy keeps: slots of dead ranks are -1; every expert has a slot while live slots suffice; no expert
//! has more replicas than `max_replicas`; but for `deepseek`, no rank holds two copies of one expert. `split`, and
//! `incremental` in layers where it makes no change, keep what is in place on live ranks, second copies included.

mod balanced;
mod deepseek;
mod forecast;
pub(crate) mod incremental;
mod priced;
mod random;
mod split;
mod static_;

pub(crate) use self::priced::strict_bound;

use ndarray::Array2;

use crate::error::PlanError;
use crate::options::Policy;
use crate::request::Request;
use crate::split::SplitScratch;
use crate::workers::Workers;

/// Memory that a worker thread reuses from layer to layer and from plan to plan.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    balanced: balanced::Scratch,
    deepseek: deepseek::Scratch,
    forecast: forecast::Scratch,
    incremental: incremental::Scratch,
    priced: priced::Scratch,
    random: random::Scratch,
    pub(crate) split: SplitScratch,
    static_: static_::Scratch,
}

/// Finds `phy2log` with the request's policy; the request is checked.
pub(crate) fn place(request: &Request<'_>, workers: &Workers) -> Result<Array2<i32>, PlanError> {
    let shape = (request.loads.layers(), request.topology.slots());
    let mut placed = Array2::from_elem(shape, -1);
    // A fresh array is one slice in C order.
    let phy2log = placed.as_slice_mut().unwrap_or_default();
    priced::check(request)?;
    let plain = request.options.is_plain();
    match request.options.policy {
        Policy::Static => static_::place(request, workers, phy2log),
        Policy::Random => random::place(request, workers, phy2log),
        Policy::Balanced if !plain => priced::place(request, workers, phy2log)?,
        Policy::Incremental if !plain => {
            priced::place_within_budget(request, workers, phy2log)?;
            priced::keep_better(request, workers, phy2log)?;
        }
        Policy::Balanced => balanced::place(request, workers, phy2log),
        Policy::Deepseek => deepseek::place(request, workers, phy2log)?,
        Policy::Incremental => incremental::place(request, workers, phy2log)?,
        Policy::Forecast => forecast::place(request, workers, phy2log)?,
        Policy::Split => split::place(request, phy2log)?,
    }
    Ok(placed)
}
