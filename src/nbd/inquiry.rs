//! A request for block status whose payload says which metadata contexts it is about: the longest there can be is kept
//! here while it arrives. Sections "Request types" and "Extended headers"; limits are checked as for other requests.

use super::errno::NbdErrno;
use super::negotiate::{ALLOCATION_CONTEXT, DEPTH_CONTEXT};
use super::relay::encode_extended;
use super::reply::Reply;
use super::request::{Command, Contexts, Fault, Refusal, Request, Terms, Verdict, check_range};
use super::wire::{Fields, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_FLAG_REQ_ONE};

/// Length of a range, in bytes of the payload.
const RANGE: usize = 8;

/// Length of one context's number, in bytes of the payload.
const NUMBER: usize = 4;

/// A payload that names each context we know. A longer one names some twice, or strangers.
const LONGEST: usize = RANGE + 2 * NUMBER;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    reply: Reply,
    one: bool,
    payload: [u8; LONGEST],
    length: usize,
    filled: usize,
}

impl Inquiry {
    /// `None` if no payload of so many bytes can be right.
    pub(super) fn new(reply: Reply, one: bool, length: u64) -> Option<Self> {
        let length = usize::try_from(length).ok()?;
        let names_some = length <= LONGEST && length > RANGE && length.is_multiple_of(NUMBER);
        names_some.then_some(Self { reply, one, payload: [0; LONGEST], length, filled: 0 })
    }

    /// Writes what has come of the request as the client sent it.
    pub fn encode(&self, output: &mut Vec<u8>) {
        Self::encode_header(self.reply, self.one, self.length, output);
        output.extend_from_slice(self.payload.get(..self.filled).unwrap_or_default());
    }

    /// The header of a request with a payload of so many bytes.
    pub(super) fn encode_header(reply: Reply, one: bool, length: usize, output: &mut Vec<u8>) {
        let flags = NBD_CMD_FLAG_PAYLOAD_LEN | if one { NBD_CMD_FLAG_REQ_ONE } else { 0 };
        encode_extended(flags, NBD_CMD_BLOCK_STATUS, (reply.cookie, reply.offset, length as u64), output);
    }

    /// The payload that asks for a range of so many bytes in these contexts.
    pub(super) fn payload(length: u64, only: Contexts) -> Vec<u8> {
        let chosen = [(only.allocation, ALLOCATION_CONTEXT), (only.depth, DEPTH_CONTEXT)];
        let numbers = chosen.into_iter().filter(|(chosen, _)| *chosen).flat_map(|(_, number)| number.to_be_bytes());
        length.to_be_bytes().into_iter().chain(numbers).collect()
    }

    /// Takes the bytes of its payload off the front of some; says how many these were.
    pub fn take(&mut self, input: &[u8]) -> usize {
        let vacant = self.payload.get_mut(self.filled..self.length).unwrap_or_default();
        let count = vacant.len().min(input.len());
        if let (Some(target), Some(source)) = (vacant.get_mut(..count), input.get(..count)) {
            target.copy_from_slice(source);
            self.filled += count;
        }
        count
    }

    /// Judges the request as [`super::decode_request`] does others; `None` before its payload is whole.
    pub fn verdict(&self, terms: &Terms, size: u64) -> Option<Verdict> {
        let payload = self.payload.get(..self.length).filter(|_| self.filled == self.length)?;
        let reply = self.reply;
        Some(match self.check(payload, terms, size) {
            Ok(command) => Verdict::Run(Request { reply, command }),
            Err((errno, reason)) => Verdict::Refuse(Refusal { reply, errno, reason: reason.into(), discard: 0 }),
        })
    }

