//! Session messages between their model and their protobuf form.

use super::objects::{bounded, number};
use super::{MAX_FAILURE, Malformed, proto};
use crate::model::*;
use crate::session::{Downward, Greeting, Step, Upward, Welcome};
use proto::manager_message::Message as Down;
use proto::service_message::Message as Up;
use std::time::Duration;

/// The longest period a peer may ask for; keeps arithmetic on hostile numbers harmless.
const MAX_PERIOD_MS: u64 = ClusterSpec::LONGEST_MS;

/// The most ways to reach one volume.
const MAX_EXPORTS: usize = 16;

fn failure(text: String) -> Result<String, Malformed> {
    bounded(text, MAX_FAILURE, "a failure's text")
}

fn period(millis: u64, what: &str) -> Result<Duration, Malformed> {
    if (1..=MAX_PERIOD_MS).contains(&millis) {
        return Ok(Duration::from_millis(millis));
    }
    Err(Malformed(format!("a {what} of {millis}ms")))
}

fn millis(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(MAX_PERIOD_MS)
}

impl From<&PoolAssignment> for proto::PoolAssignment {
    fn from(pool: &PoolAssignment) -> Self {
        Self {
            id: pool.id.to_string(),
            name: pool.name.to_string(),
            generation: pool.generation.as_u64(),
            driver: Some((&pool.driver).into()),
            made: pool.made,
            removed: pool.removed,
        }
    }
}

impl TryFrom<proto::PoolAssignment> for PoolAssignment {
    type Error = Malformed;

    fn try_from(pool: proto::PoolAssignment) -> Result<Self, Malformed> {
        Ok(Self {
            id: pool.id.parse()?,
            name: pool.name.parse()?,
            generation: Generation::new(pool.generation),
            driver: pool.driver.ok_or_else(|| Malformed::missing("a pool's driver"))?.try_into()?,
            made: pool.made,
            removed: pool.removed,
        })
    }
}

impl From<&VolumeAssignment> for proto::VolumeAssignment {
    fn from(volume: &VolumeAssignment) -> Self {
        Self {
            id: volume.id.to_string(),
            name: volume.name.to_string(),
            generation: volume.generation.as_u64(),
            pool: volume.pool.to_string(),
            size: volume.size.as_u64(),
            made: volume.made,
            removed: volume.removed,
        }
    }
}

impl TryFrom<proto::VolumeAssignment> for VolumeAssignment {
    type Error = Malformed;

    fn try_from(volume: proto::VolumeAssignment) -> Result<Self, Malformed> {
        let size = ByteSize::bytes(volume.size);
        if let Some(fault) = VolumeSpec::fault_of_size(size) {
            return Err(Malformed(fault));
        }
        Ok(Self {
            id: volume.id.parse()?,
            name: volume.name.parse()?,
            generation: Generation::new(volume.generation),
            pool: volume.pool.parse()?,
            size,
            made: volume.made,
            removed: volume.removed,
        })
    }
}

fn observation<T>(observed: &Observed<T>) -> i32 {
    match observed {
        Observed::Unknown => proto::Observation::Unknown,
        Observed::Absent => proto::Observation::Absent,
        Observed::Known(_) => proto::Observation::Known,
    }
    .into()
}

fn observed<T>(observation: i32, known: impl FnOnce() -> Result<T, Malformed>) -> Result<Observed<T>, Malformed> {
    Ok(match proto::Observation::try_from(observation)? {
        proto::Observation::Unknown => Observed::Unknown,
        proto::Observation::Absent => Observed::Absent,
        proto::Observation::Known => Observed::Known(known()?),
    })
}

impl From<&PoolReport> for proto::PoolReport {
    fn from(report: &PoolReport) -> Self {
        let (capacity, used) = match &report.capacity {
            Observed::Known(known) => (known.capacity.as_u64(), known.used.as_u64()),
            Observed::Unknown | Observed::Absent => (0, 0),
        };
        Self {
            id: report.id.to_string(),
            generation: report.generation.as_u64(),
            observation: observation(&report.capacity),
            capacity,
            used,
            failure: report.failure.clone(),
        }
    }
}

impl TryFrom<proto::PoolReport> for PoolReport {
    type Error = Malformed;

    fn try_from(report: proto::PoolReport) -> Result<Self, Malformed> {
        let capacity =
            || Ok(PoolCapacity { capacity: ByteSize::bytes(report.capacity), used: ByteSize::bytes(report.used) });
        Ok(Self {
            id: report.id.parse()?,
            generation: Generation::new(report.generation),
            capacity: observed(report.observation, capacity)?,
            failure: report.failure.map(failure).transpose()?,
        })
    }
}

