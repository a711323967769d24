//! Real processes under faults that a seed decides, and people who use them meanwhile.
//!
//! A run prints its seed first; the schedule of faults is a pure function of it, and is logged as it happens. Workers write
//! volumes whose every acknowledged byte they remember, grow and shrink them, attach and detach a client, take snapshots,
//! copy them and put volumes back to them, make volumes of an image, and quarrel over one name through all managers.
//! Somebody looks at what each manager shows: nothing of that goes back. Once all faults are over nothing may be lost,
//! stuck or left behind, and the history of each name must have an order in which it makes sense.
//!
//! `SYMPHONY_FAULTS_SEED` repeats a run's faults, `SYMPHONY_FAULTS_MINUTES` goes on for longer, a round after the other,
//! and `SYMPHONY_FAULTS_KINDS=BreakDisk,Kill` leaves all other kinds out.
//!
//! Known limit: what the workers do beside the faults is up to the machine's scheduler, and differs from run to run.

mod acts;
mod arena;
mod book;
mod disk;
mod heights;
mod linear;
mod record;
mod relay;
mod schedule;
mod settle;
mod worker;

use crate::crash_rounds::witness::Witness;
use crate::stage::path_text;
use arena::Arena;
use record::IMAGE;
use schedule::{Fault, Strike};
use settle::Bare;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use worker::{Scene, Writer, image_numbers};

/// How long the faults of the only round go on, in milliseconds, and those of each of many.
const SHORT: u64 = 25_000;
const LONG: u64 = 40_000;
const WRITERS: usize = 2;
const QUARRELLERS: usize = 2;

/// Something that happens at its time.
enum Moment<'s> {
    Begin(&'s Strike),
    End(&'s Strike),
    /// A loose contact opens, or closes.
    Gap(usize, bool),
}

/// Everything of a schedule, by its time in milliseconds.
fn moments(strikes: &[Strike]) -> Vec<(u64, Moment<'_>)> {
    let mut moments = Vec::new();
    for strike in strikes {
        moments.push((strike.at, Moment::Begin(strike)));
        if let Fault::Flicker(host, gaps) = &strike.fault {
            for (from, to) in gaps {
                moments.push((strike.at + from, Moment::Gap(*host, true)));
                moments.push((strike.at + to, Moment::Gap(*host, false)));
            }
        }
        moments.push((strike.at + strike.lasts, Moment::End(strike)));
    }
    moments.sort_by_key(|(at, _)| *at);
    moments
}

/// Lets everything happen in its time.
fn play(arena: &mut Arena, strikes: &[Strike]) {
    let began = Instant::now();
    for (at, moment) in moments(strikes) {
        // Not to wait for anything: this is the schedule.
        std::thread::sleep(Duration::from_millis(at).saturating_sub(began.elapsed()));
        let now = began.elapsed().as_millis();
        match moment {
            Moment::Begin(strike) => {
                eprintln!("{now:>7} ms: {strike}");
                arena.begin(&strike.fault);
            }
            Moment::End(strike) => {
                arena.end(&strike.fault);
                eprintln!("{now:>7} ms: over, {} ms later: {:?}", began.elapsed().as_millis() - now, strike.fault);
            }
            Moment::Gap(host, true) => arena.isolate(host),
            Moment::Gap(host, false) => arena.rejoin(host),
        }
    }
}

/// Tells the workers at the end of a scope, whatever ends it.
struct Enough<'s>(&'s AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn round(arena: &mut Arena, seed: u64, length: u64, bare: &Bare) {
    eprintln!("SYMPHONY_FAULTS_SEED={seed}");
    let mut strikes = schedule::plan(seed, &arena.shape, length);
    if let Ok(kinds) = std::env::var("SYMPHONY_FAULTS_KINDS") {
        let is_wanted = |it: &Strike| kinds.split(',').any(|kind| format!("{:?}", it.fault).starts_with(kind));
        strikes.retain(is_wanted);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut writers: Vec<Writer> = (0..WRITERS).map(|name| Writer::new(name, random.fork())).collect();
    let scene = Scene {
        reach: arena.reach(),
        record: Default::default(),
        enough: AtomicBool::new(false),
        quarrel: AtomicUsize::new(0),
        copies: arena.shape.disks,
    };
    if scene.copies {
        let file = arena.path().join("image.raw");
        std::fs::write(&file, Witness::bytes_of(image_numbers())).expect("a file");
        scene.reach.managers[0].ok(&format!("image import {} --name {IMAGE}", path_text(&file)));
    }
    std::thread::scope(|scope| {
        let _enough = Enough(&scene.enough);
        for writer in &mut writers {
            scope.spawn(|| writer.work(&scene));
        }
        for _ in 0..QUARRELLERS {
            let random = random.fork();
            scope.spawn(|| scene.quarrel(random));
        }
        scope.spawn(|| scene.watch_views());
        play(arena, &strikes);
        acts::perform(arena, &scene, &mut random);
    });
    settle::settle(arena, &scene, &mut writers, bare);
    for writer in &writers {
        eprintln!("{:?}", writer.done);
    }
    eprintln!("{} names; held now: {:?}", scene.record.names().len(), arena.holdings());
    assert!(writers.iter().any(|writer| writer.done.contains_key("written")), "nothing was ever acknowledged");
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// One round, or as many as fit into the minutes that are asked for.
fn endure(mut arena: Arena) {
    let seed = from_environment("SYMPHONY_FAULTS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let (began, bare) = (Instant::now(), Bare::of(&arena));
    let Some(minutes) = from_environment("SYMPHONY_FAULTS_MINUTES") else {
        return round(&mut arena, seed, SHORT, &bare);
    };
    for number in 0.. {
        round(&mut arena, seed + number, LONG, &bare);
        if began.elapsed() >= Duration::from_secs(60 * minutes) {
            return;
        }
    }
}

#[test]
fn managers_and_block_services_on_hosts_of_their_own_lose_nothing_whatever_fails() {
    let Some(arena) = Arena::of_hosts() else { return };
    endure(arena);
}

#[test]
fn one_machine_with_the_embedded_store_loses_nothing_whatever_fails() {
    endure(Arena::of_one_machine());
}
