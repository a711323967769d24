//! Pools of the LVM drivers on loop devices, with the real executable: physical volumes and groups need no
//! device-mapper.

use crate::lvm_stage::{Stage, text, tool};
use crate::support::loops::Loops;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use symphony::backend::lvm::{Kind, Settings};
use symphony::backend::{Backend, BackendError, Ensured, PoolIdentity, Removed};
use symphony::host::devices::{Carries, Scanner, judge};

fn stage(count: usize) -> Option<(Loops, Stage)> {
    let loops = Loops::new(count)?;
    let stage = Stage::new(Kind::Thick, &loops.devices)?;
    Some((loops, stage))
}

fn carried(device: &PathBuf) -> Option<String> {
    Scanner::default().find(std::slice::from_ref(device)).unwrap().remove(0).unwrap().carried()
}

#[test]
fn a_pool_is_made_found_renamed_extended_and_released_and_its_devices_are_blank_again() {
    let Some((loops, mut stage)) = stage(3) else { return };
    stage.settings.devices.pop();
    let (pool, done) = stage.ensure(false).unwrap();
    assert_eq!(done, Ensured::Created);
    let before = pool.observe_capacity().unwrap();
    assert!(before.capacity.as_u64() > 400 << 20 && before.used.as_u64() == 0, "{before:?}");
    assert!(matches!(stage.ensure(true), Err(BackendError::Locked { .. })));
    drop(pool);
    let (pool, done) = stage.ensure(true).unwrap();
    assert_eq!(done, Ensured::Unchanged);
    let renamed = PoolIdentity { name: "slow".parse().unwrap(), ..stage.identity.clone() };
    assert_eq!(pool.ensure_settings(&renamed, &stage.settings).unwrap(), Ensured::Updated);
    let more = Settings { devices: loops.devices.clone(), ..stage.settings.clone() };
    assert_eq!(pool.ensure_settings(&renamed, &more).unwrap(), Ensured::Grown);
    assert!(pool.observe_capacity().unwrap().capacity > before.capacity);
    let tags = stage.lvm(&loops.devices, &["vgs", "--noheadings", "--options", "vg_tags"]);
    for tag in ["symphony.name=slow", "symphony.driver=lvm", "symphony.state=ready"] {
        assert!(tags.contains(tag), "{tags}");
    }
    let said = carried(&loops.devices[2]).unwrap();
    assert!(said.contains(&stage.group()), "the scanner reads what LVM wrote: {said}");
    assert_eq!(pool.release().unwrap(), Removed::Gone);
    assert_eq!(pool.release().unwrap(), Removed::WasAbsent);
    assert!(matches!(pool.observe_capacity(), Err(BackendError::PoolLost { .. })));
    drop(pool);
    assert_eq!(stage.release_at().unwrap(), Removed::WasAbsent);
    assert!(loops.devices.iter().all(|device| carried(device).is_none()));
}

#[test]
fn the_scanner_and_lvm_agree_on_a_physical_volume() {
    let Some((loops, stage)) = stage(1) else { return };
    let device = &loops.devices[0];
    stage.lvm(&loops.devices, &["vgcreate", "some-group", text(device)]);
    let found = Scanner::default().find(&loops.devices).unwrap().remove(0).unwrap();
    let label = found.pv().unwrap();
    let rows = stage.lvm(
        &loops.devices,
        &["pvs", "--noheadings", "--options", "pv_uuid,vg_name,dev_size", "--units", "b", "--nosuffix"],
    );
    assert!(rows.contains(&label.uuid) && rows.contains(&label.size.to_string()), "{label:?}: {rows}");
    assert_eq!(label.group.as_deref(), Some("some-group"));
    assert!(judge(&found, false).is_err() && judge(&found, true).is_ok());
}

#[test]
fn a_device_with_a_file_system_is_refused_and_taken_once_it_is_named_for_wiping() {
    let Some((loops, mut stage)) = stage(2) else { return };
    tool("mke2fs", &["-q", "-t", "ext4", text(&loops.devices[1])]);
    let error = stage.ensure(false).unwrap_err();
    assert!(error.to_string().contains("ext4") && error.to_string().contains("--wipe"), "{error}");
    assert_eq!(carried(&loops.devices[0]), None, "the other one was not touched");
    stage.settings.wipe.insert(loops.devices[1].clone());
    assert_eq!(stage.ensure(false).unwrap().1, Ensured::Created);
}

#[test]
fn what_lvm_finds_on_a_device_and_we_do_not_is_not_overwritten_either() {
    let Some((loops, stage)) = stage(1) else { return };
    // A file system that is in no table of ours; put there once the device was judged.
    let pool = stage.identity.pool;
    tool("mke2fs", &["-q", "-t", "ext4", text(&loops.devices[0])]);
    let devices = symphony::backend::lvm::command::Devices::new(&loops.devices).unwrap();
    let call = devices.make_pv(&loops.devices[0], "abcdef-1234-5678-9ABC-DEFG-Hijk-lmnopq");
    let error = stage.ground.lvm.call(&call).unwrap_err().at(&pool.to_string());
    assert!(matches!(&error, BackendError::Io { source, .. } if source.to_string().contains("ext4")), "{error}");
    assert!(carried(&loops.devices[0]).unwrap().contains("ext4"));
}

