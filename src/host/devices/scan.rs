//! Looking at the devices: sysfs for the facts, the devices themselves for what they carry.
//!
//! A dead device hangs whoever reads it. So each is read on a thread of its own that is waited for only so long, and
//! one that still hangs is not read again until that thread has come back.

use super::claims::{Claim, Uses, own_claims, parse_mounts, parse_swaps, relate};
use super::signature::identify;
use super::stable::stable_paths;
use super::sysfs::{Facts, facts, names};
use super::wipe::read_up_to;
use super::{Carries, Device, DeviceNumber, Kind};
use crate::host::block_device::{number_of, open_alone};
use crate::host::directory::FileError;
use crate::host::patience::{Stuck, within};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where the kernel shows itself.
#[derive(Clone, Debug)]
pub struct Roots {
    pub sys: PathBuf,
    pub dev: PathBuf,
    pub proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into() }
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Scanner {
    roots: Roots,
    /// How long a device may take to answer.
    patience: Duration,
    stuck: Mutex<BTreeMap<DeviceNumber, Stuck>>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new(Roots::default(), Duration::from_secs(10))
    }
}

impl Scanner {
    pub fn new(roots: Roots, patience: Duration) -> Self {
        Self { roots, patience, stuck: Mutex::default() }
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// All devices, by name.
    pub fn scan(&self) -> Result<Vec<Device>, FileError> {
        self.look_at(|_| true)
    }

    /// The devices that paths lead to, in the same order; none where there is no device.
    pub fn find(&self, paths: &[PathBuf]) -> Result<Vec<Option<Device>>, FileError> {
        let wanted: Vec<Option<String>> = {
            let all = self.facts()?;
            paths.iter().map(|path| self.name_of(path, &all)).collect()
        };
        let found = self.look_at(|facts| wanted.iter().flatten().any(|name| *name == facts.name))?;
        let device = |name: &String| found.iter().find(|device| device.name == *name).cloned();
        Ok(wanted.iter().map(|name| name.as_ref().and_then(device)).collect())
    }

    /// The kernel's name for the device that a path leads to: by the node itself, or by the number of another node.
    fn name_of(&self, path: &Path, all: &[Facts]) -> Option<String> {
        let real = path.canonicalize().ok()?;
        let number = number_of(&real).ok().flatten();
        let is_it = |facts: &&Facts| self.roots.dev.join(node(&facts.name)) == real || number == Some(facts.number);
        all.iter().find(is_it).map(|facts| facts.name.clone())
    }

    fn facts(&self) -> Result<Vec<Facts>, FileError> {
        let directory = self.roots.sys.join("class/block");
        // Without it nothing can be said; an empty list would be a lie.
        fs::read_dir(&directory).map_err(|error| FileError::new("list the devices in", &directory, error))?;
        Ok(names(&directory).iter().filter_map(|name| facts(&self.roots.sys, name)).collect())
    }

    /// All devices with their claims; of those that are not chosen the bytes are not read.
    fn look_at(&self, chosen: impl Fn(&Facts) -> bool) -> Result<Vec<Device>, FileError> {
        let facts = self.facts()?;
        let (uses, stable) = (self.uses()?, stable_paths(&self.roots.dev));
        let chosen: Vec<bool> = facts.iter().map(chosen).collect();
        let mut devices: Vec<Device> = facts.into_iter().map(|facts| self.device(facts, &uses, &stable)).collect();
        relate(&mut devices);
        for (device, _) in devices.iter_mut().zip(chosen).filter(|(_, chosen)| *chosen) {
            self.probe(device);
        }
        Ok(devices)
    }

    fn device(&self, facts: Facts, uses: &Uses, stable: &BTreeMap<PathBuf, PathBuf>) -> Device {
        let path = self.roots.dev.join(node(&facts.name));
        Device {
            stable_path: stable.get(&path).cloned(),
            claims: own_claims(&facts.name, &path, facts.number, &facts.holders, uses),
            carries: Carries::NotLookedAt,
            path,
            name: facts.name,
            number: facts.number,
            size: facts.size,
            model: facts.model,
            serial: facts.serial,
            rotational: facts.rotational,
            read_only: facts.read_only,
            removable: facts.removable,
            kind: facts.kind,
        }
    }

    fn uses(&self) -> Result<Uses, FileError> {
        let read = |name: &str| {
            let path = self.roots.proc.join(name);
            match fs::read_to_string(&path) {
                // A kernel without swap has no such file.
                Err(error) if error.kind() == io::ErrorKind::NotFound && name == "swaps" => Ok(String::new()),
                other => other.map_err(|error| FileError::new("read", path, error)),
            }
        };
        let place = self.roots.sys.join("fs/btrfs");
        let members = |id: &String| names(&place.join(id).join("devices"));
        let btrfs = names(&place).into_iter().filter(|id| id.len() == 36).map(|id| (id.clone(), members(&id)));
        // A mount is what it is to this process, whatever became of it elsewhere.
        let mounts = parse_mounts(&read("self/mountinfo")?);
        Ok(Uses { mounts, swaps: parse_swaps(&read("swaps")?), btrfs: btrfs.collect() })
    }

    /// Reads what a device carries, and tries whether somebody has it for himself.
    fn probe(&self, device: &mut Device) {
        if matches!(device.kind, Kind::LogicalVolume { .. } | Kind::Network) {
            return;
        }
        let mut stuck = self.stuck();
        stuck.retain(|_, stuck| !stuck.is_over());
        if let Some(stuck) = stuck.get(&device.number) {
            device.carries = Carries::Unknown(stuck.to_string());
            return;
        }
        drop(stuck);
        let (path, size, idle) = (device.path.clone(), device.size.as_u64(), device.claims.is_empty());
        let look = move |_: &_| -> io::Result<(bool, Carries)> {
            let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path)?;
            let found = identify(size, &mut |offset, length| read_up_to(&file, offset, length))?;
            drop(file);
            let busy = Some(nix::errno::Errno::EBUSY as i32);
            let taken = idle && matches!(open_alone(&path, false), Err(error) if error.raw_os_error() == busy);
            Ok((taken, Carries::Known(found)))
        };
        match within(format!("a look at {}", device.path.display()), self.patience, look) {
            Ok(Ok((taken, carries))) => {
                device.carries = carries;
                device.claims.extend(taken.then_some(Claim::Taken));
            }
            Ok(Err(error)) => device.carries = Carries::Unknown(error.to_string()),
            Err(stuck) => {
                device.carries = Carries::Unknown(stuck.to_string());
                self.stuck().insert(device.number, stuck);
            }
        }
    }

    fn stuck(&self) -> MutexGuard<'_, BTreeMap<DeviceNumber, Stuck>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Slashes in a device's name are exclamation marks in sysfs: `cciss!c0d0`.
fn node(name: &str) -> String {
    name.replace('!', "/")
}
