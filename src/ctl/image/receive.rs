//! `ctl image export`: an image's content into a file, whole and right or not at all.

use super::super::connect::Session;
use super::super::copy::{bar, is_dash};
use super::super::failure::Failure;
use super::super::{output, service, volume};
use super::expect;
use crate::image::{Sum, runs_of_zeros};
use crate::model::{ByteSize, Digest, Image, Kind};
use crate::rpc::{Fault, proto};
use anyhow::{Context, Result, bail};
use proto::image_piece::Piece;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tokio::runtime::Handle;
use tonic::Streaming;

pub async fn run(session: &Session, reference: &str, file: PathBuf) -> Result<()> {
    let image = expect(session.manager().await?.get(Kind::Image, reference).await?)?;
    let name = image.meta.name.clone();
    let Some(sha256) = image.spec.sha256.filter(|_| image.is_whole()) else {
        let text = format!("image '{name}' is not there as a whole: see `symphony ctl image get {name}`");
        return Err(Failure::Unfulfilled(text).into());
    };
    let stream = open(session, &image).await?;
    let (runtime, size, to_stdout) = (Handle::current(), image.spec.size, is_dash(&file));
    let writing = tokio::task::spawn_blocking(move || {
        let bar = bar(Some(size));
        let place = match is_dash(&file) {
            true => Place::Stream(Box::new(io::stdout())),
            false => Place::of(&file).with_context(|| format!("opening {}", file.display()))?,
        };
        let mut writer = Writer { place, sum: Sum::default(), size: size.as_u64() };
        let written = take_all(&runtime, stream, &mut writer, &mut |done| bar.set_position(done));
        bar.finish_and_clear();
        written.and_then(|()| writer.finish(sha256)).with_context(|| format!("writing {}", file.display()))
    });
    writing.await?.with_context(|| format!("exporting image '{name}'"))?;
    let sentence = format!("exported image '{name}' ({size}, {} bytes)\nsha256 {sha256}\n", size.as_u64());
    if to_stdout {
        // Standard output is the image's; what happened goes beside it.
        eprint!("{sentence}");
        return Ok(());
    }
    let document = json!({"image": name, "bytes": size, "sha256": sha256});
    output::one(session.format, &document, name.as_str(), |_| sentence)
}

/// The content, from the first base that can be read.
async fn open(session: &Session, image: &Image) -> Result<Streaming<proto::ImagePiece>> {
    let mut last = None;
    for base in &image.status.bases {
        match open_base(session, &base.to_string()).await {
            Ok(Some(stream)) => return Ok(stream),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
    }
    let name = &image.meta.name;
    let nothing = || Failure::Unfulfilled(format!("nothing that keeps image '{name}' can be read now")).into();
    Err(last.unwrap_or_else(nothing))
}

async fn open_base(session: &Session, base: &str) -> Result<Option<Streaming<proto::ImagePiece>>> {
    let mut manager = session.manager().await?;
    let base = volume::expect(manager.get(Kind::Volume, base).await?)?;
    let Some(replica) = base.status.placement.first().filter(|_| base.is_complete_base()) else { return Ok(None) };
    let holder = service::expect(manager.get(Kind::Service, &replica.service.to_string()).await?)?;
    let request = proto::ReadImageRequest { volume: base.meta.id.to_string() };
    let stream = session.supply(&holder).await?.read_image(request).await.map_err(Fault::from)?;
    Ok(Some(stream.into_inner()))
}

fn take_all(
    runtime: &Handle,
    mut stream: Streaming<proto::ImagePiece>,
    writer: &mut Writer,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    while let Some(piece) = runtime.block_on(stream.message()).map_err(Fault::from)? {
        match piece.piece {
            Some(Piece::Data(data)) => writer.data(&data)?,
            Some(Piece::Zeros(length)) => writer.zeros(length)?,
            // Only of volumes: an image's digest is known before.
            Some(Piece::Sha256(_)) | None => bail!("the block service sends what this version does not understand"),
        }
        progress(writer.sum.length());
    }
    Ok(())
}

/// Where the content goes.
enum Place {
    /// Becomes `path` once it is whole; its name till then.
    Fresh { file: File, staged: PathBuf, path: PathBuf, done: bool },
    /// A pipe or device.
    Stream(Box<dyn Write + Send>),
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        match std::fs::metadata(path) {
            Ok(facts) if !facts.is_file() => Ok(Self::Stream(Box::new(OpenOptions::new().write(true).open(path)?))),
            Ok(_) => Self::fresh(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::fresh(path),
            Err(error) => Err(error),
        }
    }

    fn fresh(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let mut staged = std::ffi::OsString::from(".");
        staged.push(name);
        staged.push(format!(".{}", std::process::id()));
        let staged = path.with_file_name(staged);
        let file = OpenOptions::new().write(true).create_new(true).open(&staged)?;
        Ok(Self::Fresh { file, staged, path: path.to_owned(), done: false })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Fresh { staged, done: false, .. } = self
            && let Err(error) = std::fs::remove_file(&*staged)
        {
            tracing::warn!(%error, file = %staged.display(), "cannot remove what was written in vain");
        }
    }
}

/// Writes and sums up what comes.
struct Writer {
    place: Place,
    sum: Sum,
    size: u64,
}

impl Writer {
    fn room_for(&self, length: u64) -> Result<()> {
        match length <= self.size.saturating_sub(self.sum.length()) {
            true => Ok(()),
            false => bail!("the block service sends more than the {} bytes of the image", self.size),
        }
    }

    fn data(&mut self, data: &[u8]) -> Result<()> {
        self.room_for(data.len() as u64)?;
        match &mut self.place {
            Place::Fresh { file, .. } => file.write_all_at(data, self.sum.length())?,
            Place::Stream(stream) => stream.write_all(data)?,
        }
        self.sum.add_data(data);
        Ok(())
    }

    fn zeros(&mut self, length: u64) -> Result<()> {
        self.room_for(length)?;
        if let Place::Stream(stream) = &mut self.place {
            runs_of_zeros(length).try_for_each(|zeros| stream.write_all(zeros))?;
        }
        self.sum.add_zeros(length);
        Ok(())
    }

    fn finish(mut self, wanted: Digest) -> Result<()> {
        if self.sum.length() != self.size {
            let (done, all) = (ByteSize::bytes(self.sum.length()), ByteSize::bytes(self.size));
            bail!("only {done} of {all} came");
        }
        let found = self.sum.digest();
        if found != wanted {
            bail!("what came is not the image: its sha256 is {found}, and should be {wanted}");
        }
        match &mut self.place {
            Place::Stream(stream) => Ok(stream.flush()?),
            Place::Fresh { file, staged, path, done } => {
                file.set_len(self.size)?;
                file.sync_all()?;
                std::fs::rename(&*staged, &*path)?;
                *done = true;
                let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Ok(File::open(directory)?.sync_all()?)
            }
        }
    }
}
