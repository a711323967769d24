use super::*;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];
/// Neither root, nor the tests' user, nor the one that stands for all unknown ones.
const STRANGER: u32 = 61234;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A process of its own that plays a peer: this test program, told by its environment to run [`part`] alone. It speaks
/// on its standard error and takes each step when it is given a line.
struct Actor {
    process: Child,
    orders: ChildStdin,
    said: BufReader<ChildStderr>,
}

impl Actor {
    /// Starts the part and waits until it is connected. `wrapper` is a command line that runs another.
    fn start(wrapper: &[&str], address: &str, ending: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut words = wrapper.iter().copied().chain([program.to_str().unwrap()]);
        let mut process = Command::new(words.next().unwrap())
            .args(words)
            .args(["--exact", "host::peer::tests::part", "--ignored", "--nocapture", "--test-threads=1"])
            .envs([("PART_ADDRESS", address), ("PART_ENDING", ending)])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let said = BufReader::new(process.stderr.take().unwrap());
        Self { process, orders, said }
    }

    fn stranger(address: impl std::fmt::Display, ending: &str) -> Self {
        let mut actor = Self::start(&[], &address.to_string(), ending);
        assert_eq!(actor.hear(), "connected");
        actor
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Has the part end its connection as it was told to, and waits until it has.
    fn end_connection(&mut self) {
        self.orders.write_all(b"\n").unwrap();
        assert_eq!(self.hear(), "ended");
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // It may have ended by itself, if a test failed.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
#[ignore = "not a test of its own: the other process of the tests here"]
fn part() {
    let (Ok(address), Ok(ending)) = (std::env::var("PART_ADDRESS"), std::env::var("PART_ENDING")) else { return };
    let pause = || {
        std::io::stdin().read_line(&mut String::new()).unwrap();
    };
    if address == "apart" {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        eprintln!("{} {}", client.local_addr().unwrap(), client.peer_addr().unwrap());
        return pause();
    }
    let user = nix::unistd::Uid::from_raw(STRANGER);
    nix::unistd::setresuid(user, user, user).unwrap();
    if address.starts_with('/') {
        let _client = UnixStream::connect(address).unwrap();
        eprintln!("connected");
        return pause();
    }
    let client = TcpStream::connect(address).unwrap();
    eprintln!("connected");
    pause();
    match ending.as_str() {
        "shutdown" => client.shutdown(std::net::Shutdown::Write).unwrap(),
        "reset" => {
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&client, sockopt::Linger, &linger).unwrap();
        }
        _ => {}
    }
    if ending != "shutdown" {
        drop(client);
        eprintln!("ended");
        return pause();
    }
    eprintln!("ended");
    pause();
}

#[test]
fn the_server_s_own_user_is_trusted_over_both_families() {
    for address in LOOPBACKS {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        tcp_peer(&server).unwrap();
        let (peer, local) = (canonical(peer), server.local_addr().unwrap());
        let record = sock_diag::look_up(peer, local).unwrap();
        assert!(record.is_some(), "the kernel has no TCP diagnosis");
        assert_eq!(proc_net::look_up(peer, local).unwrap(), record);
        drop(client);
    }
}

#[test]
fn a_peer_of_the_other_family_is_found_behind_its_mapped_address() {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for address in [format!("127.0.0.1:{port}"), format!("[::ffff:127.0.0.1]:{port}")] {
        let _client = TcpStream::connect(&address).unwrap();
        let (server, peer) = listener.accept().unwrap();
        assert!(peer.is_ipv6(), "{peer}");
        tcp_peer(&server).unwrap();
        let (peer, local) = (canonical(peer), canonical(server.local_addr().unwrap()));
        let record = sock_diag::look_up(peer, local).unwrap();
        assert!(record.is_some());
        assert_eq!(proc_net::look_up(peer, local).unwrap(), record);
    }
}

#[test]
fn another_user_is_refused_and_the_refusal_says_so() {
    if !is_root() {
        return eprintln!("skipped: only root can become a second user");
    }
    for address in LOOPBACKS {
        let listener = TcpListener::bind(address).unwrap();
        let _stranger = Actor::stranger(listener.local_addr().unwrap(), "stay");
        let (server, peer) = listener.accept().unwrap();
        let refused = tcp_peer(&server).unwrap_err().to_string();
        let words = format!("the peer {peer} belongs to user {STRANGER}, not to root or the server's own user 0");
        assert!(refused.starts_with(&words), "{refused}");
        let record = proc_net::look_up(peer, server.local_addr().unwrap()).unwrap();
        assert!(judge(peer, record, 0).is_err());
    }
}

#[test]
fn half_closing_hides_nobody_and_closing_makes_nobody_root() {
    if !is_root() {
        return eprintln!("skipped: only root can become a second user");
    }
    for ending in ["shutdown", "close", "reset"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stranger = Actor::stranger(listener.local_addr().unwrap(), ending);
        let (server, peer) = listener.accept().unwrap();
        stranger.end_connection();
        let local = server.local_addr().unwrap();
        assert!(tcp_peer(&server).is_err(), "{ending}");
        assert!(is_local_peer(peer, local).is_err(), "{ending}");
        assert!(judge(peer, proc_net::look_up(peer, local).unwrap(), 0).is_err(), "{ending}");
        // Our end closes too, so that the peer's passes through its last states, TIME_WAIT among them.
        drop(server);
        assert!(is_local_peer(peer, local).is_err(), "{ending}");
        assert!(judge(peer, proc_net::look_up(peer, local).unwrap(), 0).is_err(), "{ending}");
    }
}

#[test]
fn our_own_half_closed_peer_is_still_ours_and_a_closed_one_is_nobody_s() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    tcp_peer(&server).unwrap();
    drop(client);
    assert!(tcp_peer(&server).is_err());
}

#[test]
fn states_and_owners_are_judged_as_they_stand() {
    let peer = "127.0.0.1:1".parse().unwrap();
    let verdict = |state, uid, inode| judge(peer, Some(SocketRecord { state, uid, inode }), 1000);
    for connected in [1, 4, 5, 8] {
        verdict(connected, 0, 7).unwrap();
        verdict(connected, 1000, 7).unwrap();
        assert!(matches!(verdict(connected, 1001, 7), Err(PeerRefused::OtherUser { uid: 1001, own: 1000, .. })));
        assert!(matches!(verdict(connected, 0, 0), Err(PeerRefused::Abandoned { .. })));
    }
    // Opening, closed, TIME_WAIT, LAST_ACK, listening, closing, half-made, and whatever comes to be.
    for other in (0..=255u8).filter(|state| ![1, 4, 5, 8].contains(state)) {
        assert!(matches!(verdict(other, 0, 7), Err(PeerRefused::Abandoned { .. })), "{other}");
    }
    assert!(matches!(judge(peer, None, 0), Err(PeerRefused::Unknown { .. })));
    let unnamed = SocketRecord { state: 1, uid: NOBODY, inode: 7 };
    assert!(judge(peer, Some(unnamed), NOBODY).is_err());
}

#[test]
fn a_listener_on_the_peer_s_port_is_not_the_peer() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = other.local_addr().unwrap();
    let refused = is_local_peer(peer, "127.0.0.1:1".parse().unwrap());
    assert!(matches!(refused, Err(PeerRefused::Unknown { .. })), "{refused:?}");
}

