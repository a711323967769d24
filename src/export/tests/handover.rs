//! Clients that go on under another server: two servers in one process, the second for what the first one held.

#[path = "bench.rs"]
mod bench;

use super::cluster::Cluster;
use super::*;
use crate::io::{Fault, FileIo, Gate, Operation};
use crate::model::{ByteSize, Limits};
use crate::nbd::wire::*;
use crate::nbd::{NbdErrno, tls};
use crate::pki::Role;
use bench::*;
use proptest::prelude::*;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;
use uuid::Uuid;

const ENGINE: EngineChoice = EngineChoice::Uring;
const LIMIT: Duration = Duration::from_secs(60);
/// Each request has bytes of its own on the medium, so that the order of those in flight does not matter.
const SLOT: u64 = 256 << 10;
const SLOTS: usize = 40;

/// A server on a unix socket, and the export that outlives it.
struct Place {
    directory: tempfile::TempDir,
    table: Arc<ExportTable>,
    server: NbdServer,
    io: Arc<FileIo>,
}

/// None where there is no io_uring: threads hand nothing over.
fn place(below: &Path) -> Option<Place> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = tempfile::tempfile_in(below).expect("a file");
    prepare(&file);
    let io = Arc::new(FileIo::new(file).expect("a regular file"));
    let table = ExportTable::new();
    table.publish(served("disk", io.clone())).expect("a free name");
    let server = start(config(directory.path()), table.clone());
    if server.engine() != "uring" {
        eprintln!("skipped: connections of threads are not handed over");
        return None;
    }
    Some(Place { directory, table, server, io })
}

fn config(directory: &Path) -> ServerConfig {
    ServerConfig { unix: Some(directory.join("nbd.sock")), ..local(all_local()) }
}

/// What a slot holds at first: bytes that are the same nowhere near.
fn content(slot: usize) -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| (0..2 * SLOT as u32).map(|at| (at / 7) as u8).collect());
    &BYTES[slot * 100..][..SLOT as usize]
}

fn prepare(file: &File) {
    use std::os::unix::fs::FileExt;
    for slot in 0..SLOTS {
        file.write_all_at(content(slot), slot as u64 * SLOT).expect("bytes");
    }
}

impl Place {
    /// The same place under another server, as another process would do it.
    fn hand_over(mut self) -> Self {
        let held = self.server.hold(LIMIT).expect("nothing is stuck");
        let carried = held.carry().expect("descriptors");
        let sockets = self.server.listening().expect("descriptors");
        self.server.leave(held);
        drop(self.server);
        let wanted = config(self.directory.path());
        let mut server = NbdServer::prepare(wanted, self.table.clone(), sockets).expect("the same sockets");
        let expected = Adopted { went_on: carried.len(), ended: Vec::new() };
        assert_eq!(server.adopter().adopt(carried, LIMIT), expected);
        server.open().expect("a thread");
        Self { server, ..self }
    }

    fn uri(&self) -> Uri {
        let socket = self.directory.path().join("nbd.sock");
        Uri { target: Target::Unix { socket }, export: "disk".into(), tls: None }
    }

    /// A socket that transmission has begun on, with structured replies.
    fn enter(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("nbd.sock")).expect("a listener");
        stream.write_all(&(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES).to_be_bytes()).expect("flags");
        take(&mut stream, 18);
        let name = [&4u32.to_be_bytes()[..], b"disk", &[0, 0]].concat();
        for (option, data) in [(NBD_OPT_STRUCTURED_REPLY, &[][..]), (NBD_OPT_GO, &name)] {
            let header = [&IHAVEOPT.to_be_bytes()[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes()];
            stream.write_all(&[&header.concat(), data].concat()).expect("an option");
            loop {
                let header = take(&mut stream, 20);
                take(&mut stream, number(&header[16..]));
                if number(&header[12..16]) == NBD_REP_ACK as usize {
                    break;
                }
            }
        }
        stream
    }
}

fn number(bytes: &[u8]) -> usize {
    u32::from_be_bytes(bytes.try_into().expect("four bytes")) as usize
}

fn take(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("an answer");
    bytes
}

