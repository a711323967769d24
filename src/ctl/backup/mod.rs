//! `ctl manager backup`, `restore` and `migrate`: the state as a whole, out, in, and elsewhere.

mod file;

use super::connect::{Session, answer};
use super::copy::is_dash;
use super::etcd::EtcdArgs;
use super::failure::Failure;
use super::output;
use crate::model::Timestamp;
use crate::rpc::{Fault, proto};
use anyhow::{Context, Result};
use clap::Args;
use file::{Reader, Writer};
use proto::backup_part::Part;
use serde_json::json;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

pub const BACKUP: &str = "\
The file holds everything in the store at one revision but who is connected just now: one line of JSON a key, readable, with a
checksum at its end. It holds the private key of the cluster's authority: whoever reads it can be anybody in the cluster. It is
written with mode 0600; keep it as you keep that key. Volumes' data are not in it.";

pub const RESTORE: &str = "\
For a manager that is no member and whose store is empty: start one on a new config directory or an empty etcd, and name its
socket. The whole file is judged before anything is written, and a restore that is cut off is gone on with by another one.
Block services come back by themselves. What was made since the backup becomes orphans, what was removed since is missing:
`symphony ctl check` lists both, and nothing is destroyed.";

pub const MIGRATE: &str = "\
The etcd must hold nothing under the prefix. While the state is copied, for some seconds, this manager answers nothing; block
services serve on and come back by themselves, and all ids stay. Afterwards, and at every later start of this manager, the state
is in etcd, with or without --etcd-endpoints; the old file is kept, and refuses to be served. If it is cut off, the embedded
store serves on or etcd does, never both: repeat it if need be. A password is not kept: name its file, or set
$SYMPHONY_ETCD_PASSWORD for the manager now and at every start.";

/// Where the state is to go.
#[derive(Debug, Args)]
pub struct Destination {
    /// The etcd cluster that the state is moved to
    #[arg(long, env = "SYMPHONY_ETCD_ENDPOINTS", value_delimiter = ',', value_name = "URL,URL,…", required = true)]
    etcd_endpoints: Vec<String>,
    #[command(flatten)]
    etcd: EtcdArgs,
}

pub async fn backup(session: &Session, path: PathBuf) -> Result<()> {
    let mut client = session.stores().await?;
    let mut parts = answer(client.backup(proto::BackupRequest {}).await, "manager")?;
    let early = || Failure::Unfulfilled("the manager stopped telling before the end: try again".into());
    let mut writer: Option<(Writer, proto::BackupHeader)> = None;
    let writing = || format!("writing {}", path.display());
    let (entries, header, sha256) = loop {
        let part = parts.message().await.map_err(Fault::from)?.ok_or_else(early)?.part;
        match (part, &mut writer) {
            (Some(Part::Header(header)), None) => {
                let begun = match is_dash(&path) {
                    true => Writer::to_stdout(&header),
                    false => Writer::to_file(&path, &header),
                };
                writer = Some((begun.with_context(writing)?, header));
            }
            (Some(Part::Entries(more)), Some((writer, _))) => {
                for entry in more.entries {
                    writer.entry(&entry.key, &entry.value).with_context(writing)?;
                }
            }
            (Some(Part::End(end)), Some(_)) => {
                let Some((writer, header)) = writer.take() else { return Err(early().into()) };
                let sha256 = writer.finish(end.entries).with_context(writing)?;
                break (end.entries, header, sha256);
            }
            _ => {
                return Err(
                    Failure::Unfulfilled("the manager says what this version does not understand".into()).into()
                );
            }
        }
    };
    let proto::BackupHeader { cluster_name, revision, .. } = &header;
    let sentence = format!(
        "cluster '{cluster_name}' at revision {revision}: {entries} values in {}\nsha256 {sha256}\n\
         keep it safe: it holds the private key of the cluster's authority\n",
        path.display()
    );
    if is_dash(&path) {
        eprint!("{sentence}");
        return Ok(());
    }
    let document = json!({
        "file": path,
        "cluster": {"id": header.cluster_id, "name": cluster_name},
        "revision": revision,
        "entries": entries,
        "sha256": sha256,
    });
    output::one(session.format, &document, &path.display().to_string(), |_| sentence)
}

/// Everything in a backup, judged line by line.
fn read(path: &Path) -> Result<(proto::BackupHeader, Vec<proto::BackupPart>)> {
    let stream: Box<dyn Read> = match is_dash(path) {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path)?),
    };
    let mut reader = Reader::new(BufReader::new(stream))?;
    let header = reader.header().clone();
    let part = |part| proto::BackupPart { part: Some(part) };
    let mut parts = vec![part(Part::Header(header.clone()))];
    let (mut entries, mut bytes, mut count) = (Vec::new(), 0usize, 0u64);
    while let Some((key, value)) = reader.next()? {
        if bytes > file::PART_BYTES {
            parts.push(part(Part::Entries(proto::BackupEntries { entries: std::mem::take(&mut entries) })));
            bytes = 0;
        }
        bytes = bytes.saturating_add(value.len()).saturating_add(key.len());
        count = count.saturating_add(1);
        entries.push(proto::BackupEntry { key, value });
    }
    parts.push(part(Part::Entries(proto::BackupEntries { entries })));
    parts.push(part(Part::End(proto::BackupEnd { entries: count })));
    Ok((header, parts))
}

pub async fn restore(session: &Session, path: PathBuf) -> Result<()> {
    let shown = path.display().to_string();
    let read = tokio::task::spawn_blocking(move || read(&path)).await?;
    let (header, parts) = read.with_context(|| format!("{shown} was not restored"))?;
    let mut client = session.stores().await?;
    let done = answer(client.restore(futures_util::stream::iter(parts)).await, "manager")?;
    let taken_at = Timestamp::from_millis(header.taken_at);
    let document = json!({
        "cluster": {"id": done.cluster_id, "name": done.cluster_name},
        "service": {"id": done.service_id},
        "known": done.known,
        "entries": done.entries,
        "taken_at": taken_at,
    });
    output::one(session.format, &document, &done.service_id, |_| {
        let who = if done.known { "as the member that it was" } else { "as a new member" };
        format!(
            "restored cluster '{}' as of {taken_at}, with {} values; this manager serves it {who}, {}\n\
             see `symphony ctl check` for what is missing and what is an orphan\n",
            done.cluster_name, done.entries, done.service_id
        )
    })
}

pub async fn migrate(session: &Session, to: Destination) -> Result<()> {
    let mut client = session.stores().await?;
    // The manager may run elsewhere in the file system.
    let absolute = |path: Option<PathBuf>| -> Result<Option<String>> {
        let Some(path) = path else { return Ok(None) };
        let path = std::path::absolute(&path).with_context(|| format!("finding {}", path.display()))?;
        let text = path.to_str().map(str::to_owned);
        Ok(Some(text.ok_or_else(|| Failure::Usage(format!("{} is not UTF-8", path.display())))?))
    };
    let request = proto::MigrateRequest {
        endpoints: to.etcd_endpoints,
        prefix: to.etcd.etcd_prefix,
        ca: absolute(to.etcd.etcd_ca)?,
        cert: absolute(to.etcd.etcd_cert)?,
        key: absolute(to.etcd.etcd_key)?,
        user: to.etcd.etcd_user,
        password_file: absolute(to.etcd.etcd_password_file)?,
    };
    let done = answer(client.migrate(request).await, "manager")?;
    let document = json!({"entries": done.entries, "store": done.store});
    output::one(session.format, &document, &done.store, |_| {
        format!("moved {} values to {}; from now on this manager finds its state there\n", done.entries, done.store)
    })
}
