//! What this service was last told to hold, on disk, so that exports return before any manager answers.

use crate::host::{Document, DocumentError, load_document, put_aside, save_document};
use crate::model::{AssignmentSet, ServiceId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `ledger.json`.
#[derive(Serialize, Deserialize)]
struct Page {
    /// Whose ledger it is: an identity that was removed leaves nothing to the next one.
    service: ServiceId,
    assigned: AssignmentSet,
}

impl Document for Page {
    const FORMAT: &'static str = "symphony ledger";
    const VERSION: u32 = 1;
}

/// The ledger file.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
    service: ServiceId,
}

impl Ledger {
    pub fn new(path: PathBuf, service: ServiceId) -> Self {
        Self { path, service }
    }

    /// What was last saved; nothing if there is no ledger. A damaged one, or another identity's, is put aside under
    /// another name, never deleted: what it said comes again from a manager, and no data depends on it.
    ///
    /// # Errors
    /// If the file cannot be read or put aside.
    pub fn load(&self) -> Result<AssignmentSet, DocumentError> {
        match load_document::<Page>(&self.path) {
            Ok(Some(page)) if page.service == self.service => Ok(page.assigned),
            Ok(Some(page)) => {
                let aside = put_aside(&self.path, &format!("of-{}", page.service))?;
                tracing::warn!(path = %aside.display(), "the ledger is another identity's; it was put aside");
                Ok(AssignmentSet::default())
            }
            Ok(None) => Ok(AssignmentSet::default()),
            Err(error) if error.is_damage() => {
                let aside = put_aside(&self.path, "damaged")?;
                tracing::error!(%error, path = %aside.display(), "the ledger is damaged; it was put aside");
                Ok(AssignmentSet::default())
            }
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// If the disk does not take it; the file then holds what it held before.
    pub fn save(&self, assigned: &AssignmentSet) -> Result<(), DocumentError> {
        save_document(&self.path, &Page { service: self.service, assigned: assigned.clone() })
    }
}
