//! Transactions, listings and watches.

use super::subject::{Subject, delete, done, next, put};
use std::collections::BTreeMap;
use symphony::store::{
    Batch, Commit, Compare, Entry, Event, Key, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Revision, StoreError, Txn,
};
use tokio::task::JoinSet;

fn absent(key: &str) -> Compare {
    Compare::Absent(Key::raw(key))
}

fn present(key: &str) -> Compare {
    Compare::Present(Key::raw(key))
}

fn unchanged(key: &str, revision: i64) -> Compare {
    Compare::Unchanged(Key::raw(key), Revision(revision))
}

fn put_event(key: &str, value: &str, revision: Revision) -> Event {
    Event::Put(Entry { key: Key::raw(key), value: value.into(), revision, lease: None })
}

pub async fn comparisons_decide_whether_a_transaction_happens(subject: &Subject) {
    let first = subject.put("/a", "1").await;
    let second = subject.put("/a", "2").await;
    let cases = [
        (absent("/a"), false),
        (present("/a"), true),
        (unchanged("/a", second.0), true),
        (unchanged("/a", first.0), false),
        (unchanged("/a", second.0 + 1), false),
        (absent("/b"), true),
        (present("/b"), false),
        (unchanged("/b", 0), true),
        (unchanged("/b", second.0), false),
    ];
    for (compare, holds) in cases {
        let commit = subject.commit([compare.clone()], [put("/outcome", "x")]).await;
        assert_eq!(commit != Commit::Conflict, holds, "{compare:?}");
        assert_eq!(subject.commit([compare.clone()], []).await != Commit::Conflict, holds, "{compare:?} alone");
    }
    assert_eq!(subject.commit([present("/a"), present("/b")], [put("/a", "3")]).await, Commit::Conflict);
    assert_eq!(subject.value("/a").await.as_deref(), Some("2"));
}

pub async fn a_conflict_leaves_nothing_behind(subject: &Subject) {
    let before = subject.put("/a", "1").await;
    let conflict = subject.commit([absent("/a")], [put("/b", "2"), delete("/a")]).await;
    assert_eq!(conflict, Commit::Conflict);
    assert_eq!(subject.value("/b").await, None);
    let after = subject.put("/c", "3").await;
    let mut watch = subject.watch("/", before).await;
    let batch = Batch { revision: after, events: vec![put_event("/c", "3", after)] };
    assert_eq!(next(&mut watch).await, Ok(batch));
}

pub async fn a_transaction_happens_whole_at_one_revision(subject: &Subject) {
    subject.put("/old", "0").await;
    let revision = done(subject.commit([absent("/a")], [put("/a", "1"), delete("/old"), put("/b", "2")]).await);
    let listing = subject.list("/").await;
    let found: Vec<_> = listing.entries.iter().map(|e| (e.key.as_str(), e.value.as_slice(), e.revision)).collect();
    assert_eq!(found, [("/a", b"1".as_slice(), revision), ("/b", b"2", revision)]);
    assert!(listing.revision >= revision);
}

pub async fn revisions_grow_with_changes_and_only_with_them(subject: &Subject) {
    let first = subject.put("/a", "same").await;
    let second = subject.put("/a", "same").await;
    assert!(second > first, "writing the same value is a change");
    let third = done(subject.commit([], [delete("/a")]).await);
    assert!(third > second);
    let mut watch = subject.watch("/", third).await;
    assert!(done(subject.commit([], [delete("/a")]).await) >= third);
    assert!(done(subject.commit([], []).await) >= third);
    let fourth = subject.put("/b", "1").await;
    let batch = next(&mut watch).await.expect("a batch");
    assert_eq!(batch.revision, fourth, "deleting what is absent is no change");
    assert!(subject.revision().await >= fourth);
}

pub async fn a_listing_is_ordered_and_exact_about_its_prefix(subject: &Subject) {
    let keys =
        ["/pool/b", "/pool", "/poolx", "/pool/a/deep", "/pool/ü", "/pool0", "/pool/", "/pool-1", "/pool/a", "/p"];
    for key in keys.iter().filter(|key| !key.ends_with('/')) {
        subject.put(key, key).await;
    }
    let listed = async |prefix: &str| -> Vec<String> {
        subject.list(prefix).await.entries.into_iter().map(|entry| entry.key.as_str().to_owned()).collect()
    };
    assert_eq!(listed("/pool/").await, ["/pool/a", "/pool/a/deep", "/pool/b", "/pool/ü"]);
    assert_eq!(listed("/pool").await, ["/pool"], "what does not end in a slash is one key");
    assert_eq!(listed("/pool/a/").await, ["/pool/a/deep"]);
    assert_eq!(listed("/").await.len(), keys.len() - 1);
    assert_eq!(listed("/none/").await, Vec::<String>::new());
    let entry = subject.store.get(&Key::raw("/pool/ü")).await.expect("get").expect("there");
    assert_eq!(subject.list("/pool/ü").await.entries, [entry]);
}

