//! What is asked of a manager about the state as a whole: thin translations between gRPC and backup, restore and move.

use super::audit::author;
use super::backup;
use super::control::Face;
use super::store_config::{EtcdFiles, Password, StoreConfig};
use crate::rpc::proto;
use proto::stores_server::Stores;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl Stores for Face {
    type BackupStream = ReceiverStream<Result<proto::BackupPart, Status>>;

    async fn backup(&self, _request: Request<proto::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let member = self.0.member()?;
        let (sender, receiver) = mpsc::channel(4);
        member.group.spawn_until_end(backup::tell(member.clone(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn restore(
        &self,
        request: Request<Streaming<proto::BackupPart>>,
    ) -> Result<Response<proto::RestoreResponse>, Status> {
        let author = author(&request, None);
        let backup = backup::receive(request.into_inner()).await?;
        let entries = backup.content.len() as u64 + 1;
        let manager = self.0.clone();
        // Not to be cut off half-way because the operator's connection was.
        let restored = self.0.run(async move { manager.restore(backup, author).await }).await?;
        let (member, known) = restored?;
        Ok(Response::new(proto::RestoreResponse {
            cluster_id: member.cluster.meta.id.to_string(),
            cluster_name: member.cluster.meta.name.to_string(),
            service_id: member.service.to_string(),
            known,
            entries,
        }))
    }

    async fn migrate(
        &self,
        request: Request<proto::MigrateRequest>,
    ) -> Result<Response<proto::MigrateResponse>, Status> {
        let author = author(&request, None);
        let target = target(request.into_inner())?;
        let (manager, store) = (self.0.clone(), target.to_string());
        let entries = self.0.run(async move { manager.migrate(target, author).await }).await??;
        Ok(Response::new(proto::MigrateResponse { entries, store }))
    }
}

fn target(request: proto::MigrateRequest) -> Result<StoreConfig, Status> {
    let proto::MigrateRequest { endpoints, prefix, ca, cert, key, user, password_file } = request;
    if endpoints.is_empty() {
        return Err(Status::invalid_argument("no etcd endpoint is named: where is the state to go?"));
    }
    let [ca, cert, key, password_file] = [ca, cert, key, password_file].map(|path| path.map(std::path::PathBuf::from));
    if [&ca, &cert, &key, &password_file].into_iter().flatten().any(|path| !path.is_absolute()) {
        return Err(Status::invalid_argument("paths of files for etcd are to be absolute"));
    }
    let given = || std::env::var("SYMPHONY_ETCD_PASSWORD").ok().map(Password::Given).filter(|_| user.is_some());
    let password = password_file.map(Password::File).or_else(given);
    let access = EtcdFiles { ca, cert, key, user: user.clone(), password };
    Ok(StoreConfig::Etcd { endpoints, prefix, access })
}
