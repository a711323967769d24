//! What operators ask: thin translations between gRPC and plans, lookups and watches.

use super::audit::author;
use super::draft::Draft;
use super::plan;
use super::refusal::Refusal;
use super::requests::{malformed, optional, parsed, wanted_snapshots, wanted_volume};
use super::view::{Stored, View};
use super::{Manager, access, check, dispatcher, enrollment, events, images, standing};
use crate::manager::member::Member;
use crate::model::*;
use crate::rpc::{Caller, Fault, Malformed, Peer, proto};
use proto::{control_server::Control, dispatcher_server::Dispatcher, enrollment_server::Enrollment};
use std::path::PathBuf;
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

fn answer(object: impl Into<proto::Object>) -> Answer<proto::Object> {
    Ok(Response::new(object.into()))
}

fn find(view: &View, kind: Kind, reference: &str) -> Result<Object, Refusal> {
    let missing = || Refusal::NoSuch { kind, reference: reference.chars().take(80).collect() };
    let found = match kind {
        Kind::Service => view.get(plan::find_service(view, reference)?).cloned().map(Object::Service),
        Kind::Pool => named(view, reference, Object::Pool),
        Kind::Volume => named(view, reference, Object::Volume),
        Kind::Snapshot => named(view, reference, Object::Snapshot),
        Kind::Image => named(view, reference, Object::Image),
        Kind::Attachment => {
            let id = plan::resolve_attachment(view, reference);
            id.and_then(|id| view.get::<Attachment>(id)).cloned().map(Object::Attachment)
        }
        Kind::Client => named(view, reference, Object::Client),
        Kind::Token => named(view, reference, Object::Token),
    };
    found.ok_or_else(missing)
}

fn named<T: plan::Named>(view: &View, reference: &str, wrap: impl Fn(T) -> Object) -> Option<Object>
where
    T::Id: std::str::FromStr,
{
    plan::resolve::<T>(view, reference).and_then(|id| view.get::<T>(id)).cloned().map(wrap)
}

/// Up to `limit` objects of a table that follow `after`.
fn page<T: Stored>(
    view: &View,
    after: Option<T::Id>,
    limit: usize,
    wrap: impl Fn(T) -> Object,
) -> (Vec<proto::Object>, bool) {
    page_where(view, after, limit, wrap, |_| true)
}

fn page_where<T: Stored>(
    view: &View,
    after: Option<T::Id>,
    limit: usize,
    wrap: impl Fn(T) -> Object,
    wanted: impl Fn(&T) -> bool,
) -> (Vec<proto::Object>, bool) {
    use std::ops::Bound;
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let rest = T::table(view).range((from, Bound::Unbounded)).map(|(_, held)| &*held.value);
    let mut rest = rest.filter(|value| wanted(value));
    let objects = rest.by_ref().take(limit).map(|value| (&wrap(value.clone())).into()).collect();
    (objects, rest.next().is_some())
}

fn token<I: std::str::FromStr>(text: &str) -> Result<Option<I>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Status::invalid_argument("the page token is not one of ours"))
}

impl Face {
    /// Who is to act, and on whose behalf.
    pub(super) fn acting<T>(&self, request: &Request<T>) -> Result<(Arc<Member>, Author), Fault> {
        let member = self.0.member()?;
        let author = author(request, Some(&member.view.read()));
        Ok((member, author))
    }
}

