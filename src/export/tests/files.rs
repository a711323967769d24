//! Exports on real files: around the page cache, through it, and in memory.

use super::*;
use crate::io::FileIo;
use proptest::prelude::*;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// A file's worth of export, called "file", on a disk or in memory.
fn publish(bench: &Bench, directory: &Path) -> Arc<FileIo> {
    let path = directory.join(uuid::Uuid::new_v4().to_string());
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("its name is not needed");
    file.set_len(SIZE).expect("a sparse file");
    let io = Arc::new(FileIo::new(file).expect("a regular file"));
    bench.table.publish(served("file", io.clone())).expect("a free name");
    io
}

#[derive(Clone, Debug)]
struct Write {
    offset: u64,
    length: u64,
    byte: u8,
    fua: bool,
}

/// Sectors, blocks and neither, next to each other and overlapping.
fn writes() -> impl Strategy<Value = Vec<Write>> {
    let unit = prop_oneof![Just(1u64), Just(512), Just(4096)];
    let write = (unit, 0..SIZE, 1u64..40, 1u8.., any::<bool>()).prop_map(|(unit, offset, units, byte, fua)| {
        let offset = offset - offset % unit;
        Write { offset, length: (units * unit).min(SIZE - offset), byte, fua }
    });
    proptest::collection::vec(write, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn aligned_or_not_a_file_holds_what_a_plain_array_would(writes in writes(), in_memory: bool) {
        let bench = bench();
        let directory = if in_memory { "/dev/shm" } else { "/tmp" };
        let io = publish(&bench, Path::new(directory));
        let mut clients = [(); 2].map(|()| bench.dial("file").expect("the export"));
        let mut naive = vec![0; SIZE as usize];
        for (number, Write { offset, length, byte, fua }) in writes.into_iter().enumerate() {
            let expected = &mut naive[offset as usize..][..length as usize];
            expected.fill(byte);
            clients[number % 2].write(offset, expected, fua).expect("a write");
            let mut seen = vec![0; length as usize];
            clients[(number + 1) % 2].read(offset, &mut seen).expect("a read");
            prop_assert!(seen == *expected);
        }
        let mut seen = vec![0; SIZE as usize];
        io.read(&mut seen, 0).expect("a read");
        prop_assert!(seen == naive);
    }
}

/// Each byte has one writer, but blocks and pages are shared: no writer may undo another's.
#[test]
fn writers_of_parts_of_the_same_pages_do_not_undo_each_other() {
    let bench = bench();
    let io = publish(&bench, &std::env::temp_dir());
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let mut client = bench.dial("file").expect("the export");
            scope.spawn(move || {
                for round in 1..=60u8 {
                    // One writes sectors, the others odd pieces beside them.
                    let (start, length) = if writer == 0 { (0, 512) } else { (512 + writer * 700, 700) };
                    let bytes = vec![round.wrapping_mul(4) + writer as u8; length];
                    let begin = |page: u64| client.submit_write(page * 4096 + start, &bytes, false).expect("a write");
                    let tickets: Vec<_> = (0..16).map(begin).collect();
                    // Of two writes to one place that are in flight together either may come last.
                    tickets.into_iter().for_each(|ticket| drop(client.wait(ticket).expect("a write")));
                    client.flush().expect("a flush");
                }
                client.disconnect().expect("a farewell");
            });
        }
    });
    let mut page = [0; 4096];
    for number in 0..16 {
        io.read(&mut page, number * 4096).expect("a read");
        for writer in 0..4u8 {
            let start = if writer == 0 { 0 } else { 512 + usize::from(writer) * 700 };
            assert_eq!(page[start], 60u8.wrapping_mul(4) + writer, "page {number}, writer {writer}");
        }
    }
}

#[test]
fn large_requests_arrive_whole_both_ways_and_in_any_mixture() {
    let bench = bench_with(local(all_local()), SIZE);
    for directory in [Path::new("/dev/shm"), &std::env::temp_dir()] {
        let io = publish(&bench, directory);
        io.grow(64 << 20).expect("room");
        let mut client = bench.dial("file").expect("the export");
        let mut tickets = Vec::new();
        for (number, length) in [1 << 20, 4096, 200_000, 3 << 20, 512, 131_072].into_iter().enumerate() {
            let data: Vec<u8> = (0..length).map(|at: u32| (at / 7) as u8 ^ number as u8).collect();
            let offset = (number as u64) << 22;
            tickets.push((offset, client.submit_write(offset, &data, number % 2 == 0).expect("a write"), data));
        }
        for (offset, ticket, data) in tickets {
            client.wait(ticket).expect("a write");
            let mut seen = vec![0; data.len()];
            client.read(offset, &mut seen).expect("a read");
            assert!(seen == data, "{} bytes at {offset}", data.len());
        }
        client.disconnect().expect("a farewell");
        bench.table.retire("file");
    }
}

#[test]
fn a_frozen_export_takes_reads_but_no_changes_until_it_is_let_go() {
    let bench = bench();
    let io = publish(&bench, &std::env::temp_dir());
    let mut client = bench.dial("file").expect("the export");
    client.write(0, &[1; 4096], false).expect("a write");
    let freeze = bench.table.freeze(&["file", "disk", "file"], Duration::from_secs(60)).expect("nothing in flight");
    let write = client.submit_write(0, &[2; 4096], false).expect("a write");
    let mut other = bench.dial("file").expect("the export");
    let mut seen = [0; 4096];
    other.read(0, &mut seen).expect("a read");
    other.flush().expect("a flush");
    io.read(&mut seen, 0).expect("a read");
    assert_eq!(seen, [1; 4096], "the write waits");
    drop(freeze);
    client.wait(write).expect("the write that waited");
    other.read(0, &mut seen).expect("a read");
    assert_eq!(seen, [2; 4096]);
    let unknown = bench.table.freeze(&["disk", "nothing"], Duration::from_secs(60));
    assert!(matches!(unknown, Err(FreezeError::Unknown { name }) if name == "nothing"));
    client.write(0, &[3; 4096], true).expect("nothing is held after a failure");
}

#[test]
fn a_freeze_waits_for_changes_in_flight_and_gives_up_on_one_that_does_not_end() {
    use crate::io::{Fault, Gate, Operation};
    let bench = bench();
    let gate = Gate::new();
    bench.io.inject(Fault::hold(Operation::Write, &gate));
    let mut client = bench.client();
    let write = client.submit_write(0, &[7; 512], false).expect("a write");
    gate.wait_for(1);
    let busy = bench.table.freeze(&["disk"], Duration::from_millis(10)).map(drop);
    assert!(matches!(busy, Err(FreezeError::Busy { name, .. }) if name == "disk"));
    std::thread::scope(|scope| {
        let freezing = scope.spawn(|| bench.table.freeze(&["disk"], Duration::from_secs(60)).map(drop));
        gate.open();
        client.wait(write).expect("the write in flight");
        assert!(freezing.join().expect("no panic").is_ok());
    });
    client.write(0, &[8; 512], false).expect("a write");
}
