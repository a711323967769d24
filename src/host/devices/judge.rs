//! Whether a device may become part of a pool. Pure.

use super::{Carries, Device, Kind};
use crate::model::ByteSize;

/// A smaller device has no room for a pool's own records.
pub const SMALLEST: ByteSize = ByteSize::mib(64);

/// Why a device may not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{device} is in use: {claim}")]
    InUse { device: String, claim: String },
    #[error("{device} is read-only")]
    ReadOnly { device: String },
    #[error("{device} is too small: it has {size}, a pool's device needs at least {SMALLEST}")]
    TooSmall { device: String, size: ByteSize },
    #[error("{device} is {what}, and no device for pools")]
    WrongKind { device: String, what: String },
    #[error("{device} carries {what}: name it with --wipe if all that may be destroyed")]
    Carries { device: String, what: String },
    #[error("{device} cannot be judged: {reason}")]
    Unknown { device: String, reason: String },
}

/// Says whether a pool may take the device. `wipe` is the user's word, given for this very device, that what it
/// carries may be destroyed; a device that is in use is refused whatever anybody says.
pub fn judge(device: &Device, wipe: bool) -> Result<(), Refused> {
    let name = || device.path.display().to_string();
    match &device.kind {
        Kind::LogicalVolume { called } => {
            return Err(Refused::WrongKind { device: name(), what: format!("the logical volume {called}") });
        }
        Kind::Network => {
            return Err(Refused::WrongKind { device: name(), what: "a remote volume over NBD".to_owned() });
        }
        Kind::Disk | Kind::Partition { .. } | Kind::Loop { .. } | Kind::Mapped { .. } => {}
    }
    if let Some(claim) = device.claims.first() {
        return Err(Refused::InUse { device: name(), claim: claim.to_string() });
    }
    if device.read_only {
        return Err(Refused::ReadOnly { device: name() });
    }
    if device.size < SMALLEST {
        return Err(Refused::TooSmall { device: name(), size: device.size });
    }
    match &device.carries {
        Carries::Known(findings) if findings.is_empty() || wipe => Ok(()),
        Carries::Known(_) => Err(Refused::Carries { device: name(), what: device.carried().unwrap_or_default() }),
        Carries::Unknown(reason) => Err(Refused::Unknown { device: name(), reason: reason.clone() }),
        Carries::NotLookedAt => Err(Refused::Unknown { device: name(), reason: "it was not looked at".to_owned() }),
    }
}
