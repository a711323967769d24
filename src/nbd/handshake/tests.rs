//! The handshake against scripted and hostile clients.

mod tls;

use super::super::negotiate::ALLOCATION_CONTEXT;
use super::*;
use proptest::prelude::*;

/// Two exports; opening one yields its name.
struct Shelf;

impl Exports for Shelf {
    type Opened = String;

    fn list(&self) -> Vec<Listed> {
        ["disk", "rom"].map(|name| Listed { name: name.into(), description: format!("a {name}") }).into()
    }

    fn open(&self, name: &str) -> Result<(ExportDescription, String), Closed> {
        let listed = self.list().into_iter().find(|listed| listed.name == name).ok_or(Closed::Unknown)?;
        let read_only = name == "rom";
        let Listed { name, description } = listed;
        Ok((ExportDescription { name: name.clone(), description, size: 1 << 20, read_only, minimum_block: 1 }, name))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Open,
    Closed,
    Entered(Negotiated<String>),
}

/// Feeds the input in pieces of the given lengths and collects everything that is sent.
fn converse(policy: Policy, input: &[u8], pieces: &[usize]) -> (Vec<u8>, End) {
    let mut output = Vec::new();
    let mut handshake = Handshake::new(policy, Encryption::Refused("no TLS here".into()), &mut output);
    let mut buffer: Vec<u8> = Vec::new();
    let mut rest = input;
    for piece in pieces.iter().cycle() {
        loop {
            let (used, progress) = handshake.receive(&buffer, &Shelf, &mut output);
            buffer.drain(..used);
            match progress {
                Progress::Continue => {}
                Progress::More => break,
                Progress::Enter(negotiated) => return (output, End::Entered(negotiated)),
                Progress::StartTls | Progress::Close => return (output, End::Closed),
            }
        }
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at((*piece).clamp(1, rest.len()));
        buffer.extend(now);
        rest = later;
    }
    (output, End::Open)
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    [&IHAVEOPT.to_be_bytes()[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn flags(flags: u32) -> Vec<u8> {
    flags.to_be_bytes().to_vec()
}

fn fixed() -> Vec<u8> {
    flags(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)
}

fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// The replies behind the greeting: option, kind, data.
fn replies(output: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut fields = Fields(&output[18..]);
    let mut replies = Vec::new();
    while !fields.0.is_empty() {
        assert_eq!(fields.u64(), Some(NBD_REP_MAGIC));
        let [option, kind, length] = [(); 3].map(|()| fields.u32().expect("a reply's header"));
        replies.push((option, kind, fields.bytes(length as usize).expect("a reply's data").to_vec()));
    }
    replies
}

fn kinds(options: &[Vec<u8>]) -> (Vec<u32>, End) {
    let (output, end) = converse(Policy::Admit, &[fixed(), options.concat()].concat(), &[usize::MAX]);
    (replies(&output).into_iter().map(|(_, kind, _)| kind).collect(), end)
}

#[test]
fn go_describes_the_export_as_it_was_asked_to_and_enters() {
    let wanted = [NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE, 99];
    let input = [fixed(), option(NBD_OPT_GO, &info("disk", &wanted))].concat();
    let (output, end) = converse(Policy::Admit, &input, &[usize::MAX]);
    let infos: Vec<u16> = replies(&output).iter().filter_map(|(_, _, data)| Fields(data).u16()).collect();
    assert_eq!(infos, [NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE]);
    let End::Entered(negotiated) = end else { panic!("{end:?}") };
    assert_eq!(negotiated.export, "disk");
    assert!(negotiated.headers == Headers::Compact && !negotiated.contexts.any());
}

#[test]
fn flags_say_what_may_be_done() {
    let chosen = Contexts { allocation: true, depth: false };
    let writable = transmission_flags(false, Headers::Structured, chosen);
    assert!(writable & NBD_FLAG_SEND_TRIM != 0 && writable & NBD_FLAG_SEND_DF != 0);
    assert!(writable & NBD_FLAG_CAN_MULTI_CONN != 0 && writable & NBD_FLAG_READ_ONLY == 0);
    let read_only = transmission_flags(true, Headers::Compact, Contexts::default());
    assert!(read_only & NBD_FLAG_READ_ONLY != 0 && read_only & NBD_FLAG_SEND_DF == 0);
    assert!(read_only & (NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES) == 0);
    let payload = |headers, contexts| transmission_flags(false, headers, contexts) & NBD_FLAG_BLOCK_STATUS_PAYLOAD != 0;
    assert!(payload(Headers::Extended, chosen));
    assert!(!payload(Headers::Extended, Contexts::default()) && !payload(Headers::Structured, chosen));
}

#[test]
fn export_name_pads_its_answer_for_old_clients_only_and_closes_on_strangers() {
    for (client, length) in [(NBD_FLAG_C_NO_ZEROES, 18 + 10), (0, 18 + 134)] {
        let input = [flags(client), option(NBD_OPT_EXPORT_NAME, b"rom")].concat();
        let (output, end) = converse(Policy::Admit, &input, &[usize::MAX]);
        assert_eq!(output.len(), length);
        assert!(matches!(end, End::Entered(_)));
    }
    assert_eq!(kinds(&[option(NBD_OPT_EXPORT_NAME, b"nothing")]), (vec![], End::Closed));
}

#[test]
fn contexts_hold_for_the_export_they_were_chosen_for() {
    let structured = option(NBD_OPT_STRUCTURED_REPLY, &[]);
    let chosen = option(NBD_OPT_SET_META_CONTEXT, &contexts("disk", &["x-other:", BASE_ALLOCATION]));
    for (name, expected) in [("disk", true), ("rom", false)] {
        let (_, end) = kinds(&[structured.clone(), chosen.clone(), option(NBD_OPT_GO, &info(name, &[]))]);
        let End::Entered(negotiated) = end else { panic!("{end:?}") };
        assert_eq!(negotiated.headers, Headers::Structured);
        assert_eq!(negotiated.contexts.allocation, expected, "{name}");
    }
    let unset = option(NBD_OPT_SET_META_CONTEXT, &contexts("nothing", &[BASE_ALLOCATION]));
    let go = option(NBD_OPT_GO, &info("disk", &[]));
    let (_, end) = kinds(&[structured, chosen.clone(), unset, go]);
    let End::Entered(negotiated) = end else { panic!("{end:?}") };
    assert!(!negotiated.contexts.any(), "a failed choice unsets");
    assert_eq!(kinds(&[chosen]).0, [NBD_REP_ERR_INVALID], "structured replies come first");
}

#[test]
fn extended_headers_bring_what_structured_replies_do_and_cannot_be_taken_back() {
    let extended = option(NBD_OPT_EXTENDED_HEADERS, &[]);
    let chosen = option(NBD_OPT_SET_META_CONTEXT, &contexts("disk", &[ALLOCATION_DEPTH, BASE_ALLOCATION]));
    let back = option(NBD_OPT_STRUCTURED_REPLY, &[]);
    let go = option(NBD_OPT_GO, &info("disk", &[]));
    let (seen, end) = kinds(&[extended.clone(), chosen, back, go]);
    let expected = [
        NBD_REP_ACK,
        NBD_REP_META_CONTEXT,
        NBD_REP_META_CONTEXT,
        NBD_REP_ACK,
        NBD_REP_ERR_EXT_HEADER_REQD,
        NBD_REP_INFO,
        NBD_REP_ACK,
    ];
    assert_eq!(seen, expected);
    let End::Entered(negotiated) = end else { panic!("{end:?}") };
    assert_eq!(negotiated.headers, Headers::Extended);
    assert!(negotiated.contexts.allocation && negotiated.contexts.depth);
    let old = [extended, option(NBD_OPT_EXPORT_NAME, b"disk")];
    assert_eq!(kinds(&old), (vec![NBD_REP_ACK], End::Closed), "a client of the new school goes");
    assert_eq!(kinds(&[option(NBD_OPT_EXTENDED_HEADERS, &[1])]).0, [NBD_REP_ERR_INVALID]);
}

#[test]
fn contexts_are_listed_by_name_and_by_wildcard() {
    for (queries, found) in [(&[][..], 2), (&["base:", "qemu:"], 2), (&[BASE_ALLOCATION], 1), (&["base:x", "y:"], 0)] {
        let input = [fixed(), option(NBD_OPT_LIST_META_CONTEXT, &contexts("disk", queries))].concat();
        let (output, _) = converse(Policy::Admit, &input, &[usize::MAX]);
        let replies = replies(&output);
        assert_eq!(replies.len(), found + 1, "{queries:?}");
        assert_eq!(replies.last().map(|reply| reply.1), Some(NBD_REP_ACK));
    }
    let set = option(NBD_OPT_SET_META_CONTEXT, &contexts("disk", &["base:"]));
    assert_eq!(kinds(&[option(NBD_OPT_STRUCTURED_REPLY, &[]), set]).0, [NBD_REP_ACK, NBD_REP_ACK]);
    assert_ne!(ALLOCATION_CONTEXT, 0);
}

#[test]
fn what_is_unknown_or_malformed_is_answered_and_the_talk_goes_on() {
    let (kinds, end) = kinds(&[
        option(NBD_OPT_STARTTLS, &[]),
        option(4711, b"whatever"),
        option(NBD_OPT_LIST, b"x"),
        option(NBD_OPT_STRUCTURED_REPLY, b"x"),
        option(NBD_OPT_INFO, &info("nothing", &[])),
        option(NBD_OPT_GO, b"\xff\xff\xff\xff"),
        option(NBD_OPT_GO, &[&info("disk", &[])[..], b"more"].concat()),
        option(NBD_OPT_LIST, &[]),
        option(NBD_OPT_ABORT, &[]),
    ]);
    assert_eq!(
        kinds,
        [
            NBD_REP_ERR_POLICY,
            NBD_REP_ERR_UNSUP,
            NBD_REP_ERR_INVALID,
            NBD_REP_ERR_INVALID,
            NBD_REP_ERR_UNKNOWN,
            NBD_REP_ERR_INVALID,
            NBD_REP_ERR_INVALID,
            NBD_REP_SERVER,
            NBD_REP_SERVER,
            NBD_REP_ACK,
            NBD_REP_ACK
        ]
    );
    assert_eq!(end, End::Closed);
}

#[test]
fn an_unwelcome_client_hears_why_whatever_it_asks() {
    let input = [
        fixed(),
        option(NBD_OPT_LIST, &[]),
        option(NBD_OPT_GO, &info("disk", &[])),
        option(NBD_OPT_EXPORT_NAME, b"disk"),
    ]
    .concat();
    let (output, end) = converse(Policy::Refuse("not from there".into()), &input, &[usize::MAX]);
    let expected = |option| (option, NBD_REP_ERR_POLICY, b"not from there".to_vec());
    assert_eq!(replies(&output), [expected(NBD_OPT_LIST), expected(NBD_OPT_GO)]);
    assert_eq!(end, End::Closed);
    let (output, _) = converse(Policy::ShuttingDown, &input, &[usize::MAX]);
    assert!(replies(&output).iter().all(|reply| reply.1 == NBD_REP_ERR_SHUTDOWN));
}

#[test]
fn violations_end_the_connection() {
    let bad_magic = [&[0; 8][..], &option(NBD_OPT_LIST, &[])[8..]].concat();
    let endless = [&IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 3], &[0xff; 4]].concat();
    for input in [
        flags(1 << 7),
        [fixed(), bad_magic].concat(),
        [fixed(), endless].concat(),
        [flags(0), option(NBD_OPT_LIST, &[])].concat(),
        [fixed(), option(NBD_OPT_LIST, &[]).repeat(MAX_OPTIONS as usize + 1)].concat(),
    ] {
        assert_eq!(converse(Policy::Admit, &input, &[usize::MAX]).1, End::Closed);
    }
}

#[test]
fn data_too_long_to_keep_is_skipped_and_said_so() {
    let long = option(NBD_OPT_INFO, &vec![0; MAX_OPTION as usize + 1]);
    let input = [fixed(), long, option(NBD_OPT_LIST, &[])].concat();
    let (output, end) = converse(Policy::Admit, &input, &[1000]);
    let kinds: Vec<u32> = replies(&output).iter().map(|reply| reply.1).collect();
    assert_eq!(kinds, [NBD_REP_ERR_TOO_BIG, NBD_REP_SERVER, NBD_REP_SERVER, NBD_REP_ACK]);
    assert_eq!(end, End::Open);
}

#[test]
fn a_choice_of_contexts_too_long_to_keep_unsets_and_leave_of_any_length_is_granted() {
    let structured = option(NBD_OPT_STRUCTURED_REPLY, &[]);
    let chosen = option(NBD_OPT_SET_META_CONTEXT, &contexts("disk", &[BASE_ALLOCATION]));
    let long = option(NBD_OPT_SET_META_CONTEXT, &vec![0; MAX_OPTION as usize + 1]);
    let (_, end) = kinds(&[structured, chosen, long, option(NBD_OPT_GO, &info("disk", &[]))]);
    let End::Entered(negotiated) = end else { panic!("{end:?}") };
    assert!(!negotiated.contexts.any(), "a failed choice unsets, whatever it failed of");
    let leave = option(NBD_OPT_ABORT, &vec![0; MAX_OPTION as usize + 1]);
    assert_eq!(kinds(&[leave]), (vec![NBD_REP_ACK], End::Closed));
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let names = prop_oneof![Just("disk"), Just("rom"), Just("nothing"), Just("")];
    prop_oneof![
        (0u32..14, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, data)| option(kind, &data)),
        (6u32..8, names.clone(), proptest::collection::vec(0u16..5, 0..4))
            .prop_map(|(kind, name, wanted)| option(kind, &info(name, &wanted))),
        (9u32..11, names).prop_map(|(kind, name)| option(kind, &contexts(name, &[BASE_ALLOCATION]))),
        Just(option(NBD_OPT_STRUCTURED_REPLY, &[])),
        Just(option(NBD_OPT_LIST, &[])),
    ]
}

proptest! {
    #[test]
    fn pieces_of_any_size_mean_the_same(
        options in proptest::collection::vec(any_option(), 0..12), pieces in proptest::collection::vec(1usize..30, 1..6),
    ) {
        let input = [fixed(), options.concat()].concat();
        let whole = converse(Policy::Admit, &input, &[usize::MAX]);
        prop_assert_eq!(&whole, &converse(Policy::Admit, &input, &pieces));
        prop_assert_eq!(&whole, &converse(Policy::Admit, &input, &[1]));
    }

    #[test]
    fn no_bytes_can_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u32..12) {
        converse(Policy::Admit, &bytes, &[7]);
        converse(Policy::Admit, &[fixed(), option(kind, &bytes)].concat(), &[usize::MAX]);
    }
}
