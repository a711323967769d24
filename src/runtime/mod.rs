//! What every running role needs once: shutdown, clock, backoff, telemetry. Nothing here knows what symphony does.

mod backoff;
mod clock;
pub mod metrics;
mod shutdown;
pub mod telemetry;
mod turns;

pub use backoff::Backoff;
pub use clock::{Clock, ManualClock, SystemClock};
pub use shutdown::{Shutdown, termination, upgrades};
pub use turns::{Turn, Turns};

/// What `--version` prints and services tell each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
