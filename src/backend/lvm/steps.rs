//! Carrying out what is planned for logical volumes: calls of LVM, and work on the bytes piece by piece.

use super::LvmPool;
use super::effort::Effort;
use super::plan::pool::THIN_POOL;
use super::plan::{Act, Step};
use super::tags::{Kind, difference};
use crate::backend::BackendError;
use crate::host::block_device::{discard, open_alone};
use crate::host::patience::Pulse;
use crate::io::{BlockIo, FileIo};
use crate::model::CHANGE_CHUNK;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Bytes that a device zeroes, discards or makes durable between two looks at whether anybody still waits.
const PIECE: u64 = 64 << 20;
/// Bytes that are copied at once.
const BATCH: usize = 1 << 20;

impl LvmPool {
    pub(super) fn carry_out_all(&self, steps: &[Step]) -> Result<(), BackendError> {
        self.carry_out_with(steps, &Arc::default())
    }

    /// The same, with somebody who asks how far it has come, and may end it.
    pub(super) fn carry_out_with(&self, steps: &[Step], effort: &Arc<Effort>) -> Result<(), BackendError> {
        effort.expect(steps.iter().map(|step| step.act.length()).fold(0, u64::saturating_add));
        for step in steps {
            tracing::debug!(group = %self.hands.group, ?step, "a step of a logical volume");
            self.carry_out(step, effort)?;
        }
        // What was found as it should be was made durable by whoever made it so, or when the pool was opened.
        if steps.iter().any(|step| step.act != Act::Activate) {
            self.hands.settle(&self.settings().nodes)?;
        }
        Ok(())
    }

    fn carry_out(&self, step: &Step, effort: &Arc<Effort>) -> Result<(), BackendError> {
        let name = step.on.as_str();
        let (group, node) = (&self.hands.group, self.hands.node(name));
        let devices = self.devices()?;
        let (path, effort) = (node.clone(), Arc::clone(effort));
        let call = match &step.act {
            Act::Make { extents, tags } => match self.kind {
                Kind::Thick => devices.make_thick(group, name, *extents, tags),
                Kind::Thin => {
                    let bytes = extents.saturating_mul(self.extent);
                    devices.make_thin(group, THIN_POOL, name, bytes, tags)
                }
            },
            Act::Share { of, room: Some(extents), tags } => devices.share_thick(group, of, name, *extents, tags),
            Act::Share { of, room: None, tags } => devices.share_thin(group, of, name, tags),
            Act::Activate => devices.activate(group, name),
            Act::Deactivate => devices.deactivate(group, name),
            Act::Split => devices.split(group, name),
            Act::Grow { extents } => devices.grow(group, name, *extents),
            Act::Shrink { extents } => devices.shrink(group, name, *extents),
            Act::Describe { present, wanted } => devices.retag_volume(group, name, &difference(present, wanted)),
            Act::Rename { to } => devices.rename(group, name, to),
            Act::Remove => devices.remove(group, name),
            // These take as long as the volume is large: others' changes need not wait for them.
            Act::Zero { from, to } => {
                let (from, to, chunk) = (*from, *to, self.chunk);
                return self.hands.work("zero", &node, move |pulse| zero(&path, from, to, chunk, (pulse, &effort)));
            }
            Act::Wipe { from, to } => {
                let (from, to) = (*from, *to);
                return self.hands.work("wipe", &node, move |pulse| overwrite(&path, from, to, (pulse, &effort)));
            }
            Act::Copy { of, length } | Act::PutBack { of, length } => {
                let (source, length) = (self.hands.node(of), *length);
                let sparing = matches!(step.act, Act::PutBack { .. });
                return self
                    .hands
                    .work("fill", &node, move |pulse| fill(&source, &path, length, sparing, (pulse, &effort)));
            }
            Act::Discard { length } => {
                let length = *length;
                let given_back = self.hands.work("discard", &node, move |pulse| discard_all(&path, length, pulse));
                return match given_back {
                    Err(BackendError::Io { action, source }) => {
                        tracing::warn!(%action, error = %source, "a removed volume's space is not given back");
                        Ok(())
                    }
                    other => other,
                };
            }
        };
        self.hands.change(|| self.hands.run(&call))
    }
}

