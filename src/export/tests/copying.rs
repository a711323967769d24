//! Uploads and downloads of whole volumes.

use super::*;
use crate::io::{Fault, Operation};
use crate::model::ByteSize;
use crate::nbd::copy::{Copied, CopyError, Sink, download, upload};
use nix::errno::Errno;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;

const VOLUME: u64 = 8 << 20;

fn volume() -> Bench {
    bench_with(local(all_local()), VOLUME)
}

fn put(bench: &Bench, content: &[u8], length: Option<u64>) -> Result<Copied, CopyError> {
    let mut client = bench.client();
    let mut source = content;
    upload(&mut source, &mut client, length.map(ByteSize::bytes), &mut |_| {})
}

/// Old data everywhere, so that a zero that was not written shows.
fn dirty(bench: &Bench) {
    bench.client().write(0, &vec![0xaa; VOLUME as usize], false).expect("a write");
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![Just(0u8), any::<u8>()];
    proptest::collection::vec((run, 0usize..500_000), 0..10).prop_map(|runs| {
        let mut bytes: Vec<u8> = runs.iter().flat_map(|(byte, length)| vec![*byte; *length]).collect();
        bytes.truncate(VOLUME as usize);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_uploaded_is_downloaded(content in content(), known: bool) {
        let bench = volume();
        dirty(&bench);
        let length = content.len() as u64;
        let sent = put(&bench, &content, known.then_some(length)).expect("an upload");
        let digest: [u8; 32] = Sha256::digest(&content).into();
        prop_assert_eq!(sent, Copied { bytes: ByteSize::bytes(length), sha256: digest });
        prop_assert_eq!(bench.io.performed().last().map(|done| done.operation), Some(Operation::Flush));

        let mut stream = Vec::new();
        let wanted = Some(ByteSize::bytes(length));
        let received = download(&mut bench.client(), Sink::Stream(&mut stream), wanted, &mut |_| {}).expect("a download");
        prop_assert_eq!(received, sent);
        prop_assert!(stream == content);

        let mut file = tempfile::tempfile().expect("a temporary file");
        std::io::Write::write_all(&mut file, &[0xee; 3000]).expect("old content");
        let received = download(&mut bench.client(), Sink::File(&file), wanted, &mut |_| {}).expect("a download");
        prop_assert_eq!(received, sent);
        file.rewind().expect("a file");
        let mut seen = Vec::new();
        file.read_to_end(&mut seen).expect("a file");
        prop_assert!(seen == content);

        let mut tail = vec![0; (VOLUME - length) as usize];
        bench.client().read(length, &mut tail).expect("a read");
        prop_assert!(tail.iter().all(|byte| *byte == 0xaa), "what lies behind an upload is not touched");
    }
}

#[test]
fn a_sparse_volume_becomes_a_sparse_file_and_progress_reaches_its_end() {
    let bench = volume();
    bench.client().write(VOLUME / 2, &[1; 4096], false).expect("a write");
    let file = tempfile::tempfile().expect("a temporary file");
    let mut told = Vec::new();
    download(&mut bench.client(), Sink::File(&file), None, &mut |bytes| told.push(bytes)).expect("a download");
    let metadata = file.metadata().expect("a file");
    assert_eq!(metadata.len(), VOLUME);
    assert!(metadata.blocks() * 512 < VOLUME / 2, "{} blocks", metadata.blocks());
    assert!(told.is_sorted() && told.last() == Some(&ByteSize::bytes(VOLUME)));
}

#[test]
fn a_source_known_to_be_too_large_is_refused_before_anything_is_written() {
    let bench = volume();
    let error = put(&bench, &vec![1; 9 << 20], Some(9 << 20)).expect_err("too large");
    assert!(matches!(error, CopyError::TooLarge { .. }));
    let text = error.to_string();
    assert!(text.contains("9MiB") && text.contains("8MiB"), "{text}");
    assert!(bench.io.performed().is_empty());
}

#[test]
fn a_source_that_turns_out_too_long_or_too_short_is_an_error() {
    let bench = volume();
    assert!(matches!(put(&bench, &vec![1; VOLUME as usize + 1], None), Err(CopyError::Endless { .. })));
    assert!(put(&bench, &vec![1; VOLUME as usize], None).is_ok());
    assert!(matches!(put(&bench, &[1; 1000], Some(1001)), Err(CopyError::Short { .. })));
    let beyond = download(&mut bench.client(), Sink::Stream(&mut Vec::new()), Some(ByteSize::mib(9)), &mut |_| {});
    assert!(matches!(beyond, Err(CopyError::Beyond { .. })));
}

#[test]
fn an_upload_is_no_success_unless_every_write_and_the_flush_were() {
    for operation in [Operation::Write, Operation::Zero, Operation::Flush] {
        let bench = volume();
        bench.io.inject(Fault { skip: 0, ..Fault::every(operation, Errno::ENOSPC as i32) });
        let content = [vec![1; 3 << 20], vec![0; 3 << 20]].concat();
        let failed = put(&bench, &content, None);
        assert!(matches!(failed, Err(CopyError::Client(ClientError::Remote { .. }))), "{operation:?}: {failed:?}");
    }
}
