//! Who comes in, and how things end.

use super::*;
use crate::io::{Fault, Gate, Operation};
use crate::nbd::NbdErrno;
use crate::nbd::wire::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;

fn raw(bench: &Bench) -> TcpStream {
    TcpStream::connect(bench.server.tcp_address().expect("a TCP address")).expect("a connection")
}

/// Everything up to the end of the connection, however it ends.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(byte) = stream.read(&mut [0; 4096]) {
        if byte == 0 {
            break;
        }
        bytes.push(0);
    }
    bytes
}

#[test]
fn unknown_names_are_told_from_known_ones() {
    let bench = bench();
    assert!(matches!(bench.dial("nothing"), Err(ClientError::UnknownExport { export }) if export == "nothing"));
    assert!(matches!(bench.dial(""), Err(ClientError::UnknownExport { .. })));
    let taken = bench.table.publish(served("disk", Arc::new(MemoryIo::new(SIZE))));
    assert_eq!(taken, Err(PublishError::Taken { name: "disk".into() }));
    assert_eq!(bench.table.list(Guest::Local), [("disk".to_owned(), "volume disk".to_owned())]);
    assert_eq!(bench.table.retire("nothing"), Retired::WasAbsent);
}

#[test]
fn a_peer_that_is_not_admitted_hears_why() {
    let policy: PeerPolicy = Arc::new(|peer: &TcpStream| {
        assert!(peer.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()));
        Err("only from this host".into())
    });
    let bench = bench_with(local(policy), SIZE);
    let refused = bench.dial("disk").expect_err("a refusal").to_string();
    assert!(refused.contains("only from this host; and this server has no certificate"), "{refused}");
    let mut old = raw(&bench);
    let name = [&IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 4], b"disk"].concat();
    old.write_all(&[&NBD_FLAG_C_FIXED_NEWSTYLE.to_be_bytes()[..], &name].concat()).expect("a request");
    let mut greeting = [0; 18];
    old.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(rest(&mut old), Vec::<u8>::new());
}

#[test]
fn one_client_too_many_hears_of_the_limit_and_room_is_given_back() {
    let bench = bench_with(ServerConfig { max_connections: 1, ..local(all_local()) }, SIZE);
    let first = bench.client();
    assert!(matches!(bench.dial("disk"), Err(ClientError::Refused { reason, .. }) if reason.contains("limit")));
    first.disconnect().expect("a farewell");
    while bench.server.connections() > 0 {
        std::thread::yield_now();
    }
    bench.client().flush().expect("a flush");
}

#[test]
fn a_client_that_does_not_shake_hands_in_time_is_dropped() {
    let config = ServerConfig { handshake_timeout: Duration::from_millis(50), ..local(all_local()) };
    let bench = bench_with(config, SIZE);
    let mut silent = raw(&bench);
    silent.write_all(&NBD_FLAG_C_FIXED_NEWSTYLE.to_be_bytes()).expect("flags");
    rest(&mut silent);
    bench.client().flush().expect("others are served");
}

#[test]
fn a_client_that_never_reads_hurts_nobody_and_does_not_hold_up_its_export_s_end() {
    let bench = bench_with(local(all_local()), 64 << 20);
    let mut stuck = bench.client();
    for _ in 0..8 {
        // Submitted, never waited for: the replies fill every buffer on the way.
        stuck.submit_read(0, 16 << 20).expect("a request");
    }
    bench.client().write(0, &[1; 4096], true).expect("others are served");
    assert_eq!(bench.table.retire("disk"), Retired::Gone);
    assert_eq!(bench.table.users("disk"), None);
}

