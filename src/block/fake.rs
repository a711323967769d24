//! A manager for tests: enrolment by a real authority and a session that says what it is told to, over real TLS.

use crate::model::{ClusterId, ServiceId};
use crate::pki::{
    Authority, Bearer, Clients, Credentials, JoinToken, Keyring, PublicKey, Role, SigningKey, peer_bearer,
    verify_request,
};
use crate::rpc::{ALPN, proto};
use crate::runtime::Clock;
use proto::dispatcher_server::{Dispatcher, DispatcherServer};
use proto::enrollment_server::{Enrollment, EnrollmentServer};
use proto::manager_message::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

pub const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
pub struct Fake {
    pub clock: Arc<dyn Clock>,
    pub keyring: Keyring,
    /// Where it speaks TLS, and where it speaks plainly to those that it takes for local.
    pub tls: String,
    pub plain: String,
    pub cluster: ClusterId,
    /// Messages to every open session.
    pub say: broadcast::Sender<Message>,
    state: Arc<Mutex<State>>,
}

pub struct State {
    pub authority: Authority,
    pub lifetime: Duration,
    pub members: BTreeMap<Uuid, PublicKey>,
    pub removed: BTreeSet<Uuid>,
    pub token: JoinToken,
    /// Whether plain peers count as local.
    pub local: bool,
    /// The next answer to a join is lost on its way.
    pub lose_answer: bool,
    /// Secrets as they were shown to this manager.
    pub shown: Vec<String>,
    /// Who came to renew; none for the anonymous.
    pub renewals: Vec<Option<Bearer>>,
}

impl Fake {
    pub async fn start(clock: Arc<dyn Clock>) -> Self {
        let authority = Authority::create(ClusterId::generate(), &"prod".parse().unwrap(), clock.wall()).unwrap();
        let cluster = authority.cluster();
        let key = SigningKey::generate().unwrap();
        let bearer = Bearer::service(cluster, Role::Manager, ServiceId::generate());
        let issued = authority.issue(&key.request().unwrap(), &bearer, &[], clock.wall(), 3000 * DAY).unwrap();
        let own = Credentials::new(key, &issued.chain_pem, authority.trust()).unwrap();
        let keyring = Keyring::new(own, clock.clone()).unwrap();
        let listeners =
            [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
        let [tls, plain] = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
        let state = Arc::new(Mutex::new(State {
            token: JoinToken::generate(authority.ca()).unwrap(),
            authority,
            lifetime: 30 * DAY,
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            local: true,
            lose_answer: false,
            shown: Vec::new(),
            renewals: Vec::new(),
        }));
        let fake = Self { clock, keyring, tls, plain, cluster, say: broadcast::Sender::new(16), state };
        let [tls, plain] = listeners;
        tokio::spawn(fake.clone().serve(tls, true));
        tokio::spawn(fake.clone().serve(plain, false));
        fake
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn token(&self) -> JoinToken {
        self.state().token.clone()
    }

    /// A certificate as a join gives it.
    pub fn issue(&self, key: SigningKey, service: ServiceId, names: &[String]) -> Credentials {
        let mut state = self.state();
        let bearer = Bearer::service(self.cluster, Role::Block, service);
        let request = key.request().unwrap();
        let issued = state.authority.issue(&request, &bearer, names, self.clock.wall(), state.lifetime).unwrap();
        state.members.insert(bearer.id, key.public_key());
        Credentials::new(key, &issued.chain_pem, state.authority.trust()).unwrap()
    }

    /// What a session is told of certificates.
    pub fn trust(&self) -> proto::Trust {
        let state = self.state();
        proto::Trust {
            roots: state.authority.trust().roots().iter().map(|root| root.to_pem()).collect(),
            revoked: state.removed.iter().map(Uuid::to_string).collect(),
            signing: state.authority.ca().to_string(),
        }
    }

    async fn serve(self, listener: TcpListener, tls: bool) {
        let acceptor = TlsAcceptor::from(self.keyring.server_config(Clients::Optional, ALPN).unwrap());
        let (accepted, incoming) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
                tokio::spawn(async move {
                    let connection = match tls {
                        false => Connection { stream: Either::Left(stream), caller: Caller::Plain },
                        true => {
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            let bearer = peer_bearer(stream.get_ref().1.peer_certificates().unwrap_or_default());
                            Connection { stream: Either::Right(Box::new(stream)), caller: Caller::Tls(bearer.ok()) }
                        }
                    };
                    drop(accepted.send(Ok::<_, std::io::Error>(connection)).await);
                });
            }
        });
        tonic::transport::Server::builder()
            .add_service(EnrollmentServer::new(self.clone()))
            .add_service(DispatcherServer::new(self))
            .serve_with_incoming(ReceiverStream::new(incoming))
            .await
            .unwrap();
    }

    fn certify(&self, service: &str, request: &str) -> Result<proto::Certificate, Status> {
        let key = verify_request(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let bearer = Bearer::service(self.cluster, Role::Block, service.parse().unwrap());
        let mut state = self.state();
        if *state.members.entry(bearer.id).or_insert(key) != key {
            return Err(Status::permission_denied("another key is recorded for this service"));
        }
        let names = ["127.0.0.1".to_owned()];
        let issued = state.authority.issue(request, &bearer, &names, self.clock.wall(), state.lifetime).unwrap();
        let roots = state.authority.trust().roots().iter().map(|root| root.to_pem()).collect();
        Ok(proto::Certificate { chain: issued.chain_pem, roots })
    }
}

