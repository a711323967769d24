//! Whether a world is at rest as it was asked for, and how much came about in it.

use super::host::Host;
use super::world::{HOSTS, World};
use crate::model::*;
use crate::store::{Event, Place};

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
            buried: self.buried.len(),
            lost: self.hosts.iter().map(|host| host.disk.lost.len()).sum(),
            written: self.written.len(),
            changed: volumes.filter(|volume| volume.generation > Generation::FIRST).count(),
        }
    }

    /// What is not as it should be in a healed world.
    pub(super) fn unrest(&self) -> Option<String> {
        let behind = self.managers.iter().find(|manager| manager.is_behind(&self.store));
        if let Some(manager) = behind {
            return Some(format!("manager {} is behind", manager.id));
        }
        let view = &self.managers[0].view;
        for host in &self.hosts {
            if view.get::<Service>(host.id).is_none_or(|it| it.status.state != ServiceState::Ready) || !host.is_idle() {
                return Some(format!("service {} is not ready, or at work", host.id));
            }
            let pools = view.pools_of(host.id).all(|pool| pool.status.phase == Phase::Ready);
            let volumes: Vec<&Volume> = view.volumes_of(host.id).collect();
            if let Some(volume) = volumes.iter().find(|volume| !self.is_settled(host, volume)) {
                let (id, bytes) = (volume.meta.id, self.written.get(&volume.meta.id));
                return Some(format!(
                    "{volume:?} is {:?} on disk, and {bytes:?} was written",
                    host.disk.volumes.get(&id)
                ));
            }
            if !pools {
                return Some(format!("a pool of service {} is not ready", host.id));
            }
            let strange = host.disk.volumes.keys().find(|id| volumes.iter().all(|volume| volume.meta.id != **id));
            if let Some(id) = strange {
                return Some(format!("volume {id} is on disk and nowhere else"));
            }
        }
        let members = HOSTS + 1;
        (self.store.leases() > members).then(|| format!("{} leases are left", self.store.leases()))
    }

    /// As wanted, with every acknowledged byte; one that was lost says so and is not made anew.
    fn is_settled(&self, host: &Host, volume: &Volume) -> bool {
        let id = volume.meta.id;
        if host.disk.lost.contains(&id) {
            return volume.status.phase == Phase::Failed;
        }
        let Some(held) = host.disk.volumes.get(&id) else { return false };
        volume.status.phase == Phase::Ready
            && volume.status.observed_generation == volume.meta.generation
            && (held.size, held.generation) == (volume.spec.size, volume.meta.generation)
            && held.bytes == self.written.get(&id).copied().unwrap_or_default()
            && host.served().contains(&id)
    }
}
