//! `ctl snapshot …`

use super::connect::{Session, answer, object};
use super::failure::Failure;
use super::lost::{LostArgs, close};
use super::output::{self, fields, table};
use super::wait::{Until, settle};
use crate::model::{ByteSize, Fill, Kind, Level, Object, Room, SizeError, Snapshot};
use crate::rpc::proto;
use anyhow::{Result, bail};
use clap::Subcommand;
use proto::create_snapshots_request::Wanted;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Keep volumes as they are at this instant, while they are in use
    #[command(
        override_usage = "symphony ctl snapshot create VOLUME NAME\n       symphony ctl snapshot create --volumes A,B,… NAME",
        after_help = "What was written and acknowledged is in it, as after a power cut. Writers wait for a moment and see no \
                      error. With --volumes all are taken at the same instant, and called NAME-VOLUME. In a pool of \
                      driver lvm a snapshot whose volume changes more than it has --room for is spoilt: the volume is not \
                      harmed, and `snapshot get` shows how much is left.\n\
                      Examples:\n  symphony ctl snapshot create db monday\n  \
                      symphony ctl snapshot create --volumes db,db-log monday\n  symphony ctl snapshot create db before-upgrade --room 50%"
    )]
    Create {
        /// The volume's name or id, and what the snapshot is to be called
        #[arg(value_names = ["VOLUME", "NAME"], num_args = 1..=2, required = true)]
        names: Vec<String>,
        /// Volumes by name or id, divided by commas: all at the same instant
        #[arg(long, env = "SYMPHONY_VOLUMES", value_delimiter = ',')]
        volumes: Vec<String>,
        /// In a pool of driver lvm, where the snapshot's space is set aside: how much its volume may change, as 10GiB, or as a
        /// share of its size [default: 20%, at least 1GiB; 100% is all that it can come to need]
        #[arg(long, env = "SYMPHONY_SNAPSHOT_ROOM", value_name = "SIZE|PERCENT%", value_parser = room, allow_hyphen_values = true)]
        room: Option<Room>,
    },
    /// All snapshots, or those of one volume
    #[command(visible_alias = "ls")]
    List {
        /// Name or id
        #[arg(long, env = "SYMPHONY_VOLUME")]
        volume: Option<String>,
    },
    /// One snapshot
    Get {
        /// Name or id
        snapshot: String,
    },
    /// Destroy a snapshot; volumes that were made of it stay
    #[command(
        visible_alias = "rm",
        after_help = "In a pool of driver lvm a snapshot's room holds what its volume was before it changed. Without --wipe that is \
                      given back as it is: nobody else reads it, since new volumes read as zeros. What copies \
                      and shrinking have left elsewhere on the disks is not overwritten. Wiping goes on where it stopped when the \
                      block service dies, and the volume can be used meanwhile; if the disk fails, the snapshot says so, and \
                      --no-wipe removes it as it is.\n\
                      Example: symphony ctl snapshot remove monday --wipe"
    )]
    Remove {
        /// Name or id
        snapshot: String,
        /// Overwrite what its room holds with zeros before that is given back; in pools of the driver lvm
        #[arg(long, env = "SYMPHONY_SNAPSHOT_WIPE", value_parser = clap::builder::BoolishValueParser::new())]
        wipe: bool,
        /// Give up on overwriting that was asked for before
        #[arg(long, conflicts_with = "wipe", env = "SYMPHONY_SNAPSHOT_NO_WIPE", value_parser = clap::builder::BoolishValueParser::new())]
        no_wipe: bool,
        #[command(flatten)]
        lost: LostArgs,
    },
}

