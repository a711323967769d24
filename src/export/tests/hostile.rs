//! Bytes that our own client would never send, on real sockets.

use super::raw::*;
use super::*;
use crate::io::Operation;
use crate::nbd::wire::*;
use std::io::{Read, Write};
use std::net::TcpStream;

#[test]
fn extended_headers_carry_every_command() {
    let bench = bench();
    let contexts = [BASE_ALLOCATION, ALLOCATION_DEPTH].map(|context| named(context, &[])).concat();
    let chosen = named("disk", &[&2u32.to_be_bytes()[..], &contexts].concat());
    let options = [option(NBD_OPT_EXTENDED_HEADERS, &[]), option(NBD_OPT_SET_META_CONTEXT, &chosen)];
    let mut stream = enter(&bench, &options);
    let write = extended(NBD_CMD_FLAG_PAYLOAD_LEN | NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 1, 4096, 4096);
    stream.write_all(&[&write[..], &[7; 4096]].concat()).expect("a write");
    assert_eq!(chunk(&mut stream, 1, 4096), (NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, vec![]));
    stream.write_all(&extended(0, NBD_CMD_READ, 2, 4096, 512)).expect("a read");
    let data = [&4096u64.to_be_bytes()[..], &[7; 512]].concat();
    assert_eq!(chunk(&mut stream, 2, 4096), (NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_OFFSET_DATA, data));
    for (cookie, kind, length) in [(3, NBD_CMD_CACHE, 8192), (4, NBD_CMD_FLUSH, 0), (5, NBD_CMD_TRIM, 4096)] {
        stream.write_all(&extended(0, kind, cookie, 0, length)).expect("a request");
        assert_eq!(chunk(&mut stream, cookie, 0), (NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, vec![]));
    }
    stream.write_all(&extended(0, NBD_CMD_BLOCK_STATUS, 6, 0, SIZE)).expect("a request");
    for (flags, states) in [(0, [3u64, 0, 3]), (NBD_REPLY_FLAG_DONE, [0, 1, 0])] {
        let (seen, kind, payload) = chunk(&mut stream, 6, 0);
        assert_eq!((seen, kind), (flags, NBD_REPLY_TYPE_BLOCK_STATUS_EXT));
        let lengths = [4096, 4096, SIZE - 8192];
        let runs: Vec<u8> =
            lengths.iter().zip(states).flat_map(|(l, s)| [l.to_be_bytes(), s.to_be_bytes()]).flatten().collect();
        assert_eq!(payload[4..], [&3u32.to_be_bytes()[..], &runs].concat());
    }
    // Lengths beyond everything are answered, with a reason, and end nothing.
    stream.write_all(&extended(0, NBD_CMD_WRITE_ZEROES, 8, 1, u64::MAX)).expect("a request");
    let (_, kind, payload) = chunk(&mut stream, 8, 1);
    assert!(kind == NBD_REPLY_TYPE_ERROR && payload.len() > 6);
    stream.write_all(&extended(NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 9, 4096, 4096)).expect("a request");
    assert_eq!(chunk(&mut stream, 9, 4096).1, NBD_REPLY_TYPE_NONE);
    stream
        .write_all(&extended(NBD_CMD_FLAG_FAST_ZERO | NBD_CMD_FLAG_NO_HOLE, NBD_CMD_WRITE_ZEROES, 10, 0, 4096))
        .expect("a request");
    let (_, kind, payload) = chunk(&mut stream, 10, 0);
    assert!(kind == NBD_REPLY_TYPE_ERROR && payload[..4] == 95u32.to_be_bytes(), "memory cannot zero in place fast");
    stream.write_all(&extended(0, NBD_CMD_DISC, 11, 0, 0)).expect("a farewell");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn requests_that_come_byte_by_byte_or_by_the_thousand_are_answered_alike() {
    let bench = bench();
    let mut slow = enter(&bench, &[]);
    let write = [&request(0, NBD_CMD_WRITE, 1, 0, 300)[..], &[9; 300]].concat();
    // What is read before the write's reply may be older than it: nothing but a reply puts requests in order.
    for byte in &write {
        slow.write_all(&[*byte]).expect("a byte");
    }
    assert_eq!(take(&mut slow, 16)[4..8], [0; 4]);
    for byte in request(0, NBD_CMD_READ, 2, 0, 300) {
        slow.write_all(&[byte]).expect("a byte");
    }
    let mut fast = enter(&bench, &[]);
    let count = 20_000u64;
    let mut sending = fast.try_clone().expect("a handle");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for first in (0..count).step_by(500) {
                let burst: Vec<u8> = (first..first + 500).flat_map(|it| request(0, NBD_CMD_READ, it, 512, 1)).collect();
                sending.write_all(&burst).expect("requests");
            }
        });
        let mut seen = vec![false; count as usize];
        for _ in 0..count {
            let reply = take(&mut fast, 17);
            assert_eq!(reply[..8], [&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 4]].concat());
            let cookie = u64::from_be_bytes(reply[8..16].try_into().expect("eight bytes"));
            assert!(!std::mem::replace(&mut seen[cookie as usize], true));
        }
    });
    let answer = take(&mut slow, 16 + 300);
    assert_eq!((&answer[4..8], &answer[16..]), (&[0; 4][..], &[9; 300][..]));
}

