//! `ctl pool …`

use super::connect::{Manager, Session, answer, object};
use super::failure::Failure;
use super::lost::{LostArgs, close};
use super::output::{self, Format, fields, table};
use super::rules::RuleArgs;
use super::wait::{Until, settle};
use crate::model::{ByteSize, Devices, Driver, Kind, Level, Object, Pool, SizeError};
use crate::rpc::proto;
use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DriverName {
    /// Sparse files in a directory
    File,
    /// Logical volumes on devices of the pool's own, each with all of its space
    Lvm,
    /// Logical volumes that share a thin pool, with snapshots that cost nothing until something changes
    LvmThin,
}

/// Where a pool's bytes are to be, in the user's words.
#[derive(Debug, Args)]
pub struct Place {
    #[arg(long, value_enum, default_value = "file", env = "SYMPHONY_POOL_DRIVER")]
    driver: DriverName,
    /// Of the driver file: a directory of the block service's host, empty or not there yet
    #[arg(long, env = "SYMPHONY_POOL_PATH")]
    path: Option<PathBuf>,
    /// Of the driver file: how much of the file system the pool may promise, as 500GiB [default: all that is free]
    #[arg(long, env = "SYMPHONY_POOL_LIMIT")]
    limit: Option<ByteSize>,
    /// Of the driver lvm-thin: begin with a quarter of this (1GiB at least), and extend by fifths whenever 70% are used, up
    /// to this and to what the devices hold, as 500GiB [default: all of the devices from the beginning]
    #[arg(long, env = "SYMPHONY_POOL_CEILING", allow_hyphen_values = true)]
    ceiling: Option<ByteSize>,
    #[command(flatten)]
    disks: Disks,
}

#[derive(Debug, Args)]
pub struct Disks {
    /// Of the drivers lvm and lvm-thin: a disk or partition of the block service's host that carries nothing, best by a
    /// path below /dev/disk/by-id; can be repeated
    #[arg(long = "device", env = "SYMPHONY_POOL_DEVICES", value_delimiter = ',', value_name = "PATH")]
    devices: Vec<PathBuf>,
    /// One of these devices that may lose all that it carries; can be repeated
    #[arg(long, env = "SYMPHONY_POOL_WIPE", value_delimiter = ',', value_name = "PATH")]
    wipe: Vec<PathBuf>,
}

impl Place {
    fn driver(self) -> Result<Driver> {
        let usage = |text: &str| Err(Failure::Usage(text.to_owned()).into());
        let Self { driver, path, limit, ceiling, disks } = self;
        let devices = Devices { devices: disks.devices, wipe: disks.wipe, ceiling };
        let driver = match (driver, path) {
            (DriverName::File, _) if ceiling.is_some() => {
                return usage("--ceiling is for the driver lvm-thin; a pool of files has a --limit");
            }
            (DriverName::File, _) if devices != Devices::default() => {
                return usage("--device and --wipe are for the drivers lvm and lvm-thin; a pool of files has a --path");
            }
            (DriverName::File, None) => return usage("a pool of files needs a --path"),
            (DriverName::File, Some(path)) if !path.is_absolute() => {
                let text = "--path must be absolute, as it is the block service's host's";
                return usage(&format!("{text}: {} is not", path.display()));
            }
            (DriverName::File, Some(path)) => Driver::File { path, limit },
            (DriverName::Lvm | DriverName::LvmThin, Some(_)) => {
                return usage("--path is for the driver file; a pool of this driver has a --device");
            }
            (DriverName::Lvm | DriverName::LvmThin, None) if limit.is_some() => {
                return usage("--limit is for the driver file; a pool of this driver has its devices for itself");
            }
            (DriverName::Lvm, None) => Driver::Lvm(devices),
            (DriverName::LvmThin, None) => Driver::LvmThin(devices),
        };
        checked(driver)
    }
}

