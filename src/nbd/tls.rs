//! A client's credentials: the directory of PEM files that libnbd and qemu read as well.
//!
//! A server is believed if its certificate leads to the directory's authority, names the same cluster and is a block
//! service's. The host name that it was dialled by is not compared: services move, their identities do not.

use super::uri::Tls;
use crate::pki::{Credentials, Keyring, Role, SigningKey, TrustBundle};
use crate::runtime::SystemClock;
use rustls::ClientConfig;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// The credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    #[error(
        "the URI names no credentials: add ?tls-certificates=DIRECTORY with the files ca-cert.pem, client-cert.pem \
        and client-key.pem"
    )]
    Unnamed,
    #[error("reading {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the credentials in {} cannot be used", .directory.display())]
    Credentials { directory: PathBuf, source: crate::pki::Error },
}

/// How to dial block services with what an URI names.
pub fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, TlsFilesError> {
    let directory = tls.certificates.as_deref().ok_or(TlsFilesError::Unnamed)?;
    let [ca, certificate, key] =
        ["ca-cert.pem", "client-cert.pem", "client-key.pem"].map(|name| read(&directory.join(name)));
    let (ca, certificate, key) = (ca?, certificate?, key?);
    let config = || {
        let trust = TrustBundle::from_pem(&ca)?;
        let credentials = Credentials::new(SigningKey::from_pem(&key)?, &certificate, trust)?;
        dialling(&Keyring::new(credentials, Arc::new(SystemClock))?)
    };
    config().map_err(|source| TlsFilesError::Credentials { directory: directory.to_owned(), source })
}

/// How to dial block services with a keyring; it is followed as it changes.
pub fn dialling(keyring: &Keyring) -> Result<Arc<ClientConfig>, crate::pki::Error> {
    keyring.client_config(&[Role::Block], &[])
}

fn read(path: &Path) -> Result<Zeroizing<String>, TlsFilesError> {
    let failed = |source| TlsFilesError::Read { path: path.to_owned(), source };
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(failed)
}
