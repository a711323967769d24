//! What operators ask when hosts die: thin translations between gRPC and what [`orphans`](super::orphans) and the planner do.

use super::control::Face;
use super::draft::Draft;
use super::member::Member;
use super::orphans::{self, Wish};
use super::plan::{self, Adoption};
use super::recovering;
use crate::model::*;
use crate::rpc::{Fault, FaultKind, Malformed, proto};
use proto::recovery_server::Recovery;
use std::sync::Arc;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// Objects in an answer: a client that wants more lists them.
const TOLD: usize = 1000;

fn kind_of(number: i32) -> Result<Kind, Status> {
    let kind = proto::Kind::try_from(number).map_err(Malformed::from).and_then(Kind::try_from);
    kind.map_err(|error| Fault::from(error).into())
}

fn name_of(text: &str) -> Result<Option<Name>, Status> {
    let name = (!text.is_empty()).then(|| text.parse::<Name>()).transpose();
    name.map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()).into())
}

#[tonic::async_trait]
impl Recovery for Face {
    async fn list_orphans(&self, request: Request<proto::ListOrphansRequest>) -> Answer<proto::ListOrphansResponse> {
        let member = self.0.member()?;
        let only = orphans::named_service(&member, &request.into_inner().service)?;
        let (orphans, unasked) = orphans::list(&member, only).await;
        let orphans = orphans.iter().map(Into::into).collect();
        Ok(Response::new(proto::ListOrphansResponse { orphans, unasked }))
    }

    async fn adopt_orphan(&self, request: Request<proto::AdoptOrphanRequest>) -> Answer<proto::AdoptOrphanResponse> {
        let (member, author) = self.acting(&request)?;
        let proto::AdoptOrphanRequest { id, name, generation, all, rename, service } = request.into_inner();
        let adoption = Adoption { name: name_of(&name)?, rename, shown: generation.map(Generation::new) };
        let wish = Wish { id, service: orphans::named_service(&member, &service)?, adoption, all };
        let outcome = orphans::adopt(&member, &author, &wish).await?;
        let adopted = outcome.objects.iter().take(TOLD).map(Into::into).collect();
        let count = outcome.objects.len() as u64;
        Ok(Response::new(proto::AdoptOrphanResponse { adopted, count, remarks: outcome.remarks }))
    }

    async fn purge_orphan(&self, request: Request<proto::PurgeOrphanRequest>) -> Answer<proto::Object> {
        let (member, author) = self.acting(&request)?;
        let proto::PurgeOrphanRequest { id, generation, service } = request.into_inner();
        let only = orphans::named_service(&member, &service)?;
        let object = orphans::purge(&member, &author, &id, only, Generation::new(generation)).await?;
        Ok(Response::new((&object).into()))
    }

    async fn get_loss(&self, request: Request<proto::LossRequest>) -> Answer<proto::Loss> {
        let member = self.0.member()?;
        let proto::LossRequest { kind, reference } = request.into_inner();
        loss(&member, kind_of(kind)?, &reference).map(|loss| Response::new(loss.into()))
    }

    async fn close_lost(&self, request: Request<proto::LossRequest>) -> Answer<proto::Loss> {
        let (member, author) = self.acting(&request)?;
        let proto::LossRequest { kind, reference } = request.into_inner();
        let kind = kind_of(kind)?;
        let loss = loss(&member, kind, &reference)?;
        loop {
            let (author, reference) = (author.clone(), reference.clone());
            let plan = move |draft: &mut Draft<'_>| plan::close_lost(draft, &author, kind, &reference);
            if !member.writer.write(plan).await? {
                return Ok(Response::new(loss.into()));
            }
        }
    }

    async fn drain_service(&self, request: Request<proto::DrainServiceRequest>) -> Answer<proto::Drain> {
        let (member, author) = self.acting(&request)?;
        let proto::DrainServiceRequest { service, undo } = request.into_inner();
        let plan = move |draft: &mut Draft<'_>| plan::drain_service(draft, &author, &service, undo);
        let service = member.writer.write(plan).await?;
        Ok(Response::new(drain(&member, service)))
    }

    async fn get_drain(&self, request: Request<proto::DrainServiceRequest>) -> Answer<proto::Drain> {
        let member = self.0.member()?;
        let reference = request.into_inner().service;
        let service = {
            let view = member.view.read();
            let id = plan::find_service(&view, &reference)?;
            view.get::<Service>(id).cloned()
        };
        let missing = || Fault::new(FaultKind::NotFound, format!("there is no service '{reference}'"));
        Ok(Response::new(drain(&member, service.ok_or_else(missing)?)))
    }

    async fn get_recovery(&self, _request: Request<proto::GetRecoveryRequest>) -> Answer<proto::RecoveryStatus> {
        let member = self.0.member()?;
        Ok(Response::new(recovery(&member).await))
    }

    async fn finish_recovery(&self, request: Request<proto::FinishRecoveryRequest>) -> Answer<proto::RecoveryStatus> {
        let (member, author) = self.acting(&request)?;
        // Everybody is told anew behind the end, and cannot be asked meanwhile.
        let told = recovery(&member).await;
        recovering::finish(&member, &author).await?;
        Ok(Response::new(proto::RecoveryStatus { recovering: false, ..told }))
    }
}

/// How far the cluster is with what is on disks.
async fn recovery(member: &Arc<Member>) -> proto::RecoveryStatus {
    let (orphans, unasked) = orphans::list(member, None).await;
    let left = orphans.iter().take(TOLD).map(|orphan| {
        let (id, kind) = (orphan.id, orphan.id.kind());
        format!("{kind} {id} ('{}') on '{}' is an orphan still", orphan.name, orphan.host_name)
    });
    let remarks = recovering::notes(member).into_iter().chain(unasked).chain(left).collect();
    let view = member.view.read();
    let blocks = view.services.values().map(|held| &held.value);
    let blocks = blocks.filter(|it| it.spec.service_type == ServiceType::Block && !it.meta.is_removed()).count();
    proto::RecoveryStatus {
        recovering: view.recovering().is_some(),
        remarks,
        block_services: blocks as u64,
        pools: view.pools.len() as u64,
        volumes: view.volumes.len() as u64,
        snapshots: view.snapshots.len() as u64,
    }
}

fn loss(member: &Arc<Member>, kind: Kind, reference: &str) -> Result<Loss, Status> {
    let view = member.view.read();
    let draft = Draft::new(&view, member.clock.wall(), EventId::generate());
    Ok(plan::loss_of(&draft, kind, reference)?)
}

fn drain(member: &Arc<Member>, service: Service) -> proto::Drain {
    let view = member.view.read();
    let draft = Draft::new(&view, member.clock.wall(), EventId::generate());
    let remnants = plan::remnants(&draft, service.meta.id).into_iter().take(TOLD);
    let remnants = remnants.map(|remnant| proto::Remnant {
        kind: proto::Kind::from(remnant.kind).into(),
        id: remnant.id,
        name: remnant.name,
        advice: remnant.advice,
        progress: remnant.progress.map(Into::into),
    });
    proto::Drain { remnants: remnants.collect(), service: Some((&Object::Service(service)).into()) }
}
