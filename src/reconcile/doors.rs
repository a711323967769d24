//! Who may use a volume, before the volume is served.
//!
//! Permissions are kept by the volume's name and the client, beside the exports, and outlast them. Hence the rules:
//!
//! 1. A volume is not worked on while an attachment of it was never tried, or is being tried: what is not served has no
//!    users, so that none of them can fail for being in use, and an exclusive client is alone from the first moment.
//! 2. A client is let in under one attachment at a time: an older one for the same name must be gone, or taking it back
//!    would take the new one back too. Nor is anybody let in while somebody is there who is not assigned any more: that
//!    one may have been alone.
//! 3. A volume is not served while permissions that belong to another volume of its name are left.

use super::{Progress, World};
use crate::model::{
    Assigned, AssignmentSet, AttachmentAssignment, AttachmentId, ClientId, Name, VolumeAssignment, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What a plan has to know of all attachments together.
pub struct Doors<'w> {
    unsettled: BTreeSet<VolumeId>,
    bearers: BTreeMap<(&'w Name, ClientId), BTreeSet<AttachmentId>>,
    /// Names that somebody may still use who is not assigned any more.
    leaving: BTreeSet<&'w Name>,
    /// The volumes that permissions under a name are meant for.
    meant: BTreeMap<&'w Name, BTreeSet<VolumeId>>,
}

impl<'w> Doors<'w> {
    pub fn survey(world: &'w World, assigned: &'w AssignmentSet) -> Self {
        let (unsettled, bearers) = (BTreeSet::new(), BTreeMap::new());
        let mut doors = Self { unsettled, bearers, leaving: BTreeSet::new(), meant: BTreeMap::new() };
        for held in assigned.attachments.values() {
            doors.count(held);
            let progress = world.held.get(&held.id.into());
            if !held.removed && progress.is_none_or(Progress::is_running) {
                doors.unsettled.insert(held.volume);
            }
        }
        for (id, progress) in &world.held {
            if let Assigned::Attachment(held) = progress.object() {
                doors.count(held);
                let withdrawn = held.removed && matches!(progress, Progress::Done(_));
                if !withdrawn {
                    doors.meant.entry(&held.volume_name).or_default().insert(held.volume);
                    if !assigned.contains(*id) {
                        doors.leaving.insert(&held.volume_name);
                    }
                }
            }
        }
        doors
    }

    fn count(&mut self, held: &'w AttachmentAssignment) {
        self.bearers.entry((&held.volume_name, held.client)).or_default().insert(held.id);
    }

    /// Whether the client may be let in under this attachment now.
    pub fn admits(&self, held: &AttachmentAssignment) -> bool {
        let alone = |bearers: &BTreeSet<AttachmentId>| bearers.len() <= 1;
        !self.leaving.contains(&held.volume_name)
            && self.bearers.get(&(&held.volume_name, held.client)).is_none_or(alone)
    }

    /// Whether it is certain who may use the volume.
    pub fn are_settled(&self, volume: &VolumeAssignment) -> bool {
        let foreign = |meant: &BTreeSet<VolumeId>| meant.iter().any(|id| *id != volume.id);
        !self.unsettled.contains(&volume.id) && !self.meant.get(&volume.name).is_some_and(foreign)
    }
}
