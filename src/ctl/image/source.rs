//! Where an image's content comes from: raw files and streams, and what other forms are put into files for.

use super::import::Form;
use crate::ctl::failure::Failure;
use crate::host::disk::{nameless_file, next_data};
use crate::image::qcow2::Disk;
use crate::image::{Content, PIECE, Part, STRIDE, fill};
use crate::model::{ByteSize, ImageFormat};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A file of this format begins so.
const QCOW2: &[u8] = b"QFI\xfb";

/// What the user says of the file.
pub struct Wishes {
    pub format: Option<Form>,
    pub size: Option<ByteSize>,
    pub spool_limit: ByteSize,
}

pub struct Source {
    pub content: Box<dyn Content + Send>,
    pub format: ImageFormat,
}

/// Looks at the file and finds what it is.
pub fn open(path: &Path, wishes: &Wishes) -> Result<Source> {
    if path.as_os_str() == "-" {
        return of_stream(Box::new(io::stdin()), wishes).context("reading standard input");
    }
    if wishes.size.is_some() {
        let text = "--size is for raw content from standard input: a file says how large it is";
        return Err(Failure::Usage(text.into()).into());
    }
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    of_file(file, wishes.format).with_context(|| format!("reading {}", path.display()))
}

fn of_file(mut file: File, format: Option<Form>) -> Result<Source> {
    // Of devices, too.
    let length = file.seek(SeekFrom::End(0)).context("asking how large it is")?;
    let mut start = [0; QCOW2.len()];
    let looks = length >= QCOW2.len() as u64 && file.read_exact_at(&mut start, 0).map(|()| start == *QCOW2)?;
    match format.unwrap_or(if looks { Form::Qcow2 } else { Form::Raw }) {
        Form::Raw if length == 0 => Err(Failure::Unfulfilled("it is empty: an image holds something".into()).into()),
        Form::Raw => Ok(Source { content: Box::new(RawFile::new(file, length)), format: ImageFormat::Raw }),
        Form::Qcow2 => {
            let disk = Disk::open(move |buffer: &mut [u8], offset| file.read_exact_at(buffer, offset), length)?;
            Ok(Source { content: Box::new(disk), format: ImageFormat::Qcow2 })
        }
    }
}

/// Raw content of a known size goes as it comes. Anything else has to be seen as a whole first, or in another order.
fn of_stream(mut stream: Box<dyn Read + Send>, wishes: &Wishes) -> Result<Source> {
    let mut start = [0; QCOW2.len()];
    let count = fill(&mut *stream, &mut start)?;
    let start = start.get(..count).unwrap_or_default();
    let form = wishes.format.unwrap_or(if start == QCOW2 { Form::Qcow2 } else { Form::Raw });
    let mut stream = io::Cursor::new(start.to_vec()).chain(stream);
    match (form, wishes.size) {
        (Form::Raw, Some(size)) => {
            let content = RawStream { stream: Box::new(stream), size: size.as_u64(), position: 0 };
            Ok(Source { content: Box::new(content), format: ImageFormat::Raw })
        }
        (Form::Qcow2, Some(_)) => {
            Err(Failure::Usage("--size is for raw content: a qcow2 file says how large its is".into()).into())
        }
        (form, None) => {
            let directory = std::env::temp_dir();
            let spooled = nameless_file(&directory).map_err(anyhow::Error::from).and_then(|mut file| {
                spool(&mut stream, &mut file, wishes.spool_limit)?;
                Ok(file)
            });
            let file =
                spooled.with_context(|| format!("putting it into a temporary file in {}", directory.display()))?;
            of_file(file, Some(form))
        }
    }
}

/// Copies a stream into an empty file; runs of zeros become holes.
fn spool(stream: &mut dyn Read, file: &mut File, limit: ByteSize) -> Result<()> {
    let mut piece = vec![0; PIECE as usize];
    let mut position = 0;
    loop {
        let count = fill(stream, &mut piece)?;
        let data = piece.get(..count).unwrap_or_default();
        let end = position + count as u64;
        if end > limit.as_u64() {
            let text =
                format!("it is longer than the {limit} of --spool-limit: allow more, or put it into a file first");
            return Err(Failure::Unfulfilled(text).into());
        }
        if data.iter().any(|byte| *byte != 0) {
            file.write_all_at(data, position)?;
        }
        position = end;
        if count < piece.len() {
            file.set_len(position)?;
            return Ok(file.flush()?);
        }
    }
}

/// A raw file or device; its holes are not read.
pub struct RawFile {
    file: File,
    length: u64,
    position: u64,
    /// Up to where the present run of data goes.
    data_until: u64,
}

impl RawFile {
    fn new(file: File, length: u64) -> Self {
        Self { file, length, position: 0, data_until: 0 }
    }
}

impl Content for RawFile {
    fn size(&self) -> u64 {
        self.length
    }

    fn next(&mut self, most: u64) -> io::Result<Option<Part>> {
        let left = self.length.saturating_sub(self.position).min(most);
        if left == 0 {
            return Ok(None);
        }
        if self.position >= self.data_until {
            let run = next_data(&self.file, self.position)?.unwrap_or(self.length..self.length);
            let hole = run.start.saturating_sub(self.position).min(left).min(STRIDE);
            if hole > 0 {
                self.position += hole;
                return Ok(Some(Part::Zeros(hole)));
            }
            self.data_until = run.end;
        }
        let length = self.data_until.saturating_sub(self.position).clamp(1, PIECE).min(left);
        let mut data = vec![0; length as usize];
        self.file.read_exact_at(&mut data, self.position)?;
        self.position += length;
        Ok(Some(Part::Data(data)))
    }

    fn rewind(&mut self) -> io::Result<bool> {
        (self.position, self.data_until) = (0, 0);
        Ok(true)
    }
}

/// A raw stream, which comes once.
struct RawStream {
    stream: Box<dyn Read + Send>,
    size: u64,
    position: u64,
}

impl Content for RawStream {
    fn size(&self) -> u64 {
        self.size
    }

    fn next(&mut self, most: u64) -> io::Result<Option<Part>> {
        let left = self.size.saturating_sub(self.position);
        if left == 0 {
            return match fill(&mut *self.stream, &mut [0])? {
                0 => Ok(None),
                _ => Err(io::Error::other(format!("there is more than the {} bytes of --size", self.size))),
            };
        }
        let mut data = vec![0; left.min(most).min(PIECE) as usize];
        let count = fill(&mut *self.stream, &mut data)?;
        data.truncate(count);
        self.position += count as u64;
        Ok((count > 0).then_some(Part::Data(data)))
    }

    fn rewind(&mut self) -> io::Result<bool> {
        Ok(self.position == 0)
    }
}
