//! Those who use a cluster while it is hurt: some write volumes and know what must be in them, some quarrel over a name.

use super::arena::Reach;
use super::linear::volume::{Answer, Call};
use super::record::{Outcome, Record};
use crate::crash_rounds::witness::Witness;
use crate::stage::{Control, client, secure};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use symphony::model::{Protocol, Volume};

/// Volumes that one writer has at a time.
const BOOKS: usize = 3;
/// Flushes in one go.
const BURST: usize = 12;
/// Requests of one name: what is lost makes the search for an order dear.
const MOST_LOST: usize = 4;
const MOST_ASKED: usize = 40;

/// What all workers share.
pub struct Scene {
    pub reach: Reach,
    pub record: Record,
    pub enough: AtomicBool,
    /// The number of the name that is quarrelled over.
    pub quarrel: AtomicUsize,
}

/// A volume and what must be in it.
pub struct Book {
    pub name: String,
    pub id: String,
    /// Mebibytes that were acknowledged.
    pub size: u64,
    pub witness: Witness,
    /// Where local users reach it, whoever is told what.
    pub local: String,
    /// Its removal may have happened.
    pub doubtful: bool,
    /// The client may be attached.
    attached: bool,
}

/// A snapshot that was acknowledged, and what must be in it.
pub struct Copy {
    pub name: String,
    pub volume: String,
    pub witness: Witness,
}

/// One who writes.
pub struct Writer {
    name: usize,
    random: fastrand::Rng,
    made: usize,
    pub books: Vec<Book>,
    pub copies: Vec<Copy>,
    /// What was done, by kind.
    pub done: [usize; 7],
}

impl Scene {
    fn manager(&self, random: &mut fastrand::Rng) -> usize {
        random.usize(..self.reach.managers.len())
    }

    fn control(&self, random: &mut fastrand::Rng) -> Control {
        self.reach.managers[self.manager(random)].clone()
    }

    fn is_over(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }

    /// Asks over and over for something of one name that others ask something of too.
    pub fn quarrel(&self, mut random: fastrand::Rng) {
        while !self.is_over() {
            let number = self.quarrel.load(Ordering::SeqCst);
            let name = format!("quarrel-{number}");
            let call = match random.u8(..8) {
                0 | 1 => Call::Create(1 << 20),
                2 => Call::Remove,
                3 | 4 => Call::Limit(random.u64(1..5) * 100),
                5 => Call::Grow(random.u64(2..5) << 20),
                _ => Call::Look,
            };
            self.record.ask(&self.reach.managers, self.manager(&mut random), &name, call);
            let (lost, asked) = self.record.losses(&name);
            if lost >= MOST_LOST || asked >= MOST_ASKED {
                // A name is left behind with whatever it has, by whoever sees it first.
                self.quarrel.fetch_max(number + 1, Ordering::SeqCst);
            }
        }
    }
}

impl Writer {
    pub fn new(name: usize, random: fastrand::Rng) -> Self {
        Self { name, random, made: 0, books: Vec::new(), copies: Vec::new(), done: [0; 7] }
    }

    /// Works until it has been enough.
    pub fn work(&mut self, scene: &Scene) {
        if let Some(host) = &scene.reach.client {
            host.enter();
        }
        while !scene.is_over() {
            let kind = if self.books.len() < BOOKS { self.random.usize(..12) } else { self.random.usize(2..12) };
            let place = self.random.usize(..self.books.len().max(1));
            match (kind, self.books.is_empty()) {
                (0 | 1, _) | (_, true) => self.create(scene),
                (2, _) => self.grow(scene, place),
                (3, _) => self.remove(scene, place),
                (4, _) => self.attach(scene, place),
                (5, _) => self.keep(scene, place),
                _ => self.write(scene, place),
            }
        }
    }

    fn create(&mut self, scene: &Scene) {
        self.made += 1;
        let name = format!("book-{}-{}", self.name, self.made);
        let manager = scene.manager(&mut self.random);
        let outcome = scene.record.ask(&scene.reach.managers, manager, &name, Call::Create(1 << 20));
        // One whose creation was not acknowledged is left alone: what becomes of it is in the record.
        if let Outcome::Answered(Answer::Is(facts), Some(volume)) = outcome {
            let local = local_uri(&scene.reach, &volume);
            let witness = Witness::new(self.random.fork());
            let book = Book { name, id: facts.id, size: 1, witness, local, doubtful: false, attached: false };
            self.books.push(book);
            self.done[0] += 1;
        }
    }

