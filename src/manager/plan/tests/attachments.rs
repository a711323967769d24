//! Who may use a volume: what managers promise, and what block services report.

use super::*;
use crate::manager::plan::attachment::bury_attachments_of;
use crate::store::Key;

impl World {
    pub(super) fn client(&mut self, name: &str) -> Client {
        let id = ClientId::from_bytes(self.id());
        let name: Name = name.parse().unwrap();
        let certificate = CertificateRecord {
            public_key: "ab".into(),
            expires_at: NOW,
            root: "cd".into(),
            names: Default::default(),
        };
        let client = Client::new(Meta::new(id, name.clone(), NOW), ClientRole::Data, certificate);
        self.write(|draft| {
            draft.claim(Kind::Client, &name, id)?;
            draft.put(client.clone());
            Ok(())
        })
        .unwrap();
        client
    }

    pub(super) fn attach(
        &mut self,
        volume: &str,
        client: &str,
        read_only: bool,
        shared: bool,
    ) -> Result<Attachment, Refusal> {
        let id = AttachmentId::from_bytes(self.id());
        let access = Access { volume: volume.into(), client: client.into(), read_only, shared };
        self.write(|draft| attach_volume(draft, &somebody(), id, &access))
    }

    pub(super) fn detach(&mut self, volume: &str, client: &str) -> Result<Attachment, Refusal> {
        self.write(|draft| detach_volume(draft, &somebody(), volume, client))
    }

    pub(super) fn report_attachment(&mut self, held: &Attachment, in_force: Observed<()>, failure: Option<&str>) {
        let (id, generation) = (held.meta.id, held.meta.generation);
        let report = AttachmentReport { id, generation, in_force, failure: failure.map(str::to_owned) };
        let report = Report::Attachment(report);
        self.write(|draft| take_reports(draft, service_id(), session_id(), std::slice::from_ref(&report))).unwrap();
    }

    /// Removed as an operator would, its name free again, its attachments buried.
    fn remove_client(&mut self, client: &Client) {
        let mut client = client.clone();
        while !self.write(|draft| Ok(bury_attachments_of(draft, &somebody(), client.meta.id))).unwrap() {}
        self.write(|draft| {
            client.meta.bury(NOW);
            draft.release(Kind::Client, &client.meta.name);
            draft.put(client.clone());
            Ok(())
        })
        .unwrap();
    }
}

fn with_volume() -> World {
    let mut world = World::new();
    world.pool("p", 1000);
    world.volume("db", 1, None).unwrap();
    world.client("web");
    world.client("spare");
    world
}

#[track_caller]
fn says(outcome: Result<impl std::fmt::Debug, Refusal>, words: &[&str]) {
    let refusal = outcome.unwrap_err().to_string();
    for word in words {
        assert!(refusal.contains(word), "'{word}' is missing in: {refusal}");
    }
}

#[test]
fn an_attachment_is_assigned_where_the_volume_is_and_ready_once_in_force() {
    let mut world = with_volume();
    let held = world.attach("db", "web", true, false).unwrap();
    assert_eq!(held.status.placement, [service_id()]);
    let assigned = world.view.assignments(service_id()).attachments;
    assert_eq!(assigned.get(&held.meta.id).map(|held| (held.read_only, held.shared)), Some((true, false)));
    world.report_attachment(&held, Observed::Unknown, Some("2 connections are in the way"));
    let failed = world.view.get::<Attachment>(held.meta.id).unwrap();
    assert_eq!(
        (failed.status.phase, failed.status.message.as_deref()),
        (Phase::Failed, Some("2 connections are in the way"))
    );
    world.report_attachment(&held, Observed::Known(()), None);
    assert_eq!(world.view.get::<Attachment>(held.meta.id).unwrap().status.phase, Phase::Ready);
}

#[test]
fn the_same_attach_again_changes_nothing_and_a_differing_one_says_what_to_do() {
    let mut world = with_volume();
    let held = world.attach("db", "web", false, false).unwrap();
    let revision = world.view.revision;
    assert_eq!(world.attach("db", "web", false, false), Ok(held));
    assert_eq!(world.view.revision, revision, "nothing is written");
    for (read_only, shared) in [(true, false), (false, true)] {
        says(
            world.attach("db", "web", read_only, shared),
            &["'web'", "'db'", "exclusive", "volume detach db --client web"],
        );
    }
    assert_eq!(world.view.revision, revision);
}

