//! Who may call what: one table, and the layer that asks it before anything of a request is read.
//!
//! Roles are not all: handlers compare ids too, so that a service speaks of itself only. What stands in no row is
//! refused to everybody.

use super::caller::{Caller, Peer};
use crate::pki::Role;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// What a caller is, as the table knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// On this very host, root or the server's own user.
    Local,
    /// Without any proof.
    Anonymous,
    Bearer(Role),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local peers",
            Self::Anonymous => "peers without a certificate",
            Self::Bearer(Role::Manager) => "managers",
            Self::Bearer(Role::Block) => "block services",
            Self::Bearer(Role::Admin) => "admin clients",
            Self::Bearer(Role::Viewer) => "viewer clients",
            Self::Bearer(Role::Data) => "data clients",
        })
    }
}

const LOCAL: Kind = Kind::Local;
const ANONYMOUS: Kind = Kind::Anonymous;
const MANAGER: Kind = Kind::Bearer(Role::Manager);
const BLOCK: Kind = Kind::Bearer(Role::Block);
const ADMIN: Kind = Kind::Bearer(Role::Admin);
const VIEWER: Kind = Kind::Bearer(Role::Viewer);
const DATA: Kind = Kind::Bearer(Role::Data);

const LOOK: &[Kind] = &[LOCAL, ADMIN, VIEWER, MANAGER];
const CHANGE: &[Kind] = &[LOCAL, ADMIN];
const ALL: &[Kind] = &[LOCAL, ANONYMOUS, MANAGER, BLOCK, ADMIN, VIEWER, DATA];

/// Every method there is, and whom it admits.
const TABLE: &[(&str, &[Kind])] = &[
    ("/symphony.v1.Control/GetManagerStatus", LOOK),
    ("/symphony.v1.Control/Get", LOOK),
    ("/symphony.v1.Control/List", LOOK),
    ("/symphony.v1.Control/Watch", LOOK),
    ("/symphony.v1.Control/GetAuthority", LOOK),
    ("/symphony.v1.Control/Events", LOOK),
    ("/symphony.v1.Control/Check", LOOK),
    ("/symphony.v1.Control/InitCluster", CHANGE),
    ("/symphony.v1.Control/RemoveService", CHANGE),
    ("/symphony.v1.Control/CreatePool", CHANGE),
    ("/symphony.v1.Control/ExtendPool", CHANGE),
    ("/symphony.v1.Control/RemovePool", CHANGE),
    ("/symphony.v1.Control/CreateVolume", CHANGE),
    ("/symphony.v1.Control/ResizeVolume", CHANGE),
    ("/symphony.v1.Control/SetPool", CHANGE),
    ("/symphony.v1.Control/SetVolume", CHANGE),
    ("/symphony.v1.Control/RemoveVolume", CHANGE),
    ("/symphony.v1.Control/MoveVolume", CHANGE),
    ("/symphony.v1.Control/RevertVolume", CHANGE),
    ("/symphony.v1.Control/CreateSnapshots", CHANGE),
    ("/symphony.v1.Control/RemoveSnapshot", CHANGE),
    ("/symphony.v1.Control/WipeSnapshot", CHANGE),
    ("/symphony.v1.Control/ImportImage", CHANGE),
    ("/symphony.v1.Control/RecordUpload", CHANGE),
    ("/symphony.v1.Control/SealImage", CHANGE),
    ("/symphony.v1.Control/RemoveImage", CHANGE),
    ("/symphony.v1.Control/AttachVolume", CHANGE),
    ("/symphony.v1.Control/DetachVolume", CHANGE),
    ("/symphony.v1.Control/CreateToken", CHANGE),
    ("/symphony.v1.Control/RevokeToken", CHANGE),
    ("/symphony.v1.Control/CreateClient", CHANGE),
    ("/symphony.v1.Control/RemoveClient", CHANGE),
    ("/symphony.v1.Control/RotateAuthority", CHANGE),
    ("/symphony.v1.Stores/Backup", &[LOCAL]),
    ("/symphony.v1.Stores/Restore", &[LOCAL]),
    ("/symphony.v1.Stores/Migrate", &[LOCAL]),
    ("/symphony.v1.Recovery/ListOrphans", LOOK),
    ("/symphony.v1.Recovery/AdoptOrphan", CHANGE),
    ("/symphony.v1.Recovery/PurgeOrphan", CHANGE),
    ("/symphony.v1.Recovery/GetLoss", LOOK),
    ("/symphony.v1.Recovery/CloseLost", CHANGE),
    ("/symphony.v1.Recovery/DrainService", CHANGE),
    ("/symphony.v1.Recovery/GetDrain", LOOK),
    ("/symphony.v1.Recovery/GetRecovery", LOOK),
    ("/symphony.v1.Recovery/FinishRecovery", CHANGE),
    ("/symphony.v1.BlockControl/InitBlock", &[LOCAL]),
    ("/symphony.v1.BlockControl/GetBlockStatus", &[LOCAL]),
    ("/symphony.v1.BlockControl/RestartBlock", &[LOCAL]),
    ("/symphony.v1.Figures/WatchFigures", &[LOCAL, ADMIN, VIEWER]),
    ("/symphony.v1.Images/ReadImage", &[LOCAL, BLOCK, ADMIN]),
    ("/symphony.v1.Devices/ListDevices", &[LOCAL, ADMIN, VIEWER]),
    ("/symphony.v1.Dispatcher/Session", &[LOCAL, BLOCK]),
    ("/symphony.v1.Enrollment/Join", &[LOCAL, ANONYMOUS]),
    ("/symphony.v1.Enrollment/Renew", &[LOCAL, ANONYMOUS, BLOCK, MANAGER]),
    ("/grpc.health.v1.Health/Check", ALL),
    ("/grpc.health.v1.Health/Watch", ALL),
];

