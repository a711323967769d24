//! Certificates of services: what a joiner gets, and how a member gets the next one.
//!
//! Whose key is on record is a member; whoever proves that key needs nothing else, and nobody else gets a certificate in
//! its name. Signing happens within the plan, so that record and certificate never disagree.

use super::service::audit_service;
use super::token::{needs_token, use_token};
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::manager::view::View;
use crate::model::{Addresses, Author, CertificateRecord, ClusterSpec, Service, ServiceId, ServiceType};
use crate::pki::{Authority, Bearer, Issued, PublicKey, Role, TrustedRoot, verify_request};
use crate::rpc::TokenProof;
use rustls::pki_types::ServerName;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// How long a service's certificate lasts: the cluster's word.
pub fn lifetime(view: &View) -> Duration {
    view.cluster.as_ref().map_or_else(ClusterSpec::default, |cluster| cluster.spec).certificate_lifetime()
}

/// A certificate request whose signature proves that its sender holds the key.
#[derive(Clone, Debug)]
pub struct Request {
    pub pem: String,
    pub key: PublicKey,
}

impl Request {
    /// # Errors
    /// If the request is none, or is not signed by its own key.
    pub fn prove(pem: String) -> Result<Self, Refusal> {
        let key = verify_request(&pem)?;
        Ok(Self { pem, key })
    }
}

/// A service that asks to become a member.
#[derive(Clone, Debug)]
pub struct Application {
    /// Its record, should it be new.
    pub service: Service,
    pub addresses: Addresses,
    /// None from a local service of a version that knew no certificates.
    pub request: Option<Request>,
    pub proof: Option<TokenProof>,
    /// It is on this manager's host, which is proof enough.
    pub local: bool,
}

/// Who asks for a service's next certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Local,
    /// Only the key speaks for it.
    Anonymous,
    /// It showed the service's present certificate.
    Bearer(ServiceId),
}

/// A member that asks for its next certificate.
#[derive(Clone, Debug)]
pub struct Renewal {
    pub service: ServiceId,
    pub addresses: Addresses,
    pub request: Request,
    pub standing: Standing,
}

/// A certificate, as its bearer gets it.
#[derive(Clone, Debug)]
pub struct Granted {
    /// PEM, the bearer's own first.
    pub chain: String,
    /// PEM, every root that is believed.
    pub roots: Vec<String>,
    /// Names that were asked for and are another service's.
    pub left_out: Vec<String>,
}

impl Granted {
    pub(super) fn new(authority: &Authority, issued: Issued, left_out: Vec<String>) -> Self {
        let roots = authority.trust().roots().iter().map(TrustedRoot::to_pem).collect();
        Self { chain: issued.chain_pem, roots, left_out }
    }
}

/// The record of what `authority` issued.
pub fn record_of(authority: &Authority, issued: &Issued, names: BTreeSet<String>) -> CertificateRecord {
    CertificateRecord {
        public_key: issued.public_key.to_string(),
        expires_at: issued.expires_at,
        root: authority.ca().to_string(),
        names,
    }
}

/// Makes the applicant a member and issues its certificate; none where it did not ask for one. A repeated application of
/// the same service with the same key succeeds anew and uses no token.
///
/// # Errors
/// If the service was removed, is a member with another key, or needs a token and has no good one.
pub fn enroll(draft: &mut Draft<'_>, author: &Author, application: &Application) -> Result<Option<Granted>, Refusal> {
    let id = application.service.meta.id;
    let known = draft.get::<Service>(id).cloned();
    if known.as_ref().is_some_and(|known| known.meta.is_removed()) {
        return Err(Refusal::NotMember(id));
    }
    let Some(request) = &application.request else {
        if !application.local {
            return Err(Refusal::Invalid("a join from a distance needs a certificate request".into()));
        }
        super::join_service(draft, author, &application.service)?;
        return Ok(None);
    };
    let mut service = match known {
        Some(known) => {
            prove_member(&known, request, application.local)?;
            known
        }
        None => {
            let detail = match application.local {
                true => None,
                false => {
                    let proof = application.proof.as_ref().ok_or_else(needs_token)?;
                    let token = use_token(draft, proof, application.service.spec.service_type)?;
                    Some(format!("with {token}"))
                }
            };
            audit_service(draft, author, "service.join", &application.service, detail);
            application.service.clone()
        }
    };
    let granted = certify(draft, &mut service, request, &application.addresses, application.local)?;
    draft.put(service);
    Ok(Some(granted))
}