/// Who waits for the work, and who asks how far it has come.
type Who<'w> = (&'w Pulse, &'w Effort);

fn writable(node: &Path) -> io::Result<FileIo> {
    FileIo::new(File::options().read(true).write(true).open(node)?)
}

/// Zeroes a part of a device, durably; on a thin volume by giving back the whole chunks in it.
fn zero(node: &Path, from: u64, to: u64, chunk: Option<u64>, who: Who) -> io::Result<()> {
    let io = FileIo::within(File::options().read(true).write(true).open(node)?, to, chunk)?;
    for_pieces(from, to, who.0, |offset, length| {
        io.zero(offset, length, true)?;
        who.1.advance(length).map(|()| true)
    })?;
    io.flush()
}

/// Writes zeros to a part of a device, durably: to the medium, whatever it could do without writing them.
fn overwrite(node: &Path, from: u64, to: u64, who: Who) -> io::Result<()> {
    let io = FileIo::within(File::options().read(true).write(true).open(node)?, to, None)?;
    let zeros = vec![0; BATCH];
    for_pieces(from, to, who.0, |offset, length| {
        for_batches(offset, offset + length, who, |position, count| io.write(&zeros[..count], position, false))?;
        io.flush().map(|()| true)
    })
}

fn discard_all(node: &Path, length: u64, pulse: &Pulse) -> io::Result<()> {
    // What somebody has mounted keeps its bytes; LVM refuses to remove it then.
    let device = open_alone(node, true)?;
    for_pieces(0, length, pulse, |offset, length| discard(&device, offset, length))
}

/// Fills the beginning of a device with another's, durably; `sparing` leaves alone what is the same already.
fn fill(source: &Path, target: &Path, length: u64, sparing: bool, who: Who) -> io::Result<()> {
    let (from, to) = (FileIo::new(File::open(source)?)?, writable(target)?);
    let (mut bytes, mut present) = (vec![0; BATCH], vec![0; BATCH]);
    for_pieces(0, length, who.0, |offset, length| {
        for_batches(offset, offset + length, who, |position, count| {
            let piece = &mut bytes[..count];
            from.read(piece, position)?;
            if sparing {
                to.read(&mut present[..count], position)?;
                write_differences(&to, position, piece, &present[..count])
            } else if piece.iter().all(|byte| *byte == 0) {
                to.zero(position, count as u64, true)
            } else {
                to.write(piece, position, false)
            }
        })?;
        to.flush().map(|()| true)
    })
}

/// Goes through a piece in batches, and says of each that it is done.
fn for_batches(from: u64, to: u64, who: Who, mut work: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
    let mut position = from;
    while position < to {
        let count = usize::try_from(to - position).unwrap_or(BATCH).min(BATCH);
        work(position, count)?;
        who.0.beat();
        who.1.advance(count as u64)?;
        position += count as u64;
    }
    Ok(())
}

/// Writes the chunks that differ, in runs as long as they are.
fn write_differences(to: &FileIo, offset: u64, wanted: &[u8], present: &[u8]) -> io::Result<()> {
    let chunk = CHANGE_CHUNK as usize;
    let same: Vec<bool> = wanted.chunks(chunk).zip(present.chunks(chunk)).map(|(one, other)| one == other).collect();
    let mut start = 0;
    for run in same.chunk_by(|one, other| one == other) {
        let end = start + run.len();
        if run.first() == Some(&false) {
            let (from, till) = (start * chunk, (end * chunk).min(wanted.len()));
            to.write(&wanted[from..till], offset + from as u64, false)?;
        }
        start = end;
    }
    Ok(())
}

