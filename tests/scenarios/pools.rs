//! What pools promise, and what happens when they fill up.

use crate::stage::{Backing, Cluster, path_text, qemu_io, until};
use crate::support::mounted::Mounted;

#[test]
fn a_pool_promises_as_much_as_its_rules_say() {
    let Ok(mounted) = Mounted::xfs().map_err(|why| eprintln!("skipped: no XFS here: {why}")) else { return };
    let cluster = Cluster::join(Backing::Embedded, "");
    let ctl = cluster.ctl();
    let place = mounted.path().join("pool");
    let pool = ctl.json(&format!("pool create p --path {} --limit 64M --overcommit 1.5", path_text(&place)));
    assert_eq!(pool["spec"]["rules"]["overcommit_percent"], 150);
    ctl.ok("volume create a --size 90M");
    ctl.run("volume create b --size 7M").fails(4, &["6MiB"]);
    ctl.run("pool set p").fails(2, &["--overcommit"]);
    ctl.run("pool set p --overcommit 0.5").fails(2, &["0.5"]);
    ctl.run("pool set p --warn-at 99%").fails(2, &["comes first"]);
    assert!(ctl.ok("pool set p --overcommit 2").contains("overcommit 2, warns at 80%, refuses at 95%"));
    ctl.ok("volume create b --size 38M");

    // Filled for half: people are told, and then nothing new is taken, but what is there works.
    let uri = ctl.uri("a", "nbd");
    qemu_io(&uri, &["write -P 7 0 32M", "flush"]).succeeds();
    ctl.ok("pool set p --warn-at 40% --refuse-at 45%");
    until("the pool has been looked at", || (ctl.text("pool get p", "/status/level") == "full").then_some(()));
    ctl.run("volume create c --size 1M --pool p").fails(4, &["'p'", "45%", "promises nothing new"]);
    ctl.run("volume resize a --size 91M").fails(4, &["'p'", "45%"]);
    ctl.run("snapshot create a s").fails(4, &["'p'", "45%"]);
    assert!(ctl.ok("pool list").contains("(full)"));
    qemu_io(&uri, &["read -P 7 0 32M", "write -P 8 32M 1M"]).succeeds();
    ctl.ok("pool set p --warn-at 80% --refuse-at 95%");
    assert_eq!(ctl.text("pool get p", "/status/level"), "ok");
    ctl.ok("pool set p --overcommit 4");
    ctl.ok("snapshot create a s");
    ctl.check();
}
