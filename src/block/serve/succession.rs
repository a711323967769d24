//! Passing from a cluster whose store is gone to one that is made of the disks, while everything is served.
//!
//! The new membership is won beside the old one, in a directory of its own, and only then takes its place:
//!
//! ```text
//!   recovery/{identity.json,tls/} whole ──▶ ledger names its heir ──▶ identity.json is the new one ──▶ tls/ is the new one
//! ```
//! Killed before the third step, the service is still the old one; from there on, [`complete`] ends what was begun at the
//! next start, and the ledger is its heir's.

use super::{Active, Block, internal};
use crate::block::agent::Notice;
use crate::block::link::LinkState;
use crate::block::tls_dir::TlsDir;
use crate::host::directory::FileError;
use crate::host::files::make_private_directory;
use crate::host::{ConfigDir, DocumentError, load_document, save_document};
use crate::model::Identity;
use crate::pki::JoinToken;
use crate::rpc::{Fault, FaultKind};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Where the new membership is won.
fn side(dir: &ConfigDir) -> PathBuf {
    dir.path().join("recovery")
}

fn identity(side: &Path) -> PathBuf {
    side.join("identity.json")
}

fn tls(side: &Path) -> PathBuf {
    side.join("tls")
}

impl Block {
    /// Lets another membership go on with what this one holds.
    ///
    /// # Errors
    /// If a manager of the old cluster still answers, the new cluster is not recovering, or a disk does not take it: then
    /// the old membership goes on.
    pub(super) async fn pass_over(
        self: &Arc<Self>,
        active: &Arc<Active>,
        address: &str,
        token: Option<&JoinToken>,
    ) -> Result<Identity, Fault> {
        if let LinkState::Connected(manager) = active.link() {
            return Err(Fault::new(
                FaultKind::Precondition,
                format!(
                    "this block service is connected to manager {manager} of cluster '{}': there is nothing to recover from",
                    active.cluster_name
                ),
            ));
        }
        let side = side(&self.dir);
        make_private_directory(&side).map_err(|error| internal(&error))?;
        let applicant = self.applicant(identity(&side), tls(&side), true);
        let door = applicant.open(address, token).await?;
        let next = applicant.join(door, token).await?;
        let Some(membership) = next.membership.clone() else {
            return Err(Fault::new(FaultKind::Internal, "the init left no membership"));
        };
        let (reply, kept) = oneshot::channel();
        let bequest = Notice::Bequeath { heir: next.service, cluster: active.cluster, reply };
        let told = active.notices.send(bequest).await.is_ok();
        if !told || !kept.await.unwrap_or(false) {
            return Err(Fault::new(FaultKind::Internal, "the ledger cannot be written: the old membership goes on"));
        }
        let before: Option<Identity> = load_document(&self.dir.identity()).map_err(|error| internal(&error))?;
        // Nobody writes identity or certificates from here on.
        active.succeeded.notify_one();
        active.parted.notified().await;
        if let Err(error) = save_document(&self.dir.identity(), &next) {
            if let Some((before, membership)) = before.as_ref().and_then(|it| Some((it, it.membership.as_ref()?))) {
                self.speak(before, membership, active.holding.clone());
            }
            return Err(internal(&error));
        }
        complete(&self.dir).map_err(|error| internal(&error))?;
        active.worker.belong_to(membership.cluster);
        if active.notices.send(Notice::Inherit).await.is_err() {
            return Err(Fault::new(FaultKind::Unavailable, "this service stops"));
        }
        tracing::warn!(
            from = %active.cluster, to = %membership.cluster, service = %next.service,
            "this service belongs to another cluster now, and serves on"
        );
        self.speak(&next, &membership, active.holding.inherited());
        Ok(next)
    }
}

