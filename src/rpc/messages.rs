//! Session messages between their model and their protobuf form.

use super::assignments::{complete, incremental};
use super::inventories::inventory;
use super::objects::bounded;
use super::{Malformed, proto};
use crate::model::*;
use crate::pki::Secret;
use crate::session::{Downward, Greeting, Upward, Welcome};
use proto::manager_message::Message as Down;
use proto::service_message::Message as Up;
use std::time::Duration;
use zeroize::Zeroizing;

/// The longest period a peer may ask for; keeps arithmetic on hostile numbers harmless.
const MAX_PERIOD_MS: u64 = ClusterSpec::LONGEST_MS;

fn period(millis: u64, what: &str) -> Result<Duration, Malformed> {
    if (1..=MAX_PERIOD_MS).contains(&millis) {
        return Ok(Duration::from_millis(millis));
    }
    Err(Malformed(format!("a {what} of {millis}ms")))
}

fn mark_from(mark: Option<proto::Mark>) -> Result<Mark, Malformed> {
    let proto::Mark { epoch, revision } = mark.unwrap_or_default();
    let epoch = Epoch::new(epoch).ok_or_else(|| Malformed(format!("a history numbered {epoch}")))?;
    Ok(Mark { epoch, revision })
}

fn mark_into(mark: Mark) -> proto::Mark {
    proto::Mark { epoch: mark.epoch.as_u64(), revision: mark.revision }
}

fn bearer(id: &str) -> Result<uuid::Uuid, Malformed> {
    id.parse().map_err(|_| Malformed(format!("'{}' is no bearer's id", id.chars().take(80).collect::<String>())))
}

fn millis(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(MAX_PERIOD_MS)
}

impl From<Upward> for proto::ServiceMessage {
    fn from(message: Upward) -> Self {
        let message = match message {
            Upward::Hello(greeting) => Up::Hello(proto::Hello {
                service_id: greeting.service.to_string(),
                cluster_id: greeting.cluster.to_string(),
                host_name: greeting.host_name,
                addresses: Some((&greeting.addresses).into()),
                version: greeting.version,
                mark: Some(mark_into(greeting.mark)),
            }),
            Upward::Heartbeat => Up::Heartbeat(proto::Heartbeat {}),
            Upward::Reports { sequence, reports } => {
                let mut message = proto::Reports { sequence, ..Default::default() };
                for report in &reports {
                    match report {
                        Report::Pool(pool) => message.pools.push(pool.into()),
                        Report::Volume(volume) => message.volumes.push(volume.into()),
                        Report::Snapshot(snapshot) => message.snapshots.push(snapshot.into()),
                        Report::Attachment(attachment) => message.attachments.push(attachment.into()),
                    }
                }
                Up::Reports(message)
            }
            Upward::Inventory { nonce, inventory: found } => Up::Inventory(inventory(nonce, found)),
            Upward::Goodbye => Up::Goodbye(proto::Goodbye {}),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<proto::ServiceMessage> for Upward {
    type Error = Malformed;

    fn try_from(message: proto::ServiceMessage) -> Result<Self, Malformed> {
        Ok(match message.message.ok_or_else(|| Malformed::missing("a session message's body"))? {
            Up::Hello(hello) => Upward::Hello(Greeting {
                service: hello.service_id.parse()?,
                cluster: hello.cluster_id.parse()?,
                host_name: bounded(hello.host_name, 253, "a host name")?,
                addresses: hello.addresses.map(TryInto::try_into).transpose()?.unwrap_or_default(),
                version: bounded(hello.version, 64, "a version")?,
                mark: mark_from(hello.mark)?,
            }),
            Up::Heartbeat(proto::Heartbeat {}) => Upward::Heartbeat,
            Up::Reports(proto::Reports { sequence, pools, volumes, attachments, snapshots }) => {
                let pools = pools.into_iter().map(|pool| Ok(Report::Pool(pool.try_into()?)));
                let volumes = volumes.into_iter().map(|volume| Ok(Report::Volume(volume.try_into()?)));
                let attachments = attachments.into_iter().map(|held| Ok(Report::Attachment(held.try_into()?)));
                let snapshots = snapshots.into_iter().map(|snapshot| Ok(Report::Snapshot(snapshot.try_into()?)));
                let reports =
                    pools.chain(volumes).chain(snapshots).chain(attachments).collect::<Result<_, Malformed>>()?;
                Upward::Reports { sequence, reports }
            }
            Up::Inventory(answer) => Upward::Inventory { nonce: answer.nonce, inventory: answer.try_into()? },
            Up::Goodbye(proto::Goodbye {}) => Upward::Goodbye,
        })
    }
}

/// A block service that asks to become a member.
#[derive(Clone, Debug)]
pub struct Joiner {
    pub service: ServiceId,
    pub host_name: String,
    pub addresses: Addresses,
    pub version: String,
    pub token: Option<TokenProof>,
    /// PKCS #10, PEM, not yet judged; none from a service of a version that knew no certificates.
    pub certificate_request: Option<String>,
}

/// What a joiner shows of its token.
#[derive(Clone, Debug)]
pub struct TokenProof {
    pub id: TokenId,
    pub secret: Secret,
}

/// A member that asks for a new certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewer {
    pub service: ServiceId,
    pub addresses: Addresses,
    /// PKCS #10, PEM, not yet judged.
    pub certificate_request: String,
}

impl TryFrom<proto::TokenProof> for TokenProof {
    type Error = Malformed;

    /// The secret is never repeated in an error.
    fn try_from(proof: proto::TokenProof) -> Result<Self, Malformed> {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, rest) = proof.secret.as_bytes().as_chunks::<2>();
        let bytes: Option<Zeroizing<Vec<u8>>> = pairs
            .iter()
            .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
            .collect::<Option<_>>()
            .map(Zeroizing::new);
        let secret = bytes.filter(|_| rest.is_empty()).and_then(|bytes| Secret::from_slice(&bytes));
        let secret = secret.ok_or_else(|| Malformed("a token's secret is not 64 hexadecimal digits".into()))?;
        Ok(Self { id: proof.id.parse()?, secret })
    }
}

impl TryFrom<proto::JoinRequest> for Joiner {
    type Error = Malformed;

