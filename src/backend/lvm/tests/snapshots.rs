//! Snapshots, classic and thin: what they hold, what they keep, and how they are lost.

use super::machine::{KINDS, Machine, layout, resized, snapshot_of};
use crate::backend::lvm::{Kind, LvmPool, Room};
use crate::backend::{Backend, BackendError, Removed, SnapshotLayout, VolumeLayout};
use crate::model::{ByteSize, Revert, Source, Timestamp, VolumeId};

fn at() -> Timestamp {
    Timestamp::from_millis(7)
}

fn with_a_snapshot(machine: &Machine) -> (LvmPool, VolumeLayout, SnapshotLayout) {
    let (pool, volume) = (machine.open(false), layout(3));
    pool.ensure_volume(&volume).unwrap();
    pool.open_volume(volume.id).unwrap().write(b"then", 4096, true).unwrap();
    let snapshot = snapshot_of(volume.id);
    pool.stage_snapshot(&snapshot, at()).unwrap();
    pool.settle_snapshot(snapshot.id).unwrap();
    (pool, VolumeLayout { made: true, ..volume }, snapshot)
}

/// Changes what LVM knows of a snapshot.
fn alter(machine: &Machine, snapshot: &SnapshotLayout, change: impl FnOnce(&mut super::model::Volume)) {
    let mut state = machine.model.state();
    let lvs = &mut state.groups.get_mut(&machine.group()).unwrap().lvs;
    change(lvs.get_mut(&format!("s-{}", snapshot.id)).unwrap());
}

#[test]
fn a_volume_with_classic_snapshots_does_not_go_or_grow_and_names_them_and_thin_ones_stand_alone() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (pool, volume, snapshot) = with_a_snapshot(&machine);
        let (gone, grown) = (pool.remove_volume(volume.id), pool.ensure_volume(&resized(&volume, 9)));
        match kind {
            Kind::Thick => {
                for error in [gone.unwrap_err(), grown.unwrap_err()] {
                    let text = error.to_string();
                    assert!(text.contains("'monday'") && text.contains(&snapshot.id.to_string()), "{text}");
                }
                assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone);
                pool.ensure_volume(&resized(&volume, 9)).unwrap();
            }
            Kind::Thin => {
                assert_eq!(gone.unwrap(), Removed::Gone);
                assert!(matches!(grown, Err(BackendError::Lost { .. })));
                let copy = VolumeLayout { source: Some(Source::Snapshot(snapshot.id)), ..layout(3) };
                pool.ensure_volume(&copy).unwrap();
                let mut bytes = [0; 4];
                pool.open_volume(copy.id).unwrap().read(&mut bytes, 4096).unwrap();
                assert_eq!(&bytes, b"then");
            }
        }
    }
}

#[test]
fn a_snapshot_that_overflowed_is_lost_with_the_reason_everywhere_and_its_volume_is_not_harmed() {
    let machine = Machine::new(Kind::Thick);
    let (pool, volume, snapshot) = with_a_snapshot(&machine);
    alter(&machine, &snapshot, |lv| lv.overflowed = true);
    let copy = VolumeLayout { source: Some(Source::Snapshot(snapshot.id)), ..layout(3) };
    let next = resized(&volume, 3);
    let back = VolumeLayout { revert: Some(Revert { to: snapshot.id, since: next.generation }), ..next };
    let errors = [
        pool.find_snapshot(snapshot.id).unwrap_err(),
        pool.settle_snapshot(snapshot.id).unwrap_err(),
        pool.ensure_volume(&copy).unwrap_err(),
        pool.ensure_volume(&back).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, BackendError::SnapshotSpoilt { .. }), "{error}");
        assert!(error.to_string().contains("had room for"), "{error}");
    }
    let found = pool.observe_snapshots().unwrap();
    assert!(found.len() == 1 && found[0].damage.as_ref().is_some_and(|why| why.contains("lost")), "{found:?}");
    pool.observe_capacity().unwrap();
    let spoilt =
        |pool: &LvmPool| pool.fills().into_iter().filter(|seen| seen.spoilt).map(|seen| seen.id).collect::<Vec<_>>();
    assert_eq!(spoilt(&pool), [snapshot.id]);
    let mut bytes = [0; 4];
    pool.open_volume(volume.id).unwrap().read(&mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"then");
    assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone);
    assert!(spoilt(&pool).is_empty());
    assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
}

