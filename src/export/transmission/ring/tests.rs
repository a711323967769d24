//! A reactor that is driven by hand, on a medium that answers when it is told to.

use super::client::{Client, Way};
use super::reactor::Reactor;
use super::requests::remember_failure;
use super::uring::Handle;
use super::*;
use crate::export::account::Account;
use crate::export::grants::Guest;
use crate::export::table::{ExportTable, ServedExport};
use crate::export::transmission::tally::Tally;
use crate::export::transmission::{Owed, Presence};
use crate::io::{BlockIo, Extent, FileIo, MemoryIo, RawFile};
use crate::nbd::wire::*;
use crate::nbd::{Command, Contexts, Headers, Stream, Terms};
use nix::errno::Errno;
use nix::unistd::pipe;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

const LENGTH: u32 = 4096;

/// Direct accesses end when somebody acts on the other end of a pipe.
struct Stalled(RawFile);

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl BlockIo for Stalled {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        unsupported()
    }

    fn write(&self, _: &[u8], _: u64, _: bool) -> io::Result<()> {
        unsupported()
    }

    fn flush(&self) -> io::Result<()> {
        unsupported()
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        unsupported()
    }

    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        unsupported()
    }

    fn extents(&self, _: u64, _: u64, _: usize) -> io::Result<Vec<Extent>> {
        unsupported()
    }

    fn raw(&self) -> Option<&RawFile> {
        Some(&self.0)
    }
}

/// A reactor of this thread with one connection to an export called "disk"; `None` where there is no io_uring.
pub(super) struct Scene {
    pub(super) reactor: Reactor,
    pub(super) table: Arc<ExportTable>,
    pub(super) account: Arc<Account>,
    pub(super) client: UnixStream,
}

/// A connection to the export, as the engine is handed one, and its client's end.
fn session(table: &ExportTable, headers: Headers) -> (Session, UnixStream) {
    let (ours, client) = UnixStream::pair().expect("a pair of sockets");
    let export = Arc::new(table.attach("disk", Guest::Local, None).expect("an export"));
    let terms = Terms { read_only: false, headers, contexts: Contexts::default(), minimum_block: 1 };
    let presence = Presence::new(Arc::new(Stream::Unix(ours)), Box::new(()));
    (Session { export, name: "disk".into(), terms, leftover: Vec::new(), owed: Owed::default(), presence }, client)
}

impl Scene {
    fn set(direct: File) -> Option<Self> {
        Self::on(Arc::new(Stalled(RawFile::around(tempfile::tempfile().expect("an empty file"), direct))))
    }

    pub(super) fn on(io: Arc<dyn BlockIo>) -> Option<Self> {
        Self::with(io, Headers::Compact)
    }

    pub(super) fn with(io: Arc<dyn BlockIo>, headers: Headers) -> Option<Self> {
        let mailbox = Arc::new(Mailbox::new().expect("a mailbox"));
        let mut reactor = match Reactor::new(mailbox, Arc::default(), Arc::default()) {
            Ok(reactor) => reactor,
            Err(error) => {
                eprintln!("skipped: io_uring cannot be used here: {error}");
                return None;
            }
        };
        let table = ExportTable::new();
        let (name, id, account) = ("disk".to_owned(), uuid::Uuid::nil(), Account::new());
        let counted = Arc::clone(&account);
        let served = ServedExport { name, id, description: String::new(), io, read_only: false, account: counted };
        table.publish(served).expect("a free name");
        let (session, client) = session(&table, headers);
        reactor.admit(session);
        Some(Self { reactor, table, account, client })
    }

    fn request(&mut self, kind: u16, payload: &[u8]) {
        self.client.write_all(&[&request(0, kind, 0, 0, LENGTH)[..], payload].concat()).expect("a request");
    }

    /// Turns until something is true of the reactor.
    pub(super) fn run_until(&mut self, is_true: impl Fn(&Reactor) -> bool) {
        while !is_true(&self.reactor) {
            self.reactor.turn(&mut Vec::new()).expect("a turn");
        }
    }

    /// Turns until the medium has the request.
    fn run_until_begun(&mut self) {
        self.run_until(Reactor::works_on_media);
    }

    /// The connection goes with its operation in flight, which no path of the reactor lets happen. Nobody may be told
    /// that the export has been let go until the kernel has done with `end` what it was asked to.
    fn lose_the_client_then(mut self, end: impl FnOnce()) {
        self.run_until_begun();
        self.reactor.lose_clients();
        assert_eq!(self.table.users("disk"), Some(1), "the operation in flight holds the export");
        std::thread::scope(|scope| {
            let retiring = scope.spawn(|| self.table.retire("disk"));
            end();
            while self.table.users("disk").is_some_and(|users| users > 0) {
                self.reactor.turn(&mut Vec::new()).expect("a turn");
            }
            assert!(retiring.join().is_ok(), "it is told now");
        });
    }
}

