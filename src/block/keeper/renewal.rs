//! When a certificate is renewed. Pure: the times come from the caller, and nothing is done here.

use crate::model::Timestamp;
use crate::pki::renew_at;
use crate::runtime::Backoff;
use std::time::{Duration, Instant};

/// A certificate this young is not asked for again because a manager refuses it: another one would fare no better.
const YOUNG: Duration = Duration::from_secs(60);
/// The longest wait. A host that was suspended finds its clock moved on; nothing else tells.
pub const LOOK: Duration = Duration::from_secs(30);

/// What makes a renewal due before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no certificate.
    Lost,
    /// Another root signs now.
    OtherRoot,
    /// The host goes by a name or address that the certificate does not have.
    Names,
    /// A manager does not take the certificate.
    Refused,
}

/// From when until when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub not_before: Timestamp,
    pub expires_at: Timestamp,
}

/// The schedule of renewals.
#[derive(Debug)]
pub struct Renewal {
    /// Where between a half and four fifths of its life this certificate is renewed.
    random: f64,
    /// When this process was given the certificate; none for one that was found on disk.
    obtained: Option<Timestamp>,
    urgent: Option<Reason>,
    /// No attempt before this.
    rest_until: Option<Instant>,
    backoff: Backoff,
    visiting: bool,
    /// Whether names were a reason once: what the manager leaves out, it leaves out the next time, too.
    named: bool,
}

impl Renewal {
    /// `random` lies in `0.0..1.0`.
    pub fn new(random: f64) -> Self {
        Self {
            random,
            obtained: None,
            urgent: None,
            rest_until: None,
            backoff: Backoff::new(Duration::from_millis(500), LOOK),
            visiting: false,
            named: false,
        }
    }

    /// How long until the next attempt, [`LOOK`] at most: whoever has waited asks again. Zero: now.
    pub fn wait(&self, life: Option<Life>, wall: Timestamp, now: Instant) -> Duration {
        let due = match (life, self.urgent) {
            (Some(life), None) => wall.age(self.due(life)),
            (None, _) | (_, Some(_)) => Duration::ZERO,
        };
        let rest = self.rest_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        due.max(rest).min(LOOK)
    }

    /// Whether `wait` is over and not just cut short.
    pub fn is_due(&self, life: Option<Life>, wall: Timestamp, now: Instant) -> bool {
        self.wait(life, wall, now).is_zero()
    }

    /// A certificate is valid from some time before it was issued, for slow clocks; for a short life that is most of it,
    /// so the life of one that was seen to come counts from then.
    fn due(&self, life: Life) -> Timestamp {
        renew_at(self.obtained.unwrap_or(life.not_before), life.expires_at, self.random)
    }

    /// Why the next attempt is made; none if its time has simply come.
    pub fn reason(&self) -> Option<Reason> {
        self.urgent
    }

    /// Makes the renewal due, if the reason holds.
    pub fn ask(&mut self, reason: Reason, wall: Timestamp) {
        match reason {
            Reason::Names if self.named => return,
            Reason::Names => self.named = true,
            Reason::Refused if self.obtained.is_some_and(|obtained| obtained.age(wall) < YOUNG) => return,
            Reason::Refused => self.visiting = true,
            Reason::Lost | Reason::OtherRoot => {}
        }
        self.urgent = Some(reason);
    }

    /// Whether the next attempt is made without the certificate. After a failure every second one is, for the
    /// certificate itself may be what managers dislike.
    pub fn is_visiting(&self) -> bool {
        self.visiting
    }

    pub fn succeeded(&mut self, wall: Timestamp, random: f64) {
        self.random = random;
        self.obtained = Some(wall);
        self.urgent = None;
        self.rest_until = None;
        self.visiting = false;
        self.backoff.reset();
    }

    pub fn failed(&mut self, now: Instant, random: f64) {
        self.visiting = !self.visiting;
        self.rest_until = now.checked_add(self.backoff.next(random));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Clock, ManualClock};

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const SKEW: Duration = Duration::from_secs(300);

