//! Planners against a naive store: whatever is committed must add up.

use super::pool::RuleChanges;
use super::*;
use crate::manager::draft::Draft;
use crate::model::*;
use crate::session::Greeting;
use crate::store::{self, Batch, Compare, Entry, Key, LeaseId, Op, Revision};
use proptest::prelude::*;

mod attachments;
mod carry;
mod devices;
mod images;
mod limits;
mod moves;
mod orphans;
mod pools;
mod record;
mod rooms;
mod snapshots;

const NOW: Timestamp = Timestamp::EPOCH;

/// On whose behalf everything here is done.
fn somebody() -> Author {
    Author { who: "local root".into(), origin: "the control socket".into() }
}

fn service_id() -> ServiceId {
    ServiceId::from_bytes([1; 16])
}

fn session_id() -> SessionId {
    SessionId::from_bytes([3; 16])
}

/// A volume of so many MiB.
fn wanted(mib: u64, pool: Option<&str>) -> WantedVolume {
    WantedVolume { size: Some(ByteSize::mib(mib)), pool: pool.map(str::to_owned), origin: None }
}

/// Room for many entries of each revision.
fn first_event(revision: Revision) -> EventId {
    EventId::from_bytes((u128::try_from(revision.0).unwrap() << 32).to_be_bytes())
}

/// A view, and commits that reach it as a store's would.
#[derive(Default)]
struct World {
    view: View,
    ids: u8,
}

impl World {
    /// With one ready block service.
    fn new() -> Self {
        let mut world = Self::default();
        let service = Service {
            meta: Meta::new(service_id(), "host".parse().unwrap(), NOW),
            spec: ServiceSpec { service_type: ServiceType::Block, labels: Default::default(), draining: None },
            status: ServiceStatus {
                state: ServiceState::Joined,
                since: NOW,
                host_name: "host".into(),
                addresses: Addresses::default(),
                version: "0".into(),
                manager: None,
                certificate: None,
            },
        };
        world.write(|draft| join_service(draft, &somebody(), &service)).unwrap();
        world.admit();
        world
    }

    fn admit(&mut self) {
        let (service, manager) = (service_id(), ServiceId::from_bytes([2; 16]));
        let session = Session { id: session_id(), service, manager, since: NOW };
        let greeting = Greeting {
            service,
            cluster: ClusterId::from_bytes([4; 16]),
            host_name: "host".into(),
            addresses: Addresses::default(),
            version: "0".into(),
            mark: Mark::default(),
        };
        self.write(|draft| admit_session(draft, &session, &greeting, LeaseId(1))).unwrap();
    }

    /// The lease runs out, and the leader takes note.
    fn fall_silent(&mut self) {
        let gone = crate::store::Key::session(service_id());
        let revision = Revision(self.view.revision.0 + 1);
        self.view.apply(Batch { revision, events: vec![store::Event::Delete(gone)] });
        self.write(|draft| mark_down(draft, &somebody(), service_id())).unwrap();
    }

