//! The client against servers that lie: what they send is scripted, what they are sent is dropped.

use super::*;
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;

struct Scripted(io::Cursor<Vec<u8>>);

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Scripted {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let [option, kind, length] = [option, kind, data.len() as u32].map(u32::to_be_bytes);
    bytes(&[&NBD_REP_MAGIC.to_be_bytes(), &option, &kind, &length, data])
}

fn greeting() -> Vec<u8> {
    bytes(&[&NBDMAGIC.to_be_bytes(), &IHAVEOPT.to_be_bytes(), &[0, 3]])
}

fn handshake() -> Vec<u8> {
    let flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_WRITE_ZEROES;
    bytes(&[
        &greeting(),
        &option_reply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, &[]),
        &option_reply(NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, b"\0\0\0\x09base:allocation"),
        &option_reply(NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, &[]),
        &option_reply(NBD_OPT_GO, NBD_REP_INFO, &bytes(&[&[0, 0], &SIZE.to_be_bytes(), &flags.to_be_bytes()])),
        &option_reply(NBD_OPT_GO, NBD_REP_ACK, &[]),
    ])
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let magic = NBD_STRUCTURED_REPLY_MAGIC.to_be_bytes();
    bytes(&[&magic, &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes(), &length, payload])
}

fn data(flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
    chunk(flags, NBD_REPLY_TYPE_OFFSET_DATA, 1, &bytes(&[&offset.to_be_bytes(), data]))
}

fn hole(flags: u16, offset: u64, length: u32) -> Vec<u8> {
    chunk(flags, NBD_REPLY_TYPE_OFFSET_HOLE, 1, &bytes(&[&offset.to_be_bytes(), &length.to_be_bytes()]))
}

fn status(context: u32, runs: &[(u32, u32)]) -> Vec<u8> {
    let runs: Vec<u8> =
        runs.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()].concat()).collect();
    chunk(1, NBD_REPLY_TYPE_BLOCK_STATUS, 1, &bytes(&[&context.to_be_bytes(), &runs]))
}

fn client(replies: &[&[u8]]) -> Client<Scripted> {
    let script = bytes(&[&handshake(), &replies.concat()]);
    Client::connect(Scripted(io::Cursor::new(script)), "disk").expect("a handshake")
}

fn read(replies: &[&[u8]]) -> Result<Vec<u8>, ClientError> {
    let mut buffer = vec![0xee; 8];
    client(replies).read(16, &mut buffer).map(|()| buffer)
}

#[test]
fn chunks_may_come_in_any_order() {
    let seen = read(&[&data(0, 20, b"cd"), &hole(0, 22, 2), &data(0, 16, b"ab"), &hole(1, 18, 2)]);
    assert_eq!(seen.expect("a read"), b"ab\0\0cd\0\0");
}

#[test]
fn lies_about_data_are_noticed() {
    let simple = bytes(&[&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes(), &[0; 4], &1u64.to_be_bytes(), b"abcdefgh"]);
    for (name, replies) in [
        ("too little", vec![data(1, 16, b"abc")]),
        ("a gap", vec![data(0, 16, b"abc"), data(1, 20, b"efgh")]),
        ("twice", vec![data(0, 16, b"abcd"), data(1, 19, b"defgh")]),
        ("twice as a hole", vec![hole(0, 16, 8), hole(1, 16, 8)]),
        ("before the range", vec![data(1, 15, b"abcdefgh")]),
        ("behind the range", vec![data(1, 17, b"abcdefgh")]),
        ("an offset that overflows", vec![data(1, u64::MAX, b"abcdefgh")]),
        ("an empty chunk", vec![data(1, 16, b"")]),
        ("none at all", vec![chunk(1, NBD_REPLY_TYPE_NONE, 1, &[])]),
        ("an unknown chunk", vec![chunk(1, 99, 1, &[])]),
        ("a status", vec![status(9, &[(8, 0)])]),
        ("a stranger's cookie", vec![chunk(1, NBD_REPLY_TYPE_NONE, 2, &[])]),
        ("a simple reply", vec![simple]),
        ("nonsense", vec![vec![0; 64]]),
    ] {
        let replies: Vec<&[u8]> = replies.iter().map(Vec::as_slice).collect();
        let seen = read(&replies);
        assert!(matches!(seen, Err(ClientError::Protocol(_))), "{name}: {seen:?}");
    }
    assert!(matches!(read(&[]), Err(ClientError::Stream { .. })));
}

