//! The files below `tls/`: who this service can prove to be, and whom it believes.
//!
//! | file | what | when it is lost |
//! |---|---|---|
//! | `key.pem` | the private key, 0600; made once, before it is used | nothing can replace it: removal and a new init |
//! | `cert.pem` | the certificate chain that a manager issued for the key | renewed, by the key |
//! | `ca.pem` | every root that is believed | taken from the chain, or copied from another member |
//!
//! Each file is replaced whole. The order between them, and `identity.json` beside them, survives a kill at any point:
//!
//! 1. `identity.json` with the id alone: an init has begun.
//! 2. `key.pem`. Only now is a manager asked, so that it records a key that is kept. Cut off from here on, the init is
//!    repeated with the same id and key, and what follows is written anew.
//! 3. `ca.pem`, `cert.pem`.
//! 4. `identity.json` with the membership: from here on the service is a member, and has all files.
//!
//! A renewal replaces `ca.pem`, then `cert.pem`: cut off in between, new roots stand beside an old certificate, which at
//! worst has to be renewed by the key. A removal puts `identity.json` aside first, then the ledger, then the whole of
//! `tls/`; a key without an identity is therefore somebody's who was removed, and is put aside by the next init.
//!
//! A file that cannot be read for what it should be is never overwritten: a damaged key stays where it is, a damaged
//! certificate or root is put aside under another name.

use crate::host::directory::FileError;
use crate::host::files::{make_private_directory, read_optional, write_atomic};
use crate::host::{put_aside, take_back};
use crate::pki::{Bearer, Credentials, SigningKey, TrustBundle};
use std::path::{Path, PathBuf};

/// For every file, the public ones too: nobody else has business here.
const MODE: u32 = 0o600;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// The directory of keys and certificates.
#[derive(Clone, Debug)]
pub struct TlsDir {
    path: PathBuf,
}

/// What the files of a member amount to.
#[derive(Clone, Debug)]
pub enum Holding {
    /// Everything.
    Whole(Credentials),
    /// No certificate: the key proves who we are to those whom the roots tell to be managers.
    Bare { key: SigningKey, trust: TrustBundle },
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "the key {} is missing: without it this service cannot prove that it is a member. Put the file back, or take \
         the service out with `symphony ctl … manager remove` and join anew with `symphony ctl … block init`",
        path.display()
    )]
    KeyMissing { path: PathBuf },
    #[error(
        "the key {} is damaged and was left as it is: without it this service cannot prove that it is a member. Put the \
         right file back, or take the service out with `symphony ctl … manager remove` and join anew with \
         `symphony ctl … block init`",
        path.display()
    )]
    KeyDamaged { path: PathBuf, source: crate::pki::Error },
    #[error(
        "{} is missing or damaged, and so is the certificate that it could be taken from: this service cannot tell \
         its managers from others. Copy the file from another member of the cluster, where it is the same",
        path.display()
    )]
    NoRoots { path: PathBuf },
}

impl TlsError {
    /// Whether the key is gone, so that the membership ends unless somebody finds it.
    pub fn is_loss_of_key(&self) -> bool {
        match self {
            Self::KeyMissing { .. } | Self::KeyDamaged { .. } => true,
            Self::File(_) | Self::NoRoots { .. } => false,
        }
    }
}

impl TlsDir {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn key(&self) -> PathBuf {
        self.path.join("key.pem")
    }

    fn chain(&self) -> PathBuf {
        self.path.join("cert.pem")
    }

    fn roots(&self) -> PathBuf {
        self.path.join("ca.pem")
    }

    /// What is there for the member that `bearer` names. A damaged certificate and damaged roots are put aside.
    ///
    /// # Errors
    /// If the key or every root is lost, or a file or directory cannot be read or is open to others.
    pub fn load(&self, bearer: Bearer) -> Result<Holding, TlsError> {
        if self.path.exists() {
            make_private_directory(&self.path)?;
        }
        let key = match self.read_key()? {
            Some(key) => key,
            None => return Err(TlsError::KeyMissing { path: self.key() }),
        };
        let roots = self.read_roots()?;
        match (self.read_chain(&key, bearer, roots.as_ref())?, roots) {
            (Some(credentials), _) => Ok(Holding::Whole(credentials)),
            (None, Some(trust)) => Ok(Holding::Bare { key, trust }),
            (None, None) => Err(TlsError::NoRoots { path: self.roots() }),
        }
    }

