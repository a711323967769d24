//! Bytes that no honest peer sends, on every socket there is: who sent them is cut off, everybody else is served.

use crate::stage::{Backing, Cluster, client, nbd_size, qemu_io};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// How long an answer is waited for where none has to come.
const SILENCE: Duration = Duration::from_millis(300);

#[derive(Clone, Debug)]
enum Door {
    Tcp(String),
    Unix(PathBuf),
}

trait Connection: Read + Write + Send {
    fn end_writing(&self);
    /// So that a test of a server that does not answer ends.
    fn limit_reads(&self, limit: Duration);
}

impl Connection for TcpStream {
    fn end_writing(&self) {
        drop(self.shutdown(Shutdown::Write));
    }
    fn limit_reads(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).expect("a limit");
    }
}

impl Connection for UnixStream {
    fn end_writing(&self) {
        drop(self.shutdown(Shutdown::Write));
    }
    fn limit_reads(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).expect("a limit");
    }
}

impl Door {
    fn open(&self) -> Box<dyn Connection> {
        let connection: Box<dyn Connection> = match self {
            Self::Tcp(address) => Box::new(TcpStream::connect(address).expect("a connection")),
            Self::Unix(path) => Box::new(UnixStream::connect(path).expect("a connection")),
        };
        connection.limit_reads(SILENCE);
        connection
    }

    /// Sends bytes, for as long as they are taken, and takes what comes back.
    fn throw(&self, bytes: &[u8]) {
        let mut connection = self.open();
        drop(connection.write_all(bytes));
        connection.end_writing();
        let mut answer = Vec::new();
        drop(connection.take(1 << 20).read_to_end(&mut answer));
    }
}

fn doors(cluster: &Cluster) -> Vec<Door> {
    let status = cluster.block_ctl().json("block status");
    let address = |name: &str| status["addresses"][name].as_str().expect("an address").to_owned();
    vec![
        Door::Tcp(format!("127.0.0.1:{}", cluster.manager_port)),
        Door::Tcp(address("rpc")),
        Door::Tcp(address("nbd")),
        Door::Unix(cluster.ctl().socket),
        Door::Unix(cluster.block_ctl().socket),
        Door::Unix(cluster.block_dir().join("nbd.sock")),
    ]
}

/// Openings of real conversations, so that what follows reaches further in than a first look.
fn openings() -> Vec<Vec<u8>> {
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let nbd_flags = 3u32.to_be_bytes().to_vec();
    let option =
        |kind: u32, length: u32| [&nbd_flags[..], b"IHAVEOPT", &kind.to_be_bytes(), &length.to_be_bytes()].concat();
    vec![
        Vec::new(),
        http2,
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        nbd_flags.clone(),
        option(7, 6),
        option(7, u32::MAX),
        option(1, 1 << 20),
        option(0xdead_beef, 16),
    ]
}

#[test]
fn random_bytes_on_every_socket_disturb_nobody_else() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let uri = ctl.uri("a", "nbd");
    let mut honest = client(&uri).expect("a connection");
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for door in doors(&cluster) {
        for opening in openings() {
            let length = random.usize(..2000);
            let garbage: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            door.throw(&[opening, garbage].concat());
        }
        honest.write(0, &[5; 4096], true).expect("an honest client is served");
    }
    cluster.manager.assert_alive();
    cluster.block.assert_alive();
    assert_eq!(nbd_size(&uri), 1 << 20);
    ctl.ok("volume create b --size 1M");
    ctl.check();
}

#[test]
fn peers_that_stop_in_the_middle_of_a_sentence_keep_nobody_else_waiting() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let mut silent = Vec::new();
    for door in doors(&cluster) {
        for opening in openings() {
            for _ in 0..4 {
                let mut connection = door.open();
                connection.write_all(&opening).expect("an opening");
                silent.push(connection);
            }
        }
    }
    qemu_io(&ctl.uri("a", "nbd"), &["write -P 6 0 64k", "read -P 6 0 64k"]).succeeds();
    ctl.ok("volume create b --size 1M");
    ctl.check();
    // In order, too, in spite of those who still hold on.
    assert_eq!(cluster.block.stop().code(), Some(0));
    assert_eq!(cluster.manager.stop().code(), Some(0));
}

/// An honest handshake by hand up to the transmission phase.
fn transmission(door: &Door, export: &str) -> Box<dyn Connection> {
    let mut connection = door.open();
    // These answers have to come.
    connection.limit_reads(Duration::from_secs(60));
    let mut greeting = [0; 18];
    connection.read_exact(&mut greeting).expect("a greeting");
    let name = export.as_bytes();
    let length = u32::try_from(name.len()).expect("a short name");
    let head = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &length.to_be_bytes()].concat();
    connection.write_all(&[&head, name].concat()).expect("an option");
    let mut described = [0; 10];
    connection.read_exact(&mut described).expect("the export's size");
    connection.limit_reads(SILENCE);
    connection
}

fn request(kind: u16, offset: u64, length: u32) -> Vec<u8> {
    let magic = 0x2560_9513u32.to_be_bytes();
    let head = [&magic[..], &0u16.to_be_bytes(), &kind.to_be_bytes(), &7u64.to_be_bytes()].concat();
    [&head[..], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
}

#[test]
fn requests_beyond_the_end_or_of_no_known_kind_are_refused_and_change_nothing() {
    let mut cluster = Cluster::start(Backing::Embedded);
    let ctl = cluster.ctl();
    ctl.ok("volume create a --size 1M");
    let uri = ctl.uri("a", "nbd");
    qemu_io(&uri, &["write -P 0x42 0 1M", "flush"]).succeeds();
    let doors = doors(&cluster);
    for door in [&doors[2], &doors[5]] {
        for (kind, offset, length) in [
            (0, 1 << 20, 1),
            (0, u64::MAX, 4096),
            (0, 0, u32::MAX),
            (4, 1 << 20, 512),
            (4, u64::MAX - 511, 1024),
            (6, 512, 1 << 20),
            (77, 0, 512),
            (5, 1 << 20, 512),
            (8, 0, 512),
        ] {
            let mut connection = transmission(door, "a");
            connection.write_all(&request(kind, offset, length)).expect("a request");
            let mut reply = [0; 16];
            // Cutting the peer off would do, too.
            if connection.read_exact(&mut reply).is_ok() {
                assert_ne!(reply[4..8], [0; 4], "request {kind} at {offset} for {length} was granted");
            }
        }
        // A write whose data never comes.
        let mut connection = transmission(door, "a");
        connection.write_all(&request(1, 0, 65_536)).expect("a request");
        connection.write_all(&[0; 1000]).expect("a part of its data");
        drop(connection);
    }
    qemu_io(&uri, &["read -P 0x42 0 1M"]).succeeds();
    cluster.block.assert_alive();
    ctl.check();
}