    fn try_from(request: proto::JoinRequest) -> Result<Self, Malformed> {
        match ServiceType::try_from(proto::ServiceType::try_from(request.r#type)?)? {
            ServiceType::Block => {}
            ServiceType::Manager => {
                return Err(Malformed("managers join through their store, not over the network".into()));
            }
        }
        Ok(Self {
            service: request.service_id.parse()?,
            host_name: bounded(request.host_name, 253, "a host name")?,
            addresses: request.addresses.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            version: bounded(request.version, 64, "a version")?,
            token: request.token.map(TryInto::try_into).transpose()?,
            certificate_request: Some(request.certificate_request).filter(|request| !request.is_empty()),
        })
    }
}

impl TryFrom<proto::RenewRequest> for Renewer {
    type Error = Malformed;

    fn try_from(request: proto::RenewRequest) -> Result<Self, Malformed> {
        Ok(Self {
            service: request.service_id.parse()?,
            addresses: request.addresses.map(TryInto::try_into).transpose()?.unwrap_or_default(),
            certificate_request: request.certificate_request,
        })
    }
}

impl From<Downward> for proto::ManagerMessage {
    fn from(message: Downward) -> Self {
        let message = match message {
            Downward::Welcome(welcome) => Down::Welcome(proto::Welcome {
                session_id: welcome.session.to_string(),
                heartbeat_ms: millis(welcome.heartbeat),
                lease_ms: millis(welcome.lease),
                managers: welcome.managers,
                mark: Some(mark_into(welcome.mark)),
            }),
            Downward::Complete { set, partial, results_in } => Down::Assignments(complete(&set, partial, results_in)),
            Downward::Incremental { changes, applies_to, results_in } => {
                Down::Assignments(incremental(&changes, applies_to, results_in))
            }
            Downward::HeartbeatAck => Down::HeartbeatAck(proto::HeartbeatAck {}),
            Downward::ReportsAck { sequence } => Down::ReportsAck(proto::ReportsAck { sequence }),
            Downward::InventoryRequest { nonce } => Down::InventoryRequest(proto::InventoryRequest { nonce }),
            Downward::Managers(managers) => Down::Managers(proto::Managers { managers }),
            Downward::Mark(mark) => Down::Mark(mark_into(mark)),
            Downward::Trust(trust) => Down::Trust(proto::Trust {
                roots: trust.roots,
                revoked: trust.revoked.iter().map(ToString::to_string).collect(),
                signing: trust.signing,
            }),
            Downward::Removed => Down::Removed(proto::Removed {}),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<proto::ManagerMessage> for Downward {
    type Error = Malformed;

    fn try_from(message: proto::ManagerMessage) -> Result<Self, Malformed> {
        Ok(match message.message.ok_or_else(|| Malformed::missing("a session message's body"))? {
            Down::Welcome(welcome) => Downward::Welcome(Welcome {
                session: welcome.session_id.parse()?,
                heartbeat: period(welcome.heartbeat_ms, "heartbeat")?,
                lease: period(welcome.lease_ms, "lease")?,
                managers: welcome.managers,
                mark: mark_from(welcome.mark)?,
            }),
            Down::Assignments(message) => message.try_into()?,
            Down::HeartbeatAck(proto::HeartbeatAck {}) => Downward::HeartbeatAck,
            Down::ReportsAck(ack) => Downward::ReportsAck { sequence: ack.sequence },
            Down::InventoryRequest(request) => Downward::InventoryRequest { nonce: request.nonce },
            Down::Managers(message) => Downward::Managers(message.managers),
            Down::Mark(mark) => Downward::Mark(mark_from(Some(mark))?),
            Down::Trust(trust) => Downward::Trust(Trust {
                roots: trust.roots,
                revoked: trust.revoked.iter().map(|id| bearer(id)).collect::<Result<_, _>>()?,
                signing: bounded(trust.signing, 128, "a fingerprint")?,
            }),
            Down::Removed(proto::Removed {}) => Downward::Removed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Step;
    use proptest::prelude::*;
    use prost::Message;

    fn upward() -> Vec<Upward> {
        let volume = VolumeReport {
            id: VolumeId::from_bytes([1; 16]),
            generation: Generation::new(3),
            volume: Observed::Known(ServedVolume { size: ByteSize::mib(1), exports: vec![] }),
            progress: Some(Progress { done: ByteSize::mib(1), of: ByteSize::mib(3) }),
            failure: Some("no space".into()),
        };
        let pool = PoolReport {
            id: PoolId::from_bytes([2; 16]),
            generation: Generation::new(1),
            capacity: Observed::Absent,
            failure: None,
        };
        let found = InventoryVolume {
            id: VolumeId::from_bytes([1; 16]),
            pool: PoolId::from_bytes([2; 16]),
            name: "v".into(),
            size: ByteSize::mib(1),
            generation: Generation::new(3),
            told: Generation::new(4),
            exported: true,
            unfinished: true,
            data: Some(ByteSize::mib(7)),
            damage: Some("bent".into()),
        };
        let place = PoolPlace {
            cluster: ClusterId::from_bytes([8; 16]),
            name: "fast".into(),
            driver: Driver::File { path: "/srv/fast".into(), limit: None },
        };
        let stray = InventoryPool {
            id: PoolId::from_bytes([2; 16]),
            told: Generation::new(5),
            place: Some(place),
            failure: Some("away".into()),
        };
        let past = InventorySnapshot {
            id: SnapshotId::from_bytes([5; 16]),
            pool: PoolId::from_bytes([2; 16]),
            volume: VolumeId::from_bytes([1; 16]),
            name: "monday".into(),
            size: ByteSize::mib(1),
            at: Timestamp::from_millis(9),
            told: Generation::new(2),
            data: None,
            room: Some(ByteSize::mib(4)),
            damage: None,
        };
        let attachment = AttachmentReport {
            id: AttachmentId::from_bytes([3; 16]),
            generation: Generation::new(1),
            in_force: Observed::Known(()),
            failure: None,
        };
        let reports = vec![Report::Pool(pool), Report::Volume(volume), Report::Attachment(attachment)];
        vec![
            Upward::Heartbeat,
            Upward::Reports { sequence: 7, reports },
            Upward::Inventory {
                nonce: 1,
                inventory: Inventory { pools: vec![stray], volumes: vec![found], snapshots: vec![past] },
            },
            Upward::Goodbye,
        ]
    }

    #[test]
    fn session_messages_survive_the_wire() {
        for message in upward() {
            let bytes = proto::ServiceMessage::from(message.clone()).encode_to_vec();
            let decoded = proto::ServiceMessage::decode(&bytes[..]).unwrap();
            assert_eq!(Upward::try_from(decoded), Ok(message));
        }
        let changes = vec![Change::Drop(AssignedId::Pool(PoolId::from_bytes([4; 16])))];
        for message in [
            Downward::Complete { set: AssignmentSet::default(), partial: true, results_in: Step(1) },
            Downward::Managers(vec!["127.0.0.1:1".into()]),
            Downward::Mark(Mark { epoch: Epoch::FIRST.next(), revision: 7 }),
            Downward::Trust(Trust {
                roots: vec!["pem".into()],
                revoked: [uuid::Uuid::from_bytes([9; 16])].into(),
                signing: "ab".into(),
            }),
            Downward::Incremental { changes, applies_to: Step(1), results_in: Step(2) },
            Downward::HeartbeatAck,
            Downward::ReportsAck { sequence: 9 },
            Downward::Removed,
        ] {
            let decoded = proto::ManagerMessage::from(message.clone());
            assert_eq!(Downward::try_from(decoded), Ok(message));
        }
    }

    #[test]
    fn a_truncated_secret_of_a_token_is_refused_and_not_repeated() {
        let whole = "0f".repeat(32);
        let proof =
            |secret: &str| proto::TokenProof { id: TokenId::from_bytes([1; 16]).to_string(), secret: secret.into() };
        assert_eq!(TokenProof::try_from(proof(&whole)).unwrap().secret.reveal(), &[0x0f; 32]);
        for secret in ["", "0", &whole[..63], &whole[..62], &format!("{whole}00"), &whole.replace('f', "é")] {
            let Malformed(reason) = TokenProof::try_from(proof(secret)).unwrap_err();
            assert!(secret.len() < 2 || !reason.contains(secret), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = proto::ServiceMessage::decode(&bytes[..]) {
                let _either_is_fine = Upward::try_from(message).is_ok();
            }
            if let Ok(message) = proto::ManagerMessage::decode(&bytes[..]) {
                let _either_is_fine = Downward::try_from(message).is_ok();
            }
        }
    }
}
