//! What the `file` driver promises beyond the conformance suite: whose directory it is, damage, and full disks.

use crate::backend::{identity, layout, read, resized, shrunk};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use symphony::backend::file::FilePool;
use symphony::backend::{Backend, BackendError, Ensured, PoolIdentity, Removed, VolumeLayout};
use symphony::model::{ByteSize, ClusterId, SnapshotId, VolumeId};
use tempfile::TempDir;

fn ensure(identity: &PoolIdentity, path: &Path, made: bool) -> Result<FilePool, BackendError> {
    FilePool::ensure(identity, path, None, made).map(|(pool, _)| pool)
}

struct Scratch {
    keep: TempDir,
    identity: PoolIdentity,
}

impl Scratch {
    fn new() -> Self {
        Self { keep: tempfile::tempdir().unwrap(), identity: identity() }
    }

    fn path(&self) -> PathBuf {
        self.keep.path().join("pool")
    }

    fn open(&self, made: bool) -> Result<FilePool, BackendError> {
        ensure(&self.identity, &self.path(), made)
    }

    fn image(&self, id: VolumeId) -> PathBuf {
        self.path().join(format!("volumes/{id}.img"))
    }

    fn sidecar(&self, id: VolumeId) -> PathBuf {
        self.path().join(format!("volumes/{id}.json"))
    }

    /// Every file below, with its content; what must not change is compared with it.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(path: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, into)
                } else {
                    drop(into.insert(path.clone(), fs::read(&path).unwrap()))
                }
            }
        }
        let mut content = BTreeMap::new();
        walk(self.keep.path(), &mut content);
        content
    }
}

/// A volume that holds bytes, and the layout it is known by afterwards.
fn written(pool: &FilePool) -> VolumeLayout {
    let volume = layout(2);
    pool.ensure_volume(&volume).unwrap();
    pool.open_volume(volume.id).unwrap().write(b"precious", 4096, true).unwrap();
    VolumeLayout { made: true, ..volume }
}

#[test]
fn a_pool_is_made_once_and_found_ever_after() {
    let scratch = Scratch::new();
    let made = |made| FilePool::ensure(&scratch.identity, &scratch.path(), None, made).map(|(_, done)| done).unwrap();
    assert_eq!([made(false), made(false), made(true)], [Ensured::Created, Ensured::Unchanged, Ensured::Unchanged]);
    assert_eq!(fs::metadata(scratch.path()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn one_directory_is_one_pool_s_and_open_once() {
    let scratch = Scratch::new();
    let held = scratch.open(false).unwrap();
    let link = scratch.keep.path().join("link");
    symlink(scratch.path(), &link).unwrap();
    for path in [&scratch.path(), &link] {
        assert!(matches!(ensure(&scratch.identity, path, true), Err(BackendError::Locked { .. })));
        let taken = ensure(&identity(), path, false).unwrap_err().to_string();
        assert!(taken.contains(&scratch.identity.pool.to_string()), "{taken}");
    }
    drop(held);
    for made in [false, true] {
        assert!(matches!(ensure(&identity(), &scratch.path(), made), Err(BackendError::Taken { .. })));
        let abroad = PoolIdentity { cluster: ClusterId::generate(), ..scratch.identity.clone() };
        assert!(matches!(ensure(&abroad, &scratch.path(), made), Err(BackendError::Taken { .. })));
    }
    scratch.open(true).unwrap();
}

#[test]
fn a_path_that_cannot_be_a_pool_s_is_refused_and_nothing_is_made() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let file = scratch.keep.path().join("file");
    fs::write(&file, "").unwrap();
    let before = scratch.content();
    let real = scratch.path();
    let link = scratch.keep.path().join("link");
    symlink(real.join("volumes"), &link).unwrap();
    let paths = [
        "relative".into(),
        file.clone(),
        file.join("below"),
        real.join("../pool2"),
        real.join("inner/most"),
        real.join("volumes"),
        link.join("inner"),
        link,
    ];
    for path in paths {
        ensure(&identity(), &path, false).unwrap_err();
    }
    assert_eq!(scratch.content(), before);
    assert!(!real.join("inner").exists());
    drop(pool);
}

#[test]
fn a_directory_with_other_files_is_refused_and_lost_and_found_is_not_one() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path().join("lost+found")).unwrap();
    fs::write(scratch.path().join("thesis.tex"), "years").unwrap();
    let error = scratch.open(false).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
    fs::remove_file(scratch.path().join("thesis.tex")).unwrap();
    scratch.open(false).unwrap();
}

