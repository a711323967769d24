//! Documents: small JSON files that a person can read and that a machine can tell to be whole.
//!
//! ```json
//! {
//!   "format": "symphony volume",
//!   "version": 1,
//!   "sha256": "5f2c…",
//!   "content": { … }
//! }
//! ```
//!
//! The checksum is over the file's own bytes with the 64 digits of the checksum written as zeros, so that it depends on
//! no JSON library's order or spacing, and no byte can change unseen. A file that is not whole is never repaired,
//! overwritten or removed here: what it held may matter to a person.

use super::directory::{Directory, FileError, PRIVATE, Staged};
use super::files::{MAX_FILE, place};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// What a kind of document is called, and how new its layout is.
pub trait Document: Serialize + DeserializeOwned {
    const FORMAT: &'static str;
    /// Counts from 1; grows when older programs would misread the content.
    const VERSION: u32;
}

#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is damaged: {reason}; it was left as it is", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{} holds a '{found}' where a '{expected}' belongs; it was left as it is", path.display())]
    Foreign { path: PathBuf, found: String, expected: &'static str },
    #[error(
        "{} was written by a newer symphony (version {found} of its format, this one reads up to {known}); \
         it was left as it is", path.display()
    )]
    Newer { path: PathBuf, found: u32, known: u32 },
    #[error("cannot put the '{format}' for {} into words", path.display())]
    Encode { format: &'static str, path: PathBuf, source: serde_json::Error },
}

impl DocumentError {
    /// Whether the file is there but cannot be taken for what it should be.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Foreign { .. } | Self::Newer { .. } => true,
            Self::File(_) | Self::Encode { .. } => false,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    format: String,
    version: u32,
    sha256: String,
    content: T,
}

const DIGITS: usize = 64;

/// Writes the document durably and privately, as [`write_atomic`](super::files::write_atomic) does.
pub fn save_document<T: Document>(path: &Path, content: &T) -> Result<(), DocumentError> {
    let (directory, name) = place(path)?;
    save(&directory, name, content)
}

/// Reads the document; none if there is no such file.
pub fn load_document<T: Document>(path: &Path) -> Result<Option<T>, DocumentError> {
    match place(path) {
        Ok((directory, name)) => load(&directory, name),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// [`save_document`] in a directory held open.
pub fn save<T: Document>(directory: &Directory, name: &str, content: &T) -> Result<(), DocumentError> {
    let staged = stage(directory, name, content)?;
    staged.sync()?;
    staged.publish()?;
    Ok(directory.sync()?)
}

/// The first step of [`save`], for callers that have more to make durable before the document may appear.
pub fn stage<'d, T: Document>(directory: &'d Directory, name: &str, content: &T) -> Result<Staged<'d>, DocumentError> {
    let text = encode_document(content).map_err(|source| DocumentError::Encode {
        format: T::FORMAT,
        path: directory.path_of(name),
        source,
    })?;
    // What could not be read again must not be written.
    if text.len() as u64 > MAX_FILE {
        return Err(FileError::new("write", directory.path_of(name), std::io::ErrorKind::FileTooLarge).into());
    }
    Ok(directory.stage(name, text.as_bytes(), PRIVATE)?)
}

/// [`load_document`] in a directory held open.
pub fn load<T: Document>(directory: &Directory, name: &str) -> Result<Option<T>, DocumentError> {
    match directory.read(name, MAX_FILE)? {
        Some(bytes) => decode_document(&directory.path_of(name), &bytes).map(Some),
        None => Ok(None),
    }
}

/// The document's text, for other places than files.
///
/// # Errors
/// The content cannot be put into words.
pub fn encode_document<T: Document>(content: &T) -> Result<String, serde_json::Error> {
    let zeros = "0".repeat(DIGITS);
    let envelope = Envelope { format: T::FORMAT.to_owned(), version: T::VERSION, sha256: zeros.clone(), content };
    let blank = serde_json::to_string_pretty(&envelope)? + "\n";
    // The checksum comes before the content, so the first run of zeros is its place.
    Ok(blank.replacen(&zeros, &digest(blank.as_bytes()), 1))
}

