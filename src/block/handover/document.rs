//! What is written about connections between two processes.
//!
//! A document as on disk, behind its length in eight bytes, and behind it the bytes of each connection in their order:
//! first what it has received, then what it has yet to send.

use crate::export::{Carried, SessionRecord};
use crate::host::{Document, DocumentError, decode_document, encode_document, seal, unseal};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use uuid::Uuid;

/// More than this is not ours, in bytes: what engines hold in memory for all their clients is well below.
const MOST: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("the memory that holds it cannot be used")]
    Memory(#[from] io::Error),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("cannot be put into words")]
    Encode(#[from] serde_json::Error),
    #[error("it is not as long as it says")]
    Length,
}

/// All connections that a process leaves.
#[derive(Debug, Serialize, Deserialize)]
struct Estate {
    /// The process's.
    instance: Uuid,
    connections: Vec<Connection>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Connection {
    /// What its descriptor is called.
    socket: String,
    /// In bytes.
    unread: u64,
    unsent: u64,
    session: SessionRecord,
}

impl Document for Estate {
    const FORMAT: &'static str = "symphony hand-over";
    /// Grows with every change of what is in it, the terms of NBD included: who reads it wrongly serves wrongly.
    const VERSION: u32 = 1;
}

/// What an executable says about itself when it is asked whether it can take over.
#[derive(Debug, Serialize, Deserialize)]
struct Reads {
    format: String,
    reads: Vec<u32>,
}

/// The hand-overs that this program takes part in, in a line of JSON.
pub fn sort_of_documents() -> String {
    let (format, reads) = (Estate::FORMAT, [Estate::VERSION]);
    serde_json::json!({ "format": format, "reads": reads }).to_string()
}

/// Whether a program that answered this reads what this one writes.
pub fn reads(answer: &[u8]) -> bool {
    let answer: Result<Reads, _> = serde_json::from_slice(answer);
    answer.is_ok_and(|it| it.format == Estate::FORMAT && it.reads.contains(&Estate::VERSION))
}

/// The text in sealed memory, and the sockets with what they are called.
pub(super) fn write(instance: Uuid, carried: Vec<Carried>) -> Result<(OwnedFd, Vec<(String, OwnedFd)>), HandoverError> {
    let name = |number: usize| format!("{}client-{number}", super::OURS);
    let connections = carried.iter().enumerate().map(|(number, carried)| Connection {
        socket: name(number),
        unread: carried.unread.len() as u64,
        unsent: carried.unsent.len() as u64,
        session: carried.record.clone(),
    });
    let head = encode_document(&Estate { instance, connections: connections.collect() })?;
    let length = (head.len() as u64).to_be_bytes();
    let mut parts = vec![&length[..], head.as_bytes()];
    parts.extend(carried.iter().flat_map(|carried| [&carried.unread[..], &carried.unsent[..]]));
    let text = seal("symphony hand-over", &parts)?;
    let sockets = carried.into_iter().enumerate().map(|(number, carried)| (name(number), carried.socket));
    Ok((text, sockets.collect()))
}

/// What a process has left: its instance, and its connections as far as `take` finds their sockets.
///
/// # Errors
/// It is not to be trusted in any part.
pub(super) fn read(
    text: OwnedFd,
    mut take: impl FnMut(&str) -> Option<OwnedFd>,
) -> Result<(Uuid, Vec<Carried>), HandoverError> {
    let bytes = unseal(text, MOST)?;
    let mut rest = Rest(&bytes);
    let length = rest.take(8)?.try_into().map_err(|_| HandoverError::Length)?;
    let head = rest.take(u64::from_be_bytes(length))?;
    let Estate { instance, connections } = decode_document(Path::new("what was handed over"), head)?;
    let mut carried = Vec::new();
    for Connection { socket, unread, unsent, session } in connections {
        let (unread, unsent) = (rest.take(unread)?.to_vec(), rest.take(unsent)?.to_vec());
        match take(&socket) {
            Some(socket) => carried.push(Carried { socket, record: session, unread, unsent }),
            None => tracing::warn!(export = session.export, socket, "an NBD client's socket did not come along"),
        }
    }
    if rest.0.is_empty() { Ok((instance, carried)) } else { Err(HandoverError::Length) }
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], HandoverError> {
        let length = usize::try_from(length).map_err(|_| HandoverError::Length)?;
        let (now, later) = self.0.split_at_checked(length).ok_or(HandoverError::Length)?;
        self.0 = later;
        Ok(now)
    }
}

#[cfg(test)]
mod tests;
