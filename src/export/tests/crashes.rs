//! Power cuts under the server: what its replies promised is there afterwards, whichever connection asked, and a medium
//! that failed is never said to have kept what it lost.

use super::*;
use crate::io::crash::{self, Asked, Breach, CachingIo, Lie, Moments, SECTOR, Told, Witness, stamp};
use crate::io::{Fault, FileIo, Operation};
use crate::nbd::{NbdErrno, Ticket};
use nix::errno::Errno;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

const SECTORS: u64 = 64;
const VOLUME: u64 = SECTORS * SECTOR as u64;
const CONNECTIONS: u64 = 3;
const ROUNDS: usize = 70;

/// Requests of one connection in flight together.
const DEPTH: usize = 6;

/// A client that writes down what it does.
struct Recorder<'a> {
    witness: &'a Witness,
    client: Dialled,
    in_flight: Vec<(u64, Ticket)>,
    random: fastrand::Rng,
}

fn told<T>(outcome: Result<T, ClientError>) -> Told {
    match outcome {
        Ok(_) => Told::Done,
        Err(ClientError::Remote { .. }) => Told::Failed,
        Err(error) => panic!("{error}"),
    }
}

impl Recorder<'_> {
    fn sectors(&mut self) -> Range<u64> {
        let start = self.random.u64(0..SECTORS);
        start..(start + self.random.u64(1..9)).min(SECTORS)
    }

    fn act(&mut self) {
        let sectors = self.sectors();
        let (offset, length) = (sectors.start * SECTOR as u64, (sectors.end - sectors.start) * SECTOR as u64);
        match self.random.u8(0..16) {
            kind @ 0..=9 => {
                let fua = kind < 2;
                let number = self.witness.begins(Asked::Write { fua }, sectors.clone());
                let data: Vec<u8> = sectors.flat_map(|sector| stamp(number, sector)).collect();
                self.in_flight.push((number, self.client.submit_write(offset, &data, fua).expect("a write")));
            }
            10..=11 => {
                let number = self.witness.begins(Asked::Zero, sectors);
                let ticket = self.client.submit_zero(offset, length as u32, self.random.bool()).expect("zeros");
                self.in_flight.push((number, ticket));
            }
            12 => {
                let number = self.witness.begins(Asked::Trim, sectors);
                self.witness.ends(number, told(self.client.trim(offset, length)));
            }
            _ => {
                let number = self.witness.begins(Asked::Flush, 0..0);
                self.witness.ends(number, told(self.client.flush()));
            }
        }
        while self.in_flight.len() > self.random.usize(0..DEPTH) {
            self.wait_for_one();
        }
    }

    fn wait_for_one(&mut self) {
        let (number, ticket) = self.in_flight.swap_remove(self.random.usize(0..self.in_flight.len()));
        self.witness.ends(number, told(self.client.wait(ticket)));
    }
}

/// Several connections at once; connection `number` uses the export of that name, or all use "disk".
fn run(bench: &Bench, witness: &Witness, seed: u64, own_exports: bool) {
    std::thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            let name = if own_exports { number.to_string() } else { "disk".to_owned() };
            let client = bench.dial(&name).expect("the export");
            let random = fastrand::Rng::with_seed(seed ^ (number << 32));
            let mut recorder = Recorder { witness, client, in_flight: Vec::new(), random };
            scope.spawn(move || {
                (0..ROUNDS).for_each(|_| recorder.act());
                while !recorder.in_flight.is_empty() {
                    recorder.wait_for_one();
                }
                recorder.client.disconnect().expect("a farewell");
            });
        }
    });
}

/// A fresh seed beside fixed ones; a failure names it.
fn seeds() -> impl Iterator<Item = u64> {
    (0..3).chain([fastrand::u64(..)]).inspect(|seed| eprintln!("seed {seed}"))
}

/// All connections on one medium, which an optional layer makes fail.
fn cut_power(seed: u64, lie: Lie, failing: bool) -> Result<usize, Breach> {
    let moments = Moments::default();
    let witness = Witness::new(&moments);
    let medium = Arc::new(CachingIo::new(VOLUME, seed, lie, &moments));
    let per_mille = if failing { 60 } else { 0 };
    let faulty = Arc::new(FaultIo::seeded(medium.clone(), seed, per_mille, Errno::EIO as i32));
    if failing {
        for skip in [5, 25, 60] {
            faulty.inject(Fault { skip, ..Fault::torn(1, Errno::EIO as i32) });
        }
    }
    let bench = bench();
    bench.table.retire("disk");
    bench.table.publish(served("disk", faulty)).expect("a free name");
    run(&bench, &witness, seed, false);
    crash::check(&medium.log(), &witness, seed)
}

#[test]
fn power_may_be_cut_at_every_step_and_no_flush_or_fua_was_a_lie_whichever_connection_it_came_through() {
    for seed in seeds() {
        let images = cut_power(seed, Lie::None, false).unwrap_or_else(|breach| panic!("{breach}"));
        assert!(images > ROUNDS * CONNECTIONS as usize, "{images} images");
    }
}

