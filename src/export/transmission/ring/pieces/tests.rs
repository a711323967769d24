//! A reactor without memory, driven by hand.

use super::super::Mail;
use super::super::memory::Buffer;
use super::super::tests::{Scene, file, request};
use super::*;
use crate::export::transmission::Session;
use crate::io::{BlockIo, Fault, FaultIo, FileIo, MemoryIo, Operation};
use crate::model;
use crate::nbd::wire::*;
use crate::nbd::{Headers, PIECE};
use proptest::prelude::*;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

/// Each request has bytes of its own on the medium, so that the order of those in flight does not matter.
const SLOT: u64 = 1 << 20;
const SLOTS: u64 = 6;

impl Scene {
    /// All the memory that there is for large requests.
    fn exhaust(&self) -> Vec<Buffer> {
        let held = |length| {
            let client = self.reactor.clients.iter().flatten().next().expect("a client");
            std::iter::from_fn(move || self.reactor.buffer(client, length))
        };
        held(1 << 20).chain(held(PIECE as usize + 1)).collect()
    }

    /// Has the client do something, and turns until its connection has ended.
    fn run<T: Send + 'static>(mut self, client: impl FnOnce(UnixStream) -> T + Send + 'static) -> T {
        let stream = self.client.try_clone().expect("a handle");
        let doing = std::thread::spawn(move || client(stream));
        self.run_until(|reactor| reactor.clients.iter().all(Option::is_none));
        doing.join().expect("no panic")
    }
}

/// What the medium holds at first: bytes that are the same nowhere near.
static CONTENT: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..SLOT * SLOTS).map(|at| (at / 5) as u8 ^ (at >> 18) as u8).collect());

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// A reply: its cookie, and data or an error.
type Heard = (u64, Result<Vec<u8>, u64>);

fn take(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("an answer");
    bytes
}

/// The next whole reply, where each read has so many bytes and the cookie says its slot.
fn hear(stream: &mut UnixStream, reads: &[Option<u32>]) -> Heard {
    let mut data = Vec::new();
    loop {
        let header = take(stream, 16);
        let cookie = number(&header[8..]);
        let length = reads[cookie as usize];
        if number(&header[..4]) == u64::from(NBD_SIMPLE_REPLY_MAGIC) {
            let errno = number(&header[4..8]);
            let data = length.filter(|_| errno == 0).map(|length| take(stream, length as usize));
            return (cookie, if errno == 0 { Ok(data.unwrap_or_default()) } else { Err(errno) });
        }
        let size = number(&take(stream, 4)) as usize;
        let payload = take(stream, size);
        let (done, kind) = (header[5] == 1, number(&header[6..8]) as u16);
        match kind {
            NBD_REPLY_TYPE_ERROR => return (cookie, Err(number(&payload[..4]))),
            NBD_REPLY_TYPE_OFFSET_DATA => data.extend(&payload[8..]),
            NBD_REPLY_TYPE_NONE => {}
            kind => panic!("{kind}"),
        }
        if done {
            return (cookie, Ok(data));
        }
    }
}

#[derive(Clone, Debug)]
struct Asked {
    kind: u16,
    flags: u16,
    start: u64,
    length: u32,
}

fn asked() -> impl Strategy<Value = Vec<Asked>> {
    let kind = prop_oneof![3 => Just(NBD_CMD_READ), 3 => Just(NBD_CMD_WRITE), 1 => Just(NBD_CMD_FLUSH)];
    let start = prop_oneof![0..5000u64, Just(0), Just(4096)];
    let length = prop_oneof![1..5000u32, 1..900_000u32, (1..220u32).prop_map(|blocks| blocks * 4096)];
    let one = (kind, any::<bool>(), start, length).prop_map(|(kind, flag, start, length)| {
        let flags = if flag && kind == NBD_CMD_WRITE { NBD_CMD_FLAG_FUA } else { 0 };
        Asked { kind, flags, start, length }
    });
    proptest::collection::vec(one, 1..SLOTS as usize)
}