#[tonic::async_trait]
impl Control for Face {
    async fn init_cluster(&self, request: Request<proto::InitClusterRequest>) -> Answer<proto::InitClusterResponse> {
        let author = author(&request, None);
        let request = request.into_inner();
        let name = parsed(request.name.as_deref().unwrap_or("symphony").parse::<Name>())?;
        let spec = request.spec.map(ClusterSpec::from).unwrap_or_default();
        if let Some(fault) = spec.fault() {
            return Err(Status::invalid_argument(fault));
        }
        let (member, created) = self.0.init(name, spec, request.recover, author).await?;
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
        Ok(Response::new(standing::status(&self.0)))
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
        let missing =
            |reference: &str| Refusal::NoSuch { kind: Kind::Volume, reference: reference.chars().take(80).collect() };
        let volume = optional(&request.volume)
            .map(|reference| plan::resolve::<Volume>(&view, &reference).ok_or_else(|| missing(&reference)))
            .transpose()?;
        let (objects, more) = match malformed(kind_of(request.kind))? {
            Kind::Service => page(&view, token(after)?, limit, Object::Service),
            Kind::Pool => page(&view, token(after)?, limit, Object::Pool),
            // What keeps an image's bytes, or is one end of a move, is nobody's volume.
            Kind::Volume => {
                page_where(&view, token(after)?, limit, Object::Volume, |volume: &Volume| !volume.is_hidden())
            }
            Kind::Image => page(&view, token(after)?, limit, Object::Image),
            Kind::Snapshot => {
                let wanted = |held: &Snapshot| volume.is_none_or(|volume| held.spec.volume == volume);
                page_where(&view, token(after)?, limit, Object::Snapshot, wanted)
            }
            Kind::Attachment => {
                let wanted = |held: &Attachment| volume.is_none_or(|volume| held.spec.volume == volume);
                page_where(&view, token(after)?, limit, Object::Attachment, wanted)
            }
            Kind::Client => page(&view, token(after)?, limit, Object::Client),
            Kind::Token => page(&view, token(after)?, limit, Object::Token),
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
        let caller = peer_of(&request)?.caller().clone();
        let request = request.into_inner();
        let kind = malformed(kind_of(request.kind))?;
        let object = find(&member.view.read(), kind, &request.reference)?;
        let (sender, receiver) = mpsc::channel(4);
        let id = object.id();
        member.group.spawn_until_end(watch_object(member.clone(), caller, kind, id, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn remove_service(&self, request: Request<proto::RemoveServiceRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let request = request.into_inner();
        let id = plan::find_service(&member.view.read(), &request.id)?;
        let removed = loop {
            let author = author.clone();
            let plan = move |draft: &mut Draft<'_>| plan::remove_service(draft, &author, id, request.lost);
            if let Some(removed) = member.writer.write(plan).await? {
                break removed;
            }
        };
        tracing::info!(service = %id, lost = request.lost, "a service was removed");
        answer(&Object::Service(removed))
    }

    async fn create_pool(&self, request: Request<proto::CreatePoolRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let request = request.into_inner();
        let name = parsed(request.name.parse::<Name>())?;
        let driver = request.driver.ok_or_else(|| Status::invalid_argument("a pool needs a driver"))?;
        let driver = malformed(Driver::try_from(driver))?;
        let (id, service, rules) =
            (PoolId::generate(), optional(&request.service), request.rules.unwrap_or_default().into());
        let plan = move |draft: &mut Draft<'_>| {
            plan::create_pool(draft, &author, id, &name, service.as_deref(), &driver, rules)
        };
        answer(&Object::Pool(member.writer.write(plan).await?))
    }

    async fn set_pool(&self, request: Request<proto::SetPoolRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::SetPoolRequest { reference, rules, ceiling } = request.into_inner();
        let ceiling = ceiling.map(|change| change.to.map(ByteSize::bytes));
        let changes = rules.unwrap_or_default().into();
        let plan = move |draft: &mut Draft<'_>| plan::set_pool(draft, &author, &reference, changes, ceiling);
        answer(&Object::Pool(member.writer.write(plan).await?))
    }

    async fn extend_pool(&self, request: Request<proto::ExtendPoolRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::ExtendPoolRequest { reference, more, cancel } = request.into_inner();
        let more = Devices::from(more.unwrap_or_default());
        let cancel: Vec<PathBuf> = cancel.into_iter().map(PathBuf::from).collect();
        let plan = move |draft: &mut Draft<'_>| plan::extend_pool(draft, &author, &reference, &more, &cancel);
        answer(&Object::Pool(member.writer.write(plan).await?))
    }

    async fn remove_pool(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let reference = request.into_inner().reference;
        let pool = member.writer.write(move |draft| plan::remove_pool(draft, &author, &reference)).await?;
        answer(&Object::Pool(pool))
    }

    async fn create_volume(&self, request: Request<proto::CreateVolumeRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let request = request.into_inner();
        let (id, name) = (VolumeId::generate(), parsed(request.name.parse::<Name>())?);
        let wanted = wanted_volume(request);
        let plan = move |draft: &mut Draft<'_>| plan::create_volume(draft, &author, id, &name, &wanted);
        answer(&Object::Volume(member.writer.write(plan).await?))
    }

    async fn resize_volume(&self, request: Request<proto::ResizeVolumeRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::ResizeVolumeRequest { reference, size, allow_shrink } = request.into_inner();
        let size = ByteSize::bytes(size);
        let plan = move |draft: &mut Draft<'_>| plan::resize_volume(draft, &author, &reference, size, allow_shrink);
        answer(&Object::Volume(member.writer.write(plan).await?))
    }

    async fn set_volume(&self, request: Request<proto::SetVolumeRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::SetVolumeRequest { reference, iops, bandwidth, burst_ms } = request.into_inner();
        let to = |change: Option<proto::LimitChange>| change.map(|change| change.to);
        let changes = plan::LimitChanges { iops: to(iops), bandwidth: to(bandwidth), burst_ms: to(burst_ms) };
        let plan = move |draft: &mut Draft<'_>| plan::limit_volume(draft, &author, &reference, changes);
        answer(&Object::Volume(member.writer.write(plan).await?))
    }

    async fn remove_volume(&self, request: Request<proto::RemoveVolumeRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::RemoveVolumeRequest { reference, wipe } = request.into_inner();
        let plan = move |draft: &mut Draft<'_>| plan::remove_volume(draft, &author, &reference, wipe);
        answer(&Object::Volume(member.writer.write(plan).await?))
    }

    async fn move_volume(&self, request: Request<proto::MoveVolumeRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::MoveVolumeRequest { reference, pool, cancel } = request.into_inner();
        let copy = VolumeId::generate();
        let plan = move |draft: &mut Draft<'_>| match cancel {
            true => plan::cancel_move(draft, &author, &reference),
            false => plan::move_volume(draft, &author, &reference, &pool, copy),
        };
        answer(&Object::Volume(member.writer.write(plan).await?))
    }

    async fn revert_volume(&self, request: Request<proto::RevertVolumeRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::RevertVolumeRequest { volume, snapshot } = request.into_inner();
        let plan = move |draft: &mut Draft<'_>| plan::revert_volume(draft, &author, &volume, &snapshot);
        answer(&Object::Volume(member.writer.write(plan).await?))
    }

    async fn create_snapshots(&self, request: Request<proto::CreateSnapshotsRequest>) -> Answer<proto::ListResponse> {
        let (member, author) = self.acting(&request)?;
        let (wanted, room) = wanted_snapshots(request.into_inner())?;
        let plan = move |draft: &mut Draft<'_>| plan::create_snapshots(draft, &author, &wanted, room);
        let made = member.writer.write(plan).await?;
        let objects = made.into_iter().map(|snapshot| (&Object::Snapshot(snapshot)).into()).collect();
        Ok(Response::new(proto::ListResponse { objects, next_page_token: String::new() }))
    }

    async fn remove_snapshot(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let reference = request.into_inner().reference;
        let plan = move |draft: &mut Draft<'_>| plan::remove_snapshot(draft, &author, &reference, None);
        answer(&Object::Snapshot(member.writer.write(plan).await?))
    }

    async fn wipe_snapshot(&self, request: Request<proto::WipeSnapshotRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::WipeSnapshotRequest { reference, wipe } = request.into_inner();
        let plan = move |draft: &mut Draft<'_>| plan::remove_snapshot(draft, &author, &reference, Some(wipe));
        answer(&Object::Snapshot(member.writer.write(plan).await?))
    }

    async fn import_image(&self, request: Request<proto::ImportImageRequest>) -> Answer<proto::ImportImageResponse> {
        let (member, author) = self.acting(&request)?;
        let caller = peer_of(&request)?.caller().clone();
        images::import(&member, author, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn record_upload(&self, request: Request<proto::RecordUploadRequest>) -> Answer<proto::Object> {
        images::record_upload(&*self.0.member()?, request.into_inner()).await.map(Response::new)
    }

    async fn seal_image(&self, request: Request<proto::SealImageRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        images::seal(&member, author, request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let reference = request.into_inner().reference;
        let image = member.writer.write(move |draft| plan::remove_image(draft, &author, &reference)).await?;
        answer(&Object::Image(image))
    }

    async fn attach_volume(&self, request: Request<proto::AttachVolumeRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::AttachVolumeRequest { volume, client, read_only, shared } = request.into_inner();
        let (id, access) = (AttachmentId::generate(), plan::Access { volume, client, read_only, shared });
        let plan = move |draft: &mut Draft<'_>| plan::attach_volume(draft, &author, id, &access);
        answer(&Object::Attachment(member.writer.write(plan).await?))
    }

    async fn detach_volume(&self, request: Request<proto::DetachVolumeRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::DetachVolumeRequest { volume, client } = request.into_inner();
        let plan = move |draft: &mut Draft<'_>| plan::detach_volume(draft, &author, &volume, &client);
        answer(&Object::Attachment(member.writer.write(plan).await?))
    }

    async fn create_token(&self, request: Request<proto::CreateTokenRequest>) -> Answer<proto::CreateTokenResponse> {
        let (member, author) = self.acting(&request)?;
        access::create_token(&member, author, request.into_inner()).await.map(Response::new)
    }

    async fn revoke_token(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        access::revoke_token(&member, author, request.into_inner()).await.map(Response::new)
    }

    async fn create_client(&self, request: Request<proto::CreateClientRequest>) -> Answer<proto::CreateClientResponse> {
        let (member, author) = self.acting(&request)?;
        access::create_client(&member, author, request.into_inner()).await.map(Response::new)
    }

    async fn remove_client(&self, request: Request<proto::RemoveRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        access::remove_client(&member, author, request.into_inner()).await.map(Response::new)
    }

    async fn get_authority(&self, _request: Request<proto::GetAuthorityRequest>) -> Answer<proto::Authority> {
        access::get_authority(&*self.0.member()?).map(Response::new)
    }

    async fn rotate_authority(&self, request: Request<proto::RotateAuthorityRequest>) -> Answer<proto::Authority> {
        let (member, author) = self.acting(&request)?;
        access::rotate_authority(&member, author, request.into_inner()).await.map(Response::new)
    }

    type EventsStream = ReceiverStream<Result<proto::Event, Status>>;

    async fn events(&self, request: Request<proto::EventsRequest>) -> Answer<Self::EventsStream> {
        let member = self.0.member()?;
        let proto::EventsRequest { since, follow } = request.into_inner();
        let (sender, receiver) = mpsc::channel(64);
        member.group.spawn_until_end(events::tell(member.clone(), Timestamp::from_millis(since), follow, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
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
    caller: Caller,
    kind: Kind,
    id: String,
    sender: mpsc::Sender<Result<proto::WatchResponse, Status>>,
) {
    let mut changes = member.view.changes();
    let mut last = None;
    loop {
        changes.mark_unchanged();
        if let Some(refusal) = member.dismisses(&caller) {
            if sender.send(Err(refusal.into())).await.is_err() {
                tracing::debug!("a revoked caller does not hear why its watch ends");
            }
            return;
        }
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
        let (member, author) = self.acting(&request)?;
        let peer = peer_of(&request)?;
        enrollment::join(&member, author, peer.caller(), request.into_inner()).await.map(Response::new)
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Answer<proto::RenewResponse> {
        let member = self.0.member()?;
        let peer = peer_of(&request)?;
        enrollment::renew(&member, peer.caller(), &peer.peer, request.into_inner()).await.map(Response::new)
    }
}

/// Where a request comes from; the listener says so of every one.
fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    let unknown = || Status::permission_denied("this connection says nothing of its peer");
    request.extensions().get::<Peer>().cloned().ok_or_else(unknown)
}

#[tonic::async_trait]
impl Dispatcher for Face {
    type SessionStream = ReceiverStream<Result<proto::ManagerMessage, Status>>;

    async fn session(&self, request: Request<Streaming<proto::ServiceMessage>>) -> Answer<Self::SessionStream> {
        let member = self.0.member()?;
        let peer = peer_of(&request)?;
        let (sender, receiver) = mpsc::channel(64);
        let inbound = request.into_inner();
        let group = member.group.clone();
        group.spawn(dispatcher::hold(member, inbound, sender, peer));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
