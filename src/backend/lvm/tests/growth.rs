//! Thin pools that begin small and are extended as they fill up.

use super::machine::{Machine, layout};
use crate::backend::lvm::{Kind, LvmPool, Settings};
use crate::backend::{Backend, BackendError, Ensured};
use crate::model::ByteSize;

const GIB: u64 = 1 << 30;

/// Two disks with so many gibibytes each.
fn machine(gib: u64, ceiling: Option<u64>) -> Machine {
    let mut machine = Machine::new(Kind::Thin);
    ["vdb", "vdc", "vdd"].iter().for_each(|name| machine.resize(name, gib * GIB));
    machine.settings.ceiling = ceiling.map(|gib| ByteSize::bytes(gib * GIB));
    machine
}

/// Of the pool's data and metadata now, in extents.
fn parts(machine: &Machine) -> (u64, u64) {
    let state = machine.model.state();
    let pool = &state.groups[&machine.group()].lvs["thin-pool"];
    (pool.extents, pool.metadata)
}

fn seen(pool: &LvmPool) -> (u64, Option<u64>) {
    let now = pool.observe_capacity().unwrap();
    (now.capacity.as_u64() >> 20, now.size.map(|size| size.as_u64() >> 20))
}

#[test]
fn a_pool_with_a_ceiling_begins_with_a_quarter_and_shows_what_it_can_become() {
    let machine = machine(16, Some(8));
    let pool = machine.open(false);
    assert_eq!(seen(&pool), (8 << 10, Some(2 << 10)));
    machine.fill(69.9, 10.0);
    assert!(!pool.extend_if_due().unwrap());
    machine.fill(70.0, 10.0);
    assert!(pool.extend_if_due().unwrap());
    assert_eq!(parts(&machine), (512 + 102, 2), "by a fifth, and metadata for them");
    assert_eq!(seen(&pool), (8 << 10, Some((512 + 102) * 4)));
    for _ in 0..40 {
        machine.fill(100.0, 10.0);
        pool.extend_if_due().unwrap();
    }
    assert_eq!((parts(&machine).0, seen(&pool)), (2048, (8 << 10, Some(8 << 10))), "up to the ceiling and no further");
    assert!(!pool.extend_if_due().unwrap());
}

#[test]
fn what_the_group_does_not_have_is_not_counted_on_whatever_the_ceiling() {
    let machine = machine(1, Some(1000));
    let pool = machine.open(false);
    let (capacity, size) = seen(&pool);
    assert!(capacity < 2 << 10 && size == Some(1 << 10), "{capacity} {size:?}");
    for _ in 0..40 {
        machine.fill(100.0, 10.0);
        pool.extend_if_due().unwrap();
    }
    let (data, metadata) = parts(&machine);
    let all = 2 * ((GIB - (17 << 20)) / (4 << 20));
    assert!(data + 2 * metadata <= all && data + 2 * metadata + 4 >= all, "{data} and {metadata} of {all}");
    assert_eq!(seen(&pool).0, data * 4, "it can become what it has become");
}

#[test]
fn metadata_that_fill_up_are_extended_before_data() {
    let machine = machine(16, Some(8));
    let pool = machine.open(false);
    let (data, metadata) = parts(&machine);
    machine.fill(10.0, 85.0);
    assert!(pool.extend_if_due().unwrap());
    let (same, more) = parts(&machine);
    assert!(same == data && more > metadata, "{metadata} became {more}");
}

#[test]
fn without_a_ceiling_a_pool_has_everything_and_with_one_less_it_stays_as_it_is() {
    let mut machine = machine(16, Some(8));
    let pool = machine.open(false);
    let settings = |ceiling| Settings { ceiling, ..machine.settings.clone() };
    assert_eq!(pool.ensure_settings(&machine.identity, &settings(None)).unwrap(), Ensured::Grown);
    let all = parts(&machine).0;
    assert!(all > 7000, "{all}");
    assert_eq!(seen(&pool), (all * 4, None));
    let low = settings(Some(ByteSize::bytes(GIB)));
    assert_eq!(pool.ensure_settings(&machine.identity, &low).unwrap(), Ensured::Unchanged);
    assert_eq!(seen(&pool), (all * 4, Some(all * 4)), "thin pools do not shrink");
    drop(pool);
    machine.settings = low;
    assert_eq!(machine.ensure(true).unwrap().1, Ensured::Unchanged);
}

#[test]
fn an_extension_killed_at_any_change_is_gone_on_with_at_the_next_look() {
    let mut kills = 0;
    for (fuse, after) in (0..).flat_map(|fuse| [(fuse, false), (fuse, true)]) {
        let machine = machine(16, Some(8));
        let pool = machine.open(false);
        pool.ensure_volume(&layout(1)).unwrap();
        machine.fill(95.0, 95.0);
        machine.model.state().fuse = Some((fuse, after));
        let first = pool.extend_if_due();
        let spared = machine.model.state().fuse.take().is_some();
        assert_eq!(first.is_ok(), spared, "{fuse} {after}: {first:?}");
        if !spared {
            kills += 1;
            assert!(matches!(first, Err(BackendError::Io { .. })));
            // As it is once there is more of it.
            machine.fill(60.0, 60.0);
            pool.extend_if_due().unwrap();
            machine.fill(75.0, 10.0);
            pool.extend_if_due().unwrap();
        }
        let (data, metadata) = parts(&machine);
        assert!(data > 512 && data <= 2048 && metadata >= 1, "{fuse} {after}: {data}, {metadata}");
        pool.observe_capacity().unwrap();
        if spared {
            break;
        }
    }
    assert!(kills >= 2, "it changes something");
}

#[test]
fn a_pool_that_the_kernel_says_is_far_from_its_mark_is_not_asked_of_lvm() {
    let mut machine = Machine::new(Kind::Thin);
    machine.settings.ceiling = Some(ByteSize::mib(800));
    let pool = machine.open(false);
    let looks = || machine.model.state().mapper.looks;
    machine.model.state().mapper.data = (699, 1000);
    let before = looks();
    assert!(!pool.extend_if_due().unwrap());
    assert_eq!(looks(), before, "nothing was started");
    for (data, metadata) in [((700, 1000), 0), ((0, 1000), 700), ((0, 0), 0)] {
        (machine.model.state().mapper.data, machine.model.state().mapper.used) = (data, metadata);
        let before = looks();
        pool.extend_if_due().unwrap();
        assert!(looks() > before, "{data:?} {metadata}: LVM is asked where it may be due, or is not known");
    }
}
