//! Both ends against each other, over a link that loses nothing until it breaks.

use super::*;
use crate::model::*;
use proptest::prelude::*;
use std::time::{Duration, Instant};

const HEARTBEAT: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(4);

fn greeting() -> Greeting {
    Greeting {
        service: ServiceId::from_bytes([1; 16]),
        cluster: ClusterId::from_bytes([2; 16]),
        host_name: "host".into(),
        addresses: Addresses::default(),
        version: "0".into(),
        mark: Mark::default(),
    }
}

fn welcome() -> Welcome {
    Welcome {
        session: SessionId::from_bytes([3; 16]),
        heartbeat: HEARTBEAT,
        lease: LEASE,
        managers: vec![],
        mark: Mark::default(),
    }
}

fn volume(id: u8, generation: u64) -> VolumeAssignment {
    VolumeAssignment::bare(
        VolumeId::from_bytes([id; 16]),
        &format!("v{id}"),
        generation,
        PoolId::from_bytes([9; 16]),
        ByteSize::mib(generation),
    )
}

fn report(id: u8, generation: u64) -> Report {
    Report::Volume(VolumeReport {
        progress: None,
        id: VolumeId::from_bytes([id; 16]),
        generation: Generation::new(generation),
        volume: Observed::Unknown,
        failure: None,
    })
}

/// Both ends, what the service holds, and what the manager committed.
struct World {
    now: Instant,
    manager: ManagerSide,
    service: ServiceSide,
    assigned: AssignmentSet,
    held: AssignmentSet,
    committed: Vec<Report>,
    keep_alives: usize,
    believed: Option<Trust>,
    ends: Vec<Ended>,
}

impl World {
    fn open(assigned: AssignmentSet) -> Self {
        let now = Instant::now();
        let (service, actions) = ServiceSide::begin(greeting(), now);
        let mut world = Self {
            now,
            manager: ManagerSide::new(now),
            service,
            assigned,
            held: AssignmentSet::default(),
            committed: vec![],
            keep_alives: 0,
            believed: None,
            ends: vec![],
        };
        world.service_does(actions);
        world
    }

    fn service_does(&mut self, actions: Vec<ServiceAction>) {
        for action in actions {
            match action {
                ServiceAction::Send(message) => {
                    let actions = self.manager.handle(ManagerEvent::Received(message), self.now);
                    self.manager_does(actions);
                }
                ServiceAction::Replace(set) => assert!(self.held.replace(set).is_empty()),
                ServiceAction::Apply(changes) => assert!(self.held.apply(changes).is_empty()),
                ServiceAction::TakeInventory { nonce } => {
                    let answer = ServiceEvent::Inventory { nonce, inventory: Inventory::default() };
                    let actions = self.service.handle(answer, self.now);
                    self.service_does(actions);
                }
                ServiceAction::Believe(trust) => self.believed = Some(trust),
                ServiceAction::Opened | ServiceAction::Remember(_) | ServiceAction::Learn { .. } => {}
                ServiceAction::End(reason) => self.ends.push(reason),
            }
        }
    }

    fn manager_does(&mut self, actions: Vec<ManagerAction>) {
        for action in actions {
            let event = match action {
                ManagerAction::Admit(greeting) => {
                    assert_eq!(greeting.service, ServiceId::from_bytes([1; 16]));
                    ManagerEvent::Admitted { welcome: welcome(), assignments: self.assigned.clone(), partial: false }
                }
                ManagerAction::Send(message) => {
                    let actions = self.service.handle(ServiceEvent::Received(message), self.now);
                    self.service_does(actions);
                    continue;
                }
                ManagerAction::Commit { sequence, reports } => {
                    self.committed.extend(reports);
                    ManagerEvent::Committed { sequence }
                }
                ManagerAction::Heard => {
                    self.keep_alives += 1;
                    continue;
                }
                ManagerAction::Answer { .. } => continue,
                ManagerAction::End { reason, .. } => {
                    self.ends.push(reason);
                    continue;
                }
            };
            let actions = self.manager.handle(event, self.now);
            self.manager_does(actions);
        }
    }

    fn assign(&mut self, set: AssignmentSet) {
        self.assigned = set.clone();
        let actions = self.manager.handle(ManagerEvent::Assigned { set, partial: false }, self.now);
        self.manager_does(actions);
    }

    fn report(&mut self, reports: Vec<Report>) {
        let actions = self.service.handle(ServiceEvent::Report(reports), self.now);
        self.service_does(actions);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let actions = self.service.handle(ServiceEvent::Tick, self.now);
        self.service_does(actions);
        let actions = self.manager.handle(ManagerEvent::Tick, self.now);
        self.manager_does(actions);
    }
}

