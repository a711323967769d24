//! What only the store in etcd promises: to go on while members come and go.

use super::subject::{done, next, put};
use crate::support::etcd::{Etcd, EtcdSetup};
use std::{
    collections::BTreeSet,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use symphony::store::{Commit, Compare, Entry, EtcdOptions, EtcdStore, Key, Revision, Store, StoreError, Txn};

async fn connect(etcd: &Etcd) -> EtcdStore {
    EtcdStore::connect(&etcd.endpoints(), EtcdOptions::default()).await.expect("connect")
}

fn write(key: &str, value: &str) -> Txn {
    Txn { compares: vec![], ops: vec![put(key, value)] }
}

/// Commits a harmless write until it is acknowledged, as a caller would.
async fn commit_at_last(store: &EtcdStore, key: &str) -> Revision {
    loop {
        match store.commit(write(key, "x")).await {
            Ok(commit) => return done(commit),
            Err(error) => assert!(error.retryable(), "{error}"),
        }
    }
}

/// Reads while one member is away. The others are asked without the caller's doing; only while they elect a leader in its
/// place may an answer be longer in coming than a request may take.
async fn read_without(store: &EtcdStore, key: &Key, elects: bool) -> Option<Entry> {
    loop {
        match store.get(key).await {
            Ok(found) => return found,
            Err(error) => assert!(elects && error.retryable(), "a read takes the detour by itself: {error}"),
        }
    }
}

fn is_unavailable<T: std::fmt::Debug>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unavailable(_)))
}

#[tokio::test]
async fn one_member_of_three_is_not_missed_whichever_it_is() {
    let etcd = Etcd::start(3).await;
    let store = connect(&etcd).await;
    let lease = store.grant(Duration::from_secs(600)).await.expect("grant");
    for place in 0..3 {
        let leads = etcd.leader().await == place;
        etcd.kill(place);
        let key = format!("/without/{place}");
        assert_eq!(read_without(&store, &Key::raw(key.as_str()), leads).await, None);
        commit_at_last(&store, &key).await;
        assert!(store.get(&Key::raw(key)).await.expect("get").is_some());
        store.keep_alive(lease).await.expect("keep alive");
        etcd.restart(place);
        etcd.wait_until_healthy(place).await;
    }
    assert_eq!(store.list(&Key::raw("/without/")).await.expect("list").entries.len(), 3);
}

/// The worst moment: the leader goes, and with it perhaps the member in use.
#[tokio::test]
async fn the_leader_s_death_is_an_election_s_wait() {
    let etcd = Etcd::start(3).await;
    let store = connect(&etcd).await;
    commit_at_last(&store, "/before").await;
    etcd.kill(etcd.leader().await);
    commit_at_last(&store, "/after").await;
    assert_eq!(store.list(&Key::root()).await.expect("list").entries.len(), 2);
}

#[tokio::test]
async fn a_member_that_hangs_is_left() {
    let etcd = Etcd::start(3).await;
    let store = connect(&etcd).await;
    let start = commit_at_last(&store, "/k").await;
    let mut watch = store.watch(&Key::root(), start).await.expect("watch");
    for place in 0..3 {
        let leads = etcd.leader().await == place;
        etcd.pause(place);
        assert!(read_without(&store, &Key::raw("/k"), leads).await.is_some());
        let written = commit_at_last(&store, "/k").await;
        let mut seen = start;
        while seen < written {
            match next(&mut watch).await {
                Ok(batch) => seen = batch.revision,
                Err(error) => {
                    assert!(error.retryable(), "{error}");
                    watch = store.watch(&Key::root(), seen).await.expect("watch again");
                }
            }
        }
        etcd.resume(place);
        etcd.wait_until_healthy(place).await;
    }
}

