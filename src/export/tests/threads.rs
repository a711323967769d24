//! The suite on the engine of a thread per connection.

#[path = "bench.rs"]
mod bench;
#[path = "copying.rs"]
mod copying;
#[path = "crashes.rs"]
mod crashes;
#[path = "fencing.rs"]
mod fencing;
#[path = "files.rs"]
mod files;
#[path = "hostile.rs"]
mod hostile;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "limited.rs"]
mod limited;
#[path = "metering.rs"]
mod metering;
#[path = "mixed.rs"]
mod mixed;
#[path = "protocol.rs"]
mod protocol;
#[path = "raw.rs"]
mod raw;
#[path = "requests.rs"]
mod requests;
#[path = "secured.rs"]
mod secured;

use super::*;
use bench::*;

const ENGINE: EngineChoice = EngineChoice::Threads;