/// What could not be said to a manager, or would make no sense to it.
fn checked(driver: Driver) -> Result<Driver> {
    let paths = match &driver {
        Driver::File { path, .. } => std::slice::from_ref(path),
        Driver::Lvm(devices) | Driver::LvmThin(devices) => &devices.devices,
    };
    let odd = paths.iter().find(|path| path.to_str().is_none());
    let fault = odd.map(|path| format!("{} is not UTF-8", path.display())).or_else(|| driver.fault());
    fault.map_or(Ok(driver), |fault| Err(Failure::Usage(fault).into()))
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a pool on a block service
    #[command(after_help = EXAMPLES)]
    Create {
        name: String,
        #[command(flatten)]
        place: Place,
        /// The block service: id or host name [default: the only one there is]
        #[arg(long, env = "SYMPHONY_POOL_SERVICE")]
        service: Option<String>,
        #[command(flatten)]
        rules: RuleArgs,
    },
    /// Change how a pool's space is promised; what has been promised stays so
    #[command(after_help = "Example: symphony ctl pool set fast --overcommit 2 --warn-at 70%")]
    Set {
        /// Name or id
        pool: String,
        #[command(flatten)]
        rules: RuleArgs,
        /// Of a pool of the driver lvm-thin: how large it may become by itself as it fills up, or none: as large as its
        /// devices, at once
        #[arg(long, env = "SYMPHONY_POOL_CEILING", value_name = "SIZE|none", value_parser = ceiling, allow_hyphen_values = true)]
        ceiling: Option<Ceiling>,
    },
    /// All pools
    #[command(visible_alias = "ls")]
    List,
    /// One pool
    Get {
        /// Name or id
        pool: String,
    },
    /// Give more devices to a pool of the driver lvm or lvm-thin, while it is in use
    Extend {
        /// Name or id
        pool: String,
        #[command(flatten)]
        disks: Disks,
        /// A device that was named before and could not be taken, and is wanted no longer; can be repeated
        #[arg(long, env = "SYMPHONY_POOL_CANCEL", value_delimiter = ',', value_name = "PATH")]
        cancel: Vec<PathBuf>,
    },
    /// Let go of an empty pool; its directory stays, its devices are blank again
    #[command(visible_alias = "rm")]
    Remove {
        /// Name or id
        pool: String,
        #[command(flatten)]
        lost: LostArgs,
    },
}

const EXAMPLES: &str = "\
Examples:
  symphony ctl pool create fast --driver file --path /srv/fast
  symphony ctl device list                           what there is, and what it carries
  symphony ctl pool create nvme --driver lvm-thin --device /dev/disk/by-id/nvme-1 --device /dev/disk/by-id/nvme-2
  symphony ctl pool create nvme --driver lvm-thin --device /dev/disk/by-id/nvme-1 --ceiling 500GiB
A device that carries anything is refused unless --wipe names it; one that is mounted or held is refused always.";

pub fn expect(object: Object) -> Result<Pool> {
    match object {
        Object::Pool(pool) => Ok(pool),
        other => bail!("the manager answered with a {} instead of a pool", other.kind()),
    }
}

/// All pools there are.
pub async fn all(manager: &mut Manager) -> Result<Vec<Pool>> {
    manager.list(Kind::Pool).await?.into_iter().map(expect).collect()
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let mut manager = session.manager().await?;
    match verb {
        Verb::Create { name, place, service, rules } => {
            let driver = Some((&place.driver()?).into());
            let (service, rules) = (service.unwrap_or_default(), Some(rules.changes()));
            let request = proto::CreatePoolRequest { name, service, driver, rules };
            let pool = object(answer(manager.client.create_pool(request).await, "manager")?)?;
            made(session, pool).await
        }
        Verb::Extend { pool, disks, cancel } => {
            let devices = Devices { devices: disks.devices, wipe: disks.wipe, ceiling: None };
            if cancel.is_empty() || devices != Devices::default() {
                checked(Driver::Lvm(devices.clone()))?;
            }
            let cancel = cancel.iter().map(|path| path.to_string_lossy().into_owned()).collect();
            let request = proto::ExtendPoolRequest { reference: pool, more: Some((&devices).into()), cancel };
            let pool = object(answer(manager.client.extend_pool(request).await, "manager")?)?;
            made(session, pool).await
        }
        Verb::Set { pool, rules, ceiling } => {
            if rules.is_empty() && ceiling.is_none() {
                let text = "name what to change: --overcommit, --warn-at, --refuse-at or --ceiling";
                return Err(Failure::Usage(text.into()).into());
            }
            let ceiling = ceiling.map(|Ceiling(size)| proto::LimitChange { to: size.map(ByteSize::as_u64) });
            let request = proto::SetPoolRequest { reference: pool, rules: Some(rules.changes()), ceiling };
            let mut pool = object(answer(manager.client.set_pool(request).await, "manager")?)?;
            if ceiling.is_some() {
                pool = settle(session, pool, Until::Ready).await?;
            }
            let pool = expect(pool)?;
            output::one(session.format, &pool, pool.meta.name.as_str(), |pool| {
                format!("pool '{}': {}, {} left to promise\n", pool.meta.name, pool.spec.rules, size(pool.free()))
            })
        }
        Verb::List => {
            let pools = all(&mut manager).await?;
            let wide = session.format == Format::Wide;
            let mut header = vec!["NAME", "DRIVER", "PHASE", "CAPACITY", "RESERVED", "USED", "SERVICE", "MESSAGE"];
            header.extend(wide.then_some("PLACE"));
            let people = |pools: &[Pool]| table(&header, pools.iter().map(|pool| row(pool, wide)).collect());
            output::list(session.format, &pools, |pool| pool.meta.name.to_string(), people)
        }
        Verb::Get { pool } => {
            let pool = expect(manager.get(Kind::Pool, &pool).await?)?;
            output::one(session.format, &pool, pool.meta.name.as_str(), describe)
        }
        Verb::Remove { pool, lost } if lost.lost => close(session, Kind::Pool, &pool, lost.yes).await,
        Verb::Remove { pool, .. } => {
            let request = proto::RemoveRequest { reference: pool };
            let pool = object(answer(manager.client.remove_pool(request).await, "manager")?)?;
            let pool = settle(session, pool, Until::Gone).await?;
            let verb = if session.wait { "removed" } else { "removing" };
            output::one(session.format, &pool, pool.name(), |pool| format!("{verb} pool '{}'\n", pool.name()))
        }
    }
}

