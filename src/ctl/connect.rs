//! Whom to ask, and how an answer becomes a model type or an error a person can act upon.

use super::bundle::Bundle;
use super::contexts::{self, Contexts, Target, Wishes};
use super::failure::Failure;
use super::output::Format;
use crate::host::directory::FileError;
use crate::model::{Kind, Object, Service, Timestamp};
use crate::pki::{Keyring, Role};
use crate::rpc::{
    DialError, Fault, FaultKind, MANAGER_PORT, MAX_MESSAGE, STALE_SINCE, Transport, dial_address, dial_socket, proto,
    with_default_port,
};
use crate::runtime::{Clock, SystemClock};
use anyhow::{Context, Result};
use clap::Args;
use proto::block_control_client::BlockControlClient;
use proto::control_client::ControlClient;
use proto::devices_client::DevicesClient;
use proto::figures_client::FiguresClient;
use proto::images_client::ImagesClient;
use proto::recovery_client::RecoveryClient;
use proto::stores_client::StoresClient;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The control socket of a manager or block service [default: that of `symphony dev`]
    #[arg(long, global = true, env = "SYMPHONY_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// A manager's HOST[:PORT]; wins over a socket, and over the managers of a bundle or context
    #[arg(long = "manager", id = "manager_address", global = true, env = "SYMPHONY_MANAGER", value_name = "HOST:PORT")]
    pub manager: Option<String>,
    /// A client's certificate and key, for managers on other hosts: what `manager client create` wrote
    #[arg(long, id = "client_bundle", global = true, env = "SYMPHONY_BUNDLE", value_name = "DIR|FILE")]
    pub bundle: Option<PathBuf>,
    /// Ask the cluster of this context, not of the one in use; "" for none
    #[arg(long, id = "context_name", global = true, env = "SYMPHONY_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Where contexts are kept [default: ~/.config/symphony/config.json]
    #[arg(long, id = "contexts_file", global = true, env = "SYMPHONY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl ConnectArgs {
    pub fn config_path(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(contexts::default_path)
    }

    fn target(&self) -> Result<Target> {
        let wishes = Wishes {
            socket: self.socket.as_deref(),
            manager: self.manager.as_deref(),
            bundle: self.bundle.as_deref(),
            context: self.context.as_deref(),
        };
        Ok(contexts::choose(wishes, &self.contexts()?)?)
    }

    /// The contexts, as far as they have a say. A default file in a home that its user may not enter, as after setpriv(1)
    /// or sudo(8), is somebody else's.
    fn contexts(&self) -> Result<Contexts> {
        if self.context.is_none() && (self.socket.is_some() || self.bundle.is_some()) {
            return Ok(Contexts::default());
        }
        let denied = |error: &anyhow::Error| {
            let cause = error.downcast_ref::<FileError>();
            cause.is_some_and(|it| it.action == "open" && it.kind() == std::io::ErrorKind::PermissionDenied)
        };
        match Contexts::read(&self.config_path()) {
            Err(error) if self.config.is_none() && self.context.is_none() && denied(&error) => {
                tracing::warn!("{error:#}: going on without contexts");
                Ok(Contexts::default())
            }
            other => other,
        }
    }
}

/// Where roles keep their state unless told otherwise: /var/lib/symphony for root, else below the home directory.
pub fn default_config_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/symphony".into();
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    state.or_else(home).unwrap_or_else(|| ".".into()).join("symphony")
}

/// What holds for the whole command.
pub struct Session {
    pub connect: ConnectArgs,
    pub format: Format,
    pub wait: bool,
    pub timeout: Duration,
}

impl Session {
    /// A client of a manager.
    pub async fn manager(&self) -> Result<Manager> {
        let client = ControlClient::new(self.manager_channel().await?);
        Ok(Manager { client: client.max_decoding_message_size(MAX_MESSAGE) })
    }

    /// What a manager does when hosts die.
    pub async fn recovery(&self) -> Result<RecoveryClient<Channel>> {
        Ok(RecoveryClient::new(self.manager_channel().await?).max_decoding_message_size(MAX_MESSAGE))
    }

    /// What this operator shows on the data path; none where only this host is asked.
    ///
    /// # Errors
    /// If the bundle cannot be read.
    pub fn credentials(&self) -> Result<Option<Keyring>> {
        match self.connect.target()? {
            Target::Bundle { bundle, .. } => {
                let credentials = Bundle::read(&bundle)?.credentials;
                Ok(Some(Keyring::new(credentials, Arc::new(SystemClock))?))
            }
            Target::Socket(_) | Target::DefaultSocket | Target::Plain(_) => Ok(None),
        }
    }

    /// A manager's, for the state as a whole.
    pub async fn stores(&self) -> Result<StoresClient<Channel>> {
        Ok(StoresClient::new(self.manager_channel().await?).max_decoding_message_size(MAX_MESSAGE))
    }

    async fn manager_channel(&self) -> Result<Channel> {
        match self.connect.target()? {
            Target::Socket(socket) => Ok(dial_socket(&socket).await?),
            Target::DefaultSocket => Ok(dial_socket(&default_socket("manager")).await?),
            Target::Plain(manager) => Ok(dial_plain(&manager).await?),
            Target::Bundle { bundle, managers } => dial_bundle(&bundle, managers).await,
        }
    }

