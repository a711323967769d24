//! What only the embedded store promises: one file that survives, or says that it did not.

use super::subject::{put, put_leased};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use symphony::store::{Batch, Commit, EmbeddedStore, Entry, Key, Listing, Op, Store, StoreError, Txn};
use tempfile::TempDir;
use tokio_stream::StreamExt;

fn home() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("store");
    (directory, path)
}

fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(path).expect("open")
}

async fn commit(store: &EmbeddedStore, ops: Vec<Op>) -> Commit {
    store.commit(Txn { compares: vec![], ops }).await.expect("commit")
}

async fn everything(store: &EmbeddedStore) -> Listing {
    store.list(&Key::root()).await.expect("list")
}

#[tokio::test]
async fn a_reopened_store_is_where_it_was() {
    let (_directory, path) = home();
    let store = open(&path);
    let lease = store.grant(Duration::from_secs(3600)).await.expect("grant");
    let gone = store.grant(Duration::from_secs(3600)).await.expect("grant");
    commit(&store, vec![put("/a", "1"), put_leased("/b", "2", lease), put_leased("/c", "3", gone)]).await;
    store.revoke(gone).await.expect("revoke");
    let before = everything(&store).await;
    drop(store);

    let store = open(&path);
    assert_eq!(everything(&store).await, before);
    let mut early = store.watch(&Key::root(), symphony::store::Revision(1)).await.expect("watch");
    assert_eq!(early.next().await, Some(Err(StoreError::Compacted(before.revision))));
    let mut watch = store.watch(&Key::root(), before.revision).await.expect("watch");
    store.keep_alive(lease).await.expect("a lease that was kept");
    assert_eq!(store.keep_alive(gone).await, Err(StoreError::LeaseGone(gone)));
    store.revoke(lease).await.expect("revoke");
    let batch: Batch = watch.next().await.expect("a batch").expect("no error");
    assert_eq!((batch.revision.0, batch.events.len()), (before.revision.0 + 1, 1));
    drop(store);
    assert!(matches!(watch.next().await, Some(Err(StoreError::Unavailable(_)))), "a watch ends with its store");
}

#[tokio::test]
async fn commits_of_one_moment_get_a_revision_each() {
    let (_directory, path) = home();
    let store = std::sync::Arc::new(open(&path));
    let start = everything(&store).await.revision.0;
    let mut commits = tokio::task::JoinSet::new();
    for number in 0..100 {
        let store = store.clone();
        commits.spawn(async move { commit(&store, vec![put(&format!("/k/{number}"), "")]).await });
    }
    let mut revisions: Vec<_> = commits.join_all().await.into_iter().map(super::subject::done).map(|r| r.0).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (start + 1..=start + 100).collect::<Vec<_>>());
}

