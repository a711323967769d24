//! Views go forward: what a manager has shown, or has said that it did, it never shows as it was before.
//!
//! What is compared is what a request found that began after the answer before: of two that overlap nobody can say which
//! was answered from the older view. Managers are compared with themselves only, over all their lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use symphony::model::Object;
use symphony::rpc::proto;

/// How far one manager has shown one object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Height {
    kind: i32,
    name: String,
    /// None: it is gone for good.
    generation: Option<u64>,
}

/// By the objects' ids.
pub type Floor = BTreeMap<String, u64>;

#[derive(Debug, Default)]
struct State {
    shown: BTreeMap<usize, BTreeMap<String, Height>>,
    /// Names whose bearers somebody asked to remove.
    going: BTreeSet<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Heights(Mutex<State>);

/// What an object that is gone counts as: nothing is later.
const GONE: u64 = u64::MAX;

fn generation(object: &Object) -> u64 {
    match object {
        Object::Volume(volume) => volume.meta.generation.as_u64(),
        Object::Snapshot(snapshot) => snapshot.meta.generation.as_u64(),
        other => panic!("nobody asked for {other:?}"),
    }
}

fn kind_of(object: &Object) -> i32 {
    let kind = if matches!(object, Object::Volume(_)) { proto::Kind::Volume } else { proto::Kind::Snapshot };
    kind.into()
}

impl Heights {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What of this name is there may go from now on.
    pub fn may_go(&self, name: &str) {
        self.state().going.insert(name.to_owned());
    }

    /// What a manager has shown by now; what is asked of it from here on must not be older.
    pub fn floor(&self, manager: usize) -> Floor {
        let state = self.state();
        let shown = state.shown.get(&manager).into_iter().flatten();
        shown.map(|(id, height)| (id.clone(), height.generation.unwrap_or(GONE))).collect()
    }

    /// A manager has shown an object.
    pub fn rise(&self, manager: usize, floor: &Floor, object: &Object) {
        let (id, generation) = (object.id(), generation(object));
        let least = floor.get(&id).copied().unwrap_or_default();
        assert!(
            generation >= least,
            "manager {manager} shows {} at generation {generation}, after {least} (the greatest: it was gone)",
            object.label()
        );
        let mut state = self.state();
        let height = Height { kind: kind_of(object), name: object.name().to_owned(), generation: Some(generation) };
        let held = state.shown.entry(manager).or_default().entry(id).or_insert_with(|| height.clone());
        if held.generation.is_some_and(|held| held < generation) {
            *held = height;
        }
    }

    /// A manager has shown all that there is of a kind.
    pub fn see_all(&self, manager: usize, floor: &Floor, kind: proto::Kind, found: &[Object]) {
        found.iter().for_each(|object| self.rise(manager, floor, object));
        let found: BTreeSet<String> = found.iter().map(Object::id).collect();
        let mut guard = self.state();
        let state = &mut *guard;
        for (id, height) in state.shown.entry(manager).or_default() {
            let expected = height.kind == i32::from(kind) && height.generation.is_some() && floor.contains_key(id);
            if expected && !found.contains(id) {
                let asked = state.going.contains(&height.name);
                assert!(asked, "manager {manager} has lost {} {id}, and nobody removed it", height.name);
                height.generation = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use symphony::model::{ByteSize, Meta, Timestamp, Volume, VolumeId, VolumeSpec};

    fn volume(times: usize) -> Object {
        let mut meta = Meta::new(VolumeId::from_bytes([1; 16]), "v".parse().expect("a name"), Timestamp::EPOCH);
        (0..times).for_each(|_| meta.touch(Timestamp::EPOCH));
        Object::Volume(Volume::new(meta, VolumeSpec::of_size(ByteSize::mib(1)), Vec::new()))
    }

    fn shows(heights: &Heights, manager: usize, floor: &Floor, found: &[Object]) -> bool {
        let see = || heights.see_all(manager, floor, proto::Kind::Volume, found);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(see)).is_ok()
    }

    #[test]
    fn a_manager_may_not_go_back_and_another_one_may_be_behind() {
        let heights = Heights::default();
        assert!(shows(&heights, 0, &heights.floor(0), &[volume(2)]));
        assert!(shows(&heights, 1, &heights.floor(1), &[volume(1)]));
        assert!(!shows(&heights, 0, &heights.floor(0), &[volume(1)]));
        assert!(shows(&heights, 0, &Floor::new(), &[volume(1)]), "it was asked before");
        assert!(!shows(&heights, 0, &heights.floor(0), &[volume(1)]), "and changes nothing of what was shown");
    }

    #[test]
    fn what_was_shown_goes_only_when_it_is_asked_to_and_does_not_come_back() {
        let heights = Heights::default();
        assert!(shows(&heights, 0, &heights.floor(0), &[volume(0)]));
        assert!(!shows(&heights, 0, &heights.floor(0), &[]));
        heights.may_go("v");
        assert!(shows(&heights, 0, &heights.floor(0), &[]));
        assert!(!shows(&heights, 0, &heights.floor(0), &[volume(5)]));
    }
}
