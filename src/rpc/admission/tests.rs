use super::*;
use crate::rpc::tests::{Cluster, Host, anonymous, strangers};
use crate::rpc::{Listener, Transport, local_peers, server};
use std::collections::BTreeSet;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, service::Routes};
use tonic_prost::ProstCodec;

/// Every method of every service, as the protocol files declare them.
const DECLARED: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
const HEALTH: [&str; 2] = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];

/// The rules in words, beside the table: what looks, what changes, what members do.
fn expected(path: &str, kind: Kind) -> bool {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap();
    let looks = ["GetManagerStatus", "Get", "List", "Watch", "GetAuthority", "Events", "Check"].contains(&method);
    match (service, method) {
        ("grpc.health.v1.Health", _) => true,
        ("symphony.v1.Control", _) if looks => matches!(kind, LOCAL | ADMIN | VIEWER | MANAGER),
        ("symphony.v1.Control", _) => matches!(kind, LOCAL | ADMIN),
        ("symphony.v1.Recovery", "ListOrphans" | "GetLoss" | "GetDrain" | "GetRecovery") => {
            matches!(kind, LOCAL | ADMIN | VIEWER | MANAGER)
        }
        ("symphony.v1.Recovery", _) => matches!(kind, LOCAL | ADMIN),
        ("symphony.v1.BlockControl" | "symphony.v1.Stores", _) => kind == LOCAL,
        ("symphony.v1.Figures" | "symphony.v1.Devices", _) => matches!(kind, LOCAL | ADMIN | VIEWER),
        ("symphony.v1.Images", _) => matches!(kind, LOCAL | BLOCK | ADMIN),
        ("symphony.v1.Dispatcher", "Session") => matches!(kind, LOCAL | BLOCK),
        ("symphony.v1.Enrollment", "Join") => matches!(kind, LOCAL | ANONYMOUS),
        ("symphony.v1.Enrollment", "Renew") => matches!(kind, LOCAL | ANONYMOUS | BLOCK | MANAGER),
        _ => false,
    }
}

#[test]
fn every_method_has_a_row_and_every_row_a_method() {
    let rows: Vec<&str> = TABLE.iter().map(|(path, _)| *path).collect();
    let known: BTreeSet<&str> = rows.iter().copied().collect();
    assert_eq!(rows.len(), known.len(), "a method has two rows");
    assert_eq!(known, DECLARED.iter().copied().chain(HEALTH).collect());
}

/// What came of a call to a server that has the table and no services: who passes finds nothing behind it.
async fn call(channel: &Channel, path: &'static str) -> Status {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec = ProstCodec::<(), ()>::default();
    client.unary(tonic::Request::new(()), path.try_into().unwrap(), codec).await.unwrap_err()
}

fn passed(status: &Status) -> bool {
    (status.code(), status.message()) == (Code::Unimplemented, "")
}

async fn behind_the_table(cluster: &Cluster, admission: crate::rpc::Admission) -> Host {
    let keyring = cluster.keyring(Role::Manager);
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), admission, keyring).await.unwrap();
    let address = listener.address().unwrap();
    tokio::spawn(async move {
        server().add_routes(Routes::default()).serve_with_incoming(listener.incoming()).await.unwrap();
    });
    Host { address }
}

#[tokio::test]
async fn every_method_admits_the_roles_it_names_and_no_others() {
    let cluster = Cluster::new();
    let host = behind_the_table(&cluster, local_peers()).await;
    let mut callers = vec![
        (LOCAL, host.dial(&Transport::Plain).await.unwrap()),
        (ANONYMOUS, host.dial(&anonymous(&cluster)).await.unwrap()),
    ];
    for role in Role::ALL {
        callers.push((Kind::Bearer(role), host.dial_as(&cluster.keyring(role)).await.unwrap()));
    }
    for path in DECLARED.iter().copied().chain(HEALTH) {
        for (kind, channel) in &callers {
            let status = call(channel, path).await;
            assert_eq!(passed(&status), expected(path, *kind), "{path} as {kind}: {status}");
            assert!(passed(&status) || status.code() == Code::PermissionDenied, "{path} as {kind}: {status}");
        }
    }
}

#[tokio::test]
async fn a_refused_peer_may_call_nothing_and_is_told_why() {
    let cluster = Cluster::new();
    let host = behind_the_table(&cluster, strangers()).await;
    let channel = host.dial(&Transport::Plain).await.unwrap();
    for path in DECLARED.iter().copied().chain(HEALTH).chain(["/symphony.v1.Control/Unheard"]) {
        let status = call(&channel, path).await;
        let (reason, advice) = status.message().split_at("not from here".len());
        assert_eq!((status.code(), reason), (Code::PermissionDenied, "not from here"), "{path}");
        let operator = ["/symphony.v1.Control/", "/symphony.v1.Recovery/"].iter().any(|face| path.starts_with(face));
        assert_eq!(advice.contains("client create") && advice.contains("--bundle"), operator, "{path}: {advice}");
    }
}

#[tokio::test]
async fn a_method_without_a_row_is_refused_to_everybody() {
    let cluster = Cluster::new();
    let host = behind_the_table(&cluster, local_peers()).await;
    let admin = host.dial_as(&cluster.keyring(Role::Admin)).await.unwrap();
    let local = host.dial(&Transport::Plain).await.unwrap();
    for path in ["/symphony.v1.Control/Unheard", "/symphony.v1.control/Get", "/symphony.v1.Control/Get/", "/"] {
        for channel in [&admin, &local] {
            let status = call(channel, path).await;
            assert!(!passed(&status) && status.message().contains("knows no such call"), "{path}: {status}");
        }
    }
}

#[test]
fn a_refusal_names_the_call_whom_it_is_for_and_who_asked() {
    let bearer = Cluster::new().bearer(Role::Viewer);
    let status = judge(&Caller::Certified(bearer), "/symphony.v1.Control/CreateVolume").unwrap_err();
    let expected =
        format!("CreateVolume is for local peers, admin clients; this certificate is that of viewer {}", bearer.id);
    assert_eq!(status.message(), expected);
}
