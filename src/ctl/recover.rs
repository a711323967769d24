//! `ctl manager recover`: a new cluster of what is on block services' disks.

use super::connect::{Session, answer};
use super::output::{self, fields};
use super::wait::spinner;
use crate::model::ClusterSpec;
use crate::rpc::proto;
use anyhow::Result;
use serde_json::json;

pub const RECOVERING: &str = "\
The store, and with it the cluster's certificate authority, is gone and there is no backup. On a manager with an empty
store:
  symphony ctl --socket=.config/manager-01/control.sock manager recover
then on each block service's host, as for any init, with a token where the manager is on another one:
  symphony ctl --socket=.config/block-01/control.sock block init HOST:15760 --recover
Each goes on serving meanwhile; its pools, volumes and snapshots come back under their ids and names as it joins. What was
only in the store is gone: clients and their certificates, attachments, tokens, limits, rules, images' names, the record
of changes. Then look, and end it:
  symphony ctl … manager recover --status
  symphony ctl … manager recover --finish";

pub async fn run(session: &Session, name: Option<String>, finish: bool, status: bool) -> Result<()> {
    if finish || status {
        return tell(session, finish).await;
    }
    let mut manager = session.manager().await?;
    let request = proto::InitClusterRequest { name, spec: Some(ClusterSpec::default().into()), recover: true };
    let done = answer(manager.client.init_cluster(request).await, "manager")?;
    let document = json!({
        "cluster": {"id": done.cluster_id, "name": done.cluster_name},
        "service": {"id": done.service_id},
        "created": done.created,
    });
    output::one(session.format, &document, &done.service_id, |_| {
        format!(
            "cluster '{}' is recovering, by manager {}: now run `symphony ctl … block init HOST:PORT --recover` for every \
             block service, and look with `manager recover --status`\n\
             Clients and their certificates, attachments, tokens and images are gone: make them anew.\n",
            done.cluster_name, done.service_id
        )
    })
}

async fn tell(session: &Session, finish: bool) -> Result<()> {
    let mut recovery = session.recovery().await?;
    let bar = spinner("looking at the disks".into());
    let told = match finish {
        true => recovery.finish_recovery(proto::FinishRecoveryRequest {}).await,
        false => recovery.get_recovery(proto::GetRecoveryRequest {}).await,
    };
    bar.finish_and_clear();
    let told = answer(told, "manager")?;
    let state = if told.recovering { "recovering" } else { "not recovering" };
    let document = json!({
        "recovering": told.recovering,
        "block_services": told.block_services,
        "pools": told.pools,
        "volumes": told.volumes,
        "snapshots": told.snapshots,
        "remarks": told.remarks,
    });
    output::one(session.format, &document, state, |_| {
        let remarks: String = told.remarks.iter().map(|remark| format!("note: {remark}\n")).collect();
        let counts = fields(&[
            ("State", state.to_owned()),
            ("Block services", told.block_services.to_string()),
            ("Pools", told.pools.to_string()),
            ("Volumes", told.volumes.to_string()),
            ("Snapshots", told.snapshots.to_string()),
        ]);
        counts + &remarks
    })
}
