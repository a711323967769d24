//! Volumes overwritten before they go, and work that is ended before its end.

use super::machine::{Machine, layout, resized, snapshot_of};
use crate::backend::lvm::{Kind, LvmPool};
use crate::backend::{Backend, BackendError, Removed, SnapshotLayout, VolumeLayout};
use crate::model::{AssignedId, Revert, SnapshotId, Source, Timestamp, VolumeId};
use std::fs::File;
use std::sync::{Arc, Mutex, Weak};

fn filled(pool: &LvmPool) -> VolumeLayout {
    let volume = layout(3);
    pool.ensure_volume(&volume).unwrap();
    pool.open_volume(volume.id).unwrap().write(b"secret", 4096, true).unwrap();
    volume
}

fn tags(machine: &Machine, id: VolumeId) -> Vec<String> {
    let state = machine.model.state();
    state.groups[&machine.group()].lvs[&id.to_string()].tags.iter().cloned().collect()
}

#[test]
fn a_wiped_volume_holds_zeros_when_its_space_is_given_back_and_can_only_be_removed() {
    let machine = Machine::new(Kind::Thick);
    let pool = machine.open(false);
    let volume = filled(&pool);
    pool.wipe_volume(volume.id).unwrap();
    let wiped = format!("symphony.wiped={}", 4 << 20);
    assert!(tags(&machine, volume.id).contains(&wiped), "{:?}", tags(&machine, volume.id));
    assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Refused(_))));
    let made = VolumeLayout { made: true, ..volume.clone() };
    assert!(matches!(pool.ensure_volume(&made), Err(BackendError::Refused(_))));
    let before = machine.model.state().shown.len();
    pool.wipe_volume(volume.id).unwrap();
    assert_eq!(machine.model.state().shown.len(), before, "once is enough");
    assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
    assert!(machine.model.state().emptied[&volume.id.to_string()]);
    pool.wipe_volume(volume.id).unwrap();
    assert!(pool.progress().is_empty());
    let other = filled(&pool);
    pool.remove_volume(other.id).unwrap();
    assert!(!machine.model.state().emptied[&other.id.to_string()], "only where it was asked for");
}

#[test]
fn a_disk_that_fails_under_a_wipe_is_named_and_the_wipe_goes_on_once_it_works() {
    let machine = Machine::new(Kind::Thick);
    let pool = machine.open(false);
    let volume = filled(&pool);
    let node = machine.model.node(&machine.group(), &volume.id.to_string());
    let device = File::options().write(true).open(&node).unwrap();
    device.set_len(1 << 20).unwrap();
    let error = pool.wipe_volume(volume.id).unwrap_err();
    assert!(matches!(error, BackendError::Io { .. }) && error.to_string().contains("cannot wipe"), "{error}");
    assert!(error.to_string().contains(&volume.id.to_string()), "{error}");
    let told = tags(&machine, volume.id);
    assert!(told.contains(&"symphony.state=removing".to_owned()), "{told:?}");
    assert!(!told.iter().any(|tag| tag.starts_with("symphony.wiped")), "nothing is said that is not so: {told:?}");
    device.set_len(4 << 20).unwrap();
    pool.wipe_volume(volume.id).unwrap();
    pool.remove_volume(volume.id).unwrap();
    assert!(machine.model.state().emptied[&volume.id.to_string()]);
}

#[test]
fn what_does_not_describe_itself_is_wiped_all_the_same() {
    let machine = Machine::new(Kind::Thick);
    let pool = machine.open(false);
    let volume = filled(&pool);
    machine
        .model
        .state()
        .groups
        .get_mut(&machine.group())
        .unwrap()
        .lvs
        .get_mut(&volume.id.to_string())
        .unwrap()
        .tags
        .clear();
    pool.wipe_volume(volume.id).unwrap();
    pool.remove_volume(volume.id).unwrap();
    assert!(machine.model.state().emptied[&volume.id.to_string()]);
}

