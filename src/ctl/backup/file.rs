//! The file that holds a backup: lines of JSON that a person can read, and a checksum that tells whether it is whole.
//!
//! ```json
//! {"format":"symphony backup","version":1,"symphony":"0.1.0","cluster":{"id":"…","name":"prod"},"epoch":0,"revision":812,…}
//! {"key":"/cluster","value":{…}}
//! {"key":"/volume/…","value":{…}}
//! {"entries":2,"sha256":"5f2c…"}
//! ```
//!
//! The checksum is over every byte before its line. A value that is no JSON stands as `"hex"`. Nothing of a file is
//! believed before all of it was read; no line is read into memory further than a value may be long.

use crate::model::Timestamp;
use crate::rpc::proto;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FORMAT: &str = "symphony backup";
const VERSION: u32 = 1;
/// A value has a mebibyte at the most, twice that in hexadecimal digits.
const LONGEST_LINE: u64 = 4 << 20;
/// Bytes of values in one message to the manager.
pub const PART_BYTES: usize = 256 << 10;
/// What a manager takes.
const MOST_BYTES: u64 = 2 << 30;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    symphony: String,
    cluster: ClusterLine,
    epoch: u64,
    revision: i64,
    taken_at: Timestamp,
    secret: String,
}

#[derive(Serialize, Deserialize)]
struct ClusterLine {
    id: String,
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryLine {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EndLine {
    entries: u64,
    sha256: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect::<Option<_>>();
    bytes.filter(|_| rest.is_empty())
}

/// Writes a backup; it has its name once it is whole.
pub struct Writer {
    out: BufWriter<Box<dyn Write + Send>>,
    sum: Sha256,
    entries: u64,
    staged: Option<Staged>,
}

/// A file on its way to its name.
struct Staged {
    file: File,
    path: PathBuf,
    name: PathBuf,
    done: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, file = %self.path.display(), "cannot remove what was written in vain");
        }
    }
}

impl Writer {
    pub fn to_stdout(header: &proto::BackupHeader) -> io::Result<Self> {
        Self::begin(Box::new(io::stdout()), None, header)
    }

