//! What is served now, and who is using it.
//!
//! ```text
//!   publish ──▶ served ──retire──▶ leaving ──last user lets go──▶ gone
//! ```
//! A leaving export takes no new users, its connections are cut, and its name stays taken until the last of them has
//! let go: whoever retires it may then delete or unmount what lies below.

use crate::io::BlockIo;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One export as the control plane hands it over.
#[derive(Clone)]
pub struct ServedExport {
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    pub io: Arc<dyn BlockIo>,
    pub read_only: bool,
}

/// Ends a connection from another thread; called at most once, and must not block.
pub type Cut = Box<dyn Fn() + Send + Sync>;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("an export '{name}' is being served already")]
    Taken { name: String },
    #[error("export '{name}' is being retired: its last users have not let go yet")]
    Leaving { name: String },
}

/// What [`ExportTable::retire`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    Gone,
    WasAbsent,
}

type Snapshot = BTreeMap<String, Arc<Entry>>;

/// See the module. Shared by the control plane and all connections.
#[derive(Default)]
pub struct ExportTable {
    /// Held only to copy or swap the pointer, so that connections never wait for changes.
    current: Mutex<Arc<Snapshot>>,
    /// Held by whoever makes the next snapshot.
    changing: Mutex<()>,
}

struct Entry {
    description: String,
    read_only: bool,
    users: Mutex<Users>,
    idle: Condvar,
    leaving: AtomicBool,
}

struct Users {
    /// Absent once the export is leaving, so that the last user to let go closes the medium.
    io: Option<Arc<dyn BlockIo>>,
    cuts: HashMap<u64, Option<Cut>>,
    next: u64,
}

/// A connection's hold on an export; lets go when dropped.
pub struct Attached {
    entry: Arc<Entry>,
    number: u64,
    /// Present until dropped.
    io: Option<Arc<dyn BlockIo>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExportTable {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Begins to serve.
    ///
    /// # Errors
    /// The name is in use, or its former bearer has not gone yet.
    pub fn publish(&self, export: ServedExport) -> Result<(), PublishError> {
        let ServedExport { name, description, io, read_only } = export;
        let _changing = lock(&self.changing);
        let current = self.snapshot();
        if let Some(entry) = current.get(&name) {
            let leaving = entry.leaving.load(Ordering::SeqCst);
            return Err(if leaving { PublishError::Leaving { name } } else { PublishError::Taken { name } });
        }
        let users = Mutex::new(Users { io: Some(io), cuts: HashMap::new(), next: 0 });
        let entry = Entry { description, read_only, users, idle: Condvar::new(), leaving: AtomicBool::new(false) };
        let mut next = Snapshot::clone(&current);
        next.insert(name, Arc::new(entry));
        *lock(&self.current) = Arc::new(next);
        Ok(())
    }

    /// Stops serving: cuts every connection to the export and returns when the last has let go and the medium has been
    /// closed, as far as this table held it. Takes as long as the slowest operation in flight. Two may retire the same
    /// export; both wait.
    pub fn retire(&self, name: &str) -> Retired {
        let Some(entry) = self.snapshot().get(name).map(Arc::clone) else { return Retired::WasAbsent };
        entry.leave();
        let _changing = lock(&self.changing);
        let current = self.snapshot();
        if current.get(name).is_some_and(|served| Arc::ptr_eq(served, &entry)) {
            let mut next = Snapshot::clone(&current);
            next.remove(name);
            *lock(&self.current) = Arc::new(next);
        }
        Retired::Gone
    }

    /// Everything that is being served: name and description, in order of names.
    pub fn list(&self) -> Vec<(String, String)> {
        let snapshot = self.snapshot();
        let served = snapshot.iter().filter(|(_, entry)| !entry.leaving.load(Ordering::SeqCst));
        served.map(|(name, entry)| (name.clone(), entry.description.clone())).collect()
    }

    /// How many connections hold the export now; `None` if there is none of that name.
    pub fn users(&self, name: &str) -> Option<usize> {
        self.snapshot().get(name).map(|entry| lock(&entry.users).cuts.len())
    }

    /// Takes hold of an export. `cut`, if any, is called when the export is retired while it is held.
    pub fn attach(&self, name: &str, cut: Option<Cut>) -> Option<Attached> {
        let entry = Arc::clone(self.snapshot().get(name)?);
        let mut users = lock(&entry.users);
        let io = Arc::clone(users.io.as_ref()?);
        let number = users.next;
        users.next += 1;
        users.cuts.insert(number, cut);
        drop(users);
        Some(Attached { entry, number, io: Some(io) })
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&lock(&self.current))
    }
}

impl Entry {
    fn leave(&self) {
        let mut users = lock(&self.users);
        self.leaving.store(true, Ordering::SeqCst);
        // Closed under the lock: a second retirer must not return while the first one still closes the medium.
        users.io = None;
        for cut in users.cuts.values_mut().filter_map(Option::take) {
            cut();
        }
        while !users.cuts.is_empty() {
            users = self.idle.wait(users).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Attached {
    /// The medium; `None` never, while the hold lasts and the export is not leaving.
    pub fn io(&self) -> Option<&Arc<dyn BlockIo>> {
        if self.entry.leaving.load(Ordering::SeqCst) { None } else { self.io.as_ref() }
    }

    pub fn is_read_only(&self) -> bool {
        self.entry.read_only
    }

    pub fn description(&self) -> &str {
        &self.entry.description
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The medium first: whoever waits for us wants it closed.
        self.io = None;
        lock(&self.entry.users).cuts.remove(&self.number);
        self.entry.idle.notify_all();
    }
}
