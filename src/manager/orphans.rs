//! Orphans, asked of block services: listed, adopted one by one or by the pool, purged. The rules are the planner's.

use super::draft::Draft;
use super::member::Member;
use super::plan::{self, Adopted, Adoption, Sighting};
use super::refusal::Refusal;
use crate::model::*;
use std::time::Duration;

/// How long a service may take to look at its devices.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look again because somebody changed the same pool meanwhile.
const ATTEMPTS: usize = 8;

/// What block services found on their devices.
pub struct Survey {
    pub sightings: Vec<Sighting>,
    /// Who could not be asked, each a sentence.
    pub unasked: Vec<String>,
}

/// Asks all block services, or one of them.
pub async fn survey(member: &Member, only: Option<ServiceId>) -> Survey {
    let services: Vec<(Service, Sighting)> = {
        let view = member.view.read();
        let services = view.services.values().map(|service| &*service.value);
        let asked = services.filter(|service| {
            let block = service.spec.service_type == ServiceType::Block && !service.meta.is_removed();
            block && only.is_none_or(|only| only == service.meta.id)
        });
        asked.map(|service| (service.clone(), Sighting::before(&view, service))).collect()
    };
    let asked = services.iter().map(|(service, _)| member.sessions.inventory(service.meta.id, PATIENCE));
    let found = futures_util::future::join_all(asked).await;
    let mut survey = Survey { sightings: Vec::new(), unasked: Vec::new() };
    for ((service, sighting), inventory) in services.into_iter().zip(found) {
        match inventory {
            Some(inventory) => survey.sightings.push(sighting.answered(inventory)),
            None => survey.unasked.push(unasked(member, &service)),
        }
    }
    survey
}

fn unasked(member: &Member, service: &Service) -> String {
    let (id, host, state) = (service.meta.id, &service.status.host_name, service.status.state);
    match service.status.manager.filter(|manager| *manager != member.service && state == ServiceState::Ready) {
        Some(manager) => format!("block service {id} on '{host}' is connected to manager {manager}: ask that one"),
        None => format!("block service {id} on '{host}' is {state} and could not be asked"),
    }
}

/// The service that somebody means, if somebody does.
///
/// # Errors
/// If there is no such service.
pub fn named_service(member: &Member, reference: &str) -> Result<Option<ServiceId>, Refusal> {
    match reference {
        "" => Ok(None),
        reference => plan::find_service(&member.view.read(), reference).map(Some),
    }
}

pub async fn list(member: &Member, only: Option<ServiceId>) -> (Vec<Orphan>, Vec<String>) {
    let Survey { sightings, unasked } = survey(member, only).await;
    let view = member.view.read();
    (sightings.iter().flat_map(|sighting| plan::orphans(&view, sighting)).collect(), unasked)
}

/// Looks for an object on all services; the one that has it.
async fn locate(member: &Member, reference: &str, only: Option<ServiceId>) -> Result<(Sighting, OrphanId), Refusal> {
    let Survey { sightings, unasked } = survey(member, only).await;
    let mut hits: Vec<(Sighting, OrphanId)> =
        sightings.into_iter().filter_map(|sighting| sighting.find(reference).map(|id| (sighting, id))).collect();
    let last = hits.pop();
    match (last, hits.as_slice()) {
        (Some(hit), []) => Ok(hit),
        (Some((one, _)), [(other, _), ..]) => Err(Refusal::Invalid(format!(
            "services {} and {} both have {reference} on their devices: name one with --service",
            one.service, other.service
        ))),
        (None, _) => {
            let reference: String = reference.chars().take(80).collect();
            let mut text = format!(
                "no block service that could be asked has {reference} on its devices: see `symphony ctl orphans list`"
            );
            for sentence in unasked {
                text.push_str("; ");
                text.push_str(&sentence);
            }
            Err(Refusal::Precondition(text))
        }
    }
}

