//! Any sequence of verbs, with kills in between, does what a list of bytes would.

use super::machine::{KINDS, Machine, layout, read, snapshot_of};
use crate::backend::lvm::{Kind, LvmPool};
use crate::backend::{Backend, BackendError, SnapshotLayout, VolumeLayout};
use crate::model::{ByteSize, Timestamp};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Verb {
    Ensure(u64),
    Write(usize, u8),
    Snapshot,
    /// With what its room holds, where it has one.
    SnapshotGone,
    Remove,
    Restart,
}

fn verb() -> impl Strategy<Value = (Verb, Option<(usize, bool)>)> {
    let verb = prop_oneof![
        4 => (1..6000u64).prop_map(Verb::Ensure),
        3 => (0..3usize << 20, 1u8..).prop_map(|(at, byte)| Verb::Write(at, byte)),
        2 => Just(Verb::Snapshot),
        2 => Just(Verb::SnapshotGone),
        1 => Just(Verb::Remove),
        1 => Just(Verb::Restart),
    ];
    (verb, proptest::option::of((0..4usize, any::<bool>())))
}

struct Oracle {
    layout: VolumeLayout,
    bytes: Option<Vec<u8>>,
    snapshot: Option<SnapshotLayout>,
}

/// Repeats what is killed until it is done.
fn until_done<T>(mut act: impl FnMut() -> Result<T, BackendError>) -> Result<T, BackendError> {
    match act() {
        Err(BackendError::Io { .. }) => act(),
        other => other,
    }
}

/// Overwrites and removes the snapshot, if there is one.
fn bury(machine: &Machine, open: &LvmPool, snapshot: Option<SnapshotLayout>) {
    let Some(SnapshotLayout { id, .. }) = snapshot else { return };
    let is_thick = machine.settings.kind == Kind::Thick;
    if is_thick {
        until_done(|| open.wipe_snapshot(id)).unwrap();
        assert_eq!(open.find_snapshot(id).unwrap(), None);
        assert!(open.observe_snapshots().unwrap().iter().all(|found| found.damage.is_some()));
    }
    until_done(|| open.remove_snapshot(id)).unwrap();
    assert!(!is_thick || machine.model.state().emptied[&format!("s-{id}")], "old bytes were given back");
}

fn play(kind: Kind, verbs: &[(Verb, Option<(usize, bool)>)]) {
    let machine = Machine::new(kind);
    let mut pool: Option<LvmPool> = Some(machine.open(false));
    let mut oracle = Oracle { layout: layout(1), bytes: None, snapshot: None };
    for (verb, fuse) in verbs {
        let Some(open) = &pool else { unreachable!("it is opened again at once") };
        machine.model.state().fuse = *fuse;
        match verb {
            // LVM refuses that.
            Verb::Ensure(_) if kind == Kind::Thick && oracle.snapshot.is_some() => {}
            Verb::Ensure(sectors) => {
                let size = ByteSize::bytes(sectors * 512);
                let wanted = VolumeLayout {
                    size,
                    generation: oracle.layout.generation.next(),
                    made: oracle.bytes.is_some(),
                    ..oracle.layout.clone()
                };
                let outcome = until_done(|| open.ensure_volume(&wanted));
                if oracle.bytes.as_ref().is_some_and(|bytes| bytes.len() as u64 > size.as_u64()) {
                    assert!(matches!(outcome, Err(BackendError::Shrink { .. })), "{outcome:?}");
                } else {
                    outcome.unwrap();
                    oracle.bytes.get_or_insert_default().resize(size.as_u64() as usize, 0);
                    oracle.layout = wanted;
                }
            }
            Verb::Write(at, byte) => {
                if let Some(place) = oracle.bytes.as_mut().and_then(|bytes| bytes.get_mut(*at)) {
                    *place = *byte;
                    let io = until_done(|| open.open_volume(oracle.layout.id)).unwrap();
                    io.write(&[*byte], *at as u64, false).unwrap();
                }
            }
            Verb::Snapshot => {
                if oracle.bytes.is_some() && oracle.snapshot.is_none() {
                    let snapshot = snapshot_of(oracle.layout.id);
                    until_done(|| open.stage_snapshot(&snapshot, Timestamp::EPOCH)).unwrap();
                    until_done(|| open.settle_snapshot(snapshot.id)).unwrap();
                    oracle.snapshot = Some(snapshot);
                }
            }
            Verb::SnapshotGone => bury(&machine, open, oracle.snapshot.take()),
            Verb::Remove => {
                bury(&machine, open, oracle.snapshot.take());
                until_done(|| open.remove_volume(oracle.layout.id)).unwrap();
                oracle = Oracle { layout: layout(1), bytes: None, snapshot: None };
            }
            Verb::Restart => {
                drop(pool.take());
                for lv in machine.model.state().groups.get_mut(&machine.group()).unwrap().lvs.values_mut() {
                    lv.active = false;
                }
                pool = Some(until_done(|| machine.ensure(true)).unwrap().0);
            }
        }
        machine.model.state().fuse = None;
    }
    let open = pool.unwrap();
    match &oracle.bytes {
        Some(bytes) => assert!(read(&*open.open_volume(oracle.layout.id).unwrap()) == *bytes, "the bytes differ"),
        None => assert!(open.observe_volumes().unwrap().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_verbs_and_kills_does_what_a_list_of_bytes_would(verbs in proptest::collection::vec(verb(), 1..14)) {
        for kind in KINDS {
            play(kind, &verbs);
        }
    }
}
