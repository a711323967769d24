//! Making a cluster of what block services have on their disks, after the store of the former one is gone for good.
//!
//! As long as the cluster's record says so, each manager takes over whatever the services that are connected to it have,
//! once for every session: pools, then volumes with their snapshots. Nobody is told to drop anything meanwhile. What could
//! not be taken over, or got another name, is said in the record of changes.

use super::audit::audit;
use super::draft::Draft;
use super::member::Member;
use super::orphans::{self, Outcome};
use super::plan::{self, Adoption};
use super::refusal::Refusal;
use crate::model::*;
use crate::rpc::{Fault, FaultKind};
use crate::runtime::Backoff;
use crate::store::{Commit, Compare, Key, Op, Txn, decode, encode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often to look for sessions that can be asked, while the cluster is recovering.
const LOOK: Duration = Duration::from_millis(500);
/// What of the record of changes tells of the recovery.
const NOTE: &str = "recovery.note";

/// Serves whenever the cluster is recovering, for ever.
pub async fn serve(member: Arc<Member>) {
    let mut changes = member.view.changes();
    let mut seen: BTreeMap<ServiceId, SessionId> = BTreeMap::new();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        changes.mark_unchanged();
        let mut failed = false;
        if member.view.read().recovering().is_some() {
            let present = member.sessions.all();
            seen.retain(|service, session| present.contains(&(*service, *session)));
            for (service, session) in present {
                if seen.contains_key(&service) {
                    continue;
                }
                match take_over(&member, service).await {
                    Ok(()) => drop(seen.insert(service, session)),
                    Err(error) => {
                        tracing::warn!(%service, %error, "what a service has on its disks is not taken over yet");
                        failed = true;
                    }
                }
            }
        }
        if failed {
            tokio::time::sleep(backoff.next(fastrand::f64())).await;
            continue;
        }
        backoff.reset();
        // A session is in the view before it can be asked anything.
        let recovering = member.view.read().recovering().is_some();
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK), if recovering => {}
        }
    }
}

/// Everything whole that a service has.
async fn take_over(member: &Member, service: ServiceId) -> Result<(), Refusal> {
    let author = Author { who: "the recovery".into(), origin: format!("manager {}", member.service) };
    let mut outcome = Outcome::default();
    let taken = take_pools(member, &author, service, &mut outcome).await;
    let host = member.view.read().get::<Service>(service).map(|service| service.status.host_name.clone());
    tracing::info!(%service, objects = outcome.objects.len(), remarks = outcome.remarks.len(), "taken over from its disks");
    for remark in outcome.remarks {
        let (author, host) = (author.clone(), host.clone().unwrap_or_default());
        let plan = move |draft: &mut Draft<'_>| {
            audit(draft, &author, NOTE, Kind::Service, service, &host, Some(remark.clone()));
            Ok(())
        };
        member.writer.write(plan).await?;
    }
    taken
}

async fn take_pools(
    member: &Member,
    author: &Author,
    service: ServiceId,
    outcome: &mut Outcome,
) -> Result<(), Refusal> {
    let silent = || Refusal::Store(format!("service {service} did not say what it has"));
    let first = orphans::survey(member, Some(service)).await.sightings.pop().ok_or_else(silent)?;
    let pools: Vec<PoolId> = first.inventory.pools.iter().map(|pool| pool.id).collect();
    for id in pools {
        let mut sighting = orphans::survey(member, Some(service)).await.sightings.pop().ok_or_else(silent)?;
        let known = member.view.read().get::<Pool>(id).map(|pool| pool.spec.service);
        match known {
            None => {
                let (author, seen) = (author.clone(), sighting.clone());
                let adoption = Adoption { rename: true, ..Adoption::default() };
                let plan = move |draft: &mut Draft<'_>| plan::adopt_pool(draft, &author, &seen, id, &adoption);
                match member.writer.write(plan).await {
                    Ok(adopted) => {
                        outcome.objects.extend(adopted.objects);
                        outcome.remarks.extend(adopted.remarks);
                        sighting.follow(&member.view.read(), &adopted.pool);
                    }
                    Err(refusal @ (Refusal::Precondition(_) | Refusal::Invalid(_))) => {
                        outcome.remarks.push(format!("pool {id} stays an orphan: {refusal}"));
                        continue;
                    }
                    Err(refusal) => return Err(refusal),
                }
            }
            Some(owner) if owner != service => continue,
            Some(_) => {}
        }
        orphans::adopt_contents(member, author, sighting, id, outcome).await?;
    }
    Ok(())
}

/// What the record of changes says of the recovery.
pub fn notes(member: &Member) -> Vec<String> {
    let view = member.view.read();
    let since = view.cluster.as_ref().map_or(Timestamp::EPOCH, |cluster| cluster.meta.created_at);
    let notes = view.events.values().filter(|held| held.value.action == NOTE && held.value.at >= since);
    notes.filter_map(|held| held.value.detail.clone()).collect()
}

/// Ends the recovery: from then on the cluster is one like any other.
///
/// # Errors
/// If the cluster is not recovering, or the store cannot be written.
pub async fn finish(member: &Member, author: &Author) -> Result<(), Fault> {
    let now = member.clock.wall();
    let entry = member.store.get(&Key::cluster()).await.map_err(Refusal::from)?;
    let entry = entry.ok_or_else(|| Fault::new(FaultKind::Precondition, "the store holds no cluster"))?;
    let mut cluster: Cluster = decode(&entry).map_err(Refusal::from)?;
    if cluster.recovering.take().is_none() {
        let text = format!("cluster '{}' is not recovering", cluster.meta.name);
        return Err(Fault::new(FaultKind::Precondition, text));
    }
    cluster.meta.touch(now);
    let told = (None, cluster.meta.id, &cluster.meta.name);
    let event = super::audit::entry(EventId::generate(), now, author, "recovery.finish", told);
    let put = |key, value| Op::Put { key, value, lease: None };
    let ops = vec![
        put(Key::cluster(), encode(&cluster).map_err(Refusal::from)?),
        put(Key::event(event.id), encode(&event).map_err(Refusal::from)?),
    ];
    let compares = vec![Compare::Unchanged(Key::cluster(), entry.revision)];
    let listing = member.view.listing();
    match member.store.commit(Txn { compares, ops }).await.map_err(Refusal::from)? {
        Commit::Done(revision) => {
            member.view.catch_up(revision, listing, member.clock.as_ref()).await;
            Ok(())
        }
        Commit::Conflict => Err(Refusal::Busy.into()),
    }
}
