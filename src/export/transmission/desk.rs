//! Requests carried out with blocking calls, whichever engine makes them.

use crate::io::BlockIo;
use crate::nbd::reply::{Reply, Run};
use crate::nbd::{Command, Contexts, NbdErrno, Refusal};
use nix::errno::Errno;
use std::io;

/// Descriptors in one answer about block status; clients ask again where it ends.
const MAX_EXTENTS: usize = 2048;

/// What became of a request that has no data to send.
pub(super) enum Outcome {
    Done,
    Status(Vec<Run>),
}

/// Carries out everything but a read. The payload is a write's.
pub(super) fn carry_out(io: &dyn BlockIo, command: Command, payload: &[u8]) -> io::Result<Outcome> {
    match command {
        // Reads have a place to go to, which only the engine knows.
        Command::Read { .. } => return Err(Errno::EINVAL.into()),
        Command::BlockStatus { offset, length, one, .. } => {
            return status(io, offset, length, one).map(Outcome::Status);
        }
        Command::Write { offset, fua, .. } => io.write(payload, offset, fua)?,
        Command::Flush => io.flush()?,
        Command::Cache { offset, length } => io.prefetch(offset, length)?,
        Command::Trim { offset, length, fua } => {
            io.trim(offset, length)?;
            durably(io, fua)?;
        }
        Command::WriteZeroes { offset, length, may_punch, fast, fua } => {
            if fast { io.zero_fast(offset, length, may_punch) } else { io.zero(offset, length, may_punch) }?;
            durably(io, fua)?;
        }
    }
    Ok(Outcome::Done)
}

fn durably(io: &dyn BlockIo, fua: bool) -> io::Result<()> {
    if fua { io.flush() } else { Ok(()) }
}

fn status(io: &dyn BlockIo, offset: u64, length: u64, one: bool) -> io::Result<Vec<Run>> {
    let extents = io.extents(offset, length, if one { 1 } else { MAX_EXTENTS })?;
    let runs: Vec<Run> = extents
        .iter()
        .filter(|extent| extent.length > 0)
        .map(|extent| Run { length: extent.length, hole: extent.hole })
        .collect();
    // The protocol wants one run at least, and "data" is never wrong.
    Ok(if runs.is_empty() { vec![Run { length, hole: false }] } else { runs })
}

/// Lays out the answer to a request that was carried out, or could not be. `contexts` are those that were chosen.
pub(super) fn answer(
    reply: Reply,
    contexts: Contexts,
    command: Command,
    outcome: io::Result<Outcome>,
    output: &mut Vec<u8>,
) {
    match outcome {
        Ok(Outcome::Done) => reply.success(output),
        Ok(Outcome::Status(runs)) => {
            let only = if let Command::BlockStatus { only, .. } = command { only } else { None };
            reply.block_status(only.unwrap_or(contexts), &runs, output);
        }
        Err(error) => reply.error(errno(command, &error), &error.to_string(), output),
    }
}

/// The answer to a request that could not be carried out, once so many bytes of its payload have gone by.
pub(super) fn refusal(reply: Reply, command: Command, error: &io::Error, discard: u32) -> Refusal {
    Refusal { reply, errno: errno(command, error), reason: error.to_string().into(), discard }
}

/// `NBD_ENOTSUP` is kept for zeroing that was to be fast and is not.
fn errno(command: Command, error: &io::Error) -> NbdErrno {
    let unsupported = error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32);
    match command {
        Command::WriteZeroes { fast: true, .. } if unsupported => NbdErrno::NotSup,
        _ => NbdErrno::from_io(error),
    }
}

/// Tells the log about a medium that fails: once per connection, since its clients hear of each failure.
pub(super) fn report(told: &mut bool, export: &str, command: Command, error: &io::Error) {
    let expected = matches!(command, Command::WriteZeroes { fast: true, .. })
        && error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32);
    if !*told && !expected {
        *told = true;
        tracing::warn!(export, ?command, %error, "the medium of an export fails");
    }
}
