use super::*;
use proptest::prelude::*;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;

fn header() -> proto::BackupHeader {
    proto::BackupHeader {
        cluster_id: "1".into(),
        cluster_name: "prod".into(),
        epoch: 2,
        revision: 7,
        taken_at: 1_790_000_000_123,
        symphony: "0".into(),
    }
}

type Entries = Vec<(String, Vec<u8>)>;

fn write(entries: &Entries) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("backup");
    let mut writer = Writer::to_file(&path, &header()).unwrap();
    for (key, value) in entries {
        writer.entry(key, value).unwrap();
    }
    assert!(!path.exists(), "it has no name before it is whole");
    writer.finish(entries.len() as u64).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    std::fs::read(&path).unwrap()
}

fn read(bytes: &[u8]) -> Result<Entries, BackupFileError> {
    let mut reader = Reader::new(bytes)?;
    assert_eq!(*reader.header(), header());
    let mut entries = Entries::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    Ok(entries)
}

fn sample() -> Entries {
    let entry = |key: &str, value: &[u8]| (key.to_owned(), value.to_vec());
    vec![
        entry("/cluster", r#"{"a":[1,"ä"]}"#.as_bytes()),
        entry("/odd", b"\xff\x00"),
        entry("/null", b"null"),
        entry("/empty", b""),
    ]
}

#[test]
fn what_was_written_is_read_and_a_person_can_read_it_too() {
    let bytes = write(&sample());
    assert_eq!(read(&bytes).unwrap(), sample());
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("{\"key\":\"/cluster\",\"value\":{\"a\":[1,\"ä\"]}}\n"), "{text}");
    assert!(
        text.starts_with("{\"format\":\"symphony backup\",\"version\":1,") && text.contains("private key"),
        "{text}"
    );
}

#[test]
fn a_damaged_file_is_refused_wherever_a_byte_is_another_one() {
    let bytes = write(&sample());
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        let refused = Reader::new(&damaged[..]).and_then(|mut reader| {
            while reader.next()?.is_some() {}
            Ok(())
        });
        assert!(refused.is_err(), "byte {place}");
    }
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let bytes = write(&sample());
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length} bytes");
    }
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let cut = read(&lines[..3].concat()).unwrap_err().to_string();
    assert!(cut.contains("after line 3") && cut.contains("cut short"), "{cut}");
}

#[test]
fn a_file_that_lacks_a_line_or_has_one_more_is_refused() {
    let bytes = write(&sample());
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let without = [&lines[..1], &lines[2..]].concat().concat();
    assert!(matches!(read(&without), Err(BackupFileError::Checksum)));
    let beyond = [&bytes[..], b"\n"].concat();
    assert!(matches!(read(&beyond), Err(BackupFileError::Beyond(7))));
}

#[test]
fn a_foreign_file_and_one_of_a_newer_version_are_refused_by_their_first_line() {
    let foreign: [&[u8]; 6] = [
        b"",
        b"\n",
        b"PK\x03\x04",
        b"{}\n",
        b"{\"format\":\"other\",\"version\":1}\n",
        b"{\"format\":\"symphony backup\"}\n",
    ];
    for bytes in foreign {
        let error = Reader::new(bytes).err().unwrap().to_string();
        assert!(error.contains("no symphony backup"), "{error}");
    }
    let newer = String::from_utf8(write(&sample())).unwrap().replacen("\"version\":1", "\"version\":2", 1);
    let error = Reader::new(newer.as_bytes()).err().unwrap().to_string();
    assert!(error.contains("newer symphony") && error.contains("version 2"), "{error}");
}

#[test]
fn a_line_of_ten_gigabytes_is_refused_after_as_much_as_a_line_may_have() {
    let endless = || std::io::repeat(b'x').take(10 << 30);
    let error = Reader::new(BufReader::new(endless())).err().unwrap().to_string();
    assert!(error.contains("no symphony backup"), "{error}");
    let bytes = write(&Vec::new());
    let first = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap();
    let mut reader = Reader::new(BufReader::new(first.chain(endless()))).unwrap();
    assert!(matches!(reader.next(), Err(BackupFileError::Long { line: 2 })));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), keep in 0usize..400) {
        let whole = write(&sample());
        let mixed = [&whole[..keep.min(whole.len())], &bytes[..]].concat();
        if let Ok(mut reader) = Reader::new(&mixed[..]) {
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