pub(super) fn file() -> FileIo {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(1 << 20).expect("a sparse file");
    FileIo::new(file).expect("a regular file")
}

/// Without its payload.
pub(super) fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let head = [&NBD_REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes()].concat()
}

#[test]
fn an_export_is_not_let_go_while_the_kernel_reads_from_it_for_a_connection_that_is_gone() {
    let (medium, other_end) = pipe().expect("a pipe");
    let Some(mut scene) = Scene::set(medium.into()) else { return };
    scene.request(NBD_CMD_READ, &[]);
    scene.lose_the_client_then(|| File::from(other_end).write_all(&[7; LENGTH as usize]).expect("bytes for the read"));
}

#[test]
fn an_export_is_not_let_go_while_the_kernel_writes_to_it_for_a_connection_that_is_gone() {
    let (other_end, medium) = pipe().expect("a pipe");
    let mut medium = File::from(medium);
    nix::fcntl::fcntl(&medium, nix::fcntl::FcntlArg::F_SETPIPE_SZ(LENGTH as i32)).expect("a short pipe");
    medium.write_all(&[1; LENGTH as usize]).expect("room for so much");
    let Some(mut scene) = Scene::set(medium) else { return };
    scene.request(NBD_CMD_WRITE, &[7; LENGTH as usize]);
    scene.lose_the_client_then(|| File::from(other_end).read_exact(&mut [0; LENGTH as usize]).expect("room is made"));
}

#[test]
fn memory_is_refused_when_it_is_used_up_but_one_modest_request_of_each_connection_goes_on() {
    let Some(scene) = Scene::set(tempfile::tempfile().expect("a file")) else { return };
    let (session, _socket) = session(&scene.table, Headers::Compact);
    let tally = Tally::new(session.export.account(), None);
    let mut client = Client::new(session, tally, 7, Handle::Plain(-1), Way::Workers);
    let held: Vec<_> = std::iter::from_fn(|| scene.reactor.buffer(&client, 1 << 20)).collect();
    let bytes: usize = held.iter().map(|buffer| buffer.len()).sum();
    assert!((64 << 20..=67 << 20).contains(&bytes), "{bytes} bytes");
    assert!(scene.reactor.buffer(&client, 128 << 10).is_some(), "it holds nothing");
    client.take_off(Command::Read { offset: 0, length: LENGTH, whole: false });
    assert!(scene.reactor.buffer(&client, 128 << 10).is_none(), "its other one must end first");
    drop(held);
    assert!(scene.reactor.buffer(&client, 1 << 20).is_some());
}

#[test]
fn a_reply_that_was_interrupted_by_a_hand_over_that_is_called_off_is_sent_to_its_end() {
    const LARGE: u32 = 1 << 20;
    let medium = MemoryIo::new(LARGE.into());
    medium.write(&[7; LARGE as usize], 0, false).expect("bytes");
    let Some(mut scene) = Scene::on(Arc::new(medium)) else { return };
    scene.client.write_all(&request(0, NBD_CMD_READ, 0, 0, LARGE)).expect("a request");
    // More than the socket takes.
    scene.run_until(|reactor| reactor.clients.iter().flatten().any(|client| client.sending));
    scene.reactor.part(Arc::new(|_| panic!("nothing stands still yet")));
    scene.reactor.parting = None;
    let mut client = scene.client.try_clone().expect("a handle");
    let reading = std::thread::spawn(move || {
        let mut reply = vec![0; 16 + LARGE as usize];
        let outcome = client.read_exact(&mut reply);
        client.shutdown(std::net::Shutdown::Both).map(|()| outcome.map(|()| reply))
    });
    scene.run_until(|reactor| reactor.clients.iter().all(Option::is_none));
    let reply = reading.join().expect("no panic").expect("an open socket").expect("the whole reply");
    assert!(reply[16..].iter().all(|byte| *byte == 7));
}

#[test]
fn a_durable_write_that_the_kernel_did_not_carry_out_this_way_loses_nothing() {
    let Some(scene) = Scene::on(Arc::new(file())) else { return };
    let (session, _socket) = session(&scene.table, Headers::Compact);
    let durable = Command::Write { offset: 0, length: LENGTH, fua: true };
    let io = session.export.io().expect("the export");
    for errno in [Errno::EINVAL, Errno::EINTR, Errno::EAGAIN, Errno::EBUSY, Errno::ENOMEM] {
        remember_failure(&session.export, durable, &Err(errno.into()));
        io.flush().unwrap_or_else(|error| panic!("{errno}: {error}"));
    }
    remember_failure(&session.export, durable, &Err(Errno::EIO.into()));
    assert!(io.flush().is_err());
}
