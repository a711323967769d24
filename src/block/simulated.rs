//! Block services without devices, many in one process: `block run --simulate N`, a tool that loads managers.
//!
//! Each is a member by itself, with identity, key, certificate, session and heartbeats as any other has them, in a
//! directory of its own below the config directory. What it is to hold is not made: it is reported as done, at once.
//! What it was told is forgotten with the process, and comes again with the next session.
//!
//! Never here: data. Nothing serves what such a service says it holds, and nothing that it says was true of a disk.

use super::agent::Notice;
use super::enrolment::{Applicant, parse_token};
use super::link::LinkState;
use super::serve::BlockError;
use super::ties::{Member, Ties};
use super::tls_dir::TlsDir;
use super::unattended::Join;
use crate::host::{ConfigDir, load_document};
use crate::model::*;
use crate::pki::{Keyring, Role};
use crate::rpc::{ALPN, Fault, FaultKind};
use crate::runtime::{Backoff, Clock, Shutdown, SystemClock};
use futures_util::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

#[derive(Clone, Debug)]
pub struct SimulationConfig {
    /// Holds one directory for each service.
    pub config_dir: PathBuf,
    /// How many services.
    pub count: usize,
    /// `host:port` of managers to try before those that were learned of.
    pub managers: Vec<String>,
    /// How those that are no members yet become members.
    pub join: Option<Join>,
}

/// What a pool of a simulated service says that it holds.
const CAPACITY: ByteSize = ByteSize::mib(1 << 30);
/// Services that join at the same time: each costs a few durable writes here and at the manager.
const JOINING: usize = 16;

/// Runs simulated services until `shutdown` is requested. `ready` is called once all are members.
///
/// # Errors
/// If a directory cannot be used, or a service is no member and there is nobody to join.
pub async fn simulate(
    config: SimulationConfig,
    shutdown: Shutdown,
    ready: impl FnOnce() + Send,
) -> Result<(), BlockError> {
    let host = crate::host::host_name().map_err(BlockError::HostName)?;
    let places = (1..=config.count).map(|number| {
        let path = config.config_dir.join(format!("{number:05}"));
        Place::open(&path, format!("{host}-{number:05}"))
    });
    let places: Vec<Place> = places.collect::<Result<_, _>>()?;
    let run = |place| run_one(place, &config, &shutdown);
    let mut begun = stream::iter(places).map(run).buffer_unordered(JOINING);
    while let Some(begun) = begun.next().await {
        begun?;
    }
    drop(begun);
    tracing::info!(services = config.count, "simulated block services are members");
    ready();
    shutdown.requested().await;
    shutdown.finish().await;
    Ok(())
}

/// Where one simulated service lives.
struct Place {
    dir: ConfigDir,
    host_name: String,
}

impl Place {
    fn open(path: &Path, host_name: String) -> Result<Self, BlockError> {
        Ok(Self { dir: ConfigDir::open(path, ServiceType::Block)?, host_name })
    }

    /// This service as a member: as it was before, or as it has just become.
    async fn identity(&self, config: &SimulationConfig, shutdown: &Shutdown) -> Result<Option<Identity>, BlockError> {
        if let Some(identity) = load_document::<Identity>(&self.dir.identity())?
            && identity.membership.is_some()
        {
            return Ok(Some(identity));
        }
        let join = config.join.as_ref().ok_or(BlockError::NobodyToJoin)?;
        let applicant = Applicant {
            identity: self.dir.identity(),
            tls: TlsDir::new(self.dir.tls()),
            host_name: self.host_name.clone(),
            addresses: Addresses::default(),
            clock: Arc::new(SystemClock),
            to_recovering: false,
        };
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        for manager in join.managers.iter().cycle() {
            match attempt(&applicant, manager, join).await {
                Ok(identity) => return Ok(Some(identity)),
                Err(fault) => tracing::warn!(%manager, reason = fault.message, "a simulated service cannot join yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next(fastrand::f64())) => {}
                () = shutdown.requested() => return Ok(None),
            }
        }
        Ok(None)
    }
}

async fn attempt(applicant: &Applicant, manager: &str, join: &Join) -> Result<Identity, Fault> {
    let text = join.token().map_err(|reason| Fault::new(FaultKind::Invalid, reason))?;
    let token = text.as_deref().map(parse_token).transpose()?;
    let door = applicant.open(manager, token.as_ref()).await?;
    applicant.join(door, token.as_ref()).await
}

/// Starts one service, once it is a member.
async fn run_one(place: Place, config: &SimulationConfig, shutdown: &Shutdown) -> Result<(), BlockError> {
    let Some(identity) = place.identity(config, shutdown).await? else { return Ok(()) };
    let Some(membership) = &identity.membership else { return Ok(()) };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let keyring = Keyring::empty(clock.clone());
    let (notices, told) = mpsc::channel(256);
    let member = Member {
        service: identity.service,
        membership,
        host_name: place.host_name.clone(),
        addresses: Addresses::default(),
        mark: Mark::default(),
        notices,
        seeds: config.managers.clone(),
        tls: TlsDir::new(place.dir.tls()),
        client: keyring.client_config(&[Role::Manager], ALPN)?,
        keyring,
        clock,
    };
    let ties = member.tie(shutdown);
    shutdown.spawn_until_end(async move {
        Pretender::default().run(ties, told).await;
        // Held until here: nobody else uses the directory meanwhile.
        drop(place);
    });
    Ok(())
}

/// Says that all it is told to hold is there.
#[derive(Default)]
struct Pretender {
    assigned: AssignmentSet,
    reports: BTreeMap<AssignedId, Report>,
    uplink: Option<mpsc::UnboundedSender<Vec<Report>>>,
}

impl Pretender {
    async fn run(mut self, mut ties: Ties, mut told: mpsc::Receiver<Notice>) {
        loop {
            tokio::select! {
                notice = told.recv() => match notice {
                    Some(notice) => self.take_notice(notice),
                    None => return,
                },
                // Nobody has to remember managers here: the next start knows those that it is told of.
                Some(_) = ties.learned.recv() => {}
                Ok(()) = ties.link.changed() => {
                    if *ties.link.borrow_and_update() == LinkState::Removed {
                        tracing::warn!("a simulated service was removed from the cluster");
                        return;
                    }
                }
            }
        }
    }

    fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Connected(uplink) => {
                let all: Vec<Report> = self.reports.values().cloned().collect();
                self.uplink = Some(uplink);
                self.tell(all);
            }
            Notice::Replace(set) => {
                self.assigned = set;
                self.pretend();
            }
            Notice::Apply(changes) => {
                for refused in self.assigned.apply(changes) {
                    tracing::error!(%refused, "an assignment was refused");
                }
                self.pretend();
            }
            Notice::TakeInventory(reply) => {
                if reply.send(self.inventory()).is_err() {
                    tracing::debug!("nobody waits for the inventory any more");
                }
            }
            // Nor how far the state had come: what is held here is forgotten with the process.
            Notice::Remember(_)
            | Notice::Count(_)
            | Notice::Settle(_)
            | Notice::Rest(_)
            | Notice::Resume
            | Notice::Bequeath { .. }
            | Notice::Inherit => {}
        }
    }

    /// Reports what was not reported as it is now.
    fn pretend(&mut self) {
        let set = &self.assigned;
        let wanted = set.pools.values().map(pool).chain(set.volumes.values().map(volume));
        let snapshots = set.snapshots.values().map(|it| snapshot(it, self.size_of(it)));
        let wanted = wanted.chain(snapshots).chain(set.attachments.values().map(attachment));
        let wanted: BTreeMap<AssignedId, Report> = wanted.map(|report| (report.id(), report)).collect();
        let news = wanted.iter().filter(|(id, report)| self.reports.get(id) != Some(report));
        let news: Vec<Report> = news.map(|(_, report)| report.clone()).collect();
        self.reports = wanted;
        self.tell(news);
    }

    fn tell(&mut self, news: Vec<Report>) {
        if let Some(uplink) = &self.uplink
            && !news.is_empty()
            && uplink.send(news).is_err()
        {
            self.uplink = None;
        }
    }

    /// As large as its volume is now: nothing here remembers what it was.
    fn size_of(&self, snapshot: &SnapshotAssignment) -> ByteSize {
        self.assigned.volumes.get(&snapshot.volume).map_or(ByteSize::ZERO, |volume| volume.size)
    }

    fn inventory(&self) -> Inventory {
        let set = &self.assigned;
        let pools = set.pools.values().filter(|pool| !pool.removed);
        let volumes = set.volumes.values().filter(|volume| !volume.removed);
        let snapshots = set.snapshots.values().filter(|snapshot| !snapshot.removed);
        Inventory {
            pools: pools
                .map(|pool| InventoryPool { id: pool.id, told: pool.generation, place: None, failure: None })
                .collect(),
            volumes: volumes
                .map(|volume| InventoryVolume {
                    name: volume.name.to_string(),
                    size: volume.size,
                    generation: volume.generation,
                    told: volume.generation,
                    exported: true,
                    ..InventoryVolume::bare(volume.id, volume.pool)
                })
                .collect(),
            snapshots: snapshots
                .map(|snapshot| InventorySnapshot {
                    id: snapshot.id,
                    pool: snapshot.pool,
                    volume: snapshot.volume,
                    name: snapshot.name.to_string(),
                    size: self.size_of(snapshot),
                    at: Timestamp::EPOCH,
                    told: snapshot.generation,
                    data: None,
                    room: snapshot.room,
                    damage: None,
                })
                .collect(),
        }
    }
}

fn observed<T>(removed: bool, there: T) -> Observed<T> {
    if removed { Observed::Absent } else { Observed::Known(there) }
}

fn pool(pool: &PoolAssignment) -> Report {
    let there = PoolCapacity { capacity: CAPACITY, copies: true, ..PoolCapacity::default() };
    let capacity = observed(pool.removed, there);
    Report::Pool(PoolReport { id: pool.id, generation: pool.generation, capacity, failure: None })
}

fn volume(volume: &VolumeAssignment) -> Report {
    let there = observed(volume.removed, ServedVolume { size: volume.size, exports: Vec::new() });
    let (id, generation) = (volume.id, volume.generation);
    Report::Volume(VolumeReport { id, generation, volume: there, progress: None, failure: None })
}

fn snapshot(snapshot: &SnapshotAssignment, size: ByteSize) -> Report {
    let there = observed(snapshot.removed, TakenSnapshot { size, at: Timestamp::EPOCH, fill: None });
    Report::Snapshot(SnapshotReport {
        id: snapshot.id,
        generation: snapshot.generation,
        snapshot: there,
        spoilt: false,
        progress: None,
        failure: None,
    })
}

fn attachment(held: &AttachmentAssignment) -> Report {
    let in_force = observed(held.removed, ());
    Report::Attachment(AttachmentReport { id: held.id, generation: held.generation, in_force, failure: None })
}
