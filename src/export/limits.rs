//! When a request may be begun, so that an export's limits hold: the rules, without clock, lock or thread.
//!
//! A limit is a debt that is paid off at a steady rate (the "virtual scheduling" form of the generic cell rate algorithm,
//! ITU-T I.371 annex A). Each request that is begun adds what it costs. The next one may begin when no more is owed than
//! what may be saved up, [`Limits::burst`], at which point an export that was idle starts: so the sum over any time is
//! the rate times that time and the burst, and one request at most, whatever the sizes of requests are.
//!
//! Who has to wait stands in a queue, each connection once, before those who have had more (start-time fair queueing).
//! Nobody is promised more than a time when to ask again: whoever comes then may begin, with the costs of those before it
//! set aside. So connections that always want more of the same size get the same share of the limit each, however many
//! requests each has in flight; and one that wants less than its share hardly waits. Where sizes differ widely, those
//! with small requests come too late for some of their share, and the others get it. Threads wake late, though, and the first to do so could take what the others have not come for. Hence
//! nobody gets far ahead of one who is due, for as long as that may just be late.
//!
//! Times are nanoseconds since whenever the owner likes. They never go back; one that does counts as the latest.

use crate::model::{ByteSize, Limits};
use std::num::NonZeroU64;

const SECOND: u64 = 1_000_000_000;

/// How far somebody may get ahead of others who are due, as time that requests cost.
const AHEAD: u64 = 4_000_000;

/// How long the others wait for somebody who is due.
const GRACE: u64 = 1_000_000;

/// How far who did not come for a while may be behind the one that had most, as time that requests cost.
const BEHIND: u64 = 100_000_000;

/// One connection's place among the others.
#[derive(Debug)]
pub(super) struct Member {
    number: u64,
    /// What its requests have cost, as time.
    had: u64,
}

impl Member {
    pub(super) fn number(&self) -> u64 {
        self.number
    }
}

/// Whether a request may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Go,
    /// Ask again then, at the earliest.
    Wait(u64),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    operations: Debt,
    bytes: Debt,
    burst: u64,
    /// In the order of asking.
    queue: Vec<Waiting>,
    members: u64,
    /// The most that anybody had.
    most: u64,
    latest: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    bytes: u64,
    /// By its connection, when it asked.
    had: u64,
    /// When it was told to ask again.
    due: u64,
}

/// What has been used and is being paid off.
#[derive(Debug, Default)]
struct Debt {
    /// Units a second; absent: nothing is owed for them.
    rate: Option<NonZeroU64>,
    /// When it will have been paid off.
    until: u64,
    /// What was too little for a nanosecond, in units times a second.
    rest: u64,
}

impl Throttle {
    /// Somebody comes, as if it had had as much as the one that had most.
    pub(super) fn join(&mut self) -> Member {
        self.members += 1;
        Member { number: self.members, had: self.most }
    }

    /// Whether one operation that moves so many bytes may begin. If not, its connection is in the queue, and must call
    /// [`Self::ask_again`] or [`Self::withdraw`] before it asks for another one.
    pub(super) fn ask(&mut self, member: &mut Member, bytes: u64, now: u64) -> Verdict {
        let now = self.at(now);
        member.had = member.had.max(self.most.saturating_sub(BEHIND));
        let due = self.due(self.queue.len(), member.had, now);
        if due <= now {
            self.begin(member, bytes, now);
            return Verdict::Go;
        }
        self.queue.push(Waiting { number: member.number, bytes, had: member.had, due });
        Verdict::Wait(due)
    }

    /// Whether what was asked for may begin now.
    pub(super) fn ask_again(&mut self, member: &mut Member, now: u64) -> Verdict {
        let now = self.at(now);
        let Some(place) = self.place(member) else { return Verdict::Go };
        let due = self.due(place, member.had, now);
        if due > now {
            if let Some(waiting) = self.queue.get_mut(place) {
                waiting.due = due;
            }
            return Verdict::Wait(due);
        }
        let Waiting { bytes, .. } = self.queue.remove(place);
        self.begin(member, bytes, now);
        Verdict::Go
    }

