use super::*;
use crate::model::{ClusterId, ClusterSpec, Meta};
use crate::store::EmbeddedStore;
use std::sync::Arc;

const NOW: Timestamp = Timestamp::EPOCH;

fn store() -> (tempfile::TempDir, SharedStore) {
    let scratch = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(&scratch.path().join("store")).unwrap());
    (scratch, store)
}

fn cluster() -> Cluster {
    let meta = Meta::new(ClusterId::from_bytes([1; 16]), "c".parse().unwrap(), NOW);
    Cluster { meta, spec: ClusterSpec::default(), history: Default::default(), recovering: None }
}

/// As many tokens as do not fit into one transaction.
fn content(count: u128) -> Content {
    let key = |number: u128| Key::token(crate::model::TokenId::from_bytes(number.to_be_bytes()));
    (0..count).map(|number| (key(number), format!("{number}").into_bytes())).collect()
}

async fn keys(store: &SharedStore) -> Vec<Key> {
    store.list(&Key::root()).await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

async fn begin(store: &SharedStore) -> Result<Filling, Refusal> {
    Filling::begin(store.clone(), "a test".into(), NOW).await
}

#[tokio::test]
async fn a_filling_that_is_cut_off_is_gone_on_with_by_another_state() {
    let (_scratch, store) = store();
    begin(&store).await.unwrap().write(&content(400)).await.unwrap();
    assert_eq!(unfinished(&store).await.unwrap().as_deref(), Some("a test"));
    let filling = begin(&store).await.unwrap();
    filling.write(&content(300)).await.unwrap();
    filling.seal(&cluster(), Vec::new()).await.unwrap();
    assert_eq!(unfinished(&store).await.unwrap(), None);
    assert_eq!(keys(&store).await.len(), 301, "what belongs to the state, and the cluster");
    let refused = begin(&store).await.err().unwrap().to_string();
    assert!(refused.contains("cluster 'c'"), "{refused}");
}

#[tokio::test]
async fn of_two_that_fill_at_once_one_gives_up() {
    let (_scratch, store) = store();
    let (first, second) = (begin(&store).await.unwrap(), begin(&store).await.unwrap());
    assert!(matches!(first.write(&content(1)).await, Err(Refusal::Precondition(_))));
    second.write(&content(2)).await.unwrap();
    assert!(first.seal(&cluster(), Vec::new()).await.is_err());
    second.seal(&cluster(), Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_seal_that_was_on_its_way_when_it_was_given_up_comes_too_late() {
    let (_scratch, store) = store();
    let late = begin(&store).await.unwrap();
    late.write(&content(2)).await.unwrap();
    assert!(!settle(&store, &cluster()).await.unwrap());
    assert!(late.seal(&cluster(), Vec::new()).await.is_err());
    assert!(!settle(&store, &cluster()).await.unwrap());
    let again = begin(&store).await.unwrap();
    again.write(&content(2)).await.unwrap();
    again.seal(&cluster(), Vec::new()).await.unwrap();
    assert!(settle(&store, &cluster()).await.unwrap());
}

#[tokio::test]
async fn what_nobody_marked_as_unfinished_is_named_and_left_alone() {
    let (_scratch, store) = store();
    let put =
        Op::Put { key: Key::raw("/token/00000000-0000-0000-0000-000000000001"), value: b"1".to_vec(), lease: None };
    let foreign = Op::Put { key: Key::raw("/somebody/else"), value: b"1".to_vec(), lease: None };
    store.commit(Txn { compares: Vec::new(), ops: vec![foreign.clone()] }).await.unwrap();
    drop(begin(&store).await.unwrap());
    store.commit(Txn { compares: Vec::new(), ops: vec![Op::Delete { key: Key::filling() }, put] }).await.unwrap();
    let before = keys(&store).await;
    let refused = begin(&store).await.err().unwrap().to_string();
    assert!(refused.contains("/token/") && refused.contains("1 of its keys"), "{refused}");
    assert_eq!(keys(&store).await, before);
}
