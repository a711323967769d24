//! Volumes overwritten before they go, and work that is ended before its end.

use super::machine::{Machine, layout, snapshot_of};
use crate::backend::lvm::{Kind, LvmPool};
use crate::backend::{Backend, BackendError, Removed, VolumeLayout};
use crate::model::{Source, Timestamp, VolumeId};
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

/// Abandons what is done to a volume when LVM is told a verb.
fn abandon_at(machine: &Machine, pool: &Arc<LvmPool>, verb: &'static str, id: VolumeId) {
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
