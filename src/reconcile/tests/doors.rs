//! Who may use a volume, in whatever order tasks begin and end, over crashes: against a naive host.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::slice::from_ref;

fn attachment(id: u8, volume: u8, client: u8, shared: bool, removed: bool) -> AttachmentAssignment {
    AttachmentAssignment {
        id: AttachmentId::from_bytes([id; 16]),
        generation: Generation::new(1 + u64::from(removed)),
        volume: VolumeId::from_bytes([volume; 16]),
        volume_name: format!("v{volume}").parse().unwrap(),
        client: ClientId::from_bytes([client; 16]),
        client_name: format!("c{client}").parse().unwrap(),
        read_only: false,
        shared,
        removed,
    }
}

fn with_attachments(set: AssignmentSet, attachments: &[AttachmentAssignment]) -> AssignmentSet {
    AssignmentSet { attachments: attachments.iter().map(|held| (held.id, held.clone())).collect(), ..set }
}

#[test]
fn a_volume_is_served_only_once_it_is_settled_who_may_use_it() {
    let (mut world, now) = (World::default(), Instant::now());
    done(&mut world, pool(false));
    let held = attachment(9, 2, 1, false, false);
    let set = with_attachments(assigned(&[pool(false)], &[volume(2, 1, false), volume(3, 1, false)]), from_ref(&held));
    let admit = Task::Ensure(held.into());
    let other = Task::Ensure(volume(3, 1, false).into());
    assert_eq!(world.plan(&set, now), [admit.clone(), other.clone()], "another volume does not wait");
    world.begin(&admit);
    assert_eq!(world.plan(&set, now), from_ref(&other));
    world.finish(&admit, false, now);
    assert_eq!(world.plan(&set, now), [Task::Ensure(volume(2, 1, false).into()), other]);
}

#[test]
fn an_attachment_that_has_to_wait_for_others_does_not_hold_up_its_volume() {
    let (mut world, now) = (World::default(), Instant::now());
    done(&mut world, pool(false));
    let held = attachment(9, 2, 1, false, false);
    world.held.insert(held.id.into(), Progress::failed(held.clone().into(), 0, now));
    let set = with_attachments(assigned(&[pool(false)], &[volume(2, 2, false)]), &[held]);
    assert_eq!(world.plan(&set, now), [Task::Ensure(volume(2, 2, false).into())]);
}

#[test]
fn a_client_is_let_in_anew_only_once_its_former_attachment_is_gone() {
    let (mut world, now) = (World::default(), Instant::now());
    let (old, new) = (attachment(8, 2, 1, false, false), attachment(9, 2, 1, true, false));
    done(&mut world, old.clone());
    let set = with_attachments(AssignmentSet::default(), from_ref(&new));
    let drop_old = Task::Drop(old.into());
    assert_eq!(world.plan(&set, now), from_ref(&drop_old));
    world.begin(&drop_old);
    assert_eq!(world.plan(&set, now), [], "taking the old one back would take the new one back too");
    world.finish(&drop_old, false, now);
    assert_eq!(world.plan(&set, now), [Task::Ensure(new.into())]);
}

#[test]
fn nobody_is_let_in_while_somebody_is_there_who_is_not_assigned_any_more() {
    let (mut world, now) = (World::default(), Instant::now());
    done(&mut world, pool(false));
    let (old, new) = (attachment(8, 2, 1, false, false), attachment(9, 2, 2, false, false));
    done(&mut world, old.clone());
    let set = with_attachments(assigned(&[pool(false)], &[volume(2, 1, false)]), from_ref(&new));
    assert_eq!(world.plan(&set, now), [Task::Drop(old.clone().into())]);
    world.finish(&Task::Drop(old.into()), false, now);
    assert_eq!(world.plan(&set, now), [Task::Ensure(new.into())]);
}

