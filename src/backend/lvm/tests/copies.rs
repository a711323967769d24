//! Snapshots, copies and putting back, killed before and after each change of LVM's, and repeated or taken back.

use super::machine::{KINDS, Machine, layout, read, resized, snapshot_of};
use crate::backend::lvm::{Kind, LvmPool};
use crate::backend::{Backend, BackendError, Ensured, Removed, SnapshotLayout, VolumeLayout};
use crate::model::{Revert, Source, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Stage,
    StageAnew,
    Settle,
    CopySnapshot,
    CopyVolume,
    PutBack,
    RemoveSnapshot,
}

const ACTS: [Act; 7] =
    [Act::Stage, Act::StageAnew, Act::Settle, Act::CopySnapshot, Act::CopyVolume, Act::PutBack, Act::RemoveSnapshot];

struct Stage {
    machine: Machine,
    kind: Kind,
    act: Act,
    subject: VolumeLayout,
    copy: VolumeLayout,
    snapshot: SnapshotLayout,
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

impl Stage {
    fn new(kind: Kind, act: Act) -> Self {
        let (machine, subject) = (Machine::new(kind), layout(3));
        let snapshot = snapshot_of(subject.id);
        let source = match act {
            Act::CopyVolume => Source::Volume(subject.id),
            _ => Source::Snapshot(snapshot.id),
        };
        let copy = VolumeLayout { source: Some(source), ..layout(5) };
        let pool = machine.open(false);
        pool.ensure_volume(&subject).unwrap();
        pool.open_volume(subject.id).unwrap().write(b"precious", 4096, true).unwrap();
        if act != Act::Stage {
            pool.stage_snapshot(&snapshot, at(1)).unwrap();
        }
        if [Act::CopySnapshot, Act::PutBack, Act::RemoveSnapshot].contains(&act) {
            pool.settle_snapshot(snapshot.id).unwrap();
            pool.open_volume(subject.id).unwrap().write(b"changed!", 4096, true).unwrap();
        }
        drop(pool);
        Self { machine, kind, act, subject: VolumeLayout { made: true, ..subject }, copy, snapshot }
    }

    fn back(&self) -> VolumeLayout {
        let next = resized(&self.subject, 3);
        VolumeLayout { revert: Some(Revert { to: self.snapshot.id, since: next.generation }), ..next }
    }

    fn run(&self) -> Result<(), BackendError> {
        let pool = self.machine.open(true);
        match self.act {
            Act::Stage | Act::StageAnew => pool.stage_snapshot(&self.snapshot, at(3)),
            Act::Settle => pool.settle_snapshot(self.snapshot.id).map(drop),
            Act::CopySnapshot => pool.ensure_volume(&self.copy).map(drop),
            Act::CopyVolume => self.copy_volume(&pool),
            Act::PutBack => pool.ensure_volume(&self.back()).map(drop),
            Act::RemoveSnapshot => pool.remove_snapshot(self.snapshot.id).map(drop),
        }
    }

    /// As the block service does: the source changes again as soon as it may, and not before.
    fn copy_volume(&self, pool: &LvmPool) -> Result<(), BackendError> {
        pool.begin_copy(&self.copy)?;
        pool.open_volume(self.subject.id)?.write(b"meantime", 4096, true).unwrap();
        pool.ensure_volume(&self.copy).map(drop)
    }

    fn check(&self) {
        let pool = self.machine.open(true);
        match self.act {
            Act::Stage | Act::StageAnew | Act::Settle => {
                assert_eq!(pool.find_snapshot(self.snapshot.id).unwrap().is_some(), self.act == Act::Settle);
                let taken = pool.settle_snapshot(self.snapshot.id).unwrap();
                assert_eq!((taken.at == at(3), taken.size), (self.act != Act::Settle, self.subject.size));
                assert_eq!(pool.observe_snapshots().unwrap().len(), 1);
                pool.ensure_volume(&self.copy).unwrap();
                self.check_bytes(&pool, &self.copy, b"precious");
            }
            Act::CopySnapshot => self.check_bytes(&pool, &self.copy, b"precious"),
            // A copy that had been begun and lost what it was begun with is of a later moment.
            Act::CopyVolume => {
                let io = pool.open_volume(self.copy.id).unwrap();
                let held = read(&*io)[4096..4104].to_vec();
                assert!([b"precious", b"meantime"].contains(&held.as_slice().try_into().unwrap()), "{held:?}");
                drop(io);
                self.check_bytes(&pool, &self.copy, held.as_slice().try_into().unwrap());
            }
            Act::PutBack => {
                assert_eq!(pool.ensure_volume(&self.back()).unwrap(), Ensured::Unchanged);
                self.check_bytes(&pool, &self.back(), b"precious");
                assert!(pool.find_snapshot(self.snapshot.id).unwrap().is_some(), "it can be put back again");
            }
            Act::RemoveSnapshot => {
                assert_eq!(pool.remove_snapshot(self.snapshot.id).unwrap(), Removed::WasAbsent);
                self.check_bytes(&pool, &self.subject, b"changed!");
            }
        }
        self.check_leavings(&pool);
    }

