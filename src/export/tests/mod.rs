//! The server and the client against each other, over real sockets.

mod copying;
mod lifecycle;
mod requests;

use super::*;
use crate::io::{BlockIo, FaultIo, MemoryIo};
use crate::nbd::{Client, ClientError, Stream, Target, Uri};
use std::net::SocketAddr;
use std::sync::Arc;

const SIZE: u64 = 1 << 20;

/// A server with one export, "disk", on memory that can be told to fail.
struct Bench {
    table: Arc<ExportTable>,
    server: NbdServer,
    io: Arc<FaultIo>,
}

fn admit_all() -> PeerPolicy {
    Arc::new(|_: &SocketAddr, _: &SocketAddr| Ok(()))
}

fn local(admit: PeerPolicy) -> ServerConfig {
    ServerConfig { tcp: Some(([127, 0, 0, 1], 0).into()), ..ServerConfig::new(admit) }
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
    bench_with(local(admit_all()), SIZE)
}

impl Bench {
    fn uri(&self, export: &str) -> Uri {
        let address = self.server.tcp_address().expect("a TCP address");
        let target = Target::Tcp { host: address.ip().to_string(), port: address.port() };
        Uri { target, export: export.into() }
    }

    fn dial(&self, export: &str) -> Result<Client<Stream>, ClientError> {
        Client::dial(&self.uri(export))
    }

    fn client(&self) -> Client<Stream> {
        self.dial("disk").expect("an export called disk")
    }
}
