//! Images: named, checksummed contents that volumes are created from, and what volumes have to do with them.
//!
//! An image's bytes are kept by *bases*: volumes that belong to it, are seen by nobody else, and are changed by nobody once
//! they are sealed. The first is where it was imported; each pool that volumes are made of it in gets one of its own.

use super::{
    ByteSize, Generation, ImageId, Meta, Observed, Phase, PoolId, ServiceId, Timestamp, Volume, VolumeId, VolumeReport,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// An image, under `/image/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub meta: Meta<ImageId>,
    pub spec: ImageSpec,
    pub status: ImageStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// How long its content is: what a disk made of it holds, not what its file occupies.
    pub size: ByteSize,
    /// What it was read from. Its content is the same in any form.
    pub format: ImageFormat,
    /// The pool that the user named for it; absent: the placer chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolId>,
    /// Which attempt to import it is the present one, from 1: a later one ends those before it.
    pub upload: u64,
    /// What its content must come to: SHA-256 of all `size` bytes, zeros and all. Absent: not all of it has been sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
}

/// How a disk's content is written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Byte by byte.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// `bases` are the placer's word; the rest follows from what is reported of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    pub phase: Phase,
    /// The volumes that keep its bytes, that of the import first.
    pub bases: Vec<VolumeId>,
    /// How much of it has arrived for good, while it is imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded: Option<Uploaded>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The beginning of an image's content, durable on its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    pub bytes: ByteSize,
    /// Of these bytes, so that only who sends the same ones goes on behind them.
    pub sha256: Digest,
}

/// SHA-256, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// The text is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 has 64 hexadecimal digits in small letters, this text has not")]
pub struct DigestError;

impl Digest {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
        let bytes = bytes.filter(|_| rest.is_empty()).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(DigestError)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// What a volume has to do with an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTie {
    pub image: ImageId,
    pub role: ImageRole,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "kebab-case")]
pub enum ImageRole {
    /// A base that takes the content in: only what belongs to this attempt writes to it.
    Upload { upload: u64 },
    /// A base that has been written: its content is compared with the seal once, and changed by nobody.
    Sealed { seal: Seal },
    /// A base that is filled with what another one keeps.
    Fetched { supply: Supply },
    /// Somebody's volume that began as a copy of the base beside it.
    Clone,
    /// Somebody's volume that is filled with what a base elsewhere keeps, where the pool cannot share blocks.
    Copy { supply: Supply },
}

/// What a base's content must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub length: ByteSize,
    pub sha256: Digest,
    /// The base's generation that asks for it: what is on disk as that generation has been compared.
    pub since: Generation,
}

/// Where the content of an image, or of a volume that is being moved, is fetched from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supply {
    pub volume: VolumeId,
    pub pool: PoolId,
    pub service: ServiceId,
    /// `host:port` of that service for other services; absent where it does not listen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub length: ByteSize,
    /// Absent: whoever has the content says at its end what it came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
}

impl ImageTie {
    /// Whether the volume keeps the image's bytes, and is nobody else's.
    pub fn is_base(&self) -> bool {
        match self.role {
            ImageRole::Upload { .. } | ImageRole::Sealed { .. } | ImageRole::Fetched { .. } => true,
            ImageRole::Clone | ImageRole::Copy { .. } => false,
        }
    }

    /// Whether nobody reaches the volume over NBD, because nobody may change it.
    pub fn is_kept_from_clients(&self) -> bool {
        self.is_base() && !matches!(self.role, ImageRole::Upload { .. })
    }

    /// Where its bytes have to come from, if they are to be fetched.
    pub fn supply(&self) -> Option<&Supply> {
        match &self.role {
            ImageRole::Fetched { supply } | ImageRole::Copy { supply } => Some(supply),
            ImageRole::Upload { .. } | ImageRole::Sealed { .. } | ImageRole::Clone => None,
        }
    }

    pub fn supply_mut(&mut self) -> Option<&mut Supply> {
        match &mut self.role {
            ImageRole::Fetched { supply } | ImageRole::Copy { supply } => Some(supply),
            ImageRole::Upload { .. } | ImageRole::Sealed { .. } | ImageRole::Clone => None,
        }
    }
}

impl Volume {
    /// The image whose bytes this volume keeps, hidden from everybody else.
    pub fn base_of(&self) -> Option<ImageId> {
        self.spec.image.as_ref().filter(|tie| tie.is_base()).map(|tie| tie.image)
    }

    /// Whether it keeps all of an image's bytes, compared with their checksum, and they can be read now.
    pub fn is_complete_base(&self) -> bool {
        self.has_image() && self.status.phase == Phase::Ready
    }

    /// Whether all of an image's bytes came to it and were compared with their checksum, however that ended and however it
    /// stands now.
    pub fn has_image(&self) -> bool {
        let written = match self.spec.image.as_ref().map(|tie| &tie.role) {
            Some(ImageRole::Sealed { seal }) => self.status.observed_generation >= seal.since,
            Some(ImageRole::Fetched { .. }) => self.status.size.is_some(),
            Some(ImageRole::Upload { .. } | ImageRole::Clone | ImageRole::Copy { .. }) | None => false,
        };
        written && !self.meta.is_removed()
    }

    /// Whether `report` brings a first word of the bytes of a base or a copy.
    pub fn is_filled_by(&self, report: &VolumeReport) -> bool {
        self.status.size.is_none() && matches!(report.volume, Observed::Known(_))
    }
}

impl Image {
    pub fn new(meta: Meta<ImageId>, spec: ImageSpec, base: VolumeId) -> Self {
        let status = ImageStatus { phase: Phase::Pending, bases: vec![base], uploaded: None, message: None };
        Self { meta, spec, status }
    }

    /// Whether volumes can be made of it.
    pub fn is_whole(&self) -> bool {
        self.status.phase == Phase::Ready && !self.meta.is_removed()
    }

    /// Takes over how the base of the import stands. Once the image is whole it stays so: what happens to one of its bases
    /// later is said of that base. Says whether anything changed.
    pub fn follow(&mut self, base: &Volume) -> bool {
        let first = self.status.bases.first() == Some(&base.meta.id);
        if !first && !self.meta.is_removed() || self.is_whole() {
            return false;
        }
        let before = self.status.clone();
        self.status.message = base.status.message.clone();
        if !self.meta.is_removed() {
            self.status.phase = match base.status.phase {
                _ if base.is_complete_base() => Phase::Ready,
                Phase::Failed => Phase::Failed,
                Phase::Pending | Phase::Ready | Phase::Removing => Phase::Pending,
            };
            if self.status.phase == Phase::Ready {
                self.status.uploaded = None;
            }
        }
        self.status != before
    }

    /// Sets the tombstone; says whether that was new.
    pub fn bury(&mut self, now: Timestamp) -> bool {
        let new = self.meta.bury(now);
        self.status.phase = Phase::Removing;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text_and_other_spellings_are_refused() {
        let digest = Digest::from_bytes(std::array::from_fn(|place| place as u8 * 7));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let text = digest.to_string();
        for wrong in ["", "00", &text[1..], &format!("{text}0"), &text.to_uppercase(), &"é".repeat(32), &"g".repeat(64)]
        {
            assert_eq!(wrong.parse::<Digest>(), Err(DigestError), "{wrong}");
        }
    }
}