#[test]
fn a_store_belongs_to_one_opener_and_to_nobody_else_s_eyes() {
    let (_directory, path) = home();
    let store = open(&path);
    let mode = std::fs::metadata(&path).expect("its file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = EmbeddedStore::open(&path).err().expect("a second opener");
    assert_eq!(error, StoreError::InUse(path.clone()));
    drop(store);
    drop(open(&path));
    let names: Vec<_> = std::fs::read_dir(path.parent().expect("home")).expect("list").collect();
    assert_eq!(names.len(), 1, "nothing but the store stays: {names:?}");
}

/// A file with a few hundred keys, closed in order or cut off in the middle of its work.
fn sample(keys: usize) -> Vec<u8> {
    let (_directory, path) = home();
    let runtime = tokio::runtime::Runtime::new().expect("tokio");
    runtime.block_on(async {
        let store = open(&path);
        for number in 0..keys {
            commit(&store, vec![put(&format!("/k/{number}"), &"x".repeat(number % 300))]).await;
        }
    });
    std::fs::read(&path).expect("the file")
}

/// Opens a store on `bytes`; what it holds, or why not, and whether the file was left alone.
fn open_bytes(bytes: &[u8]) -> (Result<Listing, StoreError>, bool) {
    let (_directory, path) = home();
    std::fs::write(&path, bytes).expect("write");
    let result = EmbeddedStore::open(&path).and_then(|store| {
        tokio::runtime::Runtime::new().expect("tokio").block_on(async { store.list(&Key::root()).await })
    });
    (result, std::fs::read(&path).expect("read") == bytes)
}

fn assert_damaged(bytes: &[u8], what: &str) {
    let (result, untouched) = open_bytes(bytes);
    assert!(matches!(result, Err(StoreError::Damaged(_))), "{what}: {result:?}");
    assert!(untouched, "{what}: the file was changed");
}

#[test]
fn what_is_no_store_is_called_damaged_and_left_alone() {
    let good = sample(50);
    assert_damaged(b"", "empty");
    assert_damaged(b"{\"hello\": \"world\"}\n", "text");
    assert_damaged(&vec![0xa5; 100_000], "garbage");
    assert_damaged(&vec![0; 100_000], "zeros");
    assert_damaged(&good[..good.len() / 2], "cut in half");
    assert_damaged(&good[..1000], "cut to its head");
    let mut swapped = good.clone();
    swapped[4096..].reverse();
    assert_damaged(&swapped, "head of a store, and garbage");

    let (_directory, path) = home();
    redb::Database::create(&path).expect("another program's database");
    assert_damaged(&std::fs::read(&path).expect("read"), "another program's database");
}

#[test]
fn any_damage_is_found_or_harmless() {
    let good = sample(120);
    let expected = open_bytes(&good).0.expect("the sample is good");
    let damage = (0..good.len(), 1..=255u8, prop::option::weighted(0.2, 0..good.len()));
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&damage, |(at, flip, cut)| {
        let mut bytes = good.clone();
        bytes[at] ^= flip;
        bytes.truncate(cut.unwrap_or(good.len()));
        match open_bytes(&bytes) {
            (Ok(listing), _) => prop_assert_eq!(&listing, &expected),
            (Err(StoreError::Damaged(_)), untouched) => prop_assert!(untouched, "the file was changed"),
            (Err(error), _) => prop_assert!(false, "{}", error),
        }
        Ok(())
    });
    result.expect("damage is found or harmless");
}

const CHILD: &str = "SYMPHONY_TEST_STORE_TO_WRITE";

/// Not a test by itself: the process that the next one kills.
#[test]
fn a_child_writes_until_it_is_killed() {
    let Some(path) = env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Runtime::new().expect("tokio");
    runtime.block_on(async {
        let store = std::sync::Arc::new(open(Path::new(&path)));
        let writer = |writer: usize| {
            let store = store.clone();
            async move {
                for round in 0.. {
                    let key = format!("/{}/{writer}/{round}", std::process::id());
                    let Commit::Done(revision) = commit(&store, vec![put(&key, "x"), put("/last", &key)]).await else {
                        panic!("a conflict")
                    };
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "acknowledged {} {key}", revision.0).expect("the parent reads");
                    out.flush().expect("the parent reads");
                }
            }
        };
        tokio::join!(writer(0), writer(1), writer(2), writer(3));
    });
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let (_directory, path) = home();
    let mut acknowledged: BTreeMap<Key, i64> = BTreeMap::new();
    for _ in 0..4 {
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "store::embedded::a_child_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the child");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut seen = 0;
        for line in lines {
            let line = line.expect("a line");
            let Some(words) = line.strip_prefix("acknowledged ") else { continue };
            let Some((revision, key)) = words.split_once(' ') else { continue };
            acknowledged.insert(Key::raw(key), revision.parse().expect("a revision"));
            seen += 1;
            if seen == 150 {
                // The lines still in the pipe were acknowledged as well, and are read to the end.
                child.kill().expect("kill -9");
            }
        }
        child.wait().expect("wait");
        assert!(seen >= 150, "the child ended early");

        let listing = everything(&open(&path)).await;
        let found: BTreeMap<_, Entry> = listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        for (key, revision) in &acknowledged {
            assert_eq!(found.get(key).map(|entry| entry.revision.0), Some(*revision), "{key}");
        }
        let newest = found.values().map(|entry| entry.revision).max().expect("entries");
        assert_eq!(listing.revision, newest, "the revision is that of the newest write");
    }
}