/// What a client hears that asks for everything at once, and what the medium holds afterwards.
fn play(io: Arc<dyn BlockIo>, headers: Headers, asked: &[Asked], memory: bool) -> Option<(Vec<Heard>, Vec<u8>)> {
    io.write(&CONTENT, 0, false).expect("bytes");
    let scene = Scene::with(io.clone(), headers)?;
    let held = if memory { Vec::new() } else { scene.exhaust() };
    let (mut sent, mut reads) = (Vec::new(), Vec::new());
    for (slot, Asked { kind, flags, start, length }) in asked.iter().enumerate() {
        let (offset, length) = if *kind == NBD_CMD_FLUSH { (0, 0) } else { (slot as u64 * SLOT + start, *length) };
        let alone = *kind == NBD_CMD_READ && headers == Headers::Structured && start % 2 == 0;
        let flags = if alone { NBD_CMD_FLAG_DF } else { *flags };
        sent.extend(request(flags, *kind, slot as u64, offset, length));
        if *kind == NBD_CMD_WRITE {
            sent.extend_from_slice(&CONTENT[1000 * slot + 7..][..length as usize]);
        }
        reads.push((*kind == NBD_CMD_READ).then_some(length));
    }
    let heard = scene.run(move |mut stream| {
        let mut sending = stream.try_clone().expect("a handle");
        let sender = std::thread::spawn(move || sending.write_all(&sent).expect("a listener"));
        let mut heard: Vec<Heard> = reads.iter().map(|_| hear(&mut stream, &reads)).collect();
        sender.join().expect("no panic");
        stream.shutdown(Shutdown::Both).expect("an open socket");
        heard.sort();
        heard
    });
    drop(held);
    let mut holds = vec![0; (SLOT * SLOTS) as usize];
    io.read(&mut holds, 0).expect("the medium");
    Some((heard, holds))
}

fn file_in(directory: &Path) -> Arc<dyn BlockIo> {
    let file: File = tempfile::tempfile_in(directory).expect("a file");
    file.set_len(SLOT * SLOTS).expect("a sparse file");
    Arc::new(FileIo::new(file).expect("a regular file"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_client_hears_the_same_whether_or_not_there_is_memory(asked in asked(), medium in 0..3, structured: bool) {
        let headers = if structured { Headers::Structured } else { Headers::Compact };
        let io = match medium {
            0 => file_in(&std::env::temp_dir()),
            1 => file_in(Path::new("/dev/shm")),
            _ => Arc::new(MemoryIo::new(SLOT * SLOTS)),
        };
        let (Some(whole), Some(pieces)) = (play(io.clone(), headers, &asked, true), play(io, headers, &asked, false))
        else { return Ok(()) };
        prop_assert!(whole.0 == pieces.0, "other replies");
        prop_assert!(whole.1 == pieces.1, "other bytes on the medium");
    }
}

/// A scene without memory, on a medium of so many bytes that can be told to fail.
fn faulty(headers: Headers) -> Option<(Scene, Vec<Buffer>, Arc<FaultIo>)> {
    let io = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(SLOT))));
    let scene = Scene::with(io.clone(), headers)?;
    let held = scene.exhaust();
    Some((scene, held, io))
}

fn third(operation: Operation) -> Fault {
    Fault { skip: 2, ..Fault::once(operation, libc::EIO) }
}

