use super::*;
use crate::manager::view::Stored;
use crate::model::{Author, EventId, Kind};
use crate::store::{self, Batch, Entry, Revision};

fn event(number: u8, at: u64) -> Event {
    Event {
        id: EventId::from_bytes([number; 16]),
        at: Timestamp::from_millis(at),
        author: Author { who: "local root".into(), origin: "the control socket".into() },
        action: "volume.create".into(),
        kind: Some(Kind::Volume),
        object: number.to_string(),
        name: "v".into(),
        detail: None,
    }
}

fn put(view: &mut View, revision: i64, events: &[Event]) {
    let revision = Revision(revision);
    let entry = |event: &Event| {
        let value = serde_json::to_vec(event).unwrap();
        store::Event::Put(Entry { key: Event::key(event.id), value, revision, lease: None })
    };
    view.apply(Batch { revision, events: events.iter().map(entry).collect() });
}

fn forget(view: &mut View, revision: i64, number: u8) {
    let key = Event::key(EventId::from_bytes([number; 16]));
    view.apply(Batch { revision: Revision(revision), events: vec![store::Event::Delete(key)] });
}

fn told(reader: &mut Reader, view: &View) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(events) = reader.next(view).unwrap() {
        all.extend(events.iter().map(|event| event.object.clone()));
    }
    all
}

#[test]
fn the_order_is_that_of_the_commits_whatever_ids_and_clocks_say() {
    let mut view = View::default();
    put(&mut view, 1, &[event(9, 500)]);
    put(&mut view, 2, &[event(3, 100), event(1, 900)]);
    assert_eq!(told(&mut Reader::new(&view, Timestamp::EPOCH), &view), ["9", "1", "3"]);
}

#[test]
fn nothing_is_left_out_or_told_twice_between_what_is_stored_and_what_comes() {
    let mut view = View::default();
    put(&mut view, 1, &[event(5, 1)]);
    let mut reader = Reader::new(&view, Timestamp::EPOCH);
    // It comes before the first look, and has a smaller id.
    put(&mut view, 2, &[event(2, 1)]);
    assert_eq!(told(&mut reader, &view), ["5", "2"]);
    assert_eq!(told(&mut reader, &view), Vec::<String>::new());
    put(&mut view, 3, &[event(1, 1)]);
    put(&mut view, 4, &[event(7, 1)]);
    assert_eq!(told(&mut reader, &view), ["1", "7"]);
}

#[test]
fn what_is_stored_from_before_the_time_is_passed_over_and_what_comes_is_not() {
    let mut view = View::default();
    put(&mut view, 1, &[event(1, 100)]);
    put(&mut view, 2, &[event(2, 300)]);
    let mut reader = Reader::new(&view, Timestamp::from_millis(200));
    put(&mut view, 3, &[event(3, 50)]);
    assert_eq!(told(&mut reader, &view), ["2", "3"], "the author of the last one has a slow clock");
}

#[test]
fn a_reader_takes_a_part_at_a_time_and_is_told_if_entries_were_dropped_before_it_came_to_them() {
    let mut view = View::default();
    for number in 0..200u8 {
        put(
            &mut view,
            i64::from(number) + 1,
            &[
                event(number, 1),
                Event {
                    id: EventId::from_bytes([number, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                    ..event(number, 1)
                },
            ],
        );
    }
    let mut reader = Reader::new(&view, Timestamp::EPOCH);
    assert_eq!(reader.next(&view).unwrap().map(|part| part.len()), Some(GULP));
    forget(&mut view, 300, 0);
    assert!(reader.next(&view).is_ok(), "that one was told already");
    let mut slow = Reader::new(&view, Timestamp::EPOCH);
    slow.last = Some((Revision(5), EventId::from_bytes([255; 16])));
    forget(&mut view, 301, 10);
    assert!(slow.next(&view).unwrap_err().message.contains("begin anew"));
}
