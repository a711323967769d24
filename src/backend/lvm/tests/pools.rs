//! Whose devices a pool takes, and what it says about those that are not as they were.

use super::machine::{KINDS, Machine, layout, read, resized};
use super::model::{EXTENT, Group};
use crate::backend::lvm::{Kind, Settings};
use crate::backend::{Backend, BackendError, Ensured, PoolIdentity, Removed, VolumeLayout};
use crate::model::{ByteSize, ClusterId, VolumeId};
use std::os::unix::fs::{FileExt, symlink};

#[test]
fn a_pool_is_made_once_found_afterwards_and_locked_meanwhile() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (pool, done) = machine.ensure(false).unwrap();
        assert_eq!(done, Ensured::Created);
        assert!(matches!(machine.ensure(true), Err(BackendError::Locked { .. })));
        drop(pool);
        let (_, done) = machine.ensure(true).unwrap();
        assert_eq!(done, Ensured::Unchanged);
    }
}

#[test]
fn another_name_is_written_into_the_group_s_tags() {
    let mut machine = Machine::new(Kind::Thick);
    let pool = machine.open(false);
    let renamed = PoolIdentity { name: "slow".parse().unwrap(), ..machine.identity.clone() };
    assert_eq!(pool.ensure_settings(&renamed, &machine.settings).unwrap(), Ensured::Updated);
    assert_eq!(pool.ensure_settings(&renamed, &machine.settings).unwrap(), Ensured::Unchanged);
    assert!(machine.model.state().groups[&machine.group()].tags.contains("symphony.name=slow"));
    drop(pool);
    machine.identity = renamed;
    assert_eq!(machine.ensure(true).unwrap().1, Ensured::Unchanged);
}

#[test]
fn a_device_that_carries_something_is_taken_only_if_it_is_named_and_nothing_is_touched_before_all_are_judged() {
    for kind in KINDS {
        let mut machine = Machine::new(kind);
        let file = std::fs::File::options().read(true).write(true).open(machine.device("vdc")).unwrap();
        file.write_all_at(b"XFSB", 0).unwrap();
        let error = machine.ensure(false).unwrap_err();
        assert!(error.to_string().contains("vdc") && error.to_string().contains("xfs"), "{error}");
        assert!(machine.model.state().shown.is_empty(), "vdb was not touched either");
        machine.settings.wipe.insert(machine.device("vdb"));
        assert!(machine.ensure(false).is_err(), "the other one was named");
        // By another path of it.
        symlink(machine.device("vdc"), machine.device("by-another-name")).unwrap();
        machine.settings.wipe.insert(machine.device("by-another-name"));
        assert_eq!(machine.ensure(false).unwrap().1, Ensured::Created);
        let mut word = [0; 4];
        file.read_exact_at(&mut word, 0).unwrap();
        assert_eq!(word, [0; 4]);
    }
}

#[test]
fn a_foreign_group_of_the_same_name_is_never_taken() {
    for (kind, wipe) in KINDS.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let mut machine = Machine::new(kind);
        drop(machine.open(false));
        let group = machine.group();
        if wipe {
            machine.settings.wipe.extend(machine.settings.devices.clone());
        }
        // Somebody's without a word of ours.
        machine.model.state().groups.get_mut(&group).unwrap().tags.clear();
        for made in [false, true] {
            assert!(matches!(machine.ensure(made), Err(BackendError::Taken { .. })));
        }
        // Another cluster's.
        let other = ClusterId::generate();
        let tags = [
            "pool=".to_owned() + &machine.identity.pool.to_string(),
            format!("cluster={other}"),
            "name=x".into(),
            "driver=lvm".into(),
            "state=ready".into(),
        ];
        machine.model.state().groups.get_mut(&group).unwrap().tags = tags.map(|tag| format!("symphony.{tag}")).into();
        let error = machine.ensure(true).unwrap_err();
        assert!(matches!(&error, BackendError::Taken { owner, .. } if owner.contains(&other.to_string())), "{error}");
        assert_eq!(machine.release_at().unwrap(), Removed::WasAbsent);
        assert!(machine.model.state().groups.contains_key(&group), "it was left alone");
    }
}

