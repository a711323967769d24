//! Those who use a cluster while it is hurt: some write volumes and know what must be in them, some quarrel over a name.

use super::arena::Reach;
use super::book::{Book, Contents, Copy, secured};
use super::linear::volume::{Answer, Call, Origin};
use super::record::{Outcome, Record, snapshot};
use crate::crash_rounds::witness::{BLOCKS, Witness};
use crate::stage::{Control, client, secure};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use symphony::model::Volume;
use symphony::rpc::proto::Kind;

/// Volumes that one writer has at a time, and snapshots.
const BOOKS: usize = 3;
const COPIES: usize = 4;
/// Flushes in one go.
const BURST: usize = 12;
/// Requests of one name: what is lost makes the search for an order dear.
const MOST_LOST: usize = 4;
const MOST_ASKED: usize = 40;
/// Between two looks at everything.
const PAUSE: Duration = Duration::from_millis(100);

/// What all workers share.
pub struct Scene {
    pub reach: Reach,
    pub record: Record,
    pub enough: AtomicBool,
    /// The number of the name that is quarrelled over.
    pub quarrel: AtomicUsize,
    /// There are snapshots here, and images that volumes are made of.
    pub copies: bool,
}

/// One who writes.
pub struct Writer {
    name: usize,
    random: fastrand::Rng,
    made: usize,
    pub books: Vec<Book>,
    pub copies: Vec<Copy>,
    /// What was done, by kind.
    pub done: std::collections::BTreeMap<&'static str, usize>,
}

