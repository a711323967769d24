//! A store so simple that it can be seen to be right, and the comparison of the real ones with it.

use super::subject::{Subject, next};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use symphony::store::{Batch, Commit, Compare, Entry, Event, Key, LeaseId, Op, Revision, StoreError, Txn};

const KEYS: [&str; 6] = ["/a", "/a/1", "/a/2", "/b/1", "/ab", "/b/2"];
const PREFIXES: [&str; 4] = ["/", "/a/", "/b/", "/a"];

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<(usize, Expectation)>, Vec<(usize, Change)>),
    Grant,
    KeepAlive(usize),
    Revoke(usize),
    Get(usize),
    List(usize),
}

#[derive(Clone, Copy, Debug)]
enum Expectation {
    Absent,
    Present,
    Unchanged,
    WrittenBefore,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Put(u8, Option<usize>),
    Delete,
}

fn step() -> impl Strategy<Value = Step> {
    let expectation = prop_oneof![
        1 => Just(Expectation::Absent),
        1 => Just(Expectation::Present),
        4 => Just(Expectation::Unchanged),
        1 => Just(Expectation::WrittenBefore),
    ];
    let change = prop_oneof![
        4 => (any::<u8>(), prop::option::of(0..4usize)).prop_map(|(value, lease)| Change::Put(value, lease)),
        1 => Just(Change::Delete),
    ];
    let compares = prop::collection::vec((0..KEYS.len(), expectation), 0..3);
    let ops = prop::collection::btree_map(0..KEYS.len(), change, 0..4);
    let ops = ops.prop_map(|ops| ops.into_iter().collect::<Vec<_>>()).prop_shuffle();
    prop_oneof![
        8 => (compares, ops).prop_map(|(compares, ops)| Step::Commit(compares, ops)),
        2 => Just(Step::Grant),
        1 => (0..4usize).prop_map(Step::KeepAlive),
        1 => (0..4usize).prop_map(Step::Revoke),
        1 => (0..KEYS.len()).prop_map(Step::Get),
        1 => (0..PREFIXES.len()).prop_map(Step::List),
    ]
}

/// The naive store. Revisions are the real store's: it alone knows who else writes.
#[derive(Default)]
struct Model {
    entries: BTreeMap<Key, Entry>,
    leases: BTreeSet<LeaseId>,
    log: Vec<Batch>,
}

impl Model {
    fn holds(&self, compare: &Compare) -> bool {
        let entry = self.entries.get(compare.key());
        match compare {
            Compare::Absent(_) => entry.is_none(),
            Compare::Present(_) => entry.is_some(),
            Compare::Unchanged(_, revision) => entry.map_or(Revision(0), |entry| entry.revision) == *revision,
        }
    }

    /// What must come of `txn`, apart from the revision.
    fn verdict(&self, txn: &Txn) -> Result<Option<Vec<Event>>, StoreError> {
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            return Ok(None);
        }
        if let Some(gone) = txn.ops.iter().filter_map(Op::lease).find(|lease| !self.leases.contains(lease)) {
            return Err(StoreError::LeaseGone(gone));
        }
        let event = |op: &Op| match op.clone() {
            Op::Put { key, value, lease } => Some(Event::Put(Entry { key, value, lease, revision: Revision(0) })),
            Op::Delete { key } => self.entries.contains_key(&key).then_some(Event::Delete(key)),
        };
        Ok(Some(txn.ops.iter().filter_map(event).collect()))
    }

    fn happen(&mut self, mut events: Vec<Event>, at: Revision) {
        if events.is_empty() {
            return;
        }
        for event in &mut events {
            match event {
                Event::Put(entry) => {
                    entry.revision = at;
                    self.entries.insert(entry.key.clone(), entry.clone());
                }
                Event::Delete(key) => drop(self.entries.remove(key)),
            }
        }
        assert!(self.log.last().is_none_or(|last| last.revision < at), "revisions grow");
        self.log.push(Batch { revision: at, events });
    }

    fn attached(&self, lease: LeaseId) -> Vec<Event> {
        let attached = self.entries.values().filter(|entry| entry.lease == Some(lease));
        attached.map(|entry| Event::Delete(entry.key.clone())).collect()
    }
}