    fn write<T>(&mut self, mut plan: impl FnMut(&mut Draft<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let revision = Revision(self.view.revision.0 + 1);
        let mut draft = Draft::new(&self.view, NOW, first_event(revision));
        let outcome = plan(&mut draft)?;
        assert!(draft.weight() <= crate::store::MAX_TXN_OPS, "{}", draft.weight());
        if let Some(txn) = draft.finish().unwrap().filter(|txn| !txn.ops.is_empty()) {
            let events = txn.ops.into_iter().map(|op| match op {
                Op::Put { key, value, lease } => store::Event::Put(Entry { key, value, revision, lease }),
                Op::Delete { key } => store::Event::Delete(key),
            });
            self.view.apply(Batch { revision, events: events.collect() });
        }
        Ok(outcome)
    }

    fn id(&mut self) -> [u8; 16] {
        self.ids += 1;
        [self.ids; 16]
    }

    fn pool(&mut self, name: &str, capacity: u64) -> Pool {
        let id = PoolId::from_bytes(self.id());
        let driver = Driver::File { path: format!("/{name}").into(), limit: None };
        let name = name.parse().unwrap();
        let pool = self
            .write(|draft| create_pool(draft, &somebody(), id, &name, None, &driver, RuleChanges::default()))
            .unwrap();
        self.report_pool(&pool, Observed::Known(capacity));
        self.view.get::<Pool>(id).unwrap().clone()
    }

    fn report_pool(&mut self, pool: &Pool, capacity: Observed<u64>) {
        let capacity = match capacity {
            Observed::Known(mib) => {
                Observed::Known(PoolCapacity { capacity: ByteSize::mib(mib), copies: true, ..PoolCapacity::default() })
            }
            Observed::Absent => Observed::Absent,
            Observed::Unknown => Observed::Unknown,
        };
        let report = PoolReport { id: pool.meta.id, generation: pool.meta.generation, capacity, failure: None };
        self.write(|draft| take_reports(draft, service_id(), session_id(), &[Report::Pool(report.clone())])).unwrap();
    }

    fn volume(&mut self, name: &str, mib: u64, pool: Option<&str>) -> Result<Volume, Refusal> {
        let id = VolumeId::from_bytes(self.id());
        let name = name.parse().unwrap();
        self.write(|draft| create_volume(draft, &somebody(), id, &name, &wanted(mib, pool)))
    }

    fn report_gone(&mut self, volume: &Volume) {
        let report = VolumeReport {
            id: volume.meta.id,
            generation: volume.meta.generation,
            volume: Observed::Absent,
            progress: None,
            failure: None,
        };
        self.write(|draft| take_reports(draft, service_id(), session_id(), &[Report::Volume(report.clone())])).unwrap();
    }

    /// What the consistency check would say of the state.
    fn assert_adds_up(&self) {
        for pool in self.view.pools.values() {
            let inside = self.view.volumes.values().filter(|volume| volume.value.is_in(pool.value.meta.id));
            let kept = self.view.snapshots.values().filter(|snapshot| snapshot.value.is_in(pool.value.meta.id));
            let promised = kept.map(|snapshot| snapshot.value.status.promised);
            let sum: ByteSize = inside.map(|volume| volume.value.promised()).chain(promised).sum();
            assert_eq!(sum, pool.value.status.reserved);
            assert!(pool.value.promisable().is_none_or(|promisable| sum <= promisable), "overcommitted");
        }
        let named = self.view.pools.len() + self.view.volumes.len() + self.view.snapshots.len();
        let named = named + self.view.clients.len() + self.view.images.len();
        assert_eq!(self.view.names.len(), named);
    }
}

#[test]
fn the_roomiest_ready_pool_takes_a_volume_that_names_none() {
    let mut world = World::new();
    world.pool("small", 10);
    let large = world.pool("large", 20);
    let volume = world.volume("v", 5, None).unwrap();
    assert!(volume.is_in(large.meta.id));
    assert_eq!(world.view.get::<Pool>(large.meta.id).unwrap().free(), Some(ByteSize::mib(15)));
}

#[test]
fn a_volume_that_fits_nowhere_is_refused_with_the_most_there_is() {
    let mut world = World::new();
    world.pool("p", 10);
    let refusal = world.volume("v", 11, None).unwrap_err();
    assert!(refusal.to_string().contains("10MiB in 'p'"), "{refusal}");
    assert!(matches!(world.volume("v", 11, Some("p")), Err(Refusal::NoRoom { .. })));
    world.assert_adds_up();
}

#[test]
fn a_name_is_taken_until_its_volume_is_gone() {
    let mut world = World::new();
    world.pool("p", 10);
    let volume = world.volume("v", 1, None).unwrap();
    assert!(matches!(world.volume("v", 1, None), Err(Refusal::NameTaken { .. })));
    let buried = world.write(|draft| remove_volume(draft, &somebody(), "v", None)).unwrap();
    assert!(matches!(world.volume("v", 1, None), Err(Refusal::NameTaken { .. })));
    world.report_gone(&volume);
    assert!(world.view.get::<Volume>(volume.meta.id).is_some(), "a report on an older generation proves nothing");
    world.report_gone(&buried);
    assert!(world.volume("v", 1, None).is_ok());
    world.assert_adds_up();
}

#[test]
fn a_pool_that_holds_volumes_is_not_removed_and_says_which() {
    let mut world = World::new();
    world.pool("p", 10);
    world.volume("v", 1, None).unwrap();
    let refusal = world.write(|draft| remove_pool(draft, &somebody(), "p")).unwrap_err();
    assert!(refusal.to_string().contains("'v'"), "{refusal}");
}

#[test]
fn a_report_on_what_another_service_holds_is_refused_whole() {
    let mut world = World::new();
    let pool = world.pool("p", 10);
    let forged = PoolReport {
        id: pool.meta.id,
        generation: pool.meta.generation,
        capacity: Observed::Known(PoolCapacity {
            capacity: ByteSize::mib(999),
            copies: true,
            ..PoolCapacity::default()
        }),
        failure: None,
    };
    let stranger = ServiceId::from_bytes([9; 16]);
    let session = Session { id: session_id(), service: stranger, manager: stranger, since: NOW };
    let overwrite = |draft: &mut Draft<'_>| {
        draft.overwrite_leased(session.clone(), LeaseId(2));
        Ok(())
    };
    world.write(overwrite).unwrap();
    let outcome = world.write(|draft| take_reports(draft, stranger, session_id(), &[Report::Pool(forged.clone())]));
    assert!(matches!(outcome, Err(Refusal::NotYours { .. })));
    assert_eq!(world.view.get::<Pool>(pool.meta.id), Some(&pool));
}

