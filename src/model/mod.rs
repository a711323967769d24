//! The words of symphony: identities, names, sizes, and the specs and statuses of every object.
//!
//! Pure data and pure rules live here; nothing in this module reads a clock, a file or a socket. An object is
//! [`Meta`] (who it is) + a spec (the user's words, which no component rewrites) + a status (what was observed; each
//! field has one writer). Their JSON form is what the store holds and what `ctl -o json` prints.

mod assignment;
mod attachment;
mod certificate;
mod changes;
mod client;
mod cluster;
mod device;
mod event;
mod figures;
mod history;
mod id;
mod identity;
mod image;
mod inventory;
mod limits;
mod meta;
mod moving;
mod name;
mod object;
mod orphan;
mod pool;
mod report;
mod room;
mod service;
mod size;
mod snapshot;
mod source;
mod time;
mod token;
mod volume;

pub use assignment::{
    Assigned, AssignedId, Assignment, AssignmentSet, AttachmentAssignment, Change, Changes, PoolAssignment,
    SnapshotAssignment, VolumeAssignment,
};
pub use attachment::{Attachment, AttachmentSpec, AttachmentStatus};
pub use certificate::{CertificateRecord, Trust};
pub use changes::{CHANGE_CHUNK, Fill, Progress, Room, fitted_room, room_of};
pub use client::{Client, ClientRole, ClientSpec, ClientStatus};
pub use cluster::{Cluster, ClusterSpec};
pub use device::DeviceFacts;
pub use event::{Author, EVENTS_KEPT, Event};
pub use figures::{Figures, Latency, Operation, OperationFigures, VolumeFigures};
pub use history::{Epoch, History, Mark, Rewind};
pub use id::{
    AttachmentId, ClientId, ClusterId, EventId, ImageId, ParseIdError, PoolId, ServiceId, SessionId, SnapshotId,
    TokenId, VolumeId,
};
pub use identity::{Identity, Membership};
pub use image::{
    Digest, DigestError, Image, ImageFormat, ImageRole, ImageSpec, ImageStatus, ImageTie, Seal, Supply, Uploaded,
};
pub use inventory::{Inventory, InventoryPool, InventorySnapshot, InventoryVolume, PoolPlace};
pub use limits::Limits;
pub use meta::{Generation, Meta};
pub use moving::Moving;
pub use name::{Name, NameError};
pub use object::{Kind, Object, UnknownKind};
pub use orphan::{Loss, Orphan, OrphanId, OrphanOrigin, OrphanStanding};
pub use pool::{Devices, Driver, Pool, PoolSpec, PoolStatus};
pub use report::{
    AttachmentReport, Observed, PoolCapacity, PoolReport, Report, ServedVolume, SnapshotReport, TakenSnapshot,
    VolumeReport,
};
pub use room::{Level, PoolMetadata, PoolRules, Ratio};
pub use service::{Addresses, Service, ServiceSpec, ServiceState, ServiceStatus, ServiceType, Session};
pub use size::{ByteSize, SizeError};
pub use snapshot::{Snapshot, SnapshotMember, SnapshotSpec, SnapshotStatus};
pub use source::{Revert, Source};
pub use time::{ParseTimestampError, Timestamp};
pub use token::{Token, TokenSpec, TokenStatus};
pub use volume::{Export, Protocol, Replica, SECTOR, Volume, VolumeSpec, VolumeStatus};

/// Where an object stands, as users see it in `status.phase`.
///
/// ```text
///   pending ──▶ ready ◀──▶ failed
///      │          │           │
///      └──────────┴─────┬─────┘
///                       ▼
///                   removing ──▶ (gone)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Committed; the block service has not finished acting on this generation.
    Pending,
    /// What was asked for is what is there.
    Ready,
    /// The block service tried this generation and could not; `status.message` says why. It goes on trying.
    Failed,
    /// A tombstone is set; the object disappears once the block service has let go of it.
    Removing,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "pending",
            Phase::Ready => "ready",
            Phase::Failed => "failed",
            Phase::Removing => "removing",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
