//! Volumes: what is planned for them, carried out, and their handles.

use super::claim::allowed;
use super::command::Devices;
use super::plan::volume::{plan_ensure, plan_open, plan_remove};
use super::plan::wipe::plan_wipe;
use super::plan::{Sight, copy, names};
use super::{LvmPool, lock};
use crate::backend::{BackendError, Ensured, Removed, VolumeLayout};
use crate::io::{BlockIo, FileIo};
use crate::model::{ByteSize, Source, VolumeId, VolumeSpec};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};

impl LvmPool {
    pub(super) fn keep(&self, layout: &VolumeLayout) -> Result<Ensured, BackendError> {
        check_layout(layout)?;
        let _turn = self.turns.take(layout.id);
        let underway = self.efforts.begin(layout.id);
        let (owed, planned) = self.plan(|sight| {
            let owed = copy::plan_finish(sight, layout.id)?;
            // Where something is owed the next look sees another picture.
            let planned = owed.is_empty().then(|| plan_ensure(sight, layout)).transpose()?;
            Ok((owed, planned))
        })?;
        self.carry_out_with(&owed, &underway.effort)?;
        let (steps, done) = match planned {
            Some(planned) => planned,
            None => self.plan(|sight| plan_ensure(sight, layout))?,
        };
        if done == Ensured::Reverted {
            self.check_closed(layout.id, "put back")?;
        }
        self.flush_source(layout)?;
        self.carry_out_with(&steps, &underway.effort)?;
        if let Some(shared) = self.shared(layout.id) {
            let grown = shared.grow(layout.size.as_u64());
            grown.map_err(|source| BackendError::Io { action: format!("cannot grow volume {}", layout.id), source })?;
        }
        Ok(done)
    }

    /// A thin copy is made at once; the source of a thick one is held still by LVM, until the copy is whole.
    pub(super) fn hold_still(&self, layout: &VolumeLayout, source: VolumeId) -> Result<(), BackendError> {
        check_layout(layout)?;
        let _turn = self.turns.take(layout.id);
        let steps = self.plan(|sight| copy::plan_begin(sight, layout, source))?;
        if steps.is_empty() {
            return Ok(());
        }
        self.flush_source(layout)?;
        self.carry_out_all(&steps)
    }

    pub(super) fn overwrite(&self, id: VolumeId) -> Result<(), BackendError> {
        let _turn = self.turns.take(id);
        let underway = self.efforts.begin(id);
        self.check_closed(id, "wipe")?;
        let steps = self.plan(|sight| plan_wipe(sight, id))?;
        self.carry_out_with(&steps, &underway.effort)
    }

    pub(super) fn destroy(&self, id: VolumeId) -> Result<Removed, BackendError> {
        let _turn = self.turns.take(id);
        self.check_closed(id, "remove")?;
        let steps = self.plan(|sight| plan_remove(sight, id))?;
        self.carry_out_all(&steps)?;
        lock(&self.open).remove(&id);
        Ok(if steps.is_empty() { Removed::WasAbsent } else { Removed::Gone })
    }

    pub(super) fn share(&self, id: VolumeId) -> Result<Arc<FileIo>, BackendError> {
        let _turn = self.turns.take(id);
        if let Some(shared) = self.shared(id) {
            return Ok(shared);
        }
        let (steps, size) = self.plan(|sight| plan_open(sight, id))?;
        self.carry_out_all(&steps)?;
        let (node, chunk) = (self.hands.node(&names::volume(id)), self.chunk);
        let path = node.clone();
        let opened = self.hands.work("open", &node, move |_| open(&path, size, chunk))?;
        let opened = Arc::new(match &self.surveyor {
            Some(surveyor) => surveyor.watch(id, opened),
            None => opened,
        });
        lock(&self.open).insert(id, Arc::downgrade(&opened));
        Ok(opened)
    }

    /// Looks at the group, in the queue, and lets somebody think about it.
    pub(super) fn plan<T>(&self, think: impl FnOnce(&Sight) -> Result<T, BackendError>) -> Result<T, BackendError> {
        self.hands.change(|| {
            let seen = self.hands.see(&self.devices()?)?;
            think(&self.sight(&seen)?)
        })
    }

    pub(super) fn devices(&self) -> Result<Devices, BackendError> {
        allowed(&self.settings().nodes)
    }

    /// What was written to the source of a copy and has not reached it goes there.
    fn flush_source(&self, layout: &VolumeLayout) -> Result<(), BackendError> {
        match layout.source {
            Some(Source::Volume(source)) => self.flush(source),
            Some(Source::Snapshot(_)) | None => Ok(()),
        }
    }

    /// A volume that nobody has open was flushed when it was closed.
    pub(super) fn flush(&self, id: VolumeId) -> Result<(), BackendError> {
        let Some(shared) = self.shared(id) else { return Ok(()) };
        let node = self.hands.node(&names::volume(id));
        self.hands.work("flush", &node, move |_| shared.flush())
    }

    fn check_closed(&self, id: VolumeId, verb: &str) -> Result<(), BackendError> {
        if self.shared(id).is_none() {
            return Ok(());
        }
        let action = format!("cannot {verb} volume {id} while it is open");
        Err(BackendError::Io { action, source: io::ErrorKind::ResourceBusy.into() })
    }

    fn shared(&self, id: VolumeId) -> Option<Arc<FileIo>> {
        lock(&self.open).get(&id).and_then(Weak::upgrade)
    }
}

fn check_layout(layout: &VolumeLayout) -> Result<(), BackendError> {
    match VolumeSpec::fault_of_size(layout.size) {
        Some(fault) => Err(BackendError::Refused(format!("volume {} cannot be made: {fault}", layout.id))),
        None => Ok(()),
    }
}

fn open(node: &Path, size: ByteSize, chunk: Option<u64>) -> io::Result<FileIo> {
    let file = File::options().read(true).write(true).open(node)?;
    FileIo::within(file, size.as_u64(), chunk)
}