/// Issues a member's next certificate; none to one that was removed, if it proves that it was that one.
///
/// # Errors
/// If there is no such member, or whoever asks is not it.
pub fn renew_service(draft: &mut Draft<'_>, renewal: &Renewal) -> Result<Option<Granted>, Refusal> {
    let id = renewal.service;
    let mut service = draft.get::<Service>(id).cloned().ok_or(Refusal::NotMember(id))?;
    if service.meta.is_removed() {
        let proven = prove_member(&service, &renewal.request, false);
        return proven.map(|()| None).map_err(|_| Refusal::NotMember(id));
    }
    let local = renewal.standing == Standing::Local;
    match renewal.standing {
        Standing::Bearer(bearer) if bearer == id => prove_type(&service)?,
        Standing::Bearer(bearer) => {
            return Err(Refusal::Denied(format!("service {bearer} may not ask for a certificate of service {id}")));
        }
        Standing::Local | Standing::Anonymous => prove_member(&service, &renewal.request, local)?,
    }
    let granted = certify(draft, &mut service, &renewal.request, &renewal.addresses, local)?;
    draft.put(service);
    Ok(Some(granted))
}

fn prove_type(service: &Service) -> Result<(), Refusal> {
    match service.spec.service_type {
        ServiceType::Block => Ok(()),
        ServiceType::Manager => {
            Err(Refusal::Denied(format!("service {} is a manager: it issues its certificate itself", service.meta.id)))
        }
    }
}

/// Whether the request is signed by the key on record. Where there is none yet, only a local one may set it.
fn prove_member(service: &Service, request: &Request, local: bool) -> Result<(), Refusal> {
    prove_type(service)?;
    let id = service.meta.id;
    match &service.status.certificate {
        Some(record) if record.public_key == request.key.to_string() => Ok(()),
        Some(_) => Err(Refusal::Denied(format!(
            "service {id} is a member with another key than the one that signed this request: if its key is lost, remove \
             it with `symphony ctl … manager remove {id}` and let it join anew"
        ))),
        None if local => Ok(()),
        None => Err(Refusal::Denied(format!(
            "service {id} is a member without a key on record: it can get its first certificate only on a manager's host"
        ))),
    }
}

fn certify(
    draft: &mut Draft<'_>,
    service: &mut Service,
    request: &Request,
    addresses: &Addresses,
    local: bool,
) -> Result<Granted, Refusal> {
    let authority = draft.authority()?;
    let (names, left_out) = names_of(draft, service, addresses, local);
    let bearer = Bearer::service(authority.cluster(), Role::Block, service.meta.id);
    let listed: Vec<String> = names.iter().cloned().collect();
    let issued = authority.issue(&request.pem, &bearer, &listed, draft.now, lifetime(draft.view()))?;
    service.status.certificate = Some(record_of(&authority, &issued, names));
    Ok(Granted::new(&authority, issued, left_out))
}

/// What a service on this host is called on this host.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The hosts that a certificate names, and those that it was to name and are another service's.
///
/// Tools that know no bearers believe a server by its host name, so that a name belongs to the living block service whose
/// certificate has it first. Services on the manager's own host may share names; whatever a service has, it keeps for as
/// long as it asks for it. A service at a distance that shares its host with another one needs a name of its own.
fn names_of(
    draft: &Draft<'_>,
    service: &Service,
    addresses: &Addresses,
    local: bool,
) -> (BTreeSet<String>, Vec<String>) {
    let wanted = hosts(addresses, &service.status.host_name);
    let own = service.status.certificate.as_ref().map(|record| &record.names);
    let others = || {
        let living = |other: &&Service| {
            other.meta.id != service.meta.id
                && other.spec.service_type == ServiceType::Block
                && !other.meta.is_removed()
        };
        draft.all::<Service>().filter(living).filter_map(|other| other.status.certificate.as_ref())
    };
    let free = |name: &String| {
        local
            || LOOPBACK.contains(&name.as_str())
            || own.is_some_and(|own| own.contains(name))
            || !others().any(|record| record.names.contains(name))
    };
    let (names, left_out): (BTreeSet<String>, BTreeSet<String>) = wanted.into_iter().partition(free);
    (names, left_out.into_iter().collect())
}

/// What a service is called that listens at `addresses` on a host of this name.
pub fn hosts(addresses: &Addresses, host_name: &str) -> BTreeSet<String> {
    let listening = [&addresses.rpc, &addresses.nbd].into_iter().flatten().map(|address| host_of(address));
    listening.chain([host_name]).chain(LOOPBACK).filter_map(plain).collect()
}

/// `host` of `host:port`, an IPv6 address without its brackets.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The one spelling of a host in this module; none of what can stand in no certificate.
fn plain(host: &str) -> Option<String> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    match host.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => None,
        Ok(address) => Some(address.to_string()),
        Err(_) => ServerName::try_from(host.as_str()).is_ok().then(|| host.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_spelling_and_what_is_no_host_is_left_out() {
        assert_eq!(host_of("[fe80::1]:10809"), "fe80::1");
        assert_eq!(host_of("db:1"), "db");
        assert_eq!(plain("DB.Example.").as_deref(), Some("db.example"));
        assert_eq!(plain("::0:1").as_deref(), Some("::1"));
        for host in ["", "*", "*.example", "a b", "0.0.0.0", "::", "a/b", "é"] {
            assert_eq!(plain(host), None, "{host}");
        }
    }
}
