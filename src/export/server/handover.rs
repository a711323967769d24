//! A server that gives its clients to another process, or takes those of one, without their noticing more than a pause.
//!
//! ```text
//!   serving ──▶ doors closed ──▶ threads' clients ended ──▶ engine's clients held ──▶ flushed ──▶ Held ──▶ Carried
//!      ▲                                                                                       │
//!      └───────────────────────── resume: nobody took them over ──────────────────────────────┘
//! ```
//! What is carried are plain connections that the engine has. Those with TLS have their secrets in this process and
//! end, as do those of the engine of threads: their clients are told `NBD_ESHUTDOWN` and connect again. They end while
//! the others are still served.
//!
//! Whoever goes on is judged anew: by the grants, and by what the export is now. What was promised is kept: nothing is
//! carried whose medium cannot be flushed, since another process would not remember that.

use super::{InheritedListeners, NbdServer, Seats, ServerError, Shared, Stage};
use crate::export::connection::cut;
use crate::export::grants::Guest;
use crate::export::listener::Listener;
use crate::export::table::Attached;
use crate::export::transmission::{Owed, Parting, Presence, Session};
use crate::nbd::reply::Reply;
use crate::nbd::{NbdErrno, Refusal, Stream, Terms};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getpeername, getsockname};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Media that are flushed at a time.
const LANES: usize = 8;

/// While clients are served, media may take so many times as long to be flushed as when clients wait.
const LEISURE: u32 = 10;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    #[error("operations on the media of {} have not ended within {limit:?}", .exports.join(", "))]
    Busy { exports: Vec<String>, limit: Duration },
}

/// Connections that stand still between two bytes. To be resumed, or left to another process; dropped, they end.
#[derive(Default)]
pub struct Held {
    sessions: Vec<Session>,
}

/// One connection between two processes.
#[derive(Debug)]
pub struct Carried {
    pub socket: OwnedFd,
    pub record: SessionRecord,
    /// What the client has sent and nobody has begun to answer.
    pub unread: Vec<u8>,
    /// What the client is to be sent before anything else.
    pub unsent: Vec<u8>,
}

/// What was agreed with a client, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    pub export: String,
    /// See [`ServedExport::id`](crate::export::ServedExport::id).
    pub id: Uuid,
    pub guest: Guest,
    pub terms: Terms,
    /// The export's, in bytes: clients rely on no less.
    pub size: u64,
    /// The client has sent its last byte.
    pub leaving: bool,
    pub refusal: Option<RefusalRecord>,
}

/// A request that is refused once the rest of its payload has gone by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalRecord {
    pub cookie: u64,
    pub offset: u64,
    /// As in the protocol.
    pub errno: u32,
    pub reason: String,
    /// In bytes.
    pub left: u32,
}

/// What became of connections that were carried here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    pub went_on: usize,
    /// The export that each of the others used, and why that is over.
    pub ended: Vec<(String, String)>,
}

impl NbdServer {
    /// Stops between two bytes of every client, with no operation in flight anywhere and all media flushed. Clients
    /// that cannot be carried have ended then. Nobody is accepted until [`Self::resume`].
    ///
    /// # Errors
    /// Operations take longer than `limit`, which is how long clients wait at most. Then everything goes on, but for
    /// what has ended.
    pub fn hold(&mut self, limit: Duration) -> Result<Held, HoldError> {
        // While they are still served, so that little is left to be flushed when they are not.
        let in_use = self.shared.exports_of(Stage::Engine);
        let held = in_use.iter().filter_map(|name| Some((name.clone(), Arc::new(self.shared.table.hold(name)?))));
        let (_, late) = flush(held.collect(), Instant::now() + limit * LEISURE);
        if !late.is_empty() {
            return Err(HoldError::Busy { exports: late.into_iter().collect(), limit: limit * LEISURE });
        }
        self.close();
        self.shared.dismissing.store(true, Ordering::SeqCst);
        // Those on threads of their own do not end while they wait for limits.
        self.shared.table.wake_all();
        let held = self.shared.hold(limit);
        if held.is_err()
            && let Err(error) = self.resume(Held::default())
        {
            tracing::error!(%error, "NBD clients that are new are not served");
        }
        held
    }

    /// Serves on what stood still, and whoever has waited to be accepted.
    pub fn resume(&mut self, held: Held) -> Result<(), ServerError> {
        self.shared.dismissing.store(false, Ordering::SeqCst);
        let mut registry = self.shared.registry();
        registry.holding = false;
        let sessions = std::mem::take(&mut registry.parted);
        drop(registry);
        self.shared.engine.stay();
        sessions.into_iter().chain(held.sessions).for_each(|session| self.shared.engine.serve(session));
        self.open()
    }

