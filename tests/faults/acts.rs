//! What no schedule can say, because one has to look first: who leads, and what is said while it is gone.
//!
//! Each begins with everybody well, and goes on while workers do as ever.

use super::arena::Arena;
use super::linear::volume::{Call, Origin};
use super::settle::{json, until_all_are_ready, until_seen};
use super::worker::Scene;
use crate::stage::{Control, client, until};
use nix::sys::signal::Signal;
use std::time::Duration;

/// Requests that are under way to a leader when it is stopped.
const UNDER_WAY: usize = 6;

/// All of them, where there is something to lose.
pub fn perform(arena: &mut Arena, scene: &Scene, random: &mut fastrand::Rng) {
    if arena.shape.etcds > 1 {
        until_all_are_ready(scene);
        lose_the_quorum(arena, scene, random);
        until_all_are_ready(scene);
        stop_the_leader(arena, scene, random);
    }
}

fn is_behind(control: &Control) -> bool {
    json(control, "manager status").is_some_and(|status| status["stale_since"].is_string())
}

/// Without a quorum reads go on and say so, changes fail clearly, exports go on; and all heals by itself.
fn lose_the_quorum(arena: &mut Arena, scene: &Scene, random: &mut fastrand::Rng) {
    let first = random.usize(..arena.shape.etcds);
    let gone = [first, (first + 1) % arena.shape.etcds];
    eprintln!("         the quorum is lost with {gone:?}");
    let managers = &scene.reach.managers;
    let name = format!("vigil-{}", random.u32(..));
    managers[0].ok(&format!("volume create {name} --size 1M"));
    let made = json(&managers[0], &format!("volume get {name}")).expect("a volume");
    let service = made["status"]["placement"][0]["service"].as_str().expect("a service");
    let uri = format!("nbd+unix:///{name}?socket={}", scene.reach.nbd[service].display());
    let mut connection = client(&uri).expect("a connection");
    for manager in managers {
        // What one does not show before cannot be asked of it afterwards.
        until("every manager to show it", || json(manager, &format!("volume get {name}")));
    }
    arena.lose_members(&gone);
    for manager in managers {
        until("a manager to say that it is behind", || {
            let outcome = manager.run("volume list -o json");
            assert_eq!(outcome.code, Some(0), "reads go on: {}", outcome.stderr);
            let said = outcome.stderr.contains("has not reached its store since");
            assert!(
                serde_json::from_slice::<serde_json::Value>(&outcome.stdout).is_ok(),
                "the note is beside the list"
            );
            (said && is_behind(manager)).then_some(())
        });
        for change in [format!("volume create more-{name} --size 1M"), format!("volume set {name} --iops 500")] {
            let outcome = manager.run(&format!("{change} --timeout 3s"));
            assert!(outcome.code == Some(5) && !outcome.stderr.trim().is_empty(), "{change}: {outcome:?}");
            assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        }
        connection.write(0, &[1; 4096], true).expect("a write meanwhile");
    }
    arena.bring_members_back(&gone);
    for manager in managers {
        until("a manager that is not behind any more", || (!is_behind(manager)).then_some(()));
        until("changes to be possible again", || {
            (manager.run(&format!("volume set {name} --iops 700 --timeout 5s")).code == Some(0)).then_some(())
        });
    }
    connection.write(0, &[2; 4096], true).expect("a write on the same connection");
    eprintln!("         the quorum is back");
}

/// A leader is stopped for longer than its lease while requests to it are under way. What it does when it goes on is
/// judged by what everybody finds in the end.
fn stop_the_leader(arena: &mut Arena, scene: &Scene, random: &mut fastrand::Rng) {
    let managers = &scene.reach.managers;
    let id = |control: &Control| Some(json(control, "manager status")?["service"]["id"].as_str()?.to_owned());
    let leader_of = |control: &Control| Some(json(control, "manager status")?["leader"].as_str()?.to_owned());
    let ids: Vec<String> = managers.iter().map(|it| until("a member", || id(it))).collect();
    let old = until("a leader", || {
        let leader = leader_of(&managers[0])?;
        ids.iter().position(|id| *id == leader)
    });
    let witness = &managers[(old + 1) % managers.len()];
    eprintln!("         the leader, manager {old}, is stopped");
    let delay = Duration::from_millis(random.u64(..30));
    std::thread::scope(|scope| {
        for number in 0..UNDER_WAY {
            let name = format!("late-{number}-{}", random.u32(..));
            scope.spawn(move || scene.record.ask(managers, old, &name, Call::Create(1 << 20, Origin::Nothing)));
        }
        // Not to wait for anything: so much of their way they have had.
        std::thread::sleep(delay);
        arena.signal_manager(old, Signal::SIGSTOP);
        until("another leader", || (leader_of(witness)? != ids[old]).then_some(()));
        until_seen(witness, "the stopped one to be called down", &format!("service get {}", ids[old]), |service| {
            service["status"]["state"] == "down"
        });
        arena.signal_manager(old, Signal::SIGCONT);
    });
    until("the old leader to see that it is none any more, or is one again", || {
        (leader_of(&managers[old])? == leader_of(witness)?).then_some(())
    });
    eprintln!("         manager {old} is back");
}
