//! Elastic membership: ranks leave, join, are renumbered or die, and the others go on.
//!
//! A *reform* leads from one epoch to the next. What is decided is decided here, without IO: who belongs to the next epoch
//! ([`Agreement`], [`Waiting`]), which placement is in force in it ([`settle()`]), and where experts that nobody holds any
//! more are fetched into ([`restore()`]). [`agree`] and [`join`] connect the first with a [`Store`](eplb_comm::store::Store);
//! [`Member::reform`](super::Member::reform) and [`Member::join`](super::Member::join) do all of it for ranks on host memory.
//!
//! 1. **Ranks that leave** while they live first give away their experts: an exchange in the old epoch, planned with them as dead
//!    ranks, so that nothing is lost.
//! 2. **The old epoch is closed** by compare-and-set: nothing is decided in it any more. A rank that was stopped finds that when
//!    it resumes; it can neither commit nor decide.
//! 3. **Who is there** is one record, which moves by compare-and-set: proposed by the lowest member that shows signs of life,
//!    accepted by all whom it lists, then formed. A leader that dies is followed by the next. What the record does not list does
//!    not belong, whatever anyone believes.
//! 4. **What is in force**: every member of the new epoch tells what it holds; the highest version that any of them has
//!    committed, or has seen committed, wins, and who is a wave behind rolls forward from its staging. Of its own slots each
//!    rank knows best; slots of ranks that are gone are gone. All compute the same map from the same words.
//! 5. **What is missing** is fetched by the host's [`Source`](super::Source) into slots that can be spared, and the
//!    placement is planned anew.
//!
//! Ranks are numbered without gaps. [`Reform::topology`] says how the ranks are numbered if everybody comes; where some
//! do not, those behind them move up.

mod agreement;
mod change;
mod enter;
mod error;
mod in_force;
mod presence;
mod reform;
pub(crate) mod restore;
mod settle;
mod talk;
mod waiting;

pub use agreement::{Act, Agreement, Seat, Seen, Timing};
pub use change::Reform;
pub use error::MembershipError;
pub use presence::Presence;
pub use reform::{Reformed, Replan, Stayed, suspects};
pub use restore::{Fetch, Restore, restore};
pub use settle::{Report, Settled, settle};
pub use talk::{Call, agree, join};
pub use waiting::Waiting;