    /// The figures of the service whose control socket is asked; none where a manager is to be asked over the network.
    pub async fn own_figures(&self) -> Result<Option<FiguresClient<Channel>>> {
        let channel = self.socket_channel().await?;
        Ok(channel.map(|channel| FiguresClient::new(channel).max_decoding_message_size(MAX_MESSAGE)))
    }

    /// To whatever service has the control socket; none where a manager is to be asked over the network.
    async fn socket_channel(&self) -> Result<Option<Channel>> {
        match self.connect.target()? {
            Target::Socket(_) | Target::DefaultSocket => Ok(Some(self.manager_channel().await?)),
            Target::Plain(_) | Target::Bundle { .. } => Ok(None),
        }
    }

    /// The figures of a block service, asked at its own endpoint: with the bundle's certificate, or in plain text on
    /// this host.
    pub async fn figures(&self, service: &Service) -> Result<FiguresClient<Channel>> {
        Ok(FiguresClient::new(self.own_channel(service).await?).max_decoding_message_size(MAX_MESSAGE))
    }

    /// What a block service hands out of the images that it keeps.
    pub async fn supply(&self, service: &Service) -> Result<ImagesClient<Channel>> {
        Ok(ImagesClient::new(self.own_channel(service).await?).max_decoding_message_size(MAX_MESSAGE))
    }

    async fn own_channel(&self, service: &Service) -> Result<Channel> {
        let Some(address) = &service.status.addresses.rpc else {
            return Err(Failure::Unfulfilled(format!("block service {} listens nowhere", service.meta.id)).into());
        };
        let transport = match self.credentials()? {
            Some(keyring) => Transport::of_member(&keyring, &[Role::Block])?,
            None => Transport::Plain,
        };
        Ok(dial_address(address, &transport).await?)
    }

    /// The devices of the service whose control socket is asked; none where a manager is to be asked over the network.
    pub async fn own_devices(&self) -> Result<Option<DevicesClient<Channel>>> {
        let channel = self.socket_channel().await?;
        Ok(channel.map(|channel| DevicesClient::new(channel).max_decoding_message_size(MAX_MESSAGE)))
    }

    /// The devices of a block service's host, asked like its figures.
    pub async fn devices(&self, service: &Service) -> Result<DevicesClient<Channel>> {
        Ok(DevicesClient::new(self.own_channel(service).await?).max_decoding_message_size(MAX_MESSAGE))
    }

    /// A client of a block service's own socket. Contexts are about managers.
    pub async fn block(&self) -> Result<BlockControlClient<Channel>> {
        // Never over the network: what is asked here may hold a join token.
        let channel = match &self.connect.socket {
            Some(socket) => dial_socket(socket).await?,
            None => dial_socket(&default_socket("block")).await?,
        };
        Ok(BlockControlClient::new(channel))
    }
}

fn default_socket(role: &str) -> PathBuf {
    default_config_dir().join(role).join("control.sock")
}

async fn dial_plain(address: &str) -> Result<Channel, DialError> {
    dial_address(&with_default_port(address, MANAGER_PORT), &Transport::Plain).await
}

/// Connects to the first of the bundle's managers, or of `others` if there are any, that answers and is accepted.
async fn dial_bundle(path: &Path, others: Vec<String>) -> Result<Channel> {
    let bundle = Bundle::read(path)?;
    let credentials = &bundle.credentials;
    if credentials.expired(SystemClock.wall()) {
        let (name, path, when) = (&bundle.name, path.display(), credentials.expires_at());
        let text = format!(
            "the certificate in the bundle {path} expired at {when}: have it renewed on a manager's host \
             (`symphony ctl manager client create {name} --renew`)"
        );
        return Err(Failure::Unfulfilled(text).into());
    }
    let keyring = Keyring::new(credentials.clone(), Arc::new(SystemClock))?;
    let transport = Transport::of_member(&keyring, &[Role::Manager])?;
    let managers = if others.is_empty() { bundle.managers } else { others };
    let mut failures = Vec::new();
    for manager in &managers {
        match dial_address(&with_default_port(manager, MANAGER_PORT), &transport).await {
            Ok(channel) => return Ok(channel),
            Err(error) => failures.push(error),
        }
    }
    Err(all_failed(path, failures))
}

/// Of several failures, one that only a person can mend says most.
fn all_failed(bundle: &Path, mut failures: Vec<DialError>) -> anyhow::Error {
    let telling = failures.iter().position(DialError::is_refusal);
    match (telling, failures.len()) {
        (_, 0) => {
            let text = format!("the bundle {} names no manager: name one with --manager", bundle.display());
            Failure::Usage(text).into()
        }
        (Some(refusal), _) => failures.swap_remove(refusal).into(),
        (None, 1) => failures.swap_remove(0).into(),
        (None, _) => {
            let each = failures.into_iter().map(|error| format!("{:#}", anyhow::Error::from(error)));
            Failure::Unreachable(each.collect::<Vec<_>>().join("; ")).into()
        }
    }
}