#[tokio::test]
async fn without_a_quorum_everything_says_so_and_comes_back_by_itself() {
    let etcd = Etcd::start(3).await;
    let options = EtcdOptions { request_timeout: Duration::from_secs(2), ..EtcdOptions::default() };
    let store = EtcdStore::connect(&etcd.endpoints(), options).await.expect("connect");
    commit_at_last(&store, "/before").await;
    let lease = store.grant(Duration::from_secs(600)).await.expect("grant");
    etcd.kill(0);
    etcd.kill(1);
    let key = Key::raw("/before");
    assert!(is_unavailable(&store.get(&key).await));
    assert!(is_unavailable(&store.list(&Key::root()).await));
    assert!(is_unavailable(&store.commit(write("/lost", "x")).await));
    assert!(is_unavailable(&store.grant(Duration::from_secs(600)).await));
    assert!(is_unavailable(&store.keep_alive(lease).await));
    assert!(is_unavailable(&store.watch(&Key::root(), Revision(1)).await.map(drop)));
    etcd.restart(0);
    etcd.restart(1);
    for place in 0..3 {
        etcd.wait_until_healthy(place).await;
    }
    // The member that was alone may have them elect once more.
    assert!(read_without(&store, &key, true).await.is_some());
    commit_at_last(&store, "/after").await;
    store.keep_alive(lease).await.expect("keep alive");
}

/// etcd answers a transaction that changes nothing from the member that is asked, as it remembers things, unless it reads
/// something that is not to be of the past.
#[tokio::test]
async fn what_is_only_compared_is_as_the_quorum_has_it() {
    let etcd = Etcd::start(3).await;
    let options = EtcdOptions { request_timeout: Duration::from_secs(2), ..EtcdOptions::default() };
    let one = EtcdStore::connect(&etcd.endpoints()[2..], options).await.expect("connect");
    let revision = commit_at_last(&one, "/k").await;
    let unchanged = || Txn { compares: vec![Compare::Unchanged(Key::raw("/k"), revision)], ops: Vec::new() };
    assert!(matches!(one.commit(unchanged()).await, Ok(Commit::Done(_))));
    etcd.pause(0);
    etcd.pause(1);
    // It takes a while until this member knows that it is alone.
    let told = one.commit(unchanged()).await;
    etcd.resume(0);
    etcd.resume(1);
    assert!(is_unavailable(&told), "{told:?}");
    commit_at_last(&one, "/k").await;
    assert_eq!(one.commit(unchanged()).await, Ok(Commit::Conflict));
}

/// A watcher that watches again from where it was sees every acknowledged revision, and each batch once, while two of
/// three members are killed and come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_without_a_gap_through_a_lost_quorum() {
    let etcd = Etcd::start(3).await;
    let store = Arc::new(connect(&etcd).await);
    let start = store.list(&Key::root()).await.expect("list").revision;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let mut acknowledged = BTreeSet::new();
            while !stop.load(Ordering::SeqCst) {
                if let Ok(commit) = store.commit(write("/k", "x")).await {
                    acknowledged.insert(done(commit));
                }
            }
            acknowledged.insert(commit_at_last(&store, "/end").await);
            acknowledged
        })
    };
    let watcher = {
        let store = store.clone();
        tokio::spawn(async move {
            let (mut seen, mut place) = (BTreeSet::new(), start);
            loop {
                let Ok(mut watch) = store.watch(&Key::root(), place).await else { continue };
                while let Ok(batch) = next(&mut watch).await {
                    assert!(batch.revision > place, "in order, and once");
                    place = batch.revision;
                    seen.insert(place);
                    if batch.events.iter().any(|event| event.key() == &Key::raw("/end")) {
                        return seen;
                    }
                }
            }
        })
    };
    let written = store.watch(&Key::raw("/k"), start).await.expect("watch");
    next(&mut { written }).await.expect("the writer writes");
    etcd.kill(0);
    etcd.kill(1);
    assert!(is_unavailable(&store.get(&Key::raw("/k")).await));
    etcd.restart(0);
    etcd.restart(1);
    etcd.wait_until_healthy(0).await;
    etcd.wait_until_healthy(1).await;
    commit_at_last(&store, "/recovered").await;
    stop.store(true, Ordering::SeqCst);
    let (acknowledged, seen) = (writer.await.expect("the writer"), watcher.await.expect("the watcher"));
    assert!(acknowledged.is_subset(&seen), "missed: {:?}", acknowledged.difference(&seen).collect::<Vec<_>>());
}

