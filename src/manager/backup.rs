//! The state as a whole, out and in: what a backup is made of, and what of one is believed.
//!
//! Never here: files, which are `ctl`'s, and the order in which a store is filled.

use super::filling::Content;
use super::member::Member;
use super::view::View;
use crate::model::{Cluster, ClusterId, Epoch, Timestamp};
use crate::rpc::{Fault, FaultKind, proto};
use crate::runtime::VERSION;
use crate::store::{Entry, Key, Listing, Place, Revision};
use proto::backup_part::Part;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

pub type Sink = mpsc::Sender<Result<proto::BackupPart, Status>>;

/// Bytes of values in one message, unless a single value has more.
const PART_BYTES: usize = 256 << 10;
/// Entries in one message.
const PART_ENTRIES: usize = 1000;
/// Bytes of a whole backup. A cluster of 100,000 volumes has a tenth of it.
const MOST_BYTES: usize = 2 << 30;

fn part(part: Part) -> proto::BackupPart {
    proto::BackupPart { part: Some(part) }
}

/// Whether a key's value belongs to the state; what hangs on a lease says only who is there now.
fn belongs(entry: &Entry) -> bool {
    entry.lease.is_none() && !is_passing(&Place::of(&entry.key))
}

fn is_passing(place: &Place) -> bool {
    match place {
        Place::Leader | Place::Session(_) | Place::Filling | Place::Moved | Place::Foreign => true,
        Place::Cluster
        | Place::Service(_)
        | Place::Pool(_)
        | Place::Volume(_)
        | Place::Snapshot(_)
        | Place::Image(_)
        | Place::Attachment(_)
        | Place::Client(_)
        | Place::Token(_)
        | Place::Event(_)
        | Place::Authority(_)
        | Place::Name(..) => false,
    }
}

/// The state of a listing, without the cluster's own record.
pub fn content(listing: Listing) -> Content {
    let entries = listing.entries.into_iter().filter(|entry| belongs(entry) && entry.key != Key::cluster());
    entries.map(|entry| (entry.key, entry.value)).collect()
}

/// Tells the whole state at one revision, until it is told or nobody listens.
pub async fn tell(member: Arc<Member>, sink: Sink) {
    let told = try_tell(&member, &sink).await;
    if let Err(Some(fault)) = told
        && sink.send(Err(fault.into())).await.is_err()
    {
        tracing::debug!("nobody hears why a backup ends");
    }
}

/// None where nobody listens any more.
async fn try_tell(member: &Member, sink: &Sink) -> Result<(), Option<Fault>> {
    let send = async |message| sink.send(Ok(part(message))).await.map_err(|_| None);
    let unreadable = member.view.read().unreadable.first_key_value().map(|(key, reason)| format!("{key}: {reason}"));
    if let Some(what) = unreadable {
        let text = format!("a backup of what cannot be read could not be restored: {what}; see `symphony ctl check`");
        return Err(Some(Fault::new(FaultKind::Precondition, text)));
    }
    let listing = member
        .store
        .list(&Key::root())
        .await
        .map_err(|error| Some(Fault::new(FaultKind::Unavailable, format!("the state cannot be read: {error}"))))?;
    let cluster = listing.entries.iter().find(|entry| entry.key == Key::cluster());
    let cluster = cluster.and_then(|entry| crate::store::decode::<Cluster>(entry).ok());
    let cluster = cluster.ok_or_else(|| {
        Some(Fault::new(
            FaultKind::Precondition,
            "the store holds no cluster that can be read: there is nothing to copy",
        ))
    })?;
    send(Part::Header(proto::BackupHeader {
        cluster_id: cluster.meta.id.to_string(),
        cluster_name: cluster.meta.name.to_string(),
        epoch: cluster.history.epoch.as_u64(),
        revision: listing.revision.0,
        taken_at: member.clock.wall().as_millis(),
        symphony: VERSION.into(),
    }))
    .await?;
    let (mut entries, mut bytes, mut count) = (Vec::new(), 0usize, 0u64);
    for Entry { key, value, .. } in listing.entries.into_iter().filter(belongs) {
        if !entries.is_empty() && (bytes.saturating_add(value.len()) > PART_BYTES || entries.len() >= PART_ENTRIES) {
            send(Part::Entries(proto::BackupEntries { entries: std::mem::take(&mut entries) })).await?;
            bytes = 0;
        }
        bytes = bytes.saturating_add(value.len());
        count = count.saturating_add(1);
        entries.push(proto::BackupEntry { key: key.as_str().into(), value });
    }
    send(Part::Entries(proto::BackupEntries { entries })).await?;
    send(Part::End(proto::BackupEnd { entries: count })).await
}

/// A backup that was received and judged.
pub struct Backup {
    pub cluster: Cluster,
    pub content: Content,
    /// Everything in it, as a manager sees it.
    pub view: View,
    pub taken_at: Timestamp,
    pub revision: i64,
}

fn refused(text: impl Into<String>) -> Fault {
    Fault::new(FaultKind::Invalid, format!("the backup cannot be restored, and nothing was written: {}", text.into()))
}