/// A manager, as commands use it.
#[derive(Clone)]
pub struct Manager {
    pub client: ControlClient<Channel>,
}

/// The answer, or the fault in words that fit the socket that was asked.
pub fn answer<T>(result: Result<Response<T>, Status>, wanted: &str) -> Result<T> {
    result.inspect(note_staleness).map(Response::into_inner).map_err(|status| {
        let fault = Fault::from(status);
        if fault.kind != FaultKind::Unsupported {
            return fault.into();
        }
        let text = format!("this socket does not belong to a {wanted}: name a {wanted}'s with --socket");
        Fault::new(FaultKind::Unsupported, text).into()
    })
}

/// Says once, beside the result, that it may be old.
fn note_staleness<T>(response: &Response<T>) {
    static SAID: Once = Once::new();
    let since = response.metadata().get(STALE_SINCE).and_then(|millis| millis.to_str().ok()?.parse().ok());
    if let Some(since) = since.map(Timestamp::from_millis) {
        let note =
            || eprintln!("note: the manager has not reached its store since {since}: this is how things stood then");
        SAID.call_once(note);
    }
}

/// What a manager says, once more judged.
pub fn object(message: proto::Object) -> Result<Object> {
    Object::try_from(message).context("reading the manager's answer")
}

impl Manager {
    pub async fn get(&mut self, kind: Kind, reference: &str) -> Result<Object> {
        let request = proto::GetRequest { kind: proto::Kind::from(kind).into(), reference: reference.into() };
        object(answer(self.client.get(request).await, "manager")?)
    }

    /// All objects of a kind.
    pub async fn list(&mut self, kind: Kind) -> Result<Vec<Object>> {
        self.pages(proto::ListRequest { kind: proto::Kind::from(kind).into(), ..Default::default() }).await
    }

    /// All objects that a request asks for, page by page.
    pub async fn pages(&mut self, mut request: proto::ListRequest) -> Result<Vec<Object>> {
        let mut objects = Vec::new();
        loop {
            let page = answer(self.client.list(request.clone()).await, "manager")?;
            for message in page.objects {
                objects.push(object(message)?);
            }
            if page.next_page_token.is_empty() {
                return Ok(objects);
            }
            request.page_token = page.next_page_token;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClientId, ClientRole, ClusterId};
    use crate::pki::{Authority, Bearer, Credentials, SigningKey};
    use crate::rpc::{Listener, local_peers, server};

    const HOUR: Duration = Duration::from_secs(3600);

    fn credentials(authority: &Authority, role: Role, id: [u8; 16]) -> Credentials {
        let bearer = Bearer { cluster: authority.cluster(), role, id: uuid::Uuid::from_bytes(id) };
        let key = SigningKey::generate().unwrap();
        let issued = authority.issue(&key.request().unwrap(), &bearer, &[], SystemClock.wall(), HOUR).unwrap();
        Credentials::new(key, &issued.chain_pem, authority.trust()).unwrap()
    }

    /// A manager of the authority's cluster, as far as its port shows; its address.
    async fn manager(authority: &Authority) -> String {
        let keyring = Keyring::new(credentials(authority, Role::Manager, [1; 16]), Arc::new(SystemClock)).unwrap();
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), local_peers(), keyring).await.unwrap();
        let address = listener.address().unwrap().to_string();
        let routes = tonic::service::Routes::default();
        tokio::spawn(
            async move { server().add_routes(routes).serve_with_incoming(listener.incoming()).await.unwrap() },
        );
        address
    }

    fn authority() -> Authority {
        Authority::create(ClusterId::generate(), &"prod".parse().unwrap(), SystemClock.wall()).unwrap()
    }

    #[tokio::test]
    async fn the_first_manager_of_a_bundle_that_answers_is_asked_and_a_foreign_one_is_named() {
        let (ours, theirs) = (authority(), authority());
        let (good, foreign) = (manager(&ours).await, manager(&theirs).await);
        let client = ClientId::generate();
        let bundle = |managers: &[&str]| Bundle {
            cluster: ours.cluster(),
            cluster_name: "prod".parse().unwrap(),
            client,
            name: "ops".parse().unwrap(),
            role: ClientRole::Admin,
            managers: managers.iter().map(ToString::to_string).collect(),
            credentials: credentials(&ours, Role::Admin, client.to_bytes()),
        };
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("prod");
        // Nobody listens on port 1.
        bundle(&["127.0.0.1:1", &good]).write_directory(&path).unwrap();
        dial_bundle(&path, Vec::new()).await.unwrap();
        bundle(&["127.0.0.1:1", &foreign]).write_directory(&path).unwrap();
        let error = dial_bundle(&path, Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains(&foreign) && error.to_string().contains("another cluster"), "{error:#}");
        assert_eq!(crate::ctl::exit_code(&error), 4);
        dial_bundle(&path, vec![good]).await.unwrap();
        bundle(&[]).write_directory(&path).unwrap();
        assert!(dial_bundle(&path, Vec::new()).await.unwrap_err().to_string().contains("--manager"));
    }
}
