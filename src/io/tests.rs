//! One suite for every implementation: random sequences against the oracle, and what each must refuse.

use super::*;
use nix::errno::Errno;
use proptest::prelude::*;
use std::sync::Arc;

const SIZE: u64 = 64 << 10;

#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, u64, u8, bool),
    Flush,
    Trim(u64, u64),
    Zero(u64, u64, bool),
    Extents(u64, u64, usize),
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        (0..SIZE, 0..SIZE),
        (0..SIZE / 512, 0..SIZE / 512).prop_map(|(a, b)| (a * 512, b * 512)),
        (0..SIZE / 4096, 0..SIZE / 4096).prop_map(|(a, b)| (a * 4096, b * 4096)),
    ]
    .prop_map(|(a, b)| (a.min(b), a.abs_diff(b)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        range().prop_map(|(offset, length)| Step::Read(offset, length)),
        (range(), any::<u8>(), any::<bool>()).prop_map(|((o, l), byte, fua)| Step::Write(o, l, byte, fua)),
        Just(Step::Flush),
        range().prop_map(|(offset, length)| Step::Trim(offset, length)),
        (range(), any::<bool>()).prop_map(|((o, l), may_punch)| Step::Zero(o, l, may_punch)),
        (range(), 1usize..6).prop_map(|((o, l), limit)| Step::Extents(o, l, limit)),
    ]
}

fn pattern(seed: u8, length: u64) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add((at % 251) as u8)).collect()
}

fn content(io: &dyn BlockIo, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; length as usize];
    io.read(&mut bytes, offset).expect("a read within the size");
    bytes
}

/// Extents must tile the range from its start, and holes must read as zeros.
fn check_extents(io: &dyn BlockIo, offset: u64, length: u64, limit: usize) {
    let extents = io.extents(offset, length, limit).expect("extents within the size");
    assert!(extents.len() <= limit && (length == 0) == extents.is_empty());
    let mut position = offset;
    for extent in &extents {
        assert!(extent.offset == position && extent.length > 0, "{extents:?}");
        if extent.hole {
            assert!(content(io, extent.offset, extent.length).iter().all(|byte| *byte == 0));
        }
        position += extent.length;
    }
    assert!(position <= offset + length);
    assert!(extents.len() == limit || position == offset + length, "{extents:?}");
}

fn perform(io: &dyn BlockIo, step: &Step) {
    match *step {
        Step::Read(..) => Ok(()),
        Step::Write(offset, length, seed, fua) => io.write(&pattern(seed, length), offset, fua),
        Step::Flush => io.flush(),
        Step::Trim(offset, length) => io.trim(offset, length),
        Step::Zero(offset, length, may_punch) => io.zero(offset, length, may_punch),
        Step::Extents(offset, length, limit) => {
            check_extents(io, offset, length, limit);
            Ok(())
        }
    }
    .expect("a step within the size");
}

fn agree_with_the_naive(io: &dyn BlockIo, steps: &[Step]) {
    let mut naive = vec![0; SIZE as usize];
    for step in steps {
        perform(io, step);
        match *step {
            Step::Write(offset, length, seed, _) => {
                naive[offset as usize..][..length as usize].copy_from_slice(&pattern(seed, length));
            }
            Step::Trim(offset, length) | Step::Zero(offset, length, _) => {
                naive[offset as usize..][..length as usize].fill(0);
            }
            Step::Read(offset, length) => {
                assert!(content(io, offset, length) == naive[offset as usize..][..length as usize]);
            }
            Step::Flush | Step::Extents(..) => {}
        }
    }
    assert!(content(io, 0, SIZE) == naive);
}

fn file_io(size: u64) -> FileIo {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(size).expect("a sparse file");
    FileIo::new(file).expect("a regular file")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_file_holds_what_a_plain_array_would(steps in proptest::collection::vec(step(), 1..40)) {
        agree_with_the_naive(&file_io(SIZE), &steps);
    }

    #[test]
    fn memory_holds_what_a_plain_array_would(steps in proptest::collection::vec(step(), 1..40)) {
        agree_with_the_naive(&MemoryIo::new(SIZE), &steps);
    }

    #[test]
    fn a_layer_without_faults_changes_nothing(steps in proptest::collection::vec(step(), 1..40)) {
        agree_with_the_naive(&FaultIo::new(Arc::new(MemoryIo::new(SIZE))), &steps);
    }

    #[test]
    fn nothing_beyond_the_end_is_served(offset in any::<u64>(), length in 1u64..SIZE) {
        let offset = if offset.checked_add(length).is_some_and(|end| end <= SIZE) { SIZE } else { offset };
        let layers: [Arc<dyn BlockIo>; 2] = [Arc::new(file_io(SIZE)), Arc::new(MemoryIo::new(SIZE))];
        for io in layers {
            let mut buffer = vec![0; length as usize];
            let refusals = [
                io.read(&mut buffer, offset),
                io.write(&buffer, offset, false),
                io.trim(offset, length),
                io.zero(offset, length, true),
                io.zero(offset, length, false),
                io.extents(offset, length, 4).map(drop),
            ];
            for refusal in refusals {
                prop_assert_eq!(refusal.map_err(|error| error.kind()), Err(io::ErrorKind::InvalidInput));
            }
            prop_assert_eq!(io.size(), SIZE);
        }
    }
}

