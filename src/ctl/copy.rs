//! `ctl volume upload` and `download`: bytes between a file or pipe and a volume, over NBD.

use super::connect::Session;
use super::failure::Failure;
use super::output;
use crate::model::{ByteSize, Export, Protocol, Volume};
use crate::nbd::copy::{Copied, Sink};
use crate::nbd::{Client, Dialled, Target, Uri, copy, tls};
use crate::pki::Keyring;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The export to use from this host: with credentials the one over TLS, for a socket of the same path may be another
/// service's here; without, the unix socket where there is one, else TCP.
fn choose_export(volume: &Volume, credentials: bool) -> Result<Uri> {
    let here = |uri: &Uri| match &uri.target {
        Target::Unix { socket, .. } => socket.exists(),
        Target::Tcp { .. } => true,
    };
    let preference = |protocol| match protocol {
        Protocol::NbdTls => 0,
        Protocol::NbdUnix => 1,
        Protocol::Nbd => 2,
    };
    let usable = |export: &&Export| credentials || export.protocol != Protocol::NbdTls;
    let mut exports: Vec<_> = volume.status.exports.iter().filter(usable).collect();
    exports.sort_by_key(|export| preference(export.protocol));
    for export in exports {
        let uri: Uri = export.uri.parse().with_context(|| format!("reading the export '{}'", export.uri))?;
        if here(&uri) {
            return Ok(uri);
        }
    }
    let (name, phase) = (&volume.meta.name, volume.status.phase);
    Err(Failure::Unfulfilled(format!("volume '{name}' is {phase} and has no export that can be reached from here"))
        .into())
}

pub(super) fn connect(volume: &Volume, credentials: Option<&Keyring>) -> Result<Dialled> {
    let uri = choose_export(volume, credentials.is_some())?;
    let config = credentials.filter(|_| uri.tls.is_some()).map(tls::dialling).transpose()?;
    Client::dial_with(&uri, config).with_context(|| format!("connecting to volume '{}' at {uri}", volume.meta.name))
}

pub(super) fn bar(total: Option<ByteSize>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total.as_u64()), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec}"),
    };
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

pub(super) fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The credentials are for services on other hosts.
pub async fn upload(session: &Session, volume: Volume, file: PathBuf, credentials: Option<Keyring>) -> Result<()> {
    let name = volume.meta.name.to_string();
    let copied = tokio::task::spawn_blocking(move || {
        let (mut source, length): (Box<dyn Read>, _) = if is_dash(&file) {
            (Box::new(std::io::stdin().lock()), None)
        } else {
            let opened = File::open(&file).with_context(|| format!("opening {}", file.display()))?;
            let facts = opened.metadata().with_context(|| format!("looking at {}", file.display()))?;
            (Box::new(opened), facts.is_file().then(|| ByteSize::bytes(facts.len())))
        };
        let mut client = connect(&volume, credentials.as_ref())?;
        let bar = bar(length);
        let copied = copy::upload(&mut *source, &mut client, length, &mut |done| bar.set_position(done.as_u64()));
        bar.finish_and_clear();
        let copied = copied.with_context(|| format!("uploading to volume '{}'", volume.meta.name))?;
        client.disconnect().context("closing the connection")?;
        anyhow::Ok(copied)
    })
    .await??;
    say_copied(session, &name, "uploaded", copied)
}

/// The credentials are for services on other hosts.
pub async fn download(session: &Session, volume: Volume, file: PathBuf, credentials: Option<Keyring>) -> Result<()> {
    let name = volume.meta.name.to_string();
    let to_stdout = is_dash(&file);
    let copied = tokio::task::spawn_blocking(move || {
        let mut client = connect(&volume, credentials.as_ref())?;
        let total = ByteSize::bytes(client.size());
        let bar = bar(Some(total));
        let mut progress = |done: ByteSize| bar.set_position(done.as_u64());
        let copied = if is_dash(&file) {
            let mut out = std::io::stdout().lock();
            copy::download(&mut client, Sink::Stream(&mut out), None, &mut progress)
        } else {
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file);
            let opened = opened.with_context(|| format!("opening {}", file.display()))?;
            copy::download(&mut client, Sink::File(&opened), None, &mut progress)
        };
        bar.finish_and_clear();
        let copied = copied.with_context(|| format!("downloading volume '{}'", volume.meta.name))?;
        client.disconnect().context("closing the connection")?;
        anyhow::Ok(copied)
    })
    .await??;
    if to_stdout {
        // Standard output is the volume's; what happened goes beside it.
        eprintln!("{}", sentence(&name, "downloaded", &copied));
        return Ok(());
    }
    say_copied(session, &name, "downloaded", copied)
}

fn digest(copied: &Copied) -> String {
    copied.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sentence(volume: &str, verb: &str, copied: &Copied) -> String {
    format!("{verb} {} (volume '{volume}', {} bytes)\nsha256 {}", copied.bytes, copied.bytes.as_u64(), digest(copied))
}

fn say_copied(session: &Session, volume: &str, verb: &str, copied: Copied) -> Result<()> {
    let document = json!({"volume": volume, "bytes": copied.bytes, "sha256": digest(&copied)});
    output::one(session.format, &document, volume, |_| sentence(volume, verb, &copied) + "\n")
}
