//! The store: one sequence of revisions that every manager sees a while later, and leases on a clock that only the
//! simulation moves. Never here: what the values mean.

use crate::store::{Batch, Commit, Compare, Entry, Event, Key, LeaseId, Listing, Op, Revision, Txn};
use std::collections::BTreeMap;

/// Milliseconds since the world began.
pub type Time = u64;

#[derive(Default)]
pub struct Store {
    pub entries: BTreeMap<Key, Entry>,
    /// Every commit so far; the first is revision 1.
    pub log: Vec<Batch>,
    leases: BTreeMap<LeaseId, (Time, Time)>,
    last_lease: i64,
    /// A planted bug: conditions are not looked at.
    blind: bool,
}

impl Store {
    pub fn new(blind: bool) -> Self {
        Self { blind, ..Self::default() }
    }

    pub fn revision(&self) -> Revision {
        Revision(self.log.len() as i64)
    }

    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub fn list(&self) -> Listing {
        Listing { entries: self.entries.values().cloned().collect(), revision: self.revision() }
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.entries.contains_key(key),
            Compare::Present(key) => self.entries.contains_key(key),
            Compare::Unchanged(key, revision) => self.entries.get(key).is_some_and(|it| it.revision == *revision),
        }
    }

    pub fn commit(&mut self, txn: Txn) -> Commit {
        let gone = |op: &Op| op.lease().is_some_and(|lease| !self.leases.contains_key(&lease));
        if txn.ops.iter().any(gone) || !self.blind && !txn.compares.iter().all(|compare| self.holds(compare)) {
            return Commit::Conflict;
        }
        let revision = Revision(self.log.len() as i64 + 1);
        let event = |op: Op| match op {
            Op::Put { key, value, lease } => Event::Put(Entry { key, value, revision, lease }),
            Op::Delete { key } => Event::Delete(key),
        };
        self.append(txn.ops.into_iter().map(event).collect());
        Commit::Done(revision)
    }

    fn append(&mut self, events: Vec<Event>) {
        for event in &events {
            match event {
                Event::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry.clone())),
                Event::Delete(key) => drop(self.entries.remove(key)),
            }
        }
        let revision = Revision(self.log.len() as i64 + 1);
        self.log.push(Batch { revision, events });
    }

    pub fn grant(&mut self, ttl: Time, now: Time) -> LeaseId {
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.leases.insert(lease, (now + ttl, ttl));
        lease
    }

    /// False if it ran out.
    pub fn keep_alive(&mut self, lease: LeaseId, now: Time) -> bool {
        match self.leases.get_mut(&lease) {
            Some((until, ttl)) => {
                *until = now + *ttl;
                true
            }
            None => false,
        }
    }

    /// Ends what has run out by now, with the keys that hung on it.
    pub fn expire(&mut self, now: Time) {
        let gone: Vec<LeaseId> = self.leases.iter().filter(|(_, (until, _))| *until < now).map(|(id, _)| *id).collect();
        for lease in gone {
            self.revoke(lease);
        }
    }

    pub fn revoke(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let held = self.entries.values().filter(|entry| entry.lease == Some(lease));
        let events: Vec<Event> = held.map(|entry| Event::Delete(entry.key.clone())).collect();
        if !events.is_empty() {
            self.append(events);
        }
    }

    pub fn leases(&self) -> usize {
        self.leases.len()
    }
}
