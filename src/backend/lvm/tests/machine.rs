//! A machine of directories with disks of files, and the model of LVM on it.

use super::model::Model;
use crate::backend::lvm::{Ground, Kind, LvmPool, Room, Settings};
use crate::backend::{BackendError, Ensured, PoolIdentity, Removed, SnapshotLayout, VolumeLayout};
use crate::host::devices::{Roots, Scanner};
use crate::io::BlockIo;
use crate::model::{ByteSize, ClusterId, Generation, PoolId, SnapshotId, VolumeId};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

pub const KINDS: [Kind; 2] = [Kind::Thick, Kind::Thin];

pub struct Machine {
    scratch: TempDir,
    pub model: Arc<Model>,
    pub ground: Ground,
    pub identity: PoolIdentity,
    pub settings: Settings,
}

impl Machine {
    /// Three disks, `vdb` to `vdd`, of which a pool is to have the first two.
    pub fn new(kind: Kind) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for name in ["sys/class/block", "dev", "proc/self"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("proc/self/mountinfo"), "").unwrap();
        let model = Arc::new(Model::new(&at("dev")));
        let roots = Roots { sys: at("sys"), dev: at("dev"), proc: at("proc") };
        let patience = Duration::from_secs(60);
        let scanner = Arc::new(Scanner::new(roots, patience));
        let (lvm, mapper) = (Arc::clone(&model) as _, Arc::clone(&model) as _);
        let ground = Ground { lvm, mapper, scanner, locks: at("locks"), patience };
        let identity =
            PoolIdentity { cluster: ClusterId::generate(), pool: PoolId::generate(), name: "fast".parse().unwrap() };
        let settings = Settings {
            kind,
            devices: vec![at("dev/vdb"), at("dev/vdc")],
            wipe: BTreeSet::new(),
            room: Room::default(),
            ceiling: None,
        };
        let machine = Self { scratch, model, ground, identity, settings };
        for (number, name) in ["vdb", "vdc", "vdd"].into_iter().enumerate() {
            machine.plug(name, number);
        }
        machine
    }

    fn plug(&self, name: &str, number: usize) {
        let place = self.scratch.path().join("sys/class/block").join(name);
        fs::create_dir_all(place.join("holders")).unwrap();
        fs::write(place.join("dev"), format!("254:{}", 16 * (number + 1))).unwrap();
        self.resize(name, 512 << 20);
    }

    pub fn resize(&self, name: &str, size: u64) {
        let place = self.scratch.path().join("sys/class/block").join(name);
        fs::write(place.join("size"), (size / 512).to_string()).unwrap();
        let file = fs::File::options().create(true).truncate(false).write(true).open(self.device(name)).unwrap();
        file.set_len(size).unwrap();
    }

    pub fn unplug(&self, name: &str) {
        fs::remove_dir_all(self.scratch.path().join("sys/class/block").join(name)).unwrap();
        fs::remove_file(self.device(name)).unwrap();
    }

    pub fn device(&self, name: &str) -> PathBuf {
        self.scratch.path().join("dev").join(name)
    }

    /// So many percent of the thin pool's data, and of its metadata, are used, as LVM and the kernel have it.
    pub fn fill(&self, data: f64, metadata: f64) {
        let mut state = self.model.state();
        let pool = state.groups.get_mut(&self.group()).unwrap().lvs.get_mut("thin-pool").unwrap();
        (pool.percent, pool.metadata_percent) = (Some(data), metadata);
        let of_a_thousand = |percent: f64| (percent * 10.0) as u64;
        (state.mapper.data, state.mapper.used) = ((of_a_thousand(data), 1000), of_a_thousand(metadata));
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
        crate::backend::lvm::group_name(self.identity.pool)
    }
}

pub fn layout(mib: u64) -> VolumeLayout {
    VolumeLayout {
        id: VolumeId::generate(),
        name: "db-01".parse().unwrap(),
        generation: Generation::FIRST,
        size: ByteSize::mib(mib),
        source: None,
        revert: None,
        shrunk: None,
        made: false,
    }
}

pub fn resized(layout: &VolumeLayout, mib: u64) -> VolumeLayout {
    VolumeLayout { size: ByteSize::mib(mib), generation: layout.generation.next(), made: true, ..layout.clone() }
}

pub fn read(io: &dyn BlockIo) -> Vec<u8> {
    let mut bytes = vec![0xff; io.size() as usize];
    io.read(&mut bytes, 0).unwrap();
    bytes
}

pub fn snapshot_of(volume: VolumeId) -> SnapshotLayout {
    SnapshotLayout { id: SnapshotId::generate(), name: "monday".parse().unwrap(), volume, room: None }
}
