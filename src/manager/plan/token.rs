//! Join tokens: made, used, revoked, forgotten.

use super::find;
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{Author, Generation, Kind, Name, ServiceType, Timestamp, Token, TokenId, TokenSpec, TokenStatus};
use crate::pki::{Secret, SecretHash};
use crate::rpc::TokenProof;
use std::time::Duration;

/// The longest life of a token: an invitation that lies around longer is not one any more.
pub const LONGEST_TOKEN: Duration = Duration::from_secs(30 * 24 * 3600);
/// The most services that one token lets in.
const MOST_USES: u32 = 10_000;

/// What somebody without a good token is to do.
const HOW: &str = "make a token with `symphony ctl … manager token create` on a manager, and pass it to `symphony ctl … \
                   block init` with --token";

/// A new token; `hash` is all that is kept of its secret.
///
/// # Errors
/// If nothing could come of it: no time, no uses, or a type of service that joins by other means.
pub fn create_token(
    draft: &mut Draft<'_>,
    author: &Author,
    id: TokenId,
    service_type: ServiceType,
    ttl: Duration,
    uses: u32,
    hash: &SecretHash,
) -> Result<Token, Refusal> {
    if service_type == ServiceType::Manager {
        return Err(Refusal::Invalid(
            "managers join through their store and need no token: start one with `symphony manager run \
             --etcd-endpoints=…` on the same etcd, then run `symphony ctl … manager init` there"
                .into(),
        ));
    }
    if ttl < Duration::from_secs(1) || ttl > LONGEST_TOKEN {
        return Err(Refusal::Invalid("a token lives between one second and 30 days: choose another --ttl".into()));
    }
    if uses == 0 || uses > MOST_USES {
        return Err(Refusal::Invalid(format!(
            "a token lets in between 1 and {MOST_USES} services: choose other --uses"
        )));
    }
    let name = token_name(id);
    draft.claim(Kind::Token, &name, id)?;
    let token = Token {
        meta: draft.new_meta(id, name),
        spec: TokenSpec { service_type, expires_at: later(draft.now, ttl), uses },
        status: TokenStatus { used: 0, secret_hash: Some(String::from(hash.clone())) },
    };
    draft.put(token.clone());
    let detail = format!("{service_type}, {uses} uses, until {}", token.spec.expires_at);
    audit(draft, author, "token.create", Kind::Token, id, &token.meta.name, Some(detail));
    Ok(token)
}

/// A name that tells tokens apart; ids are no names.
fn token_name(id: TokenId) -> Name {
    let digits: String = id.to_string().chars().rev().take(12).collect();
    Name::resembling(&format!("token-{digits}"), "token")
}

pub(super) fn later(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(time.as_millis().saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
}

/// Voids a token; who joined with it stays.
///
/// # Errors
/// If there is no such token.
pub fn revoke_token(draft: &mut Draft<'_>, author: &Author, reference: &str) -> Result<Token, Refusal> {
    let mut token = find::<Token>(draft, reference)?;
    if token.meta.bury(draft.now) {
        draft.put(token.clone());
        audit(draft, author, "token.revoke", Kind::Token, token.meta.id, &token.meta.name, None);
    }
    Ok(token)
}

/// Counts one use of a token by a joiner of `service_type`, in the transaction of the join; the token's name.
///
/// # Errors
/// If the token is not good for that. Only who has the right secret learns more than that; an unknown id takes as long
/// to be refused as a wrong secret.
pub fn use_token(draft: &mut Draft<'_>, proof: &TokenProof, service_type: ServiceType) -> Result<Name, Refusal> {
    let held = draft.get::<Token>(proof.id).cloned();
    let kept = held.as_ref().and_then(|token| token.status.secret_hash.clone());
    let kept = kept.and_then(|hash| SecretHash::try_from(hash).ok());
    let stand_in = || SecretHash::of(&Secret::from_slice(&[0; 32]).unwrap_or_else(|| proof.secret.clone()));
    let known = kept.is_some();
    let right = kept.unwrap_or_else(stand_in).matches(&proof.secret);
    let Some(mut token) = held.filter(|_| known && right) else {
        return Err(Refusal::Denied(format!("no join token has this id and secret: {HOW}")));
    };
    if let Some(fault) = token.fault(draft.now) {
        return Err(Refusal::Denied(format!("the join token {fault}: {HOW}")));
    }
    // Nobody knows any more how often it was used, or whether it was revoked.
    if token.meta.generation < Generation::floor(draft.view().history().floor()) {
        return Err(Refusal::Denied(format!("the join token is of before the state was put back in time: {HOW}")));
    }
    if token.spec.service_type != service_type {
        let wanted = token.spec.service_type;
        return Err(Refusal::Denied(format!(
            "the join token is for a {wanted} service, not for a {service_type}: {HOW}"
        )));
    }
    token.status.used = token.status.used.saturating_add(1);
    token.meta.updated_at = draft.now;
    let name = token.meta.name.clone();
    draft.put(token);
    Ok(name)
}

/// What a joiner without a token is told.
pub(super) fn needs_token() -> Refusal {
    Refusal::Denied(format!("this block service is not on the manager's host, so it needs a join token: {HOW}"))
}

/// Forgets a token that nobody could use since `limit`. One that is younger stays, so that its holders are told why.
pub fn purge_token(draft: &mut Draft<'_>, id: TokenId, limit: Timestamp) -> Result<(), Refusal> {
    let Some(token) = draft.get::<Token>(id) else { return Ok(()) };
    if is_past(token, limit) {
        let name = token.meta.name.clone();
        draft.release(Kind::Token, &name);
        draft.delete::<Token>(id);
    }
    Ok(())
}

/// Whether the token was good for nothing at `limit` already.
pub fn is_past(token: &Token, limit: Timestamp) -> bool {
    let used_up = token.status.used >= token.spec.uses && token.meta.updated_at < limit;
    token.meta.removed_at.is_some_and(|at| at < limit) || token.spec.expires_at < limit || used_up
}
