//! Many at the same time: space is never promised twice, a name has one owner.

use crate::stage::{Backing, Cluster, Control, Outcome, on_each_store, path_text};
use std::sync::{Arc, Barrier};

on_each_store!(
    racing_creates_never_promise_more_than_the_pool_has,
    of_racing_creates_with_one_name_exactly_one_wins,
    the_roomiest_pool_is_chosen_where_none_is_named,
);

/// Runs all lines at the same time.
fn race(ctl: &Control, lines: Vec<String>) -> Vec<Outcome> {
    let barrier = Arc::new(Barrier::new(lines.len()));
    let runners: Vec<_> = lines
        .into_iter()
        .map(|line| {
            let (ctl, barrier) = (ctl.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                ctl.run(&line)
            })
        })
        .collect();
    runners.into_iter().map(|runner| runner.join().expect("a runner")).collect()
}

fn racing_creates_never_promise_more_than_the_pool_has(backing: Backing) {
    let cluster = Cluster::join(backing, "");
    let ctl = cluster.ctl();
    ctl.ok(&format!("pool create main --limit 20MiB --path {}", path_text(&cluster.pool())));
    let lines = (0..32).map(|number| format!("volume create v{number} --size {}MiB", 1 + number % 3)).collect();
    let outcomes = race(&ctl, lines);
    for outcome in outcomes {
        match outcome.code {
            Some(0) => {}
            _ => drop(outcome.fails(4, &["left to promise", "'main'"])),
        }
    }
    let pool = ctl.json("pool get main");
    let (reserved, capacity) = (pool["status"]["reserved"].as_u64(), pool["status"]["capacity"].as_u64());
    let (reserved, capacity) = (reserved.expect("a number"), capacity.expect("a number"));
    let volumes = ctl.json("volume list");
    let sizes = volumes.as_array().expect("a list").iter().map(|volume| volume["spec"]["size"].as_u64());
    let sum: u64 = sizes.map(|size| size.expect("a size")).sum();
    assert_eq!(sum, reserved);
    assert!(sum <= capacity && capacity <= 20 << 20, "{sum} of {capacity}");
    // The smallest ones fit as long as anything is left.
    assert_eq!(sum, 20 << 20, "space was left over");
    ctl.run("volume create more --size 1MiB").fails(4, &["left to promise", "ask for less"]);
    ctl.check();
}

fn of_racing_creates_with_one_name_exactly_one_wins(backing: Backing) {
    let cluster = Cluster::start(backing);
    let ctl = cluster.ctl();
    let outcomes = race(&ctl, vec!["volume create same --size 1MiB".to_owned(); 16]);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.code == Some(0)).count(), 1, "{outcomes:?}");
    for outcome in outcomes.into_iter().filter(|outcome| outcome.code != Some(0)) {
        outcome.fails(4, &["'same'", "exists already"]);
    }
    assert_eq!(ctl.names("volume"), ["same"]);
    assert_eq!(ctl.json("pool get main")["status"]["reserved"], 1 << 20);
    ctl.check();
}

fn the_roomiest_pool_is_chosen_where_none_is_named(backing: Backing) {
    let cluster = Cluster::join(backing, "");
    let ctl = cluster.ctl();
    for (pool, limit) in [("small", 4), ("large", 16)] {
        let path = cluster.path().join(pool);
        ctl.ok(&format!("pool create {pool} --limit {limit}MiB --path {}", path_text(&path)));
    }
    let large = ctl.text("pool get large", "/meta/id");
    let small = ctl.text("pool get small", "/meta/id");
    let pool_of = |volume: &str| ctl.text(&format!("volume get {volume}"), "/status/placement/0/pool");
    ctl.ok("volume create a --size 13MiB");
    assert_eq!(pool_of("a"), large);
    ctl.ok("volume create b --size 4MiB");
    assert_eq!(pool_of("b"), small);
    ctl.ok("volume create c --size 1MiB --pool large");
    assert_eq!(pool_of("c"), large);
    ctl.run("volume create d --size 3MiB").fails(4, &["2MiB", "'large'"]);
    ctl.run("volume create d --size 1MiB --pool small").fails(4, &["'small'", "0B"]);
    ctl.run("volume resize a --size 16MiB").fails(4, &["'large'"]);
    ctl.check();
}

#[test]
fn creates_grows_and_removes_of_many_clients_leave_the_books_balanced() {
    let cluster = Cluster::join(Backing::Embedded, "");
    let ctl = cluster.ctl();
    ctl.ok(&format!("pool create main --limit 24MiB --path {}", path_text(&cluster.pool())));
    let workers: Vec<_> = (0..6u64)
        .map(|worker| {
            let ctl = ctl.clone();
            std::thread::spawn(move || {
                let mut random = fastrand::Rng::with_seed(worker);
                for _ in 0..12 {
                    let volume = format!("v{}", random.u8(..6));
                    let line = match random.u8(..4) {
                        0 | 1 => format!("volume create {volume} --size {}MiB", random.u8(1..8)),
                        2 => format!("volume resize {volume} --size {}MiB", random.u8(1..12)),
                        _ => format!("volume remove {volume}"),
                    };
                    let outcome = ctl.run(&line);
                    // Everything that several clients can do to each other is told; nothing hangs or breaks.
                    assert!(matches!(outcome.code, Some(0..=4)), "{line}: {outcome:?}");
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().expect("a worker"));
    ctl.check_when_settled();
    for volume in ctl.names("volume") {
        ctl.ok(&format!("volume remove {volume}"));
    }
    assert_eq!(ctl.json("pool get main")["status"]["reserved"], 0);
    ctl.check();
}
