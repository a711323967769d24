//! Serves one file over NBD with the export path of the block service and nothing else, until it is killed: what
//! `make bench-data` measures beside other servers.
//!
//! `serve FILE tcp:PORT|unix:SOCKET [auto|uring|threads] [FOLDER]`: with a folder, clients may also come over TLS, with
//! the certificate that they find there.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use symphony::export::{Account, ExportTable, Grant, NbdServer, ServedExport, ServerConfig};
use symphony::io::FileIo;
use symphony::model::ClusterId;
use symphony::pki::{Authority, Bearer, Credentials, Keyring, Role, Side, SigningKey};
use symphony::runtime::{Clock, SystemClock};
use uuid::Uuid;

const EXPORT: &str = "";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, listen, rest @ ..] = arguments.as_slice() else {
        bail!("usage: serve FILE tcp:PORT|unix:SOCKET [auto|uring|threads] [FOLDER]")
    };
    let file = File::options().read(true).write(true).open(path).with_context(|| format!("opening {path}"))?;
    let io = Arc::new(FileIo::new(file).with_context(|| format!("looking at {path}"))?);
    let table = ExportTable::new();
    table.publish(ServedExport {
        name: EXPORT.into(),
        id: uuid::Uuid::nil(),
        description: path.clone(),
        io,
        read_only: false,
        account: Account::new(),
    })?;
    let mut config = ServerConfig::new();
    config.engine = rest.first().map_or("auto", String::as_str).parse()?;
    match listen.split_once(':') {
        Some(("tcp", port)) => config.tcp = Some(([127, 0, 0, 1], port.parse().context("reading the port")?).into()),
        Some(("unix", socket)) => config.unix = Some(socket.into()),
        _ => bail!("{listen} is neither tcp:PORT nor unix:SOCKET"),
    }
    if let Some(folder) = rest.get(1) {
        config.tls = Some(secure(&table, Path::new(folder))?);
    }
    let _server = NbdServer::start(config, table).context("serving")?;
    loop {
        std::thread::park();
    }
}

/// Grants the export to a client whose certificate is written into the folder; answers what the server presents to it.
fn secure(table: &ExportTable, folder: &Path) -> Result<Keyring> {
    let cluster = ClusterId::generate();
    let authority = Authority::create(cluster, &"bench".parse()?, SystemClock.wall())?;
    let client = Uuid::new_v4();
    let files = issue(&authority, cluster, Role::Data, client)?.tool_files(Side::Client)?;
    for (name, contents) in files {
        std::fs::write(folder.join(name), contents.as_bytes()).with_context(|| format!("writing {name}"))?;
    }
    table.admit(EXPORT, Grant { client, client_name: "bench".into(), read_only: false, exclusive: false })?;
    let ours = issue(&authority, cluster, Role::Block, Uuid::new_v4())?;
    Ok(Keyring::new(ours, Arc::new(SystemClock))?)
}

fn issue(authority: &Authority, cluster: ClusterId, role: Role, id: Uuid) -> Result<Credentials> {
    let key = SigningKey::generate()?;
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let bearer = Bearer { cluster, role, id };
    let issued = authority.issue(&key.request()?, &bearer, &names, SystemClock.wall(), DAY)?;
    Ok(Credentials::new(key, &issued.chain_pem, authority.trust())?)
}
