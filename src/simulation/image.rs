//! Images: imported, written, sealed, made volumes of. An image's content is a number, as a volume's is; its checksum is
//! made of it.

use super::Planted;
use super::disk::Violation;
use super::world::{HOSTS, World, somebody};
use crate::manager::inside::{Refusal, WantedImage, import_image, remove_image, seal_image};
use crate::model::*;

/// Names of images.
const IMAGES: u8 = 2;
/// No write of a client has a number from here on.
const FIRST: u64 = 1 << 40;

/// The checksum of a content.
pub fn digest(content: u64) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&content.to_le_bytes());
    Digest::from_bytes(bytes)
}

/// The content of a checksum.
pub fn content(digest: Digest) -> u64 {
    digest.to_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// What an image of this id is to hold.
fn wanted(id: ImageId) -> u64 {
    let bytes = id.as_uuid().into_bytes();
    bytes.last_chunk().map_or(FIRST, |bytes| FIRST + (u64::from_be_bytes(*bytes) >> 16))
}

impl World {
    pub(super) fn any_image(&mut self) -> String {
        format!("i{}", self.random.u8(..IMAGES))
    }

    pub(super) fn ask_for_an_image(&mut self, manager: usize) -> Result<(), Refusal> {
        let [id, base] = [self.fresh(), self.fresh()];
        let wanted = WantedImage {
            id: ImageId::from_bytes(id),
            base: VolumeId::from_bytes(base),
            name: self.any_image().parse().expect("a name"),
            size: ByteSize::mib(4),
            format: ImageFormat::Raw,
            pool: None,
            writer: None,
        };
        self.write(manager, |draft| import_image(draft, &somebody(), &wanted).map(drop))
    }

    /// Writes an image's content to its base, if that is served, and seals it. Now and then something else has come of it by
    /// then, which must be found.
    pub(super) fn upload(&mut self, manager: usize) -> Result<(), Refusal> {
        let name = self.any_image();
        let view = &self.managers[manager].view;
        let found = view.images.values().map(|it| &it.value).find(|it| it.meta.name.as_str() == name).cloned();
        let Some((image, base)) = found.and_then(|image| Some((image.clone(), *image.status.bases.first()?))) else {
            return Ok(());
        };
        let Some(host) = (0..HOSTS).find(|host| self.hosts[*host].served().contains(&base)) else { return Ok(()) };
        let right = wanted(image.meta.id);
        let written = if self.random.u8(..4) == 0 { right + (1 << 20) } else { right };
        let is_open = self.hosts[host].takes_upload(base, image.spec.upload);
        if let Some(volume) = self.hosts[host].disk.volumes.get_mut(&base).filter(|_| is_open) {
            volume.bytes = written;
            self.written.insert(base, written);
            let (upload, sum) = (image.spec.upload, digest(right));
            self.write(manager, |draft| seal_image(draft, &somebody(), &name, upload, sum).map(drop))?;
        }
        Ok(())
    }

    pub(super) fn ask_for_an_end(&mut self, manager: usize) -> Result<(), Refusal> {
        let name = self.any_image();
        self.write(manager, |draft| remove_image(draft, &somebody(), &name).map(drop))
    }

    /// A volume that belongs to an image has begun with these bytes.
    pub(super) fn look_at_birth(&self, volume: VolumeId, bytes: u64) -> Result<(), Violation> {
        let tie = self.truth.get::<Volume>(volume).and_then(|volume| volume.spec.image.as_deref());
        match tie.map(|tie| (tie.image, wanted(tie.image))) {
            Some((image, right)) if right != bytes => {
                Err(format!("volume {volume} is of image {image}, and has other bytes than that: {bytes}"))
            }
            _ => Ok(()),
        }
    }

    /// An image that volumes are made of has the bytes that it was sealed with.
    pub(super) fn look_at_images(&self) -> Result<(), Violation> {
        for image in self.truth.images.values().map(|it| &it.value).filter(|image| image.is_whole()) {
            let first = image.status.bases.first();
            let held = first.and_then(|base| self.hosts.iter().find_map(|host| host.disk.volumes.get(base)));
            if held.is_some_and(|held| held.bytes != wanted(image.meta.id)) {
                return Err(format!("image {} is ready, and its base has other bytes: {held:?}", image.meta.name));
            }
        }
        Ok(())
    }
}

/// Whether a base's bytes come to what it was sealed with. A planted bug does not look.
pub fn is_as_sealed(tie: &ImageTie, bytes: u64, planted: Option<Planted>) -> bool {
    match tie.role {
        ImageRole::Sealed { seal } => planted == Some(Planted::SealUnseen) || bytes == content(seal.sha256),
        _ => true,
    }
}