#[test]
fn a_session_that_only_beats_stays_open_and_renews_its_lease() {
    let mut world = World::open(AssignmentSet::default());
    for _ in 0..20 {
        world.pass(HEARTBEAT);
        world.report(vec![report(1, 1)]);
    }
    assert_eq!((world.keep_alives, world.ends.len()), (20, 0));
}

#[test]
fn silence_ends_either_side() {
    let mut world = World::open(AssignmentSet::default());
    let later = world.now + LEASE + Duration::from_millis(1);
    let actions = world.manager.handle(ManagerEvent::Tick, later);
    assert_eq!(actions, [ManagerAction::End { reason: Ended::Silence(LEASE), release: false }]);
    let actions = world.service.handle(ServiceEvent::Tick, later);
    assert_eq!(actions, [ServiceAction::End(Ended::Silence(LEASE))]);
}

/// What a service does at each of these times after its last word from the manager, if nothing more comes.
fn alone(after: &[u32]) -> Vec<Vec<ServiceAction>> {
    let mut world = World::open(AssignmentSet::default());
    let began = world.now;
    after.iter().map(|quarters| world.service.handle(ServiceEvent::Tick, began + *quarters * HEARTBEAT / 4)).collect()
}

#[test]
fn a_manager_that_hangs_is_left_before_the_lease_has_run_out() {
    let beat = vec![ServiceAction::Send(Upward::Heartbeat)];
    let left = vec![ServiceAction::End(Ended::Silence(2 * HEARTBEAT))];
    assert_eq!(alone(&[3, 4, 8, 11, 12]), [vec![], beat.clone(), beat.clone(), vec![], left]);
    assert!(3 * HEARTBEAT < LEASE, "it is left while there is still lease");
    // Whatever is heard is an answer.
    let mut world = World::open(AssignmentSet::default());
    let began = world.now;
    for period in 1..9 {
        assert_eq!(world.service.handle(ServiceEvent::Tick, began + period * HEARTBEAT), beat);
        let late = began + period * HEARTBEAT + HEARTBEAT * 9 / 10;
        assert_eq!(world.service.handle(ServiceEvent::Received(Downward::HeartbeatAck), late), []);
    }
}

#[test]
fn a_service_that_could_not_run_itself_asks_before_it_leaves() {
    let beat = vec![ServiceAction::Send(Upward::Heartbeat)];
    assert_eq!(alone(&[14])[0], beat, "it was stopped for most of a lease");
}

#[test]
fn an_unanswered_heartbeat_has_a_deadline() {
    let mut world = World::open(AssignmentSet::default());
    let began = world.now;
    for period in 1..3 {
        assert_eq!(world.service.deadline(), began + period * HEARTBEAT);
        world.service.handle(ServiceEvent::Tick, began + period * HEARTBEAT);
    }
    assert_eq!(world.service.deadline(), began + 3 * HEARTBEAT);
    let actions = world.service.handle(ServiceEvent::Tick, began + 3 * HEARTBEAT);
    assert!(matches!(actions[..], [ServiceAction::End(_)]), "{actions:?}");
}

#[test]
fn a_gap_in_the_chain_ends_the_session() {
    let mut world = World::open(AssignmentSet::default());
    let gap = Downward::Incremental { changes: vec![], applies_to: Step(7), results_in: Step(8) };
    let actions = world.service.handle(ServiceEvent::Received(gap), world.now);
    assert!(matches!(actions[..], [ServiceAction::End(Ended::Protocol(_))]), "{actions:?}");
}

#[test]
fn messages_out_of_order_end_the_session_and_nothing_follows() {
    for message in [Upward::Heartbeat, Upward::Goodbye, Upward::Reports { sequence: 1, reports: vec![] }] {
        let now = Instant::now();
        let mut manager = ManagerSide::new(now);
        let actions = manager.handle(ManagerEvent::Received(message), now);
        assert!(matches!(actions[..], [ManagerAction::End { reason: Ended::Protocol(_), .. }]));
        assert_eq!(manager.handle(ManagerEvent::Received(Upward::Hello(greeting())), now), []);
    }
}

#[test]
fn removal_reaches_the_service_and_releases_its_lease() {
    let mut world = World::open(AssignmentSet::default());
    let actions = world.manager.handle(ManagerEvent::Removed, world.now);
    assert!(actions.contains(&ManagerAction::End { reason: Ended::Removed, release: true }));
    world.manager_does(actions);
    assert!(world.ends.contains(&Ended::Removed));
}

