//! The checker itself: honest media pass, each lie and each kind of damage is noticed.

use super::*;
use crate::io::{BlockIo, Fault, FaultIo, Operation};
use std::ops::Range;
use std::sync::Barrier;

const SECTORS: u64 = 48;
const ROUNDS: usize = 60;
const CLIENTS: usize = 3;

/// Clients of one medium, each with a thread and a handle of its own, and nothing between them and it.
struct Workload {
    witness: Witness,
    medium: CachingIo,
}

impl Workload {
    fn new(seed: u64, lie: Lie) -> Self {
        let moments = Moments::default();
        let medium = CachingIo::new(SECTORS * SECTOR as u64, seed, lie, &moments);
        Self { witness: Witness::new(&moments), medium }
    }

    fn run(seed: u64, lie: Lie) -> Self {
        let this = Self::new(seed, lie);
        // None gets far ahead: if they came one after the other, there would be little that one could spoil for another.
        let round = Barrier::new(CLIENTS);
        std::thread::scope(|scope| {
            for number in 0..CLIENTS as u64 {
                let (witness, io, round) = (&this.witness, this.medium.another(), &round);
                let mut random = fastrand::Rng::with_seed(seed ^ (number << 32));
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        round.wait();
                        act(witness, &io, &mut random);
                    }
                });
            }
        });
        this
    }

    fn check(&self, seed: u64) -> Result<usize, Breach> {
        check(&self.medium.log(), &self.witness, seed)
    }
}

fn told<T, E>(outcome: Result<T, E>) -> Told {
    if outcome.is_ok() { Told::Done } else { Told::Failed }
}

fn stamps(number: u64, sectors: Range<u64>) -> Vec<u8> {
    sectors.flat_map(|sector| stamp(number, sector)).collect()
}

fn write(witness: &Witness, io: &dyn BlockIo, sectors: Range<u64>, fua: bool) {
    let number = witness.begins(Asked::Write { fua }, sectors.clone());
    let outcome = io.write(&stamps(number, sectors.clone()), sectors.start * SECTOR as u64, fua);
    witness.ends(number, told(outcome));
}

fn flush(witness: &Witness, io: &dyn BlockIo) {
    let number = witness.begins(Asked::Flush, 0..0);
    witness.ends(number, told(io.flush()));
}

fn act(witness: &Witness, io: &dyn BlockIo, random: &mut fastrand::Rng) {
    let start = random.u64(0..SECTORS);
    let sectors = start..(start + random.u64(1..9)).min(SECTORS);
    let (offset, length) = (start * SECTOR as u64, (sectors.end - start) * SECTOR as u64);
    match random.u8(0..16) {
        0..=8 => write(witness, io, sectors, false),
        9..=10 => write(witness, io, sectors, true),
        11 => {
            let number = witness.begins(Asked::Zero, sectors);
            witness.ends(number, told(io.zero(offset, length, true)));
        }
        12 => {
            let number = witness.begins(Asked::Trim, sectors);
            witness.ends(number, told(io.trim(offset, length)));
        }
        _ => flush(witness, io),
    }
}

/// A fresh seed beside fixed ones, so that no two runs are the same; a failure names it.
fn seeds() -> impl Iterator<Item = u64> {
    (0..5).chain([fastrand::u64(..)]).inspect(|seed| eprintln!("seed {seed}"))
}

#[test]
fn an_honest_medium_keeps_every_promise_at_every_step() {
    for seed in seeds() {
        let workload = Workload::run(seed, Lie::None);
        let images = workload.check(seed).unwrap_or_else(|breach| panic!("{breach}"));
        assert!(images > 2 * CLIENTS * ROUNDS, "{images} images");
    }
}

#[test]
fn every_lie_of_a_medium_is_noticed() {
    for lie in [Lie::Flush, Lie::Durable, Lie::OthersFlush] {
        for seed in seeds() {
            let workload = Workload::run(seed, lie);
            assert!(workload.check(seed).is_err(), "{lie:?}, seed {seed}");
        }
    }
}

#[test]
fn the_unflushed_may_go_or_stay_but_the_flushed_stays_in_its_order() {
    let Workload { witness, medium } = Workload::new(7, Lie::None);
    write(&witness, &medium, 0..2, false);
    write(&witness, &medium, 0..1, false);
    flush(&witness, &medium);
    write(&witness, &medium, 1..2, false);
    let (log, history) = (medium.log(), witness.history());
    let end = log.steps();
    let sectors = |image: &[u8]| [&image[..SECTOR], &image[SECTOR..2 * SECTOR]].map(<[u8]>::to_vec);
    assert_eq!(sectors(&log.image(end, |_, _| false)), [stamp(2, 0).to_vec(), stamp(1, 1).to_vec()]);
    assert_eq!(sectors(&log.image(end, |_, _| true)), [stamp(2, 0).to_vec(), stamp(4, 1).to_vec()]);
    assert!(check(&log, &witness, 0).is_ok());
    // By hand: what was overwritten before the flush, what never was written there, half a sector, the far future.
    let good = log.image(end, |_, _| true);
    assert_eq!(history.check(&good, u64::MAX), Ok(()));
    for (number, sector) in [(1, 0), (3, 0), (99, 5)] {
        let mut image = good.clone();
        image[sector * SECTOR..][..SECTOR].copy_from_slice(&stamp(number, sector as u64));
        assert!(history.check(&image, u64::MAX).is_err(), "act {number} in sector {sector}");
    }
    let mut torn = good.clone();
    torn[SECTOR..SECTOR + 256].copy_from_slice(&stamp(1, 1)[..256]);
    assert!(history.check(&torn, u64::MAX).is_err(), "a sector is never torn");
    assert!(history.check(&good, 1).is_err(), "a write that nobody had asked for yet");
}

#[test]
fn errors_and_torn_writes_owe_nothing_and_hide_nothing() {
    for seed in seeds() {
        let Workload { witness, medium } = Workload::new(seed, Lie::None);
        let handle = medium.another();
        let io = FaultIo::seeded(std::sync::Arc::new(handle), seed, 150, nix::errno::Errno::EIO as i32);
        io.inject(Fault { skip: 20, ..Fault::torn(2, nix::errno::Errno::EIO as i32) });
        let mut random = fastrand::Rng::with_seed(seed);
        (0..3 * ROUNDS).for_each(|_| act(&witness, &io, &mut random));
        check(&medium.log(), &witness, seed).unwrap_or_else(|breach| panic!("{breach}"));
        assert!(io.performed().iter().any(|it| it.operation == Operation::Flush));
    }
}