pub fn expect(object: Object) -> Result<Snapshot> {
    match object {
        Object::Snapshot(snapshot) => Ok(snapshot),
        other => bail!("the manager answered with a {} instead of a snapshot", other.kind()),
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut manager = session.manager().await?;
    match verb {
        Verb::Create { names, volumes, room } => {
            let (wanted, room) = (wanted(&names, &volumes)?, room.map(Into::into));
            let request = proto::CreateSnapshotsRequest { wanted, room };
            let made = answer(manager.client.create_snapshots(request).await, "manager")?.objects;
            let mut taken = Vec::new();
            for snapshot in made {
                taken.push(expect(settle(session, object(snapshot)?, Until::Ready).await?)?);
            }
            let name = |snapshot: &Snapshot| snapshot.meta.name.to_string();
            output::list(session.format, &taken, name, |taken| taken.iter().map(sentence).collect())
        }
        Verb::List { volume } => {
            let kind = proto::Kind::from(Kind::Snapshot).into();
            let request = proto::ListRequest { kind, volume: volume.unwrap_or_default(), ..Default::default() };
            let snapshots: Vec<Snapshot> =
                manager.pages(request).await?.into_iter().map(expect).collect::<Result<_>>()?;
            let header = ["NAME", "VOLUME", "SIZE", "ROOM USED", "PHASE", "TAKEN", "MESSAGE"];
            let people = |snapshots: &[Snapshot]| table(&header, snapshots.iter().map(row).collect());
            output::list(session.format, &snapshots, |snapshot| snapshot.meta.name.to_string(), people)
        }
        Verb::Get { snapshot } => {
            let snapshot = expect(manager.get(Kind::Snapshot, &snapshot).await?)?;
            output::one(session.format, &snapshot, snapshot.meta.name.as_str(), describe)
        }
        Verb::Remove { snapshot, lost, .. } if lost.lost => close(session, Kind::Snapshot, &snapshot, lost.yes).await,
        Verb::Remove { snapshot: reference, wipe, no_wipe, .. } => {
            let asked = if wipe || no_wipe {
                manager.client.wipe_snapshot(proto::WipeSnapshotRequest { reference, wipe }).await
            } else {
                manager.client.remove_snapshot(proto::RemoveRequest { reference }).await
            };
            let snapshot = object(answer(asked, "manager")?)?;
            let snapshot = settle(session, snapshot, Until::Gone).await?;
            let verb = if session.wait { "removed" } else { "removing" };
            output::one(session.format, &snapshot, snapshot.name(), |it| format!("{verb} snapshot '{}'\n", it.name()))
        }
    }
}

/// Which snapshots of what volumes the words on the command line ask for.
fn wanted(names: &[String], volumes: &[String]) -> Result<Vec<Wanted>> {
    let usage = |text: &str| Err(Failure::Usage(text.into()).into());
    match (names, volumes) {
        ([volume, name], []) => Ok(vec![Wanted { volume: volume.clone(), name: name.clone() }]),
        ([_], []) => usage("name the volume and the snapshot: `symphony ctl snapshot create VOLUME NAME`"),
        ([name], volumes) => {
            let one = |volume: &String| Wanted { volume: volume.clone(), name: format!("{name}-{volume}") };
            Ok(volumes.iter().map(one).collect())
        }
        _ => usage("with --volumes give one name only: `symphony ctl snapshot create --volumes A,B NAME`"),
    }
}

fn sentence(snapshot: &Snapshot) -> String {
    let (name, volume, phase) = (&snapshot.meta.name, &snapshot.spec.volume_name, snapshot.status.phase);
    format!("snapshot '{name}' of volume '{volume}' ({}) is {phase}\n", size(snapshot))
}

fn size(snapshot: &Snapshot) -> ByteSize {
    snapshot.status.size.unwrap_or(snapshot.status.promised)
}

/// A size, or a share with its sign: a bare number is bytes.
fn room(text: &str) -> Result<Room, String> {
    let room = match text.trim().strip_suffix('%') {
        Some(number) => {
            let percent =
                number.parse().map_err(|_| format!("'{text}' is not a share of a volume: write it as 20%"))?;
            Room::Percent(percent)
        }
        None => Room::Size(text.parse().map_err(|error: SizeError| error.to_string())?),
    };
    room.fault().map_or(Ok(room), Err)
}

/// Of a snapshot that has room of its own.
fn used(snapshot: &Snapshot) -> Option<String> {
    let status = &snapshot.status;
    if status.spoilt {
        return Some("all: spoilt".into());
    }
    let Fill { room, used } = status.fill?;
    let percent = u128::from(used.as_u64()) * 100 / u128::from(room.as_u64().max(1));
    let level = if status.level > Level::Ok { format!(" ({})", status.level) } else { String::new() };
    Some(format!("{percent}% of {room}{level}"))
}

fn row(snapshot: &Snapshot) -> Vec<String> {
    let status = &snapshot.status;
    let under_way = || Some(status.progress?.to_string());
    vec![
        snapshot.meta.name.to_string(),
        snapshot.spec.volume_name.to_string(),
        size(snapshot).to_string(),
        used(snapshot).unwrap_or_else(|| "-".into()),
        status.phase.to_string(),
        status.taken_at.map_or_else(|| "-".into(), |at| at.to_string()),
        status.message.clone().or_else(under_way).unwrap_or_default(),
    ]
}

fn describe(snapshot: &Snapshot) -> String {
    let (spec, status) = (&snapshot.spec, &snapshot.status);
    let mut rows = vec![
        ("Name", snapshot.meta.name.to_string()),
        ("Id", snapshot.meta.id.to_string()),
        ("Volume", format!("{} ({})", spec.volume_name, spec.volume)),
        ("Size", format!("{} ({} bytes)", size(snapshot), size(snapshot).as_u64())),
        ("Phase", status.phase.to_string()),
        ("Message", status.message.clone().unwrap_or_else(|| "-".into())),
        ("Taken", status.taken_at.map_or_else(|| "-".into(), |at| at.to_string())),
    ];
    if let Some(room) = status.fill.map(|fill| fill.room).or(status.room) {
        let words = spec.room.map(|words| format!(" (asked for: {words})")).unwrap_or_default();
        rows.push(("Room", format!("{room}{words}")));
        rows.push(("Used", used(snapshot).unwrap_or_else(|| "-".into())));
    }
    rows.extend(status.progress.map(|progress| ("Wiped", progress.to_string())));
    let together = spec.set.iter().filter(|member| member.snapshot != snapshot.meta.id);
    rows.extend(together.map(|member| ("Taken with", member.name.to_string())));
    for replica in &status.placement {
        rows.push(("Placed", format!("pool {} on service {}", replica.pool, replica.service)));
    }
    rows.push(("Created", snapshot.meta.created_at.to_string()));
    fields(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn room_is_a_size_or_a_share_and_anything_else_is_named() {
        assert_eq!(room("10GiB"), Ok(Room::Size(ByteSize::mib(10 << 10))));
        assert_eq!((room("20%"), room(" 100% ")), (Ok(Room::Percent(20)), Ok(Room::Percent(100))));
        for text in ["", "0", "0%", "101%", "-1%", "1.5%", "%", "20 percent", "-1GiB"] {
            assert!(room(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_volume_or_several_are_told_apart_and_half_a_command_is_refused() {
        let one = wanted(&words(&["db", "monday"]), &[]).unwrap();
        assert_eq!(one, [Wanted { volume: "db".into(), name: "monday".into() }]);
        let two = wanted(&words(&["monday"]), &words(&["db", "log"])).unwrap();
        assert_eq!(two.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["monday-db", "monday-log"]);
        assert!(wanted(&words(&["db"]), &[]).is_err());
        assert!(wanted(&words(&["db", "monday"]), &words(&["db"])).is_err());
    }
}