#[test]
fn a_group_of_the_same_name_on_a_device_that_the_pool_does_not_name_is_in_the_way() {
    let mut machine = Machine::new(Kind::Thick);
    let all = machine.settings.devices.clone();
    machine.settings.devices = vec![machine.device("vdd")];
    drop(machine.open(false));
    machine.settings.devices = all;
    let error = machine.ensure(false).unwrap_err();
    assert!(matches!(&error, BackendError::Taken { owner, .. } if owner.contains("vdd")), "{error}");
}

#[test]
fn two_groups_of_the_pool_s_name_are_an_error_that_says_so() {
    // The model has one group a name; a report with two comes from the executable.
    let json = std::fs::read_to_string(format!("{}/tests/fixtures/lvm/vgs-twins.json", env!("CARGO_MANIFEST_DIR")));
    let machine = Machine::new(Kind::Thick);
    let twins = json.unwrap().replace("twin", &machine.group());
    let seen = crate::backend::lvm::report::parse(twins.as_bytes()).unwrap();
    use crate::backend::lvm::plan::pool::{Wanted, next};
    for made in [false, true] {
        let (identity, kind) = (&machine.identity, Kind::Thick);
        let wanted = Wanted { identity, kind, ceiling: None, made, places: &[], elsewhere: &[] };
        assert!(matches!(next(&wanted, &seen), Err(BackendError::Taken { owner, .. }) if owner.contains("two")));
    }
}

#[test]
fn a_missing_device_makes_the_pool_lost_and_is_named() {
    for kind in KINDS {
        let mut machine = Machine::new(kind);
        let pool = machine.open(false);
        pool.ensure_volume(&layout(1)).unwrap();
        drop(pool);
        let both = machine.settings.devices.clone();
        machine.unplug("vdc");
        let error = machine.ensure(true).unwrap_err();
        assert!(matches!(&error, BackendError::PoolLost { .. }), "{error}");
        assert!(error.to_string().contains("vdc is not there"), "{error}");
        // A user who names one device only does not get half a pool either.
        machine.settings.devices = vec![both[0].clone()];
        assert!(matches!(machine.ensure(true), Err(BackendError::PoolLost { .. })));
        assert!(matches!(machine.release_at(), Err(BackendError::PoolLost { .. })));
    }
}

#[test]
fn a_device_that_goes_while_the_pool_is_open_fails_its_verbs_and_no_other_is_begun() {
    let machine = Machine::new(Kind::Thick);
    let pool = machine.open(false);
    machine.unplug("vdc");
    assert!(matches!(pool.ensure_volume(&layout(1)), Err(BackendError::PoolLost { .. })));
    assert!(matches!(pool.observe_capacity(), Err(BackendError::PoolLost { .. })));
    assert!(matches!(pool.observe_volumes(), Err(BackendError::PoolLost { .. })));
}

#[test]
fn all_devices_gone_or_blank_make_the_pool_lost_and_never_a_fresh_one() {
    let machine = Machine::new(Kind::Thick);
    let error = machine.ensure(true).unwrap_err();
    assert!(error.to_string().contains("vdb carries nothing"), "{error}");
    assert!(machine.model.state().shown.is_empty());
    machine.unplug("vdb");
    machine.unplug("vdc");
    assert!(matches!(machine.ensure(true), Err(BackendError::PoolLost { .. })));
    assert!(matches!(machine.ensure(false), Err(BackendError::Refused(_))));
}

#[test]
fn a_device_that_shrank_makes_the_pool_lost_and_is_named() {
    let machine = Machine::new(Kind::Thick);
    drop(machine.open(false));
    let report = |device_size: u64| {
        let group = machine.group();
        let json = serde_json::json!({ "report": [{
            "vg": [{ "vg_name": group, "vg_uuid": "u", "vg_size": "8388608", "vg_free": "0", "vg_extent_size": "4194304",
                     "vg_missing_pv_count": "0", "vg_tags": machine.model.state().groups[&group].tags.iter().cloned().collect::<Vec<_>>().join(",") }],
            "pv": [{ "pv_name": "/dev/vdb", "pv_uuid": "u", "vg_name": group, "pv_size": "8388608",
                     "dev_size": device_size.to_string(), "pv_missing": "", "pv_mda_count": "1" }],
        }]});
        crate::backend::lvm::report::parse(json.to_string().as_bytes()).unwrap()
    };
    use crate::backend::lvm::plan::pool::{Wanted, next};
    let (identity, kind) = (&machine.identity, Kind::Thick);
    let wanted = Wanted { identity, kind, ceiling: None, made: true, places: &[], elsewhere: &[] };
    assert_eq!(next(&wanted, &report(8 << 20)).unwrap(), None);
    let error = next(&wanted, &report((8 << 20) - 512)).unwrap_err();
    assert!(
        matches!(&error, BackendError::PoolLost { .. }) && error.to_string().contains("/dev/vdb has shrunk"),
        "{error}"
    );
}

