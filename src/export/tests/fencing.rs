//! Guests whose hold ends while the engine has their requests: by a session of a client in plain, as the engine is
//! handed one.

use super::*;
use crate::export::transmission::{Engine, Owed, Presence, Session};
use crate::io::{Fault, FileIo, Gate, Operation};
use crate::model::{ByteSize, Limits};
use crate::nbd::wire::*;
use crate::nbd::{Contexts, Headers, Stream, Terms};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread::Scope;
use std::time::Duration;
use uuid::Uuid;

const ALICE: Uuid = Uuid::from_u128(1);

/// An engine with a table, and no network.
struct Stage {
    table: Arc<ExportTable>,
    account: Arc<Account>,
    engine: Engine,
}

fn stage(io: Arc<dyn BlockIo>) -> Stage {
    let closing = Arc::new(AtomicBool::new(false));
    let engine = match Engine::start(ENGINE, &closing, &closing) {
        Err(EngineError::Uring(error)) => {
            eprintln!("skipped: io_uring cannot be used here: {error}");
            Engine::start(EngineChoice::Threads, &closing, &closing).expect("an engine")
        }
        started => started.expect("an engine"),
    };
    let table = ExportTable::new();
    let export = served("disk", io);
    let account = export.account.clone();
    table.publish(export).expect("a free name");
    Stage { table, account, engine }
}

impl Stage {
    fn admit(&self) {
        let grant = Grant { client: ALICE, client_name: "alice".into(), read_only: false, exclusive: false };
        self.table.admit("disk", grant).expect("room");
    }

    /// Alice's session, with these bytes behind its handshake, and her end of it; `None` without a grant.
    fn enter(&self, leftover: Vec<u8>) -> Option<(Session, UnixStream)> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let stream = Arc::new(Stream::Unix(ours));
        let cuts = stream.clone();
        let cut: Cut = Box::new(move || cuts.shutdown(Shutdown::Both).expect("an end"));
        let export = Arc::new(self.table.attach("disk", Guest::Client(ALICE), Some(cut)).ok()?);
        let (headers, contexts) = (Headers::Compact, Contexts::default());
        let terms = Terms { read_only: false, headers, contexts, minimum_block: 1 };
        let presence = Presence::new(stream, Box::new(()));
        Some((Session { export, name: "disk".into(), terms, leftover, owed: Owed::default(), presence }, theirs))
    }

    /// A session that is being served; whatever thread that takes ends with the scope.
    fn serve<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> UnixStream {
        let (session, theirs) = self.enter(Vec::new()).expect("a grant");
        scope.spawn(|| self.engine.serve(session));
        theirs
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.table.retire("disk");
        self.engine.end();
    }
}

fn write(cookie: u64, offset: u64, length: u32, byte: u8) -> Vec<u8> {
    let header = [
        &NBD_REQUEST_MAGIC.to_be_bytes()[..],
        &[0, 0],
        &NBD_CMD_WRITE.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    let payload = vec![byte; length as usize];
    [header.concat(), payload].concat()
}

fn content(io: &dyn BlockIo) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    io.read(&mut bytes, 0).expect("a read");
    bytes
}

fn file_in(directory: &Path) -> Arc<FileIo> {
    let path = directory.join(Uuid::new_v4().to_string());
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("its name is not needed");
    file.set_len(SIZE).expect("a sparse file");
    Arc::new(FileIo::new(file).expect("a regular file"))
}

#[test]
fn a_fence_waits_for_a_write_in_flight_and_carries_out_nothing_later() {
    let io = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(SIZE))));
    let stage = stage(io.clone());
    stage.admit();
    let gate = Gate::new();
    io.inject(Fault::hold(Operation::Write, &gate));
    std::thread::scope(|scope| {
        let mut alice = stage.serve(scope);
        alice.write_all(&write(1, 0, 512, 7)).expect("a write");
        gate.wait_for(1);
        let fencing = scope.spawn(|| stage.table.fence("disk", ALICE));
        assert_eq!(alice.read(&mut [0]).ok(), Some(0), "cut while the write goes on");
        assert!(alice.write_all(&write(2, 512, 512, 8)).is_err());
        assert!(!fencing.is_finished() && stage.table.users("disk") == Some(1));
        gate.open();
        assert_eq!(fencing.join().ok(), Some(Fenced::Gone));
        assert_eq!(stage.table.users("disk"), Some(0));
        let seen = content(io.as_ref());
        assert_eq!((seen[0], seen[512]), (7, 0), "what was begun is done");
    });
}