    pub fn to_file(path: &Path, header: &proto::BackupHeader) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let mut staged = std::ffi::OsString::from(".");
        staged.push(name);
        staged.push(format!(".{}", uuid::Uuid::new_v4()));
        let staged = path.with_file_name(staged);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
        let out = Box::new(file.try_clone()?);
        let staged = Staged { file, path: staged, name: path.to_owned(), done: false };
        Self::begin(out, Some(staged), header)
    }

    fn begin(out: Box<dyn Write + Send>, staged: Option<Staged>, header: &proto::BackupHeader) -> io::Result<Self> {
        let mut writer = Self { out: BufWriter::new(out), sum: Sha256::new(), entries: 0, staged };
        writer.line(&Header {
            format: FORMAT.into(),
            version: VERSION,
            symphony: header.symphony.clone(),
            cluster: ClusterLine { id: header.cluster_id.clone(), name: header.cluster_name.clone() },
            epoch: header.epoch,
            revision: header.revision,
            taken_at: Timestamp::from_millis(header.taken_at),
            secret: "this file holds the private key of the cluster's authority".into(),
        })?;
        Ok(writer)
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.sum.update(&text);
        self.out.write_all(&text)
    }

    pub fn entry(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.entries = self.entries.saturating_add(1);
        let readable = serde_json::from_slice::<Value>(value).ok().filter(|value| !value.is_null());
        let hex = readable.is_none().then(|| hex(value));
        self.line(&EntryLine { key: key.into(), value: readable, hex })
    }

    /// Makes it durable and gives it its name; the checksum.
    pub fn finish(mut self, promised: u64) -> io::Result<String> {
        if promised != self.entries {
            let text = format!("the manager told of {promised} values and sent {}", self.entries);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let sha256 = hex(&self.sum.clone().finalize());
        let entries = self.entries;
        self.line(&EndLine { entries, sha256: sha256.clone() })?;
        self.out.flush()?;
        if let Some(staged) = &mut self.staged {
            staged.file.sync_all()?;
            std::fs::rename(&staged.path, &staged.name)?;
            staged.done = true;
            let parent = staged.name.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(sha256)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BackupFileError {
    #[error("cannot read it")]
    Read(#[from] io::Error),
    #[error("it is no symphony backup: {0}")]
    Foreign(String),
    #[error(
        "it was written by a newer symphony (version {found} of its format, this one reads up to {VERSION}): restore it \
         with that one"
    )]
    Newer { found: u32 },
    #[error("line {line} is damaged: {reason}")]
    Line { line: u64, reason: String },
    #[error("line {line} has more than {LONGEST_LINE} bytes, which no line of a backup has")]
    Long { line: u64 },
    #[error("it ends after line {0}, before its checksum: it was cut short")]
    Cut(u64),
    #[error("it is damaged: its lines do not have the checksum that its end tells")]
    Checksum,
    #[error("it holds {found} values and should hold {promised}")]
    Count { found: u64, promised: u64 },
    #[error("there is something after its end, in line {0}")]
    Beyond(u64),
    #[error("it has more than {MOST_BYTES} bytes, which no backup has")]
    Large,
}

/// Reads a backup line by line. What it gave is worth something only once it has given none.
pub struct Reader<R> {
    from: R,
    sum: Sha256,
    header: proto::BackupHeader,
    line: u64,
    bytes: u64,
    entries: u64,
}

impl<R: BufRead> Reader<R> {
    /// # Errors
    /// If the first line is no header of a backup that this version reads.
    pub fn new(from: R) -> Result<Self, BackupFileError> {
        let header = proto::BackupHeader::default();
        let mut reader = Self { from, sum: Sha256::new(), header, line: 0, bytes: 0, entries: 0 };
        let foreign = |reason: String| BackupFileError::Foreign(reason);
        let first = match reader.read_line() {
            Ok(Some(line)) => line,
            Ok(None) => return Err(foreign("it is empty".into())),
            Err(BackupFileError::Long { .. }) => return Err(foreign("its first line has no end".into())),
            Err(error) => return Err(error),
        };
        let value: Value = serde_json::from_slice(&first).map_err(|_| foreign("its first line is no JSON".into()))?;
        let format = value.get("format").and_then(Value::as_str);
        if format != Some(FORMAT) {
            return Err(foreign("its first line does not say that it is one".into()));
        }
        let version = value.get("version").and_then(Value::as_u64).and_then(|version| u32::try_from(version).ok());
        match version {
            Some(VERSION) => {}
            Some(found) if found > VERSION => return Err(BackupFileError::Newer { found }),
            _ => return Err(foreign("its first line names no version".into())),
        }
        let header: Header = serde_json::from_value(value)
            .map_err(|error| BackupFileError::Line { line: 1, reason: error.to_string() })?;
        reader.sum.update(&first);
        reader.header = proto::BackupHeader {
            cluster_id: header.cluster.id,
            cluster_name: header.cluster.name,
            epoch: header.epoch,
            revision: header.revision,
            taken_at: header.taken_at.as_millis(),
            symphony: header.symphony,
        };
        Ok(reader)
    }

    pub fn header(&self) -> &proto::BackupHeader {
        &self.header
    }

    /// A whole line with its end; none at the end of the file, or where the last line has none.
    fn read_line(&mut self) -> Result<Option<Vec<u8>>, BackupFileError> {
        let mut line = Vec::new();
        self.line = self.line.saturating_add(1);
        let read = io::Read::by_ref(&mut self.from).take(LONGEST_LINE).read_until(b'\n', &mut line)? as u64;
        self.bytes = self.bytes.saturating_add(read);
        if self.bytes > MOST_BYTES {
            return Err(BackupFileError::Large);
        }
        match line.last() {
            Some(b'\n') => Ok(Some(line)),
            _ if read == LONGEST_LINE => Err(BackupFileError::Long { line: self.line }),
            _ => Ok(None),
        }
    }

    /// The next key and its value; none once the end and the checksum were found good.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn next(&mut self) -> Result<Option<(String, Vec<u8>)>, BackupFileError> {
        let Some(line) = self.read_line()? else { return Err(BackupFileError::Cut(self.line.saturating_sub(1))) };
        if let Ok(end) = serde_json::from_slice::<EndLine>(&line) {
            return self.end(&end).map(|()| None);
        }
        let number = self.line;
        let damaged = |reason: String| BackupFileError::Line { line: number, reason };
        let entry: EntryLine = serde_json::from_slice(&line).map_err(|error| damaged(error.to_string()))?;
        self.sum.update(&line);
        self.entries = self.entries.saturating_add(1);
        let value = match (entry.value, entry.hex) {
            (Some(value), None) => serde_json::to_vec(&value).map_err(|error| damaged(error.to_string()))?,
            (None, Some(hex)) => from_hex(&hex).ok_or_else(|| damaged("its hexadecimal digits are none".into()))?,
            _ => return Err(damaged("it has not one value".into())),
        };
        Ok(Some((entry.key, value)))
    }

    fn end(&mut self, end: &EndLine) -> Result<(), BackupFileError> {
        if hex(&self.sum.clone().finalize()) != end.sha256 {
            return Err(BackupFileError::Checksum);
        }
        if end.entries != self.entries {
            return Err(BackupFileError::Count { found: self.entries, promised: end.entries });
        }
        let mut more = [0];
        match self.from.read(&mut more)? {
            0 => Ok(()),
            _ => Err(BackupFileError::Beyond(self.line.saturating_add(1))),
        }
    }
}

#[cfg(test)]
mod tests;