/// Whether the caller may call the method; what to tell it, if not.
fn judge(caller: &Caller, path: &str) -> Result<(), Status> {
    let kind = match caller {
        Caller::Refused(reason) => return Err(Status::permission_denied(refusal(reason, path))),
        Caller::Local { .. } => Kind::Local,
        Caller::Anonymous => Kind::Anonymous,
        Caller::Certified(bearer) => Kind::Bearer(bearer.role),
    };
    let Some((_, admitted)) = TABLE.iter().find(|(method, _)| *method == path) else {
        return Err(Status::unimplemented("this server knows no such call: it may be of another version"));
    };
    if admitted.contains(&kind) {
        return Ok(());
    }
    let method = path.rsplit('/').next().unwrap_or(path);
    let whom = admitted.iter().map(Kind::to_string).collect::<Vec<_>>().join(", ");
    Err(Status::permission_denied(match caller {
        Caller::Certified(bearer) => {
            format!("{method} is for {whom}; this certificate is that of {} {}", bearer.role, bearer.id)
        }
        _ => format!("{method} is for {whom}; this connection shows no certificate that is valid now"),
    }))
}

/// Why a peer without any proof is turned away; an operator also learns what would do as proof.
fn refusal(reason: &str, path: &str) -> String {
    match path.starts_with("/symphony.v1.Control/") || path.starts_with("/symphony.v1.Recovery/") {
        true => format!(
            "{reason}; `symphony ctl … manager client create` on a manager's host makes the certificate for one, for use \
             with --bundle"
        ),
        false => reason.to_owned(),
    }
}

/// Puts the table in front of every service.
#[derive(Clone, Copy, Debug)]
pub struct Admittance;

impl<S> Layer<S> for Admittance {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Admitting<S> {
        Admitting { inner }
    }
}

/// A service behind the table.
#[derive(Clone, Debug)]
pub struct Admitting<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Admitting<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let refuse = |status: Status| -> Self::Future { Box::pin(std::future::ready(Ok(status.into_http()))) };
        let Some(peer) = request.extensions().get::<Peer>() else {
            return refuse(Status::permission_denied("this connection says nothing of its peer"));
        };
        peer.heard().cancel();
        if let Err(status) = judge(peer.caller(), request.uri().path()) {
            return refuse(status);
        }
        if let Some(dismissed) = peer.dismissed() {
            return refuse(Status::permission_denied(dismissed.to_string()));
        }
        if *peer.caller() != Caller::Anonymous {
            return Box::pin(self.inner.call(request));
        }
        let Ok(turn) = peer.anonymous_calls().clone().try_acquire_owned() else {
            return refuse(Status::resource_exhausted("too many calls at once on a connection without a certificate"));
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(turn);
            answer
        })
    }
}

#[cfg(test)]
mod tests;
