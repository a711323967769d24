//! The rules against a naive count of what they let through, in a world whose time is a number.

use super::*;
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const MILLI: u64 = SECOND / 1000;
const MICRO: u64 = SECOND / 1_000_000;

/// A connection that always has a next request.
#[derive(Clone, Copy, Debug)]
struct Client {
    bytes: u64,
    /// From the beginning of a request to the next one; none: it has many in flight.
    pause: u64,
    /// How late it comes when it was to wait.
    late: u64,
}

const DEEP: Client = Client { bytes: 4096, pause: 0, late: 0 };

/// A request that was begun.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: u64,
    client: usize,
    bytes: u64,
    /// Since it was asked for.
    waited: u64,
}

/// Lets clients ask until `end`, and says what was begun.
fn play(limits: Limits, clients: &[Client], end: u64) -> Vec<Begun> {
    let mut throttle = Throttle::default();
    throttle.set(&limits, 0);
    let mut members: Vec<(Member, Option<u64>)> = clients.iter().map(|_| (throttle.join(), None)).collect();
    let mut events: BinaryHeap<Reverse<(u64, u64, usize)>> = BinaryHeap::new();
    let mut number = 0;
    let mut at = |events: &mut BinaryHeap<Reverse<(u64, u64, usize)>>, when: u64, client: usize| {
        number += 1;
        events.push(Reverse((when, number, client)));
    };
    for client in 0..clients.len() {
        at(&mut events, 0, client);
    }
    let mut begun = Vec::new();
    while let Some(Reverse((now, _, client))) = events.pop() {
        if now > end {
            break;
        }
        let (it, (member, asked)) = (clients[client], &mut members[client]);
        let verdict = match asked {
            Some(_) => throttle.ask_again(member, now),
            None => throttle.ask(member, it.bytes, now),
        };
        match verdict {
            Verdict::Go => {
                let waited = now - asked.take().unwrap_or(now);
                begun.push(Begun { at: now, client, bytes: it.bytes, waited });
                at(&mut events, now + it.pause.max(MICRO), client);
            }
            Verdict::Wait(until) => {
                asked.get_or_insert(now);
                assert!(until > now);
                at(&mut events, until + it.late, client);
            }
        }
    }
    begun
}

fn iops(iops: u64) -> Limits {
    Limits { iops: Some(iops), ..Limits::NONE }
}

fn count(begun: &[Begun], client: usize) -> u64 {
    begun.iter().filter(|begun| begun.client == client).count() as u64
}

/// In no window is there more than the rate allows and may be saved up, up to the last request in it.
fn assert_limits_hold(limits: Limits, begun: &[Begun]) {
    let spare = limits.burst().as_nanos();
    let rates = [(limits.iops, true), (limits.bandwidth.map(ByteSize::as_u64), false)];
    for (rate, operations) in rates.into_iter().filter_map(|(rate, operations)| Some((u128::from(rate?), operations))) {
        for (place, first) in begun.iter().enumerate() {
            let mut sum = 0u128;
            for each in &begun[place..] {
                let allowed = rate * (u128::from(each.at - first.at) + spare) / u128::from(SECOND) + 1;
                assert!(sum <= allowed, "{sum} in {} ns at {rate}/s", each.at - first.at);
                sum += if operations { 1 } else { u128::from(each.bytes) };
            }
        }
    }
}

/// How many there are in every window of ten seconds that begins with a request after `from`.
fn windows(begun: &[Begun], from: u64, end: u64) -> Vec<u64> {
    let begins = begun.iter().map(|each| each.at).filter(|at| *at >= from && *at + 10 * SECOND <= end);
    let before = |at| begun.partition_point(|each| each.at < at) as u64;
    begins.map(|start| before(start + 10 * SECOND) - before(start)).collect()
}

