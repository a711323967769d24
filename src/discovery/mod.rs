//! Who is there: leases that say so, and the election of the one manager that does what needs one doer.
//!
//! Built on the store only; what a membership record contains is the manager's business.

mod election;
mod presence;

pub use election::{Leadership, campaign};
pub use presence::Presence;
