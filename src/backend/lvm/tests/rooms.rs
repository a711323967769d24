//! What the devices show of volumes that become longer, active, inactive or split off, in the model of LVM.

use super::model::{Done, EXTENT, Model, State, Volume, Words};
use crate::backend::lvm::command::Call;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const GARBAGE: u8 = 0xa5;

impl Model {
    /// Makes the file of a volume so long; what is new of a thick one was somebody's.
    pub fn lengthen(&self, group: &str, name: &str, lv: &Volume) {
        let node = self.node(group, name);
        fs::create_dir_all(node.parent().unwrap()).unwrap();
        let file = File::options().create(true).truncate(false).write(true).open(node).unwrap();
        let (old, new) = (file.metadata().unwrap().len(), lv.extents * EXTENT);
        file.set_len(new).unwrap();
        if lv.segments == "linear" {
            let garbage = vec![GARBAGE; EXTENT as usize];
            (old..new).step_by(EXTENT as usize).for_each(|at| file.write_all_at(&garbage, at).unwrap());
        }
    }

    /// `lvconvert --splitsnapshot`, as `_lvconvert_splitsnapshot` in LVM's `tools/lvconvert.c`: refused for what is no classic
    /// snapshot, and while its device is open; with a question that `--yes` answers while it is active. The rest is
    /// `vg_remove_snapshot` in `lib/metadata/snapshot_manip.c`, which a removal of the snapshot goes through too: a volume of
    /// the same name and tags that is active if its origin was.
    pub fn split(&self, state: &mut State, words: &Words) -> Done {
        assert!(words.get("--splitsnapshot").is_some() && words.get("--yes").is_some(), "LVM would ask back");
        let (group, name) = words.places[0].split_once('/').unwrap();
        let lvs = &mut state.groups.get_mut(group).ok_or("no such group")?.lvs;
        let lv = lvs.get_mut(name).ok_or("no such volume")?;
        if !lv.is_classic() {
            return Err(format!("Command not permitted on LV {group}/{name}."));
        }
        if lv.held && lv.active {
            return Err(format!("Logical volume {group}/{name} in use."));
        }
        (lv.origin, lv.overflowed, lv.percent) = (None, false, None);
        let lv = lv.clone();
        self.show_room(group, name, &lv);
        Ok(())
    }

    /// What the device of a volume that was a snapshot shows: exceptions in LVM's order, with old bytes of its origin.
    fn show_room(&self, group: &str, name: &str, lv: &Volume) {
        let file = File::options().write(true).open(self.node(group, name)).unwrap();
        file.set_len(lv.extents * EXTENT).unwrap();
        let old = vec![GARBAGE; EXTENT as usize];
        (0..lv.extents).for_each(|extent| file.write_all_at(&old, extent * EXTENT).unwrap());
    }

    /// LVM has been killed when its metadata were on the disk. It commits them before it tells the kernel: until somebody
    /// makes the volume active from inactive, its device is that of the snapshot.
    pub fn cut_short(&self, state: &mut State, call: &Call) {
        if call.verb() != "lvconvert" {
            return;
        }
        let words = Words::of(call);
        let (group, name) = words.places[0].split_once('/').unwrap();
        let lv = state.groups.get_mut(group).unwrap().lvs.get_mut(name).unwrap();
        if lv.active {
            lv.stale = true;
            // As long as what it was a snapshot of.
            File::options().write(true).open(self.node(group, name)).unwrap().set_len(2 * EXTENT).unwrap();
        }
    }

    /// `lvchange --activate`: what is active already stays what it is, whatever the metadata say by now.
    pub fn switch(&self, state: &mut State, words: &Words) -> Done {
        let (group, name) = words.places[0].split_once('/').unwrap();
        let lvs = &mut state.groups.get_mut(group).ok_or("no such group")?.lvs;
        let lv = lvs.get_mut(name).ok_or("no such volume")?;
        assert!(!lv.is_classic(), "LVM asks back: change of a snapshot will also change its origin");
        let on = words.get("--activate") == Some("y");
        if !on && lv.held {
            return Err(format!("Logical volume {group}/{name} in use."));
        }
        let before = std::mem::replace(&mut lv.active, on);
        let fresh = on && !before && std::mem::take(&mut lv.stale);
        let lv = lv.clone();
        if fresh {
            self.show_room(group, name, &lv);
        }
        let with_it = |lv: &&mut Volume| lv.is_classic() && lv.origin.as_deref() == Some(name);
        lvs.values_mut().filter(with_it).for_each(|lv| lv.active = on);
        Ok(())
    }
}
