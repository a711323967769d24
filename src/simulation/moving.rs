//! Volumes that move: what hosts hand over to each other, and that nothing of it is lost or served twice.

use super::disk::Violation;
use super::world::World;
use crate::model::{Volume, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Moves {
    /// Copies that were begun, and what they are copies of.
    begun: BTreeMap<VolumeId, VolumeId>,
    /// Those that have become the volume.
    pub ended: BTreeSet<VolumeId>,
}

impl World {
    /// What other hosts hold for copies arrives here. (From a host that is down nothing does.)
    pub(super) fn hand_over_to(&mut self, host: usize) {
        let others = self.hosts.iter().enumerate().filter(|(place, _)| *place != host);
        let offered = others.flat_map(|(_, other)| other.held_for_copies()).collect();
        self.hosts[host].disk.offered = offered;
    }

    /// A volume was committed: a copy may begin with it, or have become the volume.
    pub(super) fn note_move(&mut self, id: VolumeId) -> Result<(), Violation> {
        let Some(volume) = self.truth.get::<Volume>(id) else { return Ok(()) };
        if let Some(of) = volume.predecessor() {
            self.moves.begun.insert(id, of);
        }
        let Some(former) = volume.status.left.filter(|former| self.moves.begun.get(&id) == Some(former)) else {
            return Ok(());
        };
        if !self.moves.ended.insert(id) {
            return Ok(());
        }
        let name = &volume.meta.name;
        let written = self.written.get(&former).copied();
        let bytes = written.or(self.born.get(&former).copied()).unwrap_or_default();
        match self.hosts.iter().find_map(|host| host.disk.volumes.get(&id)) {
            None => return Err(format!("volume {name} has moved, and its copy is nowhere")),
            Some(copy) if copy.bytes != bytes => {
                return Err(format!("volume {name} has moved, and has {} now, where {bytes} was", copy.bytes));
            }
            Some(_) => {}
        }
        if written.is_some() { &mut self.written } else { &mut self.born }.insert(id, bytes);
        Ok(())
    }

    /// Of a volume and its copy clients reach one at the most, wherever.
    pub(super) fn look_at_moves(&self) -> Result<(), Violation> {
        let hosts = self.hosts.iter().filter(|host| !self.is_given_up(host.id));
        let open: BTreeSet<VolumeId> = hosts.flat_map(|host| host.open_to_clients()).collect();
        match self.moves.begun.iter().find(|(copy, of)| open.contains(copy) && open.contains(of)) {
            Some((copy, of)) => Err(format!("volume {of} is served, and so is its copy {copy}")),
            None => Ok(()),
        }
    }
}
