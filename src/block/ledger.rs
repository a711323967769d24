//! What this service was last told to hold, on disk, so that exports return before any manager answers.

use crate::host::{Document, DocumentError, load_document, put_aside, save_document};
use crate::model::{AssignmentSet, Mark, ServiceId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a ledger says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub assigned: AssignmentSet,
    /// How far the state had come by then, as a manager said.
    pub mark: Mark,
}

/// `ledger.json`.
#[derive(Serialize, Deserialize)]
struct Bound {
    /// Whose ledger it is: an identity that was removed leaves nothing to the next one.
    service: ServiceId,
    /// Who goes on with it, once that one is who this service is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heir: Option<ServiceId>,
    assigned: AssignmentSet,
    #[serde(default)]
    mark: Mark,
}

impl Document for Bound {
    const FORMAT: &'static str = "symphony ledger";
    const VERSION: u32 = 1;
}

/// The ledger file.
#[derive(Clone, Debug)]
pub struct Ledger {
    path: PathBuf,
    service: ServiceId,
    heir: Option<ServiceId>,
}

impl Ledger {
    pub fn new(path: PathBuf, service: ServiceId) -> Self {
        Self { path, service, heir: None }
    }

    /// From the next saving on, another service may go on with the ledger.
    pub fn bequeath(&mut self, heir: ServiceId) {
        self.heir = Some(heir);
    }

    /// The heir has become who this service is.
    pub fn inherit(&mut self) {
        if let Some(heir) = self.heir.take() {
            self.service = heir;
        }
    }

    /// What was last saved; nothing if there is no ledger. A damaged one, or another identity's, is put aside under
    /// another name, never deleted: what it said comes again from a manager, and no data depends on it.
    ///
    /// # Errors
    /// If the file cannot be read or put aside.
    pub fn load(&self) -> Result<Page, DocumentError> {
        match load_document::<Bound>(&self.path) {
            Ok(Some(bound)) if bound.service == self.service => Ok(Page { assigned: bound.assigned, mark: bound.mark }),
            // How far another cluster's state had come means nothing in this one's.
            Ok(Some(bound)) if bound.heir == Some(self.service) => {
                Ok(Page { assigned: bound.assigned, mark: Mark::default() })
            }
            Ok(Some(bound)) => {
                let aside = put_aside(&self.path, &format!("of-{}", bound.service))?;
                tracing::warn!(path = %aside.display(), "the ledger is another identity's; it was put aside");
                Ok(Page::default())
            }
            Ok(None) => Ok(Page::default()),
            Err(error) if error.is_damage() => {
                let aside = put_aside(&self.path, "damaged")?;
                tracing::error!(%error, path = %aside.display(), "the ledger is damaged; it was put aside");
                Ok(Page::default())
            }
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// If the disk does not take it; the file then holds what it held before.
    pub fn save(&self, page: Page) -> Result<(), DocumentError> {
        let Page { assigned, mark } = page;
        save_document(&self.path, &Bound { service: self.service, heir: self.heir, assigned, mark })
    }
}
