//! The kernel's device-mapper, asked and told through `ioctl(2)` on `/dev/mapper/control`. Linux's
//! `include/uapi/linux/dm-ioctl.h` has the numbers and the layouts.
//!
//! Here only what no program's output is needed for: what targets a device has, how they are, and messages to them.
//! Devices are made, changed and removed by LVM alone.

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// `DM_TABLE_STATUS` and `DM_TARGET_MSG`.
const TABLE_STATUS: Opcode = opcode::read_write::<[u8; HEAD]>(0xfd, 12);
const TARGET_MESSAGE: Opcode = opcode::read_write::<[u8; HEAD]>(0xfd, 14);

/// `DM_STATUS_TABLE_FLAG`: what the targets were made of, not how they are.
const TABLE: u32 = 1 << 4;
/// `DM_BUFFER_FULL_FLAG`: the answer was longer than there was room for.
const CUT_SHORT: u32 = 1 << 8;
/// `DM_NOFLUSH_FLAG`: a thin pool answers without writing its metadata down first, which could take long.
const AT_ONCE: u32 = 1 << 11;

/// `struct dm_ioctl`, in bytes.
const HEAD: usize = 312;
/// `struct dm_target_spec`, in bytes.
const SPEC: usize = 40;
/// For a question and its answer: what is asked here has one target, and each says less than this.
const WHOLE: usize = 16 << 10;
/// Names and their terminating zero, in bytes.
const LONGEST_NAME: usize = 128;

/// One target of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `thin-pool`, `linear` and so on.
    pub kind: String,
    /// Its table line, or its status line: words that only its kind explains.
    pub words: Vec<String>,
}

/// The door to device-mapper.
#[derive(Clone, Debug)]
pub struct DeviceMapper {
    control: PathBuf,
}

impl DeviceMapper {
    /// `dev` is where device nodes are.
    pub fn new(dev: &Path) -> Self {
        Self { control: dev.join("mapper/control") }
    }

    /// What a device's targets were made of.
    ///
    /// # Errors
    /// `ENXIO` if there is no device of that name.
    pub fn table(&self, name: &str) -> io::Result<Vec<Target>> {
        self.ask(name, TABLE | AT_ONCE)
    }

    /// How a device's targets are. It changes nothing and waits for no disk.
    ///
    /// # Errors
    /// As [`Self::table`].
    pub fn status(&self, name: &str) -> io::Result<Vec<Target>> {
        self.ask(name, AT_ONCE)
    }

    /// Sends a message to a device's first target; a thin pool may write its metadata down before this returns.
    ///
    /// # Errors
    /// What the target makes of it; `ENXIO` as for [`Self::table`].
    pub fn message(&self, name: &str, message: &str) -> io::Result<()> {
        let mut buffer = request(name, 0)?;
        // The sector that it is for, and the words with a zero behind them.
        put(&mut buffer, HEAD, &0u64.to_ne_bytes())?;
        put(&mut buffer, HEAD + 8, message.as_bytes())?;
        put(&mut buffer, HEAD + 8 + message.len(), &[0])?;
        let control = File::options().read(true).write(true).open(&self.control)?;
        // SAFETY: the kernel reads and writes within the length that the buffer states of itself, which is its own.
        unsafe { ioctl(&control, Updater::<TARGET_MESSAGE, [u8; WHOLE]>::new(&mut buffer)) }?;
        Ok(())
    }

    fn ask(&self, name: &str, flags: u32) -> io::Result<Vec<Target>> {
        let mut buffer = request(name, flags)?;
        let control = File::options().read(true).write(true).open(&self.control)?;
        // SAFETY: the kernel reads and writes within the length that the buffer states of itself, which is its own.
        unsafe { ioctl(&control, Updater::<TABLE_STATUS, [u8; WHOLE]>::new(&mut buffer)) }?;
        targets(&buffer[..]).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "device-mapper's answer is odd"))
    }
}

/// A question about a device, with room for the answer behind it.
fn request(name: &str, flags: u32) -> io::Result<Box<[u8; WHOLE]>> {
    if name.is_empty() || name.len() >= LONGEST_NAME || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no device can be called '{name}'")));
    }
    let mut buffer = Box::new([0; WHOLE]);
    let (length, start) = (WHOLE as u32, HEAD as u32);
    // `version`: 4.0.0, which every kernel of this century answers to.
    for (at, number) in [(0, 4), (4, 0), (8, 0), (12, length), (16, start), (28, flags)] {
        put(&mut buffer, at, &number.to_ne_bytes())?;
    }
    put(&mut buffer, 48, name.as_bytes())?;
    Ok(buffer)
}

