//! Attachments: who may use a volume now.

use super::{AttachmentId, ClientId, Generation, Meta, Name, Phase, ServiceId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

/// A client's hold on a volume, under `/attachment/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its name comes close to `volume.client` and is nobody's to claim: users say [`Attachment::label`], or the id.
    pub meta: Meta<AttachmentId>,
    pub spec: AttachmentSpec,
    pub status: AttachmentStatus,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentSpec {
    pub volume: VolumeId,
    pub volume_name: Name,
    pub client: ClientId,
    pub client_name: Name,
    #[serde(default)]
    pub read_only: bool,
    /// Others may be attached beside it, and local peers come in too; else this client is alone.
    #[serde(default)]
    pub shared: bool,
}

/// `placement` is the manager's word, the rest the block service's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentStatus {
    pub phase: Phase,
    pub observed_generation: Generation,
    /// The services that hold the volume's copies and let the client in.
    pub placement: Vec<ServiceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl AttachmentSpec {
    /// `read-only` or `read-write`, as people are told.
    pub fn access(&self) -> &'static str {
        if self.read_only { "read-only" } else { "read-write" }
    }

    /// `shared` or `exclusive`, as people are told.
    pub fn mode(&self) -> &'static str {
        if self.shared { "shared" } else { "exclusive" }
    }
}

impl Attachment {
    pub fn new(meta: Meta<AttachmentId>, spec: AttachmentSpec, placement: Vec<ServiceId>) -> Self {
        let status = AttachmentStatus {
            phase: Phase::Pending,
            observed_generation: Generation::default(),
            placement,
            message: None,
        };
        Self { meta, spec, status }
    }

    /// `volume/client`, as users refer to it: no name has a slash.
    pub fn label(&self) -> String {
        format!("{}/{}", self.spec.volume_name, self.spec.client_name)
    }

    pub fn is_on(&self, service: ServiceId) -> bool {
        self.status.placement.contains(&service)
    }

    /// Sets the tombstone; says whether that was new.
    pub fn bury(&mut self, now: Timestamp) -> bool {
        let new = self.meta.bury(now);
        self.status.phase = Phase::Removing;
        new
    }
}
