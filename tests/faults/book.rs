//! What is known of the bytes of a volume that one worker has to itself.
//!
//! The first mebibyte is a [`Witness`]'s. Behind it there may be a mark at each whole mebibyte, so that what is cut off
//! can be told from what comes anew: that is zeros.

use super::worker::Scene;
use crate::crash_rounds::witness::Witness;
use crate::stage::{client, until};
use std::collections::BTreeMap;
use symphony::model::{Phase, Protocol, Volume};

const MIB: u64 = 1 << 20;
const MARK: [u8; 4096] = [0xdd; 4096];

/// The bytes of a volume or a snapshot.
#[derive(Clone)]
pub struct Contents {
    pub witness: Witness,
    /// Marks, by their mebibyte; false: it may be gone.
    marks: BTreeMap<u64, bool>,
}

impl Contents {
    pub fn of(witness: Witness) -> Self {
        Self { witness, marks: BTreeMap::new() }
    }

    /// The same bytes in another volume, whose fate is its own.
    pub fn copied(&mut self) -> Self {
        Self { witness: self.witness.fork(), marks: self.marks.clone() }
    }

    /// Leaves a mark, if it can.
    fn mark(&mut self, uri: &str, at: u64) {
        self.marks.entry(at).or_insert(false);
        if let Ok(mut connection) = client(uri)
            && connection.write(at * MIB, &MARK, true).is_ok()
        {
            self.marks.insert(at, true);
        }
    }

    /// What was behind so many mebibytes is gone.
    fn cut(&mut self, size: u64) {
        self.marks.retain(|at, _| *at < size);
    }

    /// What was behind so many mebibytes is gone, or not.
    fn doubt(&mut self, size: u64) {
        self.marks.range_mut(size..).for_each(|(_, certain)| *certain = false);
    }

    /// Whether a volume holds this; what it holds instead.
    pub fn look(&mut self, uri: &str) -> Result<(), String> {
        self.witness.look(uri)?;
        let read = || {
            let mut connection = client(uri).ok()?;
            let places = 1..connection.size() / MIB;
            let read = |at| {
                let mut bytes = vec![0; MARK.len()];
                connection.read(at * MIB, &mut bytes).ok().map(|()| (at, bytes))
            };
            places.map(read).collect::<Option<Vec<_>>>()
        };
        for (at, bytes) in until("the volume to be read", read) {
            let (is_marked, is_blank) = (bytes == MARK, bytes.iter().all(|byte| *byte == 0));
            let fits = match self.marks.get(&at) {
                Some(true) => is_marked,
                Some(false) => is_marked || is_blank,
                None => is_blank,
            };
            if !fits {
                let was = self.marks.get(&at);
                return Err(format!("at {at} MiB there is {:?}…, and the mark there is {was:?}", &bytes[..8]));
            }
        }
        Ok(())
    }
}

/// A volume and what must be in it.
pub struct Book {
    pub name: String,
    pub id: String,
    /// Mebibytes that were acknowledged.
    pub size: u64,
    pub contents: Contents,
    /// What it holds if a request took effect that nobody answered: it is left alone then.
    pub or: Option<Contents>,
    /// Where local users reach it, whoever is told what.
    pub local: String,
    /// Its removal may have happened.
    pub doubtful: bool,
    /// The client may be attached.
    pub attached: bool,
    /// It is being cut or put back; nothing is written until it is as this generation has it.
    awaited: Option<u64>,
    /// It may be cut at any time, since nobody has answered.
    pub may_shrink: bool,
}

/// A snapshot that was acknowledged, and what must be in it.
pub struct Copy {
    pub number: u64,
    pub volume: String,
    pub size: u64,
    pub contents: Contents,
    /// Its removal may have happened.
    pub doubtful: bool,
}

impl Book {
    pub fn new(scene: &Scene, volume: &Volume, size: u64, contents: Contents) -> Self {
        let replica = volume.status.placement.first().expect("a volume is placed when it is made");
        let socket = &scene.reach.nbd[&replica.service.to_string()];
        let name = volume.meta.name.to_string();
        Self {
            local: format!("nbd+unix:///{name}?socket={}", socket.display()),
            name,
            id: volume.meta.id.to_string(),
            size,
            contents,
            or: None,
            doubtful: false,
            attached: false,
            awaited: None,
            may_shrink: false,
        }
    }

    /// Nobody knows which of two contents it has.
    pub fn rests(&self) -> bool {
        self.or.is_some()
    }

    /// Whether it can be written to: what was asked for has been done, as far as one can find out now.
    pub fn is_free(&mut self, seen: impl FnOnce() -> Option<Volume>) -> bool {
        if let Some(awaited) = self.awaited
            && let Some(volume) = seen()
            && volume.meta.id.to_string() == self.id
            && volume.status.phase == Phase::Ready
            && volume.status.observed_generation.as_u64() >= awaited
        {
            self.awaited = None;
        }
        self.awaited.is_none() && !self.rests()
    }

    /// Leaves a mark at its end.
    pub fn mark(&mut self) {
        if self.size > 1 && !self.may_shrink {
            let (local, at) = (self.local.clone(), self.size - 1);
            self.contents.mark(&local, at);
        }
    }

    /// A cut was acknowledged, under this generation, or its answer was lost.
    pub fn was_cut(&mut self, size: u64, generation: Option<u64>) {
        self.size = size;
        match generation {
            Some(_) => self.contents.cut(size),
            None => self.contents.doubt(size),
        }
        self.may_shrink |= generation.is_none();
        self.awaited = generation.or(self.awaited);
    }

    /// It was acknowledged that it is put back, under this generation, or that answer was lost.
    pub fn was_put_back(&mut self, copy: &mut Copy, generation: Option<u64>) {
        let contents = copy.contents.copied();
        match generation {
            Some(_) => self.contents = contents,
            None => self.or = Some(contents),
        }
        self.awaited = generation.or(self.awaited);
    }

    /// Whether it holds what it must, or one of two things.
    pub fn verify(&mut self) {
        let Err(wrong) = self.contents.look(&self.local) else { return };
        match &mut self.or {
            Some(or) => {
                let other = or.look(&self.local);
                assert!(other.is_ok(), "'{}' holds neither one thing nor the other: {wrong}\n{other:?}", self.name);
            }
            None => panic!("'{}': {wrong}", self.name),
        }
    }
}

/// Where a volume is served to other hosts.
pub fn secured(volume: &Volume) -> Option<&str> {
    volume.status.exports.iter().find(|it| it.protocol == Protocol::NbdTls).map(|it| it.uri.as_str())
}
