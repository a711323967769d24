//! What holds at any time, whether a world is at rest as it was asked for, and how much came about in it.

use super::disk::Violation;
use super::host::Host;
use super::image::is_as_sealed;
use super::world::{MANAGERS, World};
use crate::model::*;
use crate::store::{Batch, Event, Place};
use std::collections::BTreeSet;

/// How much happens in a world, so that nothing is praised for what was never tried.
#[derive(Debug, Default)]
pub struct Deeds {
    pub commits: usize,
    pub sessions: usize,
    pub buried: usize,
    pub lost: usize,
    /// Volumes that clients wrote to.
    pub written: usize,
    /// Volumes on disk at a later generation than their first.
    pub changed: usize,
    /// Snapshots that were taken, copies that were made, volumes that were put back.
    pub taken: usize,
    pub copied: usize,
    pub put_back: usize,
    /// Attachments that were detached.
    pub detached: usize,
    /// Times that a service was to be emptied, and services that were given up.
    pub drained: usize,
    pub given_up: usize,
    /// Images that volumes can be made of, at the end.
    pub images: usize,
    /// Volumes whose copies have taken their places.
    pub moved: usize,
}

impl World {
    /// What has come about so far.
    pub fn deeds(&self) -> Deeds {
        let puts = self.store.log.iter().flat_map(|batch| &batch.events).filter_map(|event| match event {
            Event::Put(entry) => Some(&entry.key),
            Event::Delete(_) => None,
        });
        let sessions = puts.filter(|key| matches!(Place::of(key), Place::Session(_))).count();
        let volumes = self.hosts.iter().flat_map(|host| host.disk.volumes.values());
        Deeds {
            commits: self.store.log.len(),
            sessions,
            buried: self.buried.volumes.len(),
            lost: self.hosts.iter().map(|host| host.disk.lost.len()).sum(),
            written: self.written.len(),
            changed: volumes.filter(|volume| volume.generation > Generation::FIRST).count(),
            taken: self.kept.len(),
            copied: self.born.len(),
            put_back: self.put_back.len(),
            detached: self.closed.len(),
            drained: self.drained,
            given_up: self.orphans.len(),
            images: self.truth.images.values().filter(|image| image.value.is_whole()).count(),
            moved: self.moves.ended.len(),
        }
    }

