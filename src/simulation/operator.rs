//! What operators ask of managers, at random, and what they have to begin with.

use super::Planted;
use super::world::{HOSTS, World, somebody};
use crate::manager::inside::{
    Access, LimitChanges, Origin, Refusal, WantedSnapshot, WantedVolume, attach_volume, cancel_move, create_snapshots,
    create_volume, detach_volume, drain_service, limit_volume, move_volume, remove_service, remove_snapshot,
    remove_volume, resize_volume, revert_volume,
};
use crate::model::*;

/// Names of volumes, of snapshots, and clients.
const VOLUMES: u8 = 6;
const SNAPSHOTS: u8 = 4;
const CLIENTS: u8 = 3;
/// Calls that it takes at most to close everything on a service.
const CLOSINGS: usize = 20;

/// What clients are called, with their records.
pub fn clients() -> impl Iterator<Item = Client> {
    (0..CLIENTS).map(|number| {
        let (id, name) = (ClientId::from_bytes([0x60 + number; 16]), format!("c{number}"));
        let certificate = CertificateRecord {
            public_key: "ab".into(),
            expires_at: Timestamp::from_millis(u64::MAX >> 12),
            root: "cd".into(),
            names: Default::default(),
        };
        let meta = Meta::new(id, name.parse().expect("a name"), Timestamp::EPOCH);
        Client { meta, spec: ClientSpec { role: ClientRole::Data }, status: ClientStatus { certificate } }
    })
}

impl World {
    pub(super) fn fresh(&mut self) -> [u8; 16] {
        self.next += 1 << 16;
        self.next.to_be_bytes()
    }

    fn one_of(&mut self, kind: char, count: u8) -> String {
        format!("{kind}{}", self.random.u8(..count))
    }

    /// A snapshot that a manager shows, and the volume that it is of.
    fn snapshot_seen(&mut self, manager: usize) -> Option<(String, String)> {
        let shown = self.managers[manager].view.snapshots.values().map(|it| &it.value);
        let all: Vec<_> = shown.map(|it| (it.meta.name.to_string(), it.spec.volume_name.to_string())).collect();
        self.random.choice(all)
    }

    /// Something that an operator asks for. A refusal is as good: nothing has changed.
    pub(super) fn ask(&mut self, manager: usize) {
        if !self.managers[manager].is_up {
            return;
        }
        let volume = self.one_of('v', VOLUMES);
        let asked = match self.random.u8(..55) {
            0..8 => self.ask_for_a_volume(manager, &volume, None),
            8 | 9 => match self.snapshot_seen(manager) {
                Some((snapshot, _)) => self.ask_for_a_volume(manager, &volume, Some(Origin::Snapshot(snapshot))),
                None => Ok(()),
            },
            10 => {
                let origin = Origin::Volume(self.one_of('v', VOLUMES));
                self.ask_for_a_volume(manager, &volume, Some(origin))
            }
            11..15 => {
                let (size, cut) = (ByteSize::mib(self.random.u64(1..20)), self.random.bool());
                self.write(manager, |draft| resize_volume(draft, &somebody(), &volume, size, cut).map(drop))
            }
            15..20 => {
                let iops = Some(Some(self.random.u64(1..4) * 100));
                let changes = LimitChanges { iops, ..LimitChanges::default() };
                self.write(manager, |draft| limit_volume(draft, &somebody(), &volume, changes).map(drop))
            }
            20..24 => self.write(manager, |draft| remove_volume(draft, &somebody(), &volume, None).map(drop)),
            24..28 => self.ask_for_a_snapshot(manager, volume),
            28 => {
                let snapshot = self.one_of('s', SNAPSHOTS);
                self.write(manager, |draft| remove_snapshot(draft, &somebody(), &snapshot, None).map(drop))
            }
            29 | 30 => match self.snapshot_seen(manager) {
                Some((snapshot, of)) => {
                    self.write(manager, |draft| revert_volume(draft, &somebody(), &of, &snapshot).map(drop))
                }
                None => Ok(()),
            },
            31..35 => self.ask_for_access(manager, volume),
            35..38 => {
                let client = self.one_of('c', CLIENTS);
                self.write(manager, |draft| detach_volume(draft, &somebody(), &volume, &client).map(drop))
            }
            38 => {
                let (host, undo) = (self.hosts[self.random.usize(..HOSTS)].id.to_string(), self.random.u8(..3) > 0);
                self.write(manager, |draft| drain_service(draft, &somebody(), &host, undo).map(drop))
            }
            39 | 40 => self.ask_for_an_image(manager),
            41..45 => self.upload(manager),
            45..48 => {
                let (reference, base) = (self.any_image(), VolumeId::from_bytes(self.fresh()));
                self.ask_for_a_volume(manager, &volume, Some(Origin::Image { reference, base }))
            }
            48 => self.ask_for_an_end(manager),
            49 => self.give_up(manager),
            50..54 => self.ask_for_a_move(manager),
            54.. => self.write(manager, |draft| cancel_move(draft, &somebody(), &volume).map(drop)),
        };
        drop(asked);
    }