/// The numbers of the blocks of the image that volumes are made of. No write has them.
pub fn image_numbers() -> impl Iterator<Item = u64> {
    (0..BLOCKS as u64).map(|place| u64::MAX - place)
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
            let call = match random.u8(..9) {
                0 | 1 => Call::Create(1 << 20, Origin::Nothing),
                2 => Call::Remove,
                3 | 4 => Call::Limit(random.u64(1..5) * 100),
                5 => Call::Grow(random.u64(2..5) << 20),
                6 => Call::Cut(1 << 20),
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

    /// Looks at everything that each manager shows, in turn: none of them may go back.
    pub fn watch_views(&self) {
        while !self.is_over() {
            for manager in 0..self.reach.managers.len() {
                for kind in [Kind::Volume, Kind::Snapshot] {
                    self.record.list(&self.reach.managers, manager, kind);
                }
            }
            // Not to wait for anything: the managers have others to serve.
            std::thread::sleep(PAUSE);
        }
    }
}

impl Writer {
    pub fn new(name: usize, random: fastrand::Rng) -> Self {
        let (books, copies, done) = Default::default();
        Self { name, random, made: 0, books, copies, done }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    /// Works until it has been enough.
    pub fn work(&mut self, scene: &Scene) {
        if let Some(host) = &scene.reach.client {
            host.enter();
        }
        while !scene.is_over() {
            let at_work = self.books.iter().filter(|book| !book.rests()).count();
            let kind = if at_work < BOOKS { self.random.usize(..18) } else { self.random.usize(3..18) };
            let place = self.random.usize(..self.books.len().max(1));
            match (kind, at_work) {
                (0..3, _) | (_, 0) => self.create(scene),
                _ if !self.is_free(scene, place) => {}
                (3, _) => self.grow(scene, place),
                (4, _) => self.remove(scene, place),
                (5, _) => self.attach(scene, place),
                (6, _) => self.cut(scene, place),
                (7 | 8, _) if scene.copies => self.keep(scene, place),
                (9, _) => self.put_back(scene, place),
                (10, _) => self.forget(scene),
                _ => self.write(scene, place),
            }
        }
    }

    fn is_free(&mut self, scene: &Scene, place: usize) -> bool {
        let control = scene.control(&mut self.random);
        let name = self.books[place].name.clone();
        self.books[place].is_free(|| seen(&control, &name))
    }

    /// Of nothing, of an image, or of a snapshot.
    fn create(&mut self, scene: &Scene) {
        self.made += 1;
        let name = format!("book-{}-{}", self.name, self.made);
        let mut from = (Origin::Nothing, 1, Contents::of(Witness::new(self.random.fork())));
        if scene.copies && self.random.bool() {
            let witness = Witness::of(self.random.fork(), image_numbers());
            from = (Origin::Image, self.random.u64(1..3), Contents::of(witness));
            let place = self.random.usize(..self.copies.len().max(1));
            if let Some(copy) = self.copies.get_mut(place).filter(|copy| !copy.doubtful && self.made.is_multiple_of(2))
            {
                from = (Origin::Snapshot(copy.number), copy.size, copy.contents.copied());
            }
        }
        let (source, size, contents) = from;
        let manager = scene.manager(&mut self.random);
        let outcome = scene.record.ask(&scene.reach.managers, manager, &name, Call::Create(size << 20, source));
        // One whose creation was not acknowledged is left alone: what becomes of it is in the record.
        if let Outcome::Answered(Answer::Is(_), Some(volume)) = outcome {
            self.books.push(Book::new(scene, &volume, size, contents));
            self.count(match source {
                Origin::Nothing => "made",
                Origin::Image => "made of an image",
                Origin::Snapshot(_) => "made of a snapshot",
            });
        }
    }

    fn grow(&mut self, scene: &Scene, place: usize) {
        let manager = scene.manager(&mut self.random);
        let book = &mut self.books[place];
        let size = book.size + self.random.u64(1..4);
        match scene.record.ask(&scene.reach.managers, manager, &book.name, Call::Grow(size << 20)) {
            Outcome::Answered(Answer::Is(_), _) => {
                book.size = size;
                self.count("grown");
            }
            // What may have happened must not be asked for again with less.
            Outcome::Lost => book.size = size,
            _ => {}
        }
    }

    /// Makes it smaller, after a mark was left behind its new end.
    fn cut(&mut self, scene: &Scene, place: usize) {
        let manager = scene.manager(&mut self.random);
        let book = &mut self.books[place];
        book.mark();
        let size = self.random.u64(1..=book.size);
        match scene.record.ask(&scene.reach.managers, manager, &book.name, Call::Cut(size << 20)) {
            Outcome::Answered(Answer::Is(facts), _) => {
                book.was_cut(size, Some(facts.generation));
                self.count("cut");
            }
            Outcome::Lost => book.was_cut(size, None),
            _ => {}
        }
    }

    fn remove(&mut self, scene: &Scene, place: usize) {
        let manager = scene.manager(&mut self.random);
        let name = self.books[place].name.clone();
        match scene.record.ask(&scene.reach.managers, manager, &name, Call::Remove) {
            Outcome::Answered(Answer::Is(_), _) => {
                self.books.swap_remove(place);
                self.count("removed");
            }
            Outcome::Lost => self.books[place].doubtful = true,
            _ => {}
        }
    }

    fn write(&mut self, scene: &Scene, place: usize) {
        let book = &mut self.books[place];
        let before = book.contents.witness.acknowledged();
        let local = book.local.clone();
        book.contents.witness.write_some(BURST, || client(&local).ok());
        let (wrote, attached) = (book.contents.witness.acknowledged() > before, book.attached);
        if wrote {
            self.count("written");
        }
        if attached {
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
        let volume = seen(&control, &book.name);
        let uri = volume.as_ref().and_then(secured).map(|uri| secure(uri, &scene.reach.bundle));
        let mut kept = None;
        if let Some(uri) = &uri {
            kept = book.contents.witness.write_some(BURST, || client(uri).ok());
        }
        self.count("attached");
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
        if is_out {
            self.count("detached");
        }
        is_out
    }

    /// Takes a snapshot while nobody writes: what is in the volume must be in it.
    fn keep(&mut self, scene: &Scene, place: usize) {
        // The size of one that may shrink is nobody's to tell.
        if self.copies.len() >= COPIES || self.books[place].may_shrink {
            return;
        }
        let control = scene.control(&mut self.random);
        self.made += 1;
        let number = (1000 * self.name + self.made) as u64;
        let book = &mut self.books[place];
        let line = format!("snapshot create {} {} --timeout 6s", book.name, snapshot(number));
        let outcome = control.run(&line);
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        if outcome.code == Some(0) {
            let (volume, size, contents) = (book.name.clone(), book.size, book.contents.copied());
            self.copies.push(Copy { number, volume, size, contents, doubtful: false });
            self.count("kept");
        }
    }

    /// Puts a volume back to one of its snapshots.
    fn put_back(&mut self, scene: &Scene, place: usize) {
        let manager = scene.manager(&mut self.random);
        let book = &mut self.books[place];
        let Some(copy) = self.copies.iter_mut().find(|copy| copy.volume == book.name && !copy.doubtful) else { return };
        match scene.record.ask(&scene.reach.managers, manager, &book.name, Call::Revert(copy.number)) {
            Outcome::Answered(Answer::Is(facts), _) => {
                book.was_put_back(copy, Some(facts.generation));
                self.count("put back");
            }
            Outcome::Lost => book.was_put_back(copy, None),
            _ => {}
        }
    }

    /// Removes a snapshot that no volume may be on its way back to.
    fn forget(&mut self, scene: &Scene) {
        let place = self.random.usize(..self.copies.len().max(1));
        let Some(copy) = self.copies.get_mut(place) else { return };
        if self.books.iter_mut().any(|book| book.name == copy.volume && !book.is_free(|| None)) {
            return;
        }
        copy.doubtful = true;
        let name = snapshot(copy.number);
        scene.record.heights.may_go(&name);
        let outcome = scene.control(&mut self.random).run(&format!("snapshot remove {name} --timeout 6s"));
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        if outcome.code == Some(0) {
            self.copies.swap_remove(place);
            self.count("forgotten");
        }
    }
}

/// A volume as a manager shows it.
fn seen(control: &Control, name: &str) -> Option<Volume> {
    serde_json::from_slice(&control.run(&format!("volume get {name} -o json")).stdout).ok()
}
