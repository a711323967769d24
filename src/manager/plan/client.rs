//! Clients: operators at a distance and users of volumes.

use super::attachment::bury_attachments_of;
use super::enrollment::{Granted, Request, record_of};
use super::{find, look_up};
use crate::manager::audit::audit;
use crate::manager::draft::Draft;
use crate::manager::refusal::Refusal;
use crate::model::{Author, Client, ClientId, ClientRole, Kind, Name, Timestamp};
use crate::pki::{Bearer, Role};
use std::time::Duration;

/// The longest life of a client's certificate.
pub const LONGEST_CLIENT: Duration = Duration::from_secs(366 * 24 * 3600);
/// The shortest: less is used up by clocks that differ.
const SHORTEST_CLIENT: Duration = Duration::from_secs(60);

/// What an operator asks for a client.
#[derive(Clone, Debug)]
pub struct Commission {
    /// Of the client, should it be new.
    pub id: ClientId,
    pub name: Name,
    pub role: ClientRole,
    pub request: Request,
    pub lifetime: Duration,
    /// The client exists and gets another certificate; else it must not exist.
    pub renew: bool,
}

/// Makes a client, or renews its certificate.
///
/// # Errors
/// If the name is taken (or with `renew` is nobody's), the role is another one, or the lifetime makes no sense.
pub fn create_client(
    draft: &mut Draft<'_>,
    author: &Author,
    commission: &Commission,
) -> Result<(Client, Granted), Refusal> {
    let Commission { id, name, role, request, lifetime, renew } = commission;
    if !(SHORTEST_CLIENT..=LONGEST_CLIENT).contains(lifetime) {
        return Err(Refusal::Invalid(
            "a client's certificate lasts between one minute and 366 days: choose another --ttl".into(),
        ));
    }
    let present = if *renew { Some(present_client(draft, name, *role)?) } else { None };
    let meta = match &present {
        Some(client) => client.meta.clone(),
        None => draft.new_meta(*id, name.clone()),
    };
    let authority = draft.authority()?;
    let bearer = Bearer { cluster: authority.cluster(), role: role_of(*role), id: meta.id.as_uuid() };
    let issued = authority.issue(&request.pem, &bearer, &[], draft.now, *lifetime)?;
    let record = record_of(&authority, &issued, Default::default());
    let client = match present {
        None => {
            draft.claim(Kind::Client, name, meta.id)?;
            Client::new(meta, *role, record)
        }
        Some(mut client) => {
            // The record tells how long certificates of this client may be about; it must not end before one of them.
            let until = client.status.certificate.expires_at;
            if record.expires_at < until {
                return Err(Refusal::Precondition(format!(
                    "client '{name}' has a certificate that lasts until {until}, longer than the new one: ask for a \
                     longer --ttl, or remove the client and create it anew"
                )));
            }
            client.status.certificate = record;
            client.meta.updated_at = draft.now;
            client
        }
    };
    draft.put(client.clone());
    let detail = format!("{role}, until {}", client.status.certificate.expires_at);
    let action = if *renew { "client.renew" } else { "client.create" };
    audit(draft, author, action, Kind::Client, client.meta.id, name, Some(detail));
    Ok((client, Granted::new(&authority, issued, Vec::new())))
}

fn present_client(draft: &Draft<'_>, name: &Name, role: ClientRole) -> Result<Client, Refusal> {
    let client = look_up::<Client>(draft, name.as_str())?;
    if client.meta.is_removed() {
        return Err(Refusal::Removing { kind: Kind::Client, name: name.clone() });
    }
    if client.spec.role != role {
        let present = client.spec.role;
        return Err(Refusal::Precondition(format!(
            "client '{name}' is a {present} client: to make it {role}, remove it and create it anew"
        )));
    }
    Ok(client)
}

fn role_of(role: ClientRole) -> Role {
    match role {
        ClientRole::Admin => Role::Admin,
        ClientRole::Viewer => Role::Viewer,
        ClientRole::Data => Role::Data,
    }
}

/// Voids a client's certificates and ends its attachments, a part at a time: the answer is none while there are more to
/// end, and this is to be called again. Its name is free at once; its record stays until no certificate of it is left.
///
/// # Errors
/// If there is no such client.
pub fn remove_client(draft: &mut Draft<'_>, author: &Author, reference: &str) -> Result<Option<Client>, Refusal> {
    let mut client = find::<Client>(draft, reference)?;
    if !bury_attachments_of(draft, author, client.meta.id) {
        return Ok(None);
    }
    if client.meta.bury(draft.now) {
        draft.release(Kind::Client, &client.meta.name);
        draft.put(client.clone());
        audit(draft, author, "client.remove", Kind::Client, client.meta.id, &client.meta.name, None);
    }
    Ok(Some(client))
}

/// Forgets a client that was removed, and whose last certificate expired, before `limit`.
pub fn purge_client(draft: &mut Draft<'_>, id: ClientId, limit: Timestamp) -> Result<(), Refusal> {
    if draft.get::<Client>(id).is_some_and(|client| is_past(client, limit)) {
        draft.delete::<Client>(id);
    }
    Ok(())
}

pub fn is_past(client: &Client, limit: Timestamp) -> bool {
    client.meta.removed_at.is_some_and(|at| at < limit) && client.status.certificate.expires_at < limit
}
