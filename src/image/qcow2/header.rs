//! The header: what a file says of itself, and what of that can be believed.

use super::Qcow2Error;
use crate::model::ByteSize;

/// How compressed clusters are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw DEFLATE.
    Zlib,
    Zstd,
}

/// A range of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub offset: u64,
    /// In bytes.
    pub length: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub(super) version: u32,
    cluster_bits: u32,
    size: u64,
    l1: Place,
    compression: Compression,
}

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// As qemu has it: the most bytes of a first table.
const MAX_L1: u64 = 32 << 20;

/// Incompatible features, by their bits: what a file with one of them does; none: it can be read all the same.
const FEATURES: &[(u32, Option<&str>)] = &[
    // Reference counts may be wrong, which nobody needs who only reads.
    (0, None),
    // Told apart below.
    (1, None),
    (2, Some("keeps its data in another file")),
    (3, None),
    (4, Some("has subclusters (extended L2 entries)")),
];

fn damaged<T>(reason: impl Into<String>) -> Result<T, Qcow2Error> {
    Err(Qcow2Error::Damaged(reason.into()))
}

/// Big-endian numbers at fixed places of the file's first bytes.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], Qcow2Error> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk::<N>());
        bytes.copied().ok_or_else(|| Qcow2Error::Damaged("it ends within its header".into()))
    }

    fn u32(&self, at: usize) -> Result<u32, Qcow2Error> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, Qcow2Error> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

impl Header {
    /// As much of a file's beginning as is looked at, in bytes: the header and the name of a backing file.
    pub const LONGEST: u64 = 4096;

    /// Judges the first bytes of a file of `file` bytes.
    pub fn parse(start: &[u8], file: u64) -> Result<Self, Qcow2Error> {
        if !start.starts_with(MAGIC) {
            return Err(Qcow2Error::Magic);
        }
        let fields = Fields(start);
        let version = fields.u32(4)?;
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Version(version));
        }
        let compression = match version {
            2 => Compression::Zlib,
            _ => features(&fields)?,
        };
        refuse_backing(&fields)?;
        match fields.u32(32)? {
            0 => {}
            1 | 2 => return Err(Qcow2Error::Unsupported("is encrypted".into())),
            other => return damaged(format!("{other} is no encryption method")),
        }
        let cluster_bits = fields.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return damaged(format!("clusters of 2^{cluster_bits} bytes: they have 512 bytes to 2 MiB"));
        }
        let size = fields.u64(24)?;
        if size == 0 {
            return damaged("its disk has a size of zero");
        }
        if size > ByteSize::MAX.as_u64() {
            return damaged(format!("its disk has {size} bytes, which no device has"));
        }
        let mut header = Self { version, cluster_bits, size, l1: Place { offset: 0, length: 0 }, compression };
        header.judge_counts(&fields, file)?;
        header.l1 = header.judge_l1(&fields, file)?;
        Ok(header)
    }

    /// Reference counts are not read; a header that has nonsense for them has it elsewhere, too.
    fn judge_counts(&self, fields: &Fields<'_>, file: u64) -> Result<(), Qcow2Error> {
        let (offset, clusters) = (fields.u64(48)?, fields.u32(56)?);
        let length = u64::from(clusters).checked_mul(self.cluster_size());
        let end = length.and_then(|length| offset.checked_add(length));
        if !offset.is_multiple_of(self.cluster_size()) || end.is_none_or(|end| end > file) {
            return damaged(format!(
                "its table of reference counts ({clusters} clusters at {offset}) is not within it"
            ));
        }
        if self.version >= 3 && fields.u32(96)? > 6 {
            return damaged(format!("reference counts of 2^{} bits: they have 64 at most", fields.u32(96)?));
        }
        Ok(())
    }

    fn judge_l1(&self, fields: &Fields<'_>, file: u64) -> Result<Place, Qcow2Error> {
        let (entries, offset) = (u64::from(fields.u32(36)?), fields.u64(40)?);
        let needed = self.size.div_ceil(self.span());
        if needed > entries {
            return damaged(format!(
                "its first table has {entries} entries, its disk of {} bytes needs {needed}",
                self.size
            ));
        }
        let length = needed.saturating_mul(8);
        if length > MAX_L1 {
            return damaged(format!("a first table of {length} bytes: {MAX_L1} are the most"));
        }
        let end = offset.checked_add(length).filter(|end| *end <= file);
        if end.is_none() || !offset.is_multiple_of(self.cluster_size()) || offset == 0 {
            return damaged(format!("its first table ({needed} entries at {offset}) is not within it"));
        }
        Ok(Place { offset, length })
    }

    /// What the disk holds, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Where the L1 table is, as much of it as the disk needs.
    pub fn first_table(&self) -> Place {
        self.l1
    }

    /// How much of the disk one L2 table is about.
    pub(super) fn span(&self) -> u64 {
        // At most 2^21 bytes, of each eight of which one cluster is described.
        self.cluster_size() << (self.cluster_bits - 3)
    }

    /// How much of the disk this L2 table is about: the last one may be about less.
    pub fn span_of(&self, table: usize) -> u64 {
        let before = (table as u64).saturating_mul(self.span());
        self.size.saturating_sub(before).min(self.span())
    }
}

/// What version 3 says of its features; how clusters are compressed.
fn features(fields: &Fields<'_>) -> Result<Compression, Qcow2Error> {
    let length = fields.u32(100)?;
    if length < 104 || !length.is_multiple_of(8) {
        return damaged(format!("its header says that it has {length} bytes"));
    }
    let features = fields.u64(72)?;
    if features & 2 != 0 {
        return Err(Qcow2Error::Corrupt);
    }
    for (bit, what) in FEATURES {
        if let Some(what) = what.filter(|_| features & 1 << bit != 0) {
            return Err(Qcow2Error::Unsupported(what.into()));
        }
    }
    let unknown = features >> FEATURES.len();
    if unknown != 0 {
        let bit = unknown.trailing_zeros() as usize + FEATURES.len();
        return Err(Qcow2Error::Unsupported(format!("has the incompatible feature {bit}, which is not known here")));
    }
    let kind = if length > 104 { fields.bytes::<1>(104)?[0] } else { 0 };
    match (kind, features & 8 != 0) {
        (0, false) => Ok(Compression::Zlib),
        (1, true) => Ok(Compression::Zstd),
        (0, true) | (1, false) => damaged("its header contradicts itself over how clusters are compressed"),
        (other, _) => Err(Qcow2Error::Unsupported(format!("is compressed in a way ({other}) that is not known here"))),
    }
}

fn refuse_backing(fields: &Fields<'_>) -> Result<(), Qcow2Error> {
    let (offset, length) = (fields.u64(8)?, fields.u32(16)?);
    if offset == 0 {
        return Ok(());
    }
    let start = usize::try_from(offset).ok();
    let name = start.and_then(|start| fields.0.get(start..)?.get(..length.min(200) as usize));
    let name = name.map_or_else(|| "?".into(), |name| String::from_utf8_lossy(name).escape_debug().to_string());
    Err(Qcow2Error::Unsupported(format!("is only what differs from a backing file ('{name}')")))
}