#[test]
fn a_volume_is_not_served_under_a_name_that_others_are_still_let_in_to() {
    let (mut world, now) = (World::default(), Instant::now());
    done(&mut world, pool(false));
    let mut next = volume(3, 1, false);
    next.name = "v2".parse().unwrap();
    let left = attachment(8, 2, 1, true, false);
    done(&mut world, left.clone());
    let set = assigned(&[pool(false)], &[next.clone()]);
    assert_eq!(world.plan(&set, now), [Task::Drop(left.clone().into())]);
    world.finish(&Task::Drop(left.into()), false, now);
    assert_eq!(world.plan(&set, now), [Task::Ensure(next.into())]);
}

/// Who holds a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    LocalPeer,
    Client(ClientId),
}

#[derive(Default)]
struct Host {
    world: World,
    running: Vec<Task>,
    served: BTreeSet<String>,
    /// By volume and client: whether exclusive.
    grants: BTreeMap<(String, ClientId), bool>,
    connections: BTreeSet<(String, Who)>,
    /// What the ledger and the manager hold.
    assigned: AssignmentSet,
    /// Exclusive attachments that the manager was told are in force.
    promised: BTreeSet<AttachmentId>,
    ids: u8,
}

#[derive(Clone, Debug)]
enum Step {
    Attach { volume: u8, client: u8, shared: bool },
    Detach { volume: u8, client: u8 },
    Begin,
    Finish(usize),
    Connect { volume: u8, client: Option<u8> },
    Leave(usize),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let (volume, client) = (2u8..4, 1u8..3);
    let pair = || (volume.clone(), client.clone());
    prop_oneof![
        4 => (pair(), any::<bool>()).prop_map(|((volume, client), shared)| Step::Attach { volume, client, shared }),
        2 => pair().prop_map(|(volume, client)| Step::Detach { volume, client }),
        6 => Just(Step::Begin),
        8 => (0usize..8).prop_map(Step::Finish),
        6 => (volume.clone(), prop::option::of(client.clone())).prop_map(|(volume, client)| Step::Connect { volume, client }),
        2 => (0usize..8).prop_map(Step::Leave),
        1 => Just(Step::Crash),
    ]
}

impl Host {
    fn new() -> Self {
        let assigned = assigned(&[pool(false)], &[volume(2, 1, false), volume(3, 1, false)]);
        Self { assigned, ids: 10, ..Self::default() }
    }

    fn take(&mut self, step: &Step, now: Instant) {
        match *step {
            Step::Attach { volume, client, shared } => self.attach(volume, client, shared),
            Step::Detach { volume, client } => self.detach(volume, client),
            Step::Begin => {
                for task in self.world.plan(&self.assigned, now) {
                    self.world.begin(&task);
                    self.running.push(task);
                }
            }
            Step::Finish(index) if !self.running.is_empty() => {
                let task = self.running.remove(index % self.running.len());
                let ok = self.carry_out(&task);
                self.world.finish(&task, !ok, now);
            }
            Step::Connect { volume, client } => self.connect(volume, client),
            Step::Leave(index) if !self.connections.is_empty() => {
                let gone = self.connections.iter().nth(index % self.connections.len()).cloned().unwrap();
                self.connections.remove(&gone);
            }
            Step::Finish(_) | Step::Leave(_) => {}
            Step::Crash => {
                self.world = World::default();
                self.running.clear();
                self.served.clear();
                self.grants.clear();
                self.connections.clear();
            }
        }
    }

    /// As managers judge it.
    fn attach(&mut self, volume: u8, client: u8, shared: bool) {
        let id = VolumeId::from_bytes([volume; 16]);
        let mut beside = self.assigned.attachments.values().filter(|held| held.volume == id);
        let new = attachment(self.ids, volume, client, shared, false);
        if beside.all(|held| held.shared && shared && held.client != new.client) && self.ids < 250 {
            self.ids += 1;
            self.assigned.attachments.insert(new.id, new);
        }
    }

