//! The corners of the specification that our own client does not visit, byte by byte.

use super::raw::*;
use super::*;
use crate::io::{Fault, FileIo, Gate, Operation};
use crate::nbd::NbdErrno;
use crate::nbd::wire::*;
use nix::errno::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

const DONE: u16 = NBD_REPLY_FLAG_DONE;

fn extended_on_disk(bench: &Bench, contexts: &[&str]) -> TcpStream {
    enter(bench, &[option(NBD_OPT_EXTENDED_HEADERS, &[]), choice("disk", contexts)])
}

/// The payload that asks about `length` bytes in the contexts of these numbers.
fn asks(length: u64, contexts: &[u32]) -> Vec<u8> {
    [&length.to_be_bytes()[..], contexts.iter().map(|it| it.to_be_bytes()).collect::<Vec<_>>().as_flattened()].concat()
}

/// The error of the next extended reply, and its reason.
fn error(stream: &mut TcpStream, cookie: u64, offset: u64) -> (u32, String) {
    let (flags, kind, payload) = chunk(stream, cookie, offset);
    assert_eq!((flags, kind), (DONE, NBD_REPLY_TYPE_ERROR));
    let number = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
    (number, String::from_utf8(payload[6..].to_vec()).expect("a reason"))
}

#[test]
fn a_request_for_block_status_may_name_its_contexts_in_a_payload() {
    let bench = bench();
    let mut stream = extended_on_disk(&bench, &[BASE_ALLOCATION, ALLOCATION_DEPTH]);
    let ask = |stream: &mut TcpStream, cookie, payload: &[u8], pieces: usize| {
        let header = extended(NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_BLOCK_STATUS, cookie, 512, payload.len() as u64);
        for piece in [&header[..], payload].concat().chunks(pieces) {
            stream.write_all(piece).expect("a piece of a request");
        }
    };
    for (pieces, contexts) in [(1000, &[1][..]), (1, &[2]), (7, &[2, 1])] {
        ask(&mut stream, 5, &asks(SIZE - 512, contexts), pieces);
        let mut seen = Vec::new();
        while {
            let (flags, kind, payload) = chunk(&mut stream, 5, 512);
            assert_eq!((kind, payload.len()), (NBD_REPLY_TYPE_BLOCK_STATUS_EXT, 24));
            assert_eq!(payload[8..16], (SIZE - 512).to_be_bytes());
            seen.push(u32::from_be_bytes(payload[..4].try_into().expect("four bytes")));
            flags & DONE == 0
        } {}
        seen.sort();
        let mut contexts = contexts.to_vec();
        contexts.sort();
        assert_eq!(seen, contexts);
    }
    let wrong: [(&[u8], &str); 5] = [
        (&asks(512, &[1, 1]), "twice"),
        (&asks(512, &[99]), "was not chosen"),
        (&asks(512, &[]), "names no contexts"),
        (&asks(SIZE, &[1]), "beyond the end"),
        (&[0; 70_000], "names no contexts"),
    ];
    for (payload, reason) in wrong {
        ask(&mut stream, 6, payload, usize::MAX);
        let (number, said) = error(&mut stream, 6, 512);
        assert!(number == 22 && said.contains(reason), "{reason}: {number} {said}");
    }
    // The connection is where it should be, whatever was dropped; and another one chose no contexts.
    stream.write_all(&extended(0, NBD_CMD_FLUSH, 7, 0, 0)).expect("a flush");
    assert_eq!(chunk(&mut stream, 7, 0).1, NBD_REPLY_TYPE_NONE);
    let mut stream = extended_on_disk(&bench, &[]);
    ask(&mut stream, 8, &asks(512, &[1]), usize::MAX);
    assert_eq!(error(&mut stream, 8, 512).0, 22);
    stream.write_all(&extended(0, NBD_CMD_FLUSH, 9, 0, 0)).expect("a flush");
    assert_eq!(chunk(&mut stream, 9, 0).1, NBD_REPLY_TYPE_NONE);
}

#[test]
fn one_extent_is_one_extent_in_every_context_and_never_longer_than_asked_for() {
    let bench = bench();
    let mut stream = extended_on_disk(&bench, &[BASE_ALLOCATION, ALLOCATION_DEPTH]);
    bench.io.write(&[1; 4096], 0, false).expect("a write");
    stream.write_all(&extended(NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 1, 100, 50)).expect("a request");
    for (flags, state) in [(0, 0u64), (DONE, 1)] {
        let (seen, _, payload) = chunk(&mut stream, 1, 100);
        let run = [50u64.to_be_bytes(), state.to_be_bytes()].concat();
        assert_eq!((seen, &payload[4..8], &payload[8..]), (flags, &1u32.to_be_bytes()[..], &run[..]));
    }
    stream.write_all(&extended(NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 2, 0, SIZE)).expect("a request");
    for _ in 0..2 {
        let (_, _, payload) = chunk(&mut stream, 2, 0);
        assert_eq!((payload.len(), &payload[8..16]), (24, &4096u64.to_be_bytes()[..]));
    }
}

