//! Putting a backup into an empty store, and becoming a member of what it holds.
//!
//! Until the last transaction there is no cluster in the store, so that whoever is killed leaves something that a repeat
//! goes on with. The restored state begins a new history: devices may be ahead of it (see [`super::history`]).

use super::backup::Backup;
use super::enrollment::new_service;
use super::filling::Filling;
use super::init::{Manager, internal};
use super::member::Member;
use super::refusal::Refusal;
use super::view::Stored;
use super::{Stage, audit, history};
use crate::host::{load_document, put_aside, save_document};
use crate::model::*;
use crate::rpc::{Fault, FaultKind};
use crate::runtime::VERSION;
use crate::store::{Op, StoreError, encode};
use std::sync::Arc;

impl Manager {
    /// Restores a backup; the member that this manager is then, and whether the backup knew it.
    ///
    /// # Errors
    /// If this manager is a member, its store holds a cluster, or the backup is of another cluster than its identity.
    pub(super) async fn restore(
        self: &Arc<Self>,
        backup: Backup,
        author: Author,
    ) -> Result<(Arc<Member>, bool), Fault> {
        let _one_at_a_time = self.init.lock().await;
        self.check_free()?;
        let (mut identity, known) = self.identity_for(&backup)?;
        let filled = self.fill(&backup, &identity, known, &author).await;
        let cluster = filled.map_err(|refusal| {
            let fault = Fault::from(refusal);
            Fault::new(fault.kind, format!("{}; no cluster was made of the backup", fault.message))
        })?;
        let membership =
            Membership { cluster: cluster.meta.id, cluster_name: cluster.meta.name.clone(), managers: Vec::new() };
        identity.membership = Some(membership.clone());
        save_document(&self.dir.identity(), &identity).map_err(|error| internal(error.to_string()))?;
        tracing::warn!(cluster = %cluster.meta.name, service = %identity.service, known, "a backup was restored");
        let member = self.enter_ready(&identity, &membership).await?;
        Ok((member, known))
    }

    fn check_free(&self) -> Result<(), Fault> {
        match self.stage() {
            Stage::Member(member) => {
                let (service, cluster) = (member.service, &member.cluster.meta.name);
                let text = format!(
                    "this manager is service {service} of cluster '{cluster}': a backup is restored by a manager that is \
                     no member and has an empty store"
                );
                Err(Fault::new(FaultKind::Precondition, text))
            }
            Stage::Starting(reason) => {
                Err(Fault::new(FaultKind::Unavailable, format!("cannot restore anything now: {reason}")))
            }
            // One whose store is empty is in need of just this.
            Stage::Stranded(_) | Stage::Uninitialised(_) => Ok(()),
        }
    }

    /// Who this manager will be: itself, if the backup knows it or has never heard of it.
    fn identity_for(&self, backup: &Backup) -> Result<(Identity, bool), Fault> {
        let path = self.dir.identity();
        let fresh = || self.candidate().map_err(internal);
        let mut identity = match load_document::<Identity>(&path).map_err(|error| internal(error.to_string()))? {
            Some(identity) => identity,
            None => fresh()?,
        };
        if let Some(membership) = &identity.membership
            && membership.cluster != backup.cluster.meta.id
        {
            let text = format!(
                "this manager is a member of cluster '{}' ({}), and the backup is of '{}' ({}): use another config directory",
                membership.cluster_name, membership.cluster, backup.cluster.meta.name, backup.cluster.meta.id
            );
            return Err(Fault::new(FaultKind::Precondition, text));
        }
        let record = backup.view.get::<Service>(identity.service);
        if record.is_some_and(|record| record.meta.is_removed()) {
            put_aside(&path, "refused").map_err(|error| internal(error.to_string()))?;
            identity = fresh()?;
        }
        let known = backup.view.get::<Service>(identity.service).is_some();
        Ok((identity, known))
    }

    async fn fill(
        &self,
        backup: &Backup,
        identity: &Identity,
        known: bool,
        author: &Author,
    ) -> Result<Cluster, Refusal> {
        let now = self.clock.wall();
        let reason = format!("restored from the backup of {}, revision {}", backup.taken_at, backup.revision);
        let remembered = history::recall(self.dir.path()).map_err(|error| Refusal::Store(error.to_string()))?;
        let remembered = remembered.filter(|memory| memory.cluster == backup.cluster.meta.id);
        let epoch = remembered.map_or(Epoch::FIRST, |memory| memory.mark.epoch);
        let rewound = backup.cluster.history.rewound(epoch, now, reason.clone());
        let cluster = Cluster { history: rewound, ..backup.cluster.clone() };
        let filling = Filling::begin(self.store().await?, format!("`manager restore`: {reason}"), now).await?;
        filling.write(&backup.content).await?;
        let event = history::rewind_entry(&cluster, now, author, &reason);
        let mut with = vec![put_event(&event)?];
        if !known {
            let host_name = crate::host::host_name().unwrap_or_else(|_| "unknown".into());
            let record = new_service(identity.service, ServiceType::Manager, host_name, VERSION.into(), now);
            let joined = (Some(Kind::Service), record.meta.id, &record.status.host_name);
            with.push(put_event(&audit::entry(EventId::generate(), now, author, "service.join", joined))?);
            with.push(Op::Put { key: Service::key(record.meta.id), value: encode(&record)?, lease: None });
        }
        filling.seal(&cluster, with).await?;
        Ok(cluster)
    }
}

fn put_event(event: &Event) -> Result<Op, StoreError> {
    Ok(Op::Put { key: Event::key(event.id), value: encode(event)?, lease: None })
}
