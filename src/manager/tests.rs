//! A manager on a real store, asked as the network would ask it.

use super::enrollment::{join, renew};
use super::init::Manager;
use super::member::Member;
use super::{StoreConfig, access};
use crate::host::ConfigDir;
use crate::model::{Author, ClusterSpec, Service, ServiceId, ServiceType};
use crate::pki::{Bearer, JoinToken, Keyring, Role, SigningKey};
use crate::rpc::{Caller, proto};
use crate::runtime::{Shutdown, SystemClock};
use std::sync::Arc;
use tonic::Code;

/// A manager that made its cluster, and the directory that it lives in.
async fn manager(shutdown: &Shutdown, dir: &tempfile::TempDir) -> (Arc<Manager>, Arc<Member>) {
    let dir = ConfigDir::open(&dir.path().join("manager"), ServiceType::Manager).unwrap();
    let store = StoreConfig::Embedded.connect(&dir).await.unwrap();
    let (clock, address) = (Arc::new(SystemClock), "127.0.0.1:1".to_owned());
    let keyring = Keyring::empty(clock.clone());
    let manager = Manager::new(dir, address, StoreConfig::Embedded, Some(store), keyring, clock, shutdown.clone());
    manager.clone().bring_up(None).await;
    let (member, created) =
        manager.init("cluster".parse().unwrap(), ClusterSpec::default(), false, somebody("near")).await.unwrap();
    assert!(created);
    (manager, member)
}

async fn until(member: &Member, what: impl Fn(&super::view::View) -> bool) {
    let mut changes = member.view.changes();
    while !what(&member.view.read()) {
        changes.changed().await.unwrap();
    }
}

fn somebody(origin: &str) -> Author {
    Author { who: "somebody".into(), origin: origin.into() }
}

fn near() -> Caller {
    Caller::Local { who: "root".into() }
}

fn application(service: ServiceId, key: &SigningKey, token: Option<&JoinToken>) -> proto::JoinRequest {
    proto::JoinRequest {
        service_id: service.to_string(),
        r#type: proto::ServiceType::Block.into(),
        host_name: "host".into(),
        version: "0".into(),
        token: token.map(|token| proto::TokenProof {
            id: token.id.to_string(),
            secret: token.secret.reveal().iter().map(|byte| format!("{byte:02x}")).collect(),
        }),
        certificate_request: key.request().unwrap(),
        ..Default::default()
    }
}

