//! `ctl volume …`

use super::attachment;
use super::connect::{Manager, Session, answer, object};
use super::copy;
use super::failure::Failure;
use super::limits::LimitArgs;
use super::lost::{LostArgs, close};
use super::moving::{self, MoveArgs};
use super::output::{self, Format, fields, table};
use super::stats::{self, StatsArgs};
use super::wait::{Until, settle};
use crate::model::{
    Attachment, AttachmentSpec, ByteSize, Kind, Object, PoolId, Service, ServiceId, ServiceState, Volume,
};
use crate::rpc::proto;
use anyhow::{Result, bail};
use clap::Subcommand;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a volume: placed, sized, exported, and reading as zeros
    #[command(
        after_help = "Examples:\n  symphony ctl volume create db --size 10GiB --pool fast\n  symphony ctl volume create db-copy --from-volume db\n  symphony ctl volume create db-old --from-snapshot monday\n  symphony ctl volume create web --image ubuntu-24.04 --size 40GiB"
    )]
    Create {
        name: String,
        /// As 512MiB, 10G (powers of 1024), 10GB (powers of 1000), or bytes
        #[arg(long, env = "SYMPHONY_VOLUME_SIZE", allow_hyphen_values = true)]
        #[arg(required_unless_present_any = ["from_snapshot", "from_volume", "image"])]
        size: Option<ByteSize>,
        /// Name or id [default: the ready pool with the most free space]
        #[arg(long, env = "SYMPHONY_VOLUME_POOL")]
        pool: Option<String>,
        /// Begin with a snapshot's bytes: its name or id
        #[arg(long, env = "SYMPHONY_FROM_SNAPSHOT", conflicts_with = "from_volume")]
        from_snapshot: Option<String>,
        /// Begin with another volume's bytes as they are now: its name or id
        #[arg(long, env = "SYMPHONY_FROM_VOLUME")]
        from_volume: Option<String>,
        /// Begin with an image's content: its name or id
        #[arg(long, env = "SYMPHONY_IMAGE", conflicts_with_all = ["from_volume", "from_snapshot"])]
        image: Option<String>,
    },
    /// All volumes
    #[command(visible_alias = "ls")]
    List,
    /// One volume, and how to reach it
    Get {
        /// Name or id
        volume: String,
    },
    /// Grow a volume while it is in use, clients see it when they connect again; or shrink one that nobody uses
    Resize {
        /// Name or id
        volume: String,
        /// The new size
        #[arg(long, env = "SYMPHONY_VOLUME_NEW_SIZE", allow_hyphen_values = true)]
        size: ByteSize,
        /// Let it become smaller: what is behind the new end is lost for ever
        #[arg(long, env = "SYMPHONY_ALLOW_SHRINK", value_parser = clap::builder::BoolishValueParser::new())]
        allow_shrink: bool,
    },
    /// Put a volume's bytes back to those of one of its snapshots; nobody may be using it
    Revert {
        /// Name or id
        volume: String,
        /// The snapshot's name or id
        #[arg(long, env = "SYMPHONY_SNAPSHOT")]
        to: String,
    },
    /// Limit what all clients of a volume together may ask of it, while it is in use
    #[command(
        after_help = "What is not named stays as it is. Each limit holds over any time but for what was saved up; connections \
                            that want more than there is get the same share each. Nobody is cut off.\n\
                            Examples:\n  symphony ctl volume set db --iops 2000 --bandwidth 100MiB/s --burst 5s\n  \
                            symphony ctl volume set db --iops none"
    )]
    Set {
        /// Name or id
        volume: String,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Move a volume that nobody uses to another pool, also on another host
    #[command(
        after_help = "The volume is not served while its bytes are copied, and nobody can be attached; --cancel, and removing \
                      it, call that off. What is copied is compared before the volume is served from there, under its name \
                      and a new id; only then its former bytes are destroyed. A volume with snapshots does not move.\n\
                      Example: symphony ctl volume move db --pool fast"
    )]
    Move(MoveArgs),
    /// How volumes are used: operations, bytes, latency, queue depth, errors
    Stats(StatsArgs),
    /// Destroy a volume and its data; clients are cut off
    #[command(
        visible_alias = "rm",
        after_help = "Without --wipe the space is given back as it is: nobody else reads it, since new volumes read as zeros. What \
                      its snapshots kept is overwritten by `snapshot remove --wipe`; what copies and shrinking have left elsewhere \
                      on the disks is not. Wiping goes on \
                      where it stopped when the block service dies; if the disk fails, the volume says so, and --no-wipe \
                      removes it as it is."
    )]
    Remove {
        /// Name or id
        volume: String,
        /// Overwrite its bytes with zeros before its space is given back; in pools of the driver lvm
        #[arg(long, env = "SYMPHONY_VOLUME_WIPE", value_parser = clap::builder::BoolishValueParser::new())]
        wipe: bool,
        /// Give up on overwriting that was asked for before
        #[arg(long, conflicts_with = "wipe", env = "SYMPHONY_VOLUME_NO_WIPE", value_parser = clap::builder::BoolishValueParser::new())]
        no_wipe: bool,
        #[command(flatten)]
        lost: LostArgs,
    },
    /// Let a client use a volume, alone unless it is shared
    #[command(
        after_help = "Without --shared nobody else may use the volume, peers on the block service's own host included; \
                            it is ready once nobody else does.\nExample: symphony ctl volume attach db --client web-01"
    )]
    Attach {
        /// Name or id
        volume: String,
        /// The client's name or id
        #[arg(long, env = "SYMPHONY_CLIENT")]
        client: String,
        /// Let the client read only
        #[arg(long, env = "SYMPHONY_READ_ONLY", value_parser = clap::builder::BoolishValueParser::new())]
        read_only: bool,
        /// Let others use the volume too
        #[arg(long, env = "SYMPHONY_SHARED", value_parser = clap::builder::BoolishValueParser::new())]
        shared: bool,
    },
    /// Cut a client off: done when nothing of it is in flight and it cannot come back
    Detach {
        /// Name or id
        volume: String,
        /// The client's name or id
        #[arg(long, env = "SYMPHONY_CLIENT")]
        client: String,
        #[command(flatten)]
        lost: LostArgs,
    },
    /// Copy a file onto a volume; runs of zeros are not sent
    #[command(after_help = "The rest of a larger volume is left as it is. Prints the SHA-256 of what was copied.")]
    Upload {
        /// Name or id
        volume: String,
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// Copy a volume into a file; holes stay holes
    Download {
        /// Name or id
        volume: String,
        /// The file, or - for standard output
        file: PathBuf,
    },
}