    fn check_bytes(&self, pool: &LvmPool, volume: &VolumeLayout, expected: &[u8; 8]) {
        let made = VolumeLayout { made: true, ..volume.clone() };
        assert_eq!(pool.ensure_volume(&made).unwrap(), Ensured::Unchanged);
        let mut bytes = read(&*pool.open_volume(volume.id).unwrap());
        assert_eq!(bytes.len() as u64, volume.size.as_u64());
        assert_eq!(&bytes[4096..4104], expected);
        bytes[4096..4104].fill(0);
        assert!(bytes.iter().all(|byte| *byte == 0), "somebody else's bytes");
    }

    /// All goes when it is told to, and nothing else is there.
    fn check_leavings(&self, pool: &LvmPool) {
        assert!(pool.observe_volumes().unwrap().iter().all(|seen| seen.damage.is_none()));
        pool.remove_snapshot(self.snapshot.id).unwrap();
        for id in [self.copy.id, self.subject.id] {
            pool.remove_volume(id).unwrap();
        }
        let left: Vec<String> = self.machine.model.state().groups[&self.machine.group()].lvs.keys().cloned().collect();
        assert_eq!(left.len(), usize::from(self.kind == Kind::Thin), "{left:?}");
        assert_eq!(pool.release().unwrap(), Removed::Gone);
    }
}

/// Kills the act at every change, both before and after it, and lets somebody look at what that has left.
fn at_every_change(kind: Kind, act: Act, afterwards: impl Fn(&Stage, &str)) {
    let mut kills = 0;
    for (fuse, after) in (0..).flat_map(|fuse| [(fuse, false), (fuse, true)]) {
        let stage = Stage::new(kind, act);
        let when = format!("{kind} {act:?} {fuse} {after}");
        stage.machine.model.state().fuse = Some((fuse, after));
        let first = stage.run();
        let spared = stage.machine.model.state().fuse.take().is_some();
        assert_eq!(first.is_ok(), spared, "{when}: {first:?}");
        kills += usize::from(!spared);
        afterwards(&stage, &when);
        if spared {
            break;
        }
    }
    assert!(kills >= 2, "{kind} {act:?} changes something");
}

#[test]
fn a_verb_on_snapshots_or_copies_killed_at_any_change_and_repeated_comes_to_the_same_end() {
    for (kind, act) in KINDS.into_iter().flat_map(|kind| ACTS.map(|act| (kind, act))) {
        at_every_change(kind, act, |stage, when| {
            stage.run().unwrap_or_else(|error| panic!("{when}, repeated: {error}"));
            stage.check();
        });
    }
}

#[test]
fn a_verb_on_snapshots_or_copies_killed_at_any_change_can_be_taken_back_whole() {
    for (kind, act) in KINDS.into_iter().flat_map(|kind| ACTS.map(|act| (kind, act))) {
        at_every_change(kind, act, |stage, when| {
            // After a reboot, with nothing active.
            let group = stage.machine.group();
            stage.machine.model.state().groups.get_mut(&group).unwrap().lvs.values_mut().for_each(|lv| {
                lv.active = false;
            });
            let pool = stage.machine.open(true);
            let owed = pool.ensure_volume(&if act == Act::PutBack { stage.back() } else { stage.subject.clone() });
            owed.unwrap_or_else(|error| panic!("{when}, taken back: {error}"));
            stage.check_leavings(&pool);
        });
    }
}

#[test]
fn a_volume_on_its_way_back_is_there_for_whoever_counts_and_can_be_removed() {
    for kind in KINDS {
        at_every_change(kind, Act::PutBack, |stage, when| {
            let pool = stage.machine.open(true);
            let found = pool.observe_volumes().unwrap();
            assert!(found.len() == 1 && found[0].id == stage.subject.id, "{when}: {found:?}");
            assert_eq!(found[0].damage, None, "{when}");
            pool.remove_snapshot(stage.snapshot.id).map(drop).unwrap_or_else(|error| {
                assert!(error.to_string().contains("is being put back"), "{when}: {error}");
                pool.ensure_volume(&stage.back()).unwrap();
                pool.remove_snapshot(stage.snapshot.id).unwrap();
            });
            assert_eq!(pool.remove_volume(stage.subject.id).unwrap(), Removed::Gone);
            assert!(pool.observe_volumes().unwrap().is_empty());
            assert_eq!(pool.release().unwrap(), Removed::Gone, "{when}");
        });
    }
}
