//! What operators ask of tokens, clients and the authority.

use super::member::Member;
use super::plan::{self, Commission, Request};
use super::refusal::Refusal;
use crate::model::{Author, ClientId, ClientRole, Name, Object, ServiceType, TokenId};
use crate::pki::{JoinToken, RotationPhase, SecretHash};
use crate::rpc::{Fault, FaultKind, Malformed, proto};
use std::time::Duration;
use tonic::Status;

/// A name that an operator chose.
fn named(name: &str) -> Result<Name, Status> {
    name.parse().map_err(|error: crate::model::NameError| Fault::new(FaultKind::Invalid, error.to_string()).into())
}

fn malformed(error: impl Into<Malformed>) -> Status {
    Fault::from(error.into()).into()
}

pub async fn create_token(
    member: &Member,
    author: Author,
    request: proto::CreateTokenRequest,
) -> Result<proto::CreateTokenResponse, Status> {
    let service_type = proto::ServiceType::try_from(request.r#type).map_err(malformed)?;
    let service_type = ServiceType::try_from(service_type).map_err(malformed)?;
    let ca = {
        let view = member.view.read();
        view.authority.as_ref().map(|held| held.value.ca())
    };
    let ca = ca.ok_or_else(|| Refusal::Precondition("the cluster's authority cannot be read".into()))?;
    let token = JoinToken::generate(ca).map_err(Refusal::from)?;
    let (id, hash) = (TokenId::from_bytes(token.id.into_bytes()), SecretHash::of(&token.secret));
    let (ttl, uses) = (Duration::from_millis(request.ttl_ms), request.uses);
    let plan = move |draft: &mut super::draft::Draft<'_>| {
        plan::create_token(draft, &author, id, service_type, ttl, uses, &hash)
    };
    let made = member.writer.write(plan).await?;
    tracing::info!(token = %id, until = %made.spec.expires_at, uses, "a join token was made");
    Ok(proto::CreateTokenResponse { token: Some((&Object::Token(made)).into()), text: token.reveal().to_string() })
}

pub async fn revoke_token(
    member: &Member,
    author: Author,
    request: proto::RemoveRequest,
) -> Result<proto::Object, Status> {
    let plan = move |draft: &mut super::draft::Draft<'_>| plan::revoke_token(draft, &author, &request.reference);
    let token = member.writer.write(plan).await?;
    tracing::info!(token = %token.meta.id, "a join token was revoked");
    Ok((&Object::Token(token)).into())
}

pub async fn create_client(
    member: &Member,
    author: Author,
    request: proto::CreateClientRequest,
) -> Result<proto::CreateClientResponse, Status> {
    let role = proto::ClientRole::try_from(request.role).map_err(malformed)?;
    let commission = Commission {
        id: ClientId::generate(),
        name: named(&request.name)?,
        role: ClientRole::try_from(role).map_err(malformed)?,
        request: Request::prove(request.certificate_request)?,
        lifetime: Duration::from_millis(request.lifetime_ms),
        renew: request.renew,
    };
    let (client, granted) = member.writer.write(move |draft| plan::create_client(draft, &author, &commission)).await?;
    tracing::info!(client = %client.meta.name, role = %client.spec.role, "a client has a new certificate");
    Ok(proto::CreateClientResponse {
        client: Some((&Object::Client(client)).into()),
        certificate: Some(proto::Certificate { chain: granted.chain, roots: granted.roots }),
        managers: member.view.read().manager_addresses(member.service),
    })
}

pub async fn remove_client(
    member: &Member,
    author: Author,
    request: proto::RemoveRequest,
) -> Result<proto::Object, Status> {
    // Named once: its name is free as soon as it is removed.
    let id = plan::resolve::<crate::model::Client>(&member.view.read(), &request.reference);
    let reference = id.map_or(request.reference, |id| id.to_string());
    let removed = loop {
        let (author, reference) = (author.clone(), reference.clone());
        let plan = move |draft: &mut super::draft::Draft<'_>| plan::remove_client(draft, &author, &reference);
        if let Some(removed) = member.writer.write(plan).await? {
            break removed;
        }
    };
    tracing::info!(client = %removed.meta.name, id = %removed.meta.id, "a client was removed");
    Ok((&Object::Client(removed)).into())
}

pub fn get_authority(member: &Member) -> Result<proto::Authority, Status> {
    let view = member.view.read();
    let missing = || Refusal::Precondition("the cluster's authority cannot be read".into());
    let progress = plan::progress(&view, member.clock.wall()).ok_or_else(missing)?;
    let authority = &view.authority.as_ref().ok_or_else(missing)?.value;
    let (state, waiting_for) = match authority.rotation() {
        None => ("stable", Vec::new()),
        Some(RotationPhase::Distributing) => {
            ("distributing", vec!["the leader: it lets the new root sign next".into()])
        }
        Some(RotationPhase::Reissuing) => ("reissuing", progress.waiting_for),
    };
    let (signing, trust) = (authority.ca(), authority.trust());
    let roots = trust.roots().iter().map(|root| proto::Root {
        fingerprint: root.public_key().to_string(),
        expires_at: root.expires_at().as_millis(),
        signing: root.public_key() == signing,
    });
    let roots = roots.collect();
    Ok(proto::Authority { state: state.into(), roots, waiting_for, moved: progress.moved, total: progress.total })
}

pub async fn rotate_authority(
    member: &Member,
    author: Author,
    request: proto::RotateAuthorityRequest,
) -> Result<proto::Authority, Status> {
    member.writer.write(move |draft| plan::rotate_authority(draft, &author, request.finish)).await?;
    tracing::info!(finish = request.finish, "an operator asked for another root");
    get_authority(member)
}