impl From<&VolumeReport> for proto::VolumeReport {
    fn from(report: &VolumeReport) -> Self {
        let (size, exports) = match &report.volume {
            Observed::Known(served) => (served.size.as_u64(), served.exports.iter().map(Into::into).collect()),
            Observed::Unknown | Observed::Absent => (0, Vec::new()),
        };
        Self {
            id: report.id.to_string(),
            generation: report.generation.as_u64(),
            observation: observation(&report.volume),
            size,
            exports,
            failure: report.failure.clone(),
        }
    }
}

impl TryFrom<proto::VolumeReport> for VolumeReport {
    type Error = Malformed;

    fn try_from(report: proto::VolumeReport) -> Result<Self, Malformed> {
        let (size, exports) = (report.size, report.exports);
        if exports.len() > MAX_EXPORTS {
            return Err(Malformed(format!("{} exports of one volume", exports.len())));
        }
        let volume = || {
            Ok(ServedVolume {
                size: ByteSize::bytes(size),
                exports: exports.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            })
        };
        Ok(Self {
            id: report.id.parse()?,
            generation: Generation::new(report.generation),
            volume: observed(report.observation, volume)?,
            failure: report.failure.map(failure).transpose()?,
        })
    }
}

fn inventory(nonce: u64, inventory: Inventory) -> proto::InventoryAnswer {
    let pool = |pool: InventoryPool| proto::InventoryPool { id: pool.id.to_string(), failure: pool.failure };
    let volume = |volume: InventoryVolume| proto::InventoryVolume {
        id: volume.id.to_string(),
        pool: volume.pool.to_string(),
        name: volume.name,
        size: volume.size.as_u64(),
        generation: volume.generation.as_u64(),
        exported: volume.exported,
        damage: volume.damage,
    };
    proto::InventoryAnswer {
        nonce,
        pools: inventory.pools.into_iter().map(pool).collect(),
        volumes: inventory.volumes.into_iter().map(volume).collect(),
    }
}

impl TryFrom<proto::InventoryAnswer> for Inventory {
    type Error = Malformed;

    fn try_from(answer: proto::InventoryAnswer) -> Result<Self, Malformed> {
        let pool = |pool: proto::InventoryPool| -> Result<InventoryPool, Malformed> {
            Ok(InventoryPool { id: pool.id.parse()?, failure: pool.failure })
        };
        let volume = |volume: proto::InventoryVolume| -> Result<InventoryVolume, Malformed> {
            Ok(InventoryVolume {
                id: volume.id.parse()?,
                pool: volume.pool.parse()?,
                name: volume.name,
                size: ByteSize::bytes(volume.size),
                generation: Generation::new(volume.generation),
                exported: volume.exported,
                damage: volume.damage,
            })
        };
        Ok(Self {
            pools: answer.pools.into_iter().map(pool).collect::<Result<_, _>>()?,
            volumes: answer.volumes.into_iter().map(volume).collect::<Result<_, _>>()?,
        })
    }
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
            }),
            Upward::Heartbeat => Up::Heartbeat(proto::Heartbeat {}),
            Upward::Reports { sequence, reports } => {
                let mut message = proto::Reports { sequence, ..Default::default() };
                for report in &reports {
                    match report {
                        Report::Pool(pool) => message.pools.push(pool.into()),
                        Report::Volume(volume) => message.volumes.push(volume.into()),
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
            }),
            Up::Heartbeat(proto::Heartbeat {}) => Upward::Heartbeat,
            Up::Reports(proto::Reports { sequence, pools, volumes }) => {
                let pools = pools.into_iter().map(|pool| Ok(Report::Pool(pool.try_into()?)));
                let volumes = volumes.into_iter().map(|volume| Ok(Report::Volume(volume.try_into()?)));
                let reports = pools.chain(volumes).collect::<Result<_, Malformed>>()?;
                Upward::Reports { sequence, reports }
            }
            Up::Inventory(answer) => Upward::Inventory { nonce: answer.nonce, inventory: answer.try_into()? },
            Up::Goodbye(proto::Goodbye {}) => Upward::Goodbye,
        })
    }
}

