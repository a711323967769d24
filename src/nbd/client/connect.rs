//! The client's side of the handshake.

use super::super::wire::*;
use super::ClientError;
use std::io::{Read, Write};

/// Replies to one option beyond which a server is only keeping us busy.
const MAX_REPLIES: usize = 1024;

/// The longest sensible option reply, in bytes: a string and what describes it.
const MAX_REPLY: u32 = 2 * MAX_STRING as u32;

/// What the server said of the export and of itself.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) size: u64,
    pub(super) flags: u16,
    pub(super) structured: bool,
    pub(super) allocation_context: Option<u32>,
    pub(super) maximum_payload: u32,
}

impl Facts {
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

struct Reply {
    kind: u32,
    data: Vec<u8>,
}

pub(super) fn exact<R: Read, const N: usize>(stream: &mut R) -> Result<[u8; N], ClientError> {
    let mut bytes = [0; N];
    fill(stream, &mut bytes)?;
    Ok(bytes)
}

pub(super) fn fill<R: Read>(stream: &mut R, bytes: &mut [u8]) -> Result<(), ClientError> {
    stream.read_exact(bytes).map_err(|source| ClientError::Stream { action: "receiving from the server", source })
}

fn send<S: Write>(stream: &mut S, bytes: &[u8]) -> Result<(), ClientError> {
    let action = "negotiating with the server";
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(|source| ClientError::Stream { action, source })
}

/// A stream whose reads are buffered and whose writes are not.
pub(super) type Buffered<S> = std::io::BufReader<S>;

/// Takes the greeting and asks for TLS before anything else is said; the value is for [`negotiate`], over TLS.
pub(super) fn start_tls<S: Read + Write>(stream: &mut Buffered<S>) -> Result<Greeted, ClientError> {
    let greeted = greet(stream)?;
    ask(stream, NBD_OPT_STARTTLS, &[])?;
    let Reply { kind, data } = reply(stream, NBD_OPT_STARTTLS)?;
    if kind != NBD_REP_ACK {
        return Err(ClientError::NoTls { reason: reason(kind, &data) });
    }
    // Whatever came with the answer was not encrypted, and is nobody's word.
    if !stream.buffer().is_empty() {
        return Err(ClientError::Protocol("it sent something in plain behind its consent to TLS"));
    }
    Ok(greeted)
}

/// Chooses the export.
pub(super) fn negotiate<S: Read + Write>(
    stream: &mut Buffered<S>,
    export: &str,
    greeted: Option<Greeted>,
) -> Result<Facts, ClientError> {
    if string(export.as_bytes()).is_none() {
        return Err(ClientError::UnknownExport { export: clipped(export).to_owned() });
    }
    let Greeted { no_zeroes } = match greeted {
        Some(greeted) => greeted,
        None => greet(stream)?,
    };
    let structured = agree(stream, NBD_OPT_STRUCTURED_REPLY, &[])?.is_some();
    let mut facts = Facts { size: 0, flags: 0, structured, allocation_context: None, maximum_payload: MAX_PAYLOAD };
    if structured {
        facts.allocation_context = choose_context(stream, export)?;
    }
    if !go(stream, export, &mut facts)? {
        name_export(stream, export, no_zeroes, &mut facts)?;
    }
    if facts.size > i64::MAX as u64 {
        return Err(ClientError::Protocol("the export is larger than any device"));
    }
    Ok(facts)
}

/// The server's greeting was taken and answered.
pub(super) struct Greeted {
    /// The padding behind an old-fashioned export description is left out.
    no_zeroes: bool,
}

fn greet<S: Read + Write>(stream: &mut Buffered<S>) -> Result<Greeted, ClientError> {
    let magics = [exact(stream)?, exact(stream)?].map(u64::from_be_bytes);
    if magics != [NBDMAGIC, IHAVEOPT] {
        return Err(ClientError::Protocol("its greeting is not that of a newstyle NBD server"));
    }
    let offered = u16::from_be_bytes(exact(stream)?);
    if offered & NBD_FLAG_FIXED_NEWSTYLE == 0 {
        return Err(ClientError::Protocol("it does not speak the fixed newstyle handshake"));
    }
    let no_zeroes = offered & NBD_FLAG_NO_ZEROES != 0;
    let flags = NBD_FLAG_C_FIXED_NEWSTYLE | if no_zeroes { NBD_FLAG_C_NO_ZEROES } else { 0 };
    send(stream.get_mut(), &flags.to_be_bytes())?;
    Ok(Greeted { no_zeroes })
}

fn ask<S: Read + Write>(stream: &mut Buffered<S>, option: u32, data: &[u8]) -> Result<(), ClientError> {
    let length = (data.len() as u32).to_be_bytes();
    send(stream.get_mut(), &[&IHAVEOPT.to_be_bytes()[..], &option.to_be_bytes(), &length, data].concat())
}

fn reply<S: Read>(stream: &mut Buffered<S>, option: u32) -> Result<Reply, ClientError> {
    let magic = u64::from_be_bytes(exact(stream)?);
    let [about, kind, length] = [exact(stream)?, exact(stream)?, exact(stream)?].map(u32::from_be_bytes);
    if magic != NBD_REP_MAGIC || about != option {
        return Err(ClientError::Protocol("an option was answered with something else"));
    }
    if length > MAX_REPLY {
        return Err(ClientError::Protocol("the reply to an option is too long"));
    }
    let mut data = vec![0; length as usize];
    fill(stream, &mut data)?;
    Ok(Reply { kind, data })
}

/// Asks for something that may be denied; the replies before the final acknowledgement, or `None`.
fn agree<S: Read + Write>(
    stream: &mut Buffered<S>,
    option: u32,
    data: &[u8],
) -> Result<Option<Vec<Reply>>, ClientError> {
    ask(stream, option, data)?;
    let mut replies = Vec::new();
    while replies.len() < MAX_REPLIES {
        match reply(stream, option)? {
            Reply { kind: NBD_REP_ACK, .. } => return Ok(Some(replies)),
            Reply { kind, .. } if kind & NBD_REP_FLAG_ERROR != 0 => return Ok(None),
            reply => replies.push(reply),
        }
    }
    Err(ClientError::Protocol("the replies to an option do not end"))
}

fn choose_context<S: Read + Write>(stream: &mut Buffered<S>, export: &str) -> Result<Option<u32>, ClientError> {
    let lengths = [export.len() as u32, 1, BASE_ALLOCATION.len() as u32].map(u32::to_be_bytes);
    let [export_length, count, query_length] = &lengths;
    let data = [&export_length[..], export.as_bytes(), count, query_length, BASE_ALLOCATION.as_bytes()].concat();
    let replies = agree(stream, NBD_OPT_SET_META_CONTEXT, &data)?.unwrap_or_default();
    Ok(replies.iter().filter(|reply| reply.kind == NBD_REP_META_CONTEXT).find_map(|reply| {
        let mut fields = Fields(&reply.data);
        let id = fields.u32()?;
        (fields.0 == BASE_ALLOCATION.as_bytes()).then_some(id)
    }))
}

/// Says whether the server knows `NBD_OPT_GO`.
fn go<S: Read + Write>(stream: &mut Buffered<S>, export: &str, facts: &mut Facts) -> Result<bool, ClientError> {
    let length = (export.len() as u32).to_be_bytes();
    let wanted = [1, NBD_INFO_BLOCK_SIZE].map(u16::to_be_bytes);
    ask(stream, NBD_OPT_GO, &[&length[..], export.as_bytes(), wanted.as_flattened()].concat())?;
    let mut described = false;
    for _ in 0..MAX_REPLIES {
        let Reply { kind, data } = reply(stream, NBD_OPT_GO)?;
        match kind {
            NBD_REP_ACK if described => return Ok(true),
            NBD_REP_ACK => return Err(ClientError::Protocol("the export was not described")),
            NBD_REP_INFO => described |= learn(&data, facts)?,
            NBD_REP_ERR_UNSUP => return Ok(false),
            NBD_REP_ERR_UNKNOWN => return Err(ClientError::UnknownExport { export: export.to_owned() }),
            _ if kind & NBD_REP_FLAG_ERROR != 0 => return Err(refused(export, kind, &data)),
            _ => return Err(ClientError::Protocol("an option was answered with something else")),
        }
    }
    Err(ClientError::Protocol("the replies to an option do not end"))
}

fn refused(export: &str, kind: u32, data: &[u8]) -> ClientError {
    match (kind, reason(kind, data)) {
        (NBD_REP_ERR_TLS_REQD, reason) => ClientError::TlsRequired { export: export.to_owned(), reason },
        (_, reason) => ClientError::Refused { export: export.to_owned(), reason },
    }
}

fn reason(kind: u32, data: &[u8]) -> String {
    match (string(data), kind) {
        (Some(text), _) if !text.is_empty() => text.to_owned(),
        (_, NBD_REP_ERR_POLICY) => "its policy forbids it".to_owned(),
        (_, NBD_REP_ERR_UNSUP) => "it does not know the option".to_owned(),
        (_, NBD_REP_ERR_TLS_REQD) => "it says no more than that".to_owned(),
        (_, NBD_REP_ERR_SHUTDOWN) => "it is shutting down".to_owned(),
        _ => format!("it gives no reason but the number {kind:#x}"),
    }
}

/// Says whether this was the mandatory description.
fn learn(data: &[u8], facts: &mut Facts) -> Result<bool, ClientError> {
    let mut fields = Fields(data);
    let malformed = || ClientError::Protocol("an export's description is malformed");
    match fields.u16().ok_or_else(malformed)? {
        NBD_INFO_EXPORT => {
            facts.size = fields.u64().ok_or_else(malformed)?;
            facts.flags = fields.u16().ok_or_else(malformed)?;
            Ok(true)
        }
        NBD_INFO_BLOCK_SIZE => {
            let [_minimum, preferred, maximum] = [fields.u32(), fields.u32(), fields.u32()];
            let (preferred, maximum) = (preferred.ok_or_else(malformed)?, maximum.ok_or_else(malformed)?);
            if maximum < preferred.max(1) {
                return Err(malformed());
            }
            facts.maximum_payload = facts.maximum_payload.min(maximum);
            Ok(false)
        }
        _ => Ok(false),
    }
}

fn name_export<S: Read + Write>(
    stream: &mut Buffered<S>,
    export: &str,
    no_zeroes: bool,
    facts: &mut Facts,
) -> Result<(), ClientError> {
    ask(stream, NBD_OPT_EXPORT_NAME, export.as_bytes())?;
    facts.size = u64::from_be_bytes(exact(stream)?);
    facts.flags = u16::from_be_bytes(exact(stream)?);
    if !no_zeroes {
        let _padding: [u8; 124] = exact(stream)?;
    }
    Ok(())
}
