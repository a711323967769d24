//! Clients with certificates over real sockets, and those who try without.

use super::cluster::Cluster;
use super::*;
use crate::io::{Fault, Gate, Operation};
use crate::model::ClusterId;
use crate::nbd::wire::*;
use crate::nbd::{NbdErrno, tls};
use crate::pki::{Keyring, Role};
use crate::runtime::{Clock, ManualClock, SystemClock};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Duration;
use uuid::Uuid;

const ALICE: Uuid = Uuid::from_u128(1);

/// A server to whom everybody is a stranger, with "disk" granted to Alice.
struct Stage {
    cluster: Cluster,
    keyring: Keyring,
    bench: Bench,
}

fn stage_with(configure: impl FnOnce(ServerConfig) -> ServerConfig) -> Stage {
    stage_of(Cluster::new(), configure)
}

fn stage_of(cluster: Cluster, configure: impl FnOnce(ServerConfig) -> ServerConfig) -> Stage {
    let keyring = cluster.keyring(Role::Block, Uuid::new_v4());
    let strangers = local(Arc::new(|_: &TcpStream| Err("you are far away".into())));
    let bench = bench_with(configure(ServerConfig { tls: Some(keyring.clone()), ..strangers }), SIZE);
    bench.table.admit("disk", grant(false)).expect("room");
    Stage { cluster, keyring, bench }
}

fn stage() -> Stage {
    stage_with(|config| config)
}

fn grant(read_only: bool) -> Grant {
    Grant { client: ALICE, client_name: "alice".into(), read_only, exclusive: false }
}

impl Stage {
    fn dial(&self, export: &str, keyring: &Keyring) -> Result<Dialled, ClientError> {
        Client::dial_with(&self.bench.uri(export), Some(tls::dialling(keyring).expect("a configuration")))
    }

    fn alice(&self) -> Keyring {
        self.cluster.keyring(Role::Data, ALICE)
    }

    fn client(&self) -> Dialled {
        self.dial("disk", &self.alice()).expect("a grant")
    }

    /// Dials with what must not do, and says why it did not.
    fn refusal(&self, keyring: &Keyring) -> String {
        let error = self.dial("disk", keyring).expect_err("a refusal");
        assert_eq!(self.bench.table.users("disk"), Some(0));
        chain(&error)
    }

    fn raw(&self) -> TcpStream {
        TcpStream::connect(self.bench.server.tcp_address().expect("a TCP address")).expect("a connection")
    }

    /// A connection on which the server waits for TLS to begin.
    fn consented(&self) -> TcpStream {
        let mut stream = self.raw();
        let wish = [&IHAVEOPT.to_be_bytes()[..], &NBD_OPT_STARTTLS.to_be_bytes(), &[0; 4]].concat();
        stream.write_all(&[&NBD_FLAG_C_FIXED_NEWSTYLE.to_be_bytes()[..], &wish].concat()).expect("a wish");
        let mut answer = [0; 18 + 20];
        stream.read_exact(&mut answer).expect("a greeting and an answer");
        assert_eq!(answer[18 + 12..18 + 16], NBD_REP_ACK.to_be_bytes());
        stream
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(|error| format!("{error}: ")).collect()
}

/// Everything up to the end of the connection, however it ends.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut batch = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut batch) {
        bytes.extend(&batch[..count]);
    }
    bytes
}

#[test]
fn a_client_with_a_grant_reads_and_writes_over_tls() {
    let stage = stage_with(|config| config);
    let mut client = stage.client();
    let data: Vec<u8> = (0..SIZE).map(|at| (at / 7) as u8).collect();
    client.write(0, &data, true).expect("a write of many records");
    let mut seen = vec![0; SIZE as usize];
    client.read(0, &mut seen).expect("a read of many records");
    assert!(seen == data);
    assert!(client.sees_holes() && !client.is_read_only());
    client.disconnect().expect("a farewell");
}

#[test]
fn many_requests_in_flight_over_tls_are_all_answered() {
    let stage = stage();
    let mut client = stage.client();
    let tickets: Vec<_> = (0..64u64)
        .map(|number| {
            client.submit_write(number * 4096, &[number as u8 + 1; 4096], false).expect("a write");
            (number, client.submit_read(number * 4096, 4096).expect("a read"))
        })
        .collect();
    for (number, ticket) in tickets.into_iter().rev() {
        let data = client.wait(ticket).expect("a read");
        assert_eq!(data, crate::nbd::Completion::Data(vec![number as u8 + 1; 4096]));
    }
}

#[test]
fn a_stranger_in_plain_hears_that_tls_is_needed_and_why() {
    let stage = stage();
    let refused = stage.bench.dial("disk").expect_err("a refusal");
    assert!(matches!(&refused, ClientError::TlsRequired { reason, .. } if reason == "you are far away"), "{refused}");
}

