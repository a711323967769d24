//! Imports over NBD that are cut short and gone on with, and whose medium loses power, against our own server.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use symphony::export::{Account, EngineChoice, ExportTable, NbdServer, ServedExport, ServerConfig};
use symphony::image::{Content, Part, Sum};
use symphony::io::crash::{CachingIo, Lie, Moments};
use symphony::io::{BlockIo, Fault, FaultIo, MemoryIo, Operation};
use symphony::model::{ByteSize, Digest};
use symphony::nbd::import::{Before, ImportError, Stopped, Watcher, import};
use symphony::nbd::{Client, Dialled};

const SIZE: u64 = 8 << 20;

/// Parts as they were written down, over and over.
struct Written {
    parts: Vec<Part>,
    next: usize,
    again: bool,
}

impl Written {
    /// Of pieces of a quarter of a mebibyte: a number is data of it, zero is a hole.
    fn of(pieces: &[u8]) -> Self {
        let part = |byte: &u8| match byte {
            0 => Part::Zeros(256 << 10),
            byte => Part::Data(vec![*byte; 256 << 10]),
        };
        Self { parts: pieces.iter().map(part).collect(), next: 0, again: true }
    }

    fn bytes(&self) -> Vec<u8> {
        let bytes = self.parts.iter().flat_map(|part| match part {
            Part::Data(data) => data.clone(),
            Part::Zeros(length) => vec![0; *length as usize],
        });
        bytes.collect()
    }

    fn digest(&self, bytes: u64) -> Digest {
        let mut sum = Sum::default();
        sum.add_data(&self.bytes()[..bytes as usize]);
        sum.digest()
    }
}

impl Content for Written {
    fn size(&self) -> u64 {
        self.parts.iter().map(Part::length).sum()
    }

    fn next(&mut self, most: u64) -> io::Result<Option<Part>> {
        let part = self.parts.get(self.next).cloned();
        self.next += 1;
        assert!(part.as_ref().is_none_or(|part| part.length() <= most), "the test's parts are all of a size");
        Ok(part)
    }

    fn rewind(&mut self) -> io::Result<bool> {
        self.next = 0;
        Ok(self.again)
    }
}

/// Notes what it is told, and ends an import after so many words.
#[derive(Default)]
struct Notes {
    durable: Vec<Option<Before>>,
    passed: u64,
    end_after: Option<usize>,
}

impl Watcher for Notes {
    fn passed(&mut self, bytes: ByteSize) {
        assert!(bytes.as_u64() > self.passed || bytes.as_u64() == 256 << 10, "progress goes forward or begins anew");
        self.passed = bytes.as_u64();
    }

    fn durable(&mut self, before: Option<Before>) -> Result<(), Stopped> {
        self.durable.push(before);
        match self.end_after {
            Some(count) if self.durable.len() > count => Err(Stopped),
            _ => Ok(()),
        }
    }
}

/// A server of one volume.
struct Served {
    _directory: tempfile::TempDir,
    _server: NbdServer,
    uri: String,
}

fn serve(io: Arc<dyn BlockIo>) -> Served {
    let directory = tempfile::tempdir().expect("a directory");
    let table = ExportTable::new();
    let (name, description, account) = ("base".to_owned(), String::new(), Account::new());
    let export = ServedExport { name, id: uuid::Uuid::nil(), description, io, read_only: false, account };
    table.publish(export).expect("a free name");
    let socket = directory.path().join("nbd.sock");
    let config = ServerConfig { unix: Some(socket.clone()), engine: EngineChoice::Threads, ..ServerConfig::new() };
    let server = NbdServer::start(config, table).expect("a server");
    let uri = format!("nbd+unix:///base?socket={}", socket.display());
    Served { _directory: directory, _server: server, uri }
}

impl Served {
    fn client(&self) -> Dialled {
        Client::dial(&self.uri.parse().expect("an URI")).expect("a connection")
    }

    fn import(
        &self,
        content: &mut Written,
        before: Option<Before>,
        watcher: &mut dyn Watcher,
    ) -> Result<Digest, ImportError> {
        import(content, &mut self.client(), before, Duration::ZERO, watcher)
    }
}

/// The same, and what was done to the volume.
struct Bench {
    served: Served,
    io: Arc<FaultIo>,
}

fn bench() -> Bench {
    let io = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(SIZE))));
    Bench { served: serve(io.clone()), io }
}

impl Bench {
    fn import(&self, content: &mut Written, before: Option<Before>, notes: &mut Notes) -> Result<Digest, ImportError> {
        self.served.import(content, before, notes)
    }

    fn holds(&self, expected: &[u8]) {
        let mut held = vec![0; expected.len()];
        self.io.read(&mut held, 0).expect("a read");
        assert!(held == expected, "the volume holds something else");
    }

    fn written(&self) -> u64 {
        let writes = self.io.performed();
        writes.iter().filter(|done| done.operation == Operation::Write).map(|done| done.length).sum()
    }
}

#[test]
fn what_is_sent_is_what_is_kept_and_its_digest_counts_the_zeros() {
    let bench = bench();
    let mut content = Written::of(&[1, 0, 0, 2, 0, 3]);
    let digest = bench.import(&mut content, None, &mut Notes::default()).expect("an import");
    assert_eq!(digest, content.digest(content.size()));
    bench.holds(&content.bytes());
    assert_eq!(bench.written(), 3 << 18, "zeros are not sent");
}

