//! Which store a manager uses, and how it gets in.

use crate::host::ConfigDir;
use crate::store::{EmbeddedStore, EtcdAccess, EtcdOptions, EtcdStore, SharedStore, StoreError};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where state lives.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// In the config directory.
    Embedded,
    Etcd {
        endpoints: Vec<String>,
        /// Put before every key; empty or like `/here`.
        prefix: String,
        access: EtcdFiles,
    },
}

/// Where what etcd asks for is to be read, once at the start: new files need a restart.
#[derive(Clone, Default)]
pub struct EtcdFiles {
    /// The authority that signed etcd's certificate, PEM.
    pub ca: Option<PathBuf>,
    /// The manager's certificate towards etcd, PEM, and its key.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<Password>,
}

/// The password of etcd's user.
#[derive(Clone)]
pub enum Password {
    /// In a file of its own; a line break at its end does not count.
    File(PathBuf),
    Given(String),
}

/// Without the password.
impl fmt::Debug for EtcdFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdFiles").field("ca", &self.ca).field("cert", &self.cert).field("user", &self.user).finish()
    }
}

impl EtcdFiles {
    /// # Errors
    /// If a file cannot be read, or something lacks its counterpart.
    fn read(&self) -> Result<EtcdAccess, StoreError> {
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            (None, None) => None,
            _ => return Err(StoreError::Refused("--etcd-cert and --etcd-key go together".into())),
        };
        let user = match (&self.user, &self.password) {
            (Some(user), Some(password)) => Some((user.clone(), password.read()?)),
            (None, None) => None,
            (Some(user), None) => {
                return Err(StoreError::Refused(format!(
                    "etcd's user '{user}' needs a password: name a file with --etcd-password-file, or set \
                     $SYMPHONY_ETCD_PASSWORD"
                )));
            }
            (None, Some(_)) => return Err(StoreError::Refused("a password for etcd needs --etcd-user".into())),
        };
        if self.user.is_some() && self.ca.is_none() {
            tracing::warn!(
                "the password of etcd's user goes over the network in plain text: use https:// and --etcd-ca"
            );
        }
        Ok(EtcdAccess { ca: self.ca.as_deref().map(read).transpose()?, identity, user })
    }
}

impl Password {
    fn read(&self) -> Result<String, StoreError> {
        let path = match self {
            Self::Given(password) => return Ok(password.clone()),
            Self::File(path) => path,
        };
        let text = String::from_utf8(read(path)?);
        let text = text.map_err(|_| StoreError::Refused(format!("{} is not UTF-8", path.display())))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| StoreError::Refused(format!("cannot read {}: {error}", path.display())))
}

impl StoreConfig {
    pub(super) async fn connect(&self, dir: &ConfigDir) -> Result<SharedStore, StoreError> {
        Ok(match self {
            Self::Embedded => Arc::new(EmbeddedStore::open(&dir.store())?),
            Self::Etcd { endpoints, prefix, access } => {
                let options = EtcdOptions { prefix: prefix.clone(), access: access.read()?, ..EtcdOptions::default() };
                Arc::new(EtcdStore::connect(endpoints, options).await?)
            }
        })
    }
}

impl fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Etcd { endpoints, prefix, .. } => write!(f, "etcd at {}{prefix}", endpoints.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_access_is_refused_with_the_other_half_s_name() {
        let of = |files: EtcdFiles| files.read().unwrap_err().to_string();
        let half = EtcdFiles { cert: Some("c".into()), ..EtcdFiles::default() };
        assert!(of(half).contains("--etcd-key"));
        let nameless = EtcdFiles { password: Some(Password::Given("p".into())), ..EtcdFiles::default() };
        assert!(of(nameless).contains("--etcd-user"));
        let silent = EtcdFiles { user: Some("u".into()), ..EtcdFiles::default() };
        assert!(of(silent).contains("--etcd-password-file"));
        let missing = EtcdFiles { ca: Some("/nowhere/ca.pem".into()), ..EtcdFiles::default() };
        assert!(of(missing).contains("/nowhere/ca.pem"));
    }

    #[test]
    fn a_password_is_read_without_its_line_break_and_never_printed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\n").unwrap();
        let password = Some(Password::File(file.path().into()));
        let files = EtcdFiles { user: Some("ops".into()), password, ..EtcdFiles::default() };
        assert_eq!(files.read().unwrap().user, Some(("ops".into(), "hunter2".into())));
        assert!(!format!("{files:?} {:?}", files.read()).contains("hunter2"));
    }
}
