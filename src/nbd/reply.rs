//! What a server sends in the transmission phase. Payloads are not copied here: a read's bytes follow its header.
//!
//! Where the headers allow it, success without payload is a simple reply, the shortest there is; errors are structured
//! where possible, because then they can say why.

use super::errno::NbdErrno;
use super::negotiate::{ALLOCATION_CONTEXT, DEPTH_CONTEXT};
use super::request::{Contexts, Headers};
use super::wire::*;

/// One run of equal allocation status, in order from the start of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// In bytes, not zero.
    pub length: u64,
    /// Occupies nothing and reads as zeros.
    pub hole: bool,
}

/// The longest header of a reply with data, in bytes.
pub const LONGEST_DATA_HEADER: usize = 40;

/// What a reply goes to: a request and the headers that were agreed on with its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub headers: Headers,
    pub cookie: u64,
    /// The request's own, which extended replies repeat.
    pub offset: u64,
}

impl Reply {
    fn simple(&self, error: u32, output: &mut Vec<u8>) {
        let mut bytes = [0; 16];
        let (magic, rest) = bytes.split_at_mut(4);
        let (number, cookie) = rest.split_at_mut(4);
        magic.copy_from_slice(&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes());
        number.copy_from_slice(&error.to_be_bytes());
        cookie.copy_from_slice(&self.cookie.to_be_bytes());
        output.extend_from_slice(&bytes);
    }

    fn chunk(&self, flags: u16, kind: u16, length: u32, output: &mut Vec<u8>) {
        let extended = self.headers == Headers::Extended;
        let magic = if extended { NBD_EXTENDED_REPLY_MAGIC } else { NBD_STRUCTURED_REPLY_MAGIC };
        output.extend_from_slice(&magic.to_be_bytes());
        output.extend_from_slice(&flags.to_be_bytes());
        output.extend_from_slice(&kind.to_be_bytes());
        output.extend_from_slice(&self.cookie.to_be_bytes());
        if extended {
            output.extend_from_slice(&self.offset.to_be_bytes());
            output.extend_from_slice(&u64::from(length).to_be_bytes());
        } else {
            output.extend_from_slice(&length.to_be_bytes());
        }
    }

    /// A command without an answer of its own was carried out.
    pub fn success(&self, output: &mut Vec<u8>) {
        match self.headers {
            Headers::Extended => self.chunk(NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0, output),
            Headers::Compact | Headers::Structured => self.simple(0, output),
        }
    }

    /// The header of a successful read: exactly `length` bytes of data must follow it. The length is at most
    /// [`MAX_PAYLOAD`].
    pub fn data(&self, length: u32, output: &mut Vec<u8>) {
        if self.headers == Headers::Compact {
            return self.simple(0, output);
        }
        self.data_part(self.offset, length, true, output);
    }

    /// The header of a part of a read's data, from `offset` on, where headers are not compact: exactly `length` bytes must
    /// follow it.
    pub(super) fn data_part(&self, offset: u64, length: u32, last: bool, output: &mut Vec<u8>) {
        let flags = if last { NBD_REPLY_FLAG_DONE } else { 0 };
        self.chunk(flags, NBD_REPLY_TYPE_OFFSET_DATA, length.saturating_add(8), output);
        output.extend_from_slice(&offset.to_be_bytes());
    }

    /// The request failed; the reason reaches the client unless its headers are compact.
    pub fn error(&self, errno: NbdErrno, reason: &str, output: &mut Vec<u8>) {
        if self.headers == Headers::Compact {
            return self.simple(errno.number(), output);
        }
        let reason = clipped(reason).as_bytes();
        self.chunk(NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, 6 + reason.len() as u32, output);
        output.extend_from_slice(&errno.number().to_be_bytes());
        output.extend_from_slice(&(reason.len() as u16).to_be_bytes());
        output.extend_from_slice(reason);
    }

