use super::*;

#[test]
fn a_part_of_a_file_is_all_that_its_users_see_until_it_grows() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let io = FileIo::within(file.try_clone().unwrap(), 1024, Some(65536)).unwrap();
    assert_eq!((io.size(), io.refresh_size().unwrap()), (1024, 1024));
    assert!(io.write(b"x", 1024, false).is_err());
    io.grow(4096).unwrap();
    io.grow(512).unwrap();
    assert_eq!(io.size(), 4096);
    io.write(&[7; 4096], 0, false).unwrap();
    io.trim(0, 4096).unwrap();
    io.zero(0, 4096, true).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8192, "the file keeps its own length");
    assert_eq!(io.grow(8193).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert!(FileIo::within(file, 8193, None).is_err());
}

#[test]
fn a_device_is_read_and_written_around_the_page_cache_and_a_refusal_is_heard_by_who_writes() {
    let files = || (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let (cached, direct) = files();
    let content: Vec<u8> = (0..16384u32).map(|at| (at % 251) as u8).collect();
    for file in [&cached, &direct] {
        std::fs::write(file.path(), &content).unwrap();
    }
    let io = |direct: File| {
        let whole = FileIo::new(cached.reopen().unwrap()).unwrap();
        FileIo { raw: RawFile::of_device(cached.reopen().unwrap(), direct), ..whole }
    };
    let thin = io(File::options().read(true).write(true).open(direct.path()).unwrap());
    let mut naive = content.clone();
    for (offset, length) in [(0, 1), (511, 2), (510, 3000), (512, 512), (1000, 24), (1024, 4096), (16383, 1), (7, 0)] {
        let bytes = vec![0xee; length];
        thin.write(&bytes, offset as u64, false).unwrap();
        naive[offset..offset + length].copy_from_slice(&bytes);
        assert!(std::fs::read(direct.path()).unwrap() == naive, "{length} at {offset}");
        let mut seen = vec![0; length];
        thin.read(&mut seen, offset as u64).unwrap();
        assert!(seen == bytes, "{length} at {offset}");
    }
    assert!(!thin.raw.read_cached(&mut [0; 512], 0, true), "what is in the cache may be old");
    let full = io(File::open(direct.path()).unwrap());
    let refused = [full.write(b"xyz", 511, false), full.write(&[1; 4096], 0, true)];
    assert!(refused.iter().all(Result::is_err), "whoever writes hears of it: {refused:?}");
    full.flush().unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == content, "nothing is left in the cache to be lost");
}

#[test]
fn who_changes_a_part_of_a_block_brings_nothing_back_that_others_zero_or_write_meanwhile() {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(8192).unwrap();
    let whole = FileIo::new(path.reopen().unwrap()).unwrap();
    let io = FileIo { raw: RawFile::of_device(path.reopen().unwrap(), path.reopen().unwrap()), ..whole };
    let (io, ended) = (&io, &std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Two of them, in the same block.
        for at in [0, 3] {
            scope.spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    io.write(b"abc", at, false).unwrap();
                }
            });
        }
        for round in 0..2000u32 {
            let mut seen = vec![0; 8192];
            io.write(&vec![0xff; 8192], 0, false).unwrap();
            io.read(&mut seen, 0).unwrap();
            assert!(seen[6..].iter().all(|byte| *byte == 0xff), "{round}: what was written is there");
            io.zero(0, 8192, round.is_multiple_of(2)).unwrap();
            io.read(&mut seen, 0).unwrap();
            assert!(seen[6..].iter().all(|byte| *byte == 0), "{round}: what was zeroed is zeros");
        }
        ended.store(true, Ordering::SeqCst);
    });
    let mut seen = [0; 6];
    ["abc", "abc"].iter().zip([0, 3]).for_each(|(text, at)| io.write(text.as_bytes(), at, false).unwrap());
    io.read(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"abcabc");
}

#[test]
fn more_than_is_copied_at_once_is_read_and_written_from_anywhere_to_anywhere() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut naive: Vec<u8> = (0..4u32 << 20).map(|at| (at / 7 % 251) as u8).collect();
    std::fs::write(path.path(), &naive).unwrap();
    let whole = FileIo::new(path.reopen().unwrap()).unwrap();
    let io = FileIo { raw: RawFile::of_device(path.reopen().unwrap(), path.reopen().unwrap()), ..whole };
    for (offset, length) in [(0, 1 << 20), (1, 1 << 20), (511, 3 << 20), ((1 << 20) - 1, (3 << 20) + 1)] {
        // Neither beginning is where direct accesses take it.
        let mut bytes = vec![0; length + 1];
        io.read(&mut bytes[1..], offset as u64).unwrap();
        assert!(bytes[1..] == naive[offset..offset + length], "{length} at {offset}");
        bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
        io.write(&bytes[1..], offset as u64, false).unwrap();
        naive[offset..offset + length].copy_from_slice(&bytes[1..]);
        assert!(std::fs::read(path.path()).unwrap() == naive, "{length} at {offset}");
    }
    assert!(io.read(&mut [0; 2], (4 << 20) - 1).is_err());
}

#[test]
fn a_range_is_taken_apart_without_gaps() {
    assert_eq!(pieces(5, 5, 4).count(), 0);
    assert_eq!(pieces(5, 14, 4).collect::<Vec<_>>(), [(5, 4), (9, 4), (13, 1)]);
    assert_eq!(pieces(0, 4, 0).count(), 4);
}
