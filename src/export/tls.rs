//! The server's side of TLS: one configuration for peers that must show a certificate, one for those that may.

use super::server::ServerError;
use crate::pki::{Bearer, Clients, Keyring, PeerError};
use rustls::ServerConfig;
use std::sync::Arc;

/// Follows its keyring: certificates, roots and revocations count from the next handshake on.
#[derive(Clone)]
pub(super) struct ServerTls {
    keyring: Keyring,
    strangers: Arc<ServerConfig>,
    locals: Arc<ServerConfig>,
}

impl ServerTls {
    pub(super) fn new(keyring: Keyring) -> Result<Self, ServerError> {
        let config = |clients| keyring.server_config(clients, &[]).map_err(ServerError::Tls);
        let (strangers, locals) = (config(Clients::Required)?, config(Clients::Optional)?);
        Ok(Self { keyring, strangers, locals })
    }

    /// Whether there is a certificate to show.
    pub(super) fn ready(&self) -> bool {
        self.keyring.bearer().is_some()
    }

    pub(super) fn strangers(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.strangers)
    }

    pub(super) fn locals(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.locals)
    }

    pub(super) fn refuses(&self, bearer: &Bearer) -> Option<PeerError> {
        self.keyring.refuses(bearer)
    }
}