#[test]
fn half_a_request_a_wrong_magic_and_a_flood_hurt_nobody_else() {
    let bench = bench();
    let mut half = enter(&bench, &[]);
    half.write_all(&[&request(0, NBD_CMD_WRITE, 1, 0, 1 << 20)[..], &[1; 70_000]].concat()).expect("half a write");
    for bytes in [vec![0; 28], request(0, NBD_CMD_WRITE, 1, 0, u32::MAX)] {
        let mut wrong = enter(&bench, &[]);
        wrong.write_all(&bytes).expect("a request");
        assert!(!matches!(wrong.read(&mut [0]), Ok(count) if count > 0), "the connection ends without a word");
    }
    let mut refused = enter(&bench, &[]);
    let beyond = [&request(0, NBD_CMD_WRITE, 3, SIZE, 90_000)[..], &[1; 90_000]].concat();
    refused.write_all(&[&beyond[..], &request(0, NBD_CMD_FLUSH, 4, 0, 0)].concat()).expect("requests");
    assert_eq!(take(&mut refused, 16)[4..8], 28u32.to_be_bytes());
    assert_eq!(take(&mut refused, 16)[4..8], [0; 4]);
    bench.client().write(0, &[1; 4096], true).expect("others are served");
    drop(half);
    assert_eq!(bench.table.retire("disk"), Retired::Gone);
}

#[test]
fn many_who_never_read_do_not_keep_others_from_being_served() {
    let bench = bench_with(local(all_local()), 64 << 20);
    let stuck: Vec<TcpStream> = (0..12)
        .map(|number| {
            let mut stream = enter(&bench, &[]);
            let length = if number % 2 == 0 { 32 << 20 } else { 128 << 10 };
            let requests: Vec<u8> = (0..64).flat_map(|cookie| request(0, NBD_CMD_READ, cookie, 0, length)).collect();
            stream.write_all(&requests).expect("requests");
            stream
        })
        .collect();
    let mut client = bench.client();
    for round in 0..50u64 {
        client.write(round * 4096, &[1; 4096], false).expect("a write");
        client.read(round * 4096, &mut [0; 100_000]).expect("a read");
    }
    client.flush().expect("a flush");
    drop(stuck);
    assert_eq!(bench.table.retire("disk"), Retired::Gone);
}

#[test]
fn large_requests_go_on_while_others_hold_all_the_memory_there_is_on_every_reactor() {
    const EACH: u32 = 32 << 20;
    const LARGE: usize = 2 << 20;
    let bench = bench_with(local(all_local()), 64 << 20);
    let mut stuck = Vec::new();
    for _ in 0..16 {
        let mut reader = enter(&bench, &[]);
        let reads: Vec<u8> = (0..64).flat_map(|cookie| request(0, NBD_CMD_READ, cookie, 0, EACH)).collect();
        reader.write_all(&reads).expect("requests that are never waited for");
        let mut writer = enter(&bench, &[]);
        let half = [&request(0, NBD_CMD_WRITE, 1, EACH.into(), EACH)[..], &[1; 100_000]].concat();
        writer.write_all(&half).expect("half a request");
        stuck.extend([reader, writer]);
    }
    let reads = || bench.io.performed().iter().filter(|done| done.operation == Operation::Read).count();
    while reads() < 16 {
        std::thread::yield_now();
    }
    // Connections are spread evenly: one for each reactor at least.
    let clients = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for number in 0..clients as u64 {
            let mut client = bench.client();
            scope.spawn(move || {
                let place = (number % 8) * (LARGE as u64 + 512);
                for round in 0..6u8 {
                    let data: Vec<u8> = (0..LARGE).map(|at| (at / 7) as u8 ^ round ^ number as u8).collect();
                    client.write(place, &data, round == 3).expect("a write");
                    let mut seen = vec![0; LARGE];
                    client.read(place, &mut seen).expect("a read");
                    assert!(number >= 8 || seen == data, "client {number}, round {round}");
                }
            });
        }
    });
    drop(stuck);
    assert_eq!(bench.table.retire("disk"), Retired::Gone);
}
