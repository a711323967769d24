//! Transactions: conditions, operations, and the limits that hold whatever the store.

use super::{Key, LeaseId, Revision, StoreError};
use std::collections::BTreeSet;

/// A condition on one key; a transaction writes nothing unless all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    Absent(Key),
    Present(Key),
    /// The key was last written by exactly this revision.
    Unchanged(Key, Revision),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes the key and attaches it to `lease`, or to none: an earlier attachment ends either way.
    Put { key: Key, value: Vec<u8>, lease: Option<LeaseId> },
    /// Deleting an absent key changes nothing.
    Delete { key: Key },
}

/// All comparisons hold and all operations happen, at one revision; or nothing does. A key is written at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

/// etcd's default limit on the operations (and, separately, the comparisons) of a transaction.
pub const MAX_TXN_OPS: usize = 128;

/// Bytes of keys and values in one transaction; safely below what etcd accepts by default (1.5 MiB with its framing).
pub const MAX_TXN_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Everything happened, at this revision. A transaction that had nothing to change answers the current revision.
    Done(Revision),
    /// A comparison did not hold; nothing was written.
    Conflict,
}

impl Compare {
    pub fn key(&self) -> &Key {
        match self {
            Compare::Absent(key) | Compare::Present(key) | Compare::Unchanged(key, _) => key,
        }
    }
}

impl Op {
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    pub fn lease(&self) -> Option<LeaseId> {
        match self {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Op::Put { key, value, .. } => key.as_str().len().saturating_add(value.len()),
            Op::Delete { key } => key.as_str().len(),
        }
    }
}

impl Txn {
    /// Says which rule the caller broke, if any, before a store sees the transaction.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let refuse = |reason: String| Err(StoreError::Refused(reason));
        if self.ops.len() > MAX_TXN_OPS || self.compares.len() > MAX_TXN_OPS {
            let (ops, compares) = (self.ops.len(), self.compares.len());
            return refuse(format!(
                "{ops} operations and {compares} comparisons in one transaction: the limit is {MAX_TXN_OPS} each"
            ));
        }
        self.compares.iter().map(Compare::key).chain(self.ops.iter().map(Op::key)).try_for_each(Key::check)?;
        let mut written = BTreeSet::new();
        if let Some(key) = self.ops.iter().map(Op::key).find(|key| !written.insert(*key)) {
            return refuse(format!("{key} is written twice in one transaction"));
        }
        let bytes = self.ops.iter().map(Op::size).fold(0usize, usize::saturating_add);
        if bytes > MAX_TXN_BYTES {
            return refuse(format!("a transaction of {bytes} bytes: the limit is {MAX_TXN_BYTES}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, bytes: usize) -> Op {
        Op::Put { key: Key::raw(key), value: vec![0; bytes], lease: None }
    }

    fn is_refused(ops: Vec<Op>) -> bool {
        matches!(Txn { compares: vec![], ops }.check(), Err(StoreError::Refused(_)))
    }

    #[test]
    fn broken_rules_are_named_before_a_store_sees_them() {
        let puts = |n| (0..n).map(|i| put(&format!("/k/{i}"), 1)).collect::<Vec<_>>();
        assert!(!is_refused(puts(MAX_TXN_OPS)));
        assert!(is_refused(puts(MAX_TXN_OPS + 1)));
        assert!(is_refused(vec![put("/k", 1), Op::Delete { key: Key::raw("/k") }]));
        assert!(is_refused(vec![put("k", 1)]) && is_refused(vec![put("/k/", 1)]) && is_refused(vec![put("", 1)]));
        assert!(is_refused(vec![put("/k", MAX_TXN_BYTES)]));
        let compares = vec![Compare::Absent(Key::root())];
        assert!(Txn { compares, ops: vec![] }.check().is_err());
    }
}
