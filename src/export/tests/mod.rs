//! The server and the client against each other, over real sockets.

mod admission;
mod cluster;
mod copying;
mod lifecycle;
mod requests;
mod secured;

use super::*;
use crate::io::{BlockIo, FaultIo, MemoryIo};
use crate::nbd::{Client, ClientError, Dialled, Target, Uri};
use std::net::TcpStream;
use std::sync::Arc;

const SIZE: u64 = 1 << 20;

/// A server with one export, "disk", on memory that can be told to fail.
struct Bench {
    table: Arc<ExportTable>,
    server: NbdServer,
    io: Arc<FaultIo>,
}

fn all_local() -> PeerPolicy {
    Arc::new(|_: &TcpStream| Ok(()))
}

fn local(local: PeerPolicy) -> ServerConfig {
    ServerConfig { tcp: Some(([127, 0, 0, 1], 0).into()), local, ..ServerConfig::new() }
}

fn served(name: &str, io: Arc<dyn BlockIo>) -> ServedExport {
    ServedExport { name: name.into(), description: format!("volume {name}"), io, read_only: false }
}

fn bench_with(config: ServerConfig, size: u64) -> Bench {
    let io = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(size))));
    let table = ExportTable::new();
    table.publish(served("disk", io.clone())).expect("a free name");
    let server = NbdServer::start(config, table.clone()).expect("a free port");
    Bench { table, server, io }
}

fn bench() -> Bench {
    bench_with(local(all_local()), SIZE)
}

impl Bench {
    fn uri(&self, export: &str) -> Uri {
        let address = self.server.tcp_address().expect("a TCP address");
        let target = Target::Tcp { host: address.ip().to_string(), port: address.port() };
        Uri { target, export: export.into(), tls: None }
    }

    fn dial(&self, export: &str) -> Result<Dialled, ClientError> {
        Client::dial(&self.uri(export))
    }

    fn client(&self) -> Dialled {
        self.dial("disk").expect("an export called disk")
    }
}