fn clients() -> impl Strategy<Value = Vec<Client>> {
    let pause = prop_oneof![Just(0), 0..100 * MILLI];
    let client = (1u64..1 << 20, pause, 0..20 * MILLI);
    proptest::collection::vec(client.prop_map(|(bytes, pause, late)| Client { bytes, pause, late }), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_clients_get_more_than_the_limits_in_any_time(
        clients in clients(), iops in proptest::option::of(1u64..400),
        bandwidth in 1u64..1 << 24, burst in proptest::option::of(100u64..5000),
    ) {
        let limits = Limits { iops, bandwidth: Some(ByteSize::bytes(bandwidth.max(4096))), burst_ms: burst };
        let begun = play(limits, &clients, 4 * SECOND);
        assert_limits_hold(limits, &begun[..begun.len().min(800)]);
    }

    #[test]
    fn clients_that_always_want_more_get_the_limit_within_two_in_a_hundred_over_ten_seconds(
        rate in 50u64..700, late in proptest::collection::vec(0..20 * MILLI, 1..5), bytes in 1u64..1 << 20, by_bytes: bool,
    ) {
        let clients: Vec<Client> = late.iter().map(|late| Client { bytes, pause: 0, late: *late }).collect();
        let limits = match by_bytes {
            true => Limits { bandwidth: Some(ByteSize::bytes(rate * bytes.max(82))), ..Limits::NONE },
            false => iops(rate),
        };
        let clients: Vec<Client> = clients.iter().map(|it| Client { bytes: bytes.max(82), ..*it }).collect();
        let begun = play(limits, &clients, 22 * SECOND);
        for seen in windows(&begun, SECOND, 22 * SECOND) {
            let wanted = rate * 10;
            prop_assert!(seen.abs_diff(wanted) <= wanted / 50 + 1, "{} of {}", seen, wanted);
        }
    }

    #[test]
    fn clients_that_always_want_more_get_the_same_share_however_late_they_wake(
        rate in 1000u64..100_000,
        each in proptest::collection::vec(0..400 * MICRO, 2..5), bytes in prop_oneof![Just(512u64), Just(4096), Just(65536)],
    ) {
        // Who comes too late for its next request cannot use all of its share: others have what is left.
        let in_time = bytes * SECOND * each.len() as u64 / (rate * 4096) / 2;
        let client = |late: &u64| Client { late: (*late).min(in_time), bytes, pause: 0 };
        let clients: Vec<Client> = each.iter().map(client).collect();
        let limits = Limits { bandwidth: Some(ByteSize::bytes(rate * 4096)), ..Limits::NONE };
        let begun = play(limits, &clients, SECOND);
        let had: Vec<u64> = (0..clients.len()).map(|client| count(&begun, client) * clients[client].bytes).collect();
        let share = had.iter().sum::<u64>() / clients.len() as u64;
        for seen in &had {
            prop_assert!(seen.abs_diff(share) <= share / 50 + 2 * 65536, "{:?}", had);
        }
    }

    #[test]
    fn nobody_waits_for_much_more_than_its_turn(clients in clients(), rate in 1u64..2000) {
        let begun = play(iops(rate), &clients, 20 * SECOND);
        // Each of the others may catch up, and then comes once, late as it may be.
        let most = clients.len() as u64 * (BEHIND + 2 * SECOND / rate + 40 * MILLI);
        for each in begun {
            prop_assert!(each.waited <= most, "{:?} with {:?}", each, most);
        }
    }

    #[test]
    fn no_numbers_make_it_panic_or_forget_who_waits(
        steps in proptest::collection::vec((0u8..5, 0usize..3, any::<u64>(), any::<u64>(), any::<Option<u64>>()), 1..60),
    ) {
        let mut throttle = Throttle::default();
        let mut members: Vec<(Member, bool)> = (0..3).map(|_| (throttle.join(), false)).collect();
        for (step, who, now, bytes, rate) in steps {
            let (member, waits) = &mut members[who];
            match (step, *waits) {
                (0 | 1, false) => *waits = throttle.ask(member, bytes, now) != Verdict::Go,
                (0 | 1, true) => *waits = throttle.ask_again(member, now) != Verdict::Go,
                (2, _) => {
                    throttle.withdraw(member);
                    *waits = false;
                }
                _ => {
                    let burst_ms = Some(now);
                    throttle.set(&Limits { iops: rate, bandwidth: Some(ByteSize::bytes(bytes)), burst_ms }, now);
                }
            }
            prop_assert_eq!(throttle.queue().count(), members.iter().filter(|(_, waits)| *waits).count());
        }
    }
}

#[test]
fn a_client_with_one_request_at_a_time_gets_its_share_beside_one_with_many() {
    for (rate, late) in [(1000, 0), (1000, 100 * MICRO), (50_000, 100 * MICRO), (50_000, 500 * MICRO)] {
        let shallow = Client { pause: 100 * MICRO, late, ..DEEP };
        let deep = Client { late, ..DEEP };
        let alone = count(&play(iops(rate), &[shallow], 2 * SECOND), 0);
        let begun = play(iops(rate), &[deep, shallow], 2 * SECOND);
        let (hog, seen) = (count(&begun, 0), count(&begun, 1));
        let share = alone.min(rate);
        assert!(seen * 10 >= share * 9, "{seen} of {share} at {rate}/s, {late} ns late");
        assert!((hog + seen).abs_diff(2 * rate) <= rate / 10 + rate / 25, "{hog} and {seen} at {rate}/s");
    }
}

#[test]
fn what_was_saved_up_while_idle_is_there_at_once_and_no_more_than_that() {
    let mut throttle = Throttle::default();
    throttle.set(&Limits { burst_ms: Some(2000), ..iops(100) }, 0);
    let mut member = throttle.join();
    let mut at_once = |throttle: &mut Throttle, now| {
        let begun = (0..1000).take_while(|_| throttle.ask(&mut member, 1, now) == Verdict::Go).count();
        throttle.withdraw(&member);
        begun
    };
    assert_eq!(at_once(&mut throttle, SECOND), 201, "two seconds' worth and the one that makes a debt of it");
    assert_eq!(at_once(&mut throttle, SECOND), 0);
    assert_eq!(at_once(&mut throttle, 2 * SECOND), 100);
    assert_eq!(at_once(&mut throttle, 1000 * SECOND), 201, "however long it was idle");
}

#[test]
fn a_request_larger_than_the_burst_goes_and_is_paid_for_afterwards() {
    let mut throttle = Throttle::default();
    throttle.set(&Limits { bandwidth: Some(ByteSize::mib(1)), ..Limits::NONE }, 0);
    let mut member = throttle.join();
    assert_eq!(throttle.ask(&mut member, 32 << 20, 0), Verdict::Go);
    let Verdict::Wait(until) = throttle.ask(&mut member, 1, 0) else { panic!("nothing is owed") };
    assert_eq!(until, 32 * SECOND - 100 * MILLI);
    assert_eq!(throttle.ask_again(&mut member, until - 1), Verdict::Wait(until));
    assert_eq!(throttle.ask_again(&mut member, until), Verdict::Go);
}

#[test]
fn a_raised_limit_shortens_every_wait_and_a_lowered_one_makes_no_debt_longer() {
    let mut throttle = Throttle::default();
    throttle.set(&iops(10), 0);
    let mut members: Vec<Member> = (0..3).map(|_| throttle.join()).collect();
    let verdicts = members.iter_mut().map(|member| {
        loop {
            if let Verdict::Wait(until) = throttle.ask(member, 1, 0) {
                break until;
            }
        }
    });
    // Two of the first go at once, a tenth of a second each. The others have had less and come before its third.
    assert_eq!(verdicts.collect::<Vec<_>>(), [100 * MILLI, 100 * MILLI, 200 * MILLI]);
    assert_eq!(throttle.ask_again(&mut members[0], 0), Verdict::Wait(300 * MILLI));
    throttle.set(&iops(1000), 0);
    assert_eq!(throttle.ask_again(&mut members[0], 0), Verdict::Wait(MILLI), "those who had less come first");
    for member in members.iter_mut().rev() {
        assert_eq!(throttle.ask_again(member, 0), Verdict::Go);
    }
    throttle.set(&iops(10), 0);
    let [first, ..] = &mut members[..] else { panic!("nobody") };
    assert!(matches!(throttle.ask(first, 1, 0), Verdict::Go));
    throttle.set(&iops(1), 0);
    assert_eq!(throttle.ask(first, 1, 0), Verdict::Wait(5 * MILLI), "105 ms are owed, and may be paid as before");
    throttle.set(&Limits::NONE, 0);
    assert_eq!(throttle.ask_again(first, 0), Verdict::Go);
    assert_eq!(throttle.ask(first, u64::MAX, 0), Verdict::Go);
}

#[test]
fn who_leaves_the_queue_leaves_its_place_to_those_behind() {
    let mut throttle = Throttle::default();
    throttle.set(&iops(10), 0);
    let mut members: Vec<Member> = (0..3).map(|_| throttle.join()).collect();
    for member in &mut members {
        while throttle.ask(member, 1, 0) == Verdict::Go {}
    }
    assert!(throttle.withdraw(&members[0]));
    assert_eq!(throttle.ask_again(&mut members[1], 0), Verdict::Wait(100 * MILLI));
    assert!(throttle.withdraw(&members[2]) && !throttle.withdraw(&members[1]), "nobody is left to be called");
    assert_eq!(throttle.ask_again(&mut members[0], 0), Verdict::Go, "who waits for nothing may go");
}
