//! What must hold once every fault is over: nothing is lost, stuck or left behind.

use super::arena::{Arena, Holdings};
use super::book::{Book, Copy};
use super::linear::volume::Call;
use super::record::{Outcome, snapshot};
use super::worker::{Scene, Writer};
use crate::stage::{Control, until};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Descriptors that a process may have more than before: sessions and connections to stores move between processes, and
/// a process that was started anew has opened other files by now.
const MORE_FILES: usize = 16;
/// Threads likewise: those that wait for blocking work go after some idle seconds.
const MORE_THREADS: usize = 12;

/// What there is where nothing has been made yet.
pub struct Bare {
    files: Vec<PathBuf>,
    config_files: Vec<PathBuf>,
    holdings: BTreeMap<String, Holdings>,
    loops: usize,
}

impl Bare {
    pub fn of(arena: &Arena) -> Self {
        let (files, config_files) = (arena.files_in_pools(), arena.files_in_config());
        Self { files, config_files, holdings: arena.holdings(), loops: arena.loop_devices() }
    }
}

/// Nothing is left behind: no files in pools and config directories, no descriptors, threads, children, loop devices.
fn assert_bare(arena: &Arena, bare: &Bare) {
    let beyond = |files: Vec<PathBuf>, known: &[PathBuf]| {
        files.into_iter().filter(|path| !known.contains(path)).collect::<Vec<_>>()
    };
    assert_eq!(beyond(arena.files_in_pools(), &bare.files), Vec::<PathBuf>::new(), "left behind in the pools");
    let last = std::cell::RefCell::new(String::new());
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("every process to have let go of what it does not need", || {
            let (holdings, loops) = (arena.holdings(), arena.loop_devices());
            let config_files = beyond(arena.files_in_config(), &bare.config_files);
            let fits = |(name, held): (&String, &Holdings)| {
                let before = &bare.holdings[name];
                held.files <= before.files + MORE_FILES
                    && held.threads <= before.threads + MORE_THREADS
                    && held.children == 0
            };
            let all_fit = holdings.iter().all(fits) && loops <= bare.loops && config_files.is_empty();
            *last.borrow_mut() = format!("{holdings:?}, {loops} loop devices, {config_files:?}");
            all_fit.then_some(())
        });
    }));
    if let Err(vain) = asked {
        eprintln!("before: {:?}, {} loop devices\nnow: {}", bare.holdings, bare.loops, last.borrow());
        std::panic::resume_unwind(vain);
    }
}

/// What a command answers with; none while nobody can say.
pub fn json(control: &Control, line: &str) -> Option<Value> {
    let outcome = control.run(&format!("{line} -o json"));
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
    (outcome.code == Some(0)).then(|| serde_json::from_slice(&outcome.stdout).ok())?
}

fn list(control: &Control, noun: &str) -> Option<Vec<Value>> {
    json(control, &format!("{noun} list"))?.as_array().cloned()
}

/// Asks until the answer pleases; in vain, the last one is what the message shows.
pub fn until_seen(control: &Control, what: &str, line: &str, pleases: impl Fn(&Value) -> bool) {
    until_found(control, what, line, |seen| if pleases(seen) { Ok(()) } else { Err(seen.clone()) });
}

/// Asks until each object of a list fits; in vain, the message shows those that do not.
fn until_each(control: &Control, what: &str, line: &str, fits: impl Fn(&Value) -> bool) {
    until_found(control, what, line, |seen| {
        let misfits: Vec<Value> = each_of(seen).filter(|it| !fits(it)).cloned().collect();
        if misfits.is_empty() { Ok(()) } else { Err(Value::from(misfits)) }
    });
}

/// Asks until nothing is wrong with the answer; in vain, the message shows what was wrong last.
fn until_found(control: &Control, what: &str, line: &str, judge: impl Fn(&Value) -> Result<(), Value>) {
    let last = std::cell::RefCell::new(Value::Null);
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until(what, || {
            let outcome = control.run(&format!("{line} -o json"));
            assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
            let seen = serde_json::from_slice(&outcome.stdout).ok().filter(|_| outcome.code == Some(0));
            let said = || Value::from(String::from_utf8_lossy(&outcome.stdout).into_owned() + &outcome.stderr);
            let judged = seen.ok_or_else(said).and_then(|seen| judge(&seen));
            judged.map_err(|wrong| *last.borrow_mut() = wrong).ok()
        });
    }));
    if let Err(vain) = asked {
        eprintln!("{}: {line}: {:#}", control.socket.display(), last.borrow());
        std::panic::resume_unwind(vain);
    }
}

