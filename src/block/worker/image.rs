//! Images: bases that are compared with their seal, bases and volumes that are filled with what a base keeps. And moves:
//! copies that are filled with what a volume holds which nobody uses meanwhile.
//!
//! What is not finished is on disk under the generation before the one that asks for it. Only when the bytes are durable and
//! right does the volume take its own generation, so that a service which was killed in between begins again, and one that
//! was not never reads or fetches twice:
//!
//! ```text
//!   nothing ──▶ generation n-1, bytes on their way ──▶ all there, compared, durable ──▶ generation n
//! ```
//! A volume is served only after that: what clients write is never overwritten by a second attempt.

use super::pool::OpenPool;
use super::{TaskError, Worker};
use crate::backend::{Backend, BackendError, Ensured, VolumeLayout};
use crate::image::{PIECE, Part, STRIDE, Sum};
use crate::io::{BlockIo, Extent};
use crate::model::{
    AssignedId, ByteSize, Digest, Generation, ImageRole, ImageTie, PoolId, Progress, Seal, Supply, VolumeAssignment,
    VolumeId,
};
use crate::rpc::{Transport, dial_address, proto};
use proto::image_piece::Piece as Wire;
use proto::images_client::ImagesClient;
use rustls::ClientConfig;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Extents asked for at once.
const SURVEY: usize = 256;
/// A service that sends nothing for so long is asked again later.
const SILENCE: Duration = Duration::from_secs(30);

/// How other block services are reached.
#[derive(Clone, Debug)]
pub struct Peers {
    pub runtime: Handle,
    /// Presents this service's certificate, and believes block services only.
    pub client: Arc<ClientConfig>,
}

/// A base that others may read, or a volume that is being moved.
#[derive(Clone, Copy, Debug)]
struct Kept {
    pool: PoolId,
    length: ByteSize,
    /// What it comes to is known to whoever reads it.
    sealed: bool,
}

/// What a worker has to remember of images.
pub(super) struct Images {
    peers: Peers,
    kept: Mutex<BTreeMap<VolumeId, Kept>>,
    /// What the bytes of bases came to that are not what they should be, and for which generation.
    refuted: Mutex<BTreeMap<VolumeId, (Generation, Digest)>>,
    /// How far volumes are that are being filled.
    filled: Mutex<BTreeMap<VolumeId, Progress>>,
    /// Volumes that are to be destroyed, whatever is done to them now.
    abandoned: Mutex<BTreeSet<VolumeId>>,
    /// What takes long is to end.
    ending: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Images {
    pub(super) fn new(peers: Peers) -> Self {
        let (kept, refuted, filled, abandoned) = Default::default();
        Self { peers, kept, refuted, filled, abandoned, ending: AtomicBool::new(false) }
    }

    /// A volume that nobody uses can be read by its copy.
    pub(super) fn hand_over(&self, volume: &VolumeAssignment) {
        let kept = Kept { pool: volume.pool, length: volume.size, sealed: false };
        lock(&self.kept).insert(volume.id, kept);
    }

    /// Nobody reads it any more.
    pub(super) fn withdraw(&self, base: VolumeId) {
        lock(&self.kept).remove(&base);
    }

    pub(super) fn withdraw_all(&self) {
        lock(&self.kept).clear();
    }

    /// How far volumes are that are being filled.
    pub(super) fn progress(&self) -> Vec<(VolumeId, Progress)> {
        lock(&self.filled).iter().map(|(id, progress)| (*id, *progress)).collect()
    }

    /// The volume is gone.
    pub(super) fn forget(&self, volume: VolumeId) {
        lock(&self.refuted).remove(&volume);
        lock(&self.abandoned).remove(&volume);
    }

    /// # Errors
    /// If what is done to the volume is not to go on.
    fn go_on(&self, volume: VolumeId) -> Result<(), TaskError> {
        match (self.ending.load(Ordering::Relaxed), lock(&self.abandoned).contains(&volume)) {
            (true, _) => Err(TaskError::Ending),
            (false, true) => Err(TaskError::Abandoned),
            (false, false) => Ok(()),
        }
    }
}

/// The first `length` bytes of a medium, in order; holes are not read.
pub struct Content {
    io: Arc<dyn BlockIo>,
    position: u64,
    length: u64,
    extents: VecDeque<Extent>,
}

impl Content {
    fn new(io: Arc<dyn BlockIo>, length: ByteSize) -> Self {
        Self { io, position: 0, length: length.as_u64(), extents: VecDeque::new() }
    }