/// What came of a request to adopt.
#[derive(Default)]
pub struct Outcome {
    pub objects: Vec<Object>,
    pub remarks: Vec<String>,
}

impl Outcome {
    fn add(&mut self, adopted: &Adopted) {
        self.objects.extend(adopted.objects.iter().cloned());
        self.remarks.extend(adopted.remarks.iter().cloned());
    }
}

/// What somebody wants adopted.
#[derive(Clone, Debug)]
pub struct Wish {
    pub id: String,
    pub service: Option<ServiceId>,
    pub adoption: Adoption,
    /// Of a pool: what is in it, too.
    pub all: bool,
}

/// # Errors
/// If there is no such orphan, or it cannot be adopted; what was adopted before that stays so.
pub async fn adopt(member: &Member, author: &Author, wish: &Wish) -> Result<Outcome, Refusal> {
    for _ in 0..ATTEMPTS {
        let (sighting, id) = locate(member, &wish.id, wish.service).await?;
        match adopt_sighted(member, author, wish, sighting, id).await {
            Err(Refusal::Busy) => {}
            other => return other,
        }
    }
    Err(Refusal::Busy)
}

async fn adopt_sighted(
    member: &Member,
    author: &Author,
    wish: &Wish,
    mut sighting: Sighting,
    id: OrphanId,
) -> Result<Outcome, Refusal> {
    let mut outcome = Outcome::default();
    let (who, seen, adoption) = (author.clone(), sighting.clone(), wish.adoption.clone());
    match id {
        OrphanId::Pool(pool) => {
            let owned = member.view.read().get::<Pool>(pool).is_some();
            if !owned || !wish.all {
                let plan = move |draft: &mut Draft<'_>| plan::adopt_pool(draft, &who, &seen, pool, &adoption);
                let adopted = member.writer.write(plan).await?;
                outcome.add(&adopted);
                sighting.follow(&member.view.read(), &adopted.pool);
            }
            if wish.all {
                adopt_contents(member, author, sighting, pool, &mut outcome).await?;
            }
        }
        OrphanId::Volume(volume) => {
            let plan = move |draft: &mut Draft<'_>| plan::adopt_volume(draft, &who, &seen, volume, &adoption);
            let adopted = member.writer.write(plan).await?;
            outcome.add(&adopted);
            let pool = adopted.pool.meta.id;
            if sighting.follow(&member.view.read(), &adopted.pool) {
                adopt_snapshots(member, author, &mut sighting, pool, Some(volume), &mut outcome).await?;
            }
        }
        OrphanId::Snapshot(snapshot) => {
            let plan = move |draft: &mut Draft<'_>| plan::adopt_snapshot(draft, &who, &seen, snapshot, &adoption);
            outcome.add(&member.writer.write(plan).await?);
        }
    }
    Ok(outcome)
}

/// Everything whole in a pool of the cluster, part by part.
///
/// # Errors
/// If the store cannot be written, or the pool is not the cluster's any more.
pub async fn adopt_contents(
    member: &Member,
    author: &Author,
    mut sighting: Sighting,
    pool: PoolId,
    outcome: &mut Outcome,
) -> Result<(), Refusal> {
    let mut busy = 0;
    loop {
        let missing: Vec<VolumeId> = {
            let view = member.view.read();
            let (mut found, mut bases) = (Vec::new(), Vec::new());
            for orphan in plan::orphans(&view, &sighting).into_iter().filter(|orphan| orphan.pool == pool) {
                match (orphan.id, orphan.standing) {
                    (OrphanId::Volume(id), OrphanStanding::Whole | OrphanStanding::Damaged(_)) => found.push(id),
                    (OrphanId::Volume(id), OrphanStanding::ImageBase) => bases.push(id),
                    (OrphanId::Volume(_), OrphanStanding::Unfinished) => {}
                    (OrphanId::Pool(_) | OrphanId::Snapshot(_), _) => {}
                }
            }
            if busy == 0 {
                outcome.remarks.extend(bases.into_iter().map(|id| {
                    format!(
                        "volume {id} kept an image's content and stays an orphan: import the image again and purge it"
                    )
                }));
            }
            // What a service was told to hold comes before what was an orphan already: names are theirs first.
            found.sort_by_key(|id| !sighting.is_told(*id));
            found
        };
        match adopt_parts(member, author, &mut sighting, pool, missing, outcome).await {
            Ok(()) => match adopt_snapshots(member, author, &mut sighting, pool, None, outcome).await {
                Err(Refusal::Busy) => {}
                other => return other,
            },
            Err(Refusal::Busy) => {}
            Err(refusal) => return Err(refusal),
        }
        busy += 1;
        if busy == ATTEMPTS {
            return Err(Refusal::Busy);
        }
        let mut again = survey(member, Some(sighting.service)).await;
        sighting = again.sightings.pop().ok_or(Refusal::Busy)?;
    }
}