#[test]
fn a_read_of_which_a_piece_fails_is_an_error_or_the_end_where_it_is_too_late_for_that() {
    for headers in [Headers::Compact, Headers::Structured] {
        let Some((scene, _held, io)) = faulty(headers) else { return };
        io.inject(third(Operation::Read));
        let account = scene.account.clone();
        let rest = scene.run(move |mut stream| {
            stream.write_all(&request(0, NBD_CMD_READ, 0, 0, SLOT as u32)).expect("a listener");
            if headers == Headers::Structured {
                assert_eq!(hear(&mut stream, &[Some(SLOT as u32)]), (0, Err(libc::EIO as u64)));
                stream.shutdown(Shutdown::Both).expect("an open socket");
            }
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).expect("the end");
            rest.len()
        });
        assert_eq!(rest, if headers == Headers::Compact { 16 + 2 * PIECE as usize } else { 0 });
        let seen = account.figures();
        let reads = seen.of(model::Operation::Read);
        assert_eq!((reads.operations(), reads.errors, reads.bytes, seen.in_flight, seen.refused), (1, 1, 0, 0, 0));
    }
}

#[test]
fn a_write_of_which_a_piece_fails_has_one_error_and_none_of_its_payload_is_taken_for_a_request() {
    for (operation, flags) in [(Operation::Write, 0), (Operation::Flush, NBD_CMD_FLAG_FUA)] {
        let Some((scene, _held, io)) = faulty(Headers::Structured) else { return };
        io.inject(if flags == 0 { third(operation) } else { Fault::once(operation, libc::EIO) });
        let account = scene.account.clone();
        scene.run(move |mut stream| {
            let write = request(flags, NBD_CMD_WRITE, 0, 0, SLOT as u32);
            stream.write_all(&[&write[..], &[7; SLOT as usize]].concat()).expect("a listener");
            stream.write_all(&request(0, NBD_CMD_READ, 1, 0, 512)).expect("a listener");
            let reads = [None, Some(512)];
            assert_eq!(hear(&mut stream, &reads), (0, Err(libc::EIO as u64)));
            assert_eq!(hear(&mut stream, &reads), (1, Ok(vec![7; 512])));
            stream.shutdown(Shutdown::Both).expect("an open socket");
        });
        let seen = account.figures();
        let writes = seen.of(model::Operation::Write);
        assert_eq!((writes.operations(), writes.errors, writes.bytes, seen.in_flight, seen.refused), (1, 1, 0, 0, 0));
    }
}

#[test]
fn a_durable_write_in_pieces_is_flushed_before_its_reply() {
    let Some((scene, _held, io)) = faulty(Headers::Compact) else { return };
    scene.run(|mut stream| {
        let write = request(NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 0, 0, SLOT as u32);
        stream.write_all(&[&write[..], &[7; SLOT as usize]].concat()).expect("a listener");
        assert_eq!(hear(&mut stream, &[None]), (0, Ok(vec![])));
        stream.shutdown(Shutdown::Both).expect("an open socket");
    });
    let done: Vec<_> = io.performed().iter().map(|done| (done.operation, done.offset)).collect();
    let pieces = (0..4).map(|number| (Operation::Write, number * u64::from(PIECE)));
    assert_eq!(done, pieces.chain([(Operation::Flush, 0)]).collect::<Vec<_>>());
}

/// A write whose client has sent two pieces and a half.
fn stalled() -> Option<(Scene, Vec<Buffer>)> {
    let mut scene = Scene::on(Arc::new(file()))?;
    let held = scene.exhaust();
    let mut client = scene.client.try_clone().expect("a handle");
    let write = request(0, NBD_CMD_WRITE, 0, 0, SLOT as u32);
    let sender = std::thread::spawn(move || {
        client.write_all(&[&write[..], &[7; 5 * PIECE as usize / 2]].concat()).expect("a listener");
    });
    scene.run_until(|reactor| {
        let client = reactor.clients.iter().flatten().next().expect("a client");
        let offset = client.incoming.as_ref().map(|incoming| incoming.request.command);
        matches!(offset, Some(Command::Write { offset, .. }) if offset == 2 * u64::from(PIECE))
    });
    sender.join().expect("no panic");
    Some((scene, held))
}

fn rest(client: &mut UnixStream) {
    client.write_all(&[7; 3 * PIECE as usize / 2]).expect("a listener");
    client.write_all(&request(0, NBD_CMD_FLUSH, 1, 0, 0)).expect("a listener");
}

