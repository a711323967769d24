use super::*;
use crate::export::{Guest, RefusalRecord};
use crate::nbd::{Contexts, Headers, Terms};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;

fn record() -> impl Strategy<Value = SessionRecord> {
    let headers = prop_oneof![Just(Headers::Compact), Just(Headers::Structured), Just(Headers::Extended)];
    let guest = prop_oneof![Just(Guest::Local), any::<u128>().prop_map(|id| Guest::Client(Uuid::from_u128(id)))];
    let refusal = (any::<u64>(), any::<u64>(), any::<u32>(), ".*", any::<u32>());
    let refusal =
        refusal.prop_map(|(cookie, offset, errno, reason, left)| RefusalRecord { cookie, offset, errno, reason, left });
    let terms = (any::<bool>(), headers, any::<[bool; 2]>(), any::<u32>());
    let terms = terms.prop_map(|(read_only, headers, [allocation, depth], minimum_block)| Terms {
        read_only,
        headers,
        contexts: Contexts { allocation, depth },
        minimum_block,
    });
    let all = (".*", any::<u128>(), guest, terms, any::<u64>(), any::<bool>(), proptest::option::of(refusal));
    all.prop_map(|(export, id, guest, terms, size, leaving, refusal)| SessionRecord {
        export,
        id: Uuid::from_u128(id),
        guest,
        terms,
        size,
        leaving,
        refusal,
    })
}

type Told = Vec<(SessionRecord, Vec<u8>, Vec<u8>)>;

fn told() -> impl Strategy<Value = Told> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    proptest::collection::vec((record(), bytes(), bytes()), 0..5)
}

fn carried(told: &Told) -> Vec<Carried> {
    let one = |(record, unread, unsent): &(SessionRecord, Vec<u8>, Vec<u8>)| Carried {
        socket: UnixStream::pair().unwrap().0.into(),
        record: record.clone(),
        unread: unread.clone(),
        unsent: unsent.clone(),
    };
    told.iter().map(one).collect()
}

fn text_of(told: &Told) -> Vec<u8> {
    unseal(write(Uuid::from_u128(5), carried(told)).unwrap().0, MOST).unwrap()
}

fn read_bytes(bytes: &[u8]) -> Result<(Uuid, Vec<Carried>), HandoverError> {
    read(seal("test", &[bytes]).unwrap(), |_| Some(UnixStream::pair().unwrap().0.into()))
}

proptest! {
    #[test]
    fn whatever_is_known_of_connections_arrives(told in told(), missing in any::<prop::sample::Index>()) {
        let (text, sockets) = write(Uuid::from_u128(5), carried(&told)).unwrap();
        let mut sockets: BTreeMap<String, OwnedFd> = sockets.into_iter().collect();
        prop_assert_eq!(sockets.len(), told.len());
        let mut expected = told.clone();
        if !told.is_empty() {
            let missing = missing.index(told.len());
            expected.remove(missing);
            sockets.remove(&format!("symphony-client-{missing}"));
        }
        let (instance, arrived) = read(text, |name| sockets.remove(name)).unwrap();
        prop_assert_eq!(instance, Uuid::from_u128(5));
        let arrived: Told = arrived.into_iter().map(|it| (it.record, it.unread, it.unsent)).collect();
        prop_assert_eq!(arrived, expected);
    }

    #[test]
    fn a_text_that_was_cut_or_lengthened_is_refused_as_a_whole(told in told(), at in any::<prop::sample::Index>()) {
        let text = text_of(&told);
        prop_assert!(read_bytes(&text[..at.index(text.len())]).is_err());
        prop_assert!(read_bytes(&[&text[..], &[0]].concat()).is_err());
    }

    #[test]
    fn no_byte_of_what_is_said_about_connections_changes_unseen(
        told in told(), at in any::<prop::sample::Index>(), change in 1u8..,
    ) {
        let mut text = text_of(&told);
        let head = u64::from_be_bytes(text[..8].try_into().unwrap()) as usize;
        text[at.index(8 + head)] ^= change;
        prop_assert!(read_bytes(&text).is_err());
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes: Vec<u8>, length in 0u64..64) {
        prop_assert!(read_bytes(&bytes).is_err());
        prop_assert!(read_bytes(&[&length.to_be_bytes()[..], &bytes].concat()).is_err());
        prop_assert!(read_bytes(&[&u64::MAX.to_be_bytes()[..], &bytes].concat()).is_err());
    }
}

#[test]
fn lengths_that_overflow_are_refused() {
    let connection = serde_json::json!({ "socket": "a", "unread": u64::MAX, "unsent": u64::MAX, "session": {
        "export": "a", "id": Uuid::nil(), "guest": "local", "size": 0, "leaving": false, "refusal": null,
        "terms": { "read_only": false, "headers": "compact", "minimum_block": 1,
                   "contexts": { "allocation": false, "depth": false } } } });
    let estate = serde_json::json!({ "instance": Uuid::nil(), "connections": [connection] });
    let estate: Estate = serde_json::from_value(estate).unwrap();
    let head = encode_document(&estate).unwrap();
    let bytes = [&(head.len() as u64).to_be_bytes()[..], head.as_bytes(), b"few bytes"].concat();
    assert!(matches!(read_bytes(&bytes), Err(HandoverError::Length)));
}

#[test]
fn memory_that_somebody_may_still_change_is_refused() {
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(read(file.into(), |_| None), Err(HandoverError::Memory(_))));
}

#[test]
fn programs_are_known_by_what_they_read() {
    assert!(reads(sort_of_documents().as_bytes()));
    for answer in ["", "{}", "symphony 0.2.0", r#"{"format":"symphony hand-over","reads":[2]}"#, r#"{"reads":[1]}"#] {
        assert!(!reads(answer.as_bytes()), "{answer}");
    }
}
