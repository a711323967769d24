//! Images, and what volumes have to do with them, between their model and their protobuf form.

use super::objects::{bounded, enumerated, number, required};
use super::{Malformed, proto};
use crate::model::*;
use proto::image_tie::Role;
use proto::moving::Stage;

/// The most pools that keep one image's bytes.
const MAX_BASES: usize = 10_000;

impl From<DigestError> for Malformed {
    fn from(error: DigestError) -> Self {
        Self(error.to_string())
    }
}

impl From<&Seal> for proto::Seal {
    fn from(seal: &Seal) -> Self {
        Self { length: seal.length.as_u64(), sha256: seal.sha256.to_string(), since: seal.since.as_u64() }
    }
}

impl TryFrom<proto::Seal> for Seal {
    type Error = Malformed;

    fn try_from(seal: proto::Seal) -> Result<Self, Malformed> {
        let since = Generation::new(seal.since);
        Ok(Self { length: ByteSize::bytes(seal.length), sha256: seal.sha256.parse()?, since })
    }
}

impl From<&Supply> for proto::Supply {
    fn from(supply: &Supply) -> Self {
        Self {
            volume: supply.volume.to_string(),
            pool: supply.pool.to_string(),
            service: supply.service.to_string(),
            address: supply.address.clone(),
            length: supply.length.as_u64(),
            sha256: supply.sha256.map(|digest| digest.to_string()),
        }
    }
}

impl TryFrom<proto::Supply> for Supply {
    type Error = Malformed;

    fn try_from(supply: proto::Supply) -> Result<Self, Malformed> {
        Ok(Self {
            volume: supply.volume.parse()?,
            pool: supply.pool.parse()?,
            service: supply.service.parse()?,
            address: supply.address.map(|address| bounded(address, 300, "an address")).transpose()?,
            length: ByteSize::bytes(supply.length),
            sha256: supply.sha256.map(|text| text.parse()).transpose()?,
        })
    }
}

impl From<&Moving> for proto::Moving {
    fn from(moving: &Moving) -> Self {
        let stage = match moving {
            Moving::Leaving { to, pool, service, drain } => Stage::Leaving(proto::Leaving {
                to: to.to_string(),
                pool: pool.to_string(),
                service: service.to_string(),
                drain: *drain,
            }),
            Moving::Arriving { supply, begun } => {
                Stage::Arriving(proto::Arriving { supply: Some(supply.into()), begun: *begun })
            }
            Moving::Left { to } => Stage::Left(to.to_string()),
        };
        Self { stage: Some(stage) }
    }
}

impl TryFrom<proto::Moving> for Moving {
    type Error = Malformed;

    fn try_from(moving: proto::Moving) -> Result<Self, Malformed> {
        Ok(match required(moving.stage, "what a volume has to do with a move")? {
            Stage::Leaving(proto::Leaving { to, pool, service, drain }) => {
                Moving::Leaving { to: to.parse()?, pool: pool.parse()?, service: service.parse()?, drain }
            }
            Stage::Arriving(proto::Arriving { supply, begun }) => {
                Moving::Arriving { supply: required(supply, "what a copy is filled from")?.try_into()?, begun }
            }
            Stage::Left(to) => Moving::Left { to: to.parse()? },
        })
    }
}

impl From<&ImageTie> for proto::ImageTie {
    fn from(tie: &ImageTie) -> Self {
        let role = match &tie.role {
            ImageRole::Upload { upload } => Role::Upload(*upload),
            ImageRole::Sealed { seal } => Role::Sealed(seal.into()),
            ImageRole::Fetched { supply } => Role::Fetched(supply.into()),
            ImageRole::Clone => Role::Clone(true),
            ImageRole::Copy { supply } => Role::Copy(supply.into()),
        };
        Self { image: tie.image.to_string(), role: Some(role) }
    }
}

impl TryFrom<proto::ImageTie> for ImageTie {
    type Error = Malformed;

    fn try_from(tie: proto::ImageTie) -> Result<Self, Malformed> {
        let role = match required(tie.role, "what a volume has to do with an image")? {
            Role::Upload(upload) => ImageRole::Upload { upload },
            Role::Sealed(seal) => ImageRole::Sealed { seal: seal.try_into()? },
            Role::Fetched(supply) => ImageRole::Fetched { supply: supply.try_into()? },
            Role::Clone(_) => ImageRole::Clone,
            Role::Copy(supply) => ImageRole::Copy { supply: supply.try_into()? },
        };
        Ok(Self { image: tie.image.parse()?, role })
    }
}