fn each_of(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Heals what time heals, then looks at everything, and leaves the cluster as bare as it was.
pub fn settle(arena: &mut Arena, scene: &Scene, writers: &mut [Writer], bare: &Bare) {
    arena.assert_alive();
    until_all_are_ready(scene);
    let control = &scene.reach.managers[0];
    let held = list(control, "attachment").expect("a list");
    for attachment in &held {
        let volume = attachment["spec"]["volume_name"].as_str().expect("a name");
        let outcome = control.run(&format!("volume detach {volume} --client web"));
        // One that a worker gave up on may have gone since it was listed.
        assert!(matches!(outcome.code, Some(0 | 3)), "{outcome:?}");
    }
    until_seen(control, "nobody to be attached", "attachment list", |list| each_of(list).next().is_none());
    for manager in &scene.reach.managers {
        assert_nothing_passes(manager);
    }
    // Which is noticed at the next look at them.
    until_each(control, "pools to have room again", "pool list", |pool| pool["status"]["level"] != "full");
    check(scene);
    assert_record(scene);
    for writer in &mut *writers {
        writer.books.iter_mut().for_each(|book| assert_book(scene, book));
        writer.copies.iter_mut().for_each(|copy| assert_copy(control, scene, copy));
    }
    clear(scene);
    check(scene);
    assert_bare(arena, bare);
    assert_store(arena);
}

/// Every manager finds every service ready.
pub fn until_all_are_ready(scene: &Scene) {
    for manager in &scene.reach.managers {
        let is_ready = |service: &Value| service["status"]["state"] == "ready";
        until_each(manager, "every service to be ready", "service list", is_ready);
    }
}

/// Everything is as it should be or gone.
fn assert_nothing_passes(control: &Control) {
    for noun in ["pool", "volume", "snapshot", "attachment"] {
        let is_ready = |object: &Value| object["status"]["phase"] == "ready";
        until_each(control, &format!("every {noun} to be ready"), &format!("{noun} list"), is_ready);
    }
}

/// Every manager finds store and view the same; each block service is asked through one of them.
fn check(scene: &Scene) {
    for manager in &scene.reach.managers {
        until_seen(manager, "a check without faults", "check", |found| {
            let orphans = each_of(&found["remarks"]).any(|it| it.as_str().is_some_and(|it| it.contains("orphan")));
            each_of(&found["faults"]).next().is_none() && !orphans
        });
    }
    until("every block service to be asked through one manager", || {
        let asked = scene.reach.managers.iter().filter_map(|it| json(it, "check")?["services_asked"].as_u64());
        (asked.sum::<u64>() == scene.reach.nbd.len() as u64).then_some(())
    });
}

/// What each manager says in the end fits what all of them said before.
fn assert_record(scene: &Scene) {
    for name in scene.record.names() {
        for manager in 0..scene.reach.managers.len() {
            until("an answer", || {
                let outcome = scene.record.ask_strictly(&scene.reach.managers, manager, &name, Call::Look);
                matches!(outcome, Outcome::Answered(..)).then_some(())
            });
        }
    }
    scene.record.verify();
}

/// The volume is there with its bytes, unless it may have been removed.
fn assert_book(scene: &Scene, book: &mut Book) {
    let control = &scene.reach.managers[0];
    let volumes = list(control, "volume").expect("a list");
    match volumes.iter().find(|volume| volume["meta"]["id"] == *book.id) {
        Some(volume) => {
            let size = volume["status"]["size"].as_u64().expect("a size");
            assert!(size >= book.size << 20 || size == volume["spec"]["size"], "{volume}");
            book.verify();
        }
        None => assert!(book.doubtful, "volume '{}' is gone, and nobody removed it", book.name),
    }
}

/// A volume that is made of the snapshot has its bytes. A snapshot outlives no volume.
fn assert_copy(control: &Control, scene: &Scene, copy: &mut Copy) {
    let from = snapshot(copy.number);
    if copy.doubtful && !control.names("snapshot").contains(&from) {
        return;
    }
    let name = format!("of-{from}");
    control.ok(&format!("volume create {name} --from-snapshot {from}"));
    let made = json(control, &format!("volume get {name}")).expect("a volume");
    let service = made["status"]["placement"][0]["service"].as_str().expect("a service");
    let uri = format!("nbd+unix:///{name}?socket={}", scene.reach.nbd[service].display());
    if let Err(wrong) = copy.contents.look(&uri) {
        panic!("snapshot '{from}' of '{}': {wrong}", copy.volume);
    }
    control.ok(&format!("volume remove {name}"));
    assert!(control.names("volume").contains(&copy.volume), "what has a snapshot cannot be removed");
}

/// Removes everything, and waits until all of it is gone.
fn clear(scene: &Scene) {
    let control = &scene.reach.managers[0];
    for noun in ["snapshot", "volume", "image"] {
        for name in control.names(noun) {
            control.ok(&format!("{noun} remove {name}"));
        }
    }
    for manager in &scene.reach.managers {
        for noun in ["snapshot", "volume", "attachment", "image"] {
            let line = format!("{noun} list");
            until_seen(manager, "everything to be gone", &line, |list| each_of(list).next().is_none());
        }
    }
}

/// In the store is what a bare cluster has: its members' sessions under their leases, the leader's, and no more.
fn assert_store(arena: &Arena) {
    let Some(keys) = arena.etcdctl(&["get", "--prefix", "/", "--keys-only"]) else { return };
    let first = |key: &str| key.split('/').nth(1).unwrap_or_default().to_owned();
    let count = |kind: &str| keys.lines().filter(|key| first(key) == kind).count();
    let members = arena.shape.managers + arena.shape.blocks;
    assert_eq!(count("session"), members, "{keys}");
    assert_eq!((count("volume"), count("snapshot"), count("attachment"), count("image")), (0, 0, 0, 0), "{keys}");
    let kinds: BTreeSet<String> = keys
        .lines()
        .filter(|key| key.starts_with("/name/"))
        .filter_map(|key| key.split('/').nth(2).map(str::to_owned))
        .collect();
    assert!(!kinds.contains("volume") && !kinds.contains("snapshot"), "{keys}");
    // What nobody keeps alive any more runs out.
    until("no leases but the leader's and two of each manager: its own, and that of its block services", || {
        let leases = arena.etcdctl(&["lease", "list"])?;
        let count = leases.lines().filter(|line| u64::from_str_radix(line.trim(), 16).is_ok()).count();
        (count <= 2 * arena.shape.managers + 1).then_some(())
    });
}