#[test]
fn a_pool_does_not_change_its_driver() {
    let mut machine = Machine::new(Kind::Thick);
    drop(machine.open(false));
    machine.settings.kind = Kind::Thin;
    assert!(matches!(machine.ensure(true), Err(BackendError::Refused(_))));
}

#[test]
fn one_device_named_twice_is_refused() {
    let mut machine = Machine::new(Kind::Thick);
    let alias = machine.device("alias");
    symlink(machine.device("vdb"), &alias).unwrap();
    machine.settings.devices.push(alias);
    let error = machine.ensure(false).unwrap_err();
    assert!(error.to_string().contains("same device"), "{error}");
    machine.settings.devices.clear();
    assert!(matches!(machine.ensure(false), Err(BackendError::Refused(_))), "and so is none at all");
}

#[test]
fn more_devices_extend_an_open_pool_and_a_thin_one_uses_them() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let pool = machine.open(false);
        let before = pool.observe_use().unwrap();
        let more = Settings {
            devices: ["vdb", "vdc", "vdd"].map(|name| machine.device(name)).to_vec(),
            ..machine.settings.clone()
        };
        assert_eq!(pool.ensure_settings(&machine.identity, &more).unwrap(), Ensured::Grown);
        let after = pool.observe_use().unwrap();
        assert!(after.data.capacity.as_u64() - before.data.capacity.as_u64() > 400 << 20, "{before:?} {after:?}");
        assert_eq!(after.data.metadata.is_some(), kind == Kind::Thin);
        pool.ensure_volume(&layout(1)).unwrap();
    }
}

#[test]
fn what_a_thin_pool_s_making_left_behind_is_taken_away_and_a_stranger_s_volume_is_not() {
    let machine = Machine::new(Kind::Thin);
    // The group, then the thin pool that is "made" and not told to refuse.
    machine.model.state().fuse = Some((3, false));
    machine.ensure(false).unwrap_err();
    let left = super::model::Volume::plain("linear", 1);
    let group = machine.group();
    machine.model.node(&group, "x").parent().map(std::fs::create_dir_all).unwrap().unwrap();
    let put = |name: &str| {
        std::fs::File::create(machine.model.node(&group, name)).unwrap();
        let mut state = machine.model.state();
        state.groups.get_mut(&group).unwrap().lvs.insert(name.to_owned(), left.clone());
    };
    put("stranger");
    let error = machine.ensure(false).unwrap_err();
    assert!(error.to_string().contains("stranger"), "{error}");
    machine.model.state().groups.get_mut(&group).unwrap().lvs.remove("stranger");
    put("thin-pool_tmeta");
    put("lvol0");
    assert_eq!(machine.ensure(false).unwrap().1, Ensured::Created);
    let state = machine.model.state();
    let Group { lvs, .. } = &state.groups[&group];
    assert_eq!(lvs.keys().collect::<Vec<_>>(), ["thin-pool"]);
    assert_eq!(lvs["thin-pool"].when_full, "error");
}

#[test]
fn volumes_are_activated_when_they_are_opened_after_a_reboot() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (pool, volume) = (machine.open(false), layout(1));
        pool.ensure_volume(&volume).unwrap();
        drop(pool);
        for lv in machine.model.state().groups.get_mut(&machine.group()).unwrap().lvs.values_mut() {
            lv.active = false;
        }
        let pool = machine.open(true);
        pool.open_volume(volume.id).unwrap();
        assert!(machine.model.state().groups[&machine.group()].lvs.values().all(|lv| lv.active));
    }
}