    /// Takes one commit over, and looks at what it may not do.
    pub(super) fn take_note(&mut self, batch: Batch) -> Result<(), Violation> {
        for event in &batch.events {
            if let Event::Delete(key) = event
                && let Place::Attachment(id) = Place::of(key)
                && let Some(held) = self.truth.get::<Attachment>(id)
                && held.meta.is_removed()
                && held.status.placement.iter().all(|service| !self.is_given_up(*service))
            {
                self.closed.insert(id);
            }
        }
        let touched = batch.events.iter().filter_map(|event| match event {
            Event::Put(entry) => Some(Place::of(&entry.key)),
            Event::Delete(_) => None,
        });
        let touched: Vec<Place> = touched.collect();
        let was_draining =
            |world: &Self, id| world.truth.get::<Service>(id).is_some_and(|it| it.spec.draining.is_some());
        let before: BTreeSet<ServiceId> =
            self.hosts.iter().map(|host| host.id).filter(|id| was_draining(self, *id)).collect();
        let known: BTreeSet<VolumeId> = touched.iter().filter_map(|place| self.is_known(place)).collect();
        self.truth.apply(batch);
        for place in &touched {
            if let Place::Volume(id) = place
                && let Some(volume) = self.truth.get::<Volume>(*id).filter(|_| !known.contains(id))
                && let Some(replica) = volume.status.placement.iter().find(|it| before.contains(&it.service))
            {
                let name = &volume.meta.name;
                return Err(format!("volume {name} is placed on {}, which is being drained", replica.service));
            }
        }
        for place in touched {
            if let Place::Volume(id) = place {
                self.note_move(id)?;
            }
            match place {
                Place::Volume(id) if self.truth.get::<Volume>(id).is_some_and(|it| it.meta.is_removed()) => {
                    self.buried.volumes.insert(id);
                }
                Place::Snapshot(id) if self.truth.get::<Snapshot>(id).is_some_and(|it| it.meta.is_removed()) => {
                    self.buried.snapshots.insert(id);
                }
                Place::Service(id) => {
                    self.drained += usize::from(was_draining(self, id) && !before.contains(&id));
                    let removed = self.truth.get::<Service>(id).is_some_and(|it| it.meta.is_removed());
                    let host = self.hosts.iter().find(|host| host.id == id).filter(|_| removed);
                    if let Some(host) = host {
                        self.orphans.entry(id).or_insert_with(|| host.disk.volumes.keys().copied().collect());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn is_known(&self, place: &Place) -> Option<VolumeId> {
        match place {
            Place::Volume(id) => self.truth.get::<Volume>(*id).map(|it| it.meta.id),
            _ => None,
        }
    }

    /// Nobody is let in who was detached, nobody beside one that is to be alone, and nothing goes that has no owner.
    pub(super) fn look_at_hosts(&self) -> Result<(), Violation> {
        for host in &self.hosts {
            if let Some(orphans) = self.orphans.get(&host.id)
                && let Some(id) = orphans.iter().find(|id| {
                    !host.disk.volumes.contains_key(id)
                        && !self.buried.volumes.contains(id)
                        && !host.disk.lost.contains(id)
                })
            {
                return Err(format!("volume {id} went with the service that was given up, and is destroyed"));
            }
            let Some(running) = host.running.as_ref().filter(|_| !self.is_given_up(host.id)) else { continue };
            for ((name, client), (id, shared)) in &running.granted {
                if self.closed.contains(id) {
                    return Err(format!("client {client} is let in to {name} by attachment {id}, which was ended"));
                }
                let other = running
                    .granted
                    .iter()
                    .find(|((beside, other), (_, both))| beside == name && other != client && !(*shared && *both));
                if let Some(((_, other), _)) = other {
                    return Err(format!("clients {client} and {other} are let in to {name}, and one is to be alone"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn is_given_up(&self, service: ServiceId) -> bool {
        self.truth.get::<Service>(service).is_none_or(|it| it.meta.is_removed())
    }

    /// What is not as it should be in a healed world.
    pub(super) fn unrest(&self) -> Option<String> {
        let behind = self.managers.iter().find(|manager| manager.is_behind(&self.store));
        if let Some(manager) = behind {
            return Some(format!("manager {} is behind", manager.id));
        }
        let view = &self.managers[0].view;
        for host in &self.hosts {
            if self.is_given_up(host.id) {
                if !host.dismissed {
                    return Some(format!("service {} does not know that it was given up", host.id));
                }
                continue;
            }
            if view.get::<Service>(host.id).is_none_or(|it| it.status.state != ServiceState::Ready) || !host.is_idle() {
                return Some(format!("service {} is not ready, or at work", host.id));
            }
            let unready = view.pools_of(host.id).find(|pool| pool.status.phase != Phase::Ready);
            let volumes: Vec<&Volume> = view.volumes_of(host.id).collect();
            if let Some(volume) = volumes.iter().find(|volume| !self.is_settled(host, volume)) {
                let (id, bytes) = (volume.meta.id, self.written.get(&volume.meta.id));
                return Some(format!(
                    "{volume:?} is {:?} on disk, and {bytes:?} was written",
                    host.disk.volumes.get(&id)
                ));
            }
            if let Some(pool) = unready {
                let there = host.disk.pools.contains(&pool.meta.id);
                return Some(format!("{pool:?} is not ready, and on disk: {there}"));
            }
            for held in view.attachments_of(host.id) {
                let let_in =
                    host.running.as_ref().is_some_and(|it| it.granted.values().any(|(id, _)| *id == held.meta.id));
                if held.meta.is_removed() || held.status.phase != Phase::Ready || !let_in {
                    return Some(format!("{held:?} is not in force"));
                }
            }
            for snapshot in
                view.snapshots_of(host.id).filter(|snapshot| !self.waits_for_lost(Source::Snapshot(snapshot.meta.id)))
            {
                let kept = host.disk.snapshots.get(&snapshot.meta.id);
                let right = kept.is_some_and(|kept| Some(&kept.bytes) == self.kept.get(&snapshot.meta.id));
                if snapshot.meta.is_removed() || snapshot.status.phase != Phase::Ready || !right {
                    return Some(format!("{snapshot:?} is {kept:?} on disk"));
                }
            }
            let known: BTreeSet<SnapshotId> = view.snapshots_of(host.id).map(|snapshot| snapshot.meta.id).collect();
            if let Some(id) = host.disk.snapshots.keys().find(|id| !known.contains(id)) {
                return Some(format!("snapshot {id} is on disk and nowhere else"));
            }
            let strange = host.disk.volumes.keys().find(|id| volumes.iter().all(|volume| volume.meta.id != **id));
            if let Some(id) = strange {
                return Some(format!("volume {id} is on disk and nowhere else"));
            }
        }
        // Each manager's, and the leader's.
        (self.store.leases() > MANAGERS + 1).then(|| format!("{} leases are left", self.store.leases()))
    }

    /// Whether its bytes can never come, since they are, or come from, what somebody took away.
    fn waits_for_lost(&self, of: Source) -> bool {
        let view = &self.managers[0].view;
        match of {
            Source::Volume(id) => {
                let is_lost = self.hosts.iter().any(|host| host.disk.lost.contains(&id));
                let Some(volume) = view.get::<Volume>(id) else { return is_lost };
                let made = self.hosts.iter().any(|host| host.disk.volumes.get(&id).is_some_and(|held| held.described));
                is_lost || !made && volume.spec.source.is_some_and(|of| self.waits_for_lost(of))
            }
            Source::Snapshot(id) => {
                let taken =
                    self.hosts.iter().any(|host| host.disk.snapshots.get(&id).is_some_and(|kept| kept.described));
                let of = view.get::<Snapshot>(id).map(|snapshot| snapshot.spec.volume);
                !taken && of.is_none_or(|of| self.waits_for_lost(Source::Volume(of)))
            }
        }
    }

    /// As wanted, with every acknowledged byte; one that was lost says so and is not made anew.
    fn is_settled(&self, host: &Host, volume: &Volume) -> bool {
        let id = volume.meta.id;
        if host.disk.lost.contains(&id) {
            return volume.status.phase == Phase::Failed;
        }
        // What was left stays as long as what has taken its place has not been served.
        if let Some(Moving::Left { to }) = volume.spec.moving.as_deref()
            && self.waits_for_lost(Source::Volume(*to))
        {
            return !volume.meta.is_removed() && host.disk.volumes.contains_key(&id);
        }
        // One that was only begun may have lost what it is to be a copy of.
        let Some(held) = host.disk.volumes.get(&id).filter(|held| held.described) else {
            let of = volume.spec.source.or(volume.predecessor().map(Source::Volume));
            return !volume.meta.is_removed() && of.is_some_and(|of| self.waits_for_lost(of));
        };
        if volume.spec.image.as_ref().is_some_and(|tie| !is_as_sealed(tie, held.bytes, None)) {
            return volume.status.phase == Phase::Failed;
        }
        volume.status.phase == Phase::Ready
            && volume.status.observed_generation == volume.meta.generation
            && (held.size, held.generation) == (volume.spec.size, volume.meta.generation)
            && held.bytes == self.written.get(&id).or(self.born.get(&id)).copied().unwrap_or_default()
            && host.served().contains(&id)
    }
}
