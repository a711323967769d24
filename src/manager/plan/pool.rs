//! Pools.

use super::drain::admits;
use super::image::{images_of, is_spare};
use super::{find, find_block_service};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{
    Author, ByteSize, Devices, Driver, Kind, Name, Phase, Pool, PoolId, PoolRules, PoolSpec, Service, ServiceId,
    Snapshot, Volume,
};
use crate::rpc::proto;
use std::path::PathBuf;

/// What to do about each of a pool's rules: absent, it stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuleChanges {
    pub overcommit_percent: Option<u32>,
    pub warn_percent: Option<u32>,
    pub refuse_percent: Option<u32>,
}

impl From<proto::PoolRuleChanges> for RuleChanges {
    fn from(changes: proto::PoolRuleChanges) -> Self {
        let proto::PoolRuleChanges { overcommit_percent, warn_percent, refuse_percent } = changes;
        Self { overcommit_percent, warn_percent, refuse_percent }
    }
}

impl RuleChanges {
    fn applied_to(self, old: PoolRules, driver: &Driver) -> Result<PoolRules, Refusal> {
        let rules = PoolRules {
            overcommit_percent: self.overcommit_percent.unwrap_or(old.overcommit_percent),
            warn_percent: self.warn_percent.unwrap_or(old.warn_percent),
            refuse_percent: self.refuse_percent.unwrap_or(old.refuse_percent),
        };
        if let Some(fault) = rules.fault() {
            return Err(Refusal::Invalid(fault));
        }
        if rules != PoolRules::default() && !driver.fills_as_written() {
            return Err(Refusal::Invalid(format!(
                "volumes of driver {driver} have all their space from the beginning: there is nothing to overcommit or to \
                 watch"
            )));
        }
        Ok(rules)
    }
}

/// Changes how a pool's space is promised, and how large a thin pool may become (within: none, all that its devices hold;
/// absent, as it is). What has been promised stays so.
///
/// # Errors
/// If there is no such pool, it is being removed, or the rules make no sense.
pub fn set_pool(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    changes: RuleChanges,
    ceiling: Option<Option<ByteSize>>,
) -> Result<Pool, Refusal> {
    let mut pool = find::<Pool>(draft, reference)?;
    let name = pool.meta.name.clone();
    if pool.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Pool, name });
    }
    let old = pool.spec.rules;
    let rules = changes.applied_to(old, &pool.spec.driver)?;
    if pool.rule(rules, draft.now) {
        draft.put(pool.clone());
        let detail = format!("{rules} (were: {old})");
        audit(draft, author, "pool.set", Kind::Pool, pool.meta.id, &name, Some(detail));
    }
    if let Some(ceiling) = ceiling
        && let Some(old) = raise(&mut pool, ceiling)?
    {
        pool.meta.touch(draft.now);
        pool.status.phase = Phase::Pending;
        draft.put(pool.clone());
        let said = |ceiling: Option<ByteSize>| ceiling.map_or_else(|| "none".to_owned(), |size| size.to_string());
        let detail = format!("ceiling: {} (was: {})", said(ceiling), said(old));
        audit(draft, author, "pool.set", Kind::Pool, pool.meta.id, &name, Some(detail));
    }
    Ok(pool)
}

/// Gives a thin pool another ceiling; the old one, if that was another.
///
/// # Errors
/// If it is no thin pool, or larger already: thin pools do not shrink.
fn raise(pool: &mut Pool, ceiling: Option<ByteSize>) -> Result<Option<Option<ByteSize>>, Refusal> {
    let name = &pool.meta.name;
    let present = pool.status.size.or(pool.status.capacity);
    let Driver::LvmThin(devices) = &mut pool.spec.driver else {
        return Err(Refusal::Invalid(format!(
            "pool '{name}' is of driver {}: only one of driver lvm-thin is extended as it fills up",
            pool.spec.driver
        )));
    };
    if devices.ceiling == ceiling {
        return Ok(None);
    }
    if let (Some(ceiling), Some(present)) = (ceiling, present)
        && ceiling < present
    {
        return Err(Refusal::Precondition(format!(
            "pool '{name}' has {present} already, and thin pools do not shrink: a ceiling of {ceiling} is too low"
        )));
    }
    let old = std::mem::replace(&mut devices.ceiling, ceiling);
    pool.spec.driver.fault().map_or(Ok(Some(old)), |fault| Err(Refusal::Invalid(fault)))
}

/// A new pool on a block service (by id or host name; none: the only one).
///
/// # Errors
/// If the name is taken, the service cannot be told, or its directory is another pool's.
pub fn create_pool(
    draft: &mut Draft<'_>,
    author: &Author,
    id: PoolId,
    name: &Name,
    service: Option<&str>,
    driver: &Driver,
    rules: RuleChanges,
) -> Result<Pool, Refusal> {
    let service = find_block_service(draft.view(), service)?;
    admits(draft, service.meta.id)?;
    let rules = rules.applied_to(PoolRules::default(), driver)?;
    if matches!(driver, Driver::File { limit: Some(limit), .. } if limit.as_u64() == 0) {
        return Err(Refusal::Invalid("a pool's limit must not be zero".into()));
    }
    draft.claim(Kind::Pool, name, id)?;
    check_free(draft, service.meta.id, driver)?;
    // A service that is removed meanwhile must not end up with a pool.
    draft.guard::<Service>(service.meta.id);
    let spec = PoolSpec { service: service.meta.id, driver: driver.clone(), rules, formerly: None };
    let pool = Pool::new(draft.new_meta(id, name.clone()), spec);
    draft.put(pool.clone());
    let detail = format!("{} at {} on service {}", pool.spec.driver, driver.place(), service.meta.id);
    audit(draft, author, "pool.create", Kind::Pool, id, name, Some(detail));
    Ok(pool)
}