#[test]
fn an_error_counts_whatever_data_came_with_it_and_the_client_lives_on() {
    let error = chunk(0, NBD_REPLY_TYPE_ERROR, 1, b"\0\0\0\x05\0\x03bad");
    let next = bytes(&[&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes(), &[0; 4], &2u64.to_be_bytes()]);
    let mut client = client(&[&data(0, 16, b"abcdefgh"), &error, &chunk(1, NBD_REPLY_TYPE_NONE, 1, &[]), &next]);
    let failed = client.read(16, &mut [0; 8]).expect_err("an error");
    assert_eq!(failed.to_string(), "the server failed to read (bad): input/output error");
    client.flush().expect("a flush");
}

#[test]
fn after_a_violation_nothing_is_believed() {
    let mut client = client(&[&[0; 64]]);
    assert!(matches!(client.flush(), Err(ClientError::Protocol(_))));
    assert!(matches!(client.flush(), Err(ClientError::Broken)));
}

#[test]
fn block_status_is_cut_to_what_was_asked_for() {
    let runs = client(&[&status(9, &[(4096, 3), (1 << 20, 0)])]).block_status(0, 8192).expect("a status");
    let expected = [(0, 4096, true), (4096, 4096, false)];
    assert_eq!(runs.iter().map(|run| (run.offset, run.length, run.zero)).collect::<Vec<_>>(), expected);
    for runs in [&[][..], &[(0, 0)], &[(8192, 0), (1, 0)]] {
        assert!(matches!(client(&[&status(9, runs)]).block_status(0, 8192), Err(ClientError::Protocol(_))), "{runs:?}");
    }
    assert!(client(&[&status(8, &[(8192, 0)])]).block_status(0, 8192).is_err(), "another context");
}

#[test]
fn an_export_larger_than_any_device_is_not_believed() {
    let script = bytes(&[
        &greeting(),
        &option_reply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_FLAG_ERROR | 1, &[]),
        &option_reply(NBD_OPT_GO, NBD_REP_INFO, &bytes(&[&[0, 0], &[0xff; 8], &[0, 1]])),
        &option_reply(NBD_OPT_GO, NBD_REP_ACK, &[]),
    ]);
    let refused = Client::connect(Scripted(io::Cursor::new(script)), "disk");
    assert!(matches!(refused, Err(ClientError::Protocol(_))));
}

#[test]
fn a_client_that_wants_tls_takes_nothing_less_for_it() {
    let answer = |kind: u32, text: &[u8]| bytes(&[&greeting(), &option_reply(NBD_OPT_STARTTLS, kind, text)]);
    let ask = |script| connect::start_tls(&mut BufReader::new(Scripted(io::Cursor::new(script)))).map(drop);
    for kind in [NBD_REP_ERR_POLICY, NBD_REP_ERR_UNSUP, NBD_REP_ERR_INVALID, NBD_REP_SERVER] {
        assert!(matches!(ask(answer(kind, b"")), Err(ClientError::NoTls { .. })), "{kind:#x}");
    }
    assert!(matches!(ask(answer(NBD_REP_ERR_POLICY, b"why")), Err(ClientError::NoTls { reason }) if reason == "why"));
    assert!(ask(answer(NBD_REP_ACK, b"")).is_ok());
    let injected = bytes(&[&answer(NBD_REP_ACK, b""), &option_reply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, &[])]);
    assert!(matches!(ask(injected), Err(ClientError::Protocol(_))), "a man in the middle speaks for the server");
    let old = bytes(&[&NBDMAGIC.to_be_bytes(), &IHAVEOPT.to_be_bytes(), &[0, 2]]);
    assert!(matches!(ask(old), Err(ClientError::Protocol(_))), "a handshake that cannot be encrypted");
}

proptest! {
    #[test]
    fn no_server_can_make_it_panic(kinds in proptest::collection::vec((0u16..8, 0u16..2, 0u64..3, any::<bool>()), 0..6),
                                   tail in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut script = Vec::new();
        for (kind, flags, cookie, error) in kinds {
            let kind = if error { kind | NBD_REPLY_TYPE_FLAG_ERROR } else { kind };
            script.extend(chunk(flags, kind, cookie, &tail));
        }
        script.extend(&tail);
        let mut client = client(&[&script]);
        let survived = client.read(0, &mut [0; 64]).is_ok() && client.block_status(0, SIZE).is_ok();
        prop_assert!(!survived || client.flush().is_err());
    }
}
