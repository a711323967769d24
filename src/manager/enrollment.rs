//! How block services become members.

use super::member::Member;
use super::plan;
use crate::model::{Meta, Name, Service, ServiceId, ServiceSpec, ServiceState, ServiceStatus, ServiceType, Timestamp};
use crate::rpc::{Fault, Joiner, proto};
use std::collections::BTreeMap;

/// The record of a service that joins at `now`.
pub fn new_service(
    id: ServiceId,
    service_type: ServiceType,
    host_name: String,
    version: String,
    now: Timestamp,
) -> Service {
    Service {
        meta: Meta::new(id, Name::resembling(&host_name, service_type.as_str()), now),
        spec: ServiceSpec { service_type, labels: BTreeMap::new() },
        status: ServiceStatus {
            state: ServiceState::Joined,
            since: now,
            host_name,
            addresses: Default::default(),
            version,
            manager: None,
        },
    }
}

/// Makes the joiner a member; repeating the same request changes nothing.
///
/// # Errors
/// If the request makes no sense, or this id was removed before.
pub async fn join(member: &Member, request: proto::JoinRequest) -> Result<proto::JoinResponse, tonic::Status> {
    let Joiner { service: id, host_name, version } = request.try_into().map_err(Fault::from)?;
    let joiner = new_service(id, ServiceType::Block, host_name, version, member.clock.wall());
    // A removed id is denied: it has had its life, and the joiner is to choose another one.
    member.writer.write(move |draft| plan::join_service(draft, &joiner)).await?;
    tracing::info!(service = %id, "a block service joined");
    Ok(proto::JoinResponse {
        cluster_id: member.cluster.meta.id.to_string(),
        cluster_name: member.cluster.meta.name.to_string(),
        managers: member.view.read().manager_addresses(member.service),
    })
}