    /// The listening sockets once more, for another process, while nobody is accepted here.
    pub fn listening(&self) -> io::Result<InheritedListeners> {
        let mut sockets = InheritedListeners::default();
        for listener in &self.listeners {
            let socket = Some(listener.as_fd().try_clone_to_owned()?);
            match listener {
                Listener::Tcp(_) => sockets.tcp = socket,
                Listener::Unix(_) => sockets.unix = socket,
            }
        }
        Ok(sockets)
    }

    /// Lets go of clients and of the unix socket's file, which another process has from now on.
    pub fn leave(&mut self, held: Held) {
        for Session { presence, .. } in held.sessions {
            presence.leave();
        }
        if let Some(file) = self.socket.take() {
            file.leave();
        }
    }

    /// Takes clients of another process over, from any thread.
    pub fn adopter(&self) -> Adopter {
        Adopter(Arc::clone(&self.shared))
    }
}

impl Held {
    pub fn connections(&self) -> usize {
        self.sessions.len()
    }

    /// Everything that another process needs; the connections stay here as well.
    ///
    /// # Errors
    /// No descriptors are left for a second set.
    pub fn carry(&self) -> io::Result<Vec<Carried>> {
        self.sessions.iter().map(carried).collect()
    }
}

fn carried(session: &Session) -> io::Result<Carried> {
    let Session { export, name, terms, leftover, owed, presence } = session;
    let refusal = owed.refusal.as_ref().map(|refusal| RefusalRecord {
        cookie: refusal.reply.cookie,
        offset: refusal.reply.offset,
        errno: refusal.errno.number(),
        reason: refusal.reason.to_string(),
        left: refusal.discard,
    });
    let record = SessionRecord {
        export: name.clone(),
        id: export.id(),
        guest: export.guest().unwrap_or(Guest::Local),
        terms: *terms,
        size: export.begun_on().map_or(0, |io| io.size()),
        leaving: owed.leaving,
        refusal,
    };
    let socket = presence.stream().as_fd().try_clone_to_owned()?;
    Ok(Carried { socket, record, unread: leftover.clone(), unsent: owed.unsent.clone() })
}