#[test]
fn a_foreign_group_of_the_pool_s_name_is_refused_on_its_devices_and_beside_them() {
    let Some((loops, mut stage)) = stage(2) else { return };
    let group = stage.group();
    stage.lvm(&loops.devices, &["vgcreate", &group, text(&loops.devices[0])]);
    for made in [false, true] {
        let error = stage.ensure(made).unwrap_err();
        assert!(matches!(error, BackendError::Taken { .. }), "{error}");
    }
    stage.settings.devices = vec![loops.devices[1].clone()];
    let error = stage.ensure(false).unwrap_err();
    assert!(error.to_string().contains(text(&loops.devices[0])), "{error}");
    assert_eq!(carried(&loops.devices[1]), None, "nothing was begun");
    // The same name on both devices.
    stage.lvm(&loops.devices[1..], &["vgcreate", &group, text(&loops.devices[1])]);
    stage.settings.devices = loops.devices.clone();
    let error = stage.ensure(true).unwrap_err();
    assert!(matches!(&error, BackendError::Taken { owner, .. } if owner.contains("two")), "{error}");
    assert_eq!(stage.release_at().unwrap(), Removed::WasAbsent, "they are left alone");
    let groups = stage.lvm(&loops.devices, &["vgs", "--noheadings", "--options", "vg_name"]);
    assert!(groups.matches(&group).count() >= 2, "{groups}");
}

#[test]
fn a_group_with_a_missing_device_is_lost_and_says_which() {
    let Some((loops, mut stage)) = stage(2) else { return };
    drop(stage.open(false));
    stage.settings.devices = vec![loops.devices[0].clone(), "/dev/not-there".into()];
    let error = stage.ensure(true).unwrap_err();
    assert!(matches!(&error, BackendError::PoolLost { .. }), "{error}");
    assert!(error.to_string().contains("/dev/not-there is not there"), "{error}");
    assert!(matches!(stage.release_at(), Err(BackendError::PoolLost { .. })));
    stage.settings.devices = loops.devices.clone();
    assert_eq!(stage.ensure(true).unwrap().1, Ensured::Unchanged, "and is whole again with it");
}

#[test]
fn damaged_metadata_on_one_device_is_survived_and_on_all_is_a_lost_pool_and_never_a_fresh_one() {
    let Some((loops, stage)) = stage(2) else { return };
    drop(stage.open(false));
    let damage = |device: &PathBuf| {
        let file = File::options().write(true).open(device).unwrap();
        file.write_all_at(&[0xee; 1 << 20], 4096).unwrap();
        file.sync_all().unwrap();
    };
    damage(&loops.devices[0]);
    let (pool, done) = stage.ensure(true).unwrap();
    assert_eq!(done, Ensured::Unchanged);
    drop(pool);
    damage(&loops.devices[1]);
    let error = stage.ensure(true).unwrap_err();
    assert!(matches!(&error, BackendError::PoolLost { .. }), "{error}");
    let error = stage.ensure(false).unwrap_err();
    assert!(matches!(&error, BackendError::Refused(_)), "{error}");
}

#[test]
fn a_device_that_shrank_is_a_lost_pool() {
    let Some((loops, stage)) = stage(2) else { return };
    drop(stage.open(false));
    let device = &loops.devices[1];
    let file = std::fs::read_to_string(format!(
        "/sys/class/block/{}/loop/backing_file",
        device.file_name().unwrap().to_str().unwrap()
    ));
    File::options().write(true).open(file.unwrap().trim()).unwrap().set_len(200 << 20).unwrap();
    tool("losetup", &["--set-capacity", text(device)]);
    let error = stage.ensure(true).unwrap_err();
    assert!(matches!(&error, BackendError::PoolLost { .. }) && error.to_string().contains("shrunk"), "{error}");
}

#[test]
fn a_read_only_device_and_a_mounted_one_are_refused_whatever_is_said() {
    let Some((loops, mut stage)) = stage(2) else { return };
    stage.settings.wipe.extend(loops.devices.clone());
    tool("blockdev", &["--setro", text(&loops.devices[0])]);
    let error = stage.ensure(false).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    tool("blockdev", &["--setrw", text(&loops.devices[0])]);
    tool("mke2fs", &["-q", "-t", "ext4", text(&loops.devices[1])]);
    // In a mount namespace of its own, which ends with the program in it; here it can only be felt.
    let place = tempfile::tempdir().unwrap();
    let script = format!("mount {} {} && echo up && read _", loops.devices[1].display(), place.path().display());
    let mut holder = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    let error = stage.ensure(false).unwrap_err();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert!(error.to_string().contains("is in use"), "{error}");
    assert!(carried(&loops.devices[1]).unwrap().contains("ext4"));
}

#[test]
fn physical_volumes_left_by_a_making_cut_short_are_taken_up_and_a_stranger_s_are_not() {
    let Some((loops, stage)) = stage(2) else { return };
    stage.lvm(&loops.devices, &["pvcreate", text(&loops.devices[1])]);
    let error = stage.ensure(false).unwrap_err();
    assert!(error.to_string().contains("LVM physical volume"), "{error}");
    stage.lvm(&loops.devices, &["pvremove", text(&loops.devices[1])]);
    // One group on the first device, then its devices without the group: what remains are our physical volumes.
    symphony::host::devices::wipe(&loops.devices[1]).unwrap();
    drop(stage.open(false));
    stage.lvm(&loops.devices, &["vgremove", &stage.group()]);
    assert!(matches!(stage.ensure(true), Err(BackendError::PoolLost { .. })));
    assert_eq!(stage.ensure(false).unwrap().1, Ensured::Created);
    assert_eq!(stage.release_at().unwrap(), Removed::Gone);
    let found = Scanner::default().find(&loops.devices).unwrap();
    assert!(found.iter().flatten().all(|device| device.carries == Carries::Known(vec![])));
}
