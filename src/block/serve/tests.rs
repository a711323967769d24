use super::super::fake::{Fake, until};
use super::*;
use crate::host::save_document;
use crate::rpc::dial_socket;
use proto::block_control_client::BlockControlClient;
use proto::manager_message::Message;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// A block service in this process, and its control socket.
struct Running {
    shutdown: Shutdown,
    ended: JoinHandle<Result<(), BlockError>>,
    client: BlockControlClient<Channel>,
}

impl Running {
    async fn start(dir: &Path) -> Self {
        let free = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let config = BlockConfig {
            config_dir: dir.to_owned(),
            listen: free,
            nbd_listen: free,
            nbd_engine: Default::default(),
            advertise: None,
            managers: Vec::new(),
            join: None,
            metrics: None,
            fault_file: None,
        };
        let shutdown = Shutdown::new();
        let (up, ready) = tokio::sync::oneshot::channel();
        let ended = tokio::spawn(run(config, Lineage::default(), shutdown.clone(), move || up.send(()).unwrap()));
        ready.await.unwrap();
        let channel = dial_socket(&dir.join("control.sock")).await.unwrap();
        Self { shutdown, ended, client: BlockControlClient::new(channel) }
    }

    async fn init(&mut self, fake: &Fake) -> Result<proto::InitBlockResponse, Fault> {
        let token = Some(fake.token().reveal().to_string());
        let request = proto::InitBlockRequest { manager: fake.tls.clone(), token, recover: false };
        Ok(self.client.init_block(request).await?.into_inner())
    }

    async fn status(&mut self) -> proto::GetBlockStatusResponse {
        self.client.get_block_status(proto::GetBlockStatusRequest {}).await.unwrap().into_inner()
    }

    async fn becomes(&mut self, state: &str) -> proto::GetBlockStatusResponse {
        let patience = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                let status = self.status().await;
                if status.state == state {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        patience.await.unwrap_or_else(|_| panic!("never {state}"))
    }

    async fn stop(self) {
        self.shutdown.request();
        self.ended.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_joins_by_a_token_comes_back_by_its_certificate_and_leaves_nothing_when_it_is_removed() {
    let keep = tempfile::tempdir().unwrap();
    let fake = Fake::start(Arc::new(SystemClock)).await;
    let mut block = Running::start(keep.path()).await;
    assert_eq!(block.status().await.certificate, None);
    let joined = block.init(&fake).await.unwrap();
    let status = block.status().await;
    assert_eq!((status.state.as_str(), status.service_id.as_ref()), ("connected", Some(&joined.service_id)));
    let certificate = status.certificate.unwrap();
    assert_eq!(certificate.root, fake.state().authority.ca().to_string());
    assert!(certificate.expires_at > fake.clock.wall().as_millis());
    assert_eq!(block.init(&fake).await.unwrap_err().kind, FaultKind::AlreadyExists);
    block.stop().await;

    let mut block = Running::start(keep.path()).await;
    let status = block.becomes("connected").await;
    assert_eq!((status.service_id.as_ref(), status.certificate), (Some(&joined.service_id), Some(certificate)));

    fake.say.send(Message::Removed(proto::Removed {})).unwrap();
    let status = block.becomes("uninitialised").await;
    assert_eq!(status.certificate, None);
    assert!(keep.path().join("tls.removed/key.pem").exists() && !keep.path().join("tls").exists());
    let again = block.init(&fake).await.unwrap();
    assert_ne!(again.service_id, joined.service_id);
    let keys: BTreeSet<_> = fake.state().members.values().copied().collect();
    assert_eq!(keys.len(), 2, "a new life has a new key");
    block.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_removed_while_it_was_away_learns_of_it_though_its_certificate_is_revoked() {
    let keep = tempfile::tempdir().unwrap();
    let fake = Fake::start(Arc::new(SystemClock)).await;
    let mut block = Running::start(keep.path()).await;
    let joined = block.init(&fake).await.unwrap();
    block.stop().await;
    let removed = BTreeSet::from([joined.service_id.parse().unwrap()]);
    fake.state().removed.clone_from(&removed);
    fake.keyring.revoke(removed);
    let mut block = Running::start(keep.path()).await;
    let status = block.becomes("uninitialised").await;
    assert!(status.message.unwrap().contains("was removed"));
    block.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_its_key_says_so_and_can_be_initialised_anew() {
    let keep = tempfile::tempdir().unwrap();
    let fake = Fake::start(Arc::new(SystemClock)).await;
    let mut block = Running::start(keep.path()).await;
    let joined = block.init(&fake).await.unwrap();
    block.stop().await;
    std::fs::remove_file(keep.path().join("tls/key.pem")).unwrap();
    let mut block = Running::start(keep.path()).await;
    let status = block.becomes("keyless").await;
    assert!(status.message.unwrap().contains("key.pem is missing"));
    // Half a token is no reason to leave the cluster.
    let request =
        proto::InitBlockRequest { manager: fake.tls.clone(), token: Some("SYMPHONY-1-".into()), recover: false };
    assert_eq!(block.client.init_block(request).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    assert_eq!(block.status().await.state, "keyless");
    assert_ne!(block.init(&fake).await.unwrap().service_id, joined.service_id);
    block.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_managers_are_of_another_cluster_says_so_and_opens_no_session() {
    let keep = tempfile::tempdir().unwrap();
    let (fake, other) = (Fake::start(Arc::new(SystemClock)).await, Fake::start(Arc::new(SystemClock)).await);
    let mut block = Running::start(keep.path()).await;
    block.init(&fake).await.unwrap();
    block.stop().await;
    let path = keep.path().join("identity.json");
    let mut identity: Identity = load_document(&path).unwrap().unwrap();
    identity.membership.as_mut().unwrap().managers = vec![other.tls.clone()];
    save_document(&path, &identity).unwrap();
    let mut block = Running::start(keep.path()).await;
    let mut words = String::new();
    while words.is_empty() {
        words = block.becomes("connecting").await.message.unwrap_or_default();
    }
    assert!(words.contains(&other.tls) && words.contains("another cluster"), "{words}");
    block.stop().await;
    until("nobody renewed there", || other.state().renewals.is_empty()).await;
}