#[test]
fn a_freeze_does_not_wait_for_the_rest_of_a_write_and_no_piece_of_it_slips_in() {
    let Some((mut scene, _held)) = stalled() else { return };
    let freeze = scene.table.freeze(&["disk"], Duration::from_secs(60)).expect("no piece is in flight");
    let mut client = scene.client.try_clone().expect("a handle");
    let sender = std::thread::spawn(move || rest(&mut client));
    scene.run_until(|reactor| {
        reactor.clients.iter().flatten().any(|client| matches!(client.waiting, Some((_, _, Waits::Gate))))
    });
    let export = scene.table.attach("disk", crate::export::Guest::Local, None).expect("the export");
    let mut seen = vec![0; SLOT as usize];
    export.io().expect("the medium").read(&mut seen, 0).expect("a read");
    let (before, after) = seen.split_at(2 * PIECE as usize);
    assert!(before.iter().all(|byte| *byte == 7) && after.iter().all(|byte| *byte == 0));
    drop(freeze);
    scene.run(|mut stream| {
        for cookie in 0..2 {
            assert_eq!(hear(&mut stream, &[None, None]), (cookie, Ok(vec![])));
        }
        stream.shutdown(Shutdown::Both).expect("an open socket");
    });
    sender.join().expect("no panic");
    export.io().expect("the medium").read(&mut seen, 0).expect("a read");
    assert!(seen.iter().all(|byte| *byte == 7));
}

#[test]
fn a_server_that_ends_does_not_wait_for_the_rest_of_a_write() {
    let Some((scene, _held)) = stalled() else { return };
    scene.reactor.mailbox.post(Mail::Drain);
    let account = scene.account.clone();
    let said = scene.run(|mut stream| stream.read(&mut [0]).expect("the end"));
    assert_eq!((said, account.figures().in_flight), (0, 0));
}

/// Where connections go that are handed over.
fn elsewhere(scene: &mut Scene) -> Arc<Mutex<Vec<Session>>> {
    let parted = Arc::<Mutex<Vec<Session>>>::default();
    let taking = Arc::clone(&parted);
    scene.reactor.part(Arc::new(move |session| taking.lock().expect("no panic").push(session)));
    parted
}

#[test]
fn a_write_in_pieces_ends_before_its_connection_is_handed_over_and_nothing_behind_it_is_begun() {
    let Some((mut scene, _held)) = stalled() else { return };
    let parted = elsewhere(&mut scene);
    let io = scene.table.attach("disk", crate::export::Guest::Local, None).expect("the export");
    let parting = Arc::clone(&parted);
    scene.run(move |mut stream| {
        rest(&mut stream);
        assert_eq!(hear(&mut stream, &[None]), (0, Ok(vec![])));
        drop(parting);
    });
    let sessions = std::mem::take(&mut *parted.lock().expect("no panic"));
    let [session] = sessions.as_slice() else { panic!("{} were handed over", sessions.len()) };
    let mut seen = vec![0; SLOT as usize];
    io.io().expect("the medium").read(&mut seen, 0).expect("a read");
    assert!(seen.iter().all(|byte| *byte == 7));
    let flush = request(0, NBD_CMD_FLUSH, 1, 0, 0);
    assert!(session.leftover.is_empty() || session.leftover == flush, "what came behind it goes along");
}

#[test]
fn who_does_not_take_a_large_reply_does_not_keep_others_from_being_handed_over() {
    let Some(mut scene) = Scene::on(Arc::new(file())) else { return };
    let _held = scene.exhaust();
    scene.client.write_all(&request(0, NBD_CMD_READ, 0, 0, SLOT as u32)).expect("a listener");
    scene.run_until(|reactor| reactor.clients.iter().flatten().any(|client| client.sending));
    let parted = elsewhere(&mut scene);
    scene.run_until(|reactor| reactor.clients.iter().all(Option::is_none));
    assert!(parted.lock().expect("no panic").is_empty(), "it had its time");
}