impl From<&Image> for proto::Image {
    fn from(image: &Image) -> Self {
        let (spec, status) = (&image.spec, &image.status);
        let uploaded = |it: &Uploaded| proto::Uploaded { bytes: it.bytes.as_u64(), sha256: it.sha256.to_string() };
        Self {
            meta: Some((&image.meta).into()),
            spec: Some(proto::ImageSpec {
                size: spec.size.as_u64(),
                format: number::<proto::ImageFormat>(spec.format),
                pool: spec.pool.map(|id| id.to_string()),
                upload: spec.upload,
                sha256: spec.sha256.map(|digest| digest.to_string()),
            }),
            status: Some(proto::ImageStatus {
                phase: number::<proto::Phase>(status.phase),
                bases: status.bases.iter().map(ToString::to_string).collect(),
                uploaded: status.uploaded.as_ref().map(uploaded),
                message: status.message.clone(),
            }),
        }
    }
}

impl TryFrom<proto::Image> for Image {
    type Error = Malformed;

    fn try_from(image: proto::Image) -> Result<Self, Malformed> {
        let spec = required(image.spec, "an image's spec")?;
        let status = required(image.status, "an image's status")?;
        if status.bases.len() > MAX_BASES {
            return Err(Malformed(format!("{} bases of one image, {MAX_BASES} are the most", status.bases.len())));
        }
        let uploaded = |it: proto::Uploaded| -> Result<Uploaded, Malformed> {
            Ok(Uploaded { bytes: ByteSize::bytes(it.bytes), sha256: it.sha256.parse()? })
        };
        Ok(Self {
            meta: required(image.meta, "an image's meta")?.try_into()?,
            spec: ImageSpec {
                size: ByteSize::bytes(spec.size),
                format: enumerated::<proto::ImageFormat, _>(spec.format)?,
                pool: spec.pool.map(|id| id.parse()).transpose()?,
                upload: spec.upload,
                sha256: spec.sha256.map(|text| text.parse()).transpose()?,
            },
            status: ImageStatus {
                phase: enumerated::<proto::Phase, _>(status.phase)?,
                bases: status.bases.iter().map(|id| id.parse()).collect::<Result<_, _>>()?,
                uploaded: status.uploaded.map(uploaded).transpose()?,
                message: status.message,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_every_tie_survive_the_wire() {
        let (volume, pool, service) =
            (VolumeId::from_bytes([1; 16]), PoolId::from_bytes([2; 16]), ServiceId::from_bytes([3; 16]));
        let (image, sha256, length) =
            (ImageId::from_bytes([4; 16]), Digest::from_bytes([5; 32]), ByteSize::bytes(1000));
        let spec =
            ImageSpec { size: length, format: ImageFormat::Qcow2, pool: Some(pool), upload: 3, sha256: Some(sha256) };
        let mut whole = Image::new(Meta::new(image, "i".parse().unwrap(), Timestamp::from_millis(1)), spec, volume);
        whole.status.uploaded = Some(Uploaded { bytes: ByteSize::bytes(7), sha256 });
        assert_eq!(Image::try_from(proto::Image::from(&whole)), Ok(whole));
        let supply = Supply { volume, pool, service, address: Some("host:1".into()), length, sha256: Some(sha256) };
        let seal = Seal { length, sha256, since: Generation::new(9) };
        for role in [
            ImageRole::Upload { upload: 2 },
            ImageRole::Sealed { seal },
            ImageRole::Fetched { supply: supply.clone() },
            ImageRole::Clone,
            ImageRole::Copy { supply },
        ] {
            let tie = ImageTie { image, role };
            assert_eq!(ImageTie::try_from(proto::ImageTie::from(&tie)), Ok(tie.clone()));
            // A value in the store that is read by people, too.
            assert_eq!(serde_json::from_str::<ImageTie>(&serde_json::to_string(&tie).unwrap()).unwrap(), tie);
        }
    }

    #[test]
    fn every_stage_of_a_move_survives_the_wire_and_one_without_a_stage_is_refused() {
        let (volume, pool, service) =
            (VolumeId::from_bytes([1; 16]), PoolId::from_bytes([2; 16]), ServiceId::from_bytes([3; 16]));
        let length = ByteSize::mib(1);
        let supply = Supply { volume, pool, service, address: None, length, sha256: None };
        for moving in [
            Moving::Leaving { to: volume, pool, service, drain: true },
            Moving::Leaving { to: volume, pool, service, drain: false },
            Moving::Arriving { supply: supply.clone(), begun: false },
            Moving::Arriving { supply, begun: true },
            Moving::Left { to: volume },
        ] {
            assert_eq!(Moving::try_from(proto::Moving::from(&moving)), Ok(moving.clone()));
            assert_eq!(serde_json::from_str::<Moving>(&serde_json::to_string(&moving).unwrap()).unwrap(), moving);
        }
        assert!(Moving::try_from(proto::Moving::default()).is_err());
    }
}