/// A block service that asks to become a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joiner {
    pub service: ServiceId,
    pub host_name: String,
    pub version: String,
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
            version: bounded(request.version, 64, "a version")?,
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
            }),
            Downward::Complete { set, partial, results_in } => Down::Assignments(proto::Assignments {
                partial,
                r#type: number::<proto::assignments::Type>(proto::assignments::Type::Complete),
                results_in: results_in.0,
                pools: set.pools.values().map(Into::into).collect(),
                volumes: set.volumes.values().map(Into::into).collect(),
                ..Default::default()
            }),
            Downward::Incremental { changes, applies_to, results_in } => {
                let mut message = proto::Assignments {
                    r#type: number::<proto::assignments::Type>(proto::assignments::Type::Incremental),
                    applies_to: applies_to.0,
                    results_in: results_in.0,
                    ..Default::default()
                };
                for change in &changes {
                    match change {
                        Change::Put(Assigned::Pool(pool)) => message.pools.push(pool.into()),
                        Change::Put(Assigned::Volume(volume)) => message.volumes.push(volume.into()),
                        Change::DropPool(id) => message.dropped_pools.push(id.to_string()),
                        Change::DropVolume(id) => message.dropped_volumes.push(id.to_string()),
                    }
                }
                Down::Assignments(message)
            }
            Downward::HeartbeatAck => Down::HeartbeatAck(proto::HeartbeatAck {}),
            Downward::ReportsAck { sequence } => Down::ReportsAck(proto::ReportsAck { sequence }),
            Downward::InventoryRequest { nonce } => Down::InventoryRequest(proto::InventoryRequest { nonce }),
            Downward::Managers(managers) => Down::Managers(proto::Managers { managers }),
            Downward::Removed => Down::Removed(proto::Removed {}),
        };
        Self { message: Some(message) }
    }
}

fn assignments(message: proto::Assignments) -> Result<Downward, Malformed> {
    let results_in = Step(message.results_in);
    let pools = message.pools.into_iter().map(PoolAssignment::try_from).collect::<Result<Vec<_>, _>>()?;
    let volumes = message.volumes.into_iter().map(VolumeAssignment::try_from).collect::<Result<Vec<_>, _>>()?;
    match proto::assignments::Type::try_from(message.r#type)? {
        proto::assignments::Type::Unspecified => Err(Malformed::missing("the type of assignments")),
        proto::assignments::Type::Complete => {
            let set = AssignmentSet {
                pools: pools.into_iter().map(|pool| (pool.id, pool)).collect(),
                volumes: volumes.into_iter().map(|volume| (volume.id, volume)).collect(),
            };
            Ok(Downward::Complete { set, partial: message.partial, results_in })
        }
        proto::assignments::Type::Incremental => {
            let mut changes: Changes = pools.into_iter().map(|pool| Change::Put(Assigned::Pool(pool))).collect();
            changes.extend(volumes.into_iter().map(|volume| Change::Put(Assigned::Volume(volume))));
            for id in message.dropped_volumes {
                changes.push(Change::DropVolume(id.parse()?));
            }
            for id in message.dropped_pools {
                changes.push(Change::DropPool(id.parse()?));
            }
            Ok(Downward::Incremental { changes, applies_to: Step(message.applies_to), results_in })
        }
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
            }),
            Down::Assignments(message) => assignments(message)?,
            Down::HeartbeatAck(proto::HeartbeatAck {}) => Downward::HeartbeatAck,
            Down::ReportsAck(ack) => Downward::ReportsAck { sequence: ack.sequence },
            Down::InventoryRequest(request) => Downward::InventoryRequest { nonce: request.nonce },
            Down::Managers(message) => Downward::Managers(message.managers),
            Down::Removed(proto::Removed {}) => Downward::Removed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn upward() -> Vec<Upward> {
        let volume = VolumeReport {
            id: VolumeId::from_bytes([1; 16]),
            generation: Generation::new(3),
            volume: Observed::Known(ServedVolume { size: ByteSize::mib(1), exports: vec![] }),
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
            exported: true,
            damage: None,
        };
        let reports = vec![Report::Pool(pool), Report::Volume(volume)];
        vec![
            Upward::Heartbeat,
            Upward::Reports { sequence: 7, reports },
            Upward::Inventory { nonce: 1, inventory: Inventory { pools: vec![], volumes: vec![found] } },
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
        let changes = vec![Change::DropPool(PoolId::from_bytes([4; 16]))];
        for message in [
            Downward::Complete { set: AssignmentSet::default(), partial: true, results_in: Step(1) },
            Downward::Managers(vec!["127.0.0.1:1".into()]),
            Downward::Incremental { changes, applies_to: Step(1), results_in: Step(2) },
            Downward::HeartbeatAck,
            Downward::ReportsAck { sequence: 9 },
            Downward::Removed,
        ] {
            let decoded = proto::ManagerMessage::from(message.clone());
            assert_eq!(Downward::try_from(decoded), Ok(message));
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
