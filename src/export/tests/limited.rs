//! Exports with limits: what is begun is what the rules allow at the time, by a clock that moves only when told.

use super::*;
use crate::model::{ByteSize, Limits, Operation};
use crate::nbd::Ticket;
use crate::runtime::ManualClock;
use std::time::Duration;

/// A tenth of a second's worth is one operation.
const SLOW: Limits = Limits { iops: Some(10), ..Limits::NONE };
const STEP: Duration = Duration::from_millis(100);

struct Limited {
    bench: Bench,
    clock: Arc<ManualClock>,
}

fn limited(limits: Limits) -> Limited {
    let clock = Arc::new(ManualClock::new());
    let account = Account::with_clock(clock.clone());
    account.limit(limits);
    Limited { bench: bench_on(local(all_local()), SIZE, account), clock }
}

fn until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

impl Limited {
    fn step(&self) {
        self.clock.advance(STEP);
        self.bench.account.wake();
    }

    fn begun(&self) -> usize {
        self.bench.io.performed().len()
    }

    /// Waits until so many connections wait for the limits: they take no further step until the clock does.
    fn until_waiting(&self, connections: usize) {
        until(|| self.bench.account.waiting() == connections);
    }
}

fn submit(client: &mut Dialled, count: u64, from: u64) -> Vec<Ticket> {
    let write = |number| client.submit_write(from + number * 512, &[1; 512], false).expect("a write");
    (0..count).map(write).collect()
}

fn wait_all(client: &mut Dialled, tickets: Vec<Ticket>) {
    tickets.into_iter().for_each(|ticket| drop(client.wait(ticket).expect("an answer")));
}

#[test]
fn no_more_is_begun_than_the_limit_allows_at_the_time() {
    let it = limited(SLOW);
    let mut client = it.bench.client();
    let tickets = submit(&mut client, 8, 0);
    for allowed in 2..8 {
        // The one that waits now is another one than before the step.
        until(|| it.begun() == allowed);
        it.until_waiting(1);
        it.step();
    }
    wait_all(&mut client, tickets);
    assert_eq!(it.begun(), 8);
    let seen = it.bench.account.figures();
    assert_eq!((seen.of(Operation::Write).operations(), seen.throttled), (8, 6));
}

#[test]
fn reads_and_writes_pay_for_their_bytes_together_and_flushes_for_nothing() {
    let it = limited(Limits { bandwidth: Some(ByteSize::bytes(40_960)), ..Limits::NONE });
    let mut client = it.bench.client();
    client.read(0, &mut [0; 4096]).expect("what may be saved up");
    client.write(0, &[1; 40_960], false).expect("a request that is larger than that");
    let read = client.submit_read(0, 512).expect("a read");
    it.until_waiting(1);
    let mut other = it.bench.client();
    for _ in 0..3 {
        other.flush().expect("a flush");
    }
    // All but what may be owed has to be paid off: ten steps.
    for _ in 0..9 {
        it.step();
        it.until_waiting(1);
    }
    assert_eq!(it.begun(), 5);
    it.step();
    client.wait(read).expect("the read");
}

#[test]
fn what_was_answered_does_not_wait_with_what_waits() {
    let it = limited(SLOW);
    let mut client = it.bench.client();
    let mut tickets = submit(&mut client, 3, 0);
    let last = tickets.pop().expect("three");
    wait_all(&mut client, tickets);
    it.until_waiting(1);
    it.step();
    client.wait(last).expect("an answer");
}

#[test]
fn a_raised_limit_lets_those_go_who_wait_and_a_lifted_one_everybody() {
    let it = limited(SLOW);
    let mut client = it.bench.client();
    let tickets = submit(&mut client, 16, 0);
    it.until_waiting(1);
    until(|| it.begun() == 2);
    // What is owed is paid off sooner, and more may be saved up.
    it.bench.account.limit(Limits { iops: Some(40), ..Limits::NONE });
    until(|| it.begun() > 2);
    it.until_waiting(1);
    it.bench.account.limit(Limits::NONE);
    wait_all(&mut client, tickets);
    client.write(0, &[1; 512], false).expect("a write");
    it.bench.account.limit(SLOW);
    let tickets = submit(&mut client, 4, 0);
    it.until_waiting(1);
    // Those that were let go may still be on their way to the medium.
    until(|| it.begun() >= 16 + 1 + 2);
    assert_eq!(it.begun(), 16 + 1 + 2, "a new limit holds for the next request");
    it.bench.account.limit(Limits::NONE);
    wait_all(&mut client, tickets);
}

#[test]
fn connections_share_a_limit_however_much_each_has_in_flight() {
    let it = limited(SLOW);
    let half = SIZE / 2;
    let (mut deep, mut shallow) = (it.bench.client(), it.bench.client());
    let tickets = submit(&mut deep, 12, 0);
    for round in 1..=4 {
        // Whoever was allowed to go on has done so, or the next one would go in its place.
        until(|| it.begun() == 2 * round);
        it.until_waiting(1);
        let one = submit(&mut shallow, 1, half);
        it.until_waiting(2);
        it.step();
        until(|| it.begun() == 2 * round + 1);
        it.step();
        wait_all(&mut shallow, one);
    }
    let theirs = it.bench.io.performed().iter().filter(|done| done.offset >= half).count();
    assert_eq!(theirs, 4, "each of them within two steps");
    it.bench.account.limit(Limits::NONE);
    wait_all(&mut deep, tickets);
}

#[test]
fn an_export_s_end_does_not_wait_for_limits() {
    let it = limited(SLOW);
    let (mut one, mut other) = (it.bench.client(), it.bench.client());
    submit(&mut one, 8, 0);
    submit(&mut other, 8, 0);
    it.until_waiting(2);
    // All that is allowed at the beginning, however it is shared.
    until(|| it.begun() >= 2);
    let begun = it.begun();
    assert_eq!(it.bench.table.retire("disk"), Retired::Gone);
    assert_eq!((it.begun(), it.bench.account.waiting()), (begun, 0), "what waited is never begun");
}

#[test]
fn a_server_that_closes_answers_what_waits_for_limits_without_waiting() {
    let mut it = limited(SLOW);
    let mut client = it.bench.client();
    let tickets = submit(&mut client, 3, 0);
    it.until_waiting(1);
    std::thread::scope(|scope| {
        let ending = scope.spawn(|| it.bench.server.shutdown());
        wait_all(&mut client, tickets);
        assert!(ending.join().is_ok());
    });
    assert_eq!(it.begun(), 3);
}

#[test]
fn whoever_leaves_while_it_waits_is_in_nobody_s_way() {
    let it = limited(SLOW);
    let mut gone = it.bench.client();
    submit(&mut gone, 4, 0);
    it.until_waiting(1);
    let mut stays = it.bench.client();
    let tickets = submit(&mut stays, 1, SIZE / 2);
    it.until_waiting(2);
    drop(gone);
    until(|| {
        it.step();
        it.bench.io.performed().iter().any(|done| done.offset == SIZE / 2)
    });
    wait_all(&mut stays, tickets);
    until(|| {
        it.step();
        it.bench.account.figures().connections == 1
    });
}
