//! The protocol by hand, for what our own client would never send or take.

use super::*;
use crate::nbd::wire::*;
use std::io::{Read, Write};
use std::net::TcpStream;

pub(super) fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    [&IHAVEOPT.to_be_bytes()[..], &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

pub(super) fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), rest].concat()
}

/// A socket in transmission on "disk", with the given options behind it.
pub(super) fn enter(bench: &Bench, options: &[Vec<u8>]) -> TcpStream {
    enter_export(bench, "disk", options)
}

pub(super) fn enter_export(bench: &Bench, name: &str, options: &[Vec<u8>]) -> TcpStream {
    let mut stream = TcpStream::connect(bench.server.tcp_address().expect("a TCP address")).expect("a connection");
    stream.write_all(&(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES).to_be_bytes()).expect("flags");
    take(&mut stream, 18);
    for option in options.iter().chain([&option(NBD_OPT_GO, &named(name, &[0, 0]))]) {
        stream.write_all(option).expect("an option");
        loop {
            let header = take(&mut stream, 20);
            let length = u32::from_be_bytes(header[16..].try_into().expect("four bytes"));
            take(&mut stream, length as usize);
            match u32::from_be_bytes(header[12..16].try_into().expect("four bytes")) {
                NBD_REP_ACK => break,
                kind => assert_eq!(kind & NBD_REP_FLAG_ERROR, 0, "{kind:#x}"),
            }
        }
    }
    stream
}

pub(super) fn take(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("an answer");
    bytes
}

pub(super) fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let head = [&NBD_REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes()].concat()
}

pub(super) fn extended(flags: u16, kind: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let head = [&NBD_EXTENDED_REQUEST_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// Flags, type and payload of the next extended chunk, which must repeat cookie and offset.
pub(super) fn chunk(stream: &mut TcpStream, cookie: u64, offset: u64) -> (u16, u16, Vec<u8>) {
    let header = take(stream, 32);
    assert_eq!(header[..4], NBD_EXTENDED_REPLY_MAGIC.to_be_bytes());
    assert_eq!(header[8..24], [cookie.to_be_bytes(), offset.to_be_bytes()].concat());
    let field = |at: usize| u16::from_be_bytes(header[at..at + 2].try_into().expect("two bytes"));
    let length = u64::from_be_bytes(header[24..].try_into().expect("eight bytes"));
    (field(4), field(6), take(stream, length as usize))
}

/// The choice of contexts for an export.
pub(super) fn choice(name: &str, contexts: &[&str]) -> Vec<u8> {
    let queries: Vec<u8> = contexts.iter().flat_map(|context| named(context, &[])).collect();
    let count = (contexts.len() as u32).to_be_bytes();
    option(NBD_OPT_SET_META_CONTEXT, &named(name, &[&count[..], &queries].concat()))
}

/// The error of the next simple reply, which must be to this request.
pub(super) fn errno(stream: &mut TcpStream, cookie: u64) -> u32 {
    let reply = take(stream, 16);
    assert_eq!((&reply[..4], &reply[8..]), (&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &cookie.to_be_bytes()[..]));
    u32::from_be_bytes(reply[4..8].try_into().expect("four bytes"))
}
