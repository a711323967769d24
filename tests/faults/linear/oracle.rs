//! The checker against histories that are known, and against trying every order there is.

use super::{Model, Operation, explain};
use proptest::prelude::*;

/// A number that is read and written, and changed if it is what somebody thinks.
struct Register;

#[derive(Clone, Copy, Debug)]
enum Call {
    Read,
    Write(u8),
    /// From what to what.
    Exchange(u8, u8),
}

type Entry = Operation<Call, u8>;

impl Model for Register {
    type State = u8;
    type Call = Call;
    /// What was read; of an exchange, whether it was made.
    type Answer = u8;

    fn initial() -> u8 {
        0
    }

    fn is_question(call: &Call) -> bool {
        matches!(call, Call::Read)
    }

    fn step(state: &u8, call: &Call, answer: Option<&u8>) -> Option<u8> {
        match (*call, answer) {
            (Call::Read, Some(seen)) => (seen == state).then_some(*state),
            (Call::Read, None) => Some(*state),
            (Call::Write(value), _) => Some(value),
            (Call::Exchange(from, to), made) => {
                let fits = from == *state;
                let after = if fits { to } else { *state };
                made.is_none_or(|made| (*made == 1) == fits).then_some(after)
            }
        }
    }
}

fn known(began: u64, ended: u64, call: Call, answer: u8) -> Entry {
    Operation { began, call, ended: Some((ended, answer)) }
}

fn lost(began: u64, call: Call) -> Entry {
    Operation { began, call, ended: None }
}

fn is_explained(history: &[Entry]) -> bool {
    explain::<Register>(history).is_ok()
}

#[test]
fn nothing_explains_itself() {
    assert!(is_explained(&[]));
    assert!(is_explained(&[lost(1, Call::Write(1))]));
}

#[test]
fn a_read_after_a_write_sees_it_and_one_beside_it_may() {
    assert!(is_explained(&[known(1, 2, Call::Write(1), 0), known(3, 4, Call::Read, 1)]));
    assert!(!is_explained(&[known(1, 2, Call::Write(1), 0), known(3, 4, Call::Read, 0)]));
    for seen in [0, 1] {
        assert!(is_explained(&[known(1, 4, Call::Write(1), 0), known(2, 3, Call::Read, seen)]));
    }
}

#[test]
fn two_readers_do_not_see_two_writes_in_two_orders() {
    let writes = [known(1, 10, Call::Write(1), 0), known(1, 10, Call::Write(2), 0)];
    let reads = |first: u8, second: u8| {
        let mut history = writes.to_vec();
        history.extend([known(2, 3, Call::Read, first), known(4, 5, Call::Read, second)]);
        history
    };
    assert!(is_explained(&reads(1, 2)) && is_explained(&reads(2, 1)) && is_explained(&reads(0, 2)));
    assert!(!is_explained(&reads(1, 0)), "what was seen is not unseen");
}

#[test]
fn a_lost_write_happens_late_or_never_but_not_early() {
    let late = [lost(1, Call::Write(1)), known(2, 3, Call::Read, 0), known(4, 5, Call::Read, 1)];
    assert!(is_explained(&late));
    assert!(is_explained(&late[..2]));
    let early = [known(1, 2, Call::Read, 1), lost(3, Call::Write(1))];
    assert!(!is_explained(&early));
}

#[test]
fn a_lost_exchange_happens_once_and_no_more() {
    let twice = [
        lost(1, Call::Exchange(0, 1)),
        known(2, 3, Call::Read, 1),
        known(4, 5, Call::Write(0), 0),
        known(6, 7, Call::Read, 1),
    ];
    assert!(!is_explained(&twice));
    assert!(is_explained(&twice[..3]));
}

#[test]
fn what_could_be_explained_is_told_when_the_rest_cannot() {
    let history = [known(1, 2, Call::Write(7), 0), known(3, 4, Call::Read, 7), known(5, 6, Call::Read, 8)];
    let stuck = explain::<Register>(&history).unwrap_err();
    assert_eq!((stuck.explained, stuck.stuck_in.as_str()), (vec![0, 1], "7"));
}

/// Every order of every choice of the lost ones.
fn is_explained_by_force(history: &[Entry], done: u32, state: u8) -> bool {
    let open = || (0..history.len()).filter(move |place| done & (1 << place) == 0);
    if open().all(|place| history[place].ended.is_none()) {
        return true;
    }
    open().any(|place| {
        let it = &history[place];
        let comes_after = |other: usize| other != place && history[other].end() <= it.began;
        let after = Register::step(&state, &it.call, it.ended.as_ref().map(|(_, answer)| answer));
        let free = !open().any(comes_after);
        free && after.is_some_and(|after| is_explained_by_force(history, done | 1 << place, after))
    })
}

fn some_call() -> impl Strategy<Value = Call> {
    prop_oneof![
        Just(Call::Read),
        (1..3u8).prop_map(Call::Write),
        (0..3u8, 0..3u8).prop_map(|(from, to)| Call::Exchange(from, to)),
    ]
}

prop_compose! {
    fn some_entry()(began in 0..12u64, length in 1..8u64, call in some_call(), answer in 0..3u8, lost in 0..4u8) -> Entry {
        let answer = if matches!(call, Call::Exchange(..)) { answer % 2 } else { answer };
        Operation { began, call, ended: (lost > 0).then_some((began + length, answer)) }
    }
}

proptest! {
    #[test]
    fn it_agrees_with_trying_every_order(history in proptest::collection::vec(some_entry(), 0..7)) {
        prop_assert_eq!(is_explained(&history), is_explained_by_force(&history, 0, 0));
    }

    #[test]
    fn the_order_it_gives_is_legal(history in proptest::collection::vec(some_entry(), 0..7)) {
        if let Ok(order) = explain::<Register>(&history) {
            let mut state = Register::initial();
            for (number, place) in order.iter().enumerate() {
                let it = &history[*place];
                prop_assert!(order[number + 1..].iter().all(|later| history[*later].end() > it.began));
                let after = Register::step(&state, &it.call, it.ended.as_ref().map(|(_, answer)| answer));
                state = after.expect("a legal step");
            }
        }
    }
}