#[test]
fn a_report_of_a_session_that_is_over_is_refused() {
    let mut world = World::new();
    let pool = world.pool("p", 10);
    let late = PoolReport {
        id: pool.meta.id,
        generation: pool.meta.generation,
        capacity: Observed::Unknown,
        failure: Some("old news".into()),
    };
    let older = SessionId::from_bytes([8; 16]);
    let outcome = world.write(|draft| take_reports(draft, service_id(), older, &[Report::Pool(late.clone())]));
    assert!(matches!(outcome, Err(Refusal::Superseded(_))));
    assert_eq!(world.view.get::<Pool>(pool.meta.id), Some(&pool));
}

#[test]
fn a_report_that_says_nothing_new_to_the_view_is_compared_with_the_store() {
    let mut world = World::new();
    let pool = world.pool("p", 10);
    let (generation, capacity) = (pool.meta.generation, pool.status.capacity.unwrap());
    let known = PoolCapacity { capacity, copies: true, ..PoolCapacity::default() };
    let (id, missing) = (pool.meta.id, PoolId::from_bytes([9; 16]));
    let seen = |id| Report::Pool(PoolReport { id, generation, capacity: Observed::Known(known), failure: None });
    let mut draft = Draft::new(&world.view, NOW, first_event(Revision(99)));
    take_reports(&mut draft, service_id(), session_id(), &[seen(id), seen(missing)]).unwrap();
    let txn = draft.finish().unwrap().unwrap();
    assert!(txn.ops.is_empty(), "{txn:?}");
    let held = world.view.pools[&id].revision;
    assert!(txn.compares.contains(&Compare::Unchanged(Key::pool(id), held)), "{txn:?}");
    assert!(txn.compares.contains(&Compare::Absent(Key::pool(missing))), "{txn:?}");
}

#[test]
fn a_session_that_is_over_is_closed_and_one_that_has_taken_its_place_is_not() {
    let mut world = World::new();
    let older = SessionId::from_bytes([8; 16]);
    world.write(|draft| close_sessions(draft, &[(service_id(), older)])).unwrap();
    assert!(world.view.get::<Session>(service_id()).is_some_and(|held| held.id == session_id()));
    world.write(|draft| close_sessions(draft, &[(service_id(), session_id())])).unwrap();
    assert_eq!(world.view.get::<Session>(service_id()), None);
    world.write(|draft| close_sessions(draft, &[(service_id(), session_id())])).unwrap();
}

#[test]
fn a_service_that_is_connected_is_not_lost() {
    let mut world = World::new();
    world.pool("p", 10);
    let refusal = world.write(|draft| remove_service(draft, &somebody(), service_id(), true)).unwrap_err();
    assert!(refusal.to_string().contains("connected"), "{refusal}");
    assert_eq!(world.view.pools.len(), 1);
}