#[test]
fn an_overflow_that_only_shows_when_the_snapshot_is_active_is_looked_for_after_a_reboot() {
    let machine = Machine::new(Kind::Thick);
    let (pool, _, snapshot) = with_a_snapshot(&machine);
    alter(&machine, &snapshot, |lv| (lv.overflowed, lv.active) = (true, false));
    assert!(matches!(pool.find_snapshot(snapshot.id), Err(BackendError::SnapshotSpoilt { .. })));
    assert!(machine.model.state().groups[&machine.group()].lvs[&format!("s-{}", snapshot.id)].active);
}

#[test]
fn a_classic_snapshot_has_the_room_that_is_stated_and_none_where_there_is_none() {
    let mut machine = Machine::new(Kind::Thick);
    machine.settings.room = Room { least: ByteSize::mib(8), percent: 50 };
    let (pool, big) = (machine.open(false), layout(400));
    pool.ensure_volume(&big).unwrap();
    let snapshot = snapshot_of(big.id);
    pool.stage_snapshot(&snapshot, at()).unwrap();
    let extents = machine.model.state().groups[&machine.group()].lvs[&format!("s-{}", snapshot.id)].extents;
    assert_eq!(extents, 50);
    pool.ensure_volume(&layout(300)).unwrap();
    let error = pool.stage_snapshot(&snapshot_of(big.id), at()).unwrap_err().to_string();
    assert!(error.contains("needs 200MiB more") && error.contains("free in"), "{error}");
}

#[test]
fn a_classic_snapshot_whose_making_was_cut_short_was_never_staged() {
    let machine = Machine::new(Kind::Thick);
    let (pool, volume) = (machine.open(false), layout(3));
    pool.ensure_volume(&volume).unwrap();
    let snapshot = snapshot_of(volume.id);
    pool.stage_snapshot(&snapshot, at()).unwrap();
    // LVM makes its room first, and then a snapshot of that.
    alter(&machine, &snapshot, |lv| lv.origin = None);
    assert!(matches!(pool.settle_snapshot(snapshot.id), Err(BackendError::SnapshotLost { .. })));
    assert!(pool.observe_snapshots().unwrap().is_empty());
    pool.stage_snapshot(&snapshot, at()).unwrap();
    pool.settle_snapshot(snapshot.id).unwrap();
}

#[test]
fn damaged_words_of_a_snapshot_are_shown_or_passed_over_and_nothing_is_made_of_it() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (pool, _, snapshot) = with_a_snapshot(&machine);
        let other = format!("symphony.snapshot={}", VolumeId::generate());
        alter(&machine, &snapshot, |lv| {
            lv.tags.retain(|tag| !tag.starts_with("symphony.snapshot="));
            lv.tags.insert(other);
        });
        assert!(pool.observe_snapshots().unwrap()[0].damage.is_some());
        assert!(matches!(pool.find_snapshot(snapshot.id), Err(BackendError::Damaged { .. })));
        alter(&machine, &snapshot, |lv| lv.tags.clear());
        let copy = VolumeLayout { source: Some(Source::Snapshot(snapshot.id)), ..layout(3) };
        assert!(matches!(pool.ensure_volume(&copy), Err(BackendError::Damaged { .. })));
        assert!(matches!(pool.stage_snapshot(&snapshot, at()), Err(BackendError::Damaged { .. })));
        assert_eq!(pool.observe_volumes().unwrap().len(), 1, "it is not taken for a volume");
        assert!(matches!(pool.release(), Err(BackendError::Refused(_))));
        assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone, "a tombstone ends the matter");
    }
}