#[test]
fn a_client_that_is_alone_stays_alone_until_it_is_cut_off() {
    let mut world = with_volume();
    let alone = world.attach("db", "web", false, false).unwrap();
    says(world.attach("db", "spare", false, true), &["'web'", "for itself", "volume detach db --client web"]);
    says(world.attach("db", "spare", false, false), &["'web'"]);
    let buried = world.detach("db", "web").unwrap();
    says(world.attach("db", "spare", false, false), &["'web'", "still being detached"]);
    says(world.attach("db", "web", false, false), &["'web'", "still being detached"]);
    world.report_attachment(&alone, Observed::Absent, None);
    assert_eq!(world.view.attachments.len(), 1, "a report on an older generation proves nothing");
    world.report_attachment(&buried, Observed::Absent, None);
    assert!(world.view.attachments.is_empty());
    assert!(world.attach("db", "spare", false, false).is_ok());
}

#[test]
fn clients_that_share_are_beside_each_other_and_nobody_becomes_alone_beside_them() {
    let mut world = with_volume();
    world.attach("db", "web", false, true).unwrap();
    world.attach("db", "spare", true, true).unwrap();
    world.client("third");
    says(world.attach("db", "third", false, false), &["'web'", "'spare'", "--shared", "volume detach db"]);
    assert_eq!(world.view.attachments.len(), 2);
}

#[test]
fn what_does_not_live_is_not_attached() {
    let mut world = with_volume();
    says(world.attach("nothing", "web", false, false), &["volume 'nothing'"]);
    says(world.attach("db", "nobody", false, false), &["client 'nobody'", "client list"]);
    let gone = world.client("gone");
    world.remove_client(&gone);
    says(world.attach("db", "gone", false, false), &["no client 'gone'"]);
    says(world.attach("db", &gone.meta.id.to_string(), false, false), &["'gone'", "removed"]);
    world.write(|draft| remove_volume(draft, &somebody(), "db", None)).unwrap();
    says(world.attach("db", "web", false, false), &["'db'", "being removed"]);
    assert!(world.view.attachments.is_empty());
}

#[test]
fn an_attached_volume_is_not_removed_and_its_clients_are_named() {
    let mut world = with_volume();
    world.attach("db", "web", false, false).unwrap();
    let remove = |world: &mut World| world.write(|draft| remove_volume(draft, &somebody(), "db", None));
    says(remove(&mut world), &["'db'", "'web'", "volume detach db"]);
    let buried = world.detach("db", "web").unwrap();
    says(remove(&mut world), &["'web'"]);
    world.report_attachment(&buried, Observed::Absent, None);
    assert!(remove(&mut world).is_ok());
}

#[test]
fn detaching_who_is_not_attached_is_refused_and_twice_is_once() {
    let mut world = with_volume();
    says(world.detach("db", "web"), &["no attachment 'db/web'", "attachment list"]);
    world.attach("db", "web", false, false).unwrap();
    let buried = world.detach("db", "web").unwrap();
    let revision = world.view.revision;
    assert_eq!(world.detach("db", "web"), Ok(buried));
    assert_eq!(world.view.revision, revision);
}

#[test]
fn an_attachment_is_found_by_id_and_by_volume_and_client() {
    let mut world = with_volume();
    let held = world.attach("db", "web", false, false).unwrap();
    let (id, volume, client) = (held.meta.id, held.spec.volume, held.spec.client);
    for reference in ["db/web".to_owned(), id.to_string(), format!("{volume}/{client}"), format!("db/{client}")] {
        assert_eq!(resolve_attachment(&world.view, &reference), Some(id), "{reference}");
    }
    for reference in ["db", "db/", "/web", "db/spare", "", "a/b/c"] {
        assert_eq!(resolve_attachment(&world.view, reference), None, "{reference}");
    }
}