#[test]
fn an_inventory_is_asked_for_and_answered() {
    let mut world = World::open(AssignmentSet::default());
    let actions = world.manager.handle(ManagerEvent::Ask { nonce: 5 }, world.now);
    assert_eq!(actions, [ManagerAction::Send(Downward::InventoryRequest { nonce: 5 })]);
    world.manager_does(actions);
    assert!(world.ends.is_empty());
}

#[test]
fn a_manager_that_cannot_read_everything_takes_nothing_away() {
    let held: AssignmentSet = AssignmentSet {
        volumes: [volume(1, 1), volume(2, 1)].into_iter().map(|volume| (volume.id, volume)).collect(),
        ..AssignmentSet::default()
    };
    let mut world = World::open(held.clone());
    let seen = AssignmentSet { volumes: [(volume(2, 2).id, volume(2, 2))].into(), ..AssignmentSet::default() };
    let actions = world.manager.handle(ManagerEvent::Assigned { set: seen, partial: true }, world.now);
    world.manager_does(actions);
    assert_eq!(world.held.volumes.len(), 2);
    assert_eq!(world.held.volumes.get(&volume(2, 2).id), Some(&volume(2, 2)));
}

#[test]
fn an_admission_that_took_longer_than_the_lease_opens_a_session_that_stays() {
    let now = Instant::now();
    let mut manager = ManagerSide::new(now);
    manager.handle(ManagerEvent::Received(Upward::Hello(greeting())), now);
    let late = now + LEASE + Duration::from_millis(1);
    let admitted = ManagerEvent::Admitted { welcome: welcome(), assignments: AssignmentSet::default(), partial: false };
    assert_eq!(manager.handle(admitted, late).len(), 2);
    assert_eq!(manager.handle(ManagerEvent::Tick, late), []);
}

#[test]
fn only_the_latest_report_of_an_object_is_sent_and_one_batch_at_a_time() {
    let now = Instant::now();
    let (mut service, _) = ServiceSide::begin(greeting(), now);
    assert_eq!(service.handle(ServiceEvent::Report(vec![report(1, 1)]), now), []);
    service.handle(ServiceEvent::Received(Downward::Welcome(welcome())), now);
    assert_eq!(service.handle(ServiceEvent::Report(vec![report(1, 2)]), now), [], "not before the assignments");
    let complete = Downward::Complete { set: AssignmentSet::default(), partial: false, results_in: Step(1) };
    let actions = service.handle(ServiceEvent::Received(complete), now);
    let sent = ServiceAction::Send(Upward::Reports { sequence: 1, reports: vec![report(1, 2)] });
    assert_eq!(actions[1], sent);
    assert_eq!(service.handle(ServiceEvent::Report(vec![report(2, 1)]), now), []);
    let actions = service.handle(ServiceEvent::Received(Downward::ReportsAck { sequence: 1 }), now);
    assert_eq!(actions, [ServiceAction::Send(Upward::Reports { sequence: 2, reports: vec![report(2, 1)] })]);
}

#[test]
fn whose_certificates_to_believe_is_said_once_the_session_is_open() {
    let mut world = World::open(AssignmentSet::default());
    let trust = Trust { roots: vec!["pem".into()], revoked: Default::default(), signing: "ab".into() };
    let actions = world.manager.handle(ManagerEvent::Trust(trust.clone()), world.now);
    world.manager_does(actions);
    assert_eq!(world.believed, Some(trust.clone()));
    let actions = ManagerSide::new(world.now).handle(ManagerEvent::Trust(trust), world.now);
    assert_eq!(actions, [], "nobody is there to be told");
}

proptest! {
    #[test]
    fn whatever_is_assigned_is_held_and_whatever_is_reported_is_committed(
        sets in prop::collection::vec(prop::collection::btree_map(1u8..6, any::<bool>(), 0..5), 1..12),
        reported in prop::collection::vec((1u8..6, 1u64..9), 0..12),
    ) {
        let mut world = World::open(AssignmentSet::default());
        for (index, set) in sets.into_iter().enumerate() {
            let generation = index as u64 + 1;
            let volumes = set.into_keys().map(|id| volume(id, generation)).map(|v| (v.id, v)).collect();
            world.assign(AssignmentSet { volumes, ..AssignmentSet::default() });
            prop_assert_eq!(&world.held, &world.assigned);
        }
        for (id, generation) in reported {
            world.report(vec![report(id, generation)]);
            prop_assert_eq!(world.committed.last(), Some(&report(id, generation)));
        }
        prop_assert!(world.ends.is_empty());
    }
}