/// Reads a document's text; `path` says in messages where it was.
///
/// # Errors
/// It is damaged, of another kind or newer.
pub fn decode_document<T: Document>(path: &Path, bytes: &[u8]) -> Result<T, DocumentError> {
    let damaged = |reason: &str| DocumentError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    if bytes.is_empty() {
        return Err(damaged("it is empty"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
    let unreadable = |error: serde_json::Error| damaged(&format!("it is not a document of symphony's ({error})"));
    let head: Envelope<IgnoredAny> = serde_json::from_str(text).map_err(unreadable)?;
    if head.format != T::FORMAT {
        let found = head.format.chars().take(40).collect();
        return Err(DocumentError::Foreign { path: path.to_owned(), found, expected: T::FORMAT });
    }
    if head.version > T::VERSION {
        return Err(DocumentError::Newer { path: path.to_owned(), found: head.version, known: T::VERSION });
    }
    if head.sha256.len() != DIGITS || !head.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(damaged("its checksum is not one"));
    }
    let blank = text.replacen(&head.sha256, &"0".repeat(DIGITS), 1);
    if digest(blank.as_bytes()) != head.sha256 {
        return Err(damaged("its checksum does not match its content"));
    }
    let whole: Envelope<T> = serde_json::from_str(text).map_err(unreadable)?;
    Ok(whole.content)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
        numbers: Vec<u64>,
    }

    impl Document for Note {
        const FORMAT: &'static str = "test note";
        const VERSION: u32 = 2;
    }

    fn note() -> Note {
        Note {
            text: "it holds \"quotes\", ümläuts and ".to_owned() + &"0".repeat(DIGITS), numbers: vec![0, u64::MAX]
        }
    }

    fn damage_of(bytes: &[u8]) -> String {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("note.json");
        std::fs::write(&path, bytes).unwrap();
        let error = load_document::<Note>(&path).unwrap_err();
        assert!(error.is_damage(), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        error.to_string()
    }

    #[test]
    fn a_document_survives_the_disk_and_reads_well() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("note.json");
        assert_eq!(load_document::<Note>(&path).unwrap(), None);
        save_document(&path, &note()).unwrap();
        assert_eq!(load_document::<Note>(&path).unwrap(), Some(note()));
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("{\n  \"format\": \"test note\",\n"));
    }

    #[test]
    fn every_kind_of_damage_is_named_and_the_file_is_kept() {
        let text = encode_document(&note()).unwrap();
        assert!(damage_of(b"").contains("empty"));
        assert!(damage_of(b"\xff\xfe").contains("not text"));
        assert!(damage_of(b"[]").contains("not a document"));
        assert!(damage_of(text.replace("test note", "toast note").as_bytes()).contains("'toast note'"));
        assert!(damage_of(text.replace("\"version\": 2", "\"version\": 3").as_bytes()).contains("newer"));
        assert!(damage_of(text.replace("quotes", "quotas").as_bytes()).contains("checksum"));
        assert!(damage_of(text.replace("sha256\": \"", "sha256\": \"x").as_bytes()).contains("checksum"));
    }

    #[test]
    fn a_document_cut_short_anywhere_is_damaged() {
        let text = encode_document(&note()).unwrap();
        let path = Path::new("note.json");
        for length in 0..text.len() {
            assert!(decode_document::<Note>(path, &text.as_bytes()[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_byte_changes_unseen(at in any::<prop::sample::Index>(), change in 1u8..) {
            let mut bytes = encode_document(&note()).unwrap().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            prop_assert!(decode_document::<Note>(Path::new("note.json"), &bytes).is_err());
        }

        #[test]
        fn any_content_comes_back(text in ".*", numbers: Vec<u64>) {
            let note = Note { text, numbers };
            let encoded = encode_document(&note).unwrap();
            prop_assert_eq!(decode_document::<Note>(Path::new("note.json"), encoded.as_bytes()).unwrap(), note);
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes: Vec<u8>) {
            prop_assert!(decode_document::<Note>(Path::new("note.json"), &bytes).is_err());
        }
    }
}
