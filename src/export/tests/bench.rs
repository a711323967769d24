//! A server and clients of it.

use super::*;

/// A server with one export, "disk", on memory that can be told to fail.
pub(super) struct Bench {
    pub(super) table: Arc<ExportTable>,
    pub(super) server: NbdServer,
    pub(super) io: Arc<FaultIo>,
    pub(super) account: Arc<Account>,
}

pub(super) fn all_local() -> PeerPolicy {
    Arc::new(|_: &TcpStream| Ok(()))
}

pub(super) fn local(local: PeerPolicy) -> ServerConfig {
    ServerConfig { tcp: Some(([127, 0, 0, 1], 0).into()), engine: ENGINE, local, ..ServerConfig::new() }
}

pub(super) fn bench_with(config: ServerConfig, size: u64) -> Bench {
    bench_on(config, size, Account::new())
}

pub(super) fn bench_on(config: ServerConfig, size: u64, account: Arc<Account>) -> Bench {
    let io = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(size))));
    let table = ExportTable::new();
    table.publish(ServedExport { account: account.clone(), ..served("disk", io.clone()) }).expect("a free name");
    let server = start(config, table.clone());
    Bench { table, server, io, account }
}

/// Where there is no io_uring, the other engine is tried once more.
pub(super) fn start(config: ServerConfig, table: Arc<ExportTable>) -> NbdServer {
    match NbdServer::start(config.clone(), table.clone()) {
        Err(ServerError::Engine(EngineError::Uring(error))) => {
            eprintln!("skipped: io_uring cannot be used here: {error}");
            NbdServer::start(ServerConfig { engine: EngineChoice::Threads, ..config }, table).expect("a free port")
        }
        started => started.expect("a free port"),
    }
}

pub(super) fn bench() -> Bench {
    bench_with(local(all_local()), SIZE)
}

impl Bench {
    pub(super) fn uri(&self, export: &str) -> Uri {
        let address = self.server.tcp_address().expect("a TCP address");
        let target = Target::Tcp { host: address.ip().to_string(), port: address.port() };
        Uri { target, export: export.into(), tls: None }
    }

    pub(super) fn dial(&self, export: &str) -> Result<Dialled, ClientError> {
        Client::dial(&self.uri(export))
    }

    pub(super) fn client(&self) -> Dialled {
        self.dial("disk").expect("an export called disk")
    }
}
