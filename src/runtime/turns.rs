//! Turns: one holder per key at a time, however many keys there are.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module's text.
#[derive(Debug)]
pub struct Turns<K> {
    taken: Mutex<HashSet<K>>,
    given_back: Condvar,
}

/// Gives the turn back when dropped.
#[derive(Debug)]
pub struct Turn<'t, K: Copy + Eq + Hash> {
    turns: &'t Turns<K>,
    key: K,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { taken: Mutex::default(), given_back: Condvar::new() }
    }
}

impl<K: Copy + Eq + Hash> Turns<K> {
    /// Waits until nobody else holds the key's turn. A thread that holds it already waits for ever.
    pub fn take(&self, key: K) -> Turn<'_, K> {
        let mut taken = self.lock();
        while !taken.insert(key) {
            taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { turns: self, key }
    }

    /// No code panics between two changes of it.
    fn lock(&self) -> MutexGuard<'_, HashSet<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.key);
        self.turns.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn one_key_has_one_holder_and_others_do_not_wait() {
        let turns = Turns::default();
        let _other = turns.take(2);
        let inside = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = turns.take(1);
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        inside.store(false, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
