use super::*;
use crate::model::{ClusterSpec, History, Meta};
use crate::store::{Entry, Listing};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::EPOCH;

fn cluster(history: History) -> Cluster {
    let meta = Meta::new(ClusterId::from_bytes([1; 16]), "c".parse().unwrap(), NOW);
    Cluster { meta, spec: ClusterSpec::default(), history, recovering: None }
}

fn event(number: u8) -> Event {
    let author = Author { who: "somebody".into(), origin: "somewhere".into() };
    audit::entry(EventId::from_bytes([number; 16]), NOW, &author, "volume.create", (None, "x", &"x"))
}

/// A store at `revision` with the entries of these revisions in its record.
fn store(history: History, revision: i64, entries: &[u8]) -> View {
    let entry = |key, value, revision| Entry { key, value, revision: Revision(revision), lease: None };
    let mut all = vec![entry(Key::cluster(), encode(&cluster(history)).unwrap(), 1)];
    for number in entries {
        let event = event(*number);
        all.push(entry(Key::event(event.id), encode(&event).unwrap(), i64::from(*number)));
    }
    View::load(Listing { entries: all, revision: Revision(revision) })
}

fn contradiction(before: &View, after: &View) -> Option<String> {
    Memory::of(before).unwrap().contradicted_by(after)
}

#[test]
fn a_store_that_went_on_contradicts_nothing() {
    let first = History::default();
    let before = store(first.clone(), 20, &[5, 9]);
    assert_eq!(contradiction(&before, &before), None);
    assert_eq!(contradiction(&before, &store(first.clone(), 30, &[5, 9, 25])), None);
    assert_eq!(contradiction(&before, &store(first.clone(), 30, &[9, 25])), None, "old entries are dropped");
    assert_eq!(contradiction(&before, &store(first.clone(), 30, &[25, 26])), None, "all that was known was dropped");
    let known = store(first.rewound(Epoch::FIRST, NOW, "because".into()), 3, &[]);
    assert_eq!(contradiction(&before, &known), None, "somebody else has seen it already");
    assert_eq!(contradiction(&before, &store(first.continued(), 3, &[])), None, "it moved");
}

#[test]
fn a_store_that_was_put_back_is_seen_by_its_revision_its_history_or_what_it_lacks() {
    let (first, second) = (History::default(), History::default().continued());
    let before = store(first.clone(), 20, &[5, 9]);
    let seen = |before: &View, after: View| contradiction(before, &after).unwrap_or_default();
    assert!(seen(&before, store(first.clone(), 19, &[5, 9])).contains("revision 19 and was at revision 20"));
    assert!(seen(&before, store(first.clone(), 90, &[5])).contains("lacks a change"));
    assert!(seen(&before, store(first.clone(), 90, &[5, 33])).contains("lacks a change"), "it passed the old revision");
    assert!(seen(&before, store(first.clone(), 90, &[])).contains("lacks a change"));
    assert!(seen(&store(second, 3, &[]), store(first, 90, &[])).contains("history 0 and was in history 1"));
}

#[test]
fn a_store_without_a_cluster_or_with_another_one_is_somebody_else_s_question() {
    let before = store(History::default(), 20, &[5]);
    assert_eq!(contradiction(&before, &View::default()), None);
    assert_eq!(Memory::of(&View::default()), None);
    let mut other = Memory::of(&before).unwrap();
    other.cluster = ClusterId::from_bytes([2; 16]);
    assert_eq!(other.contradicted_by(&store(History::default(), 1, &[])), None);
}

#[test]
fn an_entry_that_cannot_be_read_is_not_missing() {
    let before = store(History::default(), 20, &[5, 9]);
    let mut after = store(History::default(), 30, &[5]);
    after.unreadable.insert(Key::event(event(9).id), "why".into());
    assert_eq!(contradiction(&before, &after), None);
}

proptest! {
    /// A record that loses its oldest entries and gains new ones, looked at any time, against one that was put back to any
    /// earlier time and went on from there.
    #[test]
    fn whoever_remembers_a_lost_change_sees_it_unless_all_that_is_left_is_newer(
        known in 2u8..120, back in 1u8..119, on in 1u8..100, dropped in 0u8..200,
    ) {
        prop_assume!(back < known);
        let first = History::default;
        let all: Vec<u8> = (1..=known).collect();
        let before = store(first(), known.into(), &all);
        // Numbers beyond those that were known stand for other entries.
        let kept = (1..=back).chain(known + 1..=known + on).filter(|number| *number > dropped);
        let kept: Vec<u8> = kept.collect();
        let after = store(first(), i64::from(known) + i64::from(on), &kept);
        let seen = contradiction(&before, &after).is_some();
        let visible = kept.first().is_none_or(|oldest| *oldest <= known);
        prop_assert_eq!(seen, visible);
        let went_on: Vec<u8> = (1..=known + on).filter(|number| *number > dropped).collect();
        let later = i64::from(known) + i64::from(on);
        if !went_on.is_empty() {
            prop_assert_eq!(contradiction(&before, &store(first(), later, &went_on)), None);
        }
    }
}
