//! Holes of thin volumes: told when they are known, and never where bytes may be.

use super::machine::{Machine, layout, resized, snapshot_of};
use crate::backend::lvm::thin::metadata::tests::CHUNK;
use crate::backend::lvm::{Kind, LvmPool};
use crate::backend::{Backend, VolumeLayout};
use crate::io::BlockIo;
use crate::model::{Revert, Source, Timestamp, VolumeId};
use proptest::prelude::*;
use std::sync::Arc;

fn volume(pool: &LvmPool, mib: u64) -> (VolumeLayout, Arc<dyn BlockIo>) {
    let volume = layout(mib);
    pool.ensure_volume(&volume).unwrap();
    let io = pool.open_volume(volume.id).unwrap();
    (volume, io)
}

/// The chunks that are told to be holes.
fn holes(io: &dyn BlockIo) -> Vec<u64> {
    let extents = io.extents(0, io.size(), usize::MAX).unwrap();
    let holes = extents.iter().filter(|extent| extent.hole);
    holes.flat_map(|extent| extent.offset / CHUNK..(extent.offset + extent.length) / CHUNK).collect()
}

/// Asks, lets whoever makes maps do so, and asks again.
fn surveyed(pool: &LvmPool, io: &dyn BlockIo) -> Vec<u64> {
    io.expect_questions();
    settle(pool);
    holes(io)
}

fn settle(pool: &LvmPool) {
    pool.surveyor.as_ref().unwrap().wait();
}

fn all_but(mib: u64, used: &[u64]) -> Vec<u64> {
    (0..(mib << 20) / CHUNK).filter(|chunk| !used.contains(chunk)).collect()
}

#[test]
fn holes_are_told_once_they_are_known_and_what_is_written_later_is_none() {
    let machine = Machine::new(Kind::Thin);
    let pool = machine.open(false);
    let (_, io) = volume(&pool, 4);
    io.write(b"x", 3 * CHUNK + 7, true).unwrap();
    io.write(&[1; 4096], 9 * CHUNK, false).unwrap();
    assert!(holes(&*io).is_empty(), "all is data before somebody has looked");
    settle(&pool);
    assert_eq!(holes(&*io), all_but(4, &[3, 9]));
    io.write(&[2; 2], 21 * CHUNK - 1, false).unwrap();
    io.zero(40 * CHUNK, CHUNK, false).unwrap();
    assert_eq!(holes(&*io), all_but(4, &[3, 9, 20, 21, 40]));
    assert!(!machine.model.state().mapper.held, "nothing is held any more");
    assert_eq!(machine.model.state().mapper.holds, 1, "asking again costs the pool nothing");
}

#[test]
fn what_is_written_while_the_metadata_are_read_is_data() {
    let machine = Machine::new(Kind::Thin);
    let pool = machine.open(false);
    let (_, io) = volume(&pool, 4);
    let writer = Arc::clone(&io);
    machine.model.state().mapper.meddler = Some(Box::new(move || writer.write(b"late", 5 * CHUNK, false).unwrap()));
    assert_eq!(surveyed(&pool, &*io), all_but(4, &[5]));
}

#[test]
fn volumes_that_ask_together_share_a_hold_and_each_has_its_own_map() {
    let machine = Machine::new(Kind::Thin);
    let pool = machine.open(false);
    let volumes: Vec<Arc<dyn BlockIo>> = (0..8).map(|_| volume(&pool, 4).1).collect();
    for (number, io) in volumes.iter().enumerate() {
        io.write(b"x", number as u64 * CHUNK, false).unwrap();
    }
    let others = volumes.clone();
    machine.model.state().mapper.meddler = Some(Box::new(move || others.iter().for_each(|io| io.expect_questions())));
    assert!(surveyed(&pool, &*volumes[0]) == all_but(4, &[0]));
    for (number, io) in volumes.iter().enumerate() {
        assert_eq!(holes(&**io), all_but(4, &[number as u64]));
    }
    assert_eq!(machine.model.state().mapper.holds, 2);
}

#[test]
fn a_larger_volume_and_one_that_was_put_back_are_looked_at_anew() {
    let machine = Machine::new(Kind::Thin);
    let pool = machine.open(false);
    let (small, io) = volume(&pool, 4);
    assert_eq!(surveyed(&pool, &*io), all_but(4, &[]));
    let large = resized(&small, 8);
    pool.ensure_volume(&large).unwrap();
    assert!(holes(&*io).is_empty(), "nobody has looked at it since");
    settle(&pool);
    assert_eq!(holes(&*io), all_but(8, &[]));
    io.write(b"kept", CHUNK, true).unwrap();
    let taken = snapshot_of(small.id);
    pool.stage_snapshot(&taken, Timestamp::from_millis(1)).unwrap();
    pool.settle_snapshot(taken.id).unwrap();
    io.write(b"gone", 2 * CHUNK, true).unwrap();
    drop(io);
    let since = large.generation.next();
    let back =
        VolumeLayout { generation: since, revert: Some(Revert { to: taken.id, since }), made: true, ..large.clone() };
    pool.ensure_volume(&back).unwrap();
    let io = pool.open_volume(small.id).unwrap();
    let seen = surveyed(&pool, &*io);
    assert!(!seen.contains(&1), "what the snapshot holds is data: {seen:?}");
    let copy = VolumeLayout { source: Some(Source::Snapshot(taken.id)), ..layout(8) };
    pool.ensure_volume(&copy).unwrap();
    let io = pool.open_volume(copy.id).unwrap();
    assert!(!surveyed(&pool, &*io).contains(&1));
}