#[test]
fn what_changes_the_medium_with_fua_is_flushed_before_its_reply_and_no_command_minds_the_flag() {
    let bench = bench();
    let mut stream = extended_on_disk(&bench, &[BASE_ALLOCATION]);
    let fua = NBD_CMD_FLAG_FUA;
    let mut cookie = 0;
    let mut ask = |flags, kind, length, payload: &[u8]| {
        cookie += 1;
        stream.write_all(&[&extended(fua | flags, kind, cookie, 0, length)[..], payload].concat()).expect("a request");
        let seen = chunk(&mut stream, cookie, 0);
        assert!(seen.1 & NBD_REPLY_TYPE_FLAG_ERROR == 0, "{kind}: {seen:?}");
        let done = bench.io.performed();
        let last = done.last().copied().map(|it| (it.operation, it.fua));
        (done.len(), last)
    };
    assert_eq!(ask(NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_WRITE, 512, &[1; 512]), (1, Some((Operation::Write, true))));
    assert_eq!(ask(0, NBD_CMD_WRITE_ZEROES, 4096, &[]), (3, Some((Operation::Flush, false))));
    assert_eq!(ask(NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 4096, &[]), (5, Some((Operation::Flush, false))));
    assert_eq!(ask(0, NBD_CMD_TRIM, 4096, &[]), (7, Some((Operation::Flush, false))));
    assert_eq!(ask(NBD_CMD_FLAG_DF, NBD_CMD_READ, 512, &[]), (8, Some((Operation::Read, false))));
    assert_eq!(ask(0, NBD_CMD_CACHE, 512, &[]), (9, Some((Operation::Prefetch, false))));
    assert_eq!(ask(0, NBD_CMD_BLOCK_STATUS, 512, &[]), (10, Some((Operation::Extents, false))));
    assert_eq!(ask(0, NBD_CMD_FLUSH, 0, &[]), (11, Some((Operation::Flush, false))));
    // A flush that fails behind the zeros is the request's own failure.
    bench.io.inject(Fault::once(Operation::Flush, Errno::EIO as i32));
    stream.write_all(&extended(fua, NBD_CMD_WRITE_ZEROES, 99, 0, 4096)).expect("a request");
    assert_eq!(error(&mut stream, 99, 0).0, NbdErrno::Io.number());
}

#[test]
fn flags_that_belong_to_another_command_or_to_nothing_are_refused() {
    let bench = bench();
    let mut stream = extended_on_disk(&bench, &[BASE_ALLOCATION]);
    for (flags, kind) in [
        (NBD_CMD_FLAG_NO_HOLE, NBD_CMD_TRIM),
        (NBD_CMD_FLAG_DF, NBD_CMD_FLUSH),
        (NBD_CMD_FLAG_REQ_ONE, NBD_CMD_READ),
        (NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_CACHE),
        (1 << 6, NBD_CMD_READ),
        (1 << 15, NBD_CMD_WRITE_ZEROES),
        (0, NBD_CMD_RESIZE),
        (0, u16::MAX),
    ] {
        stream.write_all(&extended(flags, kind, 3, 0, 512)).expect("a request");
        assert_eq!(error(&mut stream, 3, 0).0, NbdErrno::Inval.number(), "{flags:#x} {kind}");
    }
    // A payload that a command does not take is dropped, and the next request is found behind it.
    for kind in [NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_FLUSH, NBD_CMD_RESIZE] {
        let stray = [&extended(NBD_CMD_FLAG_PAYLOAD_LEN, kind, 4, 0, 1000)[..], &[9; 1000]].concat();
        stream.write_all(&stray).expect("a request");
        assert_eq!(error(&mut stream, 4, 0).0, NbdErrno::Inval.number(), "{kind}");
    }
    let mut compact = enter(&bench, &[]);
    for flags in [NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_FLAG_DF] {
        compact.write_all(&request(flags, NBD_CMD_READ, 5, 0, 512)).expect("a request");
        assert_eq!(errno(&mut compact, 5), NbdErrno::Inval.number());
    }
    compact.write_all(&request(0, NBD_CMD_BLOCK_STATUS, 6, 0, 512)).expect("a request");
    assert_eq!(errno(&mut compact, 6), NbdErrno::Inval.number(), "no contexts without structured replies");
    assert_eq!(bench.io.performed(), [], "nothing of it was tried");
}