#[test]
fn open_handles_see_a_file_grow_and_it_never_shrinks() {
    let io = file_io(SIZE);
    assert!(io.write(&[7; 512], SIZE, false).is_err());
    io.grow(SIZE * 2).expect("room to grow");
    assert_eq!(io.size(), SIZE * 2);
    io.write(&[7; 512], SIZE, true).expect("a write into the new part");
    io.grow(SIZE).expect("a smaller size is nothing to do");
    assert_eq!(io.refresh_size().expect("a size"), SIZE * 2);
    assert_eq!(content(&io, SIZE, 512), [7; 512]);
}

#[test]
fn a_full_disk_is_reported_as_such() {
    // Only root may mount, but every system has a device that is always full: the rule is the errno's way up.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    assert!(FileIo::new(full).is_err(), "a character device is no medium");
    let io = FaultIo::new(Arc::new(file_io(SIZE)));
    io.inject(Fault::every(Operation::Write, Errno::ENOSPC as i32));
    let refused = io.write(&[1], 0, false).map_err(|error| error.raw_os_error());
    assert_eq!(refused, Err(Some(Errno::ENOSPC as i32)));
}

#[test]
fn zeroing_without_punching_leaves_no_data_and_punching_leaves_a_hole() {
    let io = file_io(1 << 20);
    io.write(&pattern(3, 1 << 20), 0, true).expect("a write");
    io.zero(0, 1 << 19, true).expect("a hole");
    let extents = io.extents(0, 1 << 20, 8).expect("extents");
    assert_eq!(extents.first().map(|extent| (extent.hole, extent.length)), Some((true, 1 << 19)));
    io.zero(1 << 19, 1 << 19, false).expect("zeros");
    assert!(content(&io, 0, 1 << 20).iter().all(|byte| *byte == 0));
}

#[test]
fn zeroing_that_cannot_be_fast_changes_nothing() {
    // In memory a file system punches holes but zeroes nothing in place.
    let path = format!("/dev/shm/{}", uuid::Uuid::new_v4());
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).expect("a file in memory");
    std::fs::remove_file(&path).expect("its name is not needed");
    file.set_len(SIZE).expect("a size");
    for io in [FileIo::new(file.try_clone().expect("a handle")), FileIo::as_device(file)] {
        let io = io.expect("a regular file");
        io.write(&[7; SIZE as usize], 0, false).expect("a write");
        let refused = io.zero_fast(100, 10_000, false).map_err(|error| error.raw_os_error());
        assert_eq!(refused, Err(Some(Errno::EOPNOTSUPP as i32)));
        assert!(content(&io, 0, SIZE) == [7; SIZE as usize], "not even beside the whole blocks");
        io.zero(100, 10_000, false).expect("zeros, however long they take");
        assert!(content(&io, 100, 10_000).iter().all(|byte| *byte == 0));
        assert!(content(&io, 0, 100) == [7; 100] && content(&io, 10_100, 100) == [7; 100]);
    }
}

