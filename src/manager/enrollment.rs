//! How block services become members, and get their next certificates: who may ask, and what is answered.

use super::member::Member;
use super::plan::{self, Application, Granted, Renewal, Request, Standing};
use super::refusal::Refusal;
use crate::model::{
    Author, Meta, Name, Service, ServiceId, ServiceSpec, ServiceState, ServiceStatus, ServiceType, Timestamp,
};
use crate::rpc::{Caller, Fault, Joiner, Renewer, proto};
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
        spec: ServiceSpec { service_type, labels: BTreeMap::new(), draining: None },
        status: ServiceStatus {
            state: ServiceState::Joined,
            since: now,
            host_name,
            addresses: Default::default(),
            version,
            manager: None,
            certificate: None,
        },
    }
}

/// Makes the joiner a member; repeating the same request changes nothing but the certificate.
///
/// # Errors
/// If the request makes no sense, this id was removed before, or the joiner has no right to it.
pub async fn join(
    member: &Member,
    author: Author,
    caller: &Caller,
    request: proto::JoinRequest,
) -> Result<proto::JoinResponse, tonic::Status> {
    let local = match caller {
        Caller::Local { .. } => true,
        Caller::Anonymous => false,
        Caller::Certified(_) | Caller::Refused(_) => return Err(stranger(caller, "join").into()),
    };
    let joiner: Joiner = request.try_into().map_err(Fault::from)?;
    let (id, host_name) = (joiner.service, joiner.host_name);
    let application = Application {
        service: new_service(id, ServiceType::Block, host_name, joiner.version, member.clock.wall()),
        addresses: joiner.addresses,
        request: joiner.certificate_request.map(Request::prove).transpose()?,
        proof: joiner.token,
        local,
    };
    // A removed id is denied: it has had its life, and the joiner is to choose another one.
    let peer = author.origin.clone();
    let granted = member.writer.write(move |draft| plan::enroll(draft, &author, &application)).await;
    let granted = granted.inspect_err(|refusal| warn(caller, &peer, id, "join", refusal))?;
    tracing::info!(service = %id, %peer, "a block service joined");
    let view = member.view.read();
    Ok(proto::JoinResponse {
        cluster_id: member.cluster.meta.id.to_string(),
        cluster_name: member.cluster.meta.name.to_string(),
        managers: view.manager_addresses(member.service),
        recovering: view.recovering().is_some(),
        certificate: granted.map(|granted| certificate(id, granted)),
    })
}

/// Gives a member its next certificate.
///
/// # Errors
/// If the request makes no sense, or does not come from that member.
pub async fn renew(
    member: &Member,
    caller: &Caller,
    peer: &str,
    request: proto::RenewRequest,
) -> Result<proto::RenewResponse, tonic::Status> {
    let standing = match caller {
        Caller::Local { .. } => Standing::Local,
        Caller::Anonymous => Standing::Anonymous,
        Caller::Certified(bearer) => match bearer.service_id() {
            Some(service) => Standing::Bearer(service),
            None => return Err(stranger(caller, "renew a service's certificate").into()),
        },
        Caller::Refused(_) => return Err(stranger(caller, "renew a service's certificate").into()),
    };
    let Renewer { service, addresses, certificate_request } = request.try_into().map_err(Fault::from)?;
    let renewal = Renewal { service, addresses, request: Request::prove(certificate_request)?, standing };
    let granted = member.writer.write(move |draft| plan::renew_service(draft, &renewal)).await;
    let granted = granted.inspect_err(|refusal| warn(caller, peer, service, "renew", refusal))?;
    tracing::info!(%service, %peer, removed = granted.is_none(), "a service asked for a new certificate");
    let removed = granted.is_none();
    Ok(proto::RenewResponse { certificate: granted.map(|granted| certificate(service, granted)), removed })
}

fn stranger(caller: &Caller, deed: &str) -> Refusal {
    match caller {
        Caller::Refused(reason) => Refusal::Denied(reason.clone()),
        caller => Refusal::Denied(format!("{caller} may not {deed}")),
    }
}

fn warn(caller: &Caller, peer: &str, service: ServiceId, deed: &str, refusal: &Refusal) {
    tracing::warn!(%peer, %caller, %service, deed, %refusal, "an enrolment was refused");
}

fn certificate(service: ServiceId, granted: Granted) -> proto::Certificate {
    if !granted.left_out.is_empty() {
        tracing::warn!(
            %service,
            names = %granted.left_out.join(", "),
            "these names are another block service's: the certificate does not have them, and tools that check host names \
             will not reach this one by them; give it a name of its own with --advertise-address"
        );
    }
    proto::Certificate { chain: granted.chain, roots: granted.roots }
}