pub fn expect(object: Object) -> Result<Volume> {
    match object {
        Object::Volume(volume) => Ok(volume),
        other => bail!("the manager answered with a {} instead of a volume", other.kind()),
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    // Asked of block services, which a manager may have to say where they are.
    if let Verb::Stats(args) = verb {
        return stats::run(session, args).await;
    }
    if let Verb::Move(args) = verb {
        return moving::run(session, args).await;
    }
    let mut manager = session.manager().await?;
    match verb {
        Verb::Stats(_) | Verb::Move(_) => Ok(()),
        Verb::Set { volume, limits } => {
            let volume = object(answer(manager.client.set_volume(limits.request(volume)).await, "manager")?)?;
            let volume = expect(settle(session, volume, Until::Ready).await?)?;
            output::one(session.format, &volume, volume.meta.name.as_str(), |volume| {
                let (name, phase) = (&volume.meta.name, volume.status.phase);
                format!("volume '{name}' is {phase}, limits: {}\n", volume.spec.limits)
            })
        }
        Verb::Create { name, size, pool, from_snapshot, from_volume, image } => {
            use proto::create_volume_request::Source;
            // A size of nothing is a mistake, and not the same as none.
            if size.is_some_and(|size| size.as_u64() == 0) {
                return Err(Failure::Usage("a volume's size must not be zero".into()).into());
            }
            let source = from_snapshot.map(Source::FromSnapshot).or(from_volume.map(Source::FromVolume));
            let source = source.or(image.map(Source::Image));
            let (size, pool) = (size.map_or(0, ByteSize::as_u64), pool.unwrap_or_default());
            let request = proto::CreateVolumeRequest { name, size, pool, source };
            let volume = object(answer(manager.client.create_volume(request).await, "manager")?)?;
            settled(session, volume).await
        }
        Verb::Resize { volume, size, allow_shrink } => {
            let request = proto::ResizeVolumeRequest { reference: volume, size: size.as_u64(), allow_shrink };
            let volume = object(answer(manager.client.resize_volume(request).await, "manager")?)?;
            settled(session, volume).await
        }
        Verb::Revert { volume, to } => {
            let request = proto::RevertVolumeRequest { volume, snapshot: to };
            let volume = object(answer(manager.client.revert_volume(request).await, "manager")?)?;
            settled(session, volume).await
        }
        Verb::List => {
            let volumes: Vec<Volume> =
                manager.list(Kind::Volume).await?.into_iter().map(expect).collect::<Result<_>>()?;
            let pools = super::pool::all(&mut manager).await?;
            let names: BTreeMap<PoolId, String> =
                pools.into_iter().map(|pool| (pool.meta.id, pool.meta.name.to_string())).collect();
            let down = silent_services(&mut manager).await?;
            let header = ["NAME", "SIZE", "PHASE", "POOL", "EXPORT", "MESSAGE"];
            let people = |volumes: &[Volume]| table(&header, volumes.iter().map(|it| row(it, &names, &down)).collect());
            output::list(session.format, &volumes, |volume| volume.meta.name.to_string(), people)
        }
        Verb::Get { volume } => {
            let volume = expect(manager.get(Kind::Volume, &volume).await?)?;
            // Only people are told: a document is the object and nothing else.
            let attached = match session.format {
                Format::Table | Format::Wide => {
                    attachment::of_volume(&mut manager, &volume.meta.id.to_string()).await?
                }
                Format::Json | Format::Yaml | Format::Name => Vec::new(),
            };
            let moving = moving::line(&mut manager, &volume).await?;
            output::one(session.format, &volume, volume.meta.name.as_str(), |volume| {
                describe(volume, &attached, moving)
            })
        }
        Verb::Remove { volume, lost, .. } if lost.lost => close(session, Kind::Volume, &volume, lost.yes).await,
        Verb::Remove { volume, wipe, no_wipe, .. } => {
            let wipe = (wipe || no_wipe).then_some(wipe);
            let request = proto::RemoveVolumeRequest { reference: volume, wipe };
            let volume = object(answer(manager.client.remove_volume(request).await, "manager")?)?;
            let volume = settle(session, volume, Until::Gone).await?;
            let verb = if session.wait { "removed" } else { "removing" };
            output::one(session.format, &volume, volume.name(), |volume| format!("{verb} volume '{}'\n", volume.name()))
        }
        Verb::Attach { volume, client, read_only, shared } => {
            let request = proto::AttachVolumeRequest { volume, client, read_only, shared };
            let held = object(answer(manager.client.attach_volume(request).await, "manager")?)?;
            let held = attachment::expect(settle(session, held, Until::Ready).await?)?;
            output::one(session.format, &held, &held.label(), |held| {
                let AttachmentSpec { volume_name, client_name, .. } = &held.spec;
                let (access, mode, phase) = (held.spec.access(), held.spec.mode(), held.status.phase);
                format!("volume '{volume_name}' is attached to '{client_name}' ({access}, {mode}): {phase}\n")
            })
        }
        Verb::Detach { volume, client, lost } if lost.lost => {
            close(session, Kind::Attachment, &format!("{volume}/{client}"), lost.yes).await
        }
        Verb::Detach { volume, client, .. } => {
            let request = proto::DetachVolumeRequest { volume, client };
            let held = object(answer(manager.client.detach_volume(request).await, "manager")?)?;
            let held = attachment::expect(settle(session, held, Until::Gone).await?)?;
            let verb = if session.wait { "detached" } else { "detaching" };
            output::one(session.format, &held, &held.label(), |held| {
                format!("{verb} '{}' from volume '{}'\n", held.spec.client_name, held.spec.volume_name)
            })
        }
        Verb::Upload { volume, file } => {
            let volume = expect(manager.get(Kind::Volume, &volume).await?)?;
            copy::upload(session, volume, file, session.credentials()?).await
        }
        Verb::Download { volume, file } => {
            let volume = expect(manager.get(Kind::Volume, &volume).await?)?;
            copy::download(session, volume, file, session.credentials()?).await
        }
    }
}

async fn settled(session: &Session, volume: Object) -> Result<()> {
    let volume = expect(settle(session, volume, Until::Ready).await?)?;
    output::one(session.format, &volume, volume.meta.name.as_str(), |volume| {
        let uris: String = volume.status.exports.iter().map(|export| format!("  {}\n", export.uri)).collect();
        format!("volume '{}' ({}) is {}\n{uris}", volume.meta.name, volume.spec.size, volume.status.phase)
    })
}

/// Block services that hold no lease now: what was last known of their volumes may not be so any more.
async fn silent_services(manager: &mut Manager) -> Result<BTreeSet<ServiceId>> {
    let services = manager.list(Kind::Service).await?;
    let silent = |service: Service| (service.status.state != ServiceState::Ready).then_some(service.meta.id);
    services.into_iter().map(super::service::expect).filter_map(|service| service.map(silent).transpose()).collect()
}

fn row(volume: &Volume, pools: &BTreeMap<PoolId, String>, down: &BTreeSet<ServiceId>) -> Vec<String> {
    let status = &volume.status;
    let cut_off = status.placement.iter().all(|replica| down.contains(&replica.service));
    let under_way = || Some(format!("{}", status.progress?));
    let message = if cut_off { Some("its service is down".to_owned()) } else { status.message.clone() };
    let moves = || volume.successor().map(|_| "it is being moved".to_owned());
    let message = message.or_else(under_way).or_else(moves);
    let pool = |id: PoolId| pools.get(&id).cloned().unwrap_or_else(|| id.to_string());
    vec![
        volume.meta.name.to_string(),
        volume.spec.size.to_string(),
        status.phase.to_string(),
        status.placement.iter().map(|replica| pool(replica.pool)).collect::<Vec<_>>().join(", "),
        status.exports.first().map(|export| export.uri.clone()).unwrap_or_default(),
        message.unwrap_or_default(),
    ]
}

fn describe(volume: &Volume, attached: &[Attachment], moving: Option<String>) -> String {
    let status = &volume.status;
    let mut rows = vec![
        ("Name", volume.meta.name.to_string()),
        ("Id", volume.meta.id.to_string()),
        ("Size", format!("{} ({} bytes)", volume.spec.size, volume.spec.size.as_u64())),
        ("Limits", volume.spec.limits.to_string()),
        ("Phase", status.phase.to_string()),
        ("Message", status.message.clone().unwrap_or_else(|| "-".into())),
        ("Generation", volume.meta.generation.as_u64().to_string()),
    ];
    if let Some(progress) = status.progress {
        let doing = if volume.spec.wipe { "Wiped" } else { "Filled" };
        rows.push((doing, progress.to_string()));
    }
    if let Some(tie) = &volume.spec.image {
        rows.push(("Image", tie.image.to_string()));
    } else if let Some(source) = volume.spec.source {
        rows.push(("Copy of", source.to_string()));
    }
    rows.extend(moving.map(|moving| ("Moving", moving)));
    for replica in &status.placement {
        rows.push(("Placed", format!("pool {} on service {}", replica.pool, replica.service)));
    }
    for export in &status.exports {
        rows.push(("Export", export.uri.clone()));
    }
    for held in attached {
        let AttachmentSpec { client_name, .. } = &held.spec;
        let (access, mode, phase) = (held.spec.access(), held.spec.mode(), held.status.phase);
        rows.push(("Attached", format!("'{client_name}' ({access}, {mode}): {phase}")));
    }
    rows.push(("Created", volume.meta.created_at.to_string()));
    fields(&rows)
}
