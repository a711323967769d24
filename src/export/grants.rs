//! Who may use which export: what the control plane has granted, by the export's name, whether it is served now or not.
//!
//! Pure data and pure rules; [`super::ExportTable`] holds them under one lock with the connections.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guest {
    /// On this host, root or the server's own user, by the kernel's word.
    Local,
    /// Holds a certificate of this client.
    Client(Uuid),
}

/// A client's leave to use an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub client: Uuid,
    /// For people.
    pub client_name: String,
    pub read_only: bool,
    /// Nobody else comes in while it lasts, local guests included.
    pub exclusive: bool,
}

/// Why a client was not admitted. Nothing has changed; both pass when others leave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    #[error(
        "{connections} connections of others use '{export}': it is granted to one client alone when they have ended"
    )]
    InUse { export: String, connections: usize },
    #[error("'{export}' is granted to client '{client_name}'{}: detach that first", if *.exclusive { " alone" } else { "" })]
    Held { export: String, client_name: String, exclusive: bool },
}

/// Why a guest does not come in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    #[error("there is no export '{0}' here")]
    Unknown(String),
    /// The same words whether there is such an export or not.
    #[error(
        "client {client} may use no export '{export}' here: \
        `symphony ctl volume attach {export} --client NAME` on a manager lets it in"
    )]
    NotGranted { export: String, client: Uuid },
    #[error(
        "'{export}' is attached to client '{client_name}' alone: local users come in again after \
        `symphony ctl volume detach {export} --client {client_name}`"
    )]
    Taken { export: String, client_name: String },
    #[error("'{export}' is not served now: {reason}")]
    Withheld { export: String, reason: String },
}

/// All grants, by export and client.
#[derive(Debug, Default)]
pub(super) struct Grants {
    held: BTreeMap<String, BTreeMap<Uuid, Grant>>,
    /// Why exports are not served that would be there; told to those who might use them.
    withheld: BTreeMap<String, String>,
}

impl Grants {
    pub(super) fn of(&self, export: &str, client: Uuid) -> Option<&Grant> {
        self.held.get(export)?.get(&client)
    }

    /// Whether a guest may come in, and if so, whether only to read.
    pub(super) fn judge(&self, export: &str, guest: Guest) -> Result<bool, AttachError> {
        match guest {
            Guest::Client(client) => {
                let denied = || AttachError::NotGranted { export: export.to_owned(), client };
                self.of(export, client).map(|grant| grant.read_only).ok_or_else(denied)
            }
            Guest::Local => match self.others(export, None).find(|grant| grant.exclusive) {
                Some(Grant { client_name, .. }) => {
                    Err(AttachError::Taken { export: export.to_owned(), client_name: client_name.clone() })
                }
                None => Ok(false),
            },
        }
    }

    /// Whether a grant may stand beside the others.
    pub(super) fn check(&self, export: &str, wanted: &Grant) -> Result<(), AdmitError> {
        let mut others = self.others(export, Some(wanted.client));
        match others.find(|other| wanted.exclusive || other.exclusive) {
            Some(Grant { client_name, exclusive, .. }) => Err(AdmitError::Held {
                export: export.to_owned(),
                client_name: client_name.clone(),
                exclusive: *exclusive,
            }),
            None => Ok(()),
        }
    }

    /// Replaces the former grant of the same client.
    pub(super) fn put(&mut self, export: &str, grant: Grant) {
        self.held.entry(export.to_owned()).or_default().insert(grant.client, grant);
    }

    /// Says whether there was one.
    pub(super) fn take(&mut self, export: &str, client: Uuid) -> bool {
        let Some(grants) = self.held.get_mut(export) else { return false };
        let taken = grants.remove(&client).is_some();
        if grants.is_empty() {
            self.held.remove(export);
        }
        taken
    }

    /// Has those told why who might use an export that is not served; or no longer.
    pub(super) fn withhold(&mut self, export: &str, reason: Option<String>) {
        match reason {
            Some(reason) => drop(self.withheld.insert(export.to_owned(), reason)),
            None => drop(self.withheld.remove(export)),
        }
    }

    /// Why an export is not there.
    pub(super) fn absence(&self, export: &str) -> AttachError {
        let export = export.to_owned();
        match self.withheld.get(&export) {
            Some(reason) => AttachError::Withheld { reason: reason.clone(), export },
            None => AttachError::Unknown(export),
        }
    }

    fn others(&self, export: &str, client: Option<Uuid>) -> impl Iterator<Item = &Grant> {
        self.held.get(export).into_iter().flat_map(BTreeMap::values).filter(move |grant| Some(grant.client) != client)
    }
}