    fn grow(&mut self, scene: &Scene, place: usize) {
        let manager = scene.manager(&mut self.random);
        let book = &mut self.books[place];
        let size = book.size + self.random.u64(1..4);
        match scene.record.ask(&scene.reach.managers, manager, &book.name, Call::Grow(size << 20)) {
            Outcome::Answered(Answer::Is(_), _) => {
                book.size = size;
                self.done[1] += 1;
            }
            // What may have happened must not be asked for again with less.
            Outcome::Lost => book.size = size,
            _ => {}
        }
    }

    fn remove(&mut self, scene: &Scene, place: usize) {
        let manager = scene.manager(&mut self.random);
        let name = self.books[place].name.clone();
        match scene.record.ask(&scene.reach.managers, manager, &name, Call::Remove) {
            Outcome::Answered(Answer::Is(_), _) => {
                self.books.swap_remove(place);
                self.done[2] += 1;
            }
            Outcome::Lost => self.books[place].doubtful = true,
            _ => {}
        }
    }

    fn write(&mut self, scene: &Scene, place: usize) {
        let book = &mut self.books[place];
        let before = book.witness.acknowledged();
        let local = book.local.clone();
        book.witness.write_some(BURST, || client(&local).ok());
        self.done[3] += usize::from(book.witness.acknowledged() > before);
        if book.attached {
            self.detach(scene, place);
        }
    }

    /// Attaches the client, writes as it, and detaches it: from then on nothing that it writes arrives.
    fn attach(&mut self, scene: &Scene, place: usize) {
        let control = scene.control(&mut self.random);
        let book = &mut self.books[place];
        book.attached = true;
        let line = format!("volume attach {} --client web --timeout 6s", book.name);
        let held = control.run(&line);
        assert!(!held.stderr.contains("panicked"), "{held:?}");
        if held.code != Some(0) {
            return;
        }
        self.done[4] += 1;
        let outcome = control.run(&format!("volume get {} -o json", book.name));
        let secured = serde_json::from_slice::<Volume>(&outcome.stdout).ok().and_then(|volume| {
            let export = volume.status.exports.into_iter().find(|it| it.protocol == Protocol::NbdTls)?;
            Some(secure(&export.uri, &scene.reach.bundle))
        });
        let mut kept = None;
        if let Some(uri) = &secured {
            kept = book.witness.write_some(BURST, || client(uri).ok());
        }
        let is_out = self.detach(scene, place);
        if let (Some(mut connection), true) = (kept, is_out) {
            let late = connection.write(0, &[0xee; 4096], true);
            assert!(late.is_err(), "a client wrote to '{}' after it was detached", self.books[place].name);
        }
    }

    /// Whether the client is certainly out.
    fn detach(&mut self, scene: &Scene, place: usize) -> bool {
        let control = scene.control(&mut self.random);
        let book = &mut self.books[place];
        let outcome = control.run(&format!("volume detach {} --client web --timeout 6s", book.name));
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        let is_out = outcome.code == Some(0);
        book.attached &= !is_out;
        self.done[5] += usize::from(is_out);
        is_out
    }

    /// Takes a snapshot while nobody writes: what is in the volume must be in it.
    fn keep(&mut self, scene: &Scene, place: usize) {
        if self.copies.len() >= 4 {
            return;
        }
        let control = scene.control(&mut self.random);
        self.made += 1;
        let (name, book) = (format!("copy-{}-{}", self.name, self.made), &self.books[place]);
        let outcome = control.run(&format!("snapshot create {} {name} --timeout 6s", book.name));
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        if outcome.code == Some(0) {
            self.copies.push(Copy { name, volume: book.name.clone(), witness: book.witness.clone() });
            self.done[6] += 1;
        }
    }
}

fn local_uri(reach: &Reach, volume: &Volume) -> String {
    let replica = volume.status.placement.first().expect("a volume is placed when it is made");
    let socket = &reach.nbd[&replica.service.to_string()];
    format!("nbd+unix:///{}?socket={}", volume.meta.name, socket.display())
}
