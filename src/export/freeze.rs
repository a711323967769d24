//! Exports held still: for snapshots of several volumes at one instant.
//!
//! ```text
//!   serving ──freeze──▶ no change begins, those in flight end, flushed ──guard dropped──▶ serving
//! ```
//! Reads go on. Clients see changes that take long, never an error.

use super::table::ExportTable;
use crate::io::Shut;
use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("there is no export '{name}' to hold still")]
    Unknown { name: String },
    #[error("changes to export '{name}' did not end within {limit:?}; it goes on as before")]
    Busy { name: String, limit: Duration },
    #[error("export '{name}' cannot be flushed; it goes on as before")]
    Flush { name: String, source: io::Error },
}

/// Nothing changes what the exports hold until this is dropped. Whoever holds it must not for longer than clients have
/// patience, some seconds, and must not wait for a client's end meanwhile: changes that wait may be what that waits for.
pub struct Freeze {
    _shut: Vec<Shut>,
}

impl ExportTable {
    /// Lets no change of the named exports begin, waits for those in flight, and makes them durable. All that was
    /// acknowledged before is on the media then, and nothing else changes them. Blocks up to `limit`, and as long as
    /// the media take to flush.
    ///
    /// # Errors
    /// Then every export goes on as if nothing had been asked.
    pub fn freeze(&self, names: &[&str], limit: Duration) -> Result<Freeze, FreezeError> {
        let deadline = Instant::now() + limit;
        // In one order, so that two who freeze the same exports do not wait for each other.
        let names: BTreeSet<&str> = names.iter().copied().collect();
        let mut held = Vec::new();
        let mut shut = Vec::new();
        for name in names {
            let unknown = || FreezeError::Unknown { name: name.into() };
            let export = self.hold(name).ok_or_else(unknown)?;
            let busy = || FreezeError::Busy { name: name.into(), limit };
            shut.push(export.writes().shut_by(deadline).ok_or_else(busy)?);
            held.push((name, export));
        }
        for (name, export) in &held {
            let failed = |source| FreezeError::Flush { name: (*name).into(), source };
            export.io().map_or(Ok(()), |io| io.flush()).map_err(failed)?;
        }
        Ok(Freeze { _shut: shut })
    }
}