    fn piece(&mut self) -> io::Result<Option<Part>> {
        let left = self.length.saturating_sub(self.position);
        if left == 0 {
            return Ok(None);
        }
        if self.extents.is_empty() {
            self.extents = self.io.extents(self.position, left, SURVEY)?.into();
        }
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than what it keeps");
        let run = self.extents.front_mut().filter(|run| run.length > 0).ok_or_else(short)?;
        let length = run.length.min(if run.hole { STRIDE } else { PIECE }).min(left);
        run.length -= length;
        let (hole, used_up) = (run.hole, run.length == 0);
        if used_up {
            self.extents.pop_front();
        }
        let piece = match hole {
            true => Part::Zeros(length),
            false => {
                let mut data = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                self.io.read(&mut data, self.position)?;
                Part::Data(data)
            }
        };
        self.position += length;
        Ok(Some(piece))
    }
}

impl Iterator for Content {
    type Item = io::Result<Part>;

    fn next(&mut self) -> Option<Self::Item> {
        self.piece().transpose()
    }
}

impl Worker {
    /// Brings the bytes that an image is to give a volume, or compares those it has; nothing where that was done.
    pub(super) fn ensure_image(
        &self,
        volume: &VolumeAssignment,
        tie: &ImageTie,
        backend: &dyn Backend,
        layout: &VolumeLayout,
    ) -> Result<(), TaskError> {
        match &tie.role {
            ImageRole::Upload { .. } | ImageRole::Clone => Ok(()),
            ImageRole::Sealed { seal } => match found(backend, layout, seal.since)? {
                Found::Finished => Ok(()),
                Found::Begun | Found::Fresh => self.compare(volume, seal, backend.open_volume(volume.id)?),
            },
            ImageRole::Fetched { .. } | ImageRole::Copy { .. } if volume.made => Ok(()),
            ImageRole::Fetched { supply } | ImageRole::Copy { supply } => self.fill(volume, supply, backend, layout),
        }
    }

    /// Fills a volume from a supply; nothing where that was done.
    pub(super) fn fill(
        &self,
        volume: &VolumeAssignment,
        supply: &Supply,
        backend: &dyn Backend,
        layout: &VolumeLayout,
    ) -> Result<(), TaskError> {
        let found = found(backend, layout, Generation::FIRST)?;
        if found == Found::Finished {
            return Ok(());
        }
        let to = backend.open_volume(volume.id)?;
        if found == Found::Begun {
            // What an attempt that was cut short has left.
            to.zero(0, to.size(), true).map_err(TaskError::Medium)?;
        }
        let filled = self.fetch(volume, supply, &to);
        lock(&self.images.filled).remove(&volume.id);
        filled
    }

    /// Notes that a base can be read by others.
    pub(super) fn keep_for_others(&self, volume: &VolumeAssignment, tie: &ImageTie) {
        let length = match &tie.role {
            ImageRole::Sealed { seal } => seal.length,
            ImageRole::Fetched { supply } => supply.length,
            ImageRole::Upload { .. } | ImageRole::Clone | ImageRole::Copy { .. } => return,
        };
        lock(&self.images.kept).insert(volume.id, Kept { pool: volume.pool, length, sealed: true });
    }

