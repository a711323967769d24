//! The listener at work: real sockets, real TLS, a real gRPC server, and peers that mean harm.

mod handshakes;
mod hostile;
mod standing;

use super::limits::Limits;
use super::*;
use crate::model::{ClusterId, Timestamp};
use crate::pki::{Authority, Bearer, Credentials, Keyring, Role, SigningKey};
use crate::runtime::{Clock, SystemClock};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(24 * 3600);
const LOOPBACK: &str = "127.0.0.1:0";

/// A cluster's authority, and who it certifies.
pub(super) struct Cluster(Authority);

impl Cluster {
    pub fn new() -> Self {
        Self::made(SystemClock.wall())
    }

    pub fn made(at: Timestamp) -> Self {
        Self(Authority::create(ClusterId::generate(), &"prod".parse().unwrap(), at).unwrap())
    }

    pub fn bearer(&self, role: Role) -> Bearer {
        Bearer { cluster: self.0.cluster(), role, id: Uuid::new_v4() }
    }

    pub fn credentials(&self, bearer: Bearer, issued_at: Timestamp, lifetime: Duration) -> Credentials {
        let key = SigningKey::generate().unwrap();
        let issued = self.0.issue(&key.request().unwrap(), &bearer, &[], issued_at, lifetime).unwrap();
        Credentials::new(key, &issued.chain_pem, self.0.trust()).unwrap()
    }

    pub fn keyring_of(&self, bearer: Bearer) -> Keyring {
        Keyring::new(self.credentials(bearer, SystemClock.wall(), DAY), Arc::new(SystemClock)).unwrap()
    }

    pub fn keyring(&self, role: Role) -> Keyring {
        self.keyring_of(self.bearer(role))
    }
}

/// Answers a few calls: enough to tell who was let through.
struct Echo;

#[tonic::async_trait]
impl proto::enrollment_server::Enrollment for Echo {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinResponse>, Status> {
        let caller = request.extensions().get::<Peer>().map(|peer| peer.caller().to_string());
        Ok(Response::new(proto::JoinResponse { cluster_name: caller.unwrap_or_default(), ..Default::default() }))
    }

    /// Takes for ever.
    async fn renew(&self, _request: Request<proto::RenewRequest>) -> Result<Response<proto::RenewResponse>, Status> {
        std::future::pending::<()>().await;
        Ok(Response::new(proto::RenewResponse::default()))
    }
}

/// A server in this process; gone with the test's runtime.
pub(super) struct Host {
    pub address: SocketAddr,
}

impl Host {
    /// Serves local peers and those with certificates of `keyring`'s cluster.
    pub async fn serve(keyring: Keyring, limits: Limits) -> Self {
        Self::admitting(local_peers(), keyring, limits).await
    }

    pub async fn admitting(admission: Admission, keyring: Keyring, limits: Limits) -> Self {
        let listener = Listener::tcp(LOOPBACK.parse().unwrap(), admission, keyring).await.unwrap().limited(limits);
        let address = listener.address().unwrap();
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let enrollment = proto::enrollment_server::EnrollmentServer::new(Echo).max_decoding_message_size(MAX_REQUEST);
        let served = server().add_service(health).add_service(enrollment).serve_with_incoming(listener.incoming());
        tokio::spawn(async move { served.await.unwrap() });
        Self { address }
    }

    pub async fn dial(&self, transport: &Transport) -> Result<Channel, DialError> {
        dial_address(&self.address.to_string(), transport).await
    }

    /// Over TLS with the keyring's certificate, to a manager.
    pub async fn dial_as(&self, keyring: &Keyring) -> Result<Channel, DialError> {
        self.dial(&Transport::of_member(keyring, &[Role::Manager]).unwrap()).await
    }
}

/// Over TLS, with no certificate to show.
pub(super) fn anonymous(cluster: &Cluster) -> Transport {
    let (config, _) = crate::pki::joining_client_config(cluster.0.ca(), ALPN, Arc::new(SystemClock)).unwrap();
    Transport::Tls(config)
}

/// Asks whether the server is well; everybody but refused peers may.
pub(super) async fn is_well(channel: Channel) -> Result<(), Status> {
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    Ok(())
}

pub(super) async fn join(channel: Channel) -> Result<String, Status> {
    let mut client = proto::enrollment_client::EnrollmentClient::new(channel);
    client.join(proto::JoinRequest::default()).await.map(|answer| answer.into_inner().cluster_name)
}

/// What a peer of another user of this host is told.
pub(super) fn strangers() -> Admission {
    Arc::new(|_| Err("not from here".to_owned()))
}

pub(super) fn text(error: DialError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

pub(super) fn code(result: Result<impl std::fmt::Debug, Status>) -> Code {
    result.expect_err("the call is refused").code()
}
