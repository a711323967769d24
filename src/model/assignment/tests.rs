use super::*;
use crate::model::Epoch;

fn volume(generation: u64, size: u64) -> VolumeAssignment {
    VolumeAssignment::bare(
        VolumeId::from_bytes([1; 16]),
        "v",
        generation,
        PoolId::from_bytes([2; 16]),
        ByteSize::mib(size),
    )
}

fn set(volume: VolumeAssignment) -> AssignmentSet {
    AssignmentSet { volumes: [(volume.id, volume)].into(), ..AssignmentSet::default() }
}

#[test]
fn changes_lead_from_one_set_to_the_next_and_none_lead_nowhere() {
    let (one, two) = (set(volume(1, 1)), set(volume(2, 2)));
    let mut held = one.clone();
    assert_eq!(held.apply(one.changes_to(&two)), Vec::<String>::new());
    assert_eq!(held, two);
    assert!(two.changes_to(&two).is_empty());
    held.apply(two.changes_to(&AssignmentSet::default()));
    assert_eq!(held, AssignmentSet::default());
}

#[test]
fn an_older_generation_and_another_body_under_the_same_one_are_refused() {
    let mut held = set(volume(2, 2));
    let before = held.clone();
    assert_eq!(held.replace(set(volume(1, 1))).len(), 1);
    assert_eq!(held.replace(set(volume(2, 3))).len(), 1);
    assert_eq!(held, before);
}

fn attachment(generation: Generation) -> AttachmentAssignment {
    AttachmentAssignment {
        id: AttachmentId::from_bytes([3; 16]),
        generation,
        volume: VolumeId::from_bytes([1; 16]),
        volume_name: "v".parse().unwrap(),
        client: ClientId::from_bytes([4; 16]),
        client_name: "c".parse().unwrap(),
        read_only: false,
        shared: false,
        removed: false,
    }
}

#[test]
fn who_was_cut_off_after_the_state_that_was_carried_over_is_not_let_in_again() {
    let of = |held: AttachmentAssignment| AssignmentSet {
        attachments: [(held.id, held)].into(),
        ..AssignmentSet::default()
    };
    let carried = attachment(Generation::floor(Epoch::FIRST.next()));
    let removed = |set: &AssignmentSet| set.attachments.values().all(|held| held.removed);
    let mut gone = AssignmentSet::default();
    let mut going = of(AttachmentAssignment { removed: true, ..attachment(Generation::new(7)) });
    let mut staying = of(attachment(Generation::new(7)));
    for held in [&mut gone, &mut going, &mut staying] {
        assert!(held.replace(of(carried.clone())).is_empty());
        // Said again, as with every session, it changes nothing.
        let before = held.clone();
        assert!(held.replace(of(carried.clone())).is_empty());
        assert_eq!(*held, before);
    }
    assert!(removed(&gone) && removed(&going) && !removed(&staying));
    let mut new = AssignmentSet::default();
    new.replace(of(attachment(carried.generation.next())));
    assert!(!removed(&new), "one that was made since is let in");
}

#[test]
fn what_was_made_once_stays_made() {
    let mut held = set(VolumeAssignment { made: true, ..volume(1, 1) });
    held.replace(set(volume(2, 1)));
    assert!(held.volumes.values().all(|volume| volume.made));
}
