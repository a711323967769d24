//! Seats for connections: a bounded number of each kind, shared fairly, so that who comes in thousands only crowds out
//! himself.
//!
//! Whoever comes gets a seat. Where none is free, the holder with most seats loses the one it has had longest: honest
//! peers hold few, and pass through the crowded kinds of seats quickly.

use crate::pki::Presented;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// On whose account a seat is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// Trusted peers of this host, all together.
    Local,
    Bearer(Uuid),
    /// An IPv4 address, or the 64 bits of an IPv6 address that name a network: who has one address there has them all.
    Source(u64),
}

impl Holder {
    pub fn source(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Source(u32::from(address).into()),
            IpAddr::V6(address) => Self::Source((u128::from(address) >> 64) as u64 | 1 << 63),
        }
    }
}

/// Which seat is whose; pure.
#[derive(Debug)]
struct Plan<T> {
    /// Seats altogether, and of any one holder that is not [`Holder::Local`].
    limit: usize,
    each: usize,
    next: u64,
    count: usize,
    holders: BTreeMap<Holder, BTreeMap<u64, T>>,
}

impl<T> Plan<T> {
    fn new(limit: usize, each: usize) -> Self {
        Self { limit, each, next: 0, count: 0, holders: BTreeMap::new() }
    }

    /// Takes a seat; its number, and whoever had to give up another for it.
    fn take(&mut self, holder: Holder, who: T) -> (u64, Option<T>) {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let own = self.holders.entry(holder).or_default();
        own.insert(number, who);
        self.count += 1;
        let greedy = holder != Holder::Local && own.len() > self.each;
        let loser = match greedy {
            true => Some(holder),
            false if self.count > self.limit => self.richest(),
            false => None,
        };
        (number, loser.and_then(|holder| self.evict(holder)))
    }

    /// The holder with most seats; of several, the one whose oldest seat is the oldest.
    fn richest(&self) -> Option<Holder> {
        let oldest = |seats: &BTreeMap<u64, T>| seats.keys().next().copied();
        self.holders.iter().max_by_key(|(_, seats)| (seats.len(), Reverse(oldest(seats)))).map(|(holder, _)| *holder)
    }

    fn evict(&mut self, holder: Holder) -> Option<T> {
        let oldest = *self.holders.get(&holder)?.keys().next()?;
        self.give_back(holder, oldest)
    }

    fn give_back(&mut self, holder: Holder, number: u64) -> Option<T> {
        let seats = self.holders.get_mut(&holder)?;
        let who = seats.remove(&number)?;
        self.count -= 1;
        if seats.is_empty() {
            self.holders.remove(&holder);
        }
        Some(who)
    }
}

/// Seats of one kind. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Seats(Arc<Mutex<Plan<Sitter>>>);

#[derive(Debug)]
struct Sitter {
    evicted: CancellationToken,
    presented: Option<Presented>,
}

impl Seats {
    /// `limit` seats altogether, `each` at most for one holder.
    pub fn new(limit: usize, each: usize) -> Self {
        Self(Arc::new(Mutex::new(Plan::new(limit, each))))
    }

    pub fn take(&self, holder: Holder, presented: Option<Presented>) -> Seat {
        let evicted = CancellationToken::new();
        let (number, loser) = self.lock().take(holder, Sitter { evicted: evicted.clone(), presented });
        if let Some(loser) = loser {
            loser.evicted.cancel();
        }
        Seat { seats: self.clone(), holder, number, evicted }
    }

    /// Evicts those whose certificates are worth nothing any more.
    pub fn sweep(&self, is_dismissed: impl Fn(&Presented) -> bool) {
        let plan = self.lock();
        let sitters = plan.holders.values().flat_map(BTreeMap::values);
        for sitter in sitters.filter(|sitter| sitter.presented.as_ref().is_some_and(&is_dismissed)) {
            sitter.evicted.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Plan<Sitter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A taken seat, given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    holder: Holder,
    number: u64,
    evicted: CancellationToken,
}

impl Seat {
    /// Cancelled when the seat is wanted back.
    pub fn evicted(&self) -> &CancellationToken {
        &self.evicted
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Who was evicted holds nothing any more.
        drop(self.seats.lock().give_back(self.holder, self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(number: u8) -> Holder {
        Holder::source(IpAddr::from([10, 0, 0, number]))
    }

    #[test]
    fn who_comes_in_thousands_crowds_out_himself_only() {
        let mut plan = Plan::new(10, 100);
        for honest in 1..=3 {
            assert_eq!(plan.take(source(honest), "honest").1, None);
        }
        let lost: Vec<_> = (0..5000).filter_map(|_| plan.take(source(99), "greedy").1).collect();
        assert_eq!(lost.len(), 5000 - 7);
        assert!(lost.iter().all(|who| *who == "greedy"));
        assert_eq!(plan.take(source(4), "late").1, Some("greedy"), "there is room for one who comes late");
    }

    #[test]
    fn of_many_with_one_seat_each_the_oldest_gives_way_and_never_the_newcomer() {
        let mut plan = Plan::new(3, 100);
        for number in 0..100u8 {
            let lost = plan.take(source(number), number).1;
            assert_eq!(lost, number.checked_sub(3));
        }
    }

    #[test]
    fn nobody_holds_more_than_its_share_but_this_host() {
        let mut plan = Plan::new(100, 2);
        let bearer = Holder::Bearer(Uuid::from_u128(1));
        assert_eq!([1, 2, 3].map(|seat| plan.take(bearer, seat).1), [None, None, Some(1)]);
        assert!((0..50).all(|seat| plan.take(Holder::Local, seat).1.is_none()));
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_source() {
        let of = |text: &str| Holder::source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("::1"), of("0.0.0.0"));
    }

    #[test]
    fn a_seat_is_free_again_when_its_holder_goes() {
        let seats = Seats::new(1, 1);
        let first = seats.take(source(1), None);
        drop(first);
        let second = seats.take(source(2), None);
        assert!(!second.evicted().is_cancelled());
        let third = seats.take(source(3), None);
        assert!(second.evicted().is_cancelled() && !third.evicted().is_cancelled());
        drop(second);
        assert_eq!(seats.lock().count, 1);
    }

    proptest! {
        #[test]
        fn the_count_is_right_and_bounded_whatever_happens(steps in prop::collection::vec((0u8..5, any::<bool>()), 0..200)) {
            let mut plan = Plan::new(6, 4);
            let mut held: Vec<(Holder, u64)> = Vec::new();
            for (number, comes) in steps {
                let holder = source(number);
                match held.iter().position(|(other, _)| *other == holder) {
                    Some(at) if !comes => {
                        let (holder, seat) = held.remove(at);
                        prop_assert_eq!(plan.give_back(holder, seat), Some(seat));
                        prop_assert_eq!(plan.give_back(holder, seat), None);
                    }
                    _ => {
                        let next = plan.next;
                        let (seat, lost) = plan.take(holder, next);
                        held.push((holder, seat));
                        prop_assert_ne!(lost, Some(seat));
                        held.retain(|(_, seat)| Some(*seat) != lost);
                    }
                }
                let held_by = |wanted: Holder| held.iter().filter(|(holder, _)| *holder == wanted).count();
                prop_assert_eq!(plan.count, held.len());
                prop_assert!(plan.count <= 6 && held.iter().all(|(holder, _)| held_by(*holder) <= 4));
            }
        }
    }
}