    fn life(clock: &ManualClock, lasts: Duration) -> Life {
        let now = clock.wall().as_millis();
        let millis = |duration: Duration| duration.as_millis() as u64;
        Life {
            not_before: Timestamp::from_millis(now - millis(SKEW)),
            expires_at: Timestamp::from_millis(now + millis(lasts)),
        }
    }

    /// How long it takes until the renewal is due, by the clock.
    fn runs_for(renewal: &Renewal, life: Option<Life>, clock: &ManualClock) -> Duration {
        let mut waited = Duration::ZERO;
        while !renewal.is_due(life, clock.wall(), clock.now()) {
            let wait = renewal.wait(life, clock.wall(), clock.now());
            assert!(!wait.is_zero() && wait <= LOOK);
            clock.advance(wait);
            waited += wait;
        }
        waited
    }

    #[test]
    fn a_renewal_comes_between_half_and_four_fifths_of_the_life() {
        for (random, from, to) in [(0.0, 14, 16), (1.0, 23, 25)] {
            let clock = ManualClock::new();
            let life = life(&clock, 30 * DAY);
            let waited = runs_for(&Renewal::new(random), Some(life), &clock);
            assert!(waited > from * DAY && waited < to * DAY, "{random}: {waited:?}");
        }
    }

    #[test]
    fn the_shortest_life_is_not_renewed_all_the_time() {
        let clock = ManualClock::new();
        let life = life(&clock, Duration::from_secs(60));
        let mut renewal = Renewal::new(0.5);
        renewal.succeeded(clock.wall(), 0.0);
        assert_eq!(runs_for(&renewal, Some(life), &clock), Duration::from_secs(30));
    }

    #[test]
    fn a_host_that_slept_past_the_end_renews_at_once() {
        let clock = ManualClock::new();
        let life = life(&clock, DAY);
        let renewal = Renewal::new(0.5);
        assert!(!renewal.is_due(Some(life), clock.wall(), clock.now()));
        clock.advance(90 * DAY);
        assert!(renewal.is_due(Some(life), clock.wall(), clock.now()));
    }

    #[test]
    fn failures_are_retried_ever_more_slowly_and_every_second_time_without_the_certificate() {
        let clock = ManualClock::new();
        let mut renewal = Renewal::new(0.5);
        renewal.ask(Reason::OtherRoot, clock.wall());
        let life = Some(life(&clock, DAY));
        let mut waits = Vec::new();
        for attempt in 0..9 {
            waits.push(runs_for(&renewal, life, &clock));
            assert_eq!(renewal.is_visiting(), attempt % 2 == 1);
            renewal.failed(clock.now(), 1.0);
        }
        assert_eq!(waits[..3], [0, 500, 1000].map(Duration::from_millis));
        assert_eq!(*waits.last().unwrap(), LOOK);
        renewal.succeeded(clock.wall(), 0.5);
        assert!(!renewal.is_visiting() && !renewal.is_due(life, clock.wall(), clock.now()));
    }

    #[test]
    fn a_lost_certificate_is_asked_for_at_once() {
        let clock = ManualClock::new();
        assert!(Renewal::new(0.5).is_due(None, clock.wall(), clock.now()));
    }

    #[test]
    fn reasons_that_another_certificate_would_not_mend_do_not_ask_for_one_again() {
        let clock = ManualClock::new();
        let life = Some(life(&clock, DAY));
        let mut renewal = Renewal::new(0.5);
        for reason in [Reason::Names, Reason::Refused] {
            renewal.ask(reason, clock.wall());
            assert!(renewal.is_due(life, clock.wall(), clock.now()), "{reason:?}");
            renewal.succeeded(clock.wall(), 0.5);
            renewal.ask(reason, clock.wall());
            assert!(!renewal.is_due(life, clock.wall(), clock.now()), "{reason:?}");
            clock.advance(YOUNG);
        }
        renewal.ask(Reason::Refused, clock.wall());
        assert!(renewal.is_due(life, clock.wall(), clock.now()) && renewal.is_visiting());
    }
}
