//! Requests written as they were read, for whoever goes on with a connection in this one's place.

use super::inquiry::Inquiry;
use super::reply::Reply;
use super::request::{Command, Headers, Request, encode_request};
use super::wire::*;

impl Request {
    /// Writes the header anew as the client sent it, without flags that ask for nothing: read again, it means the same.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let Reply { headers, cookie, offset } = self.reply;
        let flag = |wanted: bool, flag: u16| if wanted { flag } else { 0 };
        let extended = headers == Headers::Extended;
        let (kind, flags, length) = match self.command {
            Command::Read { length, whole, .. } => (NBD_CMD_READ, flag(whole, NBD_CMD_FLAG_DF), length.into()),
            Command::Write { length, fua, .. } => {
                let flags = flag(fua, NBD_CMD_FLAG_FUA) | flag(extended, NBD_CMD_FLAG_PAYLOAD_LEN);
                (NBD_CMD_WRITE, flags, length.into())
            }
            Command::Flush => (NBD_CMD_FLUSH, 0, 0),
            Command::Trim { length, fua, .. } => (NBD_CMD_TRIM, flag(fua, NBD_CMD_FLAG_FUA), length),
            Command::Cache { length, .. } => (NBD_CMD_CACHE, 0, length),
            Command::WriteZeroes { length, may_punch, fast, fua, .. } => {
                let how = flag(!may_punch, NBD_CMD_FLAG_NO_HOLE) | flag(fast, NBD_CMD_FLAG_FAST_ZERO);
                (NBD_CMD_WRITE_ZEROES, how | flag(fua, NBD_CMD_FLAG_FUA), length)
            }
            Command::BlockStatus { length, one, only: Some(only), .. } => {
                let payload = Inquiry::payload(length, only);
                Inquiry::encode_header(self.reply, one, payload.len(), output);
                return output.extend(payload);
            }
            Command::BlockStatus { length, one, only: None, .. } => {
                (NBD_CMD_BLOCK_STATUS, flag(one, NBD_CMD_FLAG_REQ_ONE), length)
            }
        };
        if !extended {
            // It came in 32 bits.
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            return encode_request(flags, kind, cookie, offset, length, output);
        }
        encode_extended(flags, kind, (cookie, offset, length), output);
    }
}

/// A header with lengths of 64 bits. Section "Extended headers".
pub(super) fn encode_extended(flags: u16, kind: u16, numbers: (u64, u64, u64), output: &mut Vec<u8>) {
    let (cookie, offset, length) = numbers;
    output.extend(NBD_EXTENDED_REQUEST_MAGIC.to_be_bytes());
    output.extend(flags.to_be_bytes());
    output.extend(kind.to_be_bytes());
    output.extend([cookie, offset, length].map(u64::to_be_bytes).as_flattened());
}
