//! kill -9 at random points, over and over: whatever was asked for comes true, and what was acknowledged is there.
//!
//! `SYMPHONY_TEST_ROUNDS` sets how many kills each test survives, `SYMPHONY_TEST_SEED` repeats a run that was printed.

pub mod witness;

use crate::stage::{Backing, Cluster, Control, Daemon, path_text, until, wait};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use witness::Witness;

/// Kills that each test survives, unless it is told otherwise.
const ROUNDS: usize = 14;
/// The longest pause before a kill: about what an operation takes.
const LONGEST: u64 = 90;
/// The volume that is written all the time.
const WITNESS: &str = "witness";

/// Where something can be killed.
trait Arena {
    fn ctl(&self) -> Control;
    /// Where a volume is served, over all restarts.
    fn uri(&self, volume: &str) -> String;
    /// Kills one process of several, and starts it again.
    fn strike(&mut self, random: &mut fastrand::Rng);
}

impl Arena for Cluster {
    fn ctl(&self) -> Control {
        Cluster::ctl(self)
    }

    fn uri(&self, volume: &str) -> String {
        self.local_uri(volume)
    }

    fn strike(&mut self, random: &mut fastrand::Rng) {
        match (random.u8(..3), &self.etcd) {
            (0, _) => self.restart_block(),
            (1, _) | (_, None) => self.restart_manager(),
            (_, Some(etcd)) => {
                let member = random.usize(..etcd.endpoints().len());
                etcd.restart(member);
                // Two members down would be an outage, which is another scenario.
                wait(etcd.wait_until_healthy(member));
            }
        }
    }
}

struct OneProcess {
    dev: Daemon,
    scratch: tempfile::TempDir,
}

impl Arena for OneProcess {
    fn ctl(&self) -> Control {
        Control::of(&self.scratch.path().join("dev/manager"))
    }

    fn uri(&self, volume: &str) -> String {
        let socket = self.scratch.path().join("dev/block/nbd.sock");
        format!("nbd+unix:///{volume}?socket={}", path_text(&socket))
    }

    fn strike(&mut self, _random: &mut fastrand::Rng) {
        let ctl = self.ctl();
        self.dev.kill();
        self.dev.start_serving(&ctl.socket);
    }
}

/// Something an operator asks for.
#[derive(Clone, Debug)]
enum Wish {
    Create(String, u64),
    Resize(String, u64),
    Remove(String),
}

impl Wish {
    /// One that makes sense, given the volumes that there are and their sizes in mebibytes.
    fn next(volumes: &BTreeMap<String, u64>, number: usize, random: &mut fastrand::Rng) -> Self {
        let names: Vec<&String> = volumes.keys().collect();
        match (random.choice(names), random.u8(..3)) {
            (Some(name), 0) => Self::Remove(name.clone()),
            (Some(name), 1) => Self::Resize(name.clone(), volumes[name] + random.u64(1..4)),
            _ => Self::Create(format!("v{number}"), random.u64(1..8)),
        }
    }

    fn line(&self) -> String {
        match self {
            Self::Create(name, size) => format!("volume create {name} --size {size}MiB --timeout 30s"),
            Self::Resize(name, size) => format!("volume resize {name} --size {size}MiB --timeout 30s"),
            Self::Remove(name) => format!("volume remove {name} --timeout 30s"),
        }
    }

    /// Asks until it is so. What was asked in vain before may have happened all the same.
    fn insist(&self, ctl: &Control) {
        until(&format!("{self:?} to come true"), || {
            let outcome = ctl.run(&self.line());
            match (self, outcome.code) {
                (_, Some(0)) | (Self::Remove(_), Some(3)) => Some(()),
                (Self::Create(..), Some(4)) if outcome.stderr.contains("exists already") => Some(()),
                (_, Some(1 | 5 | 6)) => None,
                _ => panic!("{self:?}: {outcome:?}"),
            }
        });
    }

