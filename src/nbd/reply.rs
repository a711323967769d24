//! What a server sends in the transmission phase. Payloads are not copied here: a read's bytes follow its header.
//!
//! Success without payload is a simple reply, which the specification allows whatever was negotiated and which is the
//! shortest; errors are structured where possible, because then they can say why.

use super::errno::NbdErrno;
use super::negotiate::ALLOCATION_CONTEXT;
use super::wire::*;

/// One run of equal allocation status, in order from the start of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// In bytes, not zero.
    pub length: u32,
    /// Occupies nothing and reads as zeros.
    pub hole: bool,
}

fn simple(cookie: u64, error: u32, output: &mut Vec<u8>) {
    output.extend(NBD_SIMPLE_REPLY_MAGIC.to_be_bytes());
    output.extend(error.to_be_bytes());
    output.extend(cookie.to_be_bytes());
}

fn chunk(kind: u16, cookie: u64, length: u32, output: &mut Vec<u8>) {
    output.extend(NBD_STRUCTURED_REPLY_MAGIC.to_be_bytes());
    output.extend(NBD_REPLY_FLAG_DONE.to_be_bytes());
    output.extend(kind.to_be_bytes());
    output.extend(cookie.to_be_bytes());
    output.extend(length.to_be_bytes());
}

/// A write, flush, trim or zeroing was carried out.
pub fn success(cookie: u64, output: &mut Vec<u8>) {
    simple(cookie, 0, output);
}

/// The header of a successful read: exactly `length` bytes of data must follow it. The length is at most
/// [`MAX_PAYLOAD`].
pub fn data(structured: bool, cookie: u64, offset: u64, length: u32, output: &mut Vec<u8>) {
    if structured {
        chunk(NBD_REPLY_TYPE_OFFSET_DATA, cookie, length.saturating_add(8), output);
        output.extend(offset.to_be_bytes());
    } else {
        simple(cookie, 0, output);
    }
}

/// The request failed; the reason reaches the client if structured replies were negotiated.
pub fn error(structured: bool, cookie: u64, errno: NbdErrno, reason: &str, output: &mut Vec<u8>) {
    if !structured {
        return simple(cookie, errno.number(), output);
    }
    let reason = clipped(reason).as_bytes();
    chunk(NBD_REPLY_TYPE_ERROR, cookie, 6 + reason.len() as u32, output);
    output.extend(errno.number().to_be_bytes());
    output.extend((reason.len() as u16).to_be_bytes());
    output.extend(reason);
}

/// The `base:allocation` status of a range; needs at least one run.
pub fn block_status(cookie: u64, runs: &[Run], output: &mut Vec<u8>) {
    chunk(NBD_REPLY_TYPE_BLOCK_STATUS, cookie, 4 + 8 * runs.len() as u32, output);
    output.extend(ALLOCATION_CONTEXT.to_be_bytes());
    for run in runs {
        let flags = if run.hole { NBD_STATE_HOLE | NBD_STATE_ZERO } else { 0 };
        output.extend(run.length.to_be_bytes());
        output.extend(flags.to_be_bytes());
    }
}