#[test]
fn a_service_is_removed_only_empty_or_lost_and_then_nothing_of_it_is_left() {
    let mut world = World::new();
    world.pool("p", 1000);
    for index in 0..100 {
        world.volume(&format!("v{index}"), 1, None).unwrap();
    }
    let refusal = world.write(|draft| remove_service(draft, &somebody(), service_id(), false)).unwrap_err();
    assert!(refusal.to_string().contains("'v0'") && refusal.to_string().contains("more"), "{refusal}");
    world.fall_silent();
    let mut rounds = 1;
    while world.write(|draft| remove_service(draft, &somebody(), service_id(), true)).unwrap().is_none() {
        rounds += 1;
        assert!(rounds < 10);
    }
    assert!(world.view.pools.is_empty() && world.view.volumes.is_empty() && world.view.names.is_empty());
    assert_eq!(world.view.get::<Service>(service_id()).unwrap().status.state, ServiceState::Removed);
    assert!(world.view.get::<Session>(service_id()).is_none());
}

#[test]
fn volumes_of_a_silent_service_are_not_placed_there_by_themselves() {
    let mut world = World::new();
    world.pool("p", 10);
    world.fall_silent();
    assert_eq!(world.view.get::<Service>(service_id()).unwrap().status.state, ServiceState::Down);
    assert!(matches!(world.volume("v", 1, None), Err(Refusal::NoRoomAnywhere { .. })));
    world.admit();
    assert!(world.volume("v", 1, None).is_ok());
}

#[test]
fn several_plans_share_a_draft_and_see_each_other() {
    let mut world = World::new();
    world.pool("p", 10);
    let (a, b) = (VolumeId::from_bytes([100; 16]), VolumeId::from_bytes([101; 16]));
    let name: Name = "same".parse().unwrap();
    world
        .write(|draft| {
            create_volume(draft, &somebody(), a, &name, &wanted(6, None))?;
            let savepoint = draft.savepoint();
            assert!(
                create_volume(draft, &somebody(), b, &name, &wanted(1, None)).is_err(),
                "the name is planned already"
            );
            draft.undo_to(savepoint);
            let savepoint = draft.savepoint();
            assert!(
                create_volume(draft, &somebody(), b, &"other".parse().unwrap(), &wanted(6, None)).is_err(),
                "no room"
            );
            draft.undo_to(savepoint);
            Ok(())
        })
        .unwrap();
    assert_eq!(world.view.volumes.len(), 1);
    world.assert_adds_up();
}

#[derive(Clone, Debug)]
enum Deed {
    Create(u8, u64),
    Resize(u8, u64),
    Remove(u8),
    Gone(u8),
}

fn deed() -> impl Strategy<Value = Deed> {
    let name = 0u8..6;
    prop_oneof![
        3 => (name.clone(), 1u64..12).prop_map(|(name, size)| Deed::Create(name, size)),
        2 => (name.clone(), 1u64..12).prop_map(|(name, size)| Deed::Resize(name, size)),
        2 => name.clone().prop_map(Deed::Remove),
        2 => name.prop_map(Deed::Gone),
    ]
}

proptest! {
    #[test]
    fn whatever_is_done_promises_add_up_and_pools_are_never_overcommitted(deeds in prop::collection::vec(deed(), 0..60)) {
        let mut world = World::new();
        world.pool("one", 20);
        world.pool("two", 15);
        for deed in deeds {
            // Refusals are part of life here; what is checked is what they leave behind.
            let before = world.view.revision;
            let refused = match deed {
                Deed::Create(name, size) => world.volume(&format!("v{name}"), size, None).is_err(),
                Deed::Resize(name, size) => {
                    let name = format!("v{name}");
                    world.write(|draft| resize_volume(draft, &somebody(), &name, ByteSize::mib(size), false)).is_err()
                }
                Deed::Remove(name) => world.write(|draft| remove_volume(draft, &somebody(), &format!("v{name}"), None)).is_err(),
                Deed::Gone(name) => {
                    let buried = world.view.volumes.values().map(|volume| (*volume.value).clone());
                    let buried: Vec<Volume> = buried
                        .filter(|volume| volume.meta.is_removed() && volume.meta.name.as_str() == format!("v{name}"))
                        .collect();
                    buried.iter().for_each(|volume| world.report_gone(volume));
                    false
                }
            };
            prop_assert!(!refused || world.view.revision == before);
            world.assert_adds_up();
        }
    }
}
