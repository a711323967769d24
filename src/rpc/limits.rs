//! How much of this process one peer, and all peers together, can take up.

use super::admission::Admittance;
use std::time::Duration;
use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};

/// Numbers and times that a listener grants.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// From the connection to its first byte.
    pub first_byte: Duration,
    /// From there to the end of the TLS handshake.
    pub handshake: Duration,
    /// From there to the first request.
    pub first_request: Duration,
    /// The life of connections whose peers have proven nothing: enough to join, renew, or read a refusal.
    pub guest_age: Duration,
    /// Connections that have not yet said who they are.
    pub arriving: usize,
    /// Connections of local peers and bearers of certificates.
    pub admitted: usize,
    /// Of these, of any one bearer.
    pub of_one_bearer: usize,
    /// Connections of TLS peers without a certificate.
    pub anonymous: usize,
    /// Connections of peers that are only told why they may not ask.
    pub refused: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            first_request: Duration::from_secs(10),
            guest_age: Duration::from_secs(60),
            arriving: 1024,
            admitted: 4096,
            of_one_bearer: 64,
            anonymous: 128,
            refused: 64,
        }
    }
}

/// How often a connected peer is asked for a sign of life, and how long it has for it.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A gRPC server that admits by the table, with what HTTP/2 grants its peers.
///
/// Reading a request costs at most a message per stream; headers, and streams that are opened only to be reset, cost
/// next to nothing. A peer that sends a frame a byte at a time cannot answer pings in between, and is hung up on.
pub fn server() -> Server<Stack<Admittance, Identity>> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(Some(256))
        .http2_max_header_list_size(Some(16 << 10))
        .http2_max_pending_accept_reset_streams(Some(32))
        .http2_max_local_error_reset_streams(Some(128))
        .layer(Admittance)
}
