//! `ctl image …`

mod import;
mod receive;
mod source;

use super::connect::{Session, answer, object};
use super::lost::{LostArgs, close};
use super::output::{self, fields, table};
use super::wait::{Until, settle};
use crate::model::{Image, Kind, Object, Phase};
use crate::rpc::proto;
use anyhow::{Result, bail};
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make an image of a file, raw or qcow2: its content is kept, compared with its SHA-256, and changed by nobody
    #[command(
        after_help = "The content is what counts: qcow2 is converted on the way, holes and zeros are not sent. The SHA-256 is \
                      that of the content, all of it, zeros and all: that of the raw file, and of what `qemu-img convert -O \
                      raw` makes of a qcow2 file.\n\
                      An import that was cut short goes on where it stopped when it is repeated, or is thrown away with \
                      `image remove`.\n\
                      Examples:\n  symphony ctl image import noble.qcow2 --name noble\n  \
                      zcat disk.raw.gz | symphony ctl image import - --name disk\n  \
                      symphony ctl volume create web --image noble --size 40GiB"
    )]
    Import(import::ImportArgs),
    /// All images
    #[command(visible_alias = "ls")]
    List,
    /// One image
    Get {
        /// Name or id
        image: String,
    },
    /// Write an image's content into a file, raw; holes stay holes, and the SHA-256 is compared
    Export {
        /// Name or id
        image: String,
        /// The file, or - for standard output
        file: PathBuf,
    },
    /// Destroy an image; volumes that were made of it stay
    #[command(visible_alias = "rm")]
    Remove {
        /// Name or id
        image: String,
        #[command(flatten)]
        lost: LostArgs,
    },
}

pub fn expect(object: Object) -> Result<Image> {
    match object {
        Object::Image(image) => Ok(image),
        other => bail!("the manager answered with a {} instead of an image", other.kind()),
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    match verb {
        Verb::Import(args) => import::run(session, args).await,
        Verb::List => {
            let mut manager = session.manager().await?;
            let images: Vec<Image> = manager.list(Kind::Image).await?.into_iter().map(expect).collect::<Result<_>>()?;
            let header = ["NAME", "SIZE", "FROM", "STATE", "SHA256", "MESSAGE"];
            let people = |images: &[Image]| table(&header, images.iter().map(row).collect());
            output::list(session.format, &images, |image| image.meta.name.to_string(), people)
        }
        Verb::Get { image } => {
            let image = expect(session.manager().await?.get(Kind::Image, &image).await?)?;
            output::one(session.format, &image, image.meta.name.as_str(), describe)
        }
        Verb::Export { image, file } => receive::run(session, &image, file).await,
        Verb::Remove { image, lost } if lost.lost => close(session, Kind::Image, &image, lost.yes).await,
        Verb::Remove { image, .. } => {
            let request = proto::RemoveRequest { reference: image };
            let image = object(answer(session.manager().await?.client.remove_image(request).await, "manager")?)?;
            let image = settle(session, image, Until::Gone).await?;
            let verb = if session.wait { "removed" } else { "removing" };
            output::one(session.format, &image, image.name(), |it| format!("{verb} image '{}'\n", it.name()))
        }
    }
}

/// In a word or two.
fn state(image: &Image) -> String {
    match (image.status.phase, image.spec.sha256, image.status.uploaded) {
        (Phase::Pending, None, Some(uploaded)) => {
            let (done, all) = (u128::from(uploaded.bytes.as_u64()), u128::from(image.spec.size.as_u64()).max(1));
            format!("uploading ({}%)", done * 100 / all)
        }
        (Phase::Pending, None, None) => "uploading".into(),
        (Phase::Pending, Some(_), _) => "comparing".into(),
        (phase, _, _) => phase.to_string(),
    }
}

fn row(image: &Image) -> Vec<String> {
    let short = |digest: String| digest.get(..12).unwrap_or_default().to_owned();
    vec![
        image.meta.name.to_string(),
        image.spec.size.to_string(),
        image.spec.format.to_string(),
        state(image),
        image.spec.sha256.map_or_else(|| "-".into(), |digest| short(digest.to_string())),
        image.status.message.clone().unwrap_or_default(),
    ]
}

fn sentence(image: &Image) -> String {
    let (name, size) = (&image.meta.name, image.spec.size);
    let digest = image.spec.sha256.map(|digest| format!("sha256 {digest}\n")).unwrap_or_default();
    format!("image '{name}' ({size}, {} bytes) is {}\n{digest}", size.as_u64(), state(image))
}

fn describe(image: &Image) -> String {
    let (spec, status) = (&image.spec, &image.status);
    let mut rows = vec![
        ("Name", image.meta.name.to_string()),
        ("Id", image.meta.id.to_string()),
        ("Size", format!("{} ({} bytes)", spec.size, spec.size.as_u64())),
        ("Imported from", spec.format.to_string()),
        ("State", state(image)),
        ("Message", status.message.clone().unwrap_or_else(|| "-".into())),
        ("SHA-256", spec.sha256.map_or_else(|| "-".into(), |digest| digest.to_string())),
    ];
    if let Some(uploaded) = status.uploaded {
        rows.push(("Arrived", format!("{} ({} bytes)", uploaded.bytes, uploaded.bytes.as_u64())));
    }
    rows.extend(status.bases.iter().map(|base| ("Kept by", format!("volume {base}"))));
    rows.push(("Created", image.meta.created_at.to_string()));
    fields(&rows)
}
