//! What operators ask: thin translations between gRPC and plans, lookups and watches.

use super::plan;
use super::refusal::Refusal;
use super::view::{Stored, View};
use super::{Manager, Stage, check, dispatcher, enrollment};
use crate::manager::member::Member;
use crate::model::*;
use crate::rpc::{Fault, FaultKind, Malformed, Peer, proto};
use proto::{control_server::Control, dispatcher_server::Dispatcher, enrollment_server::Enrollment};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The gRPC face of a manager. Cheap to clone.
#[derive(Clone)]
pub struct Face(pub Arc<Manager>);

/// Objects on a page unless the caller wants fewer.
const PAGE: usize = 1000;

type Answer<T> = Result<Response<T>, Status>;

fn kind_of(number: i32) -> Result<Kind, Malformed> {
    Kind::try_from(proto::Kind::try_from(number)?)
}

fn parsed<T, E: std::fmt::Display>(text: Result<T, E>) -> Result<T, Status> {
    text.map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()).into())
}

fn malformed<T>(value: Result<T, Malformed>) -> Result<T, Status> {
    value.map_err(|error| Fault::from(error).into())
}

fn answer(object: impl Into<proto::Object>) -> Answer<proto::Object> {
    Ok(Response::new(object.into()))
}

fn optional(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn find(view: &View, kind: Kind, reference: &str) -> Result<Object, Refusal> {
    let missing = || Refusal::NoSuch { kind, reference: reference.chars().take(80).collect() };
    let found = match kind {
        Kind::Service => view.get(plan::find_service(view, reference)?).cloned().map(Object::Service),
        Kind::Pool => {
            plan::resolve::<Pool>(view, reference).and_then(|id| view.get::<Pool>(id)).cloned().map(Object::Pool)
        }
        Kind::Volume => {
            plan::resolve::<Volume>(view, reference).and_then(|id| view.get::<Volume>(id)).cloned().map(Object::Volume)
        }
    };
    found.ok_or_else(missing)
}

/// Up to `limit` objects of a table that follow `after`.
fn page<T: Stored>(
    view: &View,
    after: Option<T::Id>,
    limit: usize,
    wrap: impl Fn(T) -> Object,
) -> (Vec<proto::Object>, bool) {
    use std::ops::Bound;
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = T::table(view).range((from, Bound::Unbounded)).map(|(_, held)| &*held.value);
    let objects = rest.by_ref().take(limit).map(|value| (&wrap(value.clone())).into()).collect();
    (objects, rest.next().is_some())
}

fn token<I: std::str::FromStr>(text: &str) -> Result<Option<I>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Status::invalid_argument("the page token is not one of ours"))
}

#[tonic::async_trait]
impl Control for Face {
    async fn init_cluster(&self, request: Request<proto::InitClusterRequest>) -> Answer<proto::InitClusterResponse> {
        let request = request.into_inner();
        let name = parsed(request.name.as_deref().unwrap_or("symphony").parse::<Name>())?;
        let spec = request.spec.map(ClusterSpec::from).unwrap_or_default();
        if let Some(fault) = spec.fault() {
            return Err(Status::invalid_argument(fault));
        }
        let (member, created) = self.0.init(name, spec).await?;
        Ok(Response::new(proto::InitClusterResponse {
            cluster_id: member.cluster.meta.id.to_string(),
            cluster_name: member.cluster.meta.name.to_string(),
            service_id: member.service.to_string(),
            created,
        }))
    }