#[test]
fn a_pool_whose_file_system_is_not_mounted_is_lost_and_not_made_anew() {
    let scratch = Scratch::new();
    assert!(matches!(scratch.open(true), Err(BackendError::PoolLost { .. })));
    assert!(!scratch.path().exists());
    fs::create_dir(scratch.path()).unwrap();
    assert!(matches!(scratch.open(true), Err(BackendError::PoolLost { .. })));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    drop(scratch.open(false).unwrap());
    fs::remove_dir(scratch.path().join("volumes")).unwrap();
    assert!(matches!(scratch.open(true), Err(BackendError::PoolLost { .. })));
}

#[test]
fn an_open_pool_goes_on_when_its_path_leads_elsewhere() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let volume = written(&pool);
    let aside = scratch.keep.path().join("aside");
    fs::rename(scratch.path(), &aside).unwrap();
    fs::create_dir_all(scratch.path().join("volumes")).unwrap();
    assert_eq!(pool.ensure_volume(&resized(&volume, 4)).unwrap(), Ensured::Grown);
    pool.ensure_volume(&layout(1)).unwrap();
    assert_eq!(pool.observe_volumes().unwrap().len(), 2);
    assert_eq!(fs::read_dir(scratch.path().join("volumes")).unwrap().count(), 0);
}

#[test]
fn a_new_name_reaches_the_marker_of_an_open_and_of_a_closed_pool() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let named = |name: &str| PoolIdentity { name: name.parse().unwrap(), ..scratch.identity.clone() };
    assert_eq!(pool.ensure_settings(&named("nvme").name, None).unwrap(), Ensured::Updated);
    assert_eq!(pool.ensure_settings(&named("nvme").name, Some(ByteSize::mib(1))).unwrap(), Ensured::Unchanged);
    assert_eq!(pool.observe_capacity().unwrap().capacity, ByteSize::mib(1));
    drop(pool);
    let again = |name| FilePool::ensure(&named(name), &scratch.path(), None, true).map(|(_, done)| done).unwrap();
    assert_eq!([again("nvme"), again("disk")], [Ensured::Unchanged, Ensured::Updated]);
}