#[test]
fn a_volume_shows_its_own_size_and_not_its_last_extent_s() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let pool = machine.open(false);
        let volume = VolumeLayout { size: ByteSize::bytes(512 * 3), ..layout(1) };
        pool.ensure_volume(&volume).unwrap();
        let io = pool.open_volume(volume.id).unwrap();
        assert_eq!(io.size(), 512 * 3);
        assert!(io.write(b"x", 512 * 3, false).is_err());
        pool.ensure_volume(&resized(&volume, 1)).unwrap();
        assert_eq!(io.size(), 1 << 20);
        assert!(read(&*io).iter().all(|byte| *byte == 0));
        assert_eq!(machine.model.state().groups[&machine.group()].lvs[&volume.id.to_string()].extents, 1);
    }
}

#[test]
fn a_thick_pool_that_is_full_says_what_is_needed_and_what_is_free() {
    let machine = Machine::new(Kind::Thick);
    let pool = machine.open(false);
    let error = pool.ensure_volume(&layout(2000)).unwrap_err();
    assert!(error.to_string().contains("2000MiB") || error.to_string().contains("2.0GiB"), "{error}");
    assert!(machine.model.state().groups[&machine.group()].lvs.is_empty());
    let volume = layout(4);
    pool.ensure_volume(&volume).unwrap();
    assert!(matches!(pool.ensure_volume(&resized(&volume, 2000)), Err(BackendError::Refused(_))));
    assert_eq!(pool.open_volume(volume.id).unwrap().size(), EXTENT);
}

#[test]
fn damaged_and_foreign_tags_are_shown_and_nothing_is_done_about_them() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let pool = machine.open(false);
        let volume = layout(1);
        pool.ensure_volume(&volume).unwrap();
        let other = VolumeId::generate();
        for tags in [
            vec!["symphony.volume=nonsense".to_owned()],
            vec![],
            crate::backend::lvm::tags::VolumeTags::new(
                &VolumeLayout { id: other, ..volume.clone() },
                crate::backend::lvm::tags::State::Ready,
            )
            .encode()
            .unwrap(),
        ] {
            let mut state = machine.model.state();
            let lv = state.groups.get_mut(&machine.group()).unwrap().lvs.get_mut(&volume.id.to_string()).unwrap();
            lv.tags = tags.clone().into_iter().collect();
            drop(state);
            assert!(matches!(pool.ensure_volume(&volume), Err(BackendError::Damaged { .. })), "{tags:?}");
            assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Damaged { .. })), "{tags:?}");
            let found = pool.observe_volumes().unwrap();
            assert!(found.len() == 1 && found[0].id == volume.id && found[0].damage.is_some(), "{found:?}");
        }
        assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone, "a tombstone ends the matter");
    }
}

#[test]
fn an_open_volume_is_not_removed_and_loses_nothing() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (pool, volume) = (machine.open(false), layout(1));
        pool.ensure_volume(&volume).unwrap();
        let io = pool.open_volume(volume.id).unwrap();
        io.write(b"kept", 0, true).unwrap();
        let before = machine.model.state().shown.len();
        assert!(matches!(pool.remove_volume(volume.id), Err(BackendError::Io { .. })));
        assert_eq!(machine.model.state().shown.len(), before, "nothing was begun");
        assert_eq!(&read(&*io)[..4], b"kept");
        drop(io);
        assert_eq!(pool.remove_volume(volume.id).unwrap(), Removed::Gone);
    }
}

#[test]
fn a_pool_whose_release_has_begun_takes_no_volumes_any_more() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let pool = machine.open(false);
        machine.model.state().fuse = Some((0, true));
        pool.release().unwrap_err();
        assert!(matches!(pool.ensure_volume(&layout(1)), Err(BackendError::PoolLost { .. })));
        assert_eq!(pool.release().unwrap(), Removed::Gone);
    }
}

#[test]
fn a_thin_pool_whose_metadata_are_full_says_so_and_one_that_is_merely_full_shows_it() {
    let machine = Machine::new(Kind::Thin);
    let pool = machine.open(false);
    let ail = |word| {
        let mut state = machine.model.state();
        state.groups.get_mut(&machine.group()).unwrap().lvs.get_mut("thin-pool").unwrap().ailment = word;
    };
    ail("metadata_read_only");
    let error = pool.observe_capacity().unwrap_err().to_string();
    assert!(error.contains("metadata_read_only") && error.contains("thin-pool"), "{error}");
    assert_eq!(pool.observe_use().unwrap().ailment.as_deref(), Some("metadata_read_only"));
    ail("out_of_data");
    pool.observe_capacity().unwrap();
}
