//! What a server answers to each option of the handshake. Section "Option types".

use super::handshake::{Closed, ExportDescription, Exports, Facts, Listed, Negotiated, transmission_flags};
use super::request::{Contexts, Headers};
use super::wire::*;

/// A preferred size that suits file systems and page caches, in bytes.
const PREFERRED_BLOCK: u32 = 4096;

/// A listing is refused rather than built if it needs more bytes than this.
const MAX_LISTING: usize = 16 << 20;

/// Zeroes that old clients expect behind an export's size and flags.
const EXPORT_NAME_PADDING: usize = 124;

/// The metadata contexts we know, by the numbers that clients are given; they must treat them as opaque.
const CONTEXTS: [(u32, &str); 2] = [(ALLOCATION_CONTEXT, BASE_ALLOCATION), (DEPTH_CONTEXT, ALLOCATION_DEPTH)];
pub(super) const ALLOCATION_CONTEXT: u32 = 1;
pub(super) const DEPTH_CONTEXT: u32 = 2;

pub(super) enum Answer<T> {
    Replied,
    Enter(Negotiated<T>),
    Close,
}

/// Writes one option reply.
pub(super) fn reply(option: u32, kind: u32, data: &[u8], output: &mut Vec<u8>) {
    output.extend(NBD_REP_MAGIC.to_be_bytes());
    output.extend(option.to_be_bytes());
    output.extend(kind.to_be_bytes());
    output.extend((data.len() as u32).to_be_bytes());
    output.extend(data);
}

pub(super) fn refuse(option: u32, kind: u32, text: &str, output: &mut Vec<u8>) {
    reply(option, kind, clipped(text).as_bytes(), output);
}

fn decline(option: u32, name: &str, closed: Closed, output: &mut Vec<u8>) {
    match closed {
        Closed::Unknown => refuse(option, NBD_REP_ERR_UNKNOWN, &format!("there is no export '{name}' here"), output),
        Closed::Forbidden(reason) => refuse(option, NBD_REP_ERR_POLICY, &reason, output),
    }
}

/// Answers an option whose data has arrived whole.
pub(super) fn answer<E: Exports>(
    option: u32,
    data: &[u8],
    facts: &mut Facts,
    exports: &E,
    output: &mut Vec<u8>,
) -> Answer<E::Opened> {
    match option {
        NBD_OPT_EXPORT_NAME => return export_name(data, facts, exports, output),
        NBD_OPT_INFO | NBD_OPT_GO => return info_or_go(option, data, facts, exports, output),
        NBD_OPT_LIST => list(data, exports, output),
        NBD_OPT_STRUCTURED_REPLY => structured_reply(data, facts, output),
        NBD_OPT_EXTENDED_HEADERS => extended_headers(data, facts, output),
        NBD_OPT_LIST_META_CONTEXT => list_contexts(data, exports, output),
        NBD_OPT_SET_META_CONTEXT => set_contexts(data, facts, exports, output),
        _ => refuse(option, NBD_REP_ERR_UNSUP, "this server does not know the option", output),
    }
    Answer::Replied
}

/// Only "yes" can be said here; "no" is the end of the connection.
fn export_name<E: Exports>(data: &[u8], facts: &Facts, exports: &E, output: &mut Vec<u8>) -> Answer<E::Opened> {
    let Some((name, (description, export))) = string(data).and_then(|name| Some((name, exports.open(name).ok()?)))
    else {
        return Answer::Close;
    };
    if description.minimum_block > 1 || facts.headers == Headers::Extended {
        return Answer::Close;
    }
    output.extend(description.size.to_be_bytes());
    let contexts = facts.contexts_for(name);
    output.extend(transmission_flags(description.read_only, facts.headers, contexts).to_be_bytes());
    if !facts.no_zeroes {
        output.extend([0; EXPORT_NAME_PADDING]);
    }
    Answer::Enter(negotiated(name, description, export, facts))
}

fn negotiated<T>(asked: &str, description: ExportDescription, export: T, facts: &Facts) -> Negotiated<T> {
    Negotiated { export, description, headers: facts.headers, contexts: facts.contexts_for(asked) }
}

fn info_or_go<E: Exports>(
    option: u32,
    data: &[u8],
    facts: &Facts,
    exports: &E,
    output: &mut Vec<u8>,
) -> Answer<E::Opened> {
    let Some((name, wanted)) = parse_info(data) else {
        refuse(option, NBD_REP_ERR_INVALID, "the option's data is malformed", output);
        return Answer::Replied;
    };
    let (description, export) = match exports.open(name) {
        Ok(opened) => opened,
        Err(closed) => {
            decline(option, name, closed, output);
            return Answer::Replied;
        }
    };
    let sizes_known = wanted.contains(&NBD_INFO_BLOCK_SIZE);
    describe(option, name, &description, &wanted, facts, output);
    if description.minimum_block > 1 && !sizes_known {
        let text = format!("requests must be multiples of {} bytes", description.minimum_block);
        refuse(option, NBD_REP_ERR_BLOCK_SIZE_REQD, &text, output);
        return Answer::Replied;
    }
    reply(option, NBD_REP_ACK, &[], output);
    match option {
        NBD_OPT_GO => Answer::Enter(negotiated(name, description, export, facts)),
        _ => Answer::Replied,
    }
}

fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<u16>>>()?;
    fields.0.is_empty().then_some((name, wanted))
}