    /// The content of a base that is whole, or of a volume that is being moved, and whether what it comes to is to be said
    /// at its end; none if this is neither.
    pub fn content_of(&self, base: VolumeId) -> Option<Result<(Content, bool), String>> {
        let Kept { pool, length, sealed } = *lock(&self.images.kept).get(&base)?;
        let open = || Ok::<_, TaskError>((Content::new(self.pool(pool)?.open_volume(base)?, length), !sealed));
        Some(open().map_err(|error| super::failure_text(&error)))
    }

    /// Lets what takes long end soon, unfinished, now and later.
    pub fn hurry(&self) {
        self.images.ending.store(true, Ordering::Relaxed);
        self.pause();
    }

    /// Lets what takes long end soon for what is to be destroyed. What backends have not begun yet does not hear of it: it has
    /// to be said again.
    pub fn abandon(&self, id: AssignedId) {
        if let AssignedId::Volume(volume) = id {
            lock(&self.images.abandoned).insert(volume);
        }
        self.abandon_work(Some(id));
    }

    fn compare(&self, volume: &VolumeAssignment, seal: &Seal, io: Arc<dyn BlockIo>) -> Result<(), TaskError> {
        let differs = |found| TaskError::Differs { found, wanted: seal.sha256 };
        // What was read once is not read again and again.
        if let Some((since, found)) =
            lock(&self.images.refuted).get(&volume.id).copied().filter(|(since, _)| *since == seal.since)
        {
            tracing::debug!(volume = %volume.name, ?since, "the content is known to be wrong");
            return Err(differs(found));
        }
        // What the importer wrote is on the medium before it is called right.
        io.flush().map_err(TaskError::Medium)?;
        let mut sum = Sum::default();
        for piece in Content::new(io, seal.length) {
            self.images.go_on(volume.id)?;
            sum.add(&piece.map_err(TaskError::Medium)?);
        }
        let found = sum.digest();
        if found != seal.sha256 {
            lock(&self.images.refuted).insert(volume.id, (seal.since, found));
            return Err(differs(found));
        }
        tracing::info!(volume = %volume.name, sha256 = %found, "an image is whole");
        Ok(())
    }

    fn fetch(&self, volume: &VolumeAssignment, supply: &Supply, to: &Arc<dyn BlockIo>) -> Result<(), TaskError> {
        tracing::info!(volume = %volume.name, from = %supply.service, "fetching the content of an image or a volume");
        let here = self.pools().get(&supply.pool).map(OpenPool::backend);
        let mut filling = Filling { worker: self, volume: volume.id, to, supply, sum: Sum::default(), told: None };
        match here {
            Some(backend) => {
                for piece in Content::new(backend.open_volume(supply.volume)?, supply.length) {
                    filling.take(&piece.map_err(TaskError::Medium)?)?;
                }
                filling.told = Some(filling.sum.digest());
            }
            None => self.fetch_from_afar(supply, &mut filling)?,
        }
        filling.finish()
    }

    fn fetch_from_afar(&self, supply: &Supply, filling: &mut Filling<'_>) -> Result<(), TaskError> {
        let failed = |reason: String| TaskError::Supply { service: supply.service, reason };
        let address = supply.address.as_ref().ok_or_else(|| failed("it listens nowhere".into()))?;
        let transport = Transport::Tls(self.images.peers.client.clone());
        let runtime = &self.images.peers.runtime;
        let request = proto::ReadImageRequest { volume: supply.volume.to_string() };
        let begin = async {
            let channel = dial_address(address, &transport).await.map_err(|error| failed(super::chain(&error)))?;
            let stream = tokio::time::timeout(SILENCE, ImagesClient::new(channel).read_image(request)).await;
            let stream = stream.map_err(|_| failed("it does not answer".into()))?;
            stream.map(tonic::Response::into_inner).map_err(|status| failed(status.message().to_owned()))
        };
        let mut stream = runtime.block_on(begin)?;
        loop {
            let next = runtime.block_on(async { tokio::time::timeout(SILENCE, stream.message()).await });
            let next = next.map_err(|_| failed("it has fallen silent".into()))?;
            let Some(piece) = next.map_err(|status| failed(status.message().to_owned()))? else { return Ok(()) };
            match piece.piece {
                Some(Wire::Data(data)) => filling.take(&Part::Data(data))?,
                Some(Wire::Zeros(length)) => filling.take(&Part::Zeros(length))?,
                Some(Wire::Sha256(text)) => {
                    let told = text.parse::<Digest>().map_err(|error| failed(error.to_string()))?;
                    filling.told = Some(told);
                }
                None => return Err(failed("it sends what this version does not understand".into())),
            }
        }
    }
}

/// A volume on its way to being an image's content, or another volume's.
struct Filling<'f> {
    worker: &'f Worker,
    volume: VolumeId,
    to: &'f Arc<dyn BlockIo>,
    supply: &'f Supply,
    sum: Sum,
    /// What whoever sends it says that it came to.
    told: Option<Digest>,
}