fn put(buffer: &mut [u8; WHOLE], at: usize, bytes: &[u8]) -> io::Result<()> {
    let place = buffer.get_mut(at..at.saturating_add(bytes.len())).ok_or(io::ErrorKind::InvalidInput)?;
    place.copy_from_slice(bytes);
    Ok(())
}

/// The targets of an answer; none if it is cut short or does not hold together.
fn targets(answer: &[u8]) -> Option<Vec<Target>> {
    let start = number(answer, 16)? as usize;
    let count = number(answer, 20)?;
    if number(answer, 28)? & CUT_SHORT != 0 {
        return None;
    }
    let answer = answer.get(start..)?;
    let (mut at, mut found) = (0usize, Vec::new());
    for _ in 0..count {
        let kind = text(answer.get(at.checked_add(24)?..at.checked_add(SPEC)?)?)?;
        let next = number(answer, at.checked_add(20)?)? as usize;
        let line = text(answer.get(at.checked_add(SPEC)?..)?)?;
        found.push(Target { kind, words: line.split_ascii_whitespace().map(str::to_owned).collect() });
        // Counted from the first one.
        if next <= at && found.len() < count as usize {
            return None;
        }
        at = next;
    }
    Some(found)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_ne_bytes)
}

/// Up to its terminating zero, or all of it.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(bytes.get(..end)?).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer as the kernel lays it out.
    fn answer(said: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = request("pool", 0).unwrap().to_vec();
        bytes[20..24].copy_from_slice(&(said.len() as u32).to_ne_bytes());
        let mut at = 0;
        for (kind, line) in said {
            let next = (at + SPEC + line.len() + 1).next_multiple_of(8);
            bytes[HEAD + at + 20..HEAD + at + 24].copy_from_slice(&(next as u32).to_ne_bytes());
            bytes[HEAD + at + 24..HEAD + at + 24 + kind.len()].copy_from_slice(kind.as_bytes());
            bytes[HEAD + at + SPEC..HEAD + at + SPEC + line.len()].copy_from_slice(line.as_bytes());
            at = next;
        }
        bytes
    }

    #[test]
    fn each_target_of_an_answer_is_told_with_its_words() {
        let seen = targets(&answer(&[("thin-pool", "1 141/1024 33/4800 - rw"), ("linear", "253:4 0")])).unwrap();
        assert_eq!((seen[0].kind.as_str(), seen[0].words.len()), ("thin-pool", 5));
        assert_eq!((seen[1].kind.as_str(), seen[1].words[0].as_str()), ("linear", "253:4"));
        assert_eq!(targets(&answer(&[])).unwrap(), []);
    }

    #[test]
    fn an_answer_that_was_cut_short_or_leads_nowhere_is_none() {
        let mut short = answer(&[("linear", "253:4 0")]);
        short[28..32].copy_from_slice(&CUT_SHORT.to_ne_bytes());
        assert_eq!(targets(&short), None);
        let mut circle = answer(&[("linear", "253:4 0"), ("linear", "253:4 0")]);
        circle[HEAD + 20..HEAD + 24].fill(0);
        assert_eq!(targets(&circle), None);
        let mut astray = answer(&[("linear", "253:4 0"), ("linear", "253:4 0")]);
        astray[HEAD + 20..HEAD + 24].fill(0xff);
        assert_eq!(targets(&astray), None);
    }

    #[test]
    fn a_name_that_no_device_can_have_is_not_asked_about() {
        for name in ["", "a\0b", &"x".repeat(LONGEST_NAME)] {
            assert_eq!(request(name, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        let long = "x".repeat(WHOLE);
        let mapper = DeviceMapper::new(Path::new("/nowhere"));
        assert_eq!(mapper.message("pool", &long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(mapper.status("pool").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn no_answer_is_read_beyond_its_end(count: u32, start in 0u32..600, noise in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut bytes = [vec![0; HEAD], noise].concat();
            bytes[16..20].copy_from_slice(&start.to_ne_bytes());
            bytes[20..24].copy_from_slice(&count.to_ne_bytes());
            let _either_is_fine = targets(&bytes).is_some();
        }
    }
}