/// Returns when the other side has taken all that was sent.
fn wait_until_taken(stream: &UnixStream) {
    loop {
        let mut untaken: libc::c_int = 0;
        // SAFETY: a question about an open socket, with a place for the answer.
        let asked = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut untaken) };
        assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
        if untaken == 0 {
            return;
        }
        std::thread::yield_now();
    }
}

#[derive(Clone, Debug)]
struct Asked {
    kind: u16,
    flags: u16,
    length: u32,
    /// Whether it asks for what there is not.
    wrong: bool,
}

/// The whole of what a client sends; each request by its place is its cookie and its slot.
fn stream_of(requests: &[Asked]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (cookie, Asked { kind, flags, length, wrong }) in requests.iter().enumerate() {
        let slot = if *wrong { 1 << 20 } else { cookie as u64 };
        let (offset, length) = if *kind == NBD_CMD_FLUSH { (0, 0) } else { (slot * SLOT + 512, *length) };
        bytes.extend(NBD_REQUEST_MAGIC.to_be_bytes());
        bytes.extend([flags.to_be_bytes(), kind.to_be_bytes()].concat());
        bytes.extend((cookie as u64).to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        if *kind == NBD_CMD_WRITE {
            bytes.extend((0..length).map(|at| (at / 3) as u8 ^ !(cookie as u8)));
        }
    }
    bytes
}

/// Replies by their cookies.
type Heard = Vec<(u64, Vec<u8>)>;

fn replies(stream: &mut UnixStream, count: usize) -> Heard {
    let mut replies: Heard = (0..count)
        .map(|_| {
            let mut reply = take(stream, 16);
            let cookie = u64::from_be_bytes(reply[8..].try_into().expect("eight bytes"));
            if number(&reply[..4]) == NBD_STRUCTURED_REPLY_MAGIC as usize {
                let length = take(stream, 4);
                let data = take(stream, number(&length));
                reply.extend(length.into_iter().chain(data));
            }
            (cookie, reply)
        })
        .collect();
    replies.sort();
    replies
}

/// Everything that the client hears and all that the medium holds afterwards, with hand-overs after so many bytes.
fn play(below: &Path, requests: &[Asked], cuts: &[usize]) -> Option<(Heard, Vec<u8>)> {
    let mut place = place(below)?;
    let (bytes, mut sent) = (stream_of(requests), 0);
    let mut stream = place.enter();
    let mut reading = stream.try_clone().expect("a descriptor");
    let count = requests.len();
    let heard = std::thread::spawn(move || replies(&mut reading, count));
    for cut in cuts {
        stream.write_all(&bytes[sent..*cut]).expect("a listener");
        sent = *cut;
        wait_until_taken(&stream);
        place = place.hand_over();
    }
    stream.write_all(&bytes[sent..]).expect("a listener");
    let heard = heard.join().expect("every reply");
    let mut held = vec![0; SLOTS * SLOT as usize];
    place.io.read(&mut held, 0).expect("the medium");
    Some((heard, held))
}

const SOME: [Asked; 7] = [
    Asked { kind: NBD_CMD_READ, flags: 0, length: 700, wrong: false },
    Asked { kind: NBD_CMD_WRITE, flags: NBD_CMD_FLAG_FUA, length: 130, wrong: false },
    Asked { kind: NBD_CMD_WRITE, flags: 0, length: 90, wrong: true },
    Asked { kind: NBD_CMD_FLUSH, flags: 0, length: 0, wrong: false },
    Asked { kind: 99, flags: 0, length: 5, wrong: false },
    Asked { kind: NBD_CMD_WRITE_ZEROES, flags: NBD_CMD_FLAG_NO_HOLE, length: 5000, wrong: false },
    Asked { kind: NBD_CMD_READ, flags: 0, length: 20, wrong: true },
];

#[test]
fn wherever_the_stream_is_cut_the_client_hears_the_same() {
    let Some(mut place) = place(Path::new("/dev/shm")) else { return };
    let bytes = stream_of(&SOME);
    let mut stream = place.enter();
    stream.write_all(&bytes).expect("a listener");
    let whole = replies(&mut stream, SOME.len());
    for cut in 0..=bytes.len() {
        let (sent, rest) = bytes.split_at(cut);
        let mut stream = place.enter();
        stream.write_all(sent).expect("a listener");
        wait_until_taken(&stream);
        place = place.hand_over();
        stream.write_all(rest).expect("a listener");
        let seen = replies(&mut stream, SOME.len());
        assert!(seen == whole, "cut after {cut} bytes: {seen:?} instead of {whole:?}");
    }
}

fn asked() -> impl Strategy<Value = Vec<Asked>> {
    let kind = prop_oneof![
        4 => Just(NBD_CMD_WRITE),
        3 => Just(NBD_CMD_READ),
        1 => Just(NBD_CMD_FLUSH),
        1 => Just(NBD_CMD_TRIM),
        1 => Just(NBD_CMD_WRITE_ZEROES),
        1 => Just(77u16),
    ];
    let length = prop_oneof![1u32..5000, (1u32..6).prop_map(|blocks| blocks * 4096), 30_000u32..200_000];
    let flags = prop_oneof![4 => Just(0), 1 => Just(NBD_CMD_FLAG_FUA), 1 => Just(NBD_CMD_FLAG_NO_HOLE)];
    let one = (kind, flags, length, prop::bool::weighted(0.15));
    let one = one.prop_map(|(kind, flags, length, wrong)| Asked { kind, flags, length, wrong });
    proptest::collection::vec(one, 1..SLOTS)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn clients_hear_the_same_however_often_they_are_handed_over(
        requests in asked(), at in proptest::collection::vec(any::<prop::sample::Index>(), 1..5), in_memory: bool,
    ) {
        let below = Path::new(if in_memory { "/dev/shm" } else { "/var/tmp" });
        let total = stream_of(&requests).len();
        let mut cuts: Vec<usize> = at.iter().map(|at| at.index(total + 1)).collect();
        cuts.sort_unstable();
        let (Some(whole), Some(seen)) = (play(below, &requests, &[]), play(below, &requests, &cuts)) else {
            return Ok(());
        };
        prop_assert!(whole.0 == seen.0, "cut at {cuts:?}: other replies");
        prop_assert!(whole.1 == seen.1, "cut at {cuts:?}: other bytes on the medium");
    }
}

#[test]
fn replies_that_a_client_does_not_take_are_carried_to_the_last_byte() {
    let Some(mut place) = place(Path::new("/dev/shm")) else { return };
    let mut stream = place.enter();
    let large: Vec<Asked> = vec![Asked { kind: NBD_CMD_READ, flags: 0, length: 200_000, wrong: false }; 30];
    stream.write_all(&stream_of(&large)).expect("a listener");
    for _ in 0..3 {
        place = place.hand_over();
    }
    let heard = replies(&mut stream, large.len());
    for (cookie, reply) in heard {
        assert!(reply[28..] == content(cookie as usize)[512..][..200_000], "read {cookie}");
    }
    drop(place);
}

#[test]
fn who_waits_to_be_accepted_is_served_afterwards_and_who_was_busy_is_not_disturbed() {
    let Some(mut place) = place(Path::new("/dev/shm")) else { return };
    let mut busy = Client::dial(&place.uri()).expect("a client");
    let held = place.server.hold(LIMIT).expect("nothing is stuck");
    assert_eq!(held.connections(), 1);
    let write = busy.submit_write(0, &[7; 512], true).expect("a write that nobody takes yet");
    let uri = place.uri();
    let waiting = std::thread::spawn(move || Client::dial(&uri).expect("a listener").read(0, &mut [0; 512]));
    place.server.resume(held).expect("a thread");
    place = place.hand_over();
    busy.wait(write).expect("the write");
    waiting.join().expect("no panic").expect("the read of the one that waited");
    while place.server.connections() > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn a_write_that_waits_for_a_frozen_export_waits_on_under_the_next_server() {
    let Some(mut place) = place(Path::new("/dev/shm")) else { return };
    let mut client = Client::dial(&place.uri()).expect("a client");
    let freeze = place.table.freeze(&["disk"], LIMIT).expect("nothing in flight");
    let write = client.submit_write(0, &[7; 5000], true).expect("a write");
    let mut other = Client::dial(&place.uri()).expect("a client");
    other.flush().expect("what came before has been taken");
    for _ in 0..2 {
        place = place.hand_over();
        let mut seen = [0; 5000];
        other.read(0, &mut seen).expect("a read");
        assert!(seen == content(0)[..5000], "nothing changes");
    }
    drop(freeze);
    client.wait(write).expect("the write that waited");
    let mut seen = [0; 5000];
    other.read(0, &mut seen).expect("a read");
    assert!(seen == [7; 5000]);
}

#[test]
fn a_stuck_operation_is_named_and_everything_goes_on_as_before() {
    let mut bench = bench();
    if bench.server.engine() != "uring" {
        return;
    }
    let gate = Gate::new();
    bench.io.inject(Fault::hold(Operation::Write, &gate));
    let (mut stuck, mut other) = (bench.client(), bench.client());
    let write = stuck.submit_write(0, &[7; 512], false).expect("a write");
    gate.wait_for(1);
    let refused = bench.server.hold(Duration::from_millis(50)).map(drop);
    assert!(matches!(&refused, Err(HoldError::Busy { exports, .. }) if exports == &["disk"]), "{refused:?}");
    other.flush().expect("others are served");
    while bench.account.figures().connections != 2 {
        std::thread::yield_now();
    }
    bench.client().flush().expect("new ones too");
    gate.open();
    stuck.wait(write).expect("the write in flight");
    drop(bench.server.hold(LIMIT).expect("nothing is stuck now"));
}

#[test]
fn a_medium_that_cannot_be_flushed_is_not_handed_over_with_its_failure_forgotten() {
    let mut bench = bench();
    if bench.server.engine() != "uring" {
        return;
    }
    let good: Arc<dyn BlockIo> = Arc::new(MemoryIo::new(SIZE));
    bench.table.publish(served("good", good)).expect("a free name");
    let (mut bad, mut good) = (bench.client(), bench.dial("good").expect("the export"));
    bench.io.inject(Fault::every(Operation::Flush, libc::EIO));
    let held = bench.server.hold(LIMIT).expect("nothing is stuck");
    assert_eq!(held.connections(), 1);
    bench.server.resume(held).expect("a thread");
    good.flush().expect("a flush");
    assert!(bad.flush().is_err());
}

#[test]
fn clients_over_tls_end_and_come_again_and_plain_ones_stay() {
    let cluster = Cluster::new();
    let keyring = cluster.keyring(Role::Block, Uuid::new_v4());
    let mut bench = bench_with(ServerConfig { tls: Some(keyring), ..local(all_local()) }, SIZE);
    if bench.server.engine() != "uring" {
        return;
    }
    let alice = Uuid::from_u128(1);
    let grant = Grant { client: alice, client_name: "alice".into(), read_only: false, exclusive: false };
    bench.table.admit("disk", grant).expect("room");
    let keys = cluster.keyring(Role::Data, alice);
    let dial =
        |bench: &Bench| Client::dial_with(&bench.uri("disk"), Some(tls::dialling(&keys).expect("a configuration")));
    let (mut secure, mut plain) = (dial(&bench).expect("a grant"), bench.client());
    secure.flush().expect("a flush");
    let held = bench.server.hold(LIMIT).expect("nothing is stuck");
    assert_eq!(held.connections(), 1);
    let ended = secure.flush();
    let shut = matches!(ended, Err(ClientError::Remote { errno: NbdErrno::Shutdown, .. } | ClientError::Stream { .. }));
    assert!(shut, "{ended:?}");
    bench.server.resume(held).expect("a thread");
    plain.flush().expect("a flush");
    dial(&bench).expect("a grant").flush().expect("a flush");
}

#[test]
fn a_client_over_tls_that_waits_for_limits_does_not_keep_a_server_from_being_held() {
    let cluster = Cluster::new();
    let keyring = cluster.keyring(Role::Block, Uuid::new_v4());
    let account = Account::new();
    account.limit(Limits { bandwidth: Some(ByteSize::bytes(1)), ..Limits::NONE });
    let mut bench = bench_on(ServerConfig { tls: Some(keyring), ..local(all_local()) }, SIZE, account.clone());
    if bench.server.engine() != "uring" {
        return;
    }
    let alice = Uuid::from_u128(1);
    let grant = Grant { client: alice, client_name: "alice".into(), read_only: false, exclusive: false };
    bench.table.admit("disk", grant).expect("room");
    let keys = cluster.keyring(Role::Data, alice);
    let config = tls::dialling(&keys).expect("a configuration");
    let mut secure = Client::dial_with(&bench.uri("disk"), Some(config)).expect("a grant");
    let tickets = [(); 2].map(|()| secure.submit_write(0, &[7; 4096], false).expect("a write"));
    // The second one for more than an hour.
    while account.waiting() == 0 {
        std::thread::yield_now();
    }
    drop(bench.server.hold(LIMIT).expect("nothing is stuck"));
    tickets.into_iter().for_each(|ticket| drop(secure.wait(ticket).expect("an answer")));
}

/// What has become of an export, and why its clients cannot go on.
#[test]
fn who_relied_on_what_is_no_more_is_cut_with_the_reason() {
    let grant = Grant { client: Uuid::from_u128(1), client_name: "alice".into(), read_only: false, exclusive: true };
    let io = |size| Arc::new(MemoryIo::new(size)) as Arc<dyn BlockIo>;
    let exclusive = |table: &ExportTable| table.admit("disk", grant.clone()).expect("room");
    let same = || served("disk", io(SIZE));
    let cases: [(&str, Option<ServedExport>, bool); 6] = [
        ("another volume", Some(ServedExport { id: Uuid::from_u128(9), ..same() }), false),
        ("shrunk", Some(served("disk", io(SIZE / 2))), false),
        ("may only be read", Some(ServedExport { read_only: true, ..same() }), false),
        ("'alice' alone", Some(same()), true),
        ("no export 'disk'", None, false),
        ("", Some(served("disk", io(2 * SIZE))), false),
    ];
    for (reason, export, taken) in cases {
        let mut bench = bench();
        if bench.server.engine() != "uring" {
            return;
        }
        let mut client = bench.client();
        let held = bench.server.hold(LIMIT).expect("nothing is stuck");
        let carried = held.carry().expect("descriptors");
        bench.server.leave(held);
        let table = ExportTable::new();
        if taken {
            exclusive(&table);
        }
        let limit = if export.is_some() { LIMIT } else { Duration::ZERO };
        if let Some(export) = export {
            table.publish(export).expect("a free name");
        }
        let server = start(local(all_local()), table);
        let adopted = server.adopter().adopt(carried, limit);
        match adopted.ended.as_slice() {
            [(name, why)] => assert!(name == "disk" && !reason.is_empty() && why.contains(reason), "{why}"),
            _ => assert!(reason.is_empty() && adopted.went_on == 1, "{reason}: {adopted:?}"),
        }
        assert_eq!(client.flush().is_ok(), reason.is_empty(), "{reason}");
    }
}

#[test]
fn a_server_of_threads_goes_on_with_what_a_ring_has_held() {
    let Some(mut place) = place(Path::new("/dev/shm")) else { return };
    let mut stream = place.enter();
    let bytes = stream_of(&SOME);
    let Some(whole) = play(Path::new("/dev/shm"), &SOME, &[]) else { return };
    for cut in [30, 190, 300] {
        stream.write_all(&bytes[..cut]).expect("a listener");
        wait_until_taken(&stream);
        let held = place.server.hold(LIMIT).expect("nothing is stuck");
        let carried = held.carry().expect("descriptors");
        place.server.leave(held);
        let config = ServerConfig { engine: EngineChoice::Threads, ..local(all_local()) };
        let server = NbdServer::start(config, place.table.clone()).expect("a free port");
        assert_eq!(server.adopter().adopt(carried, LIMIT).went_on, 1);
        stream.write_all(&bytes[cut..]).expect("a listener");
        assert!(replies(&mut stream, SOME.len()) == whole.0, "cut after {cut} bytes");
        drop(server);
        let Some(next) = self::place(Path::new("/dev/shm")) else { return };
        (stream, place) = (next.enter(), next);
    }
}