#[test]
fn a_volume_in_use_or_with_snapshots_or_in_a_thin_pool_is_not_wiped_and_nothing_is_begun() {
    let machine = Machine::new(Kind::Thick);
    let pool = machine.open(false);
    let volume = filled(&pool);
    let io = pool.open_volume(volume.id).unwrap();
    let before = machine.model.state().shown.len();
    assert!(matches!(pool.wipe_volume(volume.id), Err(BackendError::Io { .. })));
    assert_eq!(machine.model.state().shown.len(), before);
    drop(io);
    pool.stage_snapshot(&snapshot_of(volume.id), Timestamp::from_millis(1)).unwrap();
    let before = machine.model.state().shown.len();
    let error = pool.wipe_volume(volume.id).unwrap_err().to_string();
    assert!(error.contains("'monday'"), "{error}");
    let thin = Machine::new(Kind::Thin);
    let other = thin.open(false);
    let error = other.wipe_volume(filled(&other).id).unwrap_err().to_string();
    assert!(error.contains("thin pool") && error.contains("cannot be wiped"), "{error}");
    assert_eq!(machine.model.state().shown.len(), before);
}

/// Abandons what is done to a volume or a snapshot when LVM is told a verb.
fn abandon_at(machine: &Machine, pool: &Arc<LvmPool>, verb: &'static str, id: impl Into<AssignedId>) {
    let id = id.into();
    let pool: Mutex<Weak<LvmPool>> = Mutex::new(Arc::downgrade(pool));
    let listener = move |call: &crate::backend::lvm::command::Call| {
        if call.verb() == verb
            && let Some(pool) = pool.lock().unwrap().upgrade()
        {
            pool.abandon(Some(id));
        }
    };
    *machine.model.listener.lock().unwrap() = Some(Box::new(listener));
}

#[test]
fn a_copy_under_way_ends_when_its_volume_is_to_be_removed_and_leaves_nothing_behind() {
    let machine = Machine::new(Kind::Thick);
    let pool = Arc::new(machine.open(false));
    let source = filled(&pool);
    let copy = VolumeLayout { source: Some(Source::Volume(source.id)), ..layout(3) };
    pool.begin_copy(&copy).unwrap();
    abandon_at(&machine, &pool, "lvcreate", copy.id);
    let error = pool.ensure_volume(&copy).unwrap_err();
    let BackendError::Io { source: cause, .. } = &error else { panic!("{error}") };
    assert_eq!(cause.kind(), std::io::ErrorKind::Interrupted);
    *machine.model.listener.lock().unwrap() = None;
    assert!(pool.progress().is_empty());
    assert_eq!(pool.remove_volume(copy.id).unwrap(), Removed::Gone);
    let left: Vec<String> = machine.model.state().groups[&machine.group()].lvs.keys().cloned().collect();
    assert_eq!(left, [source.id.to_string()], "what held the source still is gone too");
    // What is done to others goes on.
    abandon_at(&machine, &pool, "lvcreate", source.id);
    pool.ensure_volume(&layout(3)).unwrap();
}

#[test]
fn a_wipe_that_is_abandoned_stops_and_the_volume_can_be_removed_as_it_is() {
    let machine = Machine::new(Kind::Thick);
    let pool = Arc::new(machine.open(false));
    let volume = filled(&pool);
    abandon_at(&machine, &pool, "lvchange", volume.id);
    let error = pool.wipe_volume(volume.id).unwrap_err();
    assert!(matches!(&error, BackendError::Io { .. }), "{error}");
    *machine.model.listener.lock().unwrap() = None;
    assert!(tags(&machine, volume.id).contains(&"symphony.state=removing".to_owned()));
    assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
}

fn with_a_snapshot(machine: &Machine) -> (Arc<LvmPool>, VolumeLayout, SnapshotLayout) {
    let pool = machine.open(false);
    let volume = filled(&pool);
    let snapshot = snapshot_of(volume.id);
    pool.stage_snapshot(&snapshot, Timestamp::from_millis(1)).unwrap();
    pool.settle_snapshot(snapshot.id).unwrap();
    (Arc::new(pool), VolumeLayout { made: true, ..volume }, snapshot)
}