    fn note(self, volumes: &mut BTreeMap<String, u64>) {
        match self {
            Self::Create(name, size) | Self::Resize(name, size) => drop(volumes.insert(name, size)),
            Self::Remove(name) => drop(volumes.remove(&name)),
        }
    }
}

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn survive(mut arena: impl Arena) {
    let seed = from_environment("SYMPHONY_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = from_environment("SYMPHONY_TEST_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("SYMPHONY_TEST_SEED={seed} SYMPHONY_TEST_ROUNDS={rounds}");
    let (ctl, mut random) = (arena.ctl(), fastrand::Rng::with_seed(seed));
    ctl.ok(&format!("volume create {WITNESS} --size 1MiB"));
    let (mut witness, mut volumes) = (Witness::new(random.fork()), BTreeMap::new());
    for round in 0..rounds {
        let wish = Wish::next(&volumes, round, &mut random);
        let enough = Arc::new(AtomicBool::new(false));
        let writer = {
            let (enough, uri) = (enough.clone(), arena.uri(WITNESS));
            std::thread::spawn(move || {
                witness.write_until(&enough, &uri);
                witness
            })
        };
        let asker = {
            let (ctl, line) = (ctl.clone(), wish.line());
            std::thread::spawn(move || ctl.run(&line))
        };
        // Not to wait for anything: this is the random point.
        std::thread::sleep(Duration::from_millis(random.u64(..LONGEST)));
        arena.strike(&mut random);
        let first = asker.join().expect("somebody who asks");
        assert!(!first.stderr.contains("panicked"), "{first:?}");
        wish.insist(&ctl);
        wish.note(&mut volumes);
        enough.store(true, Ordering::Relaxed);
        witness = writer.join().expect("a witness");
        ctl.check_when_settled();
        witness.verify(&arena.uri(WITNESS));
        assert_books(&ctl, &volumes);
    }
    assert!(witness.acknowledged() > 0, "nothing was ever acknowledged");
}

/// Every volume is there with its size, ready, and nothing else is.
#[track_caller]
fn assert_books(ctl: &Control, volumes: &BTreeMap<String, u64>) {
    let listed = ctl.json("volume list");
    let found: BTreeMap<String, u64> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|volume| {
            assert_eq!(volume["status"]["phase"], "ready", "{volume}");
            assert_eq!(volume["status"]["size"], volume["spec"]["size"], "{volume}");
            let name = volume["meta"]["name"].as_str().expect("a name").to_owned();
            (name, volume["spec"]["size"].as_u64().expect("a size") >> 20)
        })
        .filter(|(name, _)| name != WITNESS)
        .collect();
    assert_eq!(found, *volumes);
}

#[test]
fn on_the_embedded_store_every_process_can_be_killed_at_any_point() {
    survive(Cluster::start(Backing::Embedded));
}

#[test]
fn on_etcd_every_process_and_every_member_can_be_killed_at_any_point() {
    survive(Cluster::start(Backing::ThreeEtcds));
}

#[test]
fn a_first_start_that_is_killed_at_any_point_can_be_repeated() {
    let seed = from_environment("SYMPHONY_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = from_environment("SYMPHONY_TEST_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("SYMPHONY_TEST_SEED={seed} SYMPHONY_TEST_ROUNDS={rounds}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..rounds {
        let scratch = tempfile::tempdir().expect("a directory");
        let (mut dev, ctl) = (crate::dev::daemon(scratch.path()), Control::of(&scratch.path().join("dev/manager")));
        // Some of these starts get further than the one before, some do not.
        for _ in 0..random.usize(1..4) {
            dev.start();
            std::thread::sleep(Duration::from_millis(random.u64(..2 * LONGEST)));
            dev.kill();
        }
        crate::dev::start(&mut dev, &ctl);
        assert_eq!(ctl.names("pool"), ["default"]);
        ctl.ok("volume create first --size 1MiB");
        ctl.check();
        // What a start that was cut off may leave behind: a service that joined and was forgotten before it was told.
        for service in ctl.json("service list").as_array().expect("a list") {
            assert_eq!(service["status"]["state"], "ready", "{service}");
        }
    }
}

#[test]
fn everything_in_one_process_can_be_killed_at_any_point() {
    let scratch = tempfile::tempdir().expect("a directory");
    let mut dev = crate::dev::daemon(scratch.path());
    crate::dev::start(&mut dev, &Control::of(&scratch.path().join("dev/manager")));
    survive(OneProcess { dev, scratch });
}
