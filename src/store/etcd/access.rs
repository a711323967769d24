//! Who we are to etcd, and who etcd is to us: TLS and a user.

use crate::store::StoreError;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use std::fmt;

/// What etcd asks of its clients. The default is plain text and no user.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EtcdAccess {
    /// Certificates of the authorities that sign etcd's own, PEM. TLS is used where there are any.
    pub ca: Option<Vec<u8>>,
    /// The client's certificate and its key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

/// Without keys and passwords.
impl fmt::Debug for EtcdAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdAccess")
            .field("tls", &self.ca.is_some())
            .field("certificate", &self.identity.is_some())
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .finish()
    }
}

impl EtcdAccess {
    /// `options` for a connection to `url`. The user is not among them: the client library would sign in before it
    /// connects, and so not connect while a member is down.
    ///
    /// # Errors
    /// If URL and access do not go together.
    pub(super) fn secure(&self, url: &str, options: ConnectOptions) -> Result<ConnectOptions, StoreError> {
        let refused = |what: &str| Err(StoreError::Refused(format!("etcd endpoint '{url}': {what}")));
        let Some(ca) = &self.ca else {
            return match url.starts_with("https://") {
                true => refused("https needs --etcd-ca FILE, the authority that signed etcd's certificate"),
                false if self.identity.is_some() => refused("a client certificate needs https:// and --etcd-ca FILE"),
                false => Ok(options),
            };
        };
        if !url.starts_with("https://") {
            return refused("--etcd-ca is given, so every endpoint must begin with https://");
        }
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        Ok(options.with_tls(tls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_secret_never_mix() {
        let tls = EtcdAccess { ca: Some(b"pem".to_vec()), ..EtcdAccess::default() };
        let secure = |access: &EtcdAccess, url| access.secure(url, ConnectOptions::new()).map(drop);
        assert!(secure(&tls, "https://a:1").is_ok() && secure(&EtcdAccess::default(), "http://a:1").is_ok());
        assert!(secure(&tls, "http://a:1").unwrap_err().to_string().contains("must begin with https"));
        let without = secure(&EtcdAccess::default(), "https://a:1").unwrap_err().to_string();
        assert!(without.contains("--etcd-ca"), "{without}");
    }

    #[test]
    fn a_password_is_never_printed() {
        let user = Some(("ops".to_owned(), "hunter2".to_owned()));
        let shown = format!("{:?}", EtcdAccess { user, ..EtcdAccess::default() });
        assert!(shown.contains("ops") && !shown.contains("hunter2"), "{shown}");
    }
}