#[test]
fn a_hold_that_a_killed_process_left_is_let_go_of_when_the_pool_is_opened() {
    let machine = Machine::new(Kind::Thin);
    drop(machine.open(false));
    machine.model.state().mapper.held = true;
    let pool = machine.open(true);
    assert!(!machine.model.state().mapper.held);
    let (_, io) = volume(&pool, 4);
    assert_eq!(surveyed(&pool, &*io).len(), 64);
}

#[test]
fn a_survey_killed_at_any_message_leaves_data_and_nothing_that_the_next_process_does_not_clear() {
    for fuse in [(0, false), (0, true), (1, false), (1, true)] {
        let machine = Machine::new(Kind::Thin);
        let pool = machine.open(false);
        let (made, io) = volume(&pool, 4);
        io.write(b"x", 3 * CHUNK, true).unwrap();
        machine.model.state().mapper.fuse = Some(fuse);
        assert!(surveyed(&pool, &*io).is_empty(), "{fuse:?}: it is not known whether it was true");
        drop((io, pool));
        machine.model.state().mapper.fuse = None;
        let pool = machine.open(true);
        assert!(!machine.model.state().mapper.held, "{fuse:?}");
        let io = pool.open_volume(made.id).unwrap();
        assert_eq!(surveyed(&pool, &*io), all_but(4, &[3]));
    }
}

#[test]
fn what_somebody_else_holds_is_left_to_him_and_all_is_data() {
    let machine = Machine::new(Kind::Thin);
    let pool = machine.open(false);
    let (_, io) = volume(&pool, 4);
    machine.model.state().mapper.held = true;
    assert!(surveyed(&pool, &*io).is_empty());
    assert!(machine.model.state().mapper.held, "his hold is his");
}

#[test]
fn what_is_let_go_of_while_it_is_read_proves_nothing() {
    let machine = Machine::new(Kind::Thin);
    let pool = machine.open(false);
    let (_, io) = volume(&pool, 4);
    let model = Arc::clone(&machine.model);
    machine.model.state().mapper.meddler = Some(Box::new(move || model.state().mapper.held = false));
    assert!(surveyed(&pool, &*io).is_empty());
}

#[test]
fn metadata_that_are_damaged_or_too_full_leave_all_as_data_and_nothing_held() {
    for (damaged, used) in [(true, 0), (false, 750)] {
        let machine = Machine::new(Kind::Thin);
        let pool = machine.open(false);
        let (_, io) = volume(&pool, 4);
        (machine.model.state().mapper.damaged, machine.model.state().mapper.used) = (damaged, used);
        assert!(surveyed(&pool, &*io).is_empty());
        let state = machine.model.state();
        assert_eq!((state.mapper.held, state.mapper.holds), (false, usize::from(damaged)), "full ones are not held");
    }
}

#[test]
fn a_volume_can_be_removed_after_a_survey_and_one_that_nobody_has_open_is_not_surveyed() {
    let machine = Machine::new(Kind::Thin);
    let pool = machine.open(false);
    let (made, io) = volume(&pool, 4);
    surveyed(&pool, &*io);
    io.expect_questions();
    drop(io);
    settle(&pool);
    pool.remove_volume(made.id).unwrap();
    pool.surveyor.as_ref().unwrap().ask(VolumeId::generate());
    settle(&pool);
    assert_eq!(machine.model.state().mapper.holds, 1);
}

#[test]
fn thick_volumes_are_data_throughout() {
    let machine = Machine::new(Kind::Thick);
    let pool = machine.open(false);
    assert!(pool.surveyor.is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Trim(u64, u64),
    Zero(u64, u64, bool),
    Survey,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0u64..4 << 20, 0u64..200 << 10);
    prop_oneof![
        3 => range().prop_map(|(at, length)| Step::Write(at, length)),
        2 => range().prop_map(|(at, length)| Step::Trim(at, length)),
        1 => (range(), any::<bool>()).prop_map(|((at, length), punch)| Step::Zero(at, length, punch)),
        1 => Just(Step::Survey),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_byte_that_is_not_zero_is_ever_in_a_hole(steps in proptest::collection::vec(step(), 1..30)) {
        let machine = Machine::new(Kind::Thin);
        let pool = machine.open(false);
        let (_, io) = volume(&pool, 4);
        let mut naive = vec![0u8; 4 << 20];
        let cut = |at: u64, length: u64| at as usize..(at + length).min(4 << 20) as usize;
        for step in steps {
            match step {
                Step::Write(at, length) => {
                    let range = cut(at, length);
                    io.write(&vec![7; range.len()], at, false).unwrap();
                    naive[range].fill(7);
                }
                Step::Trim(at, length) => {
                    let range = cut(at, length);
                    io.trim(at, range.len() as u64).unwrap();
                    io.read(&mut naive[range.clone()], at).unwrap();
                }
                Step::Zero(at, length, punch) => {
                    let range = cut(at, length);
                    io.zero(at, range.len() as u64, punch).unwrap();
                    naive[range].fill(0);
                }
                Step::Survey => drop(surveyed(&pool, &*io)),
            }
            for chunk in holes(&*io) {
                prop_assert!(naive[(chunk * CHUNK) as usize..][..CHUNK as usize].iter().all(|byte| *byte == 0));
            }
            let mut seen = vec![1; 4 << 20];
            io.read(&mut seen, 0).unwrap();
            prop_assert!(seen == naive, "what was written is what is read");
        }
    }
}