/// Works piece by piece, until nobody waits any more or there is no use in going on.
fn for_pieces(from: u64, to: u64, pulse: &Pulse, mut work: impl FnMut(u64, u64) -> io::Result<bool>) -> io::Result<()> {
    let mut offset = from;
    while offset < to {
        let length = (to - offset).min(PIECE);
        if !work(offset, length)? {
            return Ok(());
        }
        if !pulse.beat() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more"));
        }
        offset += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::patience::within;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    #[test]
    fn what_is_the_same_is_not_written_again() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        let wanted: Vec<u8> = (0..(3 << 20) + 512u32).map(|at| (at / 4096 % 251) as u8).collect();
        let mut present = wanted.clone();
        present[5 * 4096..7 * 4096].fill(0xff);
        present[(1 << 20) - 1] ^= 1;
        *present.last_mut().unwrap() ^= 1;
        std::fs::write(path("source"), &wanted).unwrap();
        std::fs::write(path("target"), &present).unwrap();
        let to = FileIo::new(File::options().read(true).write(true).open(path("target")).unwrap()).unwrap();
        // Where nothing differs nothing is written: not even to a target that cannot be.
        let sealed = FileIo::new(File::open(path("source")).unwrap()).unwrap();
        write_differences(&sealed, 0, &wanted[..BATCH], &wanted[..BATCH]).unwrap();
        assert!(write_differences(&sealed, 0, &wanted[..BATCH], &present[..BATCH]).is_err());
        write_differences(&to, 0, &wanted[..BATCH], &present[..BATCH]).unwrap();
        assert!(std::fs::read(path("target")).unwrap()[..BATCH] == wanted[..BATCH]);
        for sparing in [true, false] {
            std::fs::write(path("target"), &present).unwrap();
            let (source, target, length) = (path("source"), path("target"), wanted.len() as u64);
            let filled = move |pulse: &Pulse| fill(&source, &target, length, sparing, (pulse, &Effort::default()));
            within("a test", Duration::from_secs(60), filled).unwrap().unwrap();
            assert!(std::fs::read(path("target")).unwrap() == wanted);
        }
    }

    #[test]
    fn what_is_wiped_is_overwritten_to_its_last_byte_and_no_further_and_ends_when_it_is_abandoned() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("target");
        let wipe = |from, to, effort: Arc<Effort>| {
            let path = path.clone();
            within("a test", Duration::from_secs(60), move |pulse| overwrite(&path, from, to, (pulse, &effort)))
                .unwrap()
        };
        std::fs::write(&path, vec![0xa5; 5 << 20]).unwrap();
        wipe(512, (3 << 20) + 512, Arc::default()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (before, behind) = (bytes[..512].iter(), bytes[(3 << 20) + 512..].iter());
        assert!(before.chain(behind).all(|byte| *byte == 0xa5));
        assert!(bytes[512..(3 << 20) + 512].iter().all(|byte| *byte == 0));
        let efforts = super::super::effort::Efforts::default();
        let underway = efforts.begin(crate::model::VolumeId::generate());
        efforts.abandon(None);
        let error = wipe(4 << 20, 5 << 20, Arc::clone(&underway.effort)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert!(wipe(0, 6 << 20, Arc::default()).is_err(), "it is shorter than it is to be");
    }

    #[test]
    fn zeros_of_the_source_overwrite_what_was_there() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        File::create(path("source")).unwrap().set_len(2 << 20).unwrap();
        File::options().write(true).open(path("source")).unwrap().write_all_at(b"x", 1 << 20).unwrap();
        std::fs::write(path("target"), vec![0xa5; 3 << 20]).unwrap();
        let (source, target) = (path("source"), path("target"));
        let filled = move |pulse: &Pulse| fill(&source, &target, 2 << 20, false, (pulse, &Effort::default()));
        within("a test", Duration::from_secs(60), filled).unwrap().unwrap();
        let bytes = std::fs::read(path("target")).unwrap();
        assert!(bytes[..1 << 20].iter().all(|byte| *byte == 0) && bytes[1 << 20] == b'x');
        assert!(bytes[2 << 20..].iter().all(|byte| *byte == 0xa5), "what lies behind is not touched");
    }
}