fn alter(machine: &Machine, id: SnapshotId, change: impl FnOnce(&mut super::model::Volume)) {
    let mut state = machine.model.state();
    change(state.groups.get_mut(&machine.group()).unwrap().lvs.get_mut(&format!("s-{id}")).unwrap());
}

fn emptied(machine: &Machine, id: SnapshotId) -> bool {
    machine.model.state().emptied[&format!("s-{id}")]
}

#[test]
fn a_snapshot_s_room_is_overwritten_while_its_volume_is_used_and_then_removed() {
    let machine = Machine::new(Kind::Thick);
    let (pool, volume, snapshot) = with_a_snapshot(&machine);
    let io = pool.open_volume(volume.id).unwrap();
    pool.wipe_snapshot(snapshot.id).unwrap();
    let before = machine.model.state().shown.len();
    pool.wipe_snapshot(snapshot.id).unwrap();
    assert_eq!(machine.model.state().shown.len(), before, "once is enough");
    assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone);
    assert!(emptied(&machine, snapshot.id) && pool.progress().is_empty() && pool.fills().is_empty());
    pool.wipe_snapshot(snapshot.id).unwrap();
    let mut bytes = [0; 6];
    io.read(&mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"secret");
    let other = snapshot_of(volume.id);
    pool.stage_snapshot(&other, Timestamp::from_millis(1)).unwrap();
    pool.remove_snapshot(other.id).unwrap();
    assert!(!emptied(&machine, other.id), "only where it was asked for");
}

#[test]
fn what_is_wiped_is_found_by_nobody_from_the_first_change_on_and_can_only_be_removed() {
    for fuse in 0.. {
        let machine = Machine::new(Kind::Thick);
        let (pool, volume, snapshot) = with_a_snapshot(&machine);
        machine.model.state().fuse = Some((fuse, true));
        let killed = pool.wipe_snapshot(snapshot.id).is_err();
        machine.model.state().fuse = None;
        assert_eq!(pool.find_snapshot(snapshot.id).unwrap(), None);
        let copy = VolumeLayout { source: Some(Source::Snapshot(snapshot.id)), ..layout(3) };
        let next = resized(&volume, 3);
        let back = VolumeLayout { revert: Some(Revert { to: snapshot.id, since: next.generation }), ..next };
        for error in [
            pool.settle_snapshot(snapshot.id).unwrap_err(),
            pool.stage_snapshot(&snapshot, Timestamp::from_millis(2)).unwrap_err(),
            pool.ensure_volume(&copy).unwrap_err(),
            pool.ensure_volume(&back).unwrap_err(),
        ] {
            assert!(matches!(error, BackendError::SnapshotLost { .. } | BackendError::Refused(_)), "{fuse}: {error}");
        }
        let [found] = &pool.observe_snapshots().unwrap()[..] else { panic!("one") };
        assert!(
            found.damage.as_ref().is_some_and(|why| why.contains("removal was begun")),
            "nobody adopts it: {found:?}"
        );
        assert_eq!(pool.observe_volumes().unwrap().len(), 1, "nor is it a volume");
        pool.wipe_snapshot(snapshot.id).unwrap();
        assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone);
        assert!(emptied(&machine, snapshot.id), "{fuse}");
        if !killed {
            assert!(fuse >= 4, "{fuse}");
            break;
        }
    }
}

#[test]
fn a_room_is_overwritten_whatever_became_of_its_snapshot() {
    let spoil: [fn(&mut super::model::Volume); 5] = [
        |lv| lv.overflowed = true,
        |lv| lv.active = false,
        |lv| (lv.active, lv.overflowed) = (false, true),
        |lv| lv.tags.clear(),
        // Its making was cut short: LVM makes the room first.
        |lv| (lv.origin, lv.stale) = (None, true),
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        let machine = Machine::new(Kind::Thick);
        let (pool, _, snapshot) = with_a_snapshot(&machine);
        alter(&machine, snapshot.id, spoil);
        pool.wipe_snapshot(snapshot.id).unwrap_or_else(|error| panic!("{number}: {error}"));
        pool.remove_snapshot(snapshot.id).unwrap();
        assert!(emptied(&machine, snapshot.id), "{number}");
    }
}

