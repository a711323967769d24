//! What is served now, and who is using it.
//!
//! ```text
//!   publish ──▶ served ──retire──▶ leaving ──last user lets go──▶ gone
//! ```
//! A leaving export takes no new users, its connections are cut, and its name stays taken until the last of them has
//! let go: whoever retires it may then delete or unmount what lies below.
//!
//! Clients of other hosts come in by a grant, which belongs to the export's name: it may come before the export is
//! published and outlives its end. A fence takes the grant and waits until the client's last operation is done. Who
//! comes in is judged under the same lock, so nobody slips in behind a fence, however long its handshake took.

use super::account::Account;
use super::grants::{AdmitError, AttachError, Grant, Grants, Guest};
use crate::io::{BlockIo, WriteGate};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use uuid::Uuid;

/// One export as the control plane hands it over.
#[derive(Clone)]
pub struct ServedExport {
    pub name: String,
    /// Tells these bytes from others that bear the name at another time.
    pub id: Uuid,
    /// For people; may be empty.
    pub description: String,
    pub io: Arc<dyn BlockIo>,
    pub read_only: bool,
    /// Where it is counted, and what limits it; the same one each time the same export is published.
    pub account: Arc<Account>,
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

/// What [`ExportTable::fence`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    Gone,
    /// The client had no grant.
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
    /// Held before an entry's users, by whoever comes in and whoever changes a grant; never while waiting.
    grants: Mutex<Grants>,
    /// How often something began to be served, or somebody called those who wait for that.
    news: Mutex<u64>,
    heard: Condvar,
}

struct Entry {
    id: Uuid,
    /// Passed by every change of what the medium holds.
    writes: Arc<WriteGate>,
    description: String,
    read_only: bool,
    account: Arc<Account>,
    users: Mutex<Users>,
    idle: Condvar,
    leaving: AtomicBool,
}

struct Users {
    /// Absent once the export is leaving, so that the last user to let go closes the medium.
    io: Option<Arc<dyn BlockIo>>,
    present: HashMap<u64, User>,
    next: u64,
}

struct User {
    /// Absent: the server itself, which is in nobody's way.
    guest: Option<Guest>,
    read_only: bool,
    /// Absent once it was called.
    cut: Option<Cut>,
    ended: Arc<AtomicBool>,
}

/// A connection's hold on an export; lets go when dropped.
pub struct Attached {
    entry: Arc<Entry>,
    number: u64,
    /// Present until dropped.
    io: Option<Arc<dyn BlockIo>>,
    guest: Option<Guest>,
    read_only: bool,
    /// This connection alone was cut.
    ended: Arc<AtomicBool>,
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
        let ServedExport { name, id, description, io, read_only, account } = export;
        let _changing = lock(&self.changing);
        let current = self.snapshot();
        if let Some(entry) = current.get(&name) {
            let leaving = entry.leaving.load(Ordering::SeqCst);
            return Err(if leaving { PublishError::Leaving { name } } else { PublishError::Taken { name } });
        }
        let users = Mutex::new(Users { io: Some(io), present: HashMap::new(), next: 0 });
        let (writes, idle, leaving) = (WriteGate::new(), Condvar::new(), AtomicBool::new(false));
        let entry = Entry { id, writes, description, read_only, account, users, idle, leaving };
        let mut next = Snapshot::clone(&current);
        next.insert(name, Arc::new(entry));
        *lock(&self.current) = Arc::new(next);
        self.call();
        Ok(())
    }

    /// Has those look again who wait for something to be served.
    pub(super) fn call(&self) {
        *lock(&self.news) += 1;
        self.heard.notify_all();
    }

    /// To be asked for before looking; see [`Self::wait_for_news`].
    pub(super) fn news(&self) -> u64 {
        *lock(&self.news)
    }

    /// Returns when there is something newer than `seen`, or by the deadline.
    pub(super) fn wait_for_news(&self, seen: u64, deadline: Instant) {
        let mut news = lock(&self.news);
        while *news == seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            news = self.heard.wait_timeout(news, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether an export of that name is in the table.
    pub(super) fn serves(&self, name: &str) -> bool {
        self.snapshot().contains_key(name)
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

    /// Has those told why who look for an export that is not served, until it is given back with none. They are told only
    /// while there is no such export.
    pub fn withhold(&self, name: &str, reason: Option<String>) {
        lock(&self.grants).withhold(name, reason);
    }

    /// Lets a client in from now on, in place of what it was granted before. If it may only read now, its connections
    /// that may write are cut, and this returns when they are gone.
    ///
    /// # Errors
    /// The client is to be alone and is not, or another one is. Nobody is cut for that.
    pub fn admit(&self, name: &str, grant: Grant) -> Result<(), AdmitError> {
        let Grant { client, read_only, exclusive, .. } = grant;
        let mut grants = lock(&self.grants);
        grants.check(name, &grant)?;
        let entry = self.entry(name);
        let others = entry
            .as_ref()
            .map_or(0, |entry| entry.count(|user| user.guest.is_some_and(|guest| guest != Guest::Client(client))));
        if exclusive && others > 0 {
            return Err(AdmitError::InUse { export: name.to_owned(), connections: others });
        }
        grants.put(name, grant);
        let Some(entry) = entry.filter(|_| read_only) else { return Ok(()) };
        let writers = |user: &User| user.guest == Some(Guest::Client(client)) && !user.read_only;
        entry.cut(writers);
        drop(grants);
        // Who comes in from here on may only read.
        entry.wait_until_none(writers);
        Ok(())
    }

    /// Takes a client's grant away and cuts its connections. Returns when its last operation has finished and it has
    /// let go: nothing that it ever sent takes effect later.
    pub fn fence(&self, name: &str, client: Uuid) -> Fenced {
        let mut grants = lock(&self.grants);
        let fenced = if grants.take(name, client) { Fenced::Gone } else { Fenced::WasAbsent };
        let theirs = |user: &User| user.guest == Some(Guest::Client(client));
        // Looked up under the lock: an entry that has users is in the snapshot.
        let entry = self.entry(name);
        if let Some(entry) = &entry {
            entry.cut(theirs);
        }
        drop(grants);
        if let Some(entry) = entry {
            entry.wait_until_none(theirs);
        }
        fenced
    }

    /// What is being served and the guest may know of: name and description, in order of names.
    pub fn list(&self, guest: Guest) -> Vec<(String, String)> {
        let snapshot = self.snapshot();
        let grants = lock(&self.grants);
        let known = |name: &str| match guest {
            Guest::Local => true,
            Guest::Client(client) => grants.of(name, client).is_some(),
        };
        let served = snapshot.iter().filter(|(name, entry)| !entry.leaving.load(Ordering::SeqCst) && known(name));
        served.map(|(name, entry)| (name.clone(), entry.description.clone())).collect()
    }

    /// How many connections hold the export now; `None` if there is none of that name.
    pub fn users(&self, name: &str) -> Option<usize> {
        self.entry(name).map(|entry| entry.count(|_| true))
    }

    /// Takes hold of an export. `cut`, if any, is called when the hold must end: the export is retired or the guest is
    /// fenced.
    pub fn attach(&self, name: &str, guest: Guest, cut: Option<Cut>) -> Result<Attached, AttachError> {
        // To the end: from the judgement to the entry in the list of users no fence may pass.
        let grants = lock(&self.grants);
        let to_read = grants.judge(name, guest)?;
        let unknown = || match guest {
            Guest::Local => grants.absence(name),
            Guest::Client(client) => AttachError::NotGranted { export: name.to_owned(), client },
        };
        let entry = self.entry(name).ok_or_else(unknown)?;
        entry.take_hold(Some(guest), to_read, cut).ok_or_else(unknown)
    }

    /// Takes hold of an export for the server itself, whoever it is granted to.
    pub(super) fn hold(&self, name: &str) -> Option<Attached> {
        self.entry(name)?.take_hold(None, false, None)
    }

    /// Nobody has to wait for limits any more who finds that it no longer wants to.
    pub(super) fn wake_all(&self) {
        self.snapshot().values().for_each(|entry| entry.account.wake());
    }

    fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        self.snapshot().get(name).map(Arc::clone)
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&lock(&self.current))
    }
}