#[test]
fn errors_and_torn_writes_of_the_medium_make_no_promise_and_break_none() {
    for seed in seeds() {
        cut_power(seed, Lie::None, true).unwrap_or_else(|breach| panic!("{breach}"));
    }
}

#[test]
fn a_medium_that_lies_is_caught_through_the_server() {
    for lie in [Lie::Flush, Lie::Durable] {
        assert!(seeds().any(|seed| cut_power(seed, lie, false).is_err()), "{lie:?}");
    }
}

/// A server whose connections had caches of their own is what multi-conn forbids.
#[test]
fn a_flush_that_covers_its_own_connection_only_is_caught() {
    let caught = seeds().any(|seed| {
        let moments = Moments::default();
        let witness = Witness::new(&moments);
        let medium = CachingIo::new(VOLUME, seed, Lie::OthersFlush, &moments);
        let bench = bench();
        for number in 0..CONNECTIONS {
            bench.table.publish(served(&number.to_string(), Arc::new(medium.another()))).expect("a free name");
        }
        run(&bench, &witness, seed, true);
        crash::check(&medium.log(), &witness, seed).is_err()
    });
    assert!(caught);
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) {
    assert!(matches!(&outcome, Err(ClientError::Remote { errno: NbdErrno::Io, .. })), "{outcome:?}");
}

#[test]
fn a_flush_that_failed_once_fails_for_everybody_from_then_on_and_other_exports_do_not_notice() {
    for durable in [false, true] {
        let bench = bench();
        let other = Arc::new(FaultIo::new(Arc::new(MemoryIo::new(SIZE))));
        bench.table.publish(served("other", other)).expect("a free name");
        let (mut one, mut two) = (bench.client(), bench.client());
        one.write(0, &[1; 512], false).expect("a write");
        two.write(512, &[2; 512], false).expect("a write");
        if durable {
            bench.io.inject(Fault::once(Operation::Write, Errno::EIO as i32));
            refused(one.write(0, &[1; 512], true));
        } else {
            bench.io.inject(Fault::once(Operation::Flush, Errno::EIO as i32));
            refused(one.flush());
        }
        refused(two.flush());
        refused(one.flush());
        refused(bench.client().flush());
        // What needs no flush goes on: clients save what they can.
        two.write(512, &[3; 512], false).expect("a write");
        let mut seen = [0; 512];
        bench.client().read(512, &mut seen).expect("a read");
        assert_eq!(seen, [3; 512]);
        refused(two.flush());
        let mut elsewhere = bench.dial("other").expect("another export");
        elsewhere.write(0, &[1; 512], true).expect("a write");
        elsewhere.flush().expect("another medium");
    }
}

#[test]
fn errors_of_single_operations_reach_the_client_that_asked_and_are_not_remembered() {
    let bench = bench();
    let (mut one, mut two) = (bench.client(), bench.client());
    bench.io.inject(Fault::once(Operation::Read, Errno::EIO as i32));
    refused(one.read(0, &mut [0; 512]));
    two.read(0, &mut [0; 512]).expect("a read");
    bench.io.inject(Fault::torn(1, Errno::EIO as i32));
    refused(one.write(0, &[1; 2048], false));
    one.write(0, &[1; 2048], false).expect("a write");
    two.flush().expect("nothing that was acknowledged is lost");
    two.write(0, &[2; 512], true).expect("a durable write");
}

#[test]
fn lost_writes_of_a_file_are_remembered_by_all_connections_and_by_whoever_opens_the_file_next() {
    for directory in [std::env::temp_dir().as_path(), Path::new("/dev/shm")] {
        let file = tempfile::NamedTempFile::new_in(directory).expect("a file");
        file.as_file().set_len(SIZE).expect("a sparse file");
        let open = || {
            let file = File::options().read(true).write(true).open(file.path()).expect("the same file");
            Arc::new(FileIo::new(file).expect("a regular file"))
        };
        let first = bench();
        let io = open();
        first.table.publish(served("file", io.clone())).expect("a free name");
        let (mut one, mut two) = (first.dial("file").expect("it"), first.dial("file").expect("it"));
        one.write(0, &[1; 4096], true).expect("a durable write");
        two.flush().expect("a flush");
        // As if a durable write around the page cache, or a write-back of its pages, had failed.
        io.raw().expect("a file").durable_write_failed(&Errno::EIO.into());
        refused(one.flush());
        refused(two.flush());
        refused(first.dial("file").expect("it").flush());
        drop((one, two, first, io));
        // A server after the first one's end, as a service that was started anew.
        let second = bench();
        second.table.publish(served("file", open())).expect("a free name");
        let mut client = second.dial("file").expect("it");
        client.read(0, &mut [0; 4096]).expect("a read");
        client.write(0, &[1; 4096], false).expect("a write");
        let kept = client.flush();
        match rustix::fs::fgetxattr(file.as_file(), "user.symphony.lost-writes", &mut [0; 16][..]) {
            Ok(_) => refused(kept),
            Err(error) => eprintln!("skipped: {} keeps no notes: {error}", directory.display()),
        }
    }
}
