//! Peers that mean harm: they may waste their own time, never that of members.

use super::*;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A HEADERS frame that promises far more than will come (RFC 9113 section 6.2).
const HEADERS: &[u8] = b"\0\x10\0\x01\x04\0\0\0\x01";
/// A ClientHello that promises far more than will come (RFC 8446 section 4).
const HELLO: &[u8] = b"\x16\x03\x01\x20\0\x01\0\x1f\xfc\x03\x03";

/// The defaults' times, shortened to what a test can wait for.
fn hasty() -> Limits {
    let short = Duration::from_millis(300);
    Limits { first_byte: short, handshake: short, first_request: short, ..Limits::default() }
}

/// Sends `opening` at once and then a byte now and then, for ever; returns when the server hangs up.
async fn drip(stream: impl AsyncRead + AsyncWrite, opening: &[u8]) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let talk = async {
        let mut next = opening;
        while writer.write_all(next).await.is_ok() && writer.flush().await.is_ok() {
            next = b"\0";
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let listen = async {
        let mut bytes = [0; 4096];
        while reader.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! { () = talk => {}, () = listen => {} }
}

async fn raw(host: &Host) -> TcpStream {
    TcpStream::connect(host.address).await.unwrap()
}

/// A TLS connection without a certificate, past its handshake.
async fn secured(host: &Host, cluster: &Cluster) -> tokio_rustls::client::TlsStream<TcpStream> {
    let Transport::Tls(config) = anonymous(cluster) else { panic!("TLS was asked for") };
    let name = ServerName::try_from("nowhere.invalid").unwrap();
    TlsConnector::from(config).connect(name, raw(host).await).await.unwrap()
}

#[tokio::test]
async fn thousands_of_half_open_connections_leave_room_for_members() {
    crate::host::raise_open_files().unwrap();
    let cluster = Cluster::new();
    // Their time never ends, so that only their number can.
    let limits = Limits { first_byte: DAY, handshake: DAY, ..Limits::default() };
    let host = Host::serve(cluster.keyring(Role::Manager), limits).await;
    let member = host.dial_as(&cluster.keyring(Role::Block)).await.unwrap();
    let mut silent = Vec::new();
    for number in 0..3000 {
        let mut stream = raw(&host).await;
        // Some say nothing, some begin a handshake, some begin to speak HTTP/2.
        let opening: &[u8] = [&b""[..], HELLO, &PREFACE[..5]][number % 3];
        stream.write_all(opening).await.unwrap();
        silent.push(stream);
    }
    is_well(member).await.unwrap();
    is_well(host.dial_as(&cluster.keyring(Role::Block)).await.unwrap()).await.unwrap();
    is_well(host.dial(&Transport::Plain).await.unwrap()).await.unwrap();
    assert_eq!(join(host.dial(&anonymous(&cluster)).await.unwrap()).await.unwrap(), "anonymous");
    // They are bounded: the first one had to go. Whether it learns by an end or a reset is the kernel's choice.
    let read = silent[0].read(&mut [0]).await;
    assert!(read.as_ref().map_or(true, |count| *count == 0), "{read:?}");
}

#[tokio::test]
async fn a_flood_of_anonymous_connections_leaves_room_for_members_and_joiners() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), Limits { anonymous: 8, ..Limits::default() }).await;
    let mut crowd = Vec::new();
    for _ in 0..64 {
        crowd.push(secured(&host, &cluster).await);
    }
    is_well(host.dial_as(&cluster.keyring(Role::Block)).await.unwrap()).await.unwrap();
    assert_eq!(join(host.dial(&anonymous(&cluster)).await.unwrap()).await.unwrap(), "anonymous");
    drip(crowd.remove(0), b"").await;
}

#[tokio::test]
async fn a_flood_of_refused_peers_leaves_room_for_members_and_is_still_told_why() {
    let cluster = Cluster::new();
    let limits = Limits { refused: 8, ..Limits::default() };
    let host = Host::admitting(strangers(), cluster.keyring(Role::Manager), limits).await;
    let mut crowd = Vec::new();
    for _ in 0..64 {
        crowd.push(host.dial(&Transport::Plain).await.unwrap());
    }
    is_well(host.dial_as(&cluster.keyring(Role::Block)).await.unwrap()).await.unwrap();
    let refused = is_well(host.dial(&Transport::Plain).await.unwrap()).await.unwrap_err();
    assert_eq!(refused.message(), "not from here");
}