    /// The status of a range in each of the contexts that were chosen; needs one of them and one run at least.
    pub fn block_status(&self, contexts: Contexts, runs: &[Run], output: &mut Vec<u8>) {
        let hole = |run: &Run| if run.hole { NBD_STATE_HOLE | NBD_STATE_ZERO } else { 0 };
        let depth = |run: &Run| u32::from(!run.hole);
        if contexts.allocation {
            let flags = if contexts.depth { 0 } else { NBD_REPLY_FLAG_DONE };
            self.status(flags, ALLOCATION_CONTEXT, runs, hole, output);
        }
        if contexts.depth {
            self.status(NBD_REPLY_FLAG_DONE, DEPTH_CONTEXT, runs, depth, output);
        }
    }

    fn status(&self, flags: u16, context: u32, runs: &[Run], state: impl Fn(&Run) -> u32, output: &mut Vec<u8>) {
        if self.headers == Headers::Extended {
            let count = runs.len() as u32;
            self.chunk(flags, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, 8 + 16 * count, output);
            output.extend_from_slice(&context.to_be_bytes());
            output.extend_from_slice(&count.to_be_bytes());
            for run in runs {
                output.extend_from_slice(&run.length.to_be_bytes());
                output.extend_from_slice(&u64::from(state(run)).to_be_bytes());
            }
            return;
        }
        // The first run that does not fit into 32 bits ends the answer, shortened; clients ask again from there.
        let short = |run: &Run| u32::try_from(run.length).ok();
        let whole = runs.iter().take_while(|run| short(run).is_some()).count();
        let cut = runs.get(whole).map(|run| Run { length: LONGEST_RUN, hole: run.hole });
        let count = whole + usize::from(cut.is_some());
        self.chunk(flags, NBD_REPLY_TYPE_BLOCK_STATUS, 4 + 8 * count as u32, output);
        output.extend_from_slice(&context.to_be_bytes());
        for run in runs.iter().take(whole).chain(&cut) {
            output.extend_from_slice(&short(run).unwrap_or(u32::MAX).to_be_bytes());
            output.extend_from_slice(&state(run).to_be_bytes());
        }
    }
}

/// What a run is cut to where lengths have 32 bits: a multiple of every block size.
const LONGEST_RUN: u64 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: [Run; 2] = [Run { length: 4096, hole: false }, Run { length: 5 << 30, hole: true }];

    fn reply(headers: Headers) -> Reply {
        Reply { headers, cookie: 7, offset: 512 }
    }

    #[test]
    fn every_context_has_its_chunk_and_only_the_last_one_ends_the_reply() {
        let mut output = Vec::new();
        reply(Headers::Structured).block_status(Contexts { allocation: true, depth: true }, &RUNS, &mut output);
        let one = 20 + 4 + 2 * 8;
        assert_eq!(output.len(), 2 * one);
        let flags: Vec<u8> = output.chunks(one).filter_map(|chunk| chunk.get(5).copied()).collect();
        assert_eq!(flags, [0, NBD_REPLY_FLAG_DONE as u8]);
        let states: Vec<&[u8]> = output.chunks(one).filter_map(|chunk| chunk.get(one - 8..)).collect();
        assert_eq!(states, [&[0x80, 0, 0, 0, 0, 0, 0, 3], &[0x80, 0, 0, 0, 0, 0, 0, 0]]);
    }

    #[test]
    fn extended_replies_have_64_bits_and_are_never_simple() {
        let mut output = Vec::new();
        reply(Headers::Extended).success(&mut output);
        let expected = [&NBD_EXTENDED_REPLY_MAGIC.to_be_bytes()[..], &[0, 1, 0, 0], &7u64.to_be_bytes()].concat();
        assert_eq!(output.get(..16), Some(&expected[..]));
        assert_eq!(output.get(16..), Some(&[512u64.to_be_bytes(), [0; 8]].concat()[..]));
        output.clear();
        reply(Headers::Extended).block_status(Contexts { allocation: true, depth: false }, &RUNS, &mut output);
        assert_eq!(output.len(), 32 + 8 + 2 * 16);
        assert_eq!(output.get(56..64), Some(&(5u64 << 30).to_be_bytes()[..]));
    }
}