#[tokio::test]
async fn two_clusters_in_one_etcd_see_nothing_of_each_other() {
    let etcd = Etcd::start_with(1, EtcdSetup { unsafe_no_fsync: true, ..EtcdSetup::default() }).await;
    let options = |prefix: &str| EtcdOptions { prefix: prefix.to_owned(), ..EtcdOptions::default() };
    let blue = EtcdStore::connect(&etcd.endpoints(), options("/blue")).await.expect("connect");
    let bluer = EtcdStore::connect(&etcd.endpoints(), options("/bluer/")).await.expect("connect");
    let start = blue.list(&Key::root()).await.expect("list").revision;
    let mut watch = bluer.watch(&Key::root(), start).await.expect("watch");
    for store in [&blue, &bluer] {
        let txn = Txn { compares: vec![Compare::Absent(Key::cluster())], ops: vec![put("/cluster", "{}")] };
        assert!(matches!(store.commit(txn.clone()).await, Ok(Commit::Done(_))));
        assert_eq!(store.commit(txn).await, Ok(Commit::Conflict));
        assert_eq!(store.list(&Key::root()).await.expect("list").entries.len(), 1);
    }
    let batch = next(&mut watch).await.expect("a batch");
    let own = bluer.get(&Key::cluster()).await.expect("get").expect("there");
    assert_eq!(batch.revision, own.revision, "the first thing seen is one's own");
    let mut client = etcd_client::Client::connect(etcd.endpoints(), None).await.expect("connect");
    assert_eq!(client.get("/blue/cluster", None).await.expect("get").kvs()[0].value(), b"{}");
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_names_every_endpoint_and_its_reason() {
    let dead = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    // Connections wait in its queue for ever.
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let urls = [format!("http://{dead}"), format!("http://{}", silent.local_addr().expect("address"))];
    let options = EtcdOptions { connect_timeout: Duration::from_millis(700), ..EtcdOptions::default() };
    let error = EtcdStore::connect(&urls, options.clone()).await.err().expect("nobody is there");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("{} (Connection refused", urls[0])), "{text}");
    assert!(text.contains(&format!("{} (no answer)", urls[1])), "{text}");

    for (urls, word) in [(vec![], "no etcd endpoint"), (vec!["https://127.0.0.1:1".to_owned()], "https://127.0.0.1:1")]
    {
        let error = EtcdStore::connect(&urls, options.clone()).await.err().expect("refused");
        assert!(matches!(error, StoreError::Refused(_)) && error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn whoever_watches_from_beyond_what_an_etcd_holds_or_remembers_is_told_to_list_again() {
    let etcd = Etcd::start(1).await;
    let store = connect(&etcd).await;
    let kept = commit_at_last(&store, "/kept").await;
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("snapshot");
    etcd.save(&file);
    let lost = commit_at_last(&store, "/lost").await;
    etcd.put_back(&file).await;
    assert!(store.list(&Key::raw("/lost")).await.expect("list").entries.is_empty());
    let mut watch = store.watch(&Key::root(), lost).await.expect("watch");
    assert!(matches!(next(&mut watch).await, Err(StoreError::Compacted(_))), "it was put back");
    etcd.crowd(3, 8).await;
    etcd.compact().await;
    let mut watch = store.watch(&Key::root(), kept).await.expect("watch");
    assert!(matches!(next(&mut watch).await, Err(StoreError::Compacted(_))), "it was compacted");
    etcd.wipe().await;
    assert!(store.list(&Key::root()).await.expect("list").entries.is_empty());
}
