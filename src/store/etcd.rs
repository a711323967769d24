//! The store in etcd: production, with as many managers as wanted. Speaks to etcd 3.4 and later.
//!
//! Every request and stream demands that its member has a leader, so that a partitioned one says so and does not hang.
//! Reads go through the quorum. A commit is one etcd transaction, and is sent a second time only if it certainly did
//! not happen the first time.
//!
//! Never here: etcd's own administration (compaction, users, members).
//!
//! Limitations: with an empty prefix the root covers other clusters' prefixes in the same etcd. A store that was put
//! back in time and has since passed the old revision again looks like one that went on.

mod access;
mod endpoints;
mod failure;
mod watch;

use super::{
    Commit, Compare, Entry, Key, LeaseId, Listing, Op, Revision, Store, StoreError, Txn, Watch, whole_seconds,
};
pub use access::EtcdAccess;
use async_trait::async_trait;
use endpoints::{Endpoint, Endpoints, Repeat};
use etcd_client::{CompareOp, GetOptions, GetResponse, KeyValue, PutOptions, TxnOp, WatchOptions};
use failure::Failure;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use watch::Watcher;

/// Keys in one response of a listing.
const PAGE: i64 = 1000;
/// How often a listing that was overtaken by a compaction begins again.
const LISTINGS: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdOptions {
    /// What all keys begin with; `/service/<id>` is found at `<prefix>/service/<id>`. A final slash does not count.
    pub prefix: String,
    /// How long to look for a first endpoint that answers.
    pub connect_timeout: Duration,
    /// How long any request may take, detours included.
    pub request_timeout: Duration,
    pub access: EtcdAccess,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            prefix: String::new(),
            connect_timeout: seconds(3),
            request_timeout: seconds(5),
            access: EtcdAccess::default(),
        }
    }
}

/// See the module's text. All connections end with it.
pub struct EtcdStore {
    endpoints: Arc<Endpoints>,
    keyspace: Keyspace,
}

/// How our keys are spelled in etcd.
#[derive(Clone, Debug)]
struct Keyspace {
    prefix: Arc<str>,
}

impl Keyspace {
    fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').into() }
    }

    fn bytes(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_str().as_bytes()].concat()
    }

    /// The other way round; none of a key that cannot be ours.
    fn key(&self, bytes: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(bytes.strip_prefix(self.prefix.as_bytes())?).ok()?;
        text.starts_with('/').then(|| Key::raw(text))
    }

    /// The first key and the end (exclusive) of what `prefix` covers; no end if that is a single key.
    fn range(&self, prefix: &Key) -> (Vec<u8>, Option<Vec<u8>>) {
        let start = self.bytes(prefix);
        let end = prefix.is_prefix().then(|| {
            let mut end = start.clone();
            if let Some(last) = end.last_mut() {
                // The byte after the slash.
                *last = b'/' + 1;
            }
            end
        });
        (start, end)
    }
}

fn lease_of(number: i64) -> Option<LeaseId> {
    (number != 0).then_some(LeaseId(number))
}

fn entry(key: Key, kv: &KeyValue) -> Entry {
    Entry { key, value: kv.value().to_vec(), revision: Revision(kv.mod_revision()), lease: lease_of(kv.lease()) }
}

fn revision(response: &GetResponse) -> Result<Revision, Failure> {
    let header = response.header().ok_or_else(|| Failure::Unknown("a response without a header".into()))?;
    Ok(Revision(header.revision()))
}

impl EtcdStore {
    /// Connects to the etcd cluster whose members serve clients at `endpoints` (`http://host:port`, or `https://` with
    /// an authority).
    ///
    /// [`StoreError::Unavailable`] after the connect timeout if none answers, naming each and what was wrong with it.
    /// Afterwards the connection looks after itself.
    pub async fn connect(endpoints: &[String], options: EtcdOptions) -> Result<Self, StoreError> {
        let EtcdOptions { prefix, connect_timeout, request_timeout, access } = options;
        let keyspace = Keyspace::new(&prefix);
        let key = keyspace.bytes(&Key::cluster());
        let probe = move |mut endpoint: Endpoint| {
            let key = key.clone();
            async move { Ok(endpoint.kv.get(key, None).await.map(drop)?) }
        };
        let endpoints = Endpoints::connect(endpoints, &access, connect_timeout, request_timeout, probe).await?;
        Ok(Self { endpoints: Arc::new(endpoints), keyspace })
    }