    /// The key, made and durable if there is none.
    ///
    /// # Errors
    /// If the disk does not take it, or the file that is there is no key.
    pub fn ensure_key(&self) -> Result<SigningKey, TlsError> {
        make_private_directory(&self.path)?;
        if let Some(key) = self.read_key()? {
            return Ok(key);
        }
        let damaged = |source| TlsError::KeyDamaged { path: self.key(), source };
        let key = SigningKey::generate().map_err(damaged)?;
        write_atomic(&self.key(), key.to_pem().as_bytes(), MODE)?;
        Ok(key)
    }

    /// Keeps what was issued, roots first.
    pub fn save(&self, credentials: &Credentials) -> Result<(), TlsError> {
        self.save_roots(credentials.trust())?;
        Ok(write_atomic(&self.chain(), credentials.chain_pem().as_bytes(), MODE)?)
    }

    pub fn save_roots(&self, trust: &TrustBundle) -> Result<(), TlsError> {
        make_private_directory(&self.path)?;
        Ok(write_atomic(&self.roots(), trust.to_pem().as_bytes(), MODE)?)
    }

    /// Puts the whole directory out of the way, and says where; nothing if there is none.
    pub fn put_aside(&self, why: &str) -> Result<Option<PathBuf>, TlsError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let aside = put_aside(&self.path, why)?;
        tracing::info!(path = %aside.display(), "key and certificates were put aside");
        Ok(Some(aside))
    }

    /// Undoes [`Self::put_aside`].
    pub fn take_back(&self, aside: &Path) -> Result<(), TlsError> {
        Ok(take_back(aside, &self.path)?)
    }

    fn read_key(&self) -> Result<Option<SigningKey>, TlsError> {
        let path = self.key();
        let Some(bytes) = read_optional(&path)?.map(zeroize::Zeroizing::new) else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        SigningKey::from_pem(text).map(Some).map_err(|source| TlsError::KeyDamaged { path, source })
    }

    /// Key and chain, if there is one for this key and bearer; believing its own root where no others are known.
    fn read_chain(
        &self,
        key: &SigningKey,
        bearer: Bearer,
        roots: Option<&TrustBundle>,
    ) -> Result<Option<Credentials>, TlsError> {
        let path = self.chain();
        let Some(bytes) = read_optional(&path)? else {
            tracing::error!(path = %path.display(), "the certificate is missing; another one will be asked for");
            return Ok(None);
        };
        let text = String::from_utf8(bytes).unwrap_or_default();
        let credentials = match roots.cloned().or_else(|| last_root(&text)) {
            Some(trust) => Credentials::new(key.clone(), &text, trust).map_err(|error| error.to_string()),
            None => Err("it does not end in a root".to_owned()),
        };
        let reason = match credentials {
            Ok(credentials) if credentials.bearer() == bearer => return Ok(Some(credentials)),
            Ok(credentials) => format!("it is that of {}", credentials.bearer()),
            Err(reason) => reason,
        };
        self.set_aside(&path, &reason)?;
        Ok(None)
    }

    fn read_roots(&self) -> Result<Option<TrustBundle>, TlsError> {
        let path = self.roots();
        let Some(bytes) = read_optional(&path)? else {
            tracing::error!(path = %path.display(), "the roots to believe are missing");
            return Ok(None);
        };
        match TrustBundle::from_pem(&String::from_utf8(bytes).unwrap_or_default()) {
            Ok(trust) => Ok(Some(trust)),
            Err(error) => {
                self.set_aside(&path, &error.to_string())?;
                Ok(None)
            }
        }
    }

    fn set_aside(&self, path: &Path, reason: &str) -> Result<(), TlsError> {
        let aside = put_aside(path, "damaged")?;
        tracing::error!(path = %path.display(), aside = %aside.display(), %reason, "a file is damaged; it was put aside");
        Ok(())
    }
}

/// The root at the end of a chain, where managers put what they believe.
fn last_root(chain: &str) -> Option<TrustBundle> {
    let at = chain.rfind(BEGIN)?;
    TrustBundle::from_pem(chain.get(at..)?).ok()
}

#[cfg(test)]
mod tests;