/// Gives more devices to a pool that is made of devices, or gives up on some that could not be taken.
///
/// # Errors
/// If there is no such pool, it is made of files, or a device makes no sense or is a pool's already.
pub fn extend_pool(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    more: &Devices,
    cancel: &[PathBuf],
) -> Result<Pool, Refusal> {
    let mut pool = find::<Pool>(draft, reference)?;
    let name = pool.meta.name.clone();
    if pool.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Pool, name });
    }
    let added = Driver::Lvm(Devices { ceiling: None, ..more.clone() });
    if let Some(fault) = added.fault().filter(|_| cancel.is_empty() || *more != Devices::default()) {
        return Err(Refusal::Invalid(fault));
    }
    check_free(draft, pool.spec.service, &added)?;
    let (Driver::Lvm(devices) | Driver::LvmThin(devices)) = &mut pool.spec.driver else {
        return Err(Refusal::Precondition(format!("pool '{name}' is made of files: devices cannot be given to it")));
    };
    if let Some(stranger) = cancel.iter().find(|path| !devices.devices.contains(path)) {
        let stranger = stranger.display();
        return Err(Refusal::Invalid(format!("{stranger} is none of the devices that pool '{name}' is to have")));
    }
    devices.devices.retain(|device| !cancel.contains(device));
    devices.wipe.retain(|device| !cancel.contains(device));
    devices.devices.extend(more.devices.iter().cloned());
    devices.wipe.extend(more.wipe.iter().cloned());
    if let Some(fault) = pool.spec.driver.fault() {
        return Err(Refusal::Invalid(fault));
    }
    pool.meta.touch(draft.now);
    pool.status.phase = Phase::Pending;
    draft.put(pool.clone());
    let detail = format!("to {}", pool.spec.driver.place());
    audit(draft, author, "pool.extend", Kind::Pool, pool.meta.id, &name, Some(detail));
    Ok(pool)
}

/// Sees to it that no other pool of the service is where this one is to be.
pub(super) fn check_free(draft: &Draft<'_>, service: ServiceId, wanted: &Driver) -> Result<(), Refusal> {
    let taken = |pool: &Pool| match (wanted, &pool.spec.driver) {
        (Driver::File { path, .. }, Driver::File { path: other, .. }) => (path == other).then(|| path.clone()),
        (wanted, other) => {
            let (wanted, other) = (wanted.devices()?, other.devices()?);
            wanted.devices.iter().find(|device| other.devices.contains(device)).cloned()
        }
    };
    let others = draft.all::<Pool>().filter(|pool| pool.spec.service == service);
    let found: Option<(PathBuf, Name)> =
        others.filter_map(|pool| taken(pool).map(|path| (path, pool.meta.name.clone()))).next();
    let Some((path, other)) = found else { return Ok(()) };
    let (path, what) = (path.display(), if wanted.devices().is_some() { "a device" } else { "the directory" });
    Err(Refusal::Precondition(format!("{path} is {what} of pool '{other}' already")))
}

/// Sets an empty pool's tombstone. What it keeps of images that others keep, too, goes with it.
///
/// # Errors
/// If there is no such pool or it holds volumes, which are named.
pub fn remove_pool(draft: &mut Draft<'_>, author: &Author, reference: &str) -> Result<Pool, Refusal> {
    let mut pool = find::<Pool>(draft, reference)?;
    let volumes = || draft.all::<Volume>().filter(|volume| volume.is_in(pool.meta.id));
    let images = images_of(draft, volumes());
    let inside: Vec<&str> =
        volumes().filter(|volume| volume.base_of().is_none()).map(|volume| volume.meta.name.as_str()).collect();
    let kept = draft.all::<Snapshot>().filter(|snapshot| snapshot.is_in(pool.meta.id));
    let kept: Vec<&str> = kept.map(|snapshot| snapshot.meta.name.as_str()).collect();
    if inside.is_empty() && !kept.is_empty() {
        let (name, snapshots) = (&pool.meta.name, listed(&kept));
        return Err(Refusal::Precondition(format!(
            "pool '{name}' holds snapshots {snapshots}: remove them first with `symphony ctl snapshot remove`"
        )));
    }
    if !inside.is_empty() {
        let name = &pool.meta.name;
        let volumes = listed(&inside);
        return Err(Refusal::Precondition(format!(
            "pool '{name}' holds {volumes}: remove them first with `symphony ctl volume remove`"
        )));
    }
    let bases: Vec<Volume> = volumes().cloned().collect();
    if let Some(images) = images.filter(|_| !bases.iter().all(|base| is_spare(draft, base))) {
        return Err(Refusal::Precondition(format!(
            "pool '{}' keeps the content of images {images}: remove them first with `symphony ctl image remove`",
            pool.meta.name
        )));
    }
    for mut base in bases {
        if base.bury(draft.now) {
            draft.put(base);
        }
    }
    if pool.bury(draft.now) {
        draft.put(pool.clone());
        audit(draft, author, "pool.remove", Kind::Pool, pool.meta.id, &pool.meta.name, None);
    }
    Ok(pool)
}

/// Names for a sentence, not too many of them.
pub(super) fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