/// Receives a whole backup and judges every entry of it.
///
/// # Errors
/// What is wrong with it.
pub async fn receive(mut parts: Streaming<proto::BackupPart>) -> Result<Backup, Fault> {
    let cut = || refused("it ends too early");
    let mut next = async || -> Result<Option<Part>, Fault> {
        let message = parts.message().await.map_err(Fault::from)?;
        message
            .map(|message| message.part.ok_or_else(|| refused("it holds what this version does not know")))
            .transpose()
    };
    let Some(Part::Header(header)) = next().await? else { return Err(refused("it does not begin with its header")) };
    let (mut entries, mut bytes) = (Vec::new(), 0usize);
    let promised = loop {
        match next().await?.ok_or_else(cut)? {
            Part::Header(_) => return Err(refused("it holds a second header")),
            Part::Entries(more) => {
                for proto::BackupEntry { key, value } in more.entries {
                    bytes = bytes.saturating_add(value.len()).saturating_add(key.len());
                    entries.push((key, value));
                }
                if bytes > MOST_BYTES {
                    return Err(refused(format!("it holds more than {MOST_BYTES} bytes")));
                }
            }
            Part::End(end) => break end.entries,
        }
    };
    if promised != entries.len() as u64 {
        return Err(refused(format!("it should hold {promised} entries and holds {}", entries.len())));
    }
    judge(&header, entries)
}

/// Every key is one of ours and every value reads as what belongs there, once.
fn judge(header: &proto::BackupHeader, entries: Vec<(String, Vec<u8>)>) -> Result<Backup, Fault> {
    let id: ClusterId = header.cluster_id.parse().map_err(|_| refused("its header names no cluster"))?;
    let known = Epoch::new(header.epoch).is_some();
    let mut content = Content::new();
    for (text, value) in entries {
        let key = Key::raw(text);
        if is_passing(&Place::of(&key)) {
            let shown: String = key.as_str().chars().take(80).collect();
            return Err(refused(format!("'{shown}' is no key of a state")));
        }
        if content.insert(key.clone(), value).is_some() {
            return Err(refused(format!("{key} is in it twice")));
        }
    }
    let listed = |(key, value): (&Key, &Vec<u8>)| Entry {
        key: key.clone(),
        value: value.clone(),
        revision: Revision(header.revision),
        lease: None,
    };
    let entries = content.iter().map(listed).collect();
    let view = View::load(Listing { entries, revision: Revision(header.revision) });
    if let Some((key, reason)) = view.unreadable.first_key_value() {
        return Err(refused(format!("{key} cannot be read: {reason}")));
    }
    let cluster = view.cluster.clone().filter(|cluster| known && cluster.meta.id == id);
    let cluster = cluster.ok_or_else(|| refused("its header and its cluster's record do not agree"))?;
    content.remove(&Key::cluster());
    let taken_at = Timestamp::from_millis(header.taken_at);
    Ok(Backup { cluster, content, view, taken_at, revision: header.revision })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClusterSpec, Meta, TokenId};

    fn cluster() -> Cluster {
        let meta = Meta::new(ClusterId::from_bytes([1; 16]), "c".parse().unwrap(), Timestamp::EPOCH);
        Cluster { meta, spec: ClusterSpec::default(), history: Default::default(), recovering: None }
    }

    fn header() -> proto::BackupHeader {
        proto::BackupHeader { cluster_id: cluster().meta.id.to_string(), ..Default::default() }
    }

    fn record() -> (String, Vec<u8>) {
        ("/cluster".into(), serde_json::to_vec(&cluster()).unwrap())
    }

    fn judged(header: proto::BackupHeader, entries: Vec<(String, Vec<u8>)>) -> String {
        judge(&header, entries).err().map(|fault| fault.message).unwrap_or_default()
    }

    #[test]
    fn a_backup_is_believed_only_where_every_entry_is_what_it_should_be() {
        assert_eq!(judged(header(), vec![record()]), "");
        let token = Key::token(TokenId::from_bytes([1; 16])).as_str().to_owned();
        let cases = [
            (vec![], "do not agree"),
            (vec![record(), record()], "twice"),
            (vec![record(), (token, b"{}".to_vec())], "cannot be read"),
            (vec![record(), ("/elsewhere".into(), b"1".to_vec())], "no key of a state"),
            (vec![record(), ("/leader".into(), b"1".to_vec())], "no key of a state"),
            (vec![record(), ("/filling".into(), b"1".to_vec())], "no key of a state"),
            (vec![record(), ("no slash".into(), b"1".to_vec())], "no key of a state"),
        ];
        for (entries, words) in cases {
            let text = judged(header(), entries);
            assert!(text.contains(words) && text.contains("nothing was written"), "{text}");
        }
        let other = proto::BackupHeader { cluster_id: ClusterId::from_bytes([2; 16]).to_string(), ..header() };
        assert!(judged(other, vec![record()]).contains("do not agree"));
        let nameless = proto::BackupHeader { cluster_id: "x".into(), ..header() };
        assert!(judged(nameless, vec![record()]).contains("names no cluster"));
        let far = proto::BackupHeader { epoch: u64::MAX, ..header() };
        assert!(judged(far, vec![record()]).contains("do not agree"));
    }
}
