//! Grants and fences, without a network: who comes in, who is cut, and what is waited for.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use uuid::Uuid;

const ALICE: Uuid = Uuid::from_u128(1);
const BOB: Uuid = Uuid::from_u128(2);

fn grant(client: Uuid) -> Grant {
    let client_name = if client == ALICE { "alice" } else { "bob" }.into();
    Grant { client, client_name, read_only: false, exclusive: false }
}

fn alone(client: Uuid) -> Grant {
    Grant { exclusive: true, ..grant(client) }
}

fn table() -> Arc<ExportTable> {
    let table = ExportTable::new();
    table.publish(served("disk", Arc::new(MemoryIo::new(SIZE)))).expect("a free name");
    table
}

fn comes(table: &ExportTable, guest: Guest) -> Result<Attached, AttachError> {
    table.attach("disk", guest, None)
}

#[test]
fn a_client_comes_in_by_its_grant_only() {
    let table = table();
    let client = Guest::Client(ALICE);
    let refused = comes(&table, client).err().expect("a refusal");
    assert!(refused.to_string().contains("`symphony ctl volume attach disk --client NAME`"), "{refused}");
    let unknown = table.attach("nothing", client, None).err().expect("a refusal").to_string();
    assert_eq!(unknown.replace("nothing", "disk"), refused.to_string(), "nobody learns what exists");
    assert_eq!(table.list(client), []);
    table.admit("disk", grant(ALICE)).expect("room");
    table.admit("disk", grant(ALICE)).expect("the same again");
    assert!(comes(&table, client).is_ok_and(|attached| !attached.is_read_only()));
    assert!(comes(&table, Guest::Client(BOB)).is_err());
    assert!(comes(&table, Guest::Local).is_ok());
    assert_eq!(table.list(client).len(), 1);
}

#[test]
fn a_grant_may_come_before_its_export_and_outlives_it() {
    let table = ExportTable::new();
    table.admit("disk", grant(ALICE)).expect("room");
    assert!(comes(&table, Guest::Client(ALICE)).is_err());
    for _ in 0..2 {
        table.publish(served("disk", Arc::new(MemoryIo::new(SIZE)))).expect("a free name");
        assert!(comes(&table, Guest::Client(ALICE)).is_ok());
        assert_eq!(table.retire("disk"), Retired::Gone);
        assert_eq!(table.list(Guest::Client(ALICE)), []);
    }
    assert_eq!(table.fence("disk", ALICE), Fenced::Gone);
    assert_eq!(table.fence("disk", ALICE), Fenced::WasAbsent);
}

#[test]
fn a_client_that_is_to_be_alone_waits_for_others_and_cuts_none_of_them() {
    let table = table();
    let cut = Arc::new(AtomicBool::new(false));
    let seen = cut.clone();
    let local = table.attach("disk", Guest::Local, Some(Box::new(move || seen.store(true, Ordering::SeqCst))));
    let second = comes(&table, Guest::Local);
    let refused = table.admit("disk", alone(ALICE)).expect_err("others are there");
    assert_eq!(refused, AdmitError::InUse { export: "disk".into(), connections: 2 });
    assert!(comes(&table, Guest::Client(ALICE)).is_err(), "a refusal grants nothing");
    drop((local, second));
    assert!(!cut.load(Ordering::SeqCst));
    table.admit("disk", alone(ALICE)).expect("nobody is there");
    let own = comes(&table, Guest::Client(ALICE)).expect("its own connection");
    table.admit("disk", alone(ALICE)).expect("its own connections are in nobody's way");
    let turned_away = comes(&table, Guest::Local).err().expect("a refusal").to_string();
    assert!(turned_away.contains("'alice' alone") && turned_away.contains("volume detach disk --client alice"));
    assert!(
        matches!(table.admit("disk", grant(BOB)), Err(AdmitError::Held { client_name, .. }) if client_name == "alice")
    );
    drop(own);
    assert_eq!(table.fence("disk", ALICE), Fenced::Gone);
    assert!(comes(&table, Guest::Local).is_ok());
    table.admit("disk", grant(BOB)).expect("room");
    assert!(matches!(table.admit("disk", alone(ALICE)), Err(AdmitError::Held { exclusive: false, .. })));
}

#[test]
fn a_fence_waits_for_the_last_hold_and_lets_nobody_back_in() {
    let table = table();
    table.admit("disk", grant(ALICE)).expect("room");
    table.admit("disk", grant(BOB)).expect("room");
    let (told, cuts) = mpsc::channel();
    let cut: Cut = Box::new(move || told.send(()).expect("somebody who listens"));
    let hers = table.attach("disk", Guest::Client(ALICE), Some(cut)).expect("a grant");
    let his = comes(&table, Guest::Client(BOB)).expect("a grant");
    std::thread::scope(|scope| {
        let fencing = scope.spawn(|| table.fence("disk", ALICE));
        cuts.recv().expect("a cut");
        assert!(hers.io().is_none(), "what was received already is not carried out");
        assert!(his.io().is_some());
        assert!(comes(&table, Guest::Client(ALICE)).is_err());
        assert!(!fencing.is_finished());
        drop(hers);
        assert_eq!(fencing.join().ok(), Some(Fenced::Gone));
    });
    assert!(cuts.recv().is_err(), "one cut each");
    assert_eq!(table.users("disk"), Some(1));
}

#[test]
fn a_grant_to_read_cuts_who_may_write_and_keeps_readers() {
    let table = table();
    table.admit("disk", grant(ALICE)).expect("room");
    let (told, cuts) = mpsc::channel();
    let cut: Cut = Box::new(move || told.send(()).expect("somebody who listens"));
    let writer = table.attach("disk", Guest::Client(ALICE), Some(cut)).expect("a grant");
    let to_read = || Grant { read_only: true, ..grant(ALICE) };
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| table.admit("disk", to_read()));
        cuts.recv().expect("a cut");
        let reader = comes(&table, Guest::Client(ALICE)).expect("a grant to read");
        assert!(reader.is_read_only() && reader.io().is_some());
        assert!(!changing.is_finished());
        drop(writer);
        assert!(changing.join().is_ok_and(|changed| changed.is_ok()));
        table.admit("disk", to_read()).expect("the same again");
        assert!(reader.io().is_some());
    });
}

#[test]
fn whoever_comes_while_a_fence_falls_is_either_cut_or_refused() {
    for _ in 0..200 {
        let table = table();
        table.admit("disk", grant(ALICE)).expect("room");
        std::thread::scope(|scope| {
            let coming = scope.spawn(|| comes(&table, Guest::Client(ALICE)).map(drop));
            table.fence("disk", ALICE);
            assert_eq!(table.users("disk"), Some(0), "a fence has returned, and nobody holds the export");
            assert!(coming.join().is_ok());
        });
        assert!(comes(&table, Guest::Client(ALICE)).is_err());
    }
}
