//! What is in the file, and what one transaction does to it.
//!
//! ```text
//!   entries   key               → (revision, lease or 0, value)
//!   leases    lease             → time to live in seconds
//!   attached  (lease, key)      → ()           which keys go with a lease
//!   meta      "format"          → 1
//!             "revision"        → the store's
//! ```

use crate::store::{Batch, Commit, Compare, Entry, Event, Key, LeaseId, Op, Revision, StoreError, Txn};
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};
use std::time::Duration;

const ENTRIES: TableDefinition<&str, (i64, i64, &[u8])> = TableDefinition::new("entries");
const LEASES: TableDefinition<i64, u32> = TableDefinition::new("leases");
const ATTACHED: TableDefinition<(i64, &str), ()> = TableDefinition::new("attached");
const META: TableDefinition<&str, i64> = TableDefinition::new("meta");

const FORMAT: i64 = 1;
const FIRST_REVISION: Revision = Revision(1);

type Result<T> = std::result::Result<T, redb::Error>;

fn lease_of(number: i64) -> Option<LeaseId> {
    (number != 0).then_some(LeaseId(number))
}

/// Makes the tables of an empty store.
pub(super) fn format(write: &WriteTransaction) -> Result<()> {
    let mut draft = Draft::open(write, FIRST_REVISION)?;
    draft.meta.insert("format", FORMAT)?;
    draft.finish()?;
    Ok(())
}

/// The store's revision; an error tells what is wrong with the file's contents.
pub(super) fn revision(read: &ReadTransaction) -> Result<Revision> {
    let meta = read.open_table(META)?;
    let number = |name: &str| {
        let value = meta.get(name)?.map(|guard| guard.value());
        value.ok_or_else(|| redb::Error::Corrupted(format!("it has no {name}")))
    };
    match number("format")? {
        FORMAT => Ok(Revision(number("revision")?)),
        other => Err(redb::Error::Corrupted(format!("its format is {other}, and this program knows {FORMAT}"))),
    }
}

pub(super) fn leases(read: &ReadTransaction) -> Result<Vec<(LeaseId, Duration)>> {
    let table = read.open_table(LEASES)?;
    let lease = |row: std::result::Result<(redb::AccessGuard<i64>, redb::AccessGuard<u32>), _>| {
        let (id, ttl) = row?;
        Ok((LeaseId(id.value()), Duration::from_secs(ttl.value().into())))
    };
    table.iter()?.map(lease).collect()
}

pub(super) fn get(read: &ReadTransaction, key: &Key) -> Result<Option<Entry>> {
    let entries = read.open_table(ENTRIES)?;
    Ok(entries.get(key.as_str())?.map(|guard| entry(key.as_str(), guard.value())))
}

/// What `prefix` covers, in key order.
pub(super) fn list(read: &ReadTransaction, prefix: &Key) -> Result<Vec<Entry>> {
    if !prefix.is_prefix() {
        return Ok(get(read, prefix)?.into_iter().collect());
    }
    let mut found = Vec::new();
    for row in read.open_table(ENTRIES)?.range(prefix.as_str()..)? {
        let (key, value) = row?;
        if !key.value().starts_with(prefix.as_str()) {
            break;
        }
        found.push(entry(key.value(), value.value()));
    }
    Ok(found)
}

fn entry(key: &str, (revision, lease, value): (i64, i64, &[u8])) -> Entry {
    Entry { key: Key::raw(key), value: value.to_vec(), revision: Revision(revision), lease: lease_of(lease) }
}

/// The tables of a write transaction in the making: several transactions of the store, one after the other.
pub(super) struct Draft<'t> {
    entries: Table<'t, &'static str, (i64, i64, &'static [u8])>,
    leases: Table<'t, i64, u32>,
    attached: Table<'t, (i64, &'static str), ()>,
    meta: Table<'t, &'static str, i64>,
    revision: Revision,
    batches: Vec<Batch>,
    /// Something was written, so that the whole must be made durable.
    changed: bool,
}

