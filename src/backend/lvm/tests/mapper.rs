//! Device-mapper on the model of LVM: a thin pool whose metadata are written to a file when somebody holds them, with what
//! the files of its volumes occupy at that moment.

use super::model::Model;
use crate::backend::lvm::Mapper;
use crate::backend::lvm::command::Call;
use crate::backend::lvm::thin::mapper::name_of;
use crate::backend::lvm::thin::metadata::tests::{CHUNK, Written};
use crate::host::device_mapper::Target;
use crate::io::{BlockIo, FileIo};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;

/// Told of every change of LVM's before it is carried out.
pub type Listener = Box<dyn Fn(&Call) + Send>;

/// Called once, when the metadata have just been held.
pub type Meddler = Box<dyn FnOnce() + Send>;

/// What device-mapper knows besides what LVM says.
#[derive(Default)]
pub struct Kernel {
    /// The metadata are held.
    pub held: bool,
    /// What was held was damaged on its way to the disk.
    pub damaged: bool,
    /// Metadata blocks in use, of a thousand.
    pub used: u64,
    /// Chunks in use, and all.
    pub data: (u64, u64),
    /// How often they were held.
    pub holds: usize,
    /// How often LVM was asked.
    pub looks: usize,
    pub meddler: Option<Meddler>,
    /// How many messages are still obeyed, and whether the one behind them is obeyed before it fails.
    pub fuse: Option<(usize, bool)>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("held", &self.held).finish_non_exhaustive()
    }
}

fn absent() -> io::Error {
    io::Error::from_raw_os_error(nix::libc::ENXIO)
}

fn target(kind: &str, line: &str) -> Vec<Target> {
    vec![Target { kind: kind.to_owned(), words: line.split(' ').map(str::to_owned).collect() }]
}

/// A device's number within its pool: no other of its time has it.
fn device(name: &str) -> u64 {
    name.bytes().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))) >> 40
}

impl Model {
    /// The group and the logical volume that device-mapper knows by that name.
    fn called(&self, name: &str) -> Option<(String, String)> {
        let state = self.state();
        let all = state.groups.iter().flat_map(|(group, held)| held.lvs.keys().map(move |lv| (group, lv)));
        let own = |(group, lv): &(&String, &String)| {
            let plain = name_of(group, lv);
            if *lv == "thin-pool" { format!("{plain}-tpool") == name } else { plain == name }
        };
        let found = all.into_iter().find(own);
        found.map(|(group, lv)| (group.clone(), lv.clone()))
    }

    /// What of a volume's file is no hole.
    fn occupied(&self, group: &str, lv: &str) -> BTreeSet<u64> {
        let io = FileIo::new(File::open(self.node(group, lv)).unwrap()).unwrap();
        let extents = io.extents(0, io.size(), usize::MAX).unwrap();
        let data = extents.iter().filter(|extent| !extent.hole);
        data.flat_map(|extent| extent.offset / CHUNK..=(extent.offset + extent.length - 1) / CHUNK).collect()
    }

    fn write_down(&self, group: &str) {
        let lvs: Vec<String> = self.state().groups[group].lvs.keys().cloned().collect();
        let volumes = lvs.iter().filter(|lv| *lv != "thin-pool");
        let devices: BTreeMap<u64, BTreeSet<u64>> = volumes.map(|lv| (device(lv), self.occupied(group, lv))).collect();
        let mut written = Written::of(&devices, 9);
        if self.state().mapper.damaged {
            written.put(1, 100, &[0xff; 8]);
        }
        std::fs::write(self.dev.join("dm-0"), written.blocks.as_flattened()).unwrap();
    }
}

impl Mapper for Model {
    fn table(&self, name: &str) -> io::Result<Vec<Target>> {
        let (_, lv) = self.called(name).ok_or_else(absent)?;
        Ok(match lv.as_str() {
            "thin-pool" => {
                // It is there as long as the pool is, whoever holds what is on it.
                File::options().create(true).truncate(false).write(true).open(self.dev.join("dm-0"))?;
                target("thin-pool", "253:0 253:1 128 0 1 error_if_no_space")
            }
            volume => target("thin", &format!("253:2 {}", device(volume))),
        })
    }

    fn status(&self, name: &str) -> io::Result<Vec<Target>> {
        self.called(name).ok_or_else(absent)?;
        let state = self.state();
        let held = if state.mapper.held { "0" } else { "-" };
        let Kernel { used, data: (taken, all), .. } = &state.mapper;
        Ok(target("thin-pool", &format!("1 {used}/1000 {taken}/{all} {held} rw discard_passdown")))
    }

    fn message(&self, name: &str, message: &str) -> io::Result<()> {
        let (group, _) = self.called(name).ok_or_else(absent)?;
        let mut state = self.state();
        let kernel = &mut state.mapper;
        let dies = match &mut kernel.fuse {
            Some((0, true)) => true,
            Some((0, false)) => {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Some((left, _)) => {
                *left -= 1;
                false
            }
            None => false,
        };
        let meddler = match (message, kernel.held) {
            ("reserve_metadata_snap", false) => {
                kernel.held = true;
                kernel.holds += 1;
                kernel.meddler.take()
            }
            ("release_metadata_snap", true) => {
                kernel.held = false;
                None
            }
            // The kernel refuses to hold twice, and to let go of nothing.
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        drop(state);
        if message == "reserve_metadata_snap" {
            self.write_down(&group);
        }
        if let Some(meddle) = meddler {
            meddle();
        }
        if dies { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
}