    async fn get_range(&self, start: &[u8], options: &GetOptions) -> Result<GetResponse, Failure> {
        let get = |mut endpoint: Endpoint| async move { Ok(endpoint.kv.get(start, Some(options.clone())).await?) };
        self.endpoints.call(Repeat::Harmless, get).await
    }

    /// All pages as of the revision of the first.
    async fn list_once(&self, prefix: &Key) -> Result<Listing, Failure> {
        let (mut start, end) = self.keyspace.range(prefix);
        let mut options = GetOptions::new().with_limit(PAGE);
        if let Some(end) = end {
            options = options.with_range(end);
        }
        let (mut entries, mut pinned) = (Vec::new(), None);
        loop {
            let page = self.get_range(&start, &options).await?;
            let as_of = match pinned {
                Some(as_of) => as_of,
                None => revision(&page)?,
            };
            pinned = Some(as_of);
            entries.extend(page.kvs().iter().filter_map(|kv| Some(entry(self.keyspace.key(kv.key())?, kv))));
            match page.kvs().last() {
                Some(last) if page.more() => start = [last.key(), &[0]].concat(),
                _ => return Ok(Listing { entries, revision: as_of }),
            }
            options = options.with_revision(as_of.0);
        }
    }

    fn compare(&self, compare: &Compare) -> etcd_client::Compare {
        let key = self.keyspace.bytes(compare.key());
        match compare {
            Compare::Absent(_) => etcd_client::Compare::create_revision(key, CompareOp::Equal, 0),
            Compare::Present(_) => etcd_client::Compare::create_revision(key, CompareOp::NotEqual, 0),
            Compare::Unchanged(_, revision) => etcd_client::Compare::mod_revision(key, CompareOp::Equal, revision.0),
        }
    }