/// More keys than a page holds; the first and the last change together.
pub async fn a_long_listing_is_one_snapshot_while_writers_race(subject: &Subject) {
    const KEYS: usize = 2500;
    let key = |number: usize| format!("/k/{number:05}");
    let all: Vec<_> = (0..KEYS).map(|number| put(&key(number), "0")).collect();
    for ops in all.chunks(MAX_TXN_OPS) {
        done(subject.try_commit(vec![], ops.to_vec()).await.expect("commit"));
    }
    let store = subject.store.clone();
    let ends = move |round: usize| vec![put(&key(0), &round.to_string()), put(&key(KEYS - 1), &round.to_string())];
    done(subject.try_commit(vec![], ends(0)).await.expect("commit"));
    let writer = tokio::spawn(async move {
        for round in 1..=100 {
            store.commit(Txn { compares: vec![], ops: ends(round) }).await.expect("commit");
        }
    });
    loop {
        let last = writer.is_finished();
        let listing = subject.list("/k/").await;
        assert_eq!(listing.entries.len(), KEYS);
        assert!(listing.entries.is_sorted_by(|a, b| a.key < b.key));
        let (first, last_entry) = (&listing.entries[0], &listing.entries[KEYS - 1]);
        assert_eq!((&first.value, first.revision), (&last_entry.value, last_entry.revision));
        assert!(listing.revision >= first.revision);
        if last {
            assert_eq!(first.value, b"100");
            break;
        }
    }
    writer.await.expect("the writer");
}

pub async fn a_watch_misses_no_revision_while_writers_race(subject: &Subject) {
    const WRITERS: usize = 4;
    const COMMITS: usize = 50;
    let start = subject.revision().await;
    let early = subject.watch("/", start).await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = subject.store.clone();
        writers.spawn(async move {
            let mut revisions = Vec::new();
            for commit in 0..COMMITS {
                let ops = vec![put(&format!("/own/{writer}"), &commit.to_string()), put("/common", "x")];
                let commit = store.commit(Txn { compares: vec![], ops }).await.expect("commit");
                revisions.push(done(commit));
            }
            revisions
        });
    }
    let midway = subject.watch("/", start).await;
    let mut written: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    written.sort();
    let late = subject.watch("/", start).await;
    for mut watch in [early, midway, late] {
        for revision in &written {
            let batch = next(&mut watch).await.expect("a batch");
            assert_eq!((batch.revision, batch.events.len()), (*revision, 2));
        }
    }
    let from_the_middle = written[written.len() / 2];
    let mut watch = subject.watch("/common", from_the_middle).await;
    for revision in written.iter().filter(|revision| **revision > from_the_middle) {
        let batch = next(&mut watch).await.expect("a batch");
        assert_eq!(batch, Batch { revision: *revision, events: vec![put_event("/common", "x", *revision)] });
    }
}

pub async fn a_batch_is_what_one_commit_did_under_the_prefix(subject: &Subject) {
    subject.put("/in/old", "0").await;
    let mut watch = subject.watch("/in/", subject.revision().await).await;
    subject.commit([], [put("/out/1", "1"), delete("/out/2"), put("/inside", "1"), put("/in", "1")]).await;
    let ops = [put("/in/b", "1"), put("/out/1", "2"), delete("/in/old"), put("/in/a", "2")];
    let revision = done(subject.commit([], ops).await);
    let events =
        vec![put_event("/in/b", "1", revision), Event::Delete(Key::raw("/in/old")), put_event("/in/a", "2", revision)];
    assert_eq!(next(&mut watch).await, Ok(Batch { revision, events }));
}

/// Whoever lists and then watches from there ends up with what is in the store.
pub async fn a_watch_goes_on_from_a_listing_without_a_gap(subject: &Subject) {
    let store = subject.store.clone();
    let writer = tokio::spawn(async move {
        for round in 0..200 {
            let key = format!("/k/{}", round % 7);
            let op = if round % 3 == 2 { delete(&key) } else { put(&key, &round.to_string()) };
            store.commit(Txn { compares: vec![], ops: vec![op] }).await.expect("commit");
        }
        store.commit(Txn { compares: vec![], ops: vec![put("/k/end", "")] }).await.expect("commit");
    });
    let listing = subject.list("/k/").await;
    let mut watch = subject.watch("/k/", listing.revision).await;
    let mut view: BTreeMap<_, _> = listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
    while !view.contains_key(&Key::raw("/k/end")) {
        for event in next(&mut watch).await.expect("a batch").events {
            match event {
                Event::Put(entry) => drop(view.insert(entry.key.clone(), entry)),
                Event::Delete(key) => assert!(view.remove(&key).is_some(), "{key} was deleted and never seen"),
            }
        }
    }
    writer.await.expect("the writer");
    assert_eq!(view.into_values().collect::<Vec<_>>(), subject.list("/k/").await.entries);
}

