//! Pools.

use super::{find, find_block_service};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{Author, Driver, Kind, Meta, Name, Pool, PoolId, PoolRules, PoolSpec, Service, Snapshot, Volume};

/// What to do about each of a pool's rules: absent, it stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuleChanges {
    pub overcommit_percent: Option<u32>,
    pub warn_percent: Option<u32>,
    pub refuse_percent: Option<u32>,
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

/// Changes how a pool's space is promised. What has been promised stays so.
///
/// # Errors
/// If there is no such pool, it is being removed, or the rules make no sense.
pub fn set_pool(
    draft: &mut Draft<'_>,
    author: &Author,
    reference: &str,
    changes: RuleChanges,
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
    Ok(pool)
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
    let rules = rules.applied_to(PoolRules::default(), driver)?;
    let Driver::File { path, limit } = driver;
    if limit.is_some_and(|limit| limit.as_u64() == 0) {
        return Err(Refusal::Invalid("a pool's limit must not be zero".into()));
    }
    draft.claim(Kind::Pool, name, id)?;
    let same = |pool: &&Pool| {
        let Driver::File { path: other, .. } = &pool.spec.driver;
        pool.spec.service == service.meta.id && other == path
    };
    if let Some(other) = draft.all::<Pool>().find(same) {
        let (path, other) = (path.display(), &other.meta.name);
        return Err(Refusal::Precondition(format!("{path} is the directory of pool '{other}' already")));
    }
    // A service that is removed meanwhile must not end up with a pool.
    draft.guard::<Service>(service.meta.id);
    let spec = PoolSpec { service: service.meta.id, driver: driver.clone(), rules };
    let pool = Pool::new(Meta::new(id, name.clone(), draft.now), spec);
    draft.put(pool.clone());
    let detail = format!("{} at {} on service {}", pool.spec.driver, path.display(), service.meta.id);
    audit(draft, author, "pool.create", Kind::Pool, id, name, Some(detail));
    Ok(pool)
}

/// Sets an empty pool's tombstone.
///
/// # Errors
/// If there is no such pool or it holds volumes, which are named.
pub fn remove_pool(draft: &mut Draft<'_>, author: &Author, reference: &str) -> Result<Pool, Refusal> {
    let mut pool = find::<Pool>(draft, reference)?;
    let inside: Vec<&str> = draft
        .all::<Volume>()
        .filter(|volume| volume.is_in(pool.meta.id))
        .map(|volume| volume.meta.name.as_str())
        .collect();
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