/// Ends a succession that was cut off after the identity had changed; nothing where there is none.
///
/// # Errors
/// If files cannot be read, moved or removed; it can be repeated.
pub(super) fn complete(dir: &ConfigDir) -> Result<(), DocumentError> {
    let side = side(dir);
    let Some(next) = load_document::<Identity>(&identity(&side))? else { return Ok(()) };
    let own: Option<Identity> = load_document(&dir.identity())?;
    let same = own.is_some_and(|own| own.service == next.service && own.membership.is_some());
    if !same {
        return Ok(());
    }
    let (from, to) = (tls(&side), dir.tls());
    if from.exists() {
        let put_aside = TlsDir::new(to.clone()).put_aside("former");
        put_aside.map_err(|error| FileError::new("put aside", &to, io::Error::other(error)))?;
        std::fs::rename(&from, &to).map_err(|error| FileError::new("move into place", &from, error))?;
        crate::host::files::sync_dir(dir.path())?;
    }
    std::fs::remove_dir_all(&side).map_err(|error| FileError::new("remove", &side, error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterId, Membership, ServiceId, ServiceType};
    use std::fs;

    fn member(number: u8) -> Identity {
        let cluster_name = "prod".parse().unwrap();
        let membership =
            Membership { cluster: ClusterId::from_bytes([number; 16]), cluster_name, managers: Vec::new() };
        let service = ServiceId::from_bytes([number; 16]);
        Identity { service, service_type: ServiceType::Block, membership: Some(membership) }
    }

    /// What a service has on disk before anything of the new membership has taken its place.
    fn begun(path: &Path) -> ConfigDir {
        let dir = ConfigDir::open(path, ServiceType::Block).unwrap();
        save_document(&dir.identity(), &member(1)).unwrap();
        let side = side(&dir);
        make_private_directory(&side).unwrap();
        save_document(&identity(&side), &member(2)).unwrap();
        for (directory, key) in [(dir.tls(), "old"), (tls(&side), "new")] {
            make_private_directory(&directory).unwrap();
            fs::write(directory.join("key.pem"), key).unwrap();
        }
        dir
    }

    /// The steps as they are taken, one a call.
    const STEPS: [fn(&ConfigDir); 5] = [
        |dir| save_document(&dir.identity(), &member(2)).unwrap(),
        |dir| drop(TlsDir::new(dir.tls()).put_aside("former").unwrap()),
        |dir| fs::rename(tls(&side(dir)), dir.tls()).unwrap(),
        |dir| fs::remove_file(identity(&side(dir))).unwrap(),
        |dir| fs::remove_dir_all(side(dir)).unwrap(),
    ];

    #[test]
    fn a_succession_that_is_killed_between_any_two_steps_is_whole_at_the_next_start() {
        for taken in 1..=STEPS.len() {
            let keep = tempfile::tempdir().unwrap();
            let dir = begun(keep.path());
            STEPS.iter().take(taken).for_each(|step| step(&dir));
            // Starts may be killed, too.
            for _start in 0..2 {
                complete(&dir).unwrap();
                let own: Option<Identity> = load_document(&dir.identity()).unwrap();
                assert_eq!(own, Some(member(2)), "after {taken} steps");
                assert_eq!(fs::read_to_string(dir.tls().join("key.pem")).unwrap(), "new", "after {taken} steps");
            }
            assert!(!identity(&side(&dir)).exists(), "after {taken} steps");
            let kept = fs::read_dir(keep.path()).unwrap().map(|entry| entry.unwrap().path().join("key.pem"));
            let old = kept.filter(|key| fs::read_to_string(key).is_ok_and(|text| text == "old")).count();
            assert_eq!(old, 1, "the former key is put aside once, after {taken} steps");
        }
    }

    #[test]
    fn before_the_first_step_the_service_is_still_the_old_one() {
        let keep = tempfile::tempdir().unwrap();
        let dir = begun(keep.path());
        complete(&dir).unwrap();
        let own: Option<Identity> = load_document(&dir.identity()).unwrap();
        assert_eq!(own, Some(member(1)));
        assert_eq!(fs::read_to_string(dir.tls().join("key.pem")).unwrap(), "old");
        assert!(identity(&side(&dir)).exists(), "it is gone on with when it is asked for again");
        // A candidate that never became a member is nobody's heir.
        save_document(&identity(&side(&dir)), &Identity { membership: None, ..member(3) }).unwrap();
        complete(&dir).unwrap();
        assert_eq!(fs::read_to_string(dir.tls().join("key.pem")).unwrap(), "old");
    }
}
