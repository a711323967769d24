//! Replies on their way out of a reactor: small ones gathered in one run of bytes, data where it was read to.

use super::memory::Buffer;
use std::ops::Range;

/// Data that goes out from where it lies, in front of byte `at` of the small ones.
struct Data {
    at: usize,
    buffer: Buffer,
    range: Range<usize>,
}

/// A message at a place of its own, which the kernel knows while it is in flight.
pub(super) type Parcel = Box<Message>;

/// What one send takes. Not to be touched while it is in flight: the kernel reads what it points to.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    data: Vec<Data>,
    length: usize,
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
}

/// Pieces of data that one message takes at most: the system's limit on vectors is 1024.
const MOST_PIECES: usize = 256;

/// Bytes that a message takes unless its first reply is longer.
const LARGE: usize = 512 << 10;

/// Memory for small replies that is kept for the next ones, in bytes.
const KEPT: usize = 256 << 10;

impl Message {
    pub(super) fn new() -> Box<Self> {
        // SAFETY: plain numbers and pointers, for which zeros are valid: a message of nothing to nobody.
        let header = unsafe { std::mem::zeroed() };
        let (bytes, data, vectors) = (Vec::new(), Vec::new(), Vec::new());
        Box::new(Self { bytes, data, length: 0, vectors, header })
    }

    /// Of bytes that were laid out before; none if there are none.
    pub(super) fn of(bytes: Vec<u8>) -> Option<Parcel> {
        if bytes.is_empty() {
            return None;
        }
        let mut message = Self::new();
        message.bytes = bytes;
        Some(message)
    }

    /// Everything behind the first `sent` bytes, in the order in which it goes out.
    pub(super) fn rest(&self, mut sent: usize) -> Vec<u8> {
        let mut rest = Vec::with_capacity(self.len().saturating_sub(sent));
        let mut put = |part: &[u8]| {
            let skipped = sent.min(part.len());
            sent -= skipped;
            rest.extend_from_slice(part.get(skipped..).unwrap_or_default());
        };
        let mut taken = 0;
        for Data { at, buffer, range } in &self.data {
            put(self.bytes.get(taken..*at).unwrap_or_default());
            put(buffer.get(range.clone()).unwrap_or_default());
            taken = *at;
        }
        put(self.bytes.get(taken..).unwrap_or_default());
        rest
    }

    /// Puts data behind the bytes so far.
    pub(super) fn attach(&mut self, buffer: Buffer, range: Range<usize>) {
        self.length += range.len();
        self.data.push(Data { at: self.bytes.len(), buffer, range });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.data.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() + self.length >= LARGE || self.data.len() >= MOST_PIECES
    }

    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.length
    }

    /// What it takes when it is empty, in bytes; no less than all that is not for small replies.
    pub(super) fn footprint(&self) -> usize {
        self.bytes.capacity() + MOST_PIECES * (size_of::<Data>() + 2 * size_of::<libc::iovec>())
    }

    /// Lets go of everything but the memory for small replies.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.data.clear();
        self.vectors.clear();
        self.length = 0;
    }

    /// Points a header at all parts in their order.
    pub(super) fn prepare(&mut self) -> *const libc::msghdr {
        self.vectors.clear();
        let mut taken = 0;
        let mut push = |part: &[u8]| {
            if !part.is_empty() {
                self.vectors.push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            }
        };
        for Data { at, buffer, range } in &self.data {
            push(self.bytes.get(taken..*at).unwrap_or_default());
            push(buffer.get(range.clone()).unwrap_or_default());
            taken = *at;
        }
        push(self.bytes.get(taken..).unwrap_or_default());
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
        &raw const self.header
    }
}