pub async fn a_watch_from_the_future_is_told_to_list_again(subject: &Subject) {
    let now = subject.put("/a", "1").await;
    let mut watch = subject.watch("/", Revision(now.0 + 1_000_000)).await;
    assert!(matches!(next(&mut watch).await, Err(StoreError::Compacted(_))));
}

pub async fn forgotten_history_says_so(subject: &Subject) {
    let start = subject.put("/a", "1").await;
    let mut slow = subject.watch("/a", start).await;
    subject.put("/a", "2").await;
    subject.forget_history().await;
    let mut watch = subject.watch("/", start).await;
    let error = next(&mut watch).await.expect_err("history that is gone");
    assert!(matches!(error, StoreError::Compacted(revision) if revision > start), "{error}");
    // One that began in time is told as well, or has been told everything.
    match next(&mut slow).await {
        Ok(batch) => assert_eq!(batch.events, [put_event("/a", "2", batch.revision)]),
        Err(error) => assert!(matches!(error, StoreError::Compacted(_)), "{error}"),
    }
    let now = subject.revision().await;
    let mut watch = subject.watch("/", now).await;
    let revision = subject.put("/b", "1").await;
    assert_eq!(next(&mut watch).await.expect("a batch").revision, revision);
}

pub async fn broken_rules_are_refused(subject: &Subject) {
    let refused = async |compares: Vec<Compare>, ops: Vec<Op>| {
        matches!(subject.try_commit(compares, ops).await, Err(StoreError::Refused(_)))
    };
    let puts = |count: usize| (0..count).map(|number| put(&format!("/many/{number}"), "x")).collect::<Vec<_>>();
    assert!(!refused(vec![absent("/none"); MAX_TXN_OPS], puts(MAX_TXN_OPS)).await);
    assert!(refused(vec![], puts(MAX_TXN_OPS + 1)).await);
    assert!(refused(vec![absent("/none"); MAX_TXN_OPS + 1], vec![]).await);
    assert!(refused(vec![], vec![put("/twice", "1"), delete("/twice")]).await);
    assert!(refused(vec![], vec![put("no-slash", "1")]).await);
    assert!(refused(vec![], vec![put("/slash/", "1")]).await);
    for key in ["", "no-slash", "/slash/"].map(Key::raw) {
        assert!(matches!(subject.store.get(&key).await, Err(StoreError::Refused(_))), "{key}");
    }
    for prefix in ["", "no-slash", "no-slash/"].map(Key::raw) {
        assert!(matches!(subject.store.list(&prefix).await, Err(StoreError::Refused(_))), "{prefix}");
        assert!(matches!(subject.store.watch(&prefix, Revision(1)).await, Err(StoreError::Refused(_))), "{prefix}");
    }
    let large = "x".repeat(MAX_TXN_BYTES - "/large".len());
    assert!(!refused(vec![], vec![put("/large", &large)]).await);
    assert!(refused(vec![], vec![put("/large", &format!("{large}x"))]).await);
    assert_eq!(subject.value("/large").await, Some(large));
    assert_eq!(subject.value("/twice").await, None);
}

pub async fn concurrent_counters_lose_nothing(subject: &Subject) {
    const TASKS: u32 = 32;
    const ROUNDS: u32 = 4;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let store = subject.store.clone();
        tasks.spawn(async move {
            let key = Key::raw("/counter");
            for _ in 0..ROUNDS {
                loop {
                    let entry = store.get(&key).await.expect("get");
                    let (compare, count) = match entry {
                        None => (Compare::Absent(key.clone()), 0),
                        Some(entry) => {
                            let count: u32 = String::from_utf8(entry.value).expect("text").parse().expect("a number");
                            (Compare::Unchanged(key.clone(), entry.revision), count)
                        }
                    };
                    let ops = vec![put("/counter", &(count + 1).to_string())];
                    let commit = store.commit(Txn { compares: vec![compare], ops }).await.expect("commit");
                    if commit != Commit::Conflict {
                        break;
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(subject.value("/counter").await, Some((TASKS * ROUNDS).to_string()));
}