/// Flushes media, several at a time, until the deadline. What has failed, and what has not ended.
fn flush(exports: Vec<(String, Arc<Attached>)>, deadline: Instant) -> (BTreeMap<String, io::Error>, BTreeSet<String>) {
    let mut late: BTreeSet<String> = exports.iter().map(|(name, _)| name.clone()).collect();
    let mut failed = BTreeMap::new();
    let (report, reports) = mpsc::channel();
    for lane in exports.chunks(exports.len().div_ceil(LANES).max(1)) {
        let (lane, report) = (lane.to_vec(), report.clone());
        let work = move || {
            for (name, export) in lane {
                let outcome = export.io().map_or(Ok(()), |io| io.flush());
                drop(export);
                // Whoever asked has given up, perhaps.
                if report.send((name, outcome)).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("nbd-flush".into()).spawn(work) {
            tracing::error!(%error, "no thread to flush media");
        }
    }
    drop(report);
    while let Ok((name, outcome)) = reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        late.remove(&name);
        if let Err(error) = outcome {
            failed.insert(name, error);
        }
    }
    (failed, late)
}

impl Shared {
    fn exports_of(&self, stage: Stage) -> BTreeSet<String> {
        let registry = self.registry();
        registry.connections.values().filter(|it| it.stage == stage).map(|it| it.export.clone()).collect()
    }

    fn hold(self: &Arc<Self>, limit: Duration) -> Result<Held, HoldError> {
        let now = Instant::now();
        let busy = |exports: BTreeSet<String>| HoldError::Busy { exports: exports.into_iter().collect(), limit };
        // Handshakes that get on end by themselves; all else that has a thread is told to, and at half time it must.
        self.hang_up(Shutdown::Read, |connection| connection.stage == Stage::Alone);
        let all_engine = |registry: &super::Registry| {
            registry.connections.values().all(|connection| connection.stage == Stage::Engine)
        };
        if !self.wait_until(now + limit / 2, all_engine) {
            self.hang_up(Shutdown::Both, |connection| connection.stage != Stage::Engine);
            if !self.wait_until(now + limit, all_engine) {
                return Err(busy(self.exports_of(Stage::Alone)));
            }
        }
        self.registry().holding = true;
        let this = Arc::downgrade(self);
        let parting: Parting = Arc::new(move |session| {
            if let Some(this) = this.upgrade() {
                this.take_parted(session);
            }
        });
        self.engine.part(&parting);
        let deadline = Instant::now() + limit;
        if !self.wait_until(deadline, |registry| registry.parted.len() == registry.connections.len()) {
            return Err(busy(self.exports_of(Stage::Engine)));
        }
        let mut sessions = std::mem::take(&mut self.registry().parted);
        let media: BTreeMap<String, Arc<Attached>> =
            sessions.iter().map(|session| (session.name.clone(), Arc::clone(&session.export))).collect();
        let (failed, late) = flush(media.into_iter().collect(), deadline);
        if !late.is_empty() {
            self.registry().parted = sessions;
            return Err(busy(late));
        }
        for (export, error) in &failed {
            tracing::warn!(export, %error, "the medium of an export fails: its clients have to connect again");
        }
        sessions.retain(|session| !failed.contains_key(&session.name));
        Ok(Held { sessions })
    }

    fn take_parted(&self, session: Session) {
        let mut registry = self.registry();
        if !registry.holding {
            drop(registry);
            // The hold is over before it has come.
            return self.engine.serve(session);
        }
        registry.parted.push(session);
        drop(registry);
        self.changed.notify_all();
    }
}

/// See [`NbdServer::adopter`].
pub struct Adopter(Arc<Shared>);

impl Adopter {
    /// Goes on with connections of another process, each as soon as its export is served. Blocks until all have gone on
    /// or ended; those end whose export is not served within `limit`.
    pub fn adopt(&self, carried: Vec<Carried>, limit: Duration) -> Adopted {
        let (shared, deadline) = (&self.0, Instant::now() + limit);
        let (mut waiting, mut adopted) = (carried, Adopted::default());
        loop {
            let seen = shared.table.news();
            let late = Instant::now() >= deadline || shared.closing.load(Ordering::SeqCst);
            let serves = |carried: &Carried| shared.table.serves(&carried.record.export);
            let (ready, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|it| late || serves(it));
            waiting = others;
            for carried in ready {
                let export = carried.record.export.clone();
                match shared.adopt(carried) {
                    Ok(()) => adopted.went_on += 1,
                    Err(reason) => {
                        tracing::warn!(export, reason, "an NBD client has to connect again");
                        adopted.ended.push((export, reason));
                    }
                }
            }
            if waiting.is_empty() {
                return adopted;
            }
            shared.table.wait_for_news(seen, deadline);
        }
    }
}

impl Shared {
    fn adopt(self: &Arc<Self>, carried: Carried) -> Result<(), String> {
        let Carried { socket, record, unread, unsent } = carried;
        let SessionRecord { export: name, id, guest, terms, size, leaving, refusal } = record;
        let stream = connected(socket).map_err(|error| format!("its socket cannot be used: {error}"))?;
        let stream = Arc::new(stream);
        let outcome = (|| {
            if let (Guest::Local, Stream::Tcp(tcp)) = (guest, &*stream) {
                (self.config.local)(tcp)?;
            }
            let registered = self.register(&stream);
            registered.enter(if self.engine.parts() { Stage::Engine } else { Stage::Alone }, &name);
            let seat = self.seat(Seats::Admitted, registered.number()).ok_or_else(|| self.full())?;
            let export = self.table.attach(&name, guest, Some(cut(&stream))).map_err(|error| error.to_string())?;
            check(&export, id, size, &terms)?;
            let refusal = refusal.map(|it| it.into_refusal(&terms)).transpose()?;
            Ok((export, refusal, registered.number(), Box::new((seat, registered))))
        })();
        let (export, refusal, number, place) = outcome.inspect_err(|_: &String| {
            // Its other descriptors, if there are any, would keep it up.
            if let Err(error) = stream.shutdown(Shutdown::Both) {
                tracing::debug!(%error, "closing an NBD connection");
            }
        })?;
        let presence = Presence::new(stream, place);
        let owed = Owed { unsent, refusal, leaving };
        let session = Session { export: Arc::new(export), name, terms, leftover: unread, owed, presence };
        if self.engine.parts() {
            self.engine.serve(session);
        } else {
            let this = Arc::clone(self);
            self.run(number, move || this.engine.serve(session));
        }
        Ok(())
    }
}

/// Whether an export still is what the client was told.
fn check(export: &Attached, id: Uuid, size: u64, terms: &Terms) -> Result<(), String> {
    let now = export.io().map_or(0, |io| io.size());
    if export.id() != id {
        return Err("another volume has the name now".into());
    }
    if now < size {
        return Err(format!("the export has shrunk from {size} to {now} bytes"));
    }
    if export.is_read_only() && !terms.read_only {
        return Err("the export may only be read now".into());
    }
    Ok(())
}

fn connected(socket: OwnedFd) -> io::Result<Stream> {
    getpeername::<SockaddrStorage>(socket.as_raw_fd())?;
    let unix = getsockname::<SockaddrStorage>(socket.as_raw_fd())?.family() == Some(AddressFamily::Unix);
    Ok(if unix { Stream::Unix(socket.into()) } else { Stream::Tcp(socket.into()) })
}

impl RefusalRecord {
    fn into_refusal(self, terms: &Terms) -> Result<Refusal, String> {
        let Self { cookie, offset, errno, reason, left } = self;
        let errno = NbdErrno::from_number(errno).ok_or("a refusal without an error")?;
        let reply = Reply { headers: terms.headers, cookie, offset };
        Ok(Refusal { reply, errno, reason: reason.into(), discard: left })
    }
}
