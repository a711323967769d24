//! The `file` driver killed before each of its system calls, and the order of those calls.
//!
//! The process killed is this test program itself, run with one verb to do and traced (ptrace(2)): the tracer stops it
//! at the entry of every system call of the verb and kills it at the n-th, for n from 1 until the verb comes to its
//! end.

mod snapshots;

use crate::backend::{identity, layout, read, resized, shrunk};
use crate::snapshots::{at, snapshot_of};
use crate::support::mounted::Mounted;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{self, Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use symphony::backend::file::FilePool;
use symphony::backend::{Backend, Ensured, PoolIdentity, Removed, SnapshotLayout, VolumeLayout};
use symphony::model::{Generation, Revert, Source, VolumeId};
use tempfile::TempDir;

/// Between these two the victim does nothing but its verb.
const BEGINS: Signal = Signal::SIGUSR1;
const ENDS: Signal = Signal::SIGUSR2;
/// The victim's exit code where tracing is forbidden.
const UNTRACED: i32 = 77;

struct Stage {
    keep: TempDir,
    identity: PoolIdentity,
    /// The volume that the verb is about, and one that it is not.
    subject: VolumeLayout,
    bystander: VolumeLayout,
    snapshot: SnapshotLayout,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    MakePool,
    Create,
    Recheck,
    Rename,
    Grow,
    Shrink,
    Remove,
    Release,
    Stage,
    Settle,
    Copy,
    PutBack,
}

impl Stage {
    fn bare() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(keep: TempDir) -> Self {
        let snapshot = snapshot_of(VolumeId::generate());
        Self { keep, identity: identity(), subject: layout(2), bystander: layout(1), snapshot }
    }

    /// A pool with the bystander in it, and the subject too if it is to be there before.
    fn with(subject: bool) -> Self {
        Self::bare().filled(subject)
    }

    /// Where blocks can be shared: with the subject, and with a snapshot of it, staged or settled.
    fn with_snapshot(mounted: &Mounted, staged: bool, settled: bool) -> Self {
        let mut stage = Self::at(tempfile::tempdir_in(mounted.path()).unwrap()).filled(true);
        stage.snapshot.volume = stage.subject.id;
        let pool = stage.open(true);
        if staged {
            pool.stage_snapshot(&stage.snapshot, at(1)).unwrap();
        }
        if settled {
            pool.settle_snapshot(stage.snapshot.id).unwrap();
            pool.open_volume(stage.subject.id).unwrap().write(b"changed!", 4096, true).unwrap();
        }
        drop(pool);
        stage
    }

    /// What is made of the snapshot.
    fn copy(&self) -> VolumeLayout {
        let id = VolumeId::from_bytes(self.snapshot.id.to_bytes());
        VolumeLayout { id, source: Some(Source::Snapshot(self.snapshot.id)), ..layout(2) }
    }

    fn put_back(&self) -> VolumeLayout {
        let next = renamed(&self.subject);
        VolumeLayout { revert: Some(Revert { to: self.snapshot.id, since: next.generation }), ..next }
    }

    fn snapshot_names(&self) -> usize {
        fs::read_dir(self.path().join("snapshots")).map_or(0, |names| names.count())
    }

    fn filled(self, subject: bool) -> Self {
        let stage = self;
        let pool = stage.open(false);
        for volume in [Some(&stage.bystander), subject.then_some(&stage.subject)].into_iter().flatten() {
            pool.ensure_volume(volume).unwrap();
            pool.open_volume(volume.id).unwrap().write(b"precious", 4096, true).unwrap();
        }
        drop(pool);
        stage
    }

    fn path(&self) -> PathBuf {
        self.keep.path().join("pool")
    }

    fn open(&self, made: bool) -> FilePool {
        FilePool::ensure(&self.identity, &self.path(), None, made).unwrap().0
    }

    fn names(&self) -> usize {
        fs::read_dir(self.path().join("volumes")).unwrap().count()
    }

    fn check_bystander(&self, pool: &FilePool) {
        let volume = VolumeLayout { made: true, ..self.bystander.clone() };
        assert_eq!(pool.ensure_volume(&volume).unwrap(), Ensured::Unchanged);
        self.check_bytes(pool, volume.id);
    }

    fn check_bytes(&self, pool: &FilePool, id: VolumeId) {
        assert_eq!(read(&*pool.open_volume(id).unwrap(), 4096, 8), b"precious");
    }

    fn start(&self, act: Act) -> Child {
        let text = |id: &dyn std::fmt::Display| id.to_string();
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill_points::victim", "--ignored", "--nocapture", "--test-threads=1"])
            .env("VICTIM_ACT", format!("{act:?}"))
            .env("VICTIM_POOL", self.path())
            .env("VICTIM_CLUSTER", text(&self.identity.cluster))
            .env("VICTIM_POOL_ID", text(&self.identity.pool))
            .env("VICTIM_VOLUME", text(&self.subject.id))
            .env("VICTIM_SNAPSHOT", text(&self.snapshot.id))
            // Nobody else clears up behind a process that is killed.
            .env("TMPDIR", self.keep.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Lets a process do the act and kills it at its `kill`-th system call. Answers the calls it was let make, and
    /// whether it lived to the end of the act; none where the system forbids tracing.
    fn run(&self, act: Act, kill: usize) -> Option<(Vec<u64>, bool)> {
        let victim = Pid::from_raw(i32::try_from(self.start(act).id()).unwrap());
        let mut calls = Vec::new();
        let (mut acting, mut entering) = (false, true);
        let lived = loop {
            let event = next_event();
            match event {
                WaitStatus::Exited(_, UNTRACED) => return None,
                WaitStatus::Stopped(thread, BEGINS) => {
                    ptrace::setoptions(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
                    acting = true;
                }
                WaitStatus::Stopped(_, ENDS) => break true,
                WaitStatus::PtraceSyscall(thread) if acting && entering => {
                    if calls.len() + 1 == kill {
                        break false;
                    }
                    calls.push(call(thread));
                    entering = false;
                }
                WaitStatus::PtraceSyscall(_) => entering = true,
                other => panic!("{act:?}: {other:?}"),
            }
            ptrace::syscall(event.pid().unwrap(), None).unwrap();
        };
        signal::kill(victim, Signal::SIGKILL).unwrap();
        while next_event() != WaitStatus::Signaled(victim, Signal::SIGKILL, false) {}
        Some((calls, lived))
    }
}

/// What happens next to the victim of this very thread, or to the one thread of it that is traced.
fn next_event() -> WaitStatus {
    waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)).unwrap()
}

/// The number of the system call that the traced process is about to make.
fn call(pid: Pid) -> u64 {
    let info = ptrace::syscall_info(pid).unwrap();
    assert_eq!(info.op, libc::PTRACE_SYSCALL_INFO_ENTRY);
    // SAFETY: at this `op` the kernel has filled the `entry` member; it is plain numbers.
    unsafe { info.u.entry.nr }
}

#[test]
#[ignore = "not a test of its own: the process that the tests here kill"]
fn victim() {
    let Ok(act) = std::env::var("VICTIM_ACT") else { return };
    let word = |name: &str| std::env::var(name).unwrap();
    let path = PathBuf::from(word("VICTIM_POOL"));
    let identity = PoolIdentity {
        cluster: word("VICTIM_CLUSTER").parse().unwrap(),
        pool: word("VICTIM_POOL_ID").parse().unwrap(),
        ..identity()
    };
    let subject = VolumeLayout { id: word("VICTIM_VOLUME").parse().unwrap(), ..layout(2) };
    let snapshot = SnapshotLayout { id: word("VICTIM_SNAPSHOT").parse().unwrap(), ..snapshot_of(subject.id) };
    let stage = Stage { subject: subject.clone(), snapshot: snapshot.clone(), ..Stage::bare() };
    let pool = (act != "MakePool").then(|| FilePool::ensure(&identity, &path, None, true).unwrap().0);
    let pool = pool.as_ref();
    if ptrace::traceme().is_err() {
        std::process::exit(UNTRACED);
    }
    raise(BEGINS).unwrap();
    match act.as_str() {
        "MakePool" => drop(FilePool::ensure(&identity, &path, None, false).unwrap()),
        "Create" | "Recheck" => drop(pool.unwrap().ensure_volume(&subject).unwrap()),
        "Rename" => drop(pool.unwrap().ensure_volume(&renamed(&subject)).unwrap()),
        "Grow" => drop(pool.unwrap().ensure_volume(&resized(&subject, 4)).unwrap()),
        "Shrink" => drop(pool.unwrap().ensure_volume(&shrunk(&subject, 1)).unwrap()),
        "Remove" => drop(pool.unwrap().remove_volume(subject.id).unwrap()),
        "Stage" => pool.unwrap().stage_snapshot(&snapshot, at(2)).unwrap(),
        "Settle" => drop(pool.unwrap().settle_snapshot(snapshot.id).unwrap()),
        "Copy" => drop(pool.unwrap().ensure_volume(&stage.copy()).unwrap()),
        "PutBack" => drop(pool.unwrap().ensure_volume(&stage.put_back()).unwrap()),
        "Release" => drop(pool.unwrap().release().unwrap()),
        other => panic!("{other}"),
    }
    raise(ENDS).unwrap();
}

fn renamed(volume: &VolumeLayout) -> VolumeLayout {
    VolumeLayout { name: "renamed".parse().unwrap(), made: true, generation: Generation::new(2), ..volume.clone() }
}

/// Kills the act at each of its calls, each time on a stage of its own, and hands what is left to `check`, which is
/// also told of the one that lived.
fn at_every_point(act: Act, stage: impl Fn() -> Stage, check: impl Fn(&Stage, bool)) {
    for kill in 1.. {
        let stage = stage();
        let Some((_, lived)) = stage.run(act, kill) else {
            return eprintln!("skipped: this system does not let a process trace its child");
        };
        check(&stage, lived);
        if lived {
            assert!(kill > 5, "{act:?} ended before it did anything");
            return;
        }
    }
}

#[test]
fn a_pool_s_making_can_be_killed_anywhere_and_repeated_or_taken_back() {
    at_every_point(Act::MakePool, Stage::bare, |stage, _| {
        drop(stage.open(false));
        let names: Vec<_> = fs::read_dir(stage.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    });
    at_every_point(Act::MakePool, Stage::bare, |stage, _| {
        FilePool::release_at(&stage.identity, &stage.path()).unwrap();
        if stage.path().exists() {
            assert_eq!(fs::read_dir(stage.path()).unwrap().count(), 0);
        }
    });
}

#[test]
fn a_creation_can_be_killed_anywhere_and_repeated_or_taken_back() {
    at_every_point(
        Act::Create,
        || Stage::with(false),
        |stage, lived| {
            let pool = stage.open(true);
            let found = pool.observe_volumes().unwrap();
            assert!(found.iter().all(|seen| seen.damage.is_none()), "{found:?}");
            let done = pool.ensure_volume(&stage.subject).unwrap();
            let was_there = found.iter().any(|seen| seen.id == stage.subject.id);
            assert_eq!(done, if was_there { Ensured::Unchanged } else { Ensured::Created });
            assert!(was_there || !lived);
            let io = pool.open_volume(stage.subject.id).unwrap();
            assert_eq!(read(&*io, 0, 2 << 20), vec![0; 2 << 20]);
            assert_eq!(stage.names(), 4);
            stage.check_bystander(&pool);
        },
    );
    at_every_point(
        Act::Create,
        || Stage::with(false),
        |stage, _| {
            let pool = stage.open(true);
            pool.remove_volume(stage.subject.id).unwrap();
            assert_eq!(stage.names(), 2);
            stage.check_bystander(&pool);
        },
    );
}

#[test]
fn growth_can_be_killed_anywhere_and_repeated_or_left() {
    at_every_point(
        Act::Grow,
        || Stage::with(true),
        |stage, lived| {
            let pool = stage.open(true);
            let before = VolumeLayout { made: true, ..stage.subject.clone() };
            // The block service's own memory may be older than the growth; it serves until the newer layout is known.
            let old = pool.ensure_volume(&before);
            assert_eq!(
                old.is_err(),
                pool.observe_volumes().unwrap().iter().any(|seen| seen.generation > before.generation)
            );
            assert!(!lived || old.is_err());
            stage.check_bytes(&pool, stage.subject.id);
            let done = pool.ensure_volume(&resized(&stage.subject, 4)).unwrap();
            assert_eq!(done, if old.is_err() { Ensured::Unchanged } else { Ensured::Grown });
            let io = pool.open_volume(stage.subject.id).unwrap();
            assert_eq!((io.size(), read(&*io, 2 << 20, 2 << 20)), (4 << 20, vec![0; 2 << 20]));
            stage.check_bytes(&pool, stage.subject.id);
            stage.check_bystander(&pool);
            assert_eq!(stage.names(), 4);
        },
    );
}

#[test]
fn shrinking_can_be_killed_anywhere_and_repeated_and_what_was_cut_off_never_comes_back() {
    let full = || {
        let stage = Stage::with(true);
        let io = stage.open(true).open_volume(stage.subject.id).unwrap();
        io.write(&[0x5a; 8192], (1 << 20) - 4096, true).unwrap();
        stage
    };
    at_every_point(Act::Shrink, full, |stage, lived| {
        let pool = stage.open(true);
        let smaller = shrunk(&stage.subject, 1);
        // The block service's own memory may be older; it serves all of it until the cut was made known on the disk.
        let old = pool.ensure_volume(&VolumeLayout { made: true, ..stage.subject.clone() });
        if old.is_ok() {
            assert_eq!(read(&*pool.open_volume(stage.subject.id).unwrap(), 1 << 20, 4096), vec![0x5a; 4096]);
        }
        assert!(!lived || old.is_err());
        let done = pool.ensure_volume(&smaller).unwrap();
        assert_eq!(done, if old.is_err() { Ensured::Unchanged } else { Ensured::Shrunk });
        let io = pool.open_volume(stage.subject.id).unwrap();
        assert_eq!((io.size(), read(&*io, (1 << 20) - 4096, 4096)), (1 << 20, vec![0x5a; 4096]));
        drop(io);
        pool.ensure_volume(&resized(&smaller, 2)).unwrap();
        let io = pool.open_volume(stage.subject.id).unwrap();
        assert_eq!(read(&*io, 1 << 20, 1 << 20), vec![0; 1 << 20]);
        stage.check_bytes(&pool, stage.subject.id);
        stage.check_bystander(&pool);
        assert_eq!(stage.names(), 4);
    });
}

#[test]
fn a_renaming_can_be_killed_anywhere_and_repeated() {
    at_every_point(
        Act::Rename,
        || Stage::with(true),
        |stage, _| {
            let pool = stage.open(true);
            pool.ensure_volume(&renamed(&stage.subject)).unwrap();
            assert_eq!(pool.ensure_volume(&renamed(&stage.subject)).unwrap(), Ensured::Unchanged);
            stage.check_bytes(&pool, stage.subject.id);
            stage.check_bystander(&pool);
            assert_eq!(stage.names(), 4);
        },
    );
}

#[test]
fn a_removal_can_be_killed_anywhere_and_repeated() {
    at_every_point(
        Act::Remove,
        || Stage::with(true),
        |stage, lived| {
            let pool = stage.open(true);
            let removed = pool.remove_volume(stage.subject.id).unwrap();
            assert!(!lived || removed == Removed::WasAbsent);
            assert_eq!(stage.names(), 2);
            stage.check_bystander(&pool);
        },
    );
}

#[test]
fn a_release_can_be_killed_anywhere_and_repeated_or_undone() {
    let empty = || {
        let stage = Stage::bare();
        drop(stage.open(false));
        stage
    };
    at_every_point(Act::Release, empty, |stage, _| {
        FilePool::release_at(&stage.identity, &stage.path()).unwrap();
        assert_eq!(fs::read_dir(stage.path()).unwrap().count(), 0);
        drop(stage.open(false));
    });
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Sync,
    Rename,
    Unlink,
}

/// The calls of an act that say what is durable when.
fn steps(act: Act, stage: &Stage) -> Option<Vec<Step>> {
    let (calls, lived) = stage.run(act, usize::MAX)?;
    assert!(lived, "{act:?}");
    let step = |call: u64| match i64::try_from(call).unwrap() {
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_syncfs | libc::SYS_sync => Some(Step::Sync),
        libc::SYS_renameat | libc::SYS_renameat2 => Some(Step::Rename),
        libc::SYS_unlinkat => Some(Step::Unlink),
        _ => None,
    };
    Some(calls.into_iter().filter_map(step).collect())
}

#[test]
fn syncs_come_in_the_order_that_power_cuts_call_for_and_there_are_no_more_than_needed() {
    use Step::{Rename, Sync, Unlink};
    let expected: [(Act, bool, &[Step]); 6] = [
        // The sidecar's content, the image, the sidecar's name, the directory.
        (Act::Create, false, &[Sync, Sync, Rename, Sync]),
        (Act::Grow, true, &[Sync, Sync, Rename, Sync]),
        // The sidecar that says so, then the cut, then the sidecar that says it is done.
        (Act::Shrink, true, &[Sync, Rename, Sync, Sync, Sync, Rename, Sync]),
        (Act::Rename, true, &[Sync, Rename, Sync]),
        // A copy that never took the image's place, the image, the sidecar.
        (Act::Remove, true, &[Unlink, Unlink, Unlink, Sync]),
        (Act::Recheck, true, &[]),
    ];
    for (act, subject, order) in expected {
        let Some(steps) = steps(act, &Stage::with(subject)) else {
            return eprintln!("skipped: this system does not let a process trace its child");
        };
        assert_eq!(steps, order, "{act:?}");
    }
}

#[test]
fn a_killed_process_leaves_the_pool_unlocked() {
    let stage = Stage::with(true);
    assert!(Path::new(&stage.path()).exists());
    let Some((_, lived)) = stage.run(Act::Create, 2) else {
        return eprintln!("skipped: this system does not let a process trace its child");
    };
    assert!(!lived);
    drop(stage.open(true));
}