    fn ask_for_a_volume(&mut self, manager: usize, name: &str, origin: Option<Origin>) -> Result<(), Refusal> {
        let (id, name) = (VolumeId::from_bytes(self.fresh()), name.parse::<Name>().expect("a name"));
        let size = Some(ByteSize::mib(self.random.u64(1..20))).filter(|_| origin.is_none());
        let wanted = WantedVolume { size, pool: None, origin };
        let anywhere = self.planted == Planted::PlaceAnywhere;
        self.write(manager, |draft| {
            let draining: Vec<Service> =
                draft.all::<Service>().filter(|it| it.spec.draining.is_some()).cloned().collect();
            for mut service in draining.into_iter().filter(|_| anywhere) {
                service.spec.draining = None;
                draft.put(service);
            }
            create_volume(draft, &somebody(), id, &name, &wanted).map(drop)
        })
    }

    /// Of something that a manager shows as served, to the other pool.
    fn ask_for_a_move(&mut self, manager: usize) -> Result<(), Refusal> {
        let shown = self.managers[manager].view.volumes.values().map(|it| &it.value);
        let shown = shown.filter(|it| it.status.phase == Phase::Ready && !it.is_hidden());
        let all: Vec<_> = shown.map(|it| (it.meta.name.to_string(), it.is_on(self.hosts[0].id))).collect();
        let Some((volume, on_the_first)) = self.random.choice(all) else { return Ok(()) };
        let (pool, copy) = (if on_the_first { "p1" } else { "p0" }, VolumeId::from_bytes(self.fresh()));
        self.write(manager, |draft| move_volume(draft, &somebody(), &volume, pool, copy).map(drop))
    }

    fn ask_for_a_snapshot(&mut self, manager: usize, volume: String) -> Result<(), Refusal> {
        let name = self.one_of('s', SNAPSHOTS).parse().expect("a name");
        let wanted = [WantedSnapshot { id: SnapshotId::from_bytes(self.fresh()), name, volume }];
        self.write(manager, |draft| create_snapshots(draft, &somebody(), &wanted, None).map(drop))
    }

    fn ask_for_access(&mut self, manager: usize, volume: String) -> Result<(), Refusal> {
        let (client, shared) = (self.one_of('c', CLIENTS), self.random.bool());
        let access = Access { volume, client, read_only: self.random.bool(), shared };
        let id = AttachmentId::from_bytes(self.fresh());
        self.write(manager, |draft| attach_volume(draft, &somebody(), id, &access).map(drop))
    }

    /// Takes the last host out if it is down: some worlds lose one.
    fn give_up(&mut self, manager: usize) -> Result<(), Refusal> {
        let last = &self.hosts[HOSTS - 1];
        if last.running.is_some() || self.random.u8(..4) > 0 {
            return Ok(());
        }
        let id = last.id;
        for _ in 0..CLOSINGS {
            if self.write(manager, |draft| remove_service(draft, &somebody(), id, true))?.is_some() {
                break;
            }
        }
        Ok(())
    }
}