#[test]
fn lost_writes_fail_every_flush_also_when_the_file_is_opened_again_until_the_note_is_taken_away() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(SIZE).expect("a sparse file");
    let open = || {
        let file = std::fs::File::options().read(true).write(true).open(file.path()).expect("the same file");
        FileIo::new(file).expect("a regular file")
    };
    let failed = |io: &FileIo| io.flush().map_err(|error| error.raw_os_error());
    let lost = Err(Some(Errno::EIO as i32));
    let io = open();
    io.raw().expect("a file").durable_write_failed(&Errno::ENOSPC.into());
    assert_eq!(failed(&io), Ok(()), "a full disk has lost nothing");
    io.raw().expect("a file").durable_write_failed(&Errno::EIO.into());
    assert_eq!((failed(&io), failed(&io)), (lost, lost));
    io.write(&[1; 512], 0, false).expect("a write");
    assert_eq!(io.write(&[1; 512], 0, true).map_err(|error| error.raw_os_error()), lost, "durable writes fail too");
    drop(io);
    if super::loss::noted(file.as_file()).is_none() {
        eprintln!("skipped: {} has no extended attributes for users", file.path().display());
        return;
    }
    assert_eq!(failed(&open()), lost, "a new process is no new medium");
    rustix::fs::fremovexattr(file.as_file(), super::loss::NOTE).expect("the note");
    assert_eq!(failed(&open()), Ok(()), "somebody has looked after it");
    rustix::fs::fsetxattr(file.as_file(), super::loss::NOTE, b"x", rustix::fs::XattrFlags::empty()).expect("a note");
    assert_eq!(failed(&open()), lost, "a spoilt note is a note");
}

#[test]
fn a_torn_write_changes_whole_sectors_of_its_front_and_fails() {
    let io = FaultIo::new(Arc::new(MemoryIo::new(SIZE)));
    io.inject(Fault::torn(2, Errno::EIO as i32));
    assert!(io.write(&[7; 2048], 512, false).is_err());
    assert!(content(&io, 512, 1024) == [7; 1024] && content(&io, 1536, 1024) == [0; 1024]);
    io.write(&[7; 2048], 512, false).expect("only once");
    assert!(content(&io, 512, 2048) == [7; 2048]);
}

#[test]
fn a_fault_file_fails_its_share_as_long_as_it_is_there_and_nobody_goes_around_it_meanwhile() {
    let directory = tempfile::tempdir().expect("a directory");
    let fault_file = directory.path().join("faults");
    let io = FaultIo::told_by(Arc::new(file_io(SIZE)), FaultFile::new(&fault_file));
    let failures = || (0..1000).filter(|_| io.read(&mut [0; 512], 0).is_err()).count();
    assert!(failures() == 0 && io.raw().is_some());
    for (said, least, most) in [("1000\n", 1000, 1000), ("500", 300, 700), ("0", 0, 0), ("many", 0, 0)] {
        std::fs::write(&fault_file, said).expect("a file");
        assert!((least..=most).contains(&failures()) && io.raw().is_none(), "{said}");
    }
    std::fs::write(&fault_file, "1000").expect("a file");
    assert!(io.write(&[1; 512], 0, true).is_err());
    std::fs::write(&fault_file, "0").expect("a file");
    assert!(io.flush().is_err(), "what was to be durable may be lost");
    std::fs::remove_file(&fault_file).expect("it is there");
    io.flush().expect("a healed medium");
    assert!(content(&io, 0, 512) == [0; 512] && io.raw().is_some(), "what failed has changed nothing");
}

#[test]
fn a_failed_flush_or_durable_write_fails_every_later_flush_until_the_medium_is_replaced() {
    for lose in [|io: &FaultIo| io.flush(), |io: &FaultIo| io.write(&[1; 512], 0, true)] {
        let io = FaultIo::new(Arc::new(MemoryIo::new(SIZE)));
        io.inject(Fault { operation: None, ..Fault::once(Operation::Flush, Errno::EIO as i32) });
        assert!(lose(&io).is_err());
        io.write(&[1; 512], 0, false).expect("the fault was one only");
        assert!(io.flush().is_err() && io.flush().is_err());
        io.heal();
        io.flush().expect("a new medium");
    }
}

#[test]
fn a_fault_hits_its_operation_in_its_range_as_often_as_told() {
    let io = FaultIo::new(Arc::new(MemoryIo::new(SIZE)));
    let effect = Effect::Fail(Errno::EIO as i32);
    io.inject(Fault { operation: Some(Operation::Read), range: Some(4096..8192), skip: 1, hits: 1, effect });
    let mut buffer = [0; 512];
    let outcomes: Vec<bool> =
        [0, 4096, 7680, 4096, 8192].into_iter().map(|offset| io.read(&mut buffer, offset).is_ok()).collect();
    assert_eq!(outcomes, [true, true, false, true, true]);
    assert_eq!(io.performed().len(), 5);
}

#[test]
fn the_same_seed_fails_the_same_operations() {
    let run = |seed| {
        let io = FaultIo::seeded(Arc::new(MemoryIo::new(SIZE)), seed, 300, Errno::EIO as i32);
        (0..64).map(|_| io.flush().is_ok()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert!(run(1).contains(&true) && run(1).contains(&false));
}
