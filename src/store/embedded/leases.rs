//! The running time of leases: pure, time is an argument. What a lease is attached to lives in the file, not here.

use crate::store::LeaseId;
use std::{collections::HashMap, time::Duration};

#[derive(Clone, Copy, Debug)]
struct Term {
    ttl: Duration,
    deadline: Duration,
}

/// Which leases run, and until when on the store's clock. A lease ends when [`Self::take_due`] hands it out, not by
/// the mere passing of time: until then it may still be kept alive.
#[derive(Debug, Default)]
pub(super) struct Leases {
    running: HashMap<LeaseId, Term>,
}

impl Leases {
    pub fn begin(&mut self, id: LeaseId, ttl: Duration, now: Duration) {
        self.running.insert(id, Term { ttl, deadline: now.saturating_add(ttl) });
    }

    /// Starts the lease's time anew; says whether there is such a lease.
    pub fn keep_alive(&mut self, id: LeaseId, now: Duration) -> bool {
        match self.running.get_mut(&id) {
            Some(term) => {
                term.deadline = now.saturating_add(term.ttl);
                true
            }
            None => false,
        }
    }

    pub fn end(&mut self, id: LeaseId) {
        self.running.remove(&id);
    }

    /// The leases whose time is over; they are not kept here any longer.
    pub fn take_due(&mut self, now: Duration) -> Vec<LeaseId> {
        let due: Vec<_> = self.running.iter().filter(|(_, term)| term.deadline <= now).map(|(id, _)| *id).collect();
        for id in &due {
            self.running.remove(id);
        }
        due
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        self.running.values().map(|term| term.deadline).min()
    }

    /// Exactly `leases` run, each with its whole time ahead.
    pub fn restart(&mut self, leases: impl IntoIterator<Item = (LeaseId, Duration)>, now: Duration) {
        self.running.clear();
        for (id, ttl) in leases {
            self.begin(id, ttl, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_runs_its_time_from_the_last_sign_of_life() {
        let (mut leases, id) = (Leases::default(), LeaseId(1));
        leases.begin(id, s(4), s(10));
        assert_eq!(leases.next_deadline(), Some(s(14)));
        assert!(leases.keep_alive(id, s(13)));
        assert!(leases.take_due(s(16)).is_empty());
        assert_eq!(leases.take_due(s(17)), [id]);
        assert!(!leases.keep_alive(id, s(17)));
        assert_eq!(leases.next_deadline(), None);
    }

    #[test]
    fn a_restart_gives_every_lease_its_whole_time() {
        let mut leases = Leases::default();
        leases.begin(LeaseId(1), s(4), s(0));
        leases.restart([(LeaseId(2), s(3)), (LeaseId(3), Duration::MAX)], s(100));
        assert!(!leases.keep_alive(LeaseId(1), s(100)));
        assert_eq!(leases.next_deadline(), Some(s(103)));
    }
}
