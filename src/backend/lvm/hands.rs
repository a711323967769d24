//! What does things for one volume group: calls of LVM and I/O on its devices, each with an end to its patience.

use super::command::{Call, Devices};
use super::queue::Queue;
use super::report::{self, Reported};
use super::runner::{Lvm, LvmError};
use super::thin::mapper::Mapper;
use crate::backend::BackendError;
use crate::host::device_mapper::DeviceMapper;
use crate::host::devices::Scanner;
use crate::host::patience::{Pulse, within};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What all LVM pools of a host stand on.
#[derive(Clone)]
pub struct Ground {
    pub lvm: Arc<dyn Lvm>,
    pub mapper: Arc<dyn Mapper>,
    pub scanner: Arc<Scanner>,
    /// Where the locks of volume groups are; the same for all processes of the host.
    pub locks: PathBuf,
    /// How long a device may take for one piece of work.
    pub patience: Duration,
}

impl Ground {
    /// This host's own.
    pub fn of_host(lvm: Arc<dyn Lvm>) -> Self {
        let scanner = Arc::new(Scanner::default());
        let mapper = Arc::new(DeviceMapper::new(&scanner.roots().dev));
        Self { lvm, mapper, scanner, locks: "/run/lock/symphony".into(), patience: Duration::from_secs(60) }
    }
}

/// See the module's text.
pub(super) struct Hands {
    pub ground: Ground,
    pub group: String,
    pub queue: Queue,
}

impl Hands {
    pub fn new(ground: Ground, group: String) -> Self {
        Self { ground, group, queue: Queue::default() }
    }

    /// The node of a logical volume.
    pub fn node(&self, name: &str) -> PathBuf {
        self.ground.scanner.roots().dev.join(&self.group).join(name)
    }

    /// Does a change when all that came before it are done.
    pub fn change<T>(&self, work: impl FnOnce() -> Result<T, BackendError>) -> Result<T, BackendError> {
        let _place = self.queue.enter().map_err(|stuck| LvmError::Stuck(stuck).at(&self.group))?;
        work()
    }

    /// What is on the devices now, whatever changes are under way.
    pub fn look(&self, devices: &Devices) -> Result<Reported, BackendError> {
        self.queue.look(|| self.report(devices)).map_err(|error| error.at(&self.group))
    }

    /// What is on the devices, for a change. The caller is in the queue.
    pub fn see(&self, devices: &Devices) -> Result<Reported, BackendError> {
        let outcome = self.report(devices);
        if let Err(LvmError::Stuck(stuck)) = &outcome {
            self.queue.note(stuck);
        }
        outcome.map_err(|error| error.at(&self.group))
    }

    /// Changes something. The caller is in the queue.
    pub fn run(&self, call: &Call) -> Result<(), BackendError> {
        let outcome = self.ground.lvm.call(call);
        if let Err(LvmError::Stuck(stuck)) = &outcome {
            self.queue.note(stuck);
        }
        outcome.map(drop).map_err(|error| error.at(&self.group))
    }

    fn report(&self, devices: &Devices) -> Result<Reported, LvmError> {
        let call = devices.report();
        let json = self.ground.lvm.call(&call)?;
        report::parse(&json).map_err(|source| LvmError::Odd { call: call.shown(), source })
    }

    /// Works on a device. What hangs there blocks every later change of the group, since it may go on one day.
    pub fn work<T: Send + 'static>(
        &self,
        action: &str,
        path: &Path,
        work: impl FnOnce(&Pulse) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BackendError> {
        let what = format!("{action} {}", path.display());
        match within(format!("'{what}'"), self.ground.patience, work) {
            Ok(outcome) => outcome.map_err(|source| BackendError::Io { action: format!("cannot {what}"), source }),
            Err(stuck) => {
                self.queue.note(&stuck);
                Err(LvmError::Stuck(stuck).at(&self.group))
            }
        }
    }

    /// Makes what LVM has written durable: it writes past the kernel's cache, not past the disk's.
    pub fn settle(&self, devices: &[PathBuf]) -> Result<(), BackendError> {
        for device in devices {
            let path = device.clone();
            self.work("flush", device, move |_| File::open(path)?.sync_all())?;
        }
        Ok(())
    }
}