#[test]
fn a_closed_pool_is_released_where_it_lies_and_other_files_stay() {
    let scratch = Scratch::new();
    let release = |identity: &PoolIdentity| FilePool::release_at(identity, &scratch.path());
    assert_eq!(release(&scratch.identity).unwrap(), Removed::WasAbsent);
    let pool = scratch.open(false).unwrap();
    let volume = written(&pool);
    assert!(matches!(release(&scratch.identity), Err(BackendError::Locked { .. })));
    drop(pool);
    assert!(matches!(release(&scratch.identity), Err(BackendError::Refused(_))));
    assert_eq!(release(&identity()).unwrap(), Removed::WasAbsent);
    scratch.open(true).unwrap().remove_volume(volume.id).unwrap();
    fs::write(scratch.path().join("notes"), "mine").unwrap();
    assert_eq!(release(&scratch.identity).unwrap(), Removed::Gone);
    assert_eq!(release(&scratch.identity).unwrap(), Removed::WasAbsent);
    assert_eq!(fs::read_to_string(scratch.path().join("notes")).unwrap(), "mine");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

/// Damages the file in several ways; under each, `fails` must name the file and nothing on disk may change.
fn under_damage(scratch: &Scratch, file: &Path, fails: impl Fn() -> BackendError) {
    let whole = fs::read(file).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let damages: [Vec<u8>; 6] = [
        Vec::new(),
        whole[..whole.len() / 2].to_vec(),
        b"\0\xff garbage".to_vec(),
        text.replacen("\"name\": \"", "\"name\": \"x", 1).into_bytes(),
        text.replace("\"version\": 1", "\"version\": 2").into_bytes(),
        text.replace("symphony ", "cacophony ").into_bytes(),
    ];
    for damage in damages {
        fs::write(file, &damage).unwrap();
        let before = scratch.content();
        let error = fails();
        assert!(matches!(error, BackendError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
        assert!(scratch.content() == before, "something was touched: {error}");
    }
    fs::write(file, whole).unwrap();
}

#[test]
fn a_damaged_marker_is_named_and_nothing_is_touched() {
    let scratch = Scratch::new();
    written(&scratch.open(false).unwrap());
    let marker = scratch.path().join("symphony-pool.json");
    for made in [false, true] {
        under_damage(&scratch, &marker, || scratch.open(made).unwrap_err());
    }
    under_damage(&scratch, &marker, || FilePool::release_at(&scratch.identity, &scratch.path()).unwrap_err());
    scratch.open(true).unwrap();
}

#[test]
fn a_damaged_sidecar_is_named_stays_and_hides_no_other_volume() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let (hurt, sound) = (written(&pool), written(&pool));
    let sidecar = scratch.sidecar(hurt.id);
    for made in [false, true] {
        under_damage(&scratch, &sidecar, || pool.ensure_volume(&VolumeLayout { made, ..hurt.clone() }).unwrap_err());
    }
    under_damage(&scratch, &sidecar, || pool.ensure_volume(&resized(&hurt, 4)).unwrap_err());
    under_damage(&scratch, &sidecar, || pool.open_volume(hurt.id).err().unwrap());
    under_damage(&scratch, &sidecar, || {
        let found = pool.observe_volumes().unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().any(|seen| seen.id == sound.id && seen.damage.is_none()), "{found:?}");
        let seen = found.into_iter().find(|seen| seen.id == hurt.id).unwrap();
        assert_eq!(seen.size, ByteSize::mib(2));
        BackendError::Damaged { path: String::new(), reason: seen.damage.unwrap() }
    });
    assert_eq!(pool.ensure_volume(&hurt).unwrap(), Ensured::Unchanged);
}

#[test]
fn a_sidecar_of_another_volume_is_damage() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let (one, other) = (written(&pool), written(&pool));
    fs::copy(scratch.sidecar(one.id), scratch.sidecar(other.id)).unwrap();
    assert!(matches!(pool.ensure_volume(&other), Err(BackendError::Damaged { .. })));
}

#[test]
fn a_lost_sidecar_is_written_anew_for_a_volume_that_was_made_and_for_no_other() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let volume = written(&pool);
    fs::remove_file(scratch.sidecar(volume.id)).unwrap();
    let image = fs::read(scratch.image(volume.id)).unwrap();
    let fresh = VolumeLayout { made: false, ..volume.clone() };
    assert!(matches!(pool.ensure_volume(&fresh), Err(BackendError::Damaged { .. })));
    assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Damaged { .. })));
    assert!(matches!(pool.ensure_volume(&resized(&volume, 4)), Err(BackendError::Damaged { .. })));
    let found = pool.observe_volumes().unwrap();
    assert!(found.iter().all(|seen| seen.damage.is_some() && seen.size == volume.size), "{found:?}");
    assert_eq!(pool.ensure_volume(&volume).unwrap(), Ensured::Updated);
    assert_eq!(fs::read(scratch.image(volume.id)).unwrap(), image);
    assert_eq!(pool.ensure_volume(&volume).unwrap(), Ensured::Unchanged);
}

#[test]
fn an_image_cut_short_is_damage_and_is_not_made_whole() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let volume = written(&pool);
    let file = fs::OpenOptions::new().write(true).open(scratch.image(volume.id)).unwrap();
    file.set_len(8192).unwrap();
    assert!(matches!(pool.ensure_volume(&volume), Err(BackendError::Damaged { .. })));
    assert!(matches!(pool.ensure_volume(&resized(&volume, 4)), Err(BackendError::Damaged { .. })));
    assert!(matches!(pool.open_volume(volume.id), Err(BackendError::Damaged { .. })));
    assert!(pool.observe_volumes().unwrap().remove(0).damage.is_some());
    assert_eq!(file.metadata().unwrap().len(), 8192);
}

#[test]
fn a_link_or_a_directory_in_an_image_s_place_is_never_followed() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let target = scratch.keep.path().join("target");
    fs::write(&target, "mine").unwrap();
    let (linked, folder) = (layout(1), layout(1));
    symlink(&target, scratch.image(linked.id)).unwrap();
    fs::create_dir(scratch.image(folder.id)).unwrap();
    for volume in [&linked, &folder] {
        assert!(matches!(pool.ensure_volume(volume), Err(BackendError::Damaged { .. })));
        assert!(pool.open_volume(volume.id).is_err());
    }
    assert_eq!(pool.observe_volumes().unwrap().len(), 2);
    assert!(pool.remove_volume(folder.id).is_err());
    pool.remove_volume(linked.id).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
}