#[tonic::async_trait]
impl Enrollment for Fake {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Result<Response<proto::JoinResponse>, Status> {
        let caller = *request.extensions().get::<Caller>().unwrap();
        let request = request.into_inner();
        let id: Uuid = request.service_id.parse().unwrap();
        let lose = {
            let mut state = self.state();
            match (&request.token, caller) {
                (None, Caller::Plain) if state.local => {}
                (None, _) => return Err(Status::permission_denied("you are not on this host")),
                (Some(proof), _) => {
                    state.shown.push(proof.secret.clone());
                    let secret: String = state.token.secret.reveal().iter().map(|byte| format!("{byte:02x}")).collect();
                    if (proof.id.as_str(), &proof.secret) != (&state.token.id.to_string(), &secret) {
                        return Err(Status::permission_denied("the token is not known"));
                    }
                }
            }
            if state.removed.contains(&id) {
                return Err(Status::permission_denied("this service was removed"));
            }
            std::mem::take(&mut state.lose_answer)
        };
        let certificate = self.certify(&request.service_id, &request.certificate_request)?;
        if lose {
            return Err(Status::unavailable("the connection broke"));
        }
        Ok(Response::new(proto::JoinResponse {
            cluster_id: self.cluster.to_string(),
            cluster_name: "prod".into(),
            managers: vec![self.tls.clone()],
            certificate: Some(certificate),
            recovering: false,
        }))
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Result<Response<proto::RenewResponse>, Status> {
        let Caller::Tls(caller) = *request.extensions().get::<Caller>().unwrap() else {
            return Err(Status::permission_denied("not over TLS"));
        };
        self.state().renewals.push(caller);
        let request = request.into_inner();
        let certificate = self.certify(&request.service_id, &request.certificate_request)?;
        let removed = self.state().removed.contains(&request.service_id.parse().unwrap());
        Ok(Response::new(proto::RenewResponse { certificate: (!removed).then_some(certificate), removed }))
    }
}

#[tonic::async_trait]
impl Dispatcher for Fake {
    type SessionStream = ReceiverStream<Result<proto::ManagerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::ServiceMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if !matches!(request.extensions().get::<Caller>(), Some(Caller::Tls(Some(_)))) {
            return Err(Status::permission_denied("only a certified service opens a session"));
        }
        let mut messages = request.into_inner();
        let (send, receive) = mpsc::channel(16);
        let welcome = proto::Welcome {
            session_id: Uuid::now_v7().to_string(),
            heartbeat_ms: 1000,
            lease_ms: 4000,
            managers: vec![self.tls.clone()],
            mark: None,
        };
        let mut complete = proto::Assignments { results_in: 1, ..Default::default() };
        complete.set_type(proto::assignments::Type::Complete);
        let first = [Message::Welcome(welcome), Message::Assignments(complete), Message::Trust(self.trust())];
        let mut sayings = self.say.subscribe();
        tokio::spawn(async move {
            let mut next: Vec<Message> = first.into_iter().collect();
            loop {
                for message in next.drain(..) {
                    if send.send(Ok(proto::ManagerMessage { message: Some(message) })).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    Ok(Some(proto::ServiceMessage { message: Some(message) })) = messages.message() => {
                        next.push(match message {
                            proto::service_message::Message::Reports(reports) => {
                                Message::ReportsAck(proto::ReportsAck { sequence: reports.sequence })
                            }
                            _ => Message::HeartbeatAck(proto::HeartbeatAck {}),
                        });
                    }
                    Ok(saying) = sayings.recv() => next.push(saying),
                    else => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

#[derive(Clone, Copy)]
enum Caller {
    Plain,
    Tls(Option<Bearer>),
}

type TlsStream = Box<tokio_rustls::server::TlsStream<TcpStream>>;

struct Connection {
    stream: Either<TcpStream, TlsStream>,
    caller: Caller,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Waits until the condition holds; a test that waits in vain ends by the test runner's patience with a message.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(patience.await.is_ok(), "waited in vain: {what}");
}
