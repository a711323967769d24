//! Every verb killed before and after each of its changes, and repeated.

use super::machine::{KINDS, Machine, layout, read, resized, snapshot_of};
use crate::backend::{Backend, BackendError, Ensured, Removed, SnapshotLayout, VolumeLayout};
use crate::io::BlockIo;
use crate::model::Timestamp;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    MakePool,
    ExtendPool,
    Create,
    Grow,
    Shrink,
    Rename,
    Remove,
    /// Of thick volumes only, as the next one.
    Wipe,
    /// Of a snapshot.
    WipeRoom,
    Release,
}

const ACTS: [Act; 10] = [
    Act::MakePool,
    Act::ExtendPool,
    Act::Create,
    Act::Grow,
    Act::Shrink,
    Act::Rename,
    Act::Remove,
    Act::Wipe,
    Act::WipeRoom,
    Act::Release,
];

struct Stage {
    machine: Machine,
    subject: VolumeLayout,
    bystander: VolumeLayout,
    snapshot: SnapshotLayout,
    act: Act,
}

impl Stage {
    fn new(kind: crate::backend::lvm::Kind, act: Act) -> Self {
        let size = if act == Act::Shrink { 19 } else { 3 };
        let (machine, subject) = (Machine::new(kind), layout(size));
        let snapshot = snapshot_of(subject.id);
        let stage = Self { machine, subject, bystander: layout(1), snapshot, act };
        if act == Act::MakePool {
            return stage;
        }
        let pool = stage.machine.open(false);
        if act != Act::Release {
            stage.fill(&pool, &stage.bystander);
        }
        if [Act::Grow, Act::Shrink, Act::Rename, Act::Remove, Act::Wipe, Act::WipeRoom].contains(&act) {
            stage.fill(&pool, &stage.subject);
        }
        if act == Act::WipeRoom {
            pool.stage_snapshot(&stage.snapshot, Timestamp::EPOCH).unwrap();
            pool.settle_snapshot(stage.snapshot.id).unwrap();
        }
        if act == Act::Shrink {
            // Behind the end that is to come: in what stays of its extent, and in one that goes.
            let io = pool.open_volume(stage.subject.id).unwrap();
            [5u64 << 20, 17 << 20].iter().for_each(|at| io.write(b"to be gone", *at, true).unwrap());
        }
        stage
    }

    fn fill(&self, pool: &dyn Backend, volume: &VolumeLayout) {
        pool.ensure_volume(volume).unwrap();
        pool.open_volume(volume.id).unwrap().write(b"precious", 4096, true).unwrap();
    }

    /// What the act makes of the subject.
    fn wanted(&self) -> VolumeLayout {
        match self.act {
            Act::Grow => resized(&self.subject, 9),
            Act::Shrink => {
                let smaller = resized(&self.subject, 5);
                VolumeLayout { shrunk: Some(smaller.generation), ..smaller }
            }
            Act::Rename => VolumeLayout { name: "other".parse().unwrap(), ..resized(&self.subject, 3) },
            _ => self.subject.clone(),
        }
    }

    fn run(&mut self) -> Result<(), BackendError> {
        if self.act == Act::ExtendPool {
            self.machine.settings.devices = ["vdb", "vdc", "vdd"].map(|name| self.machine.device(name)).to_vec();
        }
        let made = ![Act::MakePool, Act::Release].contains(&self.act);
        match self.act {
            Act::MakePool | Act::ExtendPool => self.machine.ensure(made).map(drop),
            Act::Create | Act::Grow | Act::Shrink | Act::Rename => {
                self.machine.open(made).ensure_volume(&self.wanted()).map(drop)
            }
            Act::Remove => self.machine.open(made).remove_volume(self.subject.id).map(drop),
            Act::Wipe => {
                let pool = self.machine.open(made);
                pool.wipe_volume(self.subject.id)?;
                pool.remove_volume(self.subject.id).map(drop)
            }
            Act::WipeRoom => {
                let pool = self.machine.open(made);
                pool.wipe_snapshot(self.snapshot.id)?;
                pool.remove_snapshot(self.snapshot.id).map(drop)
            }
            Act::Release => self.machine.release_at().map(drop),
        }
    }

    fn check(&self) {
        if self.act == Act::Release {
            assert!(self.machine.model.state().pvs.is_empty() && self.machine.model.state().groups.is_empty());
            assert_eq!(self.machine.release_at().unwrap(), Removed::WasAbsent);
            let (_, done) = self.machine.ensure(false).unwrap();
            return assert_eq!(done, Ensured::Created, "its devices are free for another");
        }
        let (pool, done) = self.machine.ensure(true).unwrap();
        assert_eq!(done, Ensured::Unchanged);
        let bystander = VolumeLayout { made: true, ..self.bystander.clone() };
        if self.act != Act::MakePool {
            assert_eq!(pool.ensure_volume(&bystander).unwrap(), Ensured::Unchanged);
            assert_eq!(&read(&*pool.open_volume(bystander.id).unwrap())[4096..4104], b"precious");
        }
        match self.act {
            Act::Create | Act::Grow | Act::Shrink | Act::Rename => self.check_subject(&pool),
            Act::Remove | Act::Wipe => {
                if self.act == Act::Wipe {
                    let emptied = &self.machine.model.state().emptied;
                    assert_eq!(emptied.get(&self.subject.id.to_string()), Some(&true), "its bytes were given back");
                }
                pool.wipe_volume(self.subject.id)
                    .map_or_else(|error| assert!(error.to_string().contains("thin")), |()| {});
                assert_eq!(pool.remove_volume(self.subject.id).unwrap(), Removed::WasAbsent);
                assert_eq!(pool.observe_volumes().unwrap().len(), 1);
            }
            Act::WipeRoom => {
                let room = format!("s-{}", self.snapshot.id);
                assert_eq!(self.machine.model.state().emptied.get(&room), Some(&true), "old bytes were given back");
                pool.wipe_snapshot(self.snapshot.id).unwrap();
                assert_eq!(pool.remove_snapshot(self.snapshot.id).unwrap(), Removed::WasAbsent);
                self.check_subject(&pool);
            }
            Act::ExtendPool => {
                let use_now = pool.observe_use().unwrap().data;
                assert!(use_now.capacity.as_u64() > 1300 << 20, "three devices: {use_now:?}");
            }
            Act::MakePool | Act::Release => {}
        }
    }