    async fn get_manager_status(
        &self,
        _request: Request<proto::GetManagerStatusRequest>,
    ) -> Answer<proto::GetManagerStatusResponse> {
        let mut status = proto::GetManagerStatusResponse {
            store: self.0.store_text(),
            version: crate::runtime::VERSION.into(),
            address: self.0.address.clone(),
            ..Default::default()
        };
        match self.0.stage() {
            Stage::Starting(reason) => (status.state, status.message) = ("starting".into(), Some(reason)),
            Stage::Uninitialised(note) => (status.state, status.message) = ("uninitialised".into(), note),
            Stage::Stranded(reason) => (status.state, status.message) = ("stranded".into(), Some(reason)),
            Stage::Member(member) => {
                status.state = "member".into();
                status.service_id = Some(member.service.to_string());
                status.cluster_id = Some(member.cluster.meta.id.to_string());
                status.cluster_name = Some(member.cluster.meta.name.to_string());
                status.leader = member.view.read().leader.as_ref().map(|leader| leader.value.to_string());
            }
        }
        Ok(Response::new(status))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Answer<proto::Object> {
        let member = self.0.member()?;
        let request = request.into_inner();
        let kind = malformed(kind_of(request.kind))?;
        let object = find(&member.view.read(), kind, &request.reference)?;
        answer(&object)
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Answer<proto::ListResponse> {
        let member = self.0.member()?;
        let request = request.into_inner();
        let limit = match usize::try_from(request.page_size) {
            Ok(0) | Err(_) => PAGE,
            Ok(size) => size.min(PAGE),
        };
        let after = &request.page_token;
        let view = member.view.read();
        let (objects, more) = match malformed(kind_of(request.kind))? {
            Kind::Service => page(&view, token(after)?, limit, Object::Service),
            Kind::Pool => page(&view, token(after)?, limit, Object::Pool),
            Kind::Volume => page(&view, token(after)?, limit, Object::Volume),
        };
        drop(view);
        let last = objects.last().cloned().filter(|_| more);
        let next_page_token = match last {
            Some(last) => malformed(Object::try_from(last))?.id(),
            None => String::new(),
        };
        Ok(Response::new(proto::ListResponse { objects, next_page_token }))
    }

    type WatchStream = ReceiverStream<Result<proto::WatchResponse, Status>>;

    async fn watch(&self, request: Request<proto::GetRequest>) -> Answer<Self::WatchStream> {
        let member = self.0.member()?;
        let request = request.into_inner();
        let kind = malformed(kind_of(request.kind))?;
        let object = find(&member.view.read(), kind, &request.reference)?;
        let (sender, receiver) = mpsc::channel(4);
        let id = object.id();
        member.group.spawn_until_end(watch_object(member.clone(), kind, id, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn remove_service(&self, request: Request<proto::RemoveServiceRequest>) -> Answer<proto::Object> {
        let member = self.0.member()?;
        let request = request.into_inner();
        let id = plan::find_service(&member.view.read(), &request.id)?;
        let removed = loop {
            let plan = move |draft: &mut super::draft::Draft<'_>| plan::remove_service(draft, id, request.lost);
            if let Some(removed) = member.writer.write(plan).await? {
                break removed;
            }
        };
        tracing::info!(service = %id, lost = request.lost, "a service was removed");
        answer(&Object::Service(removed))
    }

    async fn create_pool(&self, request: Request<proto::CreatePoolRequest>) -> Answer<proto::Object> {
        let member = self.0.member()?;
        let request = request.into_inner();
        let name = parsed(request.name.parse::<Name>())?;
        let driver = request.driver.ok_or_else(|| Status::invalid_argument("a pool needs a driver"))?;
        let driver = malformed(Driver::try_from(driver))?;
        let (id, service) = (PoolId::generate(), optional(&request.service));
        let plan =
            move |draft: &mut super::draft::Draft<'_>| plan::create_pool(draft, id, &name, service.as_deref(), &driver);
        answer(&Object::Pool(member.writer.write(plan).await?))
    }

    async fn remove_pool(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::Object> {
        let member = self.0.member()?;
        let reference = request.into_inner().reference;
        let pool = member.writer.write(move |draft| plan::remove_pool(draft, &reference)).await?;
        answer(&Object::Pool(pool))
    }

    async fn create_volume(&self, request: Request<proto::CreateVolumeRequest>) -> Answer<proto::Object> {
        let member = self.0.member()?;
        let request = request.into_inner();
        let name = parsed(request.name.parse::<Name>())?;
        let (id, size, pool) = (VolumeId::generate(), ByteSize::bytes(request.size), optional(&request.pool));
        let plan =
            move |draft: &mut super::draft::Draft<'_>| plan::create_volume(draft, id, &name, size, pool.as_deref());
        answer(&Object::Volume(member.writer.write(plan).await?))
    }

    async fn resize_volume(&self, request: Request<proto::ResizeVolumeRequest>) -> Answer<proto::Object> {
        let member = self.0.member()?;
        let proto::ResizeVolumeRequest { reference, size } = request.into_inner();
        let plan =
            move |draft: &mut super::draft::Draft<'_>| plan::resize_volume(draft, &reference, ByteSize::bytes(size));
        answer(&Object::Volume(member.writer.write(plan).await?))
    }

    async fn remove_volume(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::Object> {
        let member = self.0.member()?;
        let reference = request.into_inner().reference;
        let volume = member.writer.write(move |draft| plan::remove_volume(draft, &reference)).await?;
        answer(&Object::Volume(volume))
    }

    async fn check(&self, _request: Request<proto::CheckRequest>) -> Answer<proto::CheckResponse> {
        let member = self.0.member()?;
        let findings = check::check(&member).await.map_err(Refusal::from)?;
        Ok(Response::new(proto::CheckResponse {
            faults: findings.faults,
            remarks: findings.remarks,
            objects_checked: findings.objects as u64,
            services_asked: findings.services_asked as u64,
        }))
    }
}

/// Sends an object now and after every change until it is gone or nobody listens.
async fn watch_object(
    member: Arc<Member>,
    kind: Kind,
    id: String,
    sender: mpsc::Sender<Result<proto::WatchResponse, Status>>,
) {
    let mut changes = member.view.changes();
    let mut last = None;
    loop {
        changes.mark_unchanged();
        let object = find(&member.view.read(), kind, &id).ok();
        if last.as_ref() != Some(&object) {
            let response = proto::WatchResponse { object: object.as_ref().map(Into::into) };
            if sender.send(Ok(response)).await.is_err() || object.is_none() {
                return;
            }
            last = Some(object);
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

#[tonic::async_trait]
impl Enrollment for Face {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Answer<proto::JoinResponse> {
        let member = self.0.member()?;
        enrollment::join(&member, request.into_inner()).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl Dispatcher for Face {
    type SessionStream = ReceiverStream<Result<proto::ManagerMessage, Status>>;

    async fn session(&self, request: Request<Streaming<proto::ServiceMessage>>) -> Answer<Self::SessionStream> {
        let member = self.0.member()?;
        let peer = request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.peer.clone());
        let (sender, receiver) = mpsc::channel(64);
        let inbound = request.into_inner();
        let group = member.group.clone();
        group.spawn(dispatcher::hold(member, inbound, sender, peer));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