#[test]
fn retiring_cuts_idle_clients_and_waits_for_operations_in_flight() {
    let bench = bench();
    let gate = Gate::new();
    bench.io.inject(Fault::hold(Operation::Write, &gate));
    let mut idle = bench.client();
    let mut busy = bench.client();
    busy.submit_write(0, &[7; 512], false).expect("a write");
    gate.wait_for(1);
    std::thread::scope(|scope| {
        let retiring = scope.spawn(|| bench.table.retire("disk"));
        let also = scope.spawn(|| bench.table.retire("disk"));
        // The idle client is cut while the busy one still holds the export.
        while idle.flush().is_ok() {}
        let leaving = bench.table.publish(served("disk", Arc::new(MemoryIo::new(SIZE))));
        assert_eq!(leaving, Err(PublishError::Leaving { name: "disk".into() }));
        assert!(matches!(bench.dial("disk"), Err(ClientError::UnknownExport { .. })));
        assert!(!retiring.is_finished() && !also.is_finished());
        gate.open();
        assert!(retiring.join().is_ok() && also.join().is_ok());
    });
    assert_eq!(Arc::strong_count(&bench.io), 1, "nothing holds the medium any more");
    let mut byte = [0];
    bench.io.read(&mut byte, 0).expect("a read");
    assert_eq!(byte, [7], "the operation in flight has finished");
    bench.table.publish(served("disk", bench.io.clone())).expect("the name is free again");
    bench.client().flush().expect("a flush");
}

#[test]
fn shutdown_finishes_what_is_in_flight_and_declines_what_comes_later() {
    let mut bench = bench();
    let gate = Gate::new();
    bench.io.inject(Fault::hold(Operation::Write, &gate));
    let mut client = bench.client();
    let first = client.submit_write(0, &[7; 512], false).expect("a write");
    gate.wait_for(1);
    let address = bench.server.tcp_address().expect("a TCP address");
    std::thread::scope(|scope| {
        let ending = scope.spawn(|| bench.server.shutdown());
        while TcpStream::connect(address).is_ok() {}
        assert!(!ending.is_finished());
        let second = client.submit_write(512, &[8; 512], false).expect("a write");
        gate.open();
        client.wait(first).expect("the write in flight");
        let later = client.wait(second);
        assert!(matches!(later, Err(ClientError::Remote { errno: NbdErrno::Shutdown, .. })), "{later:?}");
        assert!(client.flush().is_err());
        assert!(ending.join().is_ok());
    });
    assert_eq!(bench.server.connections(), 0);
    assert_eq!(bench.table.users("disk"), Some(0), "the export outlives the server");
}

#[test]
fn shutdown_does_not_wait_for_ever_for_a_client_that_takes_no_replies() {
    let config = ServerConfig { drain_timeout: Duration::from_millis(50), ..local(all_local()) };
    let mut bench = bench_with(config, 64 << 20);
    let mut stuck = bench.client();
    for _ in 0..8 {
        stuck.submit_read(0, 16 << 20).expect("a request");
    }
    bench.server.shutdown();
    assert_eq!(bench.server.connections(), 0);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_or_a_stranger_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("nbd.sock");
    drop(UnixListener::bind(&path).expect("a socket that nobody answers on"));
    let config =
        ServerConfig { unix: Some(path.clone()), ..ServerConfig { local: all_local(), ..ServerConfig::new() } };
    let mut bench = bench_with(config.clone(), SIZE);
    let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let uri = Uri { target: Target::Unix { socket: path.clone() }, export: "disk".into(), tls: None };
    Client::dial(&uri).expect("a client").flush().expect("a flush");

    let second = NbdServer::start(config.clone(), ExportTable::new()).map(drop);
    assert!(matches!(second, Err(ServerError::Unix { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse));
    Client::dial(&uri).expect("a client").flush().expect("the first server is not disturbed");

    bench.server.shutdown();
    assert!(!path.exists(), "a server takes its socket away");
    std::fs::write(&path, "precious").expect("a file");
    assert!(NbdServer::start(config, ExportTable::new()).is_err());
    assert_eq!(std::fs::read(&path).expect("the file"), b"precious");
}