fn txn(model: &Model, granted: &[LeaseId], compares: Vec<(usize, Expectation)>, ops: Vec<(usize, Change)>) -> Txn {
    let written = |key: &Key| model.entries.get(key).map_or(0, |entry| entry.revision.0);
    let compare = |(key, expectation): (usize, Expectation)| {
        let key = Key::raw(KEYS[key]);
        match expectation {
            Expectation::Absent => Compare::Absent(key),
            Expectation::Present => Compare::Present(key),
            Expectation::Unchanged => Compare::Unchanged(key.clone(), Revision(written(&key))),
            Expectation::WrittenBefore => Compare::Unchanged(key.clone(), Revision(written(&key) - 1)),
        }
    };
    let op = |(key, change): (usize, Change)| {
        let key = Key::raw(KEYS[key]);
        match change {
            Change::Put(value, slot) => {
                Op::Put { key, value: vec![value], lease: slot.and_then(|slot| granted.get(slot).copied()) }
            }
            Change::Delete => Op::Delete { key },
        }
    };
    Txn { compares: compares.into_iter().map(compare).collect(), ops: ops.into_iter().map(op).collect() }
}

/// Does the steps on a fresh store and on the model, and compares every answer, the final state and the whole watch.
async fn run(subject: &Subject, steps: Vec<Step>) {
    let (mut model, mut granted) = (Model::default(), Vec::<LeaseId>::new());
    let store = &subject.store;
    let start = subject.revision().await;
    let mut watch = subject.watch("/", start).await;
    for step in steps {
        match step {
            Step::Commit(compares, ops) => {
                let txn = txn(&model, &granted, compares, ops);
                let verdict = model.verdict(&txn);
                match (store.commit(txn.clone()).await, verdict) {
                    (Ok(Commit::Conflict), Ok(None)) => {}
                    (Ok(Commit::Done(at)), Ok(Some(events))) => model.happen(events, at),
                    // With several leases gone, any of them may be named.
                    (Err(StoreError::LeaseGone(gone)), Err(StoreError::LeaseGone(_))) => {
                        assert!(txn.ops.iter().any(|op| op.lease() == Some(gone)) && !model.leases.contains(&gone));
                    }
                    (real, expected) => panic!("{txn:?}\nanswered {real:?}\nexpected {expected:?}"),
                }
            }
            Step::Grant => {
                let lease = store.grant(Duration::from_secs(3600)).await.expect("grant");
                assert!(model.leases.insert(lease), "a lease is granted once");
                granted.push(lease);
            }
            Step::KeepAlive(slot) => {
                if let Some(lease) = granted.get(slot) {
                    assert_eq!(store.keep_alive(*lease).await.is_ok(), model.leases.contains(lease));
                }
            }
            Step::Revoke(slot) => {
                if let Some(lease) = granted.get(slot) {
                    store.revoke(*lease).await.expect("revoke");
                    model.leases.remove(lease);
                    let events = model.attached(*lease);
                    if !events.is_empty() {
                        // Only the watch tells the revision.
                        let seen = model.log.len();
                        model.happen(events, Revision(i64::MAX));
                        catch_up(&mut watch, &mut model, seen).await;
                    }
                }
            }
            Step::Get(key) => {
                let key = Key::raw(KEYS[key]);
                assert_eq!(store.get(&key).await.expect("get").as_ref(), model.entries.get(&key));
            }
            Step::List(prefix) => {
                let prefix = Key::raw(PREFIXES[prefix]);
                let expected: Vec<_> = model.entries.values().filter(|e| prefix.covers(&e.key)).cloned().collect();
                assert_eq!(store.list(&prefix).await.expect("list").entries, expected);
            }
        }
    }
    let listing = subject.list("/").await;
    assert_eq!(listing.entries, model.entries.values().cloned().collect::<Vec<_>>());
    let mut whole = subject.watch("/", start).await;
    for batch in &model.log {
        assert_eq!(next(&mut whole).await.as_ref(), Ok(batch));
    }
    for lease in model.leases {
        store.revoke(lease).await.expect("revoke");
    }
}

/// Reads the watch up to the batch at `place` of the model's log and takes its revision over.
async fn catch_up(watch: &mut symphony::store::Watch, model: &mut Model, place: usize) {
    loop {
        let batch = next(watch).await.expect("a batch");
        if model.log[..place].iter().all(|known| known.revision != batch.revision) {
            model.log[place].revision = batch.revision;
            assert_eq!(model.log[place], batch);
            return;
        }
    }
}

pub fn compare_with_model<F: AsyncFn() -> Subject>(cases: u32, fresh: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("tokio");
    // One store for all cases would be quicker, and would hide what an earlier case left behind.
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let steps = prop::collection::vec(step(), 1..40);
    let result = runner.run(&steps, |steps| {
        runtime.block_on(async { run(&fresh().await, steps).await });
        Ok(())
    });
    result.expect("the store does what the model does");
}