    fn detach(&mut self, volume: u8, client: u8) {
        let (volume, client) = (VolumeId::from_bytes([volume; 16]), ClientId::from_bytes([client; 16]));
        let held = self.assigned.attachments.values_mut().find(|held| held.volume == volume && held.client == client);
        if let Some(held) = held {
            held.removed = true;
            held.generation = Generation::new(2);
            self.promised.remove(&held.id);
        }
    }

    fn connect(&mut self, volume: u8, client: Option<u8>) {
        let name = format!("v{volume}");
        let alone = self.grants.iter().any(|((granted, _), exclusive)| *granted == name && *exclusive);
        let who = client.map_or(Who::LocalPeer, |client| Who::Client(ClientId::from_bytes([client; 16])));
        let admitted = match who {
            Who::LocalPeer => !alone,
            Who::Client(client) => self.grants.contains_key(&(name.clone(), client)),
        };
        if admitted && self.served.contains(&name) {
            self.connections.insert((name, who));
        }
    }

    /// As the export table does it.
    fn carry_out(&mut self, task: &Task) -> bool {
        match (task, task.object()) {
            (Task::Ensure(_), Assigned::Volume(volume)) => drop(self.served.insert(volume.name.to_string())),
            (Task::Ensure(_), Assigned::Attachment(held)) => {
                let name = held.volume_name.to_string();
                let in_the_way = |(used, who): &(String, Who)| *used == name && *who != Who::Client(held.client);
                if !held.shared && self.connections.iter().any(in_the_way) {
                    return false;
                }
                self.grants.insert((name, held.client), !held.shared);
                let live = self.assigned.attachments.get(&held.id).is_some_and(|held| !held.removed);
                if live && !held.shared {
                    self.promised.insert(held.id);
                }
            }
            (Task::Remove(_) | Task::Drop(_), Assigned::Attachment(held)) => {
                let name = held.volume_name.to_string();
                self.connections.remove(&(name.clone(), Who::Client(held.client)));
                self.grants.remove(&(name, held.client));
                if matches!(task, Task::Remove(_)) {
                    // Reported absent: the manager forgets it.
                    self.assigned.attachments.remove(&held.id);
                }
            }
            _ => {}
        }
        true
    }

    fn judge(&self) {
        for ((name, client), exclusive) in &self.grants {
            let known = |held: &AttachmentAssignment| held.volume_name.as_str() == name && held.client == *client;
            assert!(self.assigned.attachments.values().any(known), "a grant is in force after its fence");
            let in_the_way = |(used, who): &(String, Who)| used == name && *who != Who::Client(*client);
            assert!(!exclusive || !self.connections.iter().any(in_the_way), "an exclusive client is not alone");
        }
        for held in self.promised.iter().filter_map(|id| self.assigned.attachments.get(id)) {
            let others =
                |(used, who): &(String, Who)| held.volume_name.as_str() == used && *who != Who::Client(held.client);
            assert!(!self.connections.iter().any(others), "somebody slipped in beside an exclusive client");
        }
    }
}

proptest! {
    #[test]
    fn nobody_is_let_in_after_a_fence_or_beside_an_exclusive_client(steps in prop::collection::vec(step(), 0..120)) {
        let (mut host, mut now) = (Host::new(), Instant::now());
        for step in &steps {
            host.take(step, now);
            host.judge();
        }
        // Once all have left and nothing new is asked for, everything comes true.
        host.connections.clear();
        for _ in 0..10 {
            now += RETRY_CEILING;
            host.take(&Step::Begin, now);
            while !host.running.is_empty() {
                host.take(&Step::Finish(0), now);
                host.judge();
            }
        }
        prop_assert!(host.world.plan(&host.assigned, now + RETRY_CEILING).is_empty());
        prop_assert_eq!(host.served.len(), 2);
        let expected: BTreeSet<_> =
            host.assigned.attachments.values().map(|held| (held.volume_name.to_string(), held.client)).collect();
        prop_assert!(host.assigned.attachments.values().all(|held| !held.removed));
        prop_assert_eq!(host.grants.keys().cloned().collect::<BTreeSet<_>>(), expected);
    }
}
