//! The server and the client against each other, over real sockets: one suite, run on each engine.

#![expect(clippy::duplicate_mod, reason = "each engine has a constant of its own that the same files are built with")]

mod admission;
mod cluster;
mod handover;
mod threads;
mod uring;

use super::*;
use crate::io::{BlockIo, FaultIo, MemoryIo};
use crate::nbd::{Client, ClientError, Dialled, Target, Uri};
use std::net::TcpStream;
use std::sync::Arc;

const SIZE: u64 = 1 << 20;

fn served(name: &str, io: Arc<dyn BlockIo>) -> ServedExport {
    ServedExport {
        name: name.into(),
        id: uuid::Uuid::nil(),
        description: format!("volume {name}"),
        io,
        read_only: false,
        account: Account::new(),
    }
}