/// Waits until the pool is what it is to be, and says so.
async fn made(session: &Session, pool: Object) -> Result<()> {
    let pool = expect(settle(session, pool, Until::Ready).await?)?;
    output::one(session.format, &pool, pool.meta.name.as_str(), |pool| {
        let size = pool.status.capacity.map(|size| format!(" ({size})")).unwrap_or_default();
        format!("pool '{}'{size} is {}\n", pool.meta.name, pool.status.phase)
    })
}

/// None: it has all that its devices hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceiling(Option<ByteSize>);

fn ceiling(text: &str) -> Result<Ceiling, String> {
    match text.trim() {
        "none" => Ok(Ceiling(None)),
        text => text.parse().map(|size| Ceiling(Some(size))).map_err(|error: SizeError| error.to_string()),
    }
}

fn size(size: Option<ByteSize>) -> String {
    size.map_or_else(|| "-".into(), |size| size.to_string())
}

/// With the level where it is worth a word.
fn used(pool: &Pool) -> String {
    let level = (pool.status.level > Level::Ok).then(|| format!(" ({})", pool.status.level));
    format!("{}{}", size(pool.status.used), level.unwrap_or_default())
}

fn row(pool: &Pool, wide: bool) -> Vec<String> {
    let status = &pool.status;
    let mut row = vec![
        pool.meta.name.to_string(),
        pool.spec.driver.to_string(),
        status.phase.to_string(),
        size(status.capacity),
        status.reserved.to_string(),
        used(pool),
        pool.spec.service.to_string(),
        status.message.clone().unwrap_or_default(),
    ];
    row.extend(wide.then(|| pool.spec.driver.place()));
    row
}

fn describe(pool: &Pool) -> String {
    let status = &pool.status;
    let driver = &pool.spec.driver;
    let place = if driver.devices().is_some() { "Devices" } else { "Path" };
    let limit = match driver {
        Driver::File { limit, .. } => *limit,
        Driver::Lvm(_) | Driver::LvmThin(_) => None,
    };
    fields(&[
        ("Name", pool.meta.name.to_string()),
        ("Id", pool.meta.id.to_string()),
        ("Phase", status.phase.to_string()),
        ("Message", status.message.clone().unwrap_or_else(|| "-".into())),
        ("Driver", pool.spec.driver.to_string()),
        (place, driver.place()),
        ("Limit", size(limit)),
        ("Ceiling", size(driver.devices().and_then(|devices| devices.ceiling))),
        ("Size now", size(status.size)),
        ("Capacity", size(status.capacity)),
        ("Reserved", status.reserved.to_string()),
        ("Used", used(pool)),
        ("Metadata", status.metadata.map_or("-".into(), |it| format!("{} of {} used", it.used, it.capacity))),
        ("Rules", pool.spec.rules.to_string()),
        ("Free", size(pool.free())),
        ("Snapshots", status.copies.map_or("-", |can| if can { "possible" } else { "impossible" }).into()),
        ("Service", pool.spec.service.to_string()),
        ("Created", pool.meta.created_at.to_string()),
    ])
}