#[test]
fn structured_errors_say_why_and_reads_are_never_answered_simply() {
    let bench = bench();
    let mut stream = enter(&bench, &[option(NBD_OPT_STRUCTURED_REPLY, &[])]);
    for (flags, offset, length, number) in [
        (0, SIZE, 512, 22),
        (1 << 9, 0, 512, 22),
        (0, 0, MAX_PAYLOAD + 1, 75),
        (NBD_CMD_FLAG_DF, u64::MAX, u32::MAX, 75),
        (0, 0, 0, 22),
    ] {
        stream.write_all(&request(flags, NBD_CMD_READ, 1, offset, length)).expect("a request");
        let header = take(&mut stream, 20);
        assert_eq!(header[..8], [&NBD_STRUCTURED_REPLY_MAGIC.to_be_bytes()[..], &[0, 1, 0x80, 1]].concat());
        let payload = take(&mut stream, u32::from_be_bytes(header[16..].try_into().expect("four bytes")) as usize);
        assert_eq!(payload[..4], u32::to_be_bytes(number));
        assert!(payload.len() > 6, "a reason");
    }
    // Unfragmented reads of 64 KiB must work, and so do larger ones.
    for length in [65_536, SIZE as u32] {
        stream.write_all(&request(NBD_CMD_FLAG_DF, NBD_CMD_READ, 2, 0, length)).expect("a request");
        let header = take(&mut stream, 28);
        assert_eq!(header[4..8], [0, 1, 0, 1]);
        take(&mut stream, length as usize);
    }
}

#[test]
fn export_name_serves_clients_of_every_age_and_pads_for_the_old_only() {
    let bench = bench();
    bench.io.write(&[7; 512], 0, false).expect("a write");
    for (flags, padding) in [(0u32, 124), (1, 124), (2, 0), (3, 0)] {
        let mut stream = TcpStream::connect(bench.server.tcp_address().expect("an address")).expect("a connection");
        let name = option(NBD_OPT_EXPORT_NAME, b"disk");
        // All in one go: requests may follow at once, and the server must not lose them.
        let all = [&flags.to_be_bytes()[..], &name, &request(0, NBD_CMD_READ, 1, 0, 512)].concat();
        stream.write_all(&all).expect("a whole talk");
        let answer = take(&mut stream, 18 + 10 + padding + 16 + 512);
        assert_eq!(answer[18..26], SIZE.to_be_bytes());
        assert!(answer[28..28 + padding].iter().all(|byte| *byte == 0) && answer.ends_with(&[7; 512]));
        stream.write_all(&request(0, NBD_CMD_DISC, 2, 0, 0)).expect("a farewell");
        assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    }
}

#[test]
fn everything_asked_for_before_the_farewell_is_done_and_answered() {
    let bench = bench();
    let gate = Gate::new();
    bench.io.inject(Fault::hold(Operation::Write, &gate));
    let mut stream = enter(&bench, &[]);
    let write = [&request(0, NBD_CMD_WRITE, 1, 0, 512)[..], &[7; 512]].concat();
    let all = [&write[..], &request(0, NBD_CMD_READ, 2, 4096, 512), &request(0, NBD_CMD_DISC, 3, 0, 0)].concat();
    stream.write_all(&all).expect("requests");
    gate.wait_for(1);
    gate.open();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).expect("the end in good order");
    assert_eq!(said.len(), 16 + 16 + 512);
    let mut seen = [0; 512];
    bench.io.read(&mut seen, 0).expect("a read");
    assert_eq!(seen, [7; 512]);
}

#[test]
fn a_live_connection_reaches_what_a_volume_has_grown_by() {
    for directory in [std::env::temp_dir().as_path(), Path::new("/dev/shm")] {
        let bench = bench();
        let path = directory.join(uuid::Uuid::new_v4().to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        std::fs::remove_file(&path).expect("its name is not needed");
        file.set_len(SIZE).expect("a sparse file");
        let io = Arc::new(FileIo::new(file).expect("a regular file"));
        bench.table.publish(served("file", io.clone())).expect("a free name");
        let mut stream = enter_export(&bench, "file", &[]);
        let write = [&request(NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 1, 2 * SIZE - 4096, 4096)[..], &[7; 4096]].concat();
        stream.write_all(&write).expect("a write");
        assert_eq!(errno(&mut stream, 1), NbdErrno::NoSpc.number(), "beyond the end");
        io.grow(2 * SIZE).expect("room");
        stream.write_all(&write).expect("a write");
        assert_eq!(errno(&mut stream, 1), 0);
        for (kind, length) in [(NBD_CMD_TRIM, 4096), (NBD_CMD_CACHE, 8192), (NBD_CMD_WRITE_ZEROES, 4096)] {
            stream.write_all(&request(0, kind, 2, 2 * SIZE - 8192, length)).expect("a request");
            assert_eq!(errno(&mut stream, 2), 0, "{kind}");
        }
        stream.write_all(&request(0, NBD_CMD_READ, 3, 2 * SIZE - 4096, 4096)).expect("a read");
        assert_eq!(errno(&mut stream, 3), 0);
        assert_eq!(take(&mut stream, 4096), [7; 4096]);
        stream.write_all(&request(0, NBD_CMD_READ, 4, 2 * SIZE - 4095, 4096)).expect("a read");
        assert_eq!(errno(&mut stream, 4), NbdErrno::Inval.number(), "beyond the new end");
    }
}