#[test]
fn foreign_files_among_the_volumes_are_left_alone() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let note = scratch.path().join("volumes/.note.1-1.tmp");
    fs::write(&note, "mine").unwrap();
    assert!(pool.observe_volumes().unwrap().is_empty());
    assert!(matches!(pool.release(), Err(BackendError::Refused(_))));
    drop(pool);
    scratch.open(true).unwrap();
    assert_eq!(fs::read_to_string(note).unwrap(), "mine");
}

#[test]
fn everything_a_pool_writes_is_closed_to_other_users() {
    let scratch = Scratch::new();
    written(&scratch.open(false).unwrap());
    for path in scratch.content().keys() {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
    assert_eq!(fs::metadata(scratch.path().join("volumes")).unwrap().mode() & 0o077, 0);
}

/// A file system of its own, unmounted when dropped.
struct Mounted(TempDir);

impl Mounted {
    /// None where the test may not mount; says why.
    fn tmpfs(options: &str) -> Option<Self> {
        let point = tempfile::tempdir().unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(point.path()).status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self(point));
        }
        eprintln!("skipped: mounting a small file system takes root");
        None
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        detach(self.0.path());
    }
}

/// Lazily: a process that another test is just starting may hold copies of descriptors in there.
fn detach(point: &Path) {
    let status = Command::new("umount").arg("--lazy").arg(point).status();
    assert!(std::thread::panicking() || status.unwrap().success());
}

