//! Where pools of this host are and were, on disk: what outlives the ledger when the service is taken out of its cluster.
//!
//! A pool is remembered before its place is touched and forgotten once its release is done. So whatever bears a pool's
//! mark and belongs to nobody is found again, whoever the service is by then. Never here: whether a pool is still there.

use crate::host::{Document, DocumentError, load_document, put_aside, save_document};
use crate::model::{PoolId, PoolPlace};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// `places.json`.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Page {
    pools: BTreeMap<PoolId, PoolPlace>,
}

impl Document for Page {
    const FORMAT: &'static str = "symphony places";
    const VERSION: u32 = 1;
}

/// See the module's text.
pub struct Places {
    path: PathBuf,
    page: Mutex<Page>,
}

impl Places {
    /// What was remembered; nothing if there is no such file. A damaged one is put aside under another name.
    ///
    /// # Errors
    /// If the file cannot be read or put aside.
    pub fn open(path: PathBuf) -> Result<Self, DocumentError> {
        let page = match load_document::<Page>(&path) {
            Ok(page) => page.unwrap_or_default(),
            Err(error) if error.is_damage() => {
                let aside = put_aside(&path, "damaged")?;
                tracing::error!(%error, path = %aside.display(), "the list of pools' places is damaged; it was put aside");
                Page::default()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { path, page: Mutex::new(page) })
    }

    /// # Errors
    /// If the disk does not take it; it is then not remembered.
    pub fn remember(&self, pool: PoolId, place: &PoolPlace) -> Result<(), DocumentError> {
        self.change(|page| page.pools.insert(pool, place.clone()).as_ref() != Some(place))
    }

    /// # Errors
    /// If the disk does not take it; it is then still remembered.
    pub fn forget(&self, pool: PoolId) -> Result<(), DocumentError> {
        self.change(|page| page.pools.remove(&pool).is_some())
    }

    pub fn all(&self) -> BTreeMap<PoolId, PoolPlace> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner).pools.clone()
    }

    /// The lock is held over the writing, so that an older page never follows a newer one.
    fn change(&self, change: impl FnOnce(&mut Page) -> bool) -> Result<(), DocumentError> {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = page.clone();
        if change(&mut next) {
            save_document(&self.path, &next)?;
            *page = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterId, Driver};

    fn place(name: &str) -> PoolPlace {
        let driver = Driver::File { path: format!("/srv/{name}").into(), limit: None };
        PoolPlace { cluster: ClusterId::from_bytes([1; 16]), name: name.into(), driver }
    }

    #[test]
    fn places_are_found_again_until_they_are_forgotten() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("places.json");
        let (one, two) = (PoolId::from_bytes([1; 16]), PoolId::from_bytes([2; 16]));
        let places = Places::open(path.clone()).unwrap();
        places.remember(one, &place("one")).unwrap();
        places.remember(two, &place("two")).unwrap();
        places.remember(two, &place("three")).unwrap();
        let again = Places::open(path.clone()).unwrap();
        assert_eq!(again.all(), BTreeMap::from([(one, place("one")), (two, place("three"))]));
        again.forget(one).unwrap();
        again.forget(one).unwrap();
        assert_eq!(Places::open(path).unwrap().all(), BTreeMap::from([(two, place("three"))]));
    }

    #[test]
    fn a_damaged_list_is_put_aside_and_what_cannot_be_written_is_not_remembered() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("places.json");
        std::fs::write(&path, "{").unwrap();
        let places = Places::open(path.clone()).unwrap();
        assert!(places.all().is_empty() && !path.exists());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "it was put aside");
        drop(scratch);
        assert!(places.remember(PoolId::from_bytes([1; 16]), &place("one")).is_err());
        assert!(places.all().is_empty());
    }
}
