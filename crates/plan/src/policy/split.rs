//! `split`: no moves. The placement in force stays as it is; the split, the last step of every plan, is all that changes.

use crate::error::PlanError;
use crate::request::Request;

/// Keeps what live ranks hold.
pub(super) fn place(request: &Request<'_>, phy2log: &mut [i32]) -> Result<(), PlanError> {
    let Some(current) = request.current else {
        return Err(PlanError::Unsupported {
            policy: "split",
            reason: "needs the placement in force, whose experts it leaves where they are; give one, or use another \
                     policy to make the first"
                .into(),
        });
    };
    for (entry, kept) in phy2log.iter_mut().zip(current.survivors(request.topology)?.phy2log()) {
        *entry = *kept;
    }
    Ok(())
}