#[test]
fn a_client_without_a_grant_learns_of_no_export() {
    let stage = stage();
    let bob = stage.cluster.keyring(Role::Admin, Uuid::from_u128(2));
    let refused = stage.refusal(&bob);
    assert!(refused.contains("symphony ctl volume attach disk --client NAME"), "{refused}");
    let unknown = chain(&stage.dial("nothing", &bob).expect_err("a refusal"));
    assert_eq!(unknown.replace("nothing", "disk"), refused);
}

#[test]
fn a_read_only_grant_can_only_read() {
    let stage = stage();
    let mut writer = stage.client();
    stage.bench.table.admit("disk", grant(true)).expect("room");
    assert!(writer.write(0, &[1; 512], true).is_err(), "who could write was cut");
    let mut reader = stage.client();
    assert!(reader.is_read_only());
    let refused = reader.write(0, &[1; 512], false);
    assert!(matches!(refused, Err(ClientError::Remote { errno: NbdErrno::Perm, .. })), "{refused:?}");
    reader.read(0, &mut [0; 512]).expect("a read");
    assert!(stage.bench.io.performed().iter().all(|done| done.operation != Operation::Write));
}

#[test]
fn certificates_of_services_use_no_volumes() {
    let stage = stage();
    for role in [Role::Manager, Role::Block] {
        let refused = stage.refusal(&stage.cluster.keyring(role, ALICE));
        assert!(
            refused.contains(&format!("that of a {role} service")) && refused.contains("client create"),
            "{refused}"
        );
    }
}

#[test]
fn a_certificate_of_another_cluster_is_refused() {
    let stage = stage();
    // It claims to be this cluster's, and believes our server.
    let other = Cluster::of(stage.cluster.id, SystemClock.wall());
    let refused = stage.refusal(&other.stranger(stage.cluster.authority.trust(), ALICE));
    assert!(refused.contains("received fatal alert"), "{refused}");
    // Who says that it is of another cluster does not believe our server in the first place.
    let other = Cluster::of(ClusterId::generate(), SystemClock.wall());
    let refused = stage.refusal(&other.stranger(stage.cluster.authority.trust(), ALICE));
    assert!(refused.contains("of another cluster"), "{refused}");
}

#[test]
fn a_self_signed_certificate_is_refused() {
    let stage = stage();
    let refused = stage.refusal(&stage.cluster.impostor(ALICE));
    assert!(refused.contains("received fatal alert"), "{refused}");
}

#[test]
fn an_expired_certificate_is_refused() {
    // The server's was issued as long ago, and lasts.
    let cluster = Cluster::of(ClusterId::generate(), ManualClock::new().wall());
    let stage = stage_of(cluster, |config| config);
    let old = stage.cluster.issue_at(Role::Block, ALICE, ManualClock::new().wall(), 3000 * cluster::DAY);
    stage.keyring.replace(old).expect("credentials");
    let refused = stage.refusal(&stage.cluster.sleeper(ALICE));
    assert!(refused.contains("CertificateExpired"), "{refused}");
}

#[test]
fn no_certificate_is_no_proof() {
    let stage = stage();
    // A client does not show what has expired.
    let past = stage.cluster.issue_at(Role::Data, ALICE, ManualClock::new().wall(), Duration::from_secs(60));
    let refused = stage.refusal(&Keyring::new(past, Arc::new(SystemClock)).expect("a keyring"));
    assert!(refused.contains("CertificateRequired"), "{refused}");
}

#[test]
fn a_revoked_client_is_refused() {
    let stage = stage();
    stage.client().disconnect().expect("a farewell");
    stage.keyring.revoke(BTreeSet::from([ALICE]));
    while stage.bench.server.connections() > 0 {
        std::thread::yield_now();
    }
    let refused = stage.refusal(&stage.alice());
    assert!(refused.contains("CertificateRevoked"), "{refused}");
}

#[test]
fn a_server_s_certificate_must_be_a_block_service_s() {
    let stage = stage();
    stage.keyring.replace(stage.cluster.issue(Role::Data, ALICE)).expect("credentials");
    assert!(stage.dial("disk", &stage.alice()).is_err());
}

#[test]
fn a_local_guest_needs_no_tls_and_may_have_it() {
    let stage = stage_with(|config| ServerConfig { local: all_local(), ..config });
    stage.bench.client().flush().expect("in plain");
    stage.client().flush().expect("with its certificate");
    let past = stage.cluster.issue_at(Role::Data, ALICE, ManualClock::new().wall(), Duration::from_secs(60));
    let nameless = Keyring::new(past, Arc::new(SystemClock)).expect("a keyring");
    let mut client = stage.dial("disk", &nameless).expect("encrypted, and local nevertheless");
    client.flush().expect("a flush");
    client.disconnect().expect("a farewell");
    while stage.bench.table.users("disk") != Some(0) {
        std::thread::yield_now();
    }
    stage.bench.table.admit("disk", Grant { exclusive: true, ..grant(false) }).expect("nobody is there");
    let refused = stage.bench.dial("disk").expect_err("a refusal").to_string();
    assert!(refused.contains("'alice' alone"), "{refused}");
    stage.client().flush().expect("the client that it is granted to, on this host as well");
}