fn describe(option: u32, asked: &str, export: &ExportDescription, wanted: &[u16], facts: &Facts, output: &mut Vec<u8>) {
    let mut info = |kind: u16, parts: &[&[u8]]| {
        let data = [&[&kind.to_be_bytes()[..]], parts].concat().concat();
        reply(option, NBD_REP_INFO, &data, output);
    };
    let flags = transmission_flags(export.read_only, facts.headers, facts.contexts_for(asked));
    info(NBD_INFO_EXPORT, &[&export.size.to_be_bytes(), &flags.to_be_bytes()]);
    if wanted.contains(&NBD_INFO_NAME) {
        info(NBD_INFO_NAME, &[clipped(&export.name).as_bytes()]);
    }
    if wanted.contains(&NBD_INFO_DESCRIPTION) && !export.description.is_empty() {
        info(NBD_INFO_DESCRIPTION, &[clipped(&export.description).as_bytes()]);
    }
    if wanted.contains(&NBD_INFO_BLOCK_SIZE) || export.minimum_block > 1 {
        let preferred = PREFERRED_BLOCK.max(export.minimum_block);
        let sizes = [export.minimum_block, preferred, MAX_PAYLOAD].map(u32::to_be_bytes);
        info(NBD_INFO_BLOCK_SIZE, &[sizes.as_flattened()]);
    }
}

fn list<E: Exports>(data: &[u8], exports: &E, output: &mut Vec<u8>) {
    if !data.is_empty() {
        return refuse(NBD_OPT_LIST, NBD_REP_ERR_INVALID, "the option takes no data", output);
    }
    let listed = exports.list();
    let length: usize = listed.iter().map(|export| 24 + export.name.len() + export.description.len()).sum();
    if length > MAX_LISTING {
        return refuse(NBD_OPT_LIST, NBD_REP_ERR_TOO_BIG, "there are too many exports to list", output);
    }
    for Listed { name, description } in &listed {
        let (name, description) = (clipped(name), clipped(description));
        let length = (name.len() as u32).to_be_bytes();
        reply(NBD_OPT_LIST, NBD_REP_SERVER, &[&length, name.as_bytes(), description.as_bytes()].concat(), output);
    }
    reply(NBD_OPT_LIST, NBD_REP_ACK, &[], output);
}

fn structured_reply(data: &[u8], facts: &mut Facts, output: &mut Vec<u8>) {
    let option = NBD_OPT_STRUCTURED_REPLY;
    if !data.is_empty() {
        return refuse(option, NBD_REP_ERR_INVALID, "the option takes no data", output);
    }
    if facts.headers == Headers::Extended {
        return refuse(option, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers have been agreed on already", output);
    }
    facts.headers = Headers::Structured;
    reply(option, NBD_REP_ACK, &[], output);
}

fn extended_headers(data: &[u8], facts: &mut Facts, output: &mut Vec<u8>) {
    let option = NBD_OPT_EXTENDED_HEADERS;
    if !data.is_empty() {
        return refuse(option, NBD_REP_ERR_INVALID, "the option takes no data", output);
    }
    facts.headers = Headers::Extended;
    reply(option, NBD_REP_ACK, &[], output);
}

fn parse_contexts(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.string()?);
    }
    fields.0.is_empty().then_some((name, queries))
}

fn list_contexts<E: Exports>(data: &[u8], exports: &E, output: &mut Vec<u8>) {
    let option = NBD_OPT_LIST_META_CONTEXT;
    let Some((name, queries)) = parse_contexts(data) else {
        return refuse(option, NBD_REP_ERR_INVALID, "the option's data is malformed", output);
    };
    if let Err(closed) = exports.open(name) {
        return decline(option, name, closed, output);
    }
    for (_, context) in CONTEXTS {
        let wanted = |query: &&str| *query == context || (query.ends_with(':') && context.starts_with(*query));
        if queries.is_empty() || queries.iter().any(wanted) {
            reply_context(option, 0, context, output);
        }
    }
    reply(option, NBD_REP_ACK, &[], output);
}

fn set_contexts<E: Exports>(data: &[u8], facts: &mut Facts, exports: &E, output: &mut Vec<u8>) {
    let option = NBD_OPT_SET_META_CONTEXT;
    // Whatever comes of this one, what was set before is gone.
    facts.contexts_of = None;
    if facts.headers == Headers::Compact {
        return refuse(option, NBD_REP_ERR_INVALID, "structured replies must be negotiated first", output);
    }
    let Some((name, queries)) = parse_contexts(data) else {
        return refuse(option, NBD_REP_ERR_INVALID, "the option's data is malformed", output);
    };
    if let Err(closed) = exports.open(name) {
        return decline(option, name, closed, output);
    }
    for (id, context) in CONTEXTS.into_iter().filter(|(_, context)| queries.contains(context)) {
        reply_context(option, id, context, output);
    }
    let contexts =
        Contexts { allocation: queries.contains(&BASE_ALLOCATION), depth: queries.contains(&ALLOCATION_DEPTH) };
    facts.contexts_of = Some((name.to_owned(), contexts));
    reply(option, NBD_REP_ACK, &[], output);
}

fn reply_context(option: u32, id: u32, context: &str, output: &mut Vec<u8>) {
    reply(option, NBD_REP_META_CONTEXT, &[&id.to_be_bytes(), context.as_bytes()].concat(), output);
}
