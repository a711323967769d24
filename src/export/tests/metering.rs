//! What is counted of an export is what was asked of it, whatever carries it out.

use super::*;
use crate::io::{Fault, FileIo, Gate, Operation as Verb};
use crate::model::{Figures, Operation};
use nix::errno::Errno;
use std::path::Path;

/// Operations, bytes and errors of one kind.
type Line = (u64, u64, u64);

fn lines(figures: &Figures) -> [Line; 6] {
    Operation::ALL.map(|operation| {
        let seen = figures.of(operation);
        (seen.operations(), seen.bytes, seen.errors)
    })
}

/// Asks for a bit of everything, and says what that should be counted as.
fn exercise(clients: &mut [Dialled]) -> [Line; 6] {
    let mut expected = [(0, 0, 0); 6];
    let mut note = |operation: Operation, bytes: usize| {
        let line = &mut expected[operation as usize];
        *line = (line.0 + 1, line.1 + bytes as u64, 0);
    };
    for (number, client) in clients.iter_mut().enumerate() {
        for length in [512, 4096, 700, 65536, 200_000] {
            let offset = (number * 512) as u64;
            client.write(offset, &vec![7; length], length == 700).expect("a write");
            note(Operation::Write, length);
            client.read(offset, &mut vec![0; length]).expect("a read");
            note(Operation::Read, length);
        }
        let mut tickets = Vec::new();
        for place in 0..12u64 {
            tickets.push(client.submit_read(place * 4096, 4096).expect("a read"));
            note(Operation::Read, 4096);
        }
        tickets.into_iter().for_each(|ticket| drop(client.wait(ticket).expect("a read")));
        client.flush().expect("a flush");
        note(Operation::Flush, 0);
        client.trim(0, 8192).expect("a trim");
        note(Operation::Trim, 8192);
        client.zero(8192, 4096, false).expect("zeros");
        note(Operation::Zero, 4096);
        client.block_status(0, SIZE).expect("a status");
        note(Operation::Other, 0);
    }
    expected
}

#[test]
fn a_known_workload_is_counted_to_the_byte_on_every_medium() {
    let bench = bench();
    let mut clients = [bench.client(), bench.client()];
    let expected = exercise(&mut clients);
    let seen = bench.account.figures();
    assert_eq!(lines(&seen), expected);
    assert_eq!((seen.connections, seen.in_flight, seen.refused, seen.throttled), (2, 0, 0, 0));
    let verbs = [Verb::Read, Verb::Write, Verb::Flush, Verb::Trim, Verb::Zero, Verb::Extents];
    let performed = bench.io.performed();
    let done = verbs.map(|verb| performed.iter().filter(|done| done.operation == verb).count() as u64);
    assert_eq!(done, expected.map(|(operations, ..)| operations), "what was counted is what was done");
    assert!(Operation::ALL.iter().all(|it| seen.of(*it).time <= seen.elapsed * seen.of(*it).operations() as u32));

    for directory in [Path::new("/dev/shm"), &std::env::temp_dir()] {
        let file = tempfile::tempfile_in(directory).expect("a file");
        file.set_len(SIZE).expect("a sparse file");
        let export = served("file", Arc::new(FileIo::new(file).expect("a regular file")));
        let account = export.account.clone();
        bench.table.publish(export).expect("a free name");
        let mut clients = [bench.dial("file").expect("the export")];
        let expected = exercise(&mut clients);
        assert_eq!(lines(&account.figures()), expected, "{}", directory.display());
        bench.table.retire("file");
        assert_eq!((account.figures().connections, lines(&account.figures())), (0, expected));
    }
}

#[test]
fn errors_count_as_errors_and_move_no_bytes() {
    let bench = bench();
    for verb in [Verb::Read, Verb::Write, Verb::Flush, Verb::Trim, Verb::Zero] {
        bench.io.inject(Fault::every(verb, Errno::EIO as i32));
    }
    let mut client = bench.client();
    for length in [512, 200_000] {
        client.read(0, &mut vec![0; length]).expect_err("a read");
        client.write(0, &vec![0; length], false).expect_err("a write");
    }
    client.flush().expect_err("a flush");
    client.trim(0, 4096).expect_err("a trim");
    client.zero(0, 4096, true).expect_err("zeros");
    let expected = [(2, 0, 2), (2, 0, 2), (1, 0, 1), (1, 0, 1), (1, 0, 1), (0, 0, 0)];
    assert_eq!(lines(&bench.account.figures()), expected);
}

#[test]
fn requests_that_are_declined_are_counted_apart() {
    let bench = bench();
    let export = ServedExport { read_only: true, ..served("rom", Arc::new(MemoryIo::new(SIZE))) };
    let account = export.account.clone();
    bench.table.publish(export).expect("a free name");
    let mut client = bench.dial("rom").expect("the export");
    for length in [512, 100_000] {
        client.write(0, &vec![1; length], false).expect_err("it is read-only");
    }
    client.read(0, &mut [0; 512]).expect("a read");
    let seen = account.figures();
    assert_eq!((seen.refused, seen.in_flight, seen.of(Operation::Read).operations()), (2, 0, 1));
    assert_eq!(seen.of(Operation::Write).operations(), 0);
}

#[test]
fn what_is_in_flight_is_seen_and_ends_counted_though_its_client_was_cut() {
    let bench = bench();
    let gate = Gate::new();
    bench.io.inject(Fault::hold(Verb::Write, &gate));
    let mut busy = bench.client();
    let mut idle = bench.client();
    idle.flush().expect("a flush");
    busy.submit_write(0, &[7; 512], false).expect("a write");
    gate.wait_for(1);
    let seen = bench.account.figures();
    assert_eq!((seen.connections, seen.in_flight, seen.of(Operation::Write).operations()), (2, 1, 0));
    std::thread::scope(|scope| {
        let retiring = scope.spawn(|| bench.table.retire("disk"));
        while idle.flush().is_ok() {}
        gate.open();
        assert!(retiring.join().is_ok());
    });
    while bench.server.connections() > 0 {
        std::thread::yield_now();
    }
    let seen = bench.account.figures();
    assert_eq!((seen.connections, seen.in_flight), (0, 0));
    assert_eq!(lines(&seen)[Operation::Write as usize], (1, 512, 0), "it was carried out");

    // The same export again goes on counting.
    let again = ServedExport { account: bench.account.clone(), ..served("disk", bench.io.clone()) };
    bench.table.publish(again).expect("a free name");
    bench.client().write(0, &[1; 512], false).expect("a write");
    assert_eq!(lines(&bench.account.figures())[Operation::Write as usize], (2, 1024, 0));
}