/// Two managers plan on the same view; only one transaction can hold.
#[test]
fn two_managers_that_attach_at_once_conflict() {
    let world = with_volume();
    let plan = |client: &str, id: u8| {
        let mut draft = Draft::new(&world.view, NOW, EventId::from_bytes([id; 16]));
        let access = Access { volume: "db".into(), client: client.into(), read_only: false, shared: false };
        attach_volume(&mut draft, &somebody(), AttachmentId::from_bytes([id; 16]), &access).unwrap();
        draft.finish().unwrap().unwrap()
    };
    let (one, other) = (plan("web", 201), plan("spare", 202));
    let written: Vec<&Key> = one.ops.iter().map(Op::key).collect();
    let judged = |key: &Key| {
        other.compares.iter().any(|compare| compare.key() == key && matches!(compare, store::Compare::Unchanged(..)))
    };
    assert!(written.into_iter().any(judged), "the second transaction must see that the first one happened");
}

#[test]
fn an_attach_conflicts_with_the_removal_of_its_volume_and_of_its_client() {
    let world = with_volume();
    let mut draft = Draft::new(&world.view, NOW, EventId::from_bytes([200; 16]));
    let access = Access { volume: "db".into(), client: "web".into(), read_only: false, shared: true };
    attach_volume(&mut draft, &somebody(), AttachmentId::from_bytes([200; 16]), &access).unwrap();
    let compared: Vec<Key> = draft.finish().unwrap().unwrap().compares.iter().map(|it| it.key().clone()).collect();
    let volume = world.view.volumes.keys().next().copied().unwrap();
    let client = resolve::<Client>(&world.view, "web").unwrap();
    assert!(compared.contains(&Key::volume(volume)) && compared.contains(&Key::client(client)), "{compared:?}");
}

#[test]
fn nobody_is_attached_while_some_attachments_cannot_be_read() {
    let mut world = with_volume();
    let key = Key::attachment(AttachmentId::from_bytes([99; 16]));
    let revision = Revision(world.view.revision.0 + 1);
    let damaged = Entry { key, value: b"{".to_vec(), revision, lease: None };
    world.view.apply(Batch { revision, events: vec![store::Event::Put(damaged)] });
    says(world.attach("db", "web", false, false), &["cannot be read", "ctl check"]);
    says(world.write(|draft| remove_volume(draft, &somebody(), "db", None)), &["cannot be read"]);
}

#[test]
fn a_report_on_an_attachment_elsewhere_is_refused() {
    let mut world = with_volume();
    let held = world.attach("db", "web", false, false).unwrap();
    let stranger = ServiceId::from_bytes([9; 16]);
    let session = Session { id: session_id(), service: stranger, manager: stranger, since: NOW };
    world
        .write(|draft| {
            draft.overwrite_leased(session.clone(), LeaseId(2));
            Ok(())
        })
        .unwrap();
    let forged = AttachmentReport {
        id: held.meta.id,
        generation: held.meta.generation,
        in_force: Observed::Known(()),
        failure: None,
    };
    let outcome =
        world.write(|draft| take_reports(draft, stranger, session_id(), &[Report::Attachment(forged.clone())]));
    assert!(matches!(outcome, Err(Refusal::NotYours { kind: Kind::Attachment, .. })));
    assert_eq!(world.view.get::<Attachment>(held.meta.id), Some(&held));
}

#[test]
fn an_attachment_goes_when_the_last_of_its_services_has_let_go() {
    let mut world = with_volume();
    let mut held = world.attach("db", "web", false, false).unwrap();
    held.status.placement.push(ServiceId::from_bytes([8; 16]));
    world
        .write(|draft| {
            draft.put(held.clone());
            Ok(())
        })
        .unwrap();
    let buried = world.detach("db", "web").unwrap();
    world.report_attachment(&buried, Observed::Absent, None);
    let left = world.view.get::<Attachment>(held.meta.id).unwrap();
    assert_eq!(left.status.placement, [ServiceId::from_bytes([8; 16])]);
    assert!(world.view.assignments(service_id()).attachments.is_empty());
}