#[test]
fn a_snapshot_that_somebody_reads_is_not_split_off_before_that_ends() {
    let machine = Machine::new(Kind::Thick);
    let (pool, _, snapshot) = with_a_snapshot(&machine);
    alter(&machine, snapshot.id, |lv| lv.held = true);
    let error = pool.wipe_snapshot(snapshot.id).unwrap_err();
    let BackendError::Io { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("in use"), "{source}");
    alter(&machine, snapshot.id, |lv| {
        assert!(lv.is_classic());
        lv.held = false;
    });
    pool.wipe_snapshot(snapshot.id).unwrap();
    pool.remove_snapshot(snapshot.id).unwrap();
    assert!(emptied(&machine, snapshot.id));
}

#[test]
fn a_snapshot_that_a_volume_is_put_back_to_or_of_a_thin_pool_is_not_wiped_and_nothing_is_begun() {
    let machine = Machine::new(Kind::Thick);
    let (pool, volume, snapshot) = with_a_snapshot(&machine);
    let next = resized(&volume, 3);
    let back = VolumeLayout { revert: Some(Revert { to: snapshot.id, since: next.generation }), ..next };
    machine.model.state().fuse = Some((0, true));
    pool.ensure_volume(&back).unwrap_err();
    let before = machine.model.state().shown.len();
    let error = pool.wipe_snapshot(snapshot.id).unwrap_err().to_string();
    assert!(error.contains("is being put back to it"), "{error}");
    assert_eq!(machine.model.state().shown.len(), before);
    pool.ensure_volume(&back).unwrap();
    pool.wipe_snapshot(snapshot.id).unwrap();
    let machine = Machine::new(Kind::Thin);
    let (pool, _, snapshot) = with_a_snapshot(&machine);
    let before = machine.model.state().shown.len();
    let error = pool.wipe_snapshot(snapshot.id).unwrap_err().to_string();
    assert!(error.contains("thin pool") && error.contains("cannot be wiped"), "{error}");
    assert_eq!(machine.model.state().shown.len(), before);
}

#[test]
fn a_disk_that_fails_under_a_room_and_an_abandoned_wipe_leave_it_to_be_gone_on_with_or_removed_as_it_is() {
    let machine = Machine::new(Kind::Thick);
    let (pool, _, snapshot) = with_a_snapshot(&machine);
    abandon_at(&machine, &pool, "lvconvert", snapshot.id);
    let error = pool.wipe_snapshot(snapshot.id).unwrap_err();
    let BackendError::Io { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::Interrupted);
    *machine.model.listener.lock().unwrap() = None;
    let node = machine.model.node(&machine.group(), &format!("s-{}", snapshot.id));
    let device = File::options().write(true).open(&node).unwrap();
    let whole = device.metadata().unwrap().len();
    device.set_len(1 << 20).unwrap();
    let error = pool.wipe_snapshot(snapshot.id).unwrap_err();
    assert!(
        error.to_string().contains("cannot wipe") && error.to_string().contains(&snapshot.id.to_string()),
        "{error}"
    );
    alter(&machine, snapshot.id, |lv| {
        assert!(!lv.tags.iter().any(|tag| tag.starts_with("symphony.wiped")), "nothing is said that is not so: {lv:?}");
    });
    device.set_len(whole).unwrap();
    pool.wipe_snapshot(snapshot.id).unwrap();
    pool.remove_snapshot(snapshot.id).unwrap();
    assert!(emptied(&machine, snapshot.id));
    let machine = Machine::new(Kind::Thick);
    let (pool, volume, snapshot) = with_a_snapshot(&machine);
    abandon_at(&machine, &pool, "lvconvert", snapshot.id);
    pool.wipe_snapshot(snapshot.id).unwrap_err();
    assert_eq!(pool.remove_snapshot(snapshot.id).unwrap(), Removed::Gone);
    *machine.model.listener.lock().unwrap() = None;
    pool.ensure_volume(&resized(&volume, 9)).unwrap();
}
