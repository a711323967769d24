//! `ctl image import`: room for the content, the content, and the seal.

use super::super::connect::{Manager, Session, answer, object};
use super::super::copy::{bar, connect};
use super::super::failure::Failure;
use super::super::output;
use super::super::wait::{Until, settle, wait_for};
use super::source::{self, Source};
use super::{expect, sentence};
use crate::model::{ByteSize, Digest, Image, ImageFormat, Kind, Volume};
use crate::nbd::import::{Before, ImportError, PACE, Stopped, Watcher, import};
use crate::pki::Keyring;
use crate::rpc::{Fault, proto};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use std::path::PathBuf;
use tokio::runtime::Handle;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file, or - for standard input
    pub file: PathBuf,
    /// What the image is to be called
    #[arg(long, env = "SYMPHONY_IMAGE_NAME")]
    pub name: String,
    /// What the file is [default: qcow2 if it begins like one, else raw]
    #[arg(long, value_enum, env = "SYMPHONY_IMAGE_FORMAT")]
    pub format: Option<Form>,
    /// Where to keep it: name or id [default: the ready pool with the most free space]
    #[arg(long, env = "SYMPHONY_IMAGE_POOL")]
    pub pool: Option<String>,
    /// How much raw content standard input brings: then it is sent as it comes, and not put into a temporary file first
    #[arg(long, env = "SYMPHONY_IMAGE_SIZE")]
    pub size: Option<ByteSize>,
    /// The largest temporary file that standard input may need, in $TMPDIR
    #[arg(long, env = "SYMPHONY_IMAGE_SPOOL", default_value = "16GiB")]
    pub spool_limit: ByteSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    Raw,
    Qcow2,
}

pub async fn run(session: &Session, args: ImportArgs) -> Result<()> {
    let ImportArgs { file, name, format, pool, size, spool_limit } = args;
    let wishes = source::Wishes { format, size, spool_limit };
    let source = tokio::task::spawn_blocking(move || source::open(&file, &wishes)).await??;
    let mut manager = session.manager().await?;
    let request = proto::ImportImageRequest {
        name,
        size: source.content.size(),
        format: proto::ImageFormat::from(source.format).into(),
        pool: pool.unwrap_or_default(),
    };
    let begun = answer(manager.client.import_image(request).await, "manager")?;
    let image = expect(object(begun.image.context("the manager's answer names no image")?)?)?;
    let base = object(begun.base.context("the manager's answer names no volume")?)?;
    let base = super::super::volume::expect(wait_for(session, base, Until::Ready).await?)?;
    let sent = send(&manager, &image, base, source, session.credentials()?).await;
    let sha256 = match sent {
        Ok(sha256) => sha256,
        Err(error) => return Err(explain(&mut manager, &image, error).await),
    };
    let request = proto::SealImageRequest {
        image: image.meta.id.to_string(),
        upload: image.spec.upload,
        sha256: sha256.to_string(),
    };
    let sealed = object(answer(manager.client.seal_image(request).await, "manager")?)?;
    let image = expect(settle(session, sealed, Until::Ready).await?)?;
    output::one(session.format, &image, image.meta.name.as_str(), sentence)
}

/// Why an import stopped; what it was cut off by says more than how that showed.
async fn explain(manager: &mut Manager, image: &Image, error: anyhow::Error) -> anyhow::Error {
    let name = &image.meta.name;
    let repeat = format!("repeat it to go on, or `symphony ctl image remove {name}` to throw it away");
    match manager.get(Kind::Image, &image.meta.id.to_string()).await.and_then(expect) {
        Ok(now) if now.spec.upload != image.spec.upload => {
            Failure::Unfulfilled(format!("another import of image '{name}' has taken over")).into()
        }
        Ok(now) if now.meta.is_removed() => Failure::Unfulfilled(format!("image '{name}' is being removed")).into(),
        Ok(_) => error.context(format!("the import of image '{name}' was cut short: {repeat}")),
        // Gone, or nobody answers.
        Err(_) => error,
    }
}

async fn send(
    manager: &Manager,
    image: &Image,
    base: Volume,
    mut source: Source,
    credentials: Option<Keyring>,
) -> Result<Digest> {
    let before =
        image.status.uploaded.map(|uploaded| Before { bytes: uploaded.bytes.as_u64(), sha256: uploaded.sha256 });
    let mut log = Log {
        bar: bar(Some(image.spec.size)),
        manager: manager.clone(),
        image: image.clone(),
        runtime: Handle::current(),
        failure: None,
    };
    let name = image.meta.name.clone();
    let sha256 = tokio::task::spawn_blocking(move || {
        let mut client = connect(&base, credentials.as_ref())?;
        let imported = import(&mut *source.content, &mut client, before, PACE, &mut log);
        log.bar.finish_and_clear();
        let sha256 = match (imported, log.failure) {
            (Ok(sha256), _) => sha256,
            (Err(ImportError::Stopped(_)), Some(failure)) => return Err(failure),
            (Err(error), _) => return Err(anyhow::Error::from(error).context(format!("sending image '{name}'"))),
        };
        client.disconnect().context("closing the connection")?;
        anyhow::Ok(sha256)
    });
    sha256.await?
}

/// Shows progress to the user, and tells the manager what has arrived for good.
struct Log {
    bar: ProgressBar,
    manager: Manager,
    image: Image,
    runtime: Handle,
    /// Why the import was stopped.
    failure: Option<anyhow::Error>,
}

impl Watcher for Log {
    fn passed(&mut self, bytes: ByteSize) {
        self.bar.set_position(bytes.as_u64());
    }

    fn durable(&mut self, before: Option<Before>) -> Result<(), Stopped> {
        let request = proto::RecordUploadRequest {
            image: self.image.meta.id.to_string(),
            upload: self.image.spec.upload,
            bytes: before.map_or(0, |before| before.bytes),
            sha256: before.map_or_else(String::new, |before| before.sha256.to_string()),
        };
        let told = self.runtime.block_on(self.manager.client.record_upload(request));
        let Err(error) = answer(told, "manager") else { return Ok(()) };
        let passing = error.downcast_ref::<Fault>().is_some_and(|fault| fault.kind.retryable());
        if passing && before.is_some() {
            // It would only have saved work to whoever goes on with it.
            tracing::debug!(%error, "the manager was not told how far the import is");
            return Ok(());
        }
        self.failure = Some(error);
        Err(Stopped)
    }
}

impl From<Form> for ImageFormat {
    fn from(form: Form) -> Self {
        match form {
            Form::Raw => Self::Raw,
            Form::Qcow2 => Self::Qcow2,
        }
    }
}
