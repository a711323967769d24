//! Snapshots and copies killed at every point.

use super::{Act, Stage, at_every_point};
use crate::snapshots::at;
use crate::support::mounted::Mounted;
use symphony::backend::{Backend, Ensured};

/// A file system whose files share blocks, if this machine lets us have one.
fn sharing() -> Option<Mounted> {
    Mounted::xfs().map_err(|why| eprintln!("skipped: no XFS here: {why}")).ok()
}

#[test]
fn a_snapshot_s_taking_can_be_killed_anywhere_and_begun_anew_or_taken_back() {
    let Some(mounted) = sharing() else { return };
    // Even where one was staged before: it is thrown away.
    for staged in [false, true] {
        at_every_point(
            Act::Stage,
            || Stage::with_snapshot(&mounted, staged, false),
            |stage, _| {
                let pool = stage.open(true);
                assert_eq!(pool.find_snapshot(stage.snapshot.id).unwrap(), None);
                pool.stage_snapshot(&stage.snapshot, at(3)).unwrap();
                assert_eq!(pool.settle_snapshot(stage.snapshot.id).unwrap().at, at(3));
                pool.ensure_volume(&stage.copy()).unwrap();
                stage.check_bytes(&pool, stage.copy().id);
                stage.check_bystander(&pool);
            },
        );
    }
    at_every_point(
        Act::Stage,
        || Stage::with_snapshot(&mounted, true, false),
        |stage, _| {
            let pool = stage.open(true);
            pool.remove_snapshot(stage.snapshot.id).unwrap();
            assert_eq!(stage.snapshot_names(), 0);
            stage.check_bytes(&pool, stage.subject.id);
        },
    );
}

#[test]
fn a_snapshot_s_settling_can_be_killed_anywhere_and_repeated_or_begun_anew() {
    let Some(mounted) = sharing() else { return };
    at_every_point(
        Act::Settle,
        || Stage::with_snapshot(&mounted, true, false),
        |stage, lived| {
            let pool = stage.open(true);
            let there = pool.find_snapshot(stage.snapshot.id).unwrap().is_some();
            assert!(there || !lived);
            assert_eq!(pool.settle_snapshot(stage.snapshot.id).unwrap().at, at(1));
            assert_eq!(stage.snapshot_names(), 2);
            pool.ensure_volume(&stage.copy()).unwrap();
            stage.check_bytes(&pool, stage.copy().id);
        },
    );
    at_every_point(
        Act::Settle,
        || Stage::with_snapshot(&mounted, true, false),
        |stage, _| {
            let pool = stage.open(true);
            if pool.find_snapshot(stage.snapshot.id).unwrap().is_none() {
                pool.stage_snapshot(&stage.snapshot, at(3)).unwrap();
                assert_eq!(pool.settle_snapshot(stage.snapshot.id).unwrap().at, at(3));
            }
            assert_eq!(stage.snapshot_names(), 2);
        },
    );
}

#[test]
fn a_copy_can_be_killed_anywhere_and_repeated_or_taken_back() {
    let Some(mounted) = sharing() else { return };
    at_every_point(
        Act::Copy,
        || Stage::with_snapshot(&mounted, true, true),
        |stage, lived| {
            let pool = stage.open(true);
            let found = pool.observe_volumes().unwrap();
            assert!(found.iter().all(|seen| seen.damage.is_none()), "{found:?}");
            let done = pool.ensure_volume(&stage.copy()).unwrap();
            assert!(!lived || done == Ensured::Unchanged);
            stage.check_bytes(&pool, stage.copy().id);
            assert_eq!(stage.names(), 6);
            stage.check_bystander(&pool);
        },
    );
    at_every_point(
        Act::Copy,
        || Stage::with_snapshot(&mounted, true, true),
        |stage, _| {
            let pool = stage.open(true);
            pool.remove_volume(stage.copy().id).unwrap();
            assert_eq!(stage.names(), 4);
            stage.check_bystander(&pool);
        },
    );
}

#[test]
fn a_putting_back_can_be_killed_anywhere_and_repeated() {
    let Some(mounted) = sharing() else { return };
    at_every_point(
        Act::PutBack,
        || Stage::with_snapshot(&mounted, true, true),
        |stage, lived| {
            let pool = stage.open(true);
            let done = pool.ensure_volume(&stage.put_back()).unwrap();
            assert!(!lived || done == Ensured::Unchanged);
            stage.check_bytes(&pool, stage.subject.id);
            assert_eq!(stage.names(), 4);
            assert_eq!(pool.ensure_volume(&stage.put_back()).unwrap(), Ensured::Unchanged);
            stage.check_bystander(&pool);
        },
    );
}