#[test]
fn a_snapshot_to_which_a_volume_is_being_put_back_stays_until_that_is_done() {
    let machine = Machine::new(Kind::Thick);
    let (pool, volume, snapshot) = with_a_snapshot(&machine);
    let next = resized(&volume, 3);
    let back = VolumeLayout { revert: Some(Revert { to: snapshot.id, since: next.generation }), ..next };
    machine.model.state().fuse = Some((0, true));
    pool.ensure_volume(&back).unwrap_err();
    let error = pool.remove_snapshot(snapshot.id).unwrap_err().to_string();
    assert!(error.contains("is being put back to it"), "{error}");
    assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Refused(_))));
    assert_eq!(pool.observe_volumes().unwrap()[0].damage, None);
    pool.ensure_volume(&back).unwrap();
    assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone);
}

#[test]
fn an_open_volume_is_not_put_back_and_nothing_is_begun() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (pool, volume, snapshot) = with_a_snapshot(&machine);
        let io = pool.open_volume(volume.id).unwrap();
        let next = resized(&volume, 3);
        let back = VolumeLayout { revert: Some(Revert { to: snapshot.id, since: next.generation }), ..next };
        let before = machine.model.state().shown.len();
        assert!(matches!(pool.ensure_volume(&back), Err(BackendError::Io { .. })));
        assert_eq!(machine.model.state().shown.len(), before);
        drop(io);
        pool.ensure_volume(&back).unwrap();
    }
}

#[test]
fn room_that_was_asked_for_is_what_a_classic_snapshot_gets_and_what_the_pool_counts() {
    let machine = Machine::new(Kind::Thick);
    let (pool, volume) = (machine.open(false), layout(103));
    pool.ensure_volume(&volume).unwrap();
    let before = pool.observe_capacity().unwrap();
    assert_eq!((before.used, before.extent), (ByteSize::mib(104), Some(ByteSize::mib(4))));
    let mut taken = ByteSize::ZERO;
    for (asked, given) in [(1, 4), (9, 12), (1 << 30, 108)] {
        let snapshot = SnapshotLayout { room: Some(ByteSize::mib(asked)), ..snapshot_of(volume.id) };
        pool.stage_snapshot(&snapshot, at()).unwrap();
        let fill = pool.settle_snapshot(snapshot.id).unwrap().fill.unwrap();
        assert_eq!(fill.room, ByteSize::mib(given), "{asked} MiB");
        taken = taken.saturating_add(fill.room);
    }
    let after = pool.observe_capacity().unwrap();
    assert_eq!((after.capacity, after.used), (before.capacity, before.used.saturating_add(taken)));
}

#[test]
fn how_full_the_room_of_a_classic_snapshot_is_can_be_watched_and_a_thin_one_has_none() {
    let machine = Machine::new(Kind::Thick);
    let (pool, _, snapshot) = with_a_snapshot(&machine);
    alter(&machine, &snapshot, |lv| lv.percent = Some(50.0));
    pool.observe_capacity().unwrap();
    let [seen] = pool.fills()[..] else { panic!("one") };
    assert_eq!((seen.id, seen.spoilt), (snapshot.id, false));
    assert_eq!(seen.fill.used.as_u64() * 2, seen.fill.room.as_u64());
    let found = pool.find_snapshot(snapshot.id).unwrap().unwrap();
    assert_eq!(found.fill, Some(seen.fill));
    pool.remove_snapshot(snapshot.id).unwrap();
    assert!(pool.fills().is_empty());
    let machine = Machine::new(Kind::Thin);
    let (pool, _, snapshot) = with_a_snapshot(&machine);
    assert_eq!(pool.find_snapshot(snapshot.id).unwrap().unwrap().fill, None);
    pool.observe_capacity().unwrap();
    assert!(pool.fills().is_empty());
}