impl<'t> Draft<'t> {
    /// A draft on top of the store at `revision`.
    pub fn open(write: &'t WriteTransaction, revision: Revision) -> Result<Self> {
        Ok(Self {
            entries: write.open_table(ENTRIES)?,
            leases: write.open_table(LEASES)?,
            attached: write.open_table(ATTACHED)?,
            meta: write.open_table(META)?,
            revision,
            batches: Vec::new(),
            changed: false,
        })
    }

    /// Applies one transaction, or nothing of it; the inner error is the answer to its sender.
    pub fn commit(&mut self, txn: Txn) -> Result<std::result::Result<Commit, StoreError>> {
        for compare in &txn.compares {
            if !self.holds(compare)? {
                return Ok(Ok(Commit::Conflict));
            }
        }
        for lease in txn.ops.iter().filter_map(Op::lease) {
            if self.leases.get(lease.0)?.is_none() {
                return Ok(Err(StoreError::LeaseGone(lease)));
            }
        }
        let revision = Revision(self.revision.0.saturating_add(1));
        let mut events = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    let entry = Entry { key, value, revision, lease };
                    self.put(&entry)?;
                    events.push(Event::Put(entry));
                }
                Op::Delete { key } => {
                    if self.delete(&key)? {
                        events.push(Event::Delete(key));
                    }
                }
            }
        }
        self.conclude(revision, events);
        Ok(Ok(Commit::Done(self.revision)))
    }

    pub fn grant(&mut self, seconds: u32) -> Result<LeaseId> {
        loop {
            let id = fastrand::i64(1..);
            if self.leases.get(id)?.is_none() {
                self.leases.insert(id, seconds)?;
                self.changed = true;
                return Ok(LeaseId(id));
            }
        }
    }

    /// Ends a lease and deletes its keys; a lease that is gone already changes nothing.
    pub fn end_lease(&mut self, lease: LeaseId) -> Result<()> {
        if self.leases.remove(lease.0)?.is_none() {
            return Ok(());
        }
        self.changed = true;
        let mut keys = Vec::new();
        for row in self.attached.range((lease.0, "")..)? {
            let (id, key) = row.map(|(guard, _)| (guard.value().0, Key::raw(guard.value().1)))?;
            if id != lease.0 {
                break;
            }
            keys.push(key);
        }
        for key in &keys {
            self.delete(key)?;
        }
        let revision = Revision(self.revision.0.saturating_add(1));
        self.conclude(revision, keys.into_iter().map(Event::Delete).collect());
        Ok(())
    }

    /// What is to be published once the write transaction is durable; none if there is nothing to make durable.
    pub fn finish(mut self) -> Result<Option<Vec<Batch>>> {
        self.meta.insert("revision", self.revision.0)?;
        Ok(self.changed.then_some(self.batches))
    }

    fn holds(&self, compare: &Compare) -> Result<bool> {
        let written = self.entries.get(compare.key().as_str())?.map(|guard| guard.value().0);
        Ok(match compare {
            Compare::Absent(_) => written.is_none(),
            Compare::Present(_) => written.is_some(),
            // As in etcd, what is absent was written by revision 0.
            Compare::Unchanged(_, revision) => written.unwrap_or(0) == revision.0,
        })
    }

    fn put(&mut self, entry: &Entry) -> Result<()> {
        let key = entry.key.as_str();
        let lease = entry.lease.map_or(0, |lease| lease.0);
        let row = (entry.revision.0, lease, entry.value.as_slice());
        let before = self.entries.insert(key, row)?.map_or(0, |guard| guard.value().1);
        if before != lease {
            self.attached.remove((before, key))?;
            if lease != 0 {
                self.attached.insert((lease, key), ())?;
            }
        }
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Result<bool> {
        let Some(lease) = self.entries.remove(key.as_str())?.map(|guard| guard.value().1) else { return Ok(false) };
        if lease != 0 {
            self.attached.remove((lease, key.as_str()))?;
        }
        Ok(true)
    }

    fn conclude(&mut self, revision: Revision, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision = revision;
            self.batches.push(Batch { revision, events });
            self.changed = true;
        }
    }
}
