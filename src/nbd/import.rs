//! An image's content onto an export, in a way that can be cut short and gone on with.
//!
//! Every so often what was sent is made durable, and the caller told how far that is and what the SHA-256 of it is. Who
//! begins again with the same content does not send that part a second time: it is only hashed, which has to be done
//! anyway, and compared. The digest is that of the whole content, zeros and all, and is computed beside the sending.

use super::client::{Client, ClientError};
use super::copy::{CopyError, Upload};
use crate::image::{Content, Part, Sum};
use crate::model::{ByteSize, Digest};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

/// How often what was sent is made durable, unless there is a reason for another pace.
pub const PACE: Duration = Duration::from_secs(5);
/// Pieces that wait to be hashed.
const WAITING: usize = 8;

/// The beginning of a content that is durable on the export already, by somebody's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    pub bytes: u64,
    pub sha256: Digest,
}

/// Whom to tell of an import's progress.
pub trait Watcher {
    /// So many bytes are done with.
    fn passed(&mut self, bytes: ByteSize);

    /// Everything before is durable; none: nothing is, whatever was said before.
    ///
    /// # Errors
    /// If the import is not to go on.
    fn durable(&mut self, before: Option<Before>) -> Result<(), Stopped>;
}

/// The caller ends an import, and knows why.
#[derive(Debug, thiserror::Error)]
#[error("the import was stopped")]
pub struct Stopped;

/// Why an import did not come to its end. What was written before stays written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("the hashing thread died")]
    Hasher,
}

impl From<ClientError> for ImportError {
    fn from(error: ClientError) -> Self {
        CopyError::from(error).into()
    }
}

/// Writes a content onto the start of an export, and flushes; the content's SHA-256.
///
/// # Errors
/// [`CopyError::TooLarge`] before anything is written; [`CopyError::Short`] if the content ends before its size.
pub fn import<S: Read + Write>(
    content: &mut dyn Content,
    client: &mut Client<S>,
    before: Option<Before>,
    pace: Duration,
    watcher: &mut dyn Watcher,
) -> Result<Digest, ImportError> {
    let (size, volume) = (content.size(), client.size());
    if size > volume {
        let (source_size, volume) = (ByteSize::bytes(size), ByteSize::bytes(volume));
        return Err(CopyError::TooLarge { source_size, volume }.into());
    }
    let mut hasher = Hasher::start();
    let mut position = 0;
    if let Some(before) = before.filter(|before| (1..=size).contains(&before.bytes)) {
        position = pass_over(content, before.bytes, &hasher, watcher)?;
        if hasher.digest()? != before.sha256 {
            // Something else was sent then.
            if !content.rewind().map_err(CopyError::Source)? {
                return Err(CopyError::Source(std::io::Error::other("it differs from what was sent before")).into());
            }
            (hasher, position) = (Hasher::start(), 0);
        }
    }
    if position == 0 {
        watcher.durable(None)?;
    }
    let mut upload = Upload::new(client);
    let mut settled = Instant::now();
    while let Some(part) = content.next(size - position).map_err(CopyError::Source)? {
        let length = part.length();
        match part {
            Part::Data(data) => {
                let data = Arc::new(data);
                hasher.add(Job::Data(data.clone()))?;
                upload.put(position, &data)?;
            }
            Part::Zeros(length) => {
                hasher.add(Job::Zeros(length))?;
                upload.zeros(position, length)?;
            }
        }
        position = position.saturating_add(length).min(size);
        watcher.passed(ByteSize::bytes(position));
        if settled.elapsed() >= pace && position < size {
            upload.settle()?;
            watcher.durable(Some(Before { bytes: position, sha256: hasher.digest()? }))?;
            settled = Instant::now();
        }
    }
    if position < size {
        let (found, expected) = (ByteSize::bytes(position), ByteSize::bytes(size));
        return Err(CopyError::Short { found, expected }.into());
    }
    upload.settle()?;
    hasher.digest()
}

/// Hashes what needs not be sent; says how far that is.
fn pass_over(
    content: &mut dyn Content,
    until: u64,
    hasher: &Hasher,
    watcher: &mut dyn Watcher,
) -> Result<u64, ImportError> {
    let mut position = 0;
    while position < until {
        let Some(part) = content.next(until - position).map_err(CopyError::Source)? else { break };
        position += part.length().min(until - position);
        hasher.add(match part {
            Part::Data(data) => Job::Data(Arc::new(data)),
            Part::Zeros(length) => Job::Zeros(length),
        })?;
        watcher.passed(ByteSize::bytes(position));
    }
    Ok(position)
}

enum Job {
    Data(Arc<Vec<u8>>),
    Zeros(u64),
    /// Of everything so far.
    Tell(Sender<Digest>),
}

/// SHA-256 on a thread of its own, which ends with it.
struct Hasher {
    jobs: SyncSender<Job>,
}

impl Hasher {
    fn start() -> Self {
        let (jobs, queue) = sync_channel(WAITING);
        // It only computes, and ends when nobody can ask it any more.
        drop(std::thread::spawn(move || hash(&queue)));
        Self { jobs }
    }

    fn add(&self, job: Job) -> Result<(), ImportError> {
        self.jobs.send(job).map_err(|_| ImportError::Hasher)
    }

    fn digest(&self) -> Result<Digest, ImportError> {
        let (reply, digest) = channel();
        self.add(Job::Tell(reply))?;
        digest.recv().map_err(|_| ImportError::Hasher)
    }
}

fn hash(queue: &Receiver<Job>) {
    let mut sum = Sum::default();
    for job in queue {
        match job {
            Job::Data(data) => sum.add_data(&data),
            Job::Zeros(length) => sum.add_zeros(length),
            Job::Tell(reply) => {
                if reply.send(sum.digest()).is_err() {
                    return;
                }
            }
        }
    }
}