impl Filling<'_> {
    fn take(&mut self, piece: &Part) -> Result<(), TaskError> {
        self.worker.images.go_on(self.volume)?;
        let length = piece.length();
        let (offset, limit) = (self.sum.length(), self.supply.length.as_u64());
        if length > limit.saturating_sub(offset) {
            let reason = format!("it sends more than the {limit} bytes that there are");
            return Err(TaskError::Supply { service: self.supply.service, reason });
        }
        if let Part::Data(data) = piece {
            self.to.write(data, offset, false).map_err(TaskError::Medium)?;
        }
        self.sum.add(piece);
        let progress = Progress { done: ByteSize::bytes(self.sum.length()), of: self.supply.length };
        lock(&self.worker.images.filled).insert(self.volume, progress);
        Ok(())
    }

    fn finish(self) -> Result<(), TaskError> {
        let (length, wanted) = (self.sum.length(), self.supply.length.as_u64());
        if length != wanted {
            let reason = format!("it sent {length} of {wanted} bytes");
            return Err(TaskError::Supply { service: self.supply.service, reason });
        }
        let found = self.sum.digest();
        if let Some(wanted) = self.supply.sha256 {
            if found != wanted {
                return Err(TaskError::Differs { found, wanted });
            }
            return self.to.flush().map_err(TaskError::Medium);
        }
        let service = self.supply.service;
        let incomplete = || TaskError::Supply { service, reason: "it does not say that this was all".into() };
        let wanted = self.told.ok_or_else(incomplete)?;
        self.to.flush().map_err(TaskError::Medium)?;
        // What it is a copy of is destroyed next: what counts is what the medium gives back.
        let mut kept = Sum::default();
        for piece in Content::new(Arc::clone(self.to), self.supply.length) {
            self.worker.images.go_on(self.volume)?;
            kept.add(&piece.map_err(TaskError::Medium)?);
        }
        match [found, kept.digest()].into_iter().find(|digest| *digest != wanted) {
            Some(found) => Err(TaskError::Torn { service, found, wanted }),
            None => Ok(()),
        }
    }
}

/// How far a volume is that waits for its bytes, or for a word on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It was not there, and reads as zeros.
    Fresh,
    /// Of the generation before.
    Begun,
    /// Of the generation that was asked for, at least.
    Finished,
}

/// What is on disk; if it is not of the generation `since`, it is of the one before afterwards.
fn found(backend: &dyn Backend, layout: &VolumeLayout, since: Generation) -> Result<Found, TaskError> {
    let before = Generation::new(since.as_u64().saturating_sub(1));
    match backend.ensure_volume(&VolumeLayout { generation: before, ..layout.clone() }) {
        Ok(Ensured::Created) => Ok(Found::Fresh),
        Ok(Ensured::Unchanged | Ensured::Grown | Ensured::Shrunk | Ensured::Reverted | Ensured::Updated) => {
            Ok(Found::Begun)
        }
        Err(BackendError::Stale { held, .. }) if held >= since => Ok(Found::Finished),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