#[test]
fn nothing_that_a_fenced_client_sent_reaches_a_file_after_the_fence() {
    for directory in [Path::new("/dev/shm"), &std::env::temp_dir()] {
        let io = file_in(directory);
        let stage = stage(io.clone());
        for round in 1..=40u8 {
            stage.admit();
            std::thread::scope(|scope| {
                let mut alice = stage.serve(scope);
                let mut replies = alice.try_clone().expect("the same socket");
                let (told, answered) = mpsc::channel();
                scope.spawn(move || {
                    let mut reply = [0; 16];
                    while replies.read_exact(&mut reply).is_ok() && told.send(()).is_ok() {}
                });
                // Whole blocks and parts of them, until she is cut.
                scope.spawn(move || {
                    let offsets = (0..SIZE / 8192).cycle().map(|block| block * 8192);
                    for (cookie, offset) in offsets.enumerate() {
                        let (offset, length) = if cookie % 4 == 3 { (offset + 4500, 700) } else { (offset, 4096) };
                        if alice.write_all(&write(cookie as u64, offset, length, round)).is_err() {
                            return;
                        }
                    }
                });
                answered.iter().take(usize::from(round)).for_each(drop);
                assert_eq!(stage.table.fence("disk", ALICE), Fenced::Gone);
                let (users, at_once) = (stage.table.users("disk"), content(io.as_ref()));
                // Whoever still had something of hers in hand would have carried it out by the end of a flush.
                io.flush().expect("a flush");
                assert_eq!(users, Some(0));
                assert!(content(io.as_ref()) == at_once, "round {round}: a write came after the fence");
            });
        }
    }
}

#[test]
fn a_session_that_comes_while_a_fence_falls_changes_nothing_after_it() {
    let io = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(SIZE))));
    let stage = stage(io.clone());
    for _ in 0..200 {
        stage.admit();
        std::thread::scope(|scope| {
            let coming = scope.spawn(|| {
                let Some((session, theirs)) = stage.enter(write(1, 0, 512, 1)) else { return };
                stage.engine.serve(session);
                drop(theirs);
            });
            stage.table.fence("disk", ALICE);
            let (users, done) = (stage.table.users("disk"), io.performed().len());
            assert!(coming.join().is_ok());
            assert_eq!((users, io.performed().len()), (Some(0), done));
        });
    }
}

#[test]
fn a_change_that_a_freeze_holds_is_not_made_after_its_client_was_fenced() {
    let io = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(SIZE))));
    let stage = stage(io.clone());
    stage.admit();
    let freeze = stage.table.freeze(&["disk"], Duration::from_secs(60)).expect("nothing in flight");
    std::thread::scope(|scope| {
        let mut alice = stage.serve(scope);
        alice.write_all(&write(1, 0, 512, 7)).expect("a write");
        // Nothing more comes from her: only her end is left to be heard of.
        alice.shutdown(Shutdown::Write).expect("an end of one direction");
        let fencing = scope.spawn(|| stage.table.fence("disk", ALICE));
        assert!(!matches!(alice.read(&mut [0]), Ok(1..)), "her end comes, and no reply before it");
        drop(freeze);
        assert_eq!(fencing.join().ok(), Some(Fenced::Gone));
    });
    assert!(io.performed().iter().all(|done| done.operation != Operation::Write));
}

#[test]
fn a_fence_does_not_wait_for_what_waits_for_limits_and_that_is_never_done() {
    let io = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(SIZE))));
    let stage = stage(io.clone());
    stage.admit();
    // One write of this size is paid off in days.
    stage.account.limit(Limits { bandwidth: Some(ByteSize::bytes(1)), ..Limits::NONE });
    std::thread::scope(|scope| {
        let mut alice = stage.serve(scope);
        alice.write_all(&[write(1, 0, 200_000, 7), write(2, 0, 512, 8)].concat()).expect("writes");
        alice.read_exact(&mut [0; 16]).expect("an answer to the first");
        while stage.account.waiting() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(stage.table.fence("disk", ALICE), Fenced::Gone);
        assert!(!matches!(alice.read(&mut [0]), Ok(1..)), "no answer to the second");
    });
    assert_eq!(content(io.as_ref())[0], 7);
    assert_eq!((stage.account.waiting(), stage.account.figures().connections), (0, 0));
}

#[test]
fn a_freeze_is_in_no_client_s_way() {
    let stage = stage(Arc::new(MemoryIo::new(SIZE)));
    let freeze = stage.table.freeze(&["disk"], Duration::from_secs(60)).expect("nothing in flight");
    let alone = Grant { client: ALICE, client_name: "alice".into(), read_only: false, exclusive: true };
    stage.table.admit("disk", alone).expect("nobody is there");
    drop(freeze);
    stage.table.freeze(&["disk"], Duration::from_secs(60)).map(drop).expect("whoever it is granted to");
}