    fn check_subject(&self, pool: &dyn Backend) {
        let wanted = VolumeLayout { made: true, ..self.wanted() };
        assert_eq!(pool.ensure_volume(&wanted).unwrap(), Ensured::Unchanged);
        let io: Arc<dyn BlockIo> = pool.open_volume(wanted.id).unwrap();
        let mut bytes = read(&*io);
        assert_eq!(bytes.len() as u64, wanted.size.as_u64());
        if self.act != Act::Create {
            assert_eq!(&bytes[4096..4104], b"precious");
            bytes[4096..4104].fill(0);
        }
        assert!(bytes.iter().all(|byte| *byte == 0), "somebody else's bytes");
        if self.act == Act::Shrink {
            drop(io);
            let larger = resized(&wanted, 19);
            assert_eq!(pool.ensure_volume(&larger).unwrap(), Ensured::Grown);
            let again = read(&*pool.open_volume(wanted.id).unwrap());
            assert!(again[8192..].iter().all(|byte| *byte == 0), "what was cut off has come back");
        }
    }
}

#[test]
fn a_verb_killed_at_any_change_and_repeated_comes_to_the_same_end() {
    let all = KINDS.into_iter().flat_map(|kind| ACTS.map(|act| (kind, act)));
    let thick_only = |act| [Act::Wipe, Act::WipeRoom].contains(&act);
    for (kind, act) in all.filter(|(kind, act)| *kind == super::super::Kind::Thick || !thick_only(*act)) {
        let mut kills = 0;
        for (fuse, after) in (0..).flat_map(|fuse| [(fuse, false), (fuse, true)]) {
            let mut stage = Stage::new(kind, act);
            stage.machine.model.state().fuse = Some((fuse, after));
            let first = stage.run();
            let spared = stage.machine.model.state().fuse.take().is_some();
            assert_eq!(first.is_ok(), spared, "{kind} {act:?} {fuse} {after}: {first:?}");
            if !spared {
                kills += 1;
                stage.run().unwrap_or_else(|error| panic!("{kind} {act:?} {fuse} {after}: {error}"));
            }
            stage.check();
            if spared {
                break;
            }
        }
        assert!(kills >= 2, "{kind} {act:?} changes something");
    }
}

#[test]
fn what_is_in_the_making_is_no_volume_and_does_not_keep_the_pool() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let pool = machine.open(false);
        let volume = layout(1);
        machine.model.state().fuse = Some((0, true));
        pool.ensure_volume(&volume).unwrap_err();
        assert_eq!(
            machine.model.state().groups[&machine.group()].lvs.len(),
            1 + usize::from(kind == super::super::Kind::Thin)
        );
        assert!(pool.observe_volumes().unwrap().is_empty());
        assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Refused(_))));
        assert_eq!(pool.release().unwrap(), Removed::Gone);
        assert!(machine.model.state().groups.is_empty());
    }
}

#[test]
fn a_removal_that_was_cut_short_leaves_nothing_that_can_be_opened_or_kept() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let pool = machine.open(false);
        let volume = layout(1);
        pool.ensure_volume(&volume).unwrap();
        machine.model.state().fuse = Some((0, true));
        pool.remove_volume(volume.id).unwrap_err();
        assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Refused(_))));
        assert!(matches!(
            pool.ensure_volume(&VolumeLayout { made: true, ..volume.clone() }),
            Err(BackendError::Refused(_))
        ));
        assert!(pool.observe_volumes().unwrap()[0].damage.is_some());
        assert!(matches!(pool.release(), Err(BackendError::Refused(_))));
        assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
    }
}

#[test]
fn a_volume_that_lost_its_last_change_to_a_power_cut_keeps_its_bytes() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let pool = machine.open(false);
        let volume = layout(1);
        pool.ensure_volume(&volume).unwrap();
        pool.open_volume(volume.id).unwrap().write(b"kept", 0, true).unwrap();
        let made = VolumeLayout { made: true, ..volume.clone() };
        for tags in [vec!["symphony.state=making"], vec![]] {
            {
                let mut state = machine.model.state();
                let lv = state.groups.get_mut(&machine.group()).unwrap().lvs.get_mut(&volume.id.to_string()).unwrap();
                match tags.as_slice() {
                    [] => lv.tags.clear(),
                    [making] => {
                        lv.tags.remove("symphony.state=ready");
                        lv.tags.insert((*making).to_owned());
                    }
                    _ => unreachable!(),
                }
            }
            assert_eq!(pool.ensure_volume(&made).unwrap(), Ensured::Updated);
            assert_eq!(&read(&*pool.open_volume(volume.id).unwrap())[..4], b"kept");
        }
    }
}