impl Entry {
    /// `None` once the export is leaving.
    fn take_hold(self: Arc<Self>, guest: Option<Guest>, to_read: bool, cut: Option<Cut>) -> Option<Attached> {
        let mut users = lock(&self.users);
        let io = Arc::clone(users.io.as_ref()?);
        let number = users.next;
        users.next += 1;
        let read_only = self.read_only || to_read;
        let ended = Arc::new(AtomicBool::new(false));
        users.present.insert(number, User { guest, read_only, cut, ended: Arc::clone(&ended) });
        drop(users);
        Some(Attached { entry: self, number, io: Some(io), guest, read_only, ended })
    }

    fn leave(&self) {
        let mut users = lock(&self.users);
        self.leaving.store(true, Ordering::SeqCst);
        // Closed under the lock: a second retirer must not return while the first one still closes the medium.
        users.io = None;
        drop(users);
        self.cut(|_| true);
        self.wait_until_none(|_| true);
    }

    fn count(&self, which: impl Fn(&User) -> bool) -> usize {
        lock(&self.users).present.values().filter(|user| which(user)).count()
    }

    fn cut(&self, which: impl Fn(&User) -> bool) {
        for user in lock(&self.users).present.values_mut().filter(|user| which(user)) {
            user.ended.store(true, Ordering::SeqCst);
            if let Some(cut) = user.cut.take() {
                cut();
            }
        }
        self.account.wake();
    }

    /// Of those that were cut; whoever came in by a later grant is not waited for.
    fn wait_until_none(&self, which: impl Fn(&User) -> bool) {
        let mut users = lock(&self.users);
        while users.present.values().any(|user| user.ended.load(Ordering::SeqCst) && which(user)) {
            users = self.idle.wait(users).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Attached {
    /// The medium; `None` once the hold must end: then nothing more is carried out.
    pub fn io(&self) -> Option<&Arc<dyn BlockIo>> {
        let over = self.entry.leaving.load(Ordering::SeqCst) || self.ended.load(Ordering::SeqCst);
        if over { None } else { self.io.as_ref() }
    }

    /// The medium, over or not: for what was begun before, of which the outcome still matters to others.
    pub(super) fn begun_on(&self) -> Option<&Arc<dyn BlockIo>> {
        self.io.as_ref()
    }

    /// To be passed by every change of what the medium holds, for as long as it is in flight.
    pub fn writes(&self) -> &Arc<WriteGate> {
        &self.entry.writes
    }

    /// Where the export is counted, and what limits it.
    pub(super) fn account(&self) -> &Arc<Account> {
        &self.entry.account
    }

    /// For this guest.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whose hold it is; `None` for the server's own.
    pub(super) fn guest(&self) -> Option<Guest> {
        self.guest
    }

    /// See [`ServedExport::id`].
    pub(super) fn id(&self) -> Uuid {
        self.entry.id
    }

    pub fn description(&self) -> &str {
        &self.entry.description
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The medium first: whoever waits for us wants it closed.
        self.io = None;
        lock(&self.entry.users).present.remove(&self.number);
        self.entry.idle.notify_all();
    }
}