async fn adopt_parts(
    member: &Member,
    author: &Author,
    sighting: &mut Sighting,
    pool: PoolId,
    mut rest: Vec<VolumeId>,
    outcome: &mut Outcome,
) -> Result<(), Refusal> {
    while !rest.is_empty() {
        let (who, seen, part) = (author.clone(), sighting.clone(), rest.clone());
        let plan = move |draft: &mut Draft<'_>| plan::adopt_some(draft, &who, &seen, pool, &part);
        let (adopted, done) = member.writer.write(plan).await?;
        outcome.add(&adopted);
        rest.drain(..done.min(rest.len()));
        if !sighting.follow(&member.view.read(), &adopted.pool) {
            return Err(Refusal::Busy);
        }
    }
    Ok(())
}

/// Snapshots of volumes that are the cluster's, one by one: the rest of very many, or those whose volume never left.
async fn adopt_snapshots(
    member: &Member,
    author: &Author,
    sighting: &mut Sighting,
    pool: PoolId,
    of: Option<VolumeId>,
    outcome: &mut Outcome,
) -> Result<(), Refusal> {
    let missing: Vec<SnapshotId> = {
        let view = member.view.read();
        let here = |volume: VolumeId| view.get::<Volume>(volume).is_some_and(|volume| !volume.meta.is_removed());
        let orphan = |snapshot: &&InventorySnapshot| {
            let wanted = of.is_none_or(|volume| volume == snapshot.volume) && snapshot.damage.is_none();
            wanted && snapshot.pool == pool && view.get::<Snapshot>(snapshot.id).is_none() && here(snapshot.volume)
        };
        sighting.inventory.snapshots.iter().filter(orphan).map(|snapshot| snapshot.id).collect()
    };
    for id in missing {
        let (who, seen) = (author.clone(), sighting.clone());
        let adoption = Adoption { rename: true, ..Adoption::default() };
        let plan = move |draft: &mut Draft<'_>| plan::adopt_snapshot(draft, &who, &seen, id, &adoption);
        let adopted = member.writer.write(plan).await?;
        outcome.add(&adopted);
        if !sighting.follow(&member.view.read(), &adopted.pool) {
            return Err(Refusal::Busy);
        }
    }
    Ok(())
}

/// Sets an orphan's tombstone.
///
/// # Errors
/// If there is no such orphan, or it is not what was shown.
pub async fn purge(
    member: &Member,
    author: &Author,
    reference: &str,
    only: Option<ServiceId>,
    shown: Generation,
) -> Result<Object, Refusal> {
    for _ in 0..ATTEMPTS {
        let (sighting, id) = locate(member, reference, only).await?;
        let who = author.clone();
        let plan = move |draft: &mut Draft<'_>| plan::purge_orphan(draft, &who, &sighting, id, shown);
        match member.writer.write(plan).await {
            Err(Refusal::Busy) => {}
            other => return other,
        }
    }
    Err(Refusal::Busy)
}