async fn token(member: &Member, uses: u32) -> JoinToken {
    let request = proto::CreateTokenRequest { r#type: proto::ServiceType::Block.into(), ttl_ms: 3_600_000, uses };
    let made = access::create_token(member, somebody("near"), request).await.unwrap();
    let json = format!("{:?}", made.token);
    assert!(!json.contains("secret"), "{json}");
    made.text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_has_an_authority_and_its_manager_a_certificate_on_record() {
    let (scratch, shutdown) = (tempfile::tempdir().unwrap(), Shutdown::new());
    let (manager, member) = manager(&shutdown, &scratch).await;
    let bearer = Bearer::service(member.cluster.meta.id, Role::Manager, member.service);
    assert_eq!(manager.keyring.bearer(), Some(bearer));
    until(&member, |view| view.get::<Service>(member.service).is_some_and(|own| own.status.certificate.is_some()))
        .await;
    shutdown.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_joins_with_a_token_once_and_a_removed_one_is_refused_everywhere() {
    let (scratch, shutdown) = (tempfile::tempdir().unwrap(), Shutdown::new());
    let (manager, member) = manager(&shutdown, &scratch).await;
    let (service, key) = (ServiceId::generate(), SigningKey::generate().unwrap());
    let denied =
        join(&member, somebody("far"), &Caller::Anonymous, application(service, &key, None)).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("manager token create"), "{}", denied.message());

    let token = token(&member, 1).await;
    let (other, others_key) = (ServiceId::generate(), SigningKey::generate().unwrap());
    let (first, second) = tokio::join!(
        join(&member, somebody("far"), &Caller::Anonymous, application(service, &key, Some(&token))),
        join(&member, somebody("far"), &Caller::Anonymous, application(other, &others_key, Some(&token))),
    );
    assert_eq!(u8::from(first.is_ok()) + u8::from(second.is_ok()), 1, "one use is one service");
    let (service, key) = if first.is_ok() { (service, key) } else { (other, others_key) };
    let again =
        join(&member, somebody("far"), &Caller::Anonymous, application(service, &key, Some(&token))).await.unwrap();
    assert!(again.certificate.is_some_and(|certificate| certificate.chain.contains("BEGIN CERTIFICATE")));

    let bearer = Bearer::service(member.cluster.meta.id, Role::Block, service);
    assert!(member.dismisses(&Caller::Certified(bearer)).is_none());
    let plan = move |draft: &mut super::draft::Draft<'_>| {
        super::plan::remove_service(draft, &somebody("near"), service, false)
    };
    member.writer.write(plan).await.unwrap();
    assert!(member.dismisses(&Caller::Certified(bearer)).is_some());
    let request = || proto::RenewRequest {
        service_id: service.to_string(),
        certificate_request: key.request().unwrap(),
        addresses: None,
    };
    for caller in [Caller::Anonymous, near(), Caller::Certified(bearer)] {
        let answer = renew(&member, &caller, "far", request()).await.unwrap();
        assert_eq!((answer.removed, answer.certificate), (true, None), "{caller}");
    }
    // The keyring follows the view, and with it every listener.
    while manager.keyring.refuses(&bearer).is_none() {
        tokio::task::yield_now().await;
    }
    shutdown.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_joined_only_by_callers_who_may() {
    let (scratch, shutdown) = (tempfile::tempdir().unwrap(), Shutdown::new());
    let (_manager, member) = manager(&shutdown, &scratch).await;
    let (service, key) = (ServiceId::generate(), SigningKey::generate().unwrap());
    let bearer = |role| Caller::Certified(Bearer { cluster: member.cluster.meta.id, role, id: service.as_uuid() });
    for caller in [bearer(Role::Block), bearer(Role::Admin), bearer(Role::Manager), Caller::Refused("no".into())] {
        let refused = join(&member, somebody("far"), &caller, application(service, &key, None)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{caller}");
    }
    let mut forged = application(service, &key, None);
    forged.certificate_request = forged.certificate_request.replace("REQUEST", "NONSENSE");
    assert_eq!(join(&member, somebody("near"), &near(), forged).await.unwrap_err().code(), Code::InvalidArgument);
    join(&member, somebody("near"), &near(), application(service, &key, None)).await.unwrap();
    let request = proto::RenewRequest {
        service_id: service.to_string(),
        certificate_request: key.request().unwrap(),
        addresses: None,
    };
    let refused = renew(&member, &bearer(Role::Admin), "far", request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "an operator's certificate is not a service's");
    shutdown.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_exchanges_the_root_as_soon_as_everybody_has_moved() {
    let (scratch, shutdown) = (tempfile::tempdir().unwrap(), Shutdown::new());
    let (_manager, member) = manager(&shutdown, &scratch).await;
    let (service, key) = (ServiceId::generate(), SigningKey::generate().unwrap());
    join(&member, somebody("near"), &near(), application(service, &key, None)).await.unwrap();
    let old = member.view.read().trust().unwrap();
    access::rotate_authority(&member, somebody("near"), proto::RotateAuthorityRequest { finish: false }).await.unwrap();
    until(&member, |view| view.trust().is_some_and(|trust| trust.signing != old.signing)).await;
    let shown = access::get_authority(&member).unwrap();
    assert!(shown.state == "reissuing" && shown.roots.len() == 2, "{shown:?}");
    assert!(shown.waiting_for.iter().any(|who| who.contains(&service.to_string())), "{shown:?}");
    let request = proto::RenewRequest {
        service_id: service.to_string(),
        certificate_request: key.request().unwrap(),
        addresses: None,
    };
    renew(&member, &Caller::Anonymous, "far", request).await.unwrap();
    until(&member, |view| view.trust().is_some_and(|trust| trust.roots.len() == 1)).await;
    let done = access::get_authority(&member).unwrap();
    assert_eq!((done.state.as_str(), done.moved, done.total), ("stable", 2, 2));
    shutdown.finish().await;
}