#[tokio::test]
async fn one_member_with_too_many_connections_crowds_out_itself_only() {
    let cluster = Cluster::new();
    let limits = Limits { admitted: 8, of_one_bearer: 4, ..Limits::default() };
    let host = Host::serve(cluster.keyring(Role::Manager), limits).await;
    let honest = host.dial_as(&cluster.keyring(Role::Block)).await.unwrap();
    let greedy = cluster.keyring(Role::Data);
    let mut crowd = Vec::new();
    for _ in 0..32 {
        crowd.push(host.dial_as(&greedy).await.unwrap());
    }
    is_well(honest).await.unwrap();
    is_well(crowd.pop().unwrap()).await.unwrap();
    assert!(is_well(crowd.remove(0)).await.is_err(), "its oldest one had to go");
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_hung_up_on() {
    let host = Host::serve(Cluster::new().keyring(Role::Manager), hasty()).await;
    let mut silent = raw(&host).await;
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn slow_loris_in_the_tls_hello_is_hung_up_on() {
    let host = Host::serve(Cluster::new().keyring(Role::Manager), hasty()).await;
    drip(raw(&host).await, HELLO).await;
    is_well(host.dial(&Transport::Plain).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn slow_loris_in_the_http2_preface_is_hung_up_on_plain_and_in_tls() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), hasty()).await;
    // A byte that does not belong there would end it sooner: only the pace is wrong here.
    for length in [1, 10, PREFACE.len() - 1] {
        drip_slowly(raw(&host).await, &PREFACE[..length]).await;
        drip_slowly(secured(&host, &cluster).await, &PREFACE[..length]).await;
    }
}

/// Sends the opening and waits, as somebody would who sends the next byte much later.
async fn drip_slowly(mut stream: impl AsyncRead + AsyncWrite + Unpin, opening: &[u8]) {
    stream.write_all(opening).await.unwrap();
    stream.flush().await.unwrap();
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}

#[tokio::test]
async fn slow_loris_in_the_headers_is_hung_up_on_plain_and_in_tls() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), hasty()).await;
    let opening = [PREFACE, HEADERS].concat();
    drip(raw(&host).await, &opening).await;
    drip(secured(&host, &cluster).await, &opening).await;
}

#[tokio::test]
async fn a_peer_that_never_asks_anything_is_hung_up_on() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), hasty()).await;
    drip_slowly(secured(&host, &cluster).await, PREFACE).await;
}

#[tokio::test]
async fn an_anonymous_connection_has_its_time_and_no_more() {
    let cluster = Cluster::new();
    let limits = Limits { guest_age: Duration::from_millis(300), ..Limits::default() };
    let host = Host::serve(cluster.keyring(Role::Manager), limits).await;
    let channel = host.dial(&anonymous(&cluster)).await.unwrap();
    let mut stream = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert!(stream.message().await.is_err());
}

#[tokio::test]
async fn an_anonymous_connection_has_few_calls_at_once() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), Limits::default()).await;
    let client = proto::enrollment_client::EnrollmentClient::new(host.dial(&anonymous(&cluster)).await.unwrap());
    let call = |_| {
        let mut client = client.clone();
        async move { client.renew(proto::RenewRequest::default()).await }
    };
    let mut calls: FuturesUnordered<_> = (0..50).map(call).collect();
    for _ in 0..46 {
        assert_eq!(code(calls.next().await.unwrap()), Code::ResourceExhausted);
    }
}

#[tokio::test]
async fn an_oversized_message_is_refused_unread() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), Limits::default()).await;
    let channel = host.dial(&anonymous(&cluster)).await.unwrap();
    let mut client = proto::enrollment_client::EnrollmentClient::new(channel.clone());
    let request = proto::JoinRequest { host_name: "x".repeat(8 << 20), ..Default::default() };
    assert_eq!(code(client.join(request).await), Code::OutOfRange);
    assert_eq!(join(channel).await.unwrap(), "anonymous");
}

#[tokio::test]
async fn oversized_headers_are_refused() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), Limits::default()).await;
    let channel = host.dial(&anonymous(&cluster)).await.unwrap();
    let mut request = Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("x-much", "y".repeat(100_000).parse().unwrap());
    assert!(HealthClient::new(channel).check(request).await.is_err());
    is_well(host.dial(&anonymous(&cluster)).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn tls_without_a_certificate_gives_no_access_to_what_is_for_members() {
    let cluster = Cluster::new();
    let host = Host::serve(cluster.keyring(Role::Manager), Limits::default()).await;
    let channel = host.dial(&anonymous(&cluster)).await.unwrap();
    let mut control = proto::control_client::ControlClient::new(channel);
    let refused = control.list(proto::ListRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("shows no certificate"), "{refused}");
}