#[test]
fn addresses_beyond_loopback_are_refused_unasked() {
    for (peer, local) in [
        ("192.0.2.1:1", "127.0.0.1:2"),
        ("127.0.0.1:1", "192.0.2.1:2"),
        ("[2001:db8::1]:1", "[::1]:2"),
        ("[::ffff:192.0.2.1]:1", "[::ffff:127.0.0.1]:2"),
    ] {
        let refused = is_local_peer(peer.parse().unwrap(), local.parse().unwrap());
        assert!(matches!(refused, Err(PeerRefused::Remote { .. })), "{peer} {refused:?}");
    }
}

#[test]
fn root_in_another_network_namespace_is_refused() {
    if !is_root() {
        return eprintln!("skipped: only root can make network namespaces");
    }
    let has = |program: &str| Command::new(program).arg("-V").stdout(Stdio::null()).status().is_ok();
    if !has("unshare") || !has("ip") {
        return eprintln!("skipped: it takes unshare (util-linux) and ip (iproute2)");
    }
    // The namespace has a loopback of its own; its connection lives between two sockets that only it can see.
    let up = "ip link set lo up && exec \"$@\"";
    let mut actor = Actor::start(&["unshare", "--net", "sh", "-c", up, "sh"], "apart", "stay");
    let said = actor.hear();
    let ends: Vec<SocketAddr> = said.split_whitespace().map(|end| end.parse().unwrap()).collect();
    let [peer, local] = ends[..] else { panic!("'{said}'") };
    let refused = is_local_peer(peer, local);
    assert!(matches!(refused, Err(PeerRefused::Unknown { .. })), "{refused:?}");
}

#[test]
fn unix_peers_are_told_apart_by_user() {
    let (one, _other) = UnixStream::pair().unwrap();
    unix_peer(&one).unwrap();
    if !is_root() {
        return eprintln!("skipped in part: only root can become a second user");
    }
    let scratch = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    };
    let path = scratch.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    open(scratch.path());
    open(&path);
    let _stranger = Actor::stranger(path.display(), "stay");
    let (server, _) = listener.accept().unwrap();
    assert!(matches!(unix_peer(&server), Err(PeerRefused::OtherUser { .. })));
}