#[test]
fn a_removed_client_loses_all_it_had_a_part_at_a_time() {
    let mut world = World::new();
    world.pool("p", 1000);
    let client = world.client("web");
    for number in 0..110 {
        let mut id = [7; 16];
        id[0] = number;
        let name: Name = format!("v{number}").parse().unwrap();
        let volume = VolumeId::from_bytes(id);
        world.write(|draft| create_volume(draft, &somebody(), volume, &name, &wanted(1, None))).unwrap();
        let access = Access { volume: name.to_string(), client: "web".into(), read_only: false, shared: false };
        let held = AttachmentId::from_bytes(id);
        world.write(|draft| attach_volume(draft, &somebody(), held, &access)).unwrap();
    }
    let live = |world: &World| world.view.attachments.values().filter(|held| !held.value.meta.is_removed()).count();
    assert!(!world.write(|draft| Ok(bury_attachments_of(draft, &somebody(), client.meta.id))).unwrap());
    assert_eq!(live(&world), 60);
    world.remove_client(&client);
    assert_eq!((live(&world), world.view.attachments.len()), (0, 110), "each is still to be fenced");
}

#[test]
fn a_lost_service_s_attachments_are_closed_before_its_volumes() {
    let mut world = World::new();
    world.pool("p", 1000);
    world.client("web");
    for number in 0..60 {
        world.volume(&format!("v{number}"), 1, None).unwrap();
        world.attach(&format!("v{number}"), "web", false, false).unwrap();
    }
    world.fall_silent();
    while world.write(|draft| remove_service(draft, &somebody(), service_id(), true)).unwrap().is_none() {
        let dangling =
            world.view.attachments.values().filter(|held| world.view.get::<Volume>(held.value.spec.volume).is_none());
        assert_eq!(dangling.count(), 0);
        world.assert_adds_up();
    }
    assert!(world.view.attachments.is_empty() && world.view.volumes.is_empty() && world.view.pools.is_empty());
}

#[derive(Clone, Debug)]
enum Deed {
    Attach { volume: u8, client: u8, shared: bool },
    Detach { volume: u8, client: u8 },
    Fenced { volume: u8, client: u8 },
    Remove(u8),
}

fn deed() -> impl Strategy<Value = Deed> {
    let (volume, client) = (0u8..3, 0u8..3);
    let pair = || (volume.clone(), client.clone());
    prop_oneof![
        4 => (pair(), any::<bool>()).prop_map(|((volume, client), shared)| Deed::Attach { volume, client, shared }),
        2 => pair().prop_map(|(volume, client)| Deed::Detach { volume, client }),
        2 => pair().prop_map(|(volume, client)| Deed::Fenced { volume, client }),
        1 => volume.clone().prop_map(Deed::Remove),
    ]
}

proptest! {
    #[test]
    fn an_exclusive_client_is_never_beside_another_whatever_is_done(deeds in prop::collection::vec(deed(), 0..60)) {
        let mut world = World::new();
        world.pool("p", 1000);
        for name in ["v0", "v1", "v2"] {
            world.volume(name, 1, None).unwrap();
        }
        for name in ["c0", "c1", "c2"] {
            world.client(name);
        }
        for deed in deeds {
            let (before, events) = (world.view.revision, world.view.events.len());
            let refused = match deed {
                Deed::Attach { volume, client, shared } => {
                    world.attach(&format!("v{volume}"), &format!("c{client}"), false, shared).is_err()
                }
                Deed::Detach { volume, client } => world.detach(&format!("v{volume}"), &format!("c{client}")).is_err(),
                Deed::Fenced { volume, client } => {
                    let id = resolve_attachment(&world.view, &format!("v{volume}/c{client}"));
                    let held = id.and_then(|id| world.view.get::<Attachment>(id)).cloned();
                    if let Some(held) = held.filter(|held| held.meta.is_removed()) {
                        world.report_attachment(&held, Observed::Absent, None);
                    }
                    false
                }
                Deed::Remove(volume) => {
                    world.write(|draft| remove_volume(draft, &somebody(), &format!("v{volume}"), None)).is_err()
                }
            };
            prop_assert!(!refused || (world.view.revision == before && world.view.events.len() == events));
            for volume in world.view.volumes.keys() {
                let held: Vec<_> = world.view.attachments.values().filter(|held| held.value.spec.volume == *volume).collect();
                prop_assert!(held.len() <= 1 || held.iter().all(|held| held.value.spec.shared));
                let clients: std::collections::BTreeSet<_> = held.iter().map(|held| held.value.spec.client).collect();
                prop_assert_eq!(clients.len(), held.len(), "a client is attached once");
            }
        }
    }
}
