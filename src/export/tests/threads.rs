//! The suite on the engine of a thread per connection.

#[path = "bench.rs"]
mod bench;
#[path = "copying.rs"]
mod copying;
#[path = "fencing.rs"]
mod fencing;
#[path = "files.rs"]
mod files;
#[path = "hostile.rs"]
mod hostile;
#[path = "lifecycle.rs"]
mod lifecycle;
#[path = "mixed.rs"]
mod mixed;
#[path = "requests.rs"]
mod requests;
#[path = "secured.rs"]
mod secured;

use super::*;
use bench::*;

const ENGINE: EngineChoice = EngineChoice::Threads;
