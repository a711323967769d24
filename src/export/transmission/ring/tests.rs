//! A reactor that is driven by hand, on a medium that answers when it is told to.

use super::client::{Client, Way};
use super::reactor::Reactor;
use super::uring::Handle;
use super::*;
use crate::export::account::Account;
use crate::export::grants::Guest;
use crate::export::table::{ExportTable, ServedExport};
use crate::export::transmission::tally::Tally;
use crate::export::transmission::{Owed, Presence};
use crate::io::{BlockIo, Extent, RawFile};
use crate::nbd::wire::*;
use crate::nbd::{Command, Contexts, Headers, Stream, Terms};
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
struct Scene {
    reactor: Reactor,
    table: Arc<ExportTable>,
    client: UnixStream,
}

/// A connection to the export, as the engine is handed one, and its client's end.
fn session(table: &ExportTable) -> (Session, UnixStream) {
    let (ours, client) = UnixStream::pair().expect("a pair of sockets");
    let export = Arc::new(table.attach("disk", Guest::Local, None).expect("an export"));
    let (headers, contexts) = (Headers::Compact, Contexts::default());
    let terms = Terms { read_only: false, headers, contexts, minimum_block: 1 };
    let presence = Presence::new(Arc::new(Stream::Unix(ours)), Box::new(()));
    (Session { export, name: "disk".into(), terms, leftover: Vec::new(), owed: Owed::default(), presence }, client)
}

impl Scene {
    fn set(direct: File) -> Option<Self> {
        let mailbox = Arc::new(Mailbox::new().expect("a mailbox"));
        let mut reactor = match Reactor::new(mailbox, Arc::default(), Arc::default()) {
            Ok(reactor) => reactor,
            Err(error) => {
                eprintln!("skipped: io_uring cannot be used here: {error}");
                return None;
            }
        };
        let table = ExportTable::new();
        let io = Arc::new(Stalled(RawFile::around(tempfile::tempfile().expect("an empty file"), direct)));
        let (name, id, account) = ("disk".to_owned(), uuid::Uuid::nil(), Account::new());
        let served = ServedExport { name, id, description: String::new(), io, read_only: false, account };
        table.publish(served).expect("a free name");
        let (session, client) = session(&table);
        reactor.admit(session);
        Some(Self { reactor, table, client })
    }

    fn request(&mut self, kind: u16, payload: &[u8]) {
        let header =
            [&NBD_REQUEST_MAGIC.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &[0; 16], &LENGTH.to_be_bytes()];
        self.client.write_all(&[&header.concat(), payload].concat()).expect("a request");
    }

    /// Turns until the medium has the request.
    fn run_until_begun(&mut self) {
        while !self.reactor.works_on_media() {
            self.reactor.turn(&mut Vec::new()).expect("a turn");
        }
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
    let Some(mut scene) = Scene::set(tempfile::tempfile().expect("a file")) else { return };
    let (session, _socket) = session(&scene.table);
    let tally = Tally::new(session.export.account(), None);
    let mut client = Client::new(session, tally, 7, Handle::Plain(-1), Way::Workers);
    let id = ClientId { place: 7, round: 7 };
    let held: Vec<_> = std::iter::from_fn(|| scene.reactor.buffer(id, &client, 1 << 20)).collect();
    let bytes: usize = held.iter().map(|buffer| buffer.len()).sum();
    assert!((64 << 20..=67 << 20).contains(&bytes), "{bytes} bytes");
    assert!(scene.reactor.buffer(id, &client, 128 << 10).is_some(), "it holds nothing");
    client.take_off(Command::Read { offset: 0, length: LENGTH });
    assert!(scene.reactor.buffer(id, &client, 128 << 10).is_none(), "its other one must end first");
    drop(held);
    assert!(scene.reactor.buffer(id, &client, 1 << 20).is_some());
}