    fn check(&self, payload: &[u8], terms: &Terms, size: u64) -> Result<Command, Fault> {
        let malformed = (NbdErrno::Inval, "the payload is malformed");
        let mut fields = Fields(payload);
        let length = fields.u64().ok_or(malformed)?;
        let mut only = Contexts::default();
        while !fields.0.is_empty() {
            let (wanted, chosen) = match fields.u32().ok_or(malformed)? {
                ALLOCATION_CONTEXT => (&mut only.allocation, terms.contexts.allocation),
                DEPTH_CONTEXT => (&mut only.depth, terms.contexts.depth),
                _ => return Err((NbdErrno::Inval, "the payload names a context that was not chosen")),
            };
            if !chosen {
                return Err((NbdErrno::Inval, "the payload names a context that was not chosen"));
            }
            if std::mem::replace(wanted, true) {
                return Err((NbdErrno::Inval, "the payload names a context twice"));
            }
        }
        check_range(NBD_CMD_BLOCK_STATUS, (self.reply.offset, length), terms, size)?;
        Ok(Command::BlockStatus { offset: self.reply.offset, length, one: self.one, only: Some(only) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::{Headers, decode_request};
    use super::super::wire::*;
    use super::*;

    const SIZE: u64 = 1 << 40;
    const BOTH: Contexts = Contexts { allocation: true, depth: true };

    /// What comes of a request with this payload, whichever pieces it comes in.
    fn ask(contexts: Contexts, flags: u16, payload: &[u8]) -> Verdict {
        let terms = Terms { read_only: false, headers: Headers::Extended, contexts, minimum_block: 1 };
        let (magic, kind) = (NBD_EXTENDED_REQUEST_MAGIC.to_be_bytes(), NBD_CMD_BLOCK_STATUS.to_be_bytes());
        let flags = (flags | NBD_CMD_FLAG_PAYLOAD_LEN).to_be_bytes();
        let numbers = [7, 4096, payload.len() as u64].map(u64::to_be_bytes);
        let header = [&magic[..], &flags, &kind, numbers.as_flattened()].concat();
        let verdict = decode_request(&header, &terms, SIZE).expect("a known magic").expect("a whole header");
        let Verdict::Inquire(inquiry) = verdict else { return verdict };
        let answers = [1, 5, payload.len()].map(|piece| {
            let mut inquiry = inquiry.clone();
            for part in payload.chunks(piece) {
                assert_eq!(inquiry.verdict(&terms, SIZE), None, "the payload is not whole");
                assert_eq!(inquiry.take(part), part.len());
            }
            assert_eq!(inquiry.take(b"the next request"), 0);
            inquiry.verdict(&terms, SIZE).expect("a whole payload")
        });
        assert!(answers.iter().all(|answer| *answer == answers[0]));
        answers[0].clone()
    }

    fn payload(length: u64, numbers: &[u32]) -> Vec<u8> {
        [&length.to_be_bytes()[..], numbers.iter().map(|it| it.to_be_bytes()).collect::<Vec<_>>().as_flattened()]
            .concat()
    }

    fn refused(contexts: Contexts, payload: &[u8]) -> Option<(NbdErrno, u32)> {
        match ask(contexts, 0, payload) {
            Verdict::Refuse(Refusal { errno, discard, .. }) => Some((errno, discard)),
            _ => None,
        }
    }

    #[test]
    fn the_payload_chooses_among_the_contexts_and_carries_64_bits() {
        for (numbers, only) in [
            (&[ALLOCATION_CONTEXT][..], Contexts { allocation: true, depth: false }),
            (&[DEPTH_CONTEXT], Contexts { allocation: false, depth: true }),
            (&[DEPTH_CONTEXT, ALLOCATION_CONTEXT], BOTH),
        ] {
            let Verdict::Run(request) = ask(BOTH, NBD_CMD_FLAG_REQ_ONE, &payload(1 << 39, numbers)) else {
                panic!("{numbers:?}")
            };
            let expected = Command::BlockStatus { offset: 4096, length: 1 << 39, one: true, only: Some(only) };
            assert_eq!(request.command, expected);
        }
    }

    #[test]
    fn contexts_named_twice_or_never_chosen_and_ranges_that_overflow_are_invalid() {
        let invalid = Some((NbdErrno::Inval, 0));
        for numbers in [&[ALLOCATION_CONTEXT, ALLOCATION_CONTEXT][..], &[0], &[u32::MAX, DEPTH_CONTEXT]] {
            assert_eq!(refused(BOTH, &payload(512, numbers)), invalid, "{numbers:?}");
        }
        let allocation = Contexts { allocation: true, depth: false };
        assert_eq!(refused(allocation, &payload(512, &[DEPTH_CONTEXT])), invalid);
        for length in [0, SIZE, u64::MAX, u64::MAX - 4096] {
            assert_eq!(refused(BOTH, &payload(length, &[DEPTH_CONTEXT])), invalid, "{length}");
        }
    }

    #[test]
    fn payloads_of_no_right_length_are_dropped_whole() {
        for length in [0usize, 1, 8, 11, 13, 20, 4096] {
            let expected = Some((NbdErrno::Inval, length as u32));
            assert_eq!(refused(BOTH, &vec![0; length]), expected, "{length} bytes");
        }
        let dropped = refused(Contexts::default(), &payload(512, &[ALLOCATION_CONTEXT]));
        assert_eq!(dropped, Some((NbdErrno::Inval, 12)), "nothing was chosen");
    }
}