    /// What was asked for is not wanted any more. Says whether somebody's turn may come earlier for it.
    pub(super) fn withdraw(&mut self, member: &Member) -> bool {
        self.place(member).is_some_and(|place| {
            self.queue.remove(place);
            !self.queue.is_empty()
        })
    }

    /// Other limits from now on. What was used before is paid off no slower than it was going to be. Whoever waits is to be
    /// called at once.
    pub(super) fn set(&mut self, limits: &Limits, now: u64) {
        let now = self.at(now);
        self.operations.set_rate(limits.iops, now);
        self.bytes.set_rate(limits.bandwidth.map(ByteSize::as_u64), now);
        self.burst = u64::try_from(limits.burst().as_nanos()).unwrap_or(u64::MAX);
        // What they were told holds no more: nobody is polite to them for longer than it takes them to come.
        self.queue.iter_mut().for_each(|waiting| waiting.due = now);
    }

    /// The numbers of those who wait, in order.
    pub(super) fn queue(&self) -> impl Iterator<Item = u64> {
        self.queue.iter().map(|waiting| waiting.number)
    }

    fn at(&mut self, now: u64) -> u64 {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn place(&self, member: &Member) -> Option<usize> {
        self.queue.iter().position(|waiting| waiting.number == member.number)
    }

    /// When somebody may begin who is, or would be, at this place and has had so much.
    fn due(&self, place: usize, had: u64, now: u64) -> u64 {
        let (mut count, mut bytes, mut polite) = (0, 0u64, 0);
        for (other, waiting) in self.queue.iter().enumerate() {
            if waiting.had < had || waiting.had == had && other < place {
                count += 1;
                bytes = bytes.saturating_add(waiting.bytes);
                let patience = waiting.due.saturating_add(GRACE);
                if waiting.had.saturating_add(AHEAD) < had && patience > now {
                    polite = polite.max(patience);
                }
            }
        }
        let owed = self.operations.after(count, now).max(self.bytes.after(bytes, now));
        owed.saturating_sub(self.burst).max(polite)
    }

    fn begin(&mut self, member: &mut Member, bytes: u64, now: u64) {
        let cost = self.operations.add(1, now).max(self.bytes.add(bytes, now));
        member.had = member.had.saturating_add(cost);
        self.most = self.most.max(member.had);
    }
}

impl Debt {
    fn set_rate(&mut self, rate: Option<u64>, now: u64) {
        let rate = rate.and_then(NonZeroU64::new);
        match (self.rate, rate) {
            (old, new) if old == new => return,
            (Some(old), Some(new)) if new > old => {
                let owed = u128::from(self.until.saturating_sub(now)) * u128::from(old.get()) / u128::from(new.get());
                self.until = self.until.min(now.saturating_add(u64::try_from(owed).unwrap_or(u64::MAX)));
            }
            (Some(_), Some(_)) => {}
            (None, _) | (_, None) => self.until = now,
        }
        (self.rate, self.rest) = (rate, 0);
    }

    /// When all would be paid off with so many units more; 0 if they are free.
    fn after(&self, units: u64, now: u64) -> u64 {
        self.rate.map_or(0, |rate| {
            let (start, time, _) = self.cost(units, rate, now);
            start.saturating_add(time)
        })
    }

    /// Owes so many units more; what they cost, as time.
    fn add(&mut self, units: u64, now: u64) -> u64 {
        let Some(rate) = self.rate else { return 0 };
        let (start, time, rest) = self.cost(units, rate, now);
        (self.until, self.rest) = (start.saturating_add(time), rest);
        time
    }

    /// From when on, and for how long, so many units would be paid off, and what would be left over.
    fn cost(&self, units: u64, rate: NonZeroU64, now: u64) -> (u64, u64, u64) {
        let (start, rest) = if self.until < now { (now, 0) } else { (self.until, self.rest) };
        let (rate, cost) = (u128::from(rate.get()), u128::from(units) * u128::from(SECOND) + u128::from(rest));
        let time = u64::try_from(cost / rate).unwrap_or(u64::MAX);
        // A remainder is less than the rate, which has 64 bits.
        (start, time, (cost % rate) as u64)
    }
}

#[cfg(test)]
mod tests;