#[test]
fn a_full_disk_is_an_error_that_ends_when_there_is_room_again() {
    let Some(mounted) = Mounted::tmpfs("size=512k") else { return };
    let identity = identity();
    let pool = ensure(&identity, mounted.0.path(), false).unwrap();
    let big = layout(1);
    pool.ensure_volume(&big).unwrap();
    let io = pool.open_volume(big.id).unwrap();
    io.write(b"precious", 0, true).unwrap();
    let full = (1..256).find_map(|page| io.write(&[1; 4096], page * 4096, false).err()).unwrap();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let is_full = |error: BackendError| {
        assert!(matches!(&error, BackendError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    };
    let other = layout(1);
    is_full(pool.ensure_volume(&other).unwrap_err());
    is_full(pool.ensure_volume(&resized(&big, 2)).unwrap_err());
    // What is there goes on being there, as it was.
    assert_eq!(pool.ensure_volume(&big).unwrap(), Ensured::Unchanged);
    assert_eq!(read(&*io, 0, 8), b"precious");
    let found = pool.observe_volumes().unwrap();
    assert!(found.len() == 1 && found.iter().all(|seen| seen.damage.is_none()), "{found:?}");
    let room = pool.observe_capacity().unwrap();
    assert!(room.capacity <= ByteSize::bytes(512 << 10) && room.used > ByteSize::ZERO, "{room:?}");
    io.trim(64 << 10, 128 << 10).unwrap();
    assert_eq!(pool.ensure_volume(&other).unwrap(), Ensured::Created);
    assert_eq!(pool.ensure_volume(&resized(&big, 2)).unwrap(), Ensured::Grown);
    assert_eq!(io.size(), 2 << 20);
    drop(io);
    pool.remove_volume(big.id).unwrap();
    assert!(pool.observe_capacity().unwrap().used < room.used);
}

#[test]
fn a_disk_without_room_for_a_file_name_is_an_error_and_leaves_no_pool_half_made() {
    let Some(mounted) = Mounted::tmpfs("size=512k,nr_inodes=3") else { return };
    let path = mounted.0.path();
    let identity = identity();
    let pool = ensure(&identity, path, false).unwrap();
    assert!(matches!(pool.ensure_volume(&layout(1)), Err(BackendError::Io { .. })));
    assert!(pool.observe_volumes().unwrap().is_empty());
    pool.release().unwrap();
    assert_eq!(fs::read_dir(path).unwrap().count(), 0);
}

#[test]
fn a_disk_gone_read_only_is_an_error_that_says_so() {
    let Some(mounted) = Mounted::tmpfs("size=512k") else { return };
    let identity = identity();
    drop(ensure(&identity, mounted.0.path(), false).unwrap());
    mounted.remount("ro");
    let error = ensure(&identity, mounted.0.path(), true).unwrap_err();
    assert!(
        matches!(&error, BackendError::Io { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
    );
}

#[test]
fn a_directory_mounted_in_two_places_is_one_pool_s() {
    let Some(mounted) = Mounted::tmpfs("size=512k") else { return };
    let point = mounted.0.path();
    let (real, twin) = (point.join("real"), point.join("twin"));
    fs::create_dir(&real).unwrap();
    fs::create_dir(&twin).unwrap();
    assert!(Command::new("mount").arg("--bind").args([&real, &twin]).status().unwrap().success());
    let pool = ensure(&identity(), &real, false).unwrap();
    let refused = ensure(&identity(), &twin, false);
    drop(pool);
    detach(&twin);
    assert!(matches!(refused, Err(BackendError::Taken { .. })));
}

#[test]
fn growth_that_stopped_half_way_shows_nobody_more_and_is_finished_or_given_up() {
    let half_way = || {
        let scratch = Scratch::new();
        let pool = scratch.open(false).unwrap();
        let volume = written(&pool);
        let file = fs::OpenOptions::new().write(true).open(scratch.image(volume.id)).unwrap();
        file.set_len(4 << 20).unwrap();
        (scratch, pool, volume)
    };
    for next in [1, 2, 3, 4, 5] {
        let (scratch, pool, volume) = half_way();
        // The layout known before the growth still serves: a host may restart before a manager answers.
        assert_eq!(pool.ensure_volume(&volume).unwrap(), Ensured::Unchanged);
        let io = pool.open_volume(volume.id).unwrap();
        assert_eq!((io.size(), read(&*io, 4096, 8)), (2 << 20, b"precious".to_vec()));
        assert!(io.write(b"beyond", 2 << 20, false).is_err());
        let layout = if next < 2 { shrunk(&volume, next) } else { resized(&volume, next) };
        if next < 2 {
            drop(io);
            assert_eq!(pool.ensure_volume(&layout).unwrap(), Ensured::Shrunk);
        } else {
            assert_eq!(pool.ensure_volume(&layout).unwrap(), if next == 2 { Ensured::Updated } else { Ensured::Grown });
            assert_eq!(io.size(), next << 20);
        }
        assert_eq!(pool.open_volume(volume.id).unwrap().size(), next << 20);
        assert_eq!(fs::metadata(scratch.image(volume.id)).unwrap().len(), next << 20);
        assert_eq!(pool.observe_volumes().unwrap()[0].size, ByteSize::mib(next));
    }
}

#[test]
fn an_image_left_over_is_taken_over_only_while_it_is_one_hole() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let (blank, used) = (layout(1), layout(1));
    for volume in [&blank, &used] {
        fs::File::create(scratch.image(volume.id)).unwrap().set_len(3 << 20).unwrap();
    }
    assert!(pool.observe_volumes().unwrap().is_empty());
    let file = fs::OpenOptions::new().write(true).open(scratch.image(used.id)).unwrap();
    file.write_all_at(b"\0", 2 << 20).unwrap();
    assert_eq!(pool.ensure_volume(&blank).unwrap(), Ensured::Created);
    assert_eq!(pool.open_volume(blank.id).unwrap().size(), 1 << 20);
    assert!(matches!(pool.ensure_volume(&used), Err(BackendError::Damaged { .. })));
    assert_eq!(file.metadata().unwrap().len(), 3 << 20);
}

#[test]
fn a_file_cannot_be_wiped_and_says_why() {
    let scratch = Scratch::new();
    let pool = scratch.open(false).unwrap();
    let volume = written(&pool);
    let error = pool.wipe_volume(volume.id).unwrap_err();
    assert!(matches!(&error, BackendError::Refused(why) if why.contains("may write elsewhere")), "{error}");
    let error = pool.wipe_snapshot(SnapshotId::generate()).unwrap_err();
    assert!(matches!(&error, BackendError::Refused(why) if why.contains("shares its blocks")), "{error}");
    pool.open_volume(volume.id).unwrap();
}
