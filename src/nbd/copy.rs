//! Whole volumes, from a reader into an export and from an export into a file or stream.
//!
//! Runs of zeros are never sent: an upload has the server zero them, since it may hold old data there, and a download
//! leaves them out of files. Several requests are in flight at a time. The digest is that of the whole content.

use super::client::{Client, ClientError, Completion, Status, Ticket};
use crate::image::fill;
use crate::model::ByteSize;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

/// Data moves in requests of this many bytes.
const CHUNK: usize = 1 << 20;

/// An upload looks for zeros in blocks of this many bytes; a shorter run is cheaper to send than to ask for.
const GRAIN: usize = 64 << 10;

/// Requests in flight.
const WINDOW: usize = 8;

/// A download asks about so many bytes at a time.
const SURVEY: u64 = 1 << 30;

/// Progress is told, and zeros are hashed, at least every so many bytes.
const STRIDE: u64 = 16 << 20;

/// What was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    pub bytes: ByteSize,
    /// SHA-256 of these bytes.
    pub sha256: [u8; 32],
}

/// Where a download goes.
pub enum Sink<'a> {
    /// Becomes exactly the content, with holes where the export has zeros; what it held before is gone. Durable in the
    /// end. Anything but a regular file is treated as a stream.
    File(&'a File),
    /// Every byte is written, zeros as well.
    Stream(&'a mut dyn Write),
}

/// Why a copy did not come to its end. What was written before stays written.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the source has {source_size} ({} bytes), the volume only {volume} ({} bytes)", .source_size.as_u64(), .volume.as_u64())]
    TooLarge { source_size: ByteSize, volume: ByteSize },
    #[error("the source has more than the {volume} ({} bytes) of the volume", .volume.as_u64())]
    Endless { volume: ByteSize },
    #[error("the source ended after {found} of {expected} bytes", found = .found.as_u64(), expected = .expected.as_u64())]
    Short { found: ByteSize, expected: ByteSize },
    #[error("{wanted} bytes were asked for, the volume has {volume}", wanted = .wanted.as_u64(), volume = .volume.as_u64())]
    Beyond { wanted: ByteSize, volume: ByteSize },
    #[error("reading the source")]
    Source(#[source] io::Error),
    #[error("writing the target")]
    Target(#[source] io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Copies a reader onto the start of an export and flushes; what lies behind the reader's end is left as it is.
/// `progress` is told how many bytes have been taken so far.
///
/// # Errors
/// [`CopyError::TooLarge`] before anything is written, if `length` says so; [`CopyError::Endless`] when the reader
/// turns out to be too long; [`CopyError::Short`] when it ends before `length`.
pub fn upload<S: Read + Write>(
    source: &mut dyn Read,
    client: &mut Client<S>,
    length: Option<ByteSize>,
    progress: &mut dyn FnMut(ByteSize),
) -> Result<Copied, CopyError> {
    let volume = ByteSize::bytes(client.size());
    if let Some(source_size) = length.filter(|length| *length > volume) {
        return Err(CopyError::TooLarge { source_size, volume });
    }
    let mut chunk = vec![0; CHUNK.min(client.maximum_payload() as usize)];
    let mut upload = Upload::new(client);
    let mut digest = Sha256::new();
    let mut position = 0;
    let end = length.unwrap_or(volume).as_u64();
    while position < end {
        let room = usize::try_from(end - position).unwrap_or(usize::MAX).min(chunk.len());
        let count = fill(source, chunk.get_mut(..room).unwrap_or_default()).map_err(CopyError::Source)?;
        let data = chunk.get(..count).unwrap_or_default();
        digest.update(data);
        upload.put(position, data)?;
        position += count as u64;
        progress(ByteSize::bytes(position));
        if count < room {
            break;
        }
    }
    match length {
        Some(expected) if position < end => {
            return Err(CopyError::Short { found: ByteSize::bytes(position), expected });
        }
        None if position == end && fill(source, &mut [0]).map_err(CopyError::Source)? > 0 => {
            return Err(CopyError::Endless { volume });
        }
        _ => upload.settle()?,
    }
    Ok(Copied { bytes: ByteSize::bytes(position), sha256: digest.finalize().into() })
}

/// Writes on their way.
pub(super) struct Upload<'a, S> {
    client: &'a mut Client<S>,
    window: VecDeque<Ticket>,
    /// Zeros met but not yet asked for.
    zeros: std::ops::Range<u64>,
}

impl<'a, S: Read + Write> Upload<'a, S> {
    pub(super) fn new(client: &'a mut Client<S>) -> Self {
        Self { client, window: VecDeque::new(), zeros: 0..0 }
    }

    pub(super) fn put(&mut self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let mut position = offset;
        for run in data.chunks(GRAIN).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let length: usize = run.iter().map(|block| block.len()).sum();
            if run.first().is_some_and(|block| is_zero(block)) {
                self.zeros(position, length as u64)?;
            } else {
                self.send_zeros()?;
                let start = (position - offset) as usize;
                let bytes = data.get(start..start + length).unwrap_or_default();
                let ticket = self.client.submit_write(position, bytes, false)?;
                self.hold(ticket)?;
            }
            position += length as u64;
        }
        Ok(())
    }

    fn send_zeros(&mut self) -> Result<(), ClientError> {
        while !self.zeros.is_empty() {
            let length = (self.zeros.end - self.zeros.start).min(self.client.largest_zero().into()) as u32;
            let ticket = self.client.submit_zero(self.zeros.start, length, true)?;
            self.zeros.start += u64::from(length);
            self.hold(ticket)?;
        }
        Ok(())
    }

    fn hold(&mut self, ticket: Ticket) -> Result<(), ClientError> {
        self.window.push_back(ticket);
        while self.window.len() > WINDOW {
            self.settle_one()?;
        }
        Ok(())
    }

    fn settle_one(&mut self) -> Result<(), ClientError> {
        match self.window.pop_front() {
            Some(ticket) => self.client.wait(ticket).map(drop),
            None => Ok(()),
        }
    }

    /// Has a range zeroed.
    pub(super) fn zeros(&mut self, offset: u64, length: u64) -> Result<(), ClientError> {
        if self.zeros.end != offset {
            self.send_zeros()?;
            self.zeros = offset..offset;
        }
        self.zeros.end += length;
        Ok(())
    }

    /// Makes everything so far durable.
    pub(super) fn settle(&mut self) -> Result<(), ClientError> {
        self.send_zeros()?;
        while !self.window.is_empty() {
            self.settle_one()?;
        }
        self.client.flush()
    }
}

/// Copies the first `length` bytes of an export, or all of it. `progress` is told how many bytes have arrived so far.
///
/// # Errors
/// [`CopyError::Beyond`] before anything is touched, if the export is shorter than `length`.
pub fn download<S: Read + Write>(
    client: &mut Client<S>,
    mut sink: Sink<'_>,
    length: Option<ByteSize>,
    progress: &mut dyn FnMut(ByteSize),
) -> Result<Copied, CopyError> {
    let volume = ByteSize::bytes(client.size());
    if let Some(wanted) = length.filter(|length| *length > volume) {
        return Err(CopyError::Beyond { wanted, volume });
    }
    let total = length.unwrap_or(volume).as_u64();
    let file = match sink {
        Sink::File(file) if file.metadata().map_err(CopyError::Target)?.is_file() => Some(file),
        _ => None,
    };
    if let Some(file) = file {
        file.set_len(0).map_err(CopyError::Target)?;
    }
    let mut plan = Plan { position: 0, total, survey: VecDeque::new(), window: VecDeque::new() };
    let mut digest = Sha256::new();
    let mut position = 0;
    while let Some(piece) = plan.next(client)? {
        let zeros;
        let data = match piece.ticket {
            Some(ticket) => Some(data_of(client.wait(ticket)?)?),
            None => None,
        };
        let bytes: &[u8] = match &data {
            Some(data) => data,
            None => {
                zeros = vec![0; piece.length as usize];
                &zeros
            }
        };
        digest.update(bytes);
        match (file, &mut sink) {
            (Some(_), _) if data.is_none() => Ok(()),
            (Some(file), _) => file.write_all_at(bytes, position),
            (None, Sink::File(file)) => file.write_all(bytes),
            (None, Sink::Stream(stream)) => stream.write_all(bytes),
        }
        .map_err(CopyError::Target)?;
        position += piece.length;
        progress(ByteSize::bytes(position));
    }
    match (file, sink) {
        (Some(file), _) => file.set_len(total).and_then(|()| file.sync_all()),
        (None, Sink::File(mut file)) => file.flush(),
        (None, Sink::Stream(stream)) => stream.flush(),
    }
    .map_err(CopyError::Target)?;
    Ok(Copied { bytes: ByteSize::bytes(position), sha256: digest.finalize().into() })
}

/// A piece of the content, in order.
struct Piece {
    length: u64,
    /// The read that brings it; absent: zeros.
    ticket: Option<Ticket>,
}

/// Keeps the window full of reads.
struct Plan {
    position: u64,
    total: u64,
    survey: VecDeque<Status>,
    window: VecDeque<Piece>,
}

impl Plan {
    fn next<S: Read + Write>(&mut self, client: &mut Client<S>) -> Result<Option<Piece>, ClientError> {
        while self.window.len() < WINDOW && self.position < self.total {
            let Some(run) = self.survey.front_mut() else {
                let length = (self.total - self.position).min(SURVEY);
                self.survey = client.block_status(self.position, length)?.into();
                continue;
            };
            let largest = if run.zero { STRIDE } else { (CHUNK as u64).min(client.maximum_payload().into()) };
            let length = run.length.min(largest).min(self.total - self.position);
            run.length -= length;
            let (zero, used_up) = (run.zero, run.length == 0);
            if used_up {
                self.survey.pop_front();
            }
            let ticket = if zero { None } else { Some(client.submit_read(self.position, length as u32)?) };
            self.window.push_back(Piece { length, ticket });
            self.position += length;
        }
        Ok(self.window.pop_front())
    }
}

fn data_of(completion: Completion) -> Result<Vec<u8>, ClientError> {
    match completion {
        Completion::Data(data) => Ok(data),
        Completion::Done | Completion::Status(_) => {
            Err(ClientError::Protocol("a read was answered with something else"))
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