#[test]
fn without_credentials_there_is_no_tls() {
    let stage = stage_with(|config| ServerConfig { local: all_local(), ..config });
    stage.keyring.forget();
    let refused = stage.dial("disk", &stage.alice()).expect_err("a refusal");
    assert!(matches!(&refused, ClientError::NoTls { reason } if reason.contains("no certificate")), "{refused}");
    stage.bench.client().flush().expect("in plain");
}

#[test]
fn plain_bytes_behind_consent_to_tls_end_the_connection() {
    let stage = stage();
    let mut stream = stage.consented();
    let name = [&IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 4], b"disk"].concat();
    stream.write_all(&name).expect("a request in plain");
    let said = rest(&mut stream);
    // At most an alert: type 21, two bytes.
    assert!(said.len() <= 7 && said.first().is_none_or(|kind| *kind == 21), "{said:?}");
}

#[test]
fn truncated_and_senseless_tls_records_end_the_connection() {
    let stage = stage();
    let hello = {
        let config = tls::dialling(&stage.alice()).expect("a configuration");
        let name = rustls::pki_types::ServerName::try_from("x").expect("a name");
        let mut connection = rustls::ClientConnection::new(config, name).expect("a connection");
        let mut hello = Vec::new();
        connection.write_tls(&mut hello).expect("a hello");
        hello
    };
    for bytes in [&hello[..hello.len() / 2], &hello[..3], &hello, &[22, 3, 1, 0xff, 0xff], &[0xff; 64], b""] {
        let mut stream = stage.consented();
        stream.write_all(bytes).expect("some bytes");
        stream.shutdown(std::net::Shutdown::Write).expect("an end");
        rest(&mut stream);
    }
    stage.client().flush().expect("others are served");
}

#[test]
fn a_slow_tls_handshake_is_dropped() {
    let stage = stage_with(|config| ServerConfig { handshake_timeout: Duration::from_millis(200), ..config });
    let mut slow = stage.consented();
    slow.write_all(&[22, 3, 1, 2]).expect("the start of a record");
    // Only the server's deadline ends this.
    rest(&mut slow);
}

#[test]
fn half_open_connections_make_room_for_newcomers() {
    let stage = stage_with(|config| ServerConfig { handshake_timeout: Duration::from_secs(3600), ..config });
    let mut idle: Vec<TcpStream> = (0..600).map(|_| stage.raw()).collect();
    // Only a newcomer that takes its place ends this.
    rest(&mut idle[0]);
    stage.client().flush().expect("a client is served meanwhile");
}

#[test]
fn fencing_waits_for_a_write_in_flight_and_keeps_the_client_out() {
    let stage = stage();
    let gate = Gate::new();
    stage.bench.io.inject(Fault::hold(Operation::Write, &gate));
    let mut idle = stage.client();
    let mut busy = stage.client();
    let first = busy.submit_write(0, &[7; 512], false).expect("a write");
    let second = busy.submit_write(512, &[8; 512], false).expect("a write");
    gate.wait_for(1);
    std::thread::scope(|scope| {
        let fencing = scope.spawn(|| stage.bench.table.fence("disk", ALICE));
        while idle.flush().is_ok() {}
        assert!(stage.dial("disk", &stage.alice()).is_err());
        assert!(!fencing.is_finished());
        gate.open();
        assert_eq!(fencing.join().ok(), Some(Fenced::Gone));
    });
    let after = stage.bench.io.performed().len();
    assert!(busy.wait(first).is_err() && busy.wait(second).is_err());
    let mut bytes = [0; 1024];
    stage.bench.io.read(&mut bytes, 0).expect("a read");
    assert_eq!((bytes[0], bytes[512]), (7, 0), "what was begun is done, what waited is not");
    assert_eq!(stage.bench.io.performed().len(), after + 1);
    stage.refusal(&stage.alice());
    stage.bench.table.admit("disk", grant(false)).expect("room");
    stage.client().flush().expect("a new grant");
}

#[test]
fn a_handshake_that_began_before_a_fence_does_not_come_in_after_it() {
    let stage = stage();
    let stream = Arc::new(crate::nbd::Stream::Tcp(stage.consented()));
    let config = tls::dialling(&stage.alice()).expect("a configuration");
    let wire = crate::nbd::Wire::new(stream, None);
    let mut secure = crate::nbd::Secure::connect(config, wire).expect("a handshake, while there is a grant");
    assert_eq!(stage.bench.table.fence("disk", ALICE), Fenced::Gone);
    let name = [&IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 4], b"disk"].concat();
    secure.write_all(&name).expect("a request");
    let mut said = Vec::new();
    let ended = secure.read_to_end(&mut said);
    assert!(said.is_empty(), "{ended:?}");
    assert_eq!(stage.bench.table.users("disk"), Some(0));
}
