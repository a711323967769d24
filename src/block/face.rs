//! The block service's own control socket: init, status and restart. Everything else is asked of a manager.

use super::agent::Notice;
use super::keeper::Certification;
use super::link::LinkState;
use super::serve::{Block, Stage};
use crate::rpc::{Fault, proto};
use proto::block_control_server::BlockControl;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

/// The gRPC face of a block service. Cheap to clone.
#[derive(Clone)]
pub struct Face(pub Arc<Block>);

#[tonic::async_trait]
impl BlockControl for Face {
    async fn init_block(
        &self,
        request: Request<proto::InitBlockRequest>,
    ) -> Result<Response<proto::InitBlockResponse>, Status> {
        let request = request.into_inner();
        let identity = self.0.init(&request.manager, request.token.as_deref(), request.recover).await?;
        let membership = identity.membership.ok_or_else(|| Status::internal("the init left no membership"))?;
        Ok(Response::new(proto::InitBlockResponse {
            service_id: identity.service.to_string(),
            cluster_id: membership.cluster.to_string(),
            cluster_name: membership.cluster_name.to_string(),
        }))
    }

    async fn get_block_status(
        &self,
        _request: Request<proto::GetBlockStatusRequest>,
    ) -> Result<Response<proto::GetBlockStatusResponse>, Status> {
        let mut status = proto::GetBlockStatusResponse {
            version: crate::runtime::VERSION.into(),
            addresses: Some((&self.0.addresses).into()),
            certificate: self.0.certificate(),
            nbd_engine: self.0.nbd_engine.to_owned(),
            instance: self.0.instance().to_string(),
            passage: self.0.passage().map(|passage| proto::Passage {
                from: passage.from.to_string(),
                went_on: u32::try_from(passage.went_on).unwrap_or(u32::MAX),
                ended: u32::try_from(passage.ended).unwrap_or(u32::MAX),
                settled: passage.settled,
            }),
            ..Default::default()
        };
        match self.0.stage() {
            Stage::Uninitialised(note) => (status.state, status.message) = ("uninitialised".into(), note),
            Stage::Member(active) => {
                status.service_id = Some(active.service.to_string());
                status.cluster_id = Some(active.cluster.to_string());
                match active.link() {
                    LinkState::Connected(manager) => {
                        (status.state, status.manager) = ("connected".into(), Some(manager));
                    }
                    LinkState::Unknown(reason) => (status.state, status.message) = ("unknown".into(), Some(reason)),
                    LinkState::Connecting(reason) => (status.state, status.message) = ("connecting".into(), reason),
                    LinkState::Keyless(reason) => (status.state, status.message) = ("keyless".into(), Some(reason)),
                    LinkState::Removed => status.state = "removed".into(),
                }
                status.certificate_message = match active.certification() {
                    Certification::Good(trouble) => trouble.map(|why| format!("it could not be renewed yet: {why}")),
                    Certification::Wanting(reason) | Certification::Keyless(reason) => Some(reason),
                    Certification::Removed => None,
                };
                let (reply, count) = oneshot::channel();
                if active.notices.send(Notice::Count(reply)).await.is_ok()
                    && let Ok((pools, volumes)) = count.await
                {
                    status.pools = u32::try_from(pools).unwrap_or(u32::MAX);
                    status.volumes = u32::try_from(volumes).unwrap_or(u32::MAX);
                }
            }
        }
        Ok(Response::new(status))
    }
    async fn restart_block(
        &self,
        request: Request<proto::RestartBlockRequest>,
    ) -> Result<Response<proto::RestartBlockResponse>, Status> {
        let executable = request.into_inner().executable.map(PathBuf::from);
        Err(Fault::from(self.0.restart(executable.as_deref()).await).into())
    }
}
