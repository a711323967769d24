//! Clients over TLS, which stay on threads of their own, beside plain ones, which the engine has.

use super::cluster::Cluster;
use super::*;
use crate::io::FileIo;
use crate::nbd::tls;
use crate::pki::Role;
use std::time::Duration;
use uuid::Uuid;

const ALICE: Uuid = Uuid::from_u128(1);

/// A server for local guests and Alice, whose shutdown waits for the last reply and not for a deadline.
fn bench_for_all() -> (Bench, impl Fn(&Bench) -> Dialled) {
    let cluster = Cluster::new();
    let keyring = cluster.keyring(Role::Block, Uuid::new_v4());
    let drain_timeout = Duration::from_secs(3600);
    let bench = bench_with(ServerConfig { tls: Some(keyring), drain_timeout, ..local(all_local()) }, SIZE);
    let grant = Grant { client: ALICE, client_name: "alice".into(), read_only: false, exclusive: false };
    bench.table.admit("disk", grant).expect("room");
    let alice = cluster.keyring(Role::Data, ALICE);
    let dial = move |bench: &Bench| {
        let config = tls::dialling(&alice).expect("a configuration");
        Client::dial_with(&bench.uri("disk"), Some(config)).expect("a grant")
    };
    (bench, dial)
}

#[test]
fn a_client_over_tls_and_plain_ones_see_each_other_s_writes() {
    let (bench, dial) = bench_for_all();
    let mut secure = dial(&bench);
    let (mut plain, mut other) = (bench.client(), bench.client());
    for round in 0..50u8 {
        let at = u64::from(round) * 8192;
        for (offset, client) in [(0, &mut secure), (512, &mut plain), (1024, &mut other)] {
            client.write(at + offset, &[round; 512], round % 8 == 0).expect("a write");
        }
        for client in [&mut secure, &mut plain, &mut other] {
            let mut seen = [0xff; 1536];
            client.read(at, &mut seen).expect("a read");
            assert_eq!(seen, [round; 1536]);
        }
    }
    assert_eq!(bench.table.users("disk"), Some(3));
    assert_eq!(bench.table.fence("disk", ALICE), Fenced::Gone);
    assert!(secure.flush().is_err());
    assert!(plain.flush().is_ok() && other.flush().is_ok(), "others are served");
    assert_eq!(bench.table.retire("disk"), Retired::Gone);
    assert!(plain.flush().is_err() && other.flush().is_err());
}

#[test]
fn a_shutdown_ends_idle_clients_of_both_kinds_at_once() {
    let (mut bench, dial) = bench_for_all();
    let mut clients = [dial(&bench), bench.client(), dial(&bench), bench.client()];
    clients.iter_mut().for_each(|client| client.flush().expect("a flush"));
    bench.server.shutdown();
    assert_eq!((bench.server.connections(), bench.table.users("disk")), (0, Some(0)));
    assert!(clients.iter_mut().all(|client| client.flush().is_err()));
}

/// To the kernel, a page that is dirty when a direct write of it ends is an I/O error of the file. Taken for a failure of
/// the medium, it would be remembered for good.
#[test]
fn writes_through_the_cache_and_around_it_to_the_same_pages_at_once_are_no_failure_of_the_medium() {
    let (bench, dial) = bench_for_all();
    bench.table.retire("disk");
    let file = tempfile::tempfile().expect("a file");
    file.set_len(SIZE).expect("a sparse file");
    bench.table.publish(served("disk", Arc::new(FileIo::new(file).expect("a regular file")))).expect("a free name");
    let mut clients = [dial(&bench), bench.client(), bench.client()];
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || {
                for round in 0..100u8 {
                    let begin = |page: u64| client.submit_write(page % 4 * 4096, &[round; 8192], false);
                    let tickets: Vec<_> = (0..16).map(begin).collect();
                    tickets
                        .into_iter()
                        .for_each(|ticket| drop(client.wait(ticket.expect("a write")).expect("a write")));
                }
                client.flush().expect("nothing has failed");
            });
        }
    });
    clients.iter_mut().for_each(|client| client.flush().expect("nothing has failed"));
}
