//! Where LVM's drivers are tried: loop devices, which any Linux with root rights has, and disks for logical volumes,
//! which need device-mapper: `tests/vm` gives them by [`DISKS`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use symphony::backend::lvm::{Executable, Ground, Kind, LvmPool, Room, Settings, group_name};
use symphony::backend::{BackendError, Ensured, PoolIdentity, Removed};

/// Names disks, separated by commas, whose content may be destroyed.
const DISKS: &str = "SYMPHONY_CONFORMANCE_DISKS";

/// What every host without udev needs, as a user would say it.
const WITHOUT_UDEV: &str = "activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 } \
devices { obtain_device_list_from_udev=0 external_device_info_source=\"none\" use_devicesfile=0 } \
global { event_activation=0 use_lvmpolld=0 }";

pub fn disks_are_given() -> bool {
    std::env::var_os(DISKS).is_some()
}

/// The disks there are for logical volumes; none, with a word, where there are none.
pub fn disks() -> Option<Vec<PathBuf>> {
    match std::env::var(DISKS) {
        Ok(disks) => Some(disks.split(',').map(PathBuf::from).collect()),
        Err(_) => {
            eprintln!("skipped: logical volumes need device-mapper and disks named by {DISKS}: make test-vm has them");
            None
        }
    }
}

/// One test at a time has the disks of a driver.
fn alone(kind: Kind) -> MutexGuard<'static, ()> {
    static DISKS_IN_USE: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
    DISKS_IN_USE[usize::from(kind == Kind::Thin)].lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pool's words, and the tools to do to its devices what symphony never would.
pub struct Stage {
    pub ground: Ground,
    pub identity: PoolIdentity,
    pub settings: Settings,
}

impl Stage {
    /// None, with a word, where LVM is not installed.
    pub fn new(kind: Kind, devices: &[PathBuf]) -> Option<Self> {
        let lvm = Executable::installed().inspect_err(|error| eprintln!("skipped: {error}")).ok()?;
        let (devices, wipe) = (devices.to_vec(), BTreeSet::new());
        let settings = Settings { kind, devices, wipe, room: Room::default(), ceiling: None };
        Some(Self { ground: Ground::of_host(Arc::new(lvm)), identity: crate::backend::identity(), settings })
    }

    pub fn ensure(&self, made: bool) -> Result<(LvmPool, Ensured), BackendError> {
        LvmPool::ensure(&self.ground, &self.identity, &self.settings, made)
    }

    pub fn open(&self, made: bool) -> LvmPool {
        self.ensure(made).unwrap().0
    }

    pub fn release_at(&self) -> Result<Removed, BackendError> {
        LvmPool::release_at(&self.ground, &self.identity, &self.settings)
    }

    pub fn group(&self) -> String {
        group_name(self.identity.pool)
    }

    /// LVM as an administrator calls it, on these devices; what it says on both outputs.
    pub fn lvm(&self, devices: &[PathBuf], arguments: &[&str]) -> String {
        let (verb, arguments) = arguments.split_first().unwrap();
        let devices = devices.iter().map(|device| device.to_str().unwrap()).collect::<Vec<_>>().join(",");
        let mut command = Command::new("lvm");
        command.args([verb, "--config", WITHOUT_UDEV, "--devices", &devices]).args(arguments);
        let done = command.env("LVM_SUPPRESS_FD_WARNINGS", "1").output().unwrap();
        let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        assert!(done.status.success(), "{verb} {arguments:?}: {said}");
        said
    }

    /// Takes away all volumes, whatever a test left of them; what cannot be taken away is for the next test to meet.
    fn clear(&self) {
        let devices = self.settings.devices.iter().map(|device| text(device)).collect::<Vec<_>>().join(",");
        let group = self.group();
        let lvm = |verb: &str, arguments: &[&str]| {
            let common = [verb, "--config", WITHOUT_UDEV, "--devices", &devices];
            Command::new("lvm").args(common).args(arguments).output().map(|done| done.stdout).unwrap_or_default()
        };
        let names = lvm("lvs", &["--noheadings", "--options", "lv_name", &group]);
        let names = String::from_utf8_lossy(&names);
        let names = names.split_whitespace().filter(|name| *name != "thin-pool");
        let names: Vec<String> = names.map(|name| format!("{group}/{name}")).collect();
        if !names.is_empty() {
            let names = names.iter().map(String::as_str);
            lvm("lvremove", &["--force", "--yes"].into_iter().chain(names).collect::<Vec<_>>());
        }
    }
}

/// A pool on real disks, the same for all tests: making one takes many calls, and each is slow under emulation.
pub struct OnDisks {
    pub stage: Stage,
    _alone: MutexGuard<'static, ()>,
}

impl OnDisks {
    /// Half of the disks are for either driver.
    pub fn new(kind: Kind) -> Option<Self> {
        static IDENTITIES: OnceLock<[PoolIdentity; 2]> = OnceLock::new();
        let disks = disks()?;
        let alone = alone(kind);
        let (thick, thin) = disks.split_at(disks.len() / 2);
        let mut stage = Stage::new(kind, if kind == Kind::Thin { thin } else { thick })?;
        let identities = IDENTITIES.get_or_init(|| [crate::backend::identity(), crate::backend::identity()]);
        stage.identity = identities[usize::from(kind == Kind::Thin)].clone();
        // What an earlier run of the program left there belongs to nobody.
        stage.settings.wipe.extend(stage.settings.devices.clone());
        Some(Self { stage, _alone: alone })
    }
}

impl Drop for OnDisks {
    fn drop(&mut self) {
        self.stage.clear();
    }
}

/// Runs a tool of the host that must succeed.
pub fn tool(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