    fn op(&self, op: &Op) -> TxnOp {
        let key = self.keyspace.bytes(op.key());
        match op {
            Op::Put { value, lease, .. } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(key, value.as_slice(), options)
            }
            Op::Delete { .. } => TxnOp::delete(key, None),
        }
    }

    /// Which of a transaction's leases etcd meant when it refused it for a lease that is gone.
    async fn gone_among(&self, leases: BTreeSet<LeaseId>) -> StoreError {
        let mut unsure = StoreError::Unavailable("a lease of the transaction was gone, so nothing was written".into());
        for lease in leases {
            let look = |mut endpoint: Endpoint| async move { Ok(endpoint.lease.time_to_live(lease.0, None).await?) };
            match self.endpoints.call(Repeat::Harmless, look).await {
                Ok(answer) if answer.ttl() > 0 => {}
                Ok(_) | Err(Failure::LeaseGone) => return StoreError::LeaseGone(lease),
                Err(failure) => unsure = failure.into_store_error(),
            }
        }
        unsure
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        key.check()?;
        let bytes = self.keyspace.bytes(key);
        let found = self.get_range(&bytes, &GetOptions::new()).await.map_err(Failure::into_store_error)?;
        Ok(found.kvs().first().map(|kv| entry(key.clone(), kv)))
    }

    async fn list(&self, prefix: &Key) -> Result<Listing, StoreError> {
        prefix.check_prefix()?;
        for _ in 1..LISTINGS {
            match self.list_once(prefix).await {
                Err(Failure::Compacted) => tracing::debug!(%prefix, "a listing was overtaken by a compaction"),
                result => return result.map_err(Failure::into_store_error),
            }
        }
        self.list_once(prefix).await.map_err(Failure::into_store_error)
    }

    async fn commit(&self, txn: Txn) -> Result<Commit, StoreError> {
        txn.check()?;
        let compares: Vec<_> = txn.compares.iter().map(|compare| self.compare(compare)).collect();
        let mut ops: Vec<_> = txn.ops.iter().map(|op| self.op(op)).collect();
        // etcd has what changes nothing answered by the member that was asked, which may be behind, if nothing in it is a
        // read that may not be (`isTxnSerializable` in its `v3_server.go`).
        if ops.is_empty()
            && let Some(compare) = txn.compares.first()
        {
            let read = GetOptions::new().with_count_only();
            ops.push(etcd_client::TxnOp::get(self.keyspace.bytes(compare.key()), Some(read)));
        }
        let request = etcd_client::Txn::new().when(compares).and_then(ops);
        let send = |mut endpoint: Endpoint| {
            let request = request.clone();
            async move { Ok(endpoint.kv.txn(request).await?) }
        };
        let response = match self.endpoints.call(Repeat::Never, send).await {
            Ok(response) => response,
            Err(Failure::Unknown(text)) => {
                return Err(StoreError::Unavailable(format!("whether the commit happened is not known: {text}")));
            }
            Err(Failure::LeaseGone) => {
                return Err(self.gone_among(txn.ops.iter().filter_map(Op::lease).collect()).await);
            }
            Err(failure) => return Err(failure.into_store_error()),
        };
        match response.header() {
            _ if !response.succeeded() => Ok(Commit::Conflict),
            Some(header) => Ok(Commit::Done(Revision(header.revision()))),
            None => Err(StoreError::Unavailable("the commit happened, but its answer has no header".into())),
        }
    }

    async fn watch(&self, prefix: &Key, after: Revision) -> Result<Watch, StoreError> {
        prefix.check_prefix()?;
        let (start, end) = self.keyspace.range(prefix);
        let now = self.get_range(&start, &GetOptions::new()).await;
        let now = now.and_then(|response| revision(&response)).map_err(Failure::into_store_error)?;
        if after > now {
            return Ok(Box::pin(tokio_stream::once(Err(StoreError::Compacted(now)))));
        }
        let mut options = WatchOptions::new().with_start_revision(after.0.saturating_add(1));
        if let Some(end) = end {
            options = options.with_range(end);
        }
        let begin = |mut endpoint: Endpoint| {
            let (start, options) = (start.clone(), options.clone());
            async move { Ok((endpoint.watch.watch(start, Some(options)).await?, endpoint.place)) }
        };
        let begun = self.endpoints.call(Repeat::Harmless, begin).await;
        let (responses, origin) = begun.map_err(Failure::into_store_error)?;
        let (keyspace, endpoints) = (self.keyspace.clone(), self.endpoints.clone());
        Ok(Box::pin(Watcher::new(responses, keyspace, after, endpoints, origin)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = i64::from(whole_seconds(ttl)?);
        // A lease granted twice costs nothing: the one nobody knows of runs out.
        let grant = |mut endpoint: Endpoint| async move { Ok(endpoint.lease.grant(seconds, None).await?) };
        let granted = self.endpoints.call(Repeat::Harmless, grant).await.map_err(Failure::into_store_error)?;
        Ok(LeaseId(granted.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        // One exchange on a stream of its own. Streams are cheap, and there is none to lose when a member is lost.
        let keep = |mut endpoint: Endpoint| async move { Ok(endpoint.lease.keep_alive(lease.0).await.map(drop)?) };
        self.endpoints.call(Repeat::Harmless, keep).await.map_err(|failure| failure.about(lease))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = |mut endpoint: Endpoint| async move { Ok(endpoint.lease.revoke(lease.0).await.map(drop)?) };
        match self.endpoints.call(Repeat::Harmless, revoke).await {
            Ok(()) | Err(Failure::LeaseGone) => Ok(()),
            Err(failure) => Err(failure.about(lease)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_carry_the_cluster_s_prefix_in_etcd_and_nowhere_else() {
        let keyspace = Keyspace::new("/blue/");
        assert_eq!(keyspace.bytes(&Key::cluster()), b"/blue/cluster");
        assert_eq!(keyspace.key(b"/blue/cluster"), Some(Key::cluster()));
        for foreign in [b"/bluer/x".as_slice(), b"/green/x", b"/blue", b"/blue/\xff"] {
            assert_eq!(keyspace.key(foreign), None);
        }
        assert_eq!(Keyspace::new("").bytes(&Key::cluster()), b"/cluster");
    }

    #[test]
    fn a_range_ends_where_the_prefix_ends() {
        let keyspace = Keyspace::new("/blue");
        assert_eq!(keyspace.range(&Key::root()), (b"/blue/".to_vec(), Some(b"/blue0".to_vec())));
        assert_eq!(keyspace.range(&Key::cluster()), (b"/blue/cluster".to_vec(), None));
    }
}
