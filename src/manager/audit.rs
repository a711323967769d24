//! The record of changes: who did what, to which object, from where.
//!
//! Every plan that changes desired state or membership on behalf of somebody writes one entry, in the transaction of the
//! change itself: there is no change without its entry and no entry without its change. What repeats changes nothing and
//! is not recorded. Of what block services report, which changes nothing that anybody asked for, there is only how full
//! their pools become.

use super::draft::Draft;
use super::view::View;
use crate::model::{Author, Client, ClientId, Event, EventId, Kind, ServiceId, ServiceType, Timestamp};
use crate::rpc::{Caller, Peer};
use std::fmt::Display;
use tonic::Request;

/// On whose behalf a request is planned; the view knows the names of clients.
pub fn author<T>(request: &Request<T>, view: Option<&View>) -> Author {
    let Some(peer) = request.extensions().get::<Peer>() else {
        return Author { who: "unknown".into(), origin: "unknown".into() };
    };
    let who = match peer.caller() {
        Caller::Certified(bearer) if bearer.role.is_service() => format!("{} service {}", bearer.role, bearer.id),
        Caller::Certified(bearer) => {
            let client = view.and_then(|view| view.get::<Client>(ClientId::from_bytes(bearer.id.into_bytes())));
            match client {
                Some(client) => format!("{} client '{}'", bearer.role, client.meta.name),
                None => format!("{} client {}", bearer.role, bearer.id),
            }
        }
        caller @ (Caller::Local { .. } | Caller::Anonymous | Caller::Refused(_)) => caller.to_string(),
    };
    Author { who, origin: peer.peer.clone() }
}

/// The author of a leader's duties.
pub fn leader(manager: ServiceId) -> Author {
    Author { who: "the leader".into(), origin: format!("manager {manager}") }
}

/// The managers together, where what is written follows from the state itself.
pub fn managers() -> Author {
    Author { who: "the managers".into(), origin: "the state".into() }
}

/// A member that speaks of itself, to `manager`.
pub fn of_service(service: ServiceId, service_type: ServiceType, manager: ServiceId) -> Author {
    Author { who: format!("{service_type} service {service}"), origin: format!("manager {manager}") }
}

/// Records one change in the draft that makes it.
pub fn audit(
    draft: &mut Draft<'_>,
    author: &Author,
    action: &str,
    kind: impl Into<Option<Kind>>,
    object: impl Display,
    name: &impl Display,
    detail: Option<String>,
) {
    let (now, kind) = (draft.now, kind.into());
    draft.record(|id| Event { detail, ..entry(id, now, author, action, (kind, object, name)) }.bounded());
}

/// One entry, for transactions that are not made of a draft.
pub fn entry(
    id: EventId,
    at: Timestamp,
    author: &Author,
    action: &str,
    (kind, object, name): (Option<Kind>, impl Display, &impl Display),
) -> Event {
    let (object, name) = (object.to_string(), name.to_string());
    Event { id, at, author: author.clone(), action: action.into(), kind, object, name, detail: None }.bounded()
}
