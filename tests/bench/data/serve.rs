//! Serves one file over NBD with the export path of the block service and nothing else, until it is killed: what
//! `make bench-data` measures beside other servers. `serve FILE tcp:PORT|unix:SOCKET [auto|uring|threads]`

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::sync::Arc;
use symphony::export::{EngineChoice, ExportTable, NbdServer, ServedExport, ServerConfig};
use symphony::io::FileIo;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, listen, rest @ ..] = arguments.as_slice() else {
        bail!("usage: serve FILE tcp:PORT|unix:SOCKET ENGINE")
    };
    let file = File::options().read(true).write(true).open(path).with_context(|| format!("opening {path}"))?;
    let io = Arc::new(FileIo::new(file).with_context(|| format!("looking at {path}"))?);
    let table = ExportTable::new();
    table.publish(ServedExport { name: String::new(), description: path.clone(), io, read_only: false })?;
    let mut config = ServerConfig::new();
    config.engine = match rest.first().map(String::as_str) {
        None | Some("auto") => EngineChoice::Auto,
        Some("uring") => EngineChoice::Uring,
        Some("threads") => EngineChoice::Threads,
        Some(other) => bail!("there is no engine called {other}"),
    };
    match listen.split_once(':') {
        Some(("tcp", port)) => config.tcp = Some(([127, 0, 0, 1], port.parse().context("reading the port")?).into()),
        Some(("unix", socket)) => config.unix = Some(socket.into()),
        _ => bail!("{listen} is neither tcp:PORT nor unix:SOCKET"),
    }
    let _server = NbdServer::start(config, table).context("serving")?;
    loop {
        std::thread::park();
    }
}
