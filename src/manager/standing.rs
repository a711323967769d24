//! What a manager says of itself: where it stands, and on every answer since when it has not reached its store.

use super::Stage;
use super::control::Face;
use super::init::Manager;
use crate::model::Timestamp;
use crate::rpc::{STALE_SINCE, proto};
use crate::runtime::VERSION;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::server::NamedService;
use tower::Service;

/// The answer to `GetManagerStatus`.
pub fn status(manager: &Manager) -> proto::GetManagerStatusResponse {
    let mut status = proto::GetManagerStatusResponse {
        store: manager.store_text(),
        version: VERSION.into(),
        address: manager.address.clone(),
        ..Default::default()
    };
    match manager.stage() {
        Stage::Starting(reason) => (status.state, status.message) = ("starting".into(), Some(reason)),
        Stage::Uninitialised(note) => (status.state, status.message) = ("uninitialised".into(), note),
        Stage::Stranded(reason) => (status.state, status.message) = ("stranded".into(), Some(reason)),
        Stage::Member(member) => {
            let view = member.view.read();
            status.state = "member".into();
            status.service_id = Some(member.service.to_string());
            status.cluster_id = Some(member.cluster.meta.id.to_string());
            status.cluster_name = Some(member.cluster.meta.name.to_string());
            status.leader = view.leader.as_ref().map(|leader| leader.value.to_string());
            let history = view.history();
            drop(view);
            status.stale_since = member.view.stale_since().map(|since| since.as_millis());
            status.epoch = history.epoch.as_u64();
            status.rewound_at = history.rewound.as_ref().map(|rewind| rewind.at.as_millis());
            status.rewound = history.rewound.map(|rewind| rewind.reason);
        }
    }
    status
}

/// A service whose answers carry [`STALE_SINCE`] while the store is away: reads go on from the view, and say so.
#[derive(Clone)]
pub struct Standing<S> {
    manager: Arc<Manager>,
    inner: S,
}

impl<S> Standing<S> {
    pub fn of(face: &Face, inner: S) -> Self {
        Self { manager: face.0.clone(), inner }
    }
}

impl<S: NamedService> NamedService for Standing<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Standing<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (before, answer, manager) = (stale_since(&self.manager), self.inner.call(request), self.manager.clone());
        Box::pin(async move {
            let mut answer = answer.await?;
            // What was read in between may be what the view showed while it was stale.
            if let Some(since) = before.or_else(|| stale_since(&manager)) {
                answer.headers_mut().insert(STALE_SINCE, HeaderValue::from(since.as_millis()));
            }
            Ok(answer)
        })
    }
}

fn stale_since(manager: &Manager) -> Option<Timestamp> {
    match manager.stage() {
        Stage::Member(member) => member.view.stale_since(),
        _ => None,
    }
}