#[test]
fn an_import_goes_on_behind_what_is_durable_and_sends_nothing_twice() {
    let bench = bench();
    let mut content = Written::of(&[1, 2, 0, 3, 4]);
    let mut notes = Notes { end_after: Some(3), ..Notes::default() };
    let stopped = bench.import(&mut content, None, &mut notes);
    assert!(matches!(stopped, Err(ImportError::Stopped(_))), "{stopped:?}");
    let before = notes.durable.last().copied().flatten().expect("something is durable");
    assert_eq!((before.bytes, before.sha256), (3 << 18, content.digest(3 << 18)));
    assert_eq!(notes.durable.first(), Some(&None), "what was said of another content before does not hold");
    let sent = bench.written();
    content.rewind().expect("a test's content");
    let mut notes = Notes::default();
    let digest = bench.import(&mut content, Some(before), &mut notes).expect("the rest");
    assert_eq!(digest, content.digest(content.size()));
    bench.holds(&content.bytes());
    assert_eq!(bench.written() - sent, 2 << 18, "only the rest was sent");
    assert!(notes.durable.iter().all(Option::is_some), "nothing was taken back");
}

#[test]
fn another_content_begins_anew_and_zeroes_what_the_first_one_left() {
    let bench = bench();
    let first = Written::of(&[1, 2, 3, 4]);
    bench.import(&mut Written::of(&[1, 2, 3, 4]), None, &mut Notes::default()).expect("an import");
    let before = Before { bytes: 3 << 18, sha256: first.digest(3 << 18) };
    let mut other = Written::of(&[1, 0, 0, 5]);
    let mut notes = Notes::default();
    let digest = bench.import(&mut other, Some(before), &mut notes).expect("another import");
    assert_eq!(digest, other.digest(other.size()));
    bench.holds(&other.bytes());
    assert_eq!(notes.durable.first(), Some(&None));
    // What comes only once cannot.
    let mut stream = Written { again: false, ..Written::of(&[9, 9, 9, 9]) };
    let refused = bench.import(&mut stream, Some(before), &mut Notes::default()).expect_err("a refusal");
    assert!(format!("{:?}", refused).contains("differs from what was sent before"), "{refused:?}");
}

#[test]
fn words_of_more_than_there_is_are_not_believed() {
    let bench = bench();
    for bytes in [0, (1 << 20) + 1, u64::MAX] {
        let mut content = Written::of(&[1, 2, 3, 4]);
        let before = Before { bytes, sha256: Digest::from_bytes([0; 32]) };
        bench.import(&mut content, Some(before), &mut Notes::default()).expect("an import");
        bench.holds(&content.bytes());
    }
    let vast = bench.import(&mut Written::of(&[1; 33]), None, &mut Notes::default()).expect_err("too much");
    assert!(vast.to_string().contains("the volume only"), "{vast}");
}

#[test]
fn a_write_that_fails_ends_the_import_and_nothing_more_is_called_durable() {
    let bench = bench();
    bench.io.inject(Fault { skip: 2, ..Fault::every(Operation::Write, nix::errno::Errno::EIO as i32) });
    let mut notes = Notes::default();
    let failed = bench.import(&mut Written::of(&[1, 2, 3, 4]), None, &mut notes);
    assert!(failed.is_err());
    assert!(notes.durable.iter().flatten().all(|before| before.bytes <= 2 << 18), "{:?}", notes.durable);
}

/// Notes what is called durable, and when, by the steps that the medium had taken.
struct Witness {
    disk: CachingIo,
    said: Vec<(usize, Option<Before>)>,
}

impl Watcher for Witness {
    fn passed(&mut self, _bytes: ByteSize) {}

    fn durable(&mut self, before: Option<Before>) -> Result<(), Stopped> {
        self.said.push((self.disk.log().steps(), before));
        Ok(())
    }
}

/// Goes on with an import on a medium that holds `image`, and asserts what is there in the end.
fn go_on(image: &[u8], before: Option<Before>) {
    let disk = Arc::new(MemoryIo::new(SIZE));
    disk.write(image, 0, true).expect("a write");
    let mut content = Written::of(PIECES);
    let served = serve(disk.clone());
    let digest = served.import(&mut content, before, &mut Notes::default()).expect("the rest");
    assert_eq!(digest, content.digest(content.size()));
    let mut held = vec![0xff; SIZE as usize];
    disk.read(&mut held, 0).expect("a read");
    let mut expected = content.bytes();
    expected.resize(SIZE as usize, 0);
    assert!(held == expected, "another content came of it, from {before:?} on");
}

const PIECES: &[u8] = &[1, 0, 2, 0, 3, 4];

#[test]
fn an_import_whose_medium_loses_power_after_any_step_goes_on_and_every_byte_is_there() {
    let disk = CachingIo::new(SIZE, 5, Lie::None, &Moments::default());
    let mut witness = Witness { disk: disk.another(), said: Vec::new() };
    let mut content = Written::of(PIECES);
    serve(Arc::new(disk.another())).import(&mut content, None, &mut witness).expect("an import");
    assert!(witness.said.len() > PIECES.len() / 2, "{:?}", witness.said);
    let (log, mut random) = (disk.log(), fastrand::Rng::with_seed(9));
    for steps in 0..=log.steps() {
        let said: Vec<Option<Before>> = witness.said.iter().filter(|said| said.0 <= steps).map(|said| said.1).collect();
        // The last word may have been lost on its way to whoever keeps it.
        let words = [said.last(), said.len().checked_sub(2).and_then(|last| said.get(last))];
        for (fate, before) in (0..3).flat_map(|fate| words.map(|word| (fate, word.copied().flatten()))) {
            let image = log.image(steps, |_, _| fate == 0 || fate == 1 && random.bool());
            go_on(&image, before);
        }
    }
}
