//! `ctl pool …`

use super::connect::{Manager, Session, answer, object};
use super::failure::Failure;
use super::output::{self, fields, table};
use super::rules::RuleArgs;
use super::wait::{Until, settle};
use crate::model::{ByteSize, Driver, Kind, Level, Object, Pool};
use crate::rpc::{file_driver, proto};
use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DriverName {
    /// Sparse files in a directory
    File,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a pool on a block service
    #[command(after_help = "Example: symphony ctl pool create fast --driver file --path /srv/fast")]
    Create {
        name: String,
        #[arg(long, value_enum, default_value = "file", env = "SYMPHONY_POOL_DRIVER")]
        driver: DriverName,
        /// A directory of the block service's host: empty, or not there yet
        #[arg(long, env = "SYMPHONY_POOL_PATH")]
        path: PathBuf,
        /// How much of the file system the pool may promise, as 500GiB [default: all that is free]
        #[arg(long, env = "SYMPHONY_POOL_LIMIT")]
        limit: Option<ByteSize>,
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
    },
    /// All pools
    #[command(visible_alias = "ls")]
    List,
    /// One pool
    Get {
        /// Name or id
        pool: String,
    },
    /// Let go of an empty pool; its directory stays
    #[command(visible_alias = "rm")]
    Remove {
        /// Name or id
        pool: String,
    },
}

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
        Verb::Create { name, driver: DriverName::File, path, limit, service, rules } => {
            let Some(text) = path.to_str() else {
                return Err(Failure::Usage(format!("{} is not UTF-8", path.display())).into());
            };
            if !path.is_absolute() {
                let text = format!("--path must be absolute, as it is the block service's host's: {text} is not");
                return Err(Failure::Usage(text).into());
            }
            let driver = Some(file_driver(text.to_owned(), limit));
            let (service, rules) = (service.unwrap_or_default(), Some(rules.changes()));
            let request = proto::CreatePoolRequest { name, service, driver, rules };
            let pool = object(answer(manager.client.create_pool(request).await, "manager")?)?;
            let pool = expect(settle(session, pool, Until::Ready).await?)?;
            output::one(session.format, &pool, pool.meta.name.as_str(), |pool| {
                let size = pool.status.capacity.map(|size| format!(" ({size})")).unwrap_or_default();
                format!("pool '{}'{size} is {}\n", pool.meta.name, pool.status.phase)
            })
        }
        Verb::Set { pool, rules } => {
            if rules.is_empty() {
                return Err(Failure::Usage("name what to change: --overcommit, --warn-at or --refuse-at".into()).into());
            }
            let request = proto::SetPoolRequest { reference: pool, rules: Some(rules.changes()) };
            let pool = expect(object(answer(manager.client.set_pool(request).await, "manager")?)?)?;
            output::one(session.format, &pool, pool.meta.name.as_str(), |pool| {
                format!("pool '{}': {}, {} left to promise\n", pool.meta.name, pool.spec.rules, size(pool.free()))
            })
        }
        Verb::List => {
            let pools = all(&mut manager).await?;
            let header = ["NAME", "DRIVER", "PHASE", "CAPACITY", "RESERVED", "USED", "SERVICE", "MESSAGE"];
            let people = |pools: &[Pool]| table(&header, pools.iter().map(row).collect());
            output::list(session.format, &pools, |pool| pool.meta.name.to_string(), people)
        }
        Verb::Get { pool } => {
            let pool = expect(manager.get(Kind::Pool, &pool).await?)?;
            output::one(session.format, &pool, pool.meta.name.as_str(), describe)
        }
        Verb::Remove { pool } => {
            let request = proto::RemoveRequest { reference: pool };
            let pool = object(answer(manager.client.remove_pool(request).await, "manager")?)?;
            let pool = settle(session, pool, Until::Gone).await?;
            let verb = if session.wait { "removed" } else { "removing" };
            output::one(session.format, &pool, pool.name(), |pool| format!("{verb} pool '{}'\n", pool.name()))
        }
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

fn row(pool: &Pool) -> Vec<String> {
    let status = &pool.status;
    vec![
        pool.meta.name.to_string(),
        pool.spec.driver.to_string(),
        status.phase.to_string(),
        size(status.capacity),
        status.reserved.to_string(),
        used(pool),
        pool.spec.service.to_string(),
        status.message.clone().unwrap_or_default(),
    ]
}

fn describe(pool: &Pool) -> String {
    let status = &pool.status;
    let Driver::File { path, limit } = &pool.spec.driver;
    fields(&[
        ("Name", pool.meta.name.to_string()),
        ("Id", pool.meta.id.to_string()),
        ("Phase", status.phase.to_string()),
        ("Message", status.message.clone().unwrap_or_else(|| "-".into())),
        ("Driver", pool.spec.driver.to_string()),
        ("Path", path.display().to_string()),
        ("Limit", size(*limit)),
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
