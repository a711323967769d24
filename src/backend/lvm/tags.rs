//! What volume groups and volumes say of themselves: tags that begin with `symphony.`. Pure.
//!
//! | on | tags |
//! |---|---|
//! | the group | `cluster`, `pool`, `name`, `driver`, `state` |
//! | a volume | `volume`, `name`, `generation`, `size` (bytes), `state`, `lineage.N` (the nearest first, from 0), `revert`, `wiped` (bytes) |
//! | a snapshot | `snapshot`, `name`, `volume`, `size` (bytes), `at` (milliseconds), `state`, `wiped` (bytes of its room) |
//!
//! LVM takes letters, digits and `_+.-/=!:&#` in a tag. Everything else in a value, and `#`, is written as `#` and two
//! hexadecimal digits for each byte. Tags of others are neither read nor touched.

use crate::backend::{PoolIdentity, SnapshotLayout, VolumeLayout};
use crate::model::{ByteSize, ClusterId, Generation, Name, PoolId, SnapshotId, Timestamp, VolumeId};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "symphony.";
/// Longer tags than this some versions of LVM refuse, in bytes.
const LONGEST: usize = 1024;

/// Tags that cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagsError {
    #[error("the tag symphony.{0} is missing")]
    Missing(String),
    #[error("the tag symphony.{0} is there twice")]
    Twice(String),
    #[error("'{value}' is no value of the tag symphony.{key}")]
    Value { key: String, value: String },
    #[error("the tag symphony.{key} would have {length} bytes, {LONGEST} are possible")]
    TooLong { key: String, length: usize },
}

/// How a pool keeps its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each volume has its whole space from the beginning.
    Thick,
    /// Volumes share a thin pool.
    Thin,
}

/// Where an object is between nothing and nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Never used yet: what is there may be thrown away and begun anew.
    Making,
    /// A snapshot that holds its bytes and does not exist yet.
    Staged,
    Ready,
    /// A volume on its way back to a snapshot's bytes: what is there is not to be used before that is done.
    Reverting,
    /// Never to be used again.
    Removing,
}

/// What a volume group says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupTags {
    pub cluster: ClusterId,
    pub pool: PoolId,
    pub name: Name,
    pub kind: Kind,
    pub state: State,
}

/// What a volume says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeTags {
    pub volume: VolumeId,
    pub name: Name,
    pub generation: Generation,
    pub size: ByteSize,
    pub state: State,
    pub lineage: Vec<String>,
    /// The snapshot whose bytes it is to have again, while it is [`State::Reverting`].
    pub revert: Option<SnapshotId>,
    /// How much of it has been overwritten from its beginning, while it is [`State::Removing`].
    pub wiped: Option<ByteSize>,
}

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTags {
    pub snapshot: SnapshotId,
    pub name: Name,
    pub volume: VolumeId,
    pub size: ByteSize,
    pub at: Timestamp,
    pub state: State,
    /// How much of its room has been overwritten from its beginning, while it is [`State::Removing`].
    pub wiped: Option<ByteSize>,
}

macro_rules! words {
    ($type:ident, $($variant:ident => $word:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($type::$variant => $word),+ })
            }
        }

        impl FromStr for $type {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($word => Ok($type::$variant),)+ _ => Err(()) }
            }
        }
    };
}

words!(Kind, Thick => "lvm", Thin => "lvm-thin");
words!(State, Making => "making", Staged => "staged", Ready => "ready", Reverting => "reverting", Removing => "removing");

impl GroupTags {
    pub fn new(identity: &PoolIdentity, kind: Kind, state: State) -> Self {
        let PoolIdentity { cluster, pool, name } = identity.clone();
        Self { cluster, pool, name, kind, state }
    }

    /// Whether the group is this pool's, under whatever name.
    pub fn marks(&self, identity: &PoolIdentity) -> bool {
        self.cluster == identity.cluster && self.pool == identity.pool
    }

    pub fn owner(&self) -> String {
        format!("'{}' ({}) of cluster {}", self.name, self.pool, self.cluster)
    }

    pub fn encode(&self) -> Result<Vec<String>, TagsError> {
        encode([
            ("cluster".to_owned(), self.cluster.to_string()),
            ("pool".to_owned(), self.pool.to_string()),
            ("name".to_owned(), self.name.to_string()),
            ("driver".to_owned(), self.kind.to_string()),
            ("state".to_owned(), self.state.to_string()),
        ])
    }

    /// Reads a group's tags; none if none of them is of ours.
    pub fn decode(tags: &[String]) -> Result<Option<Self>, TagsError> {
        let Some(values) = Values::of(tags)? else { return Ok(None) };
        Ok(Some(Self {
            cluster: values.parse("cluster")?,
            pool: values.parse("pool")?,
            name: values.parse("name")?,
            kind: values.parse("driver")?,
            state: values.parse("state")?,
        }))
    }
}

impl VolumeTags {
    /// The tags of a volume in this state that was just made of its source, if it has one.
    pub fn new(layout: &VolumeLayout, state: State) -> Self {
        let VolumeLayout { id: volume, name, generation, size, source, .. } = layout.clone();
        let lineage = source.iter().map(ToString::to_string).collect();
        Self { volume, name, generation, size, state, lineage, revert: None, wiped: None }
    }

    pub fn encode(&self) -> Result<Vec<String>, TagsError> {
        let values = [
            ("volume".to_owned(), self.volume.to_string()),
            ("name".to_owned(), self.name.to_string()),
            ("generation".to_owned(), self.generation.as_u64().to_string()),
            ("size".to_owned(), self.size.as_u64().to_string()),
            ("state".to_owned(), self.state.to_string()),
        ];
        let ancestor = |(number, ancestor): (usize, &String)| (format!("lineage.{number}"), ancestor.clone());
        let revert = self.revert.map(|snapshot| ("revert".to_owned(), snapshot.to_string()));
        let wiped = self.wiped.map(wiped);
        encode(values.into_iter().chain(self.lineage.iter().enumerate().map(ancestor)).chain(revert).chain(wiped))
    }

    /// Reads a volume's tags; none if none of them is of ours.
    pub fn decode(tags: &[String]) -> Result<Option<Self>, TagsError> {
        let Some(values) = Values::of(tags)? else { return Ok(None) };
        let lineage = (0..).map_while(|number| values.0.get(&format!("lineage.{number}")).cloned()).collect();
        Ok(Some(Self {
            volume: values.parse("volume")?,
            name: values.parse("name")?,
            generation: Generation::new(values.parse("generation")?),
            size: ByteSize::bytes(values.parse("size")?),
            state: values.parse("state")?,
            lineage,
            revert: values.0.contains_key("revert").then(|| values.parse("revert")).transpose()?,
            wiped: values.wiped()?,
        }))
    }
}

impl SnapshotTags {
    /// The tags of a snapshot of a volume that has that size, in the state [`State::Staged`].
    pub fn staged(layout: &SnapshotLayout, size: ByteSize, at: Timestamp) -> Self {
        let SnapshotLayout { id: snapshot, name, volume, room: _ } = layout.clone();
        Self { snapshot, name, volume, size, at, state: State::Staged, wiped: None }
    }

    pub fn encode(&self) -> Result<Vec<String>, TagsError> {
        let values = [
            ("snapshot".to_owned(), self.snapshot.to_string()),
            ("name".to_owned(), self.name.to_string()),
            ("volume".to_owned(), self.volume.to_string()),
            ("size".to_owned(), self.size.as_u64().to_string()),
            ("at".to_owned(), self.at.as_millis().to_string()),
            ("state".to_owned(), self.state.to_string()),
        ];
        encode(values.into_iter().chain(self.wiped.map(wiped)))
    }

    /// Reads a snapshot's tags; none if none of them is of ours.
    pub fn decode(tags: &[String]) -> Result<Option<Self>, TagsError> {
        let Some(values) = Values::of(tags)? else { return Ok(None) };
        Ok(Some(Self {
            snapshot: values.parse("snapshot")?,
            name: values.parse("name")?,
            volume: values.parse("volume")?,
            size: ByteSize::bytes(values.parse("size")?),
            at: Timestamp::from_millis(values.parse("at")?),
            state: values.parse("state")?,
            wiped: values.wiped()?,
        }))
    }
}

/// Tags to take away and tags to add, so that of ours exactly `wanted` are there.
pub fn difference(present: &[String], wanted: &[String]) -> (Vec<String>, Vec<String>) {
    let ours = present.iter().filter(|tag| tag.starts_with(PREFIX));
    let gone = ours.filter(|tag| !wanted.contains(tag)).cloned().collect();
    let new = wanted.iter().filter(|tag| !present.contains(tag)).cloned().collect();
    (gone, new)
}

fn wiped(bytes: ByteSize) -> (String, String) {
    ("wiped".to_owned(), bytes.as_u64().to_string())
}

fn encode(values: impl IntoIterator<Item = (String, String)>) -> Result<Vec<String>, TagsError> {
    let tag = |(key, value): (String, String)| {
        let tag = format!("{PREFIX}{key}={}", escape(&value));
        if tag.len() > LONGEST { Err(TagsError::TooLong { key, length: tag.len() }) } else { Ok(tag) }
    };
    values.into_iter().map(tag).collect()
}

struct Values(BTreeMap<String, String>);

impl Values {
    fn of(tags: &[String]) -> Result<Option<Self>, TagsError> {
        let mut values = BTreeMap::new();
        for tag in tags.iter().filter_map(|tag| tag.strip_prefix(PREFIX)) {
            let (key, value) = tag.split_once('=').unwrap_or((tag, ""));
            let plain = unescape(value).ok_or_else(|| bad(key, value))?;
            if values.insert(key.to_owned(), plain).is_some() {
                return Err(TagsError::Twice(key.to_owned()));
            }
        }
        Ok(if values.is_empty() { None } else { Some(Self(values)) })
    }

    fn parse<T: FromStr>(&self, key: &str) -> Result<T, TagsError> {
        let value = self.0.get(key).ok_or_else(|| TagsError::Missing(key.to_owned()))?;
        value.parse().map_err(|_| bad(key, value))
    }

    fn wiped(&self) -> Result<Option<ByteSize>, TagsError> {
        self.0.contains_key("wiped").then(|| self.parse("wiped").map(ByteSize::bytes)).transpose()
    }
}

fn bad(key: &str, value: &str) -> TagsError {
    TagsError::Value { key: key.to_owned(), value: value.chars().take(80).collect() }
}

fn escape(value: &str) -> String {
    let byte = |byte: u8| {
        let plain = byte.is_ascii_alphanumeric() || b"_+.-/=!:&".contains(&byte);
        if plain { char::from(byte).to_string() } else { format!("#{byte:02x}") }
    };
    value.bytes().map(byte).collect()
}

fn unescape(value: &str) -> Option<String> {
    let mut parts = value.split('#');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume(lineage: Vec<String>) -> VolumeTags {
        VolumeTags {
            volume: VolumeId::generate(),
            name: "db-01.x_y".parse().unwrap(),
            generation: Generation::new(7),
            size: ByteSize::bytes(512),
            state: State::Making,
            lineage,
            revert: Some(SnapshotId::generate()),
            wiped: Some(ByteSize::mib(3)),
        }
    }

    #[test]
    fn a_snapshot_says_what_it_is_of_and_is_not_taken_for_a_volume() {
        let layout = SnapshotLayout {
            id: SnapshotId::generate(),
            name: "monday".parse().unwrap(),
            volume: VolumeId::generate(),
            room: None,
        };
        let mut tags = SnapshotTags::staged(&layout, ByteSize::mib(3), Timestamp::from_millis(77));
        for wiped in [None, Some(ByteSize::mib(2))] {
            tags.wiped = wiped;
            assert_eq!(SnapshotTags::decode(&tags.encode().unwrap()).unwrap().unwrap(), tags);
        }
        let encoded = tags.encode().unwrap();
        assert!(VolumeTags::decode(&encoded).is_err());
        assert!(SnapshotTags::decode(&volume(vec![]).encode().unwrap()).is_err());
    }

    #[test]
    fn a_group_says_whose_it_is() {
        let identity =
            PoolIdentity { cluster: ClusterId::generate(), pool: PoolId::generate(), name: "fast".parse().unwrap() };
        let tags = GroupTags::new(&identity, Kind::Thin, State::Ready);
        let mut encoded = tags.encode().unwrap();
        assert!(encoded.contains(&"symphony.driver=lvm-thin".to_owned()), "{encoded:?}");
        encoded.push("somebody.else=1".to_owned());
        let decoded = GroupTags::decode(&encoded).unwrap().unwrap();
        assert!(decoded == tags && decoded.marks(&identity));
        let other = PoolIdentity { cluster: ClusterId::generate(), ..identity };
        assert!(!decoded.marks(&other));
    }

    #[test]
    fn tags_of_others_are_none_of_ours() {
        assert_eq!(GroupTags::decode(&["a".into(), "b=c".into(), "symphony".into()]), Ok(None));
        assert_eq!(VolumeTags::decode(&[]), Ok(None));
    }

    #[test]
    fn tags_that_are_missing_doubled_or_nonsense_are_named() {
        let good = volume(vec![]).encode().unwrap();
        for (number, tag) in good.iter().enumerate() {
            let key = tag.strip_prefix(PREFIX).unwrap().split('=').next().unwrap();
            let mut less = good.clone();
            less.remove(number);
            if !["revert", "wiped"].contains(&key) {
                assert_eq!(VolumeTags::decode(&less), Err(TagsError::Missing(key.to_owned())));
            }
            let mut twice = good.clone();
            twice.push(format!("{PREFIX}{key}=other"));
            assert_eq!(VolumeTags::decode(&twice), Err(TagsError::Twice(key.to_owned())));
            let mut odd = good.clone();
            odd[number] = format!("{PREFIX}{key}=#20");
            assert!(matches!(VolumeTags::decode(&odd), Err(TagsError::Value { .. })), "{key}");
            odd[number] = format!("{PREFIX}{key}=#2");
            assert!(matches!(VolumeTags::decode(&odd), Err(TagsError::Value { .. })), "{key}");
        }
    }

    #[test]
    fn what_is_too_long_for_a_tag_is_refused() {
        let error = volume(vec!["ä".repeat(200)]).encode().unwrap_err();
        assert!(matches!(error, TagsError::TooLong { .. }), "{error}");
    }

    #[test]
    fn only_our_own_tags_are_changed_and_only_where_they_differ() {
        let present = ["mine", "symphony.a=1", "symphony.b=2"].map(String::from);
        let wanted = ["symphony.a=1", "symphony.b=3"].map(String::from);
        let (gone, new) = difference(&present, &wanted);
        assert_eq!((gone, new), (vec!["symphony.b=2".to_owned()], vec!["symphony.b=3".to_owned()]));
    }

    proptest! {
        #[test]
        fn any_lineage_survives_and_fits_into_lvm_s_alphabet(lineage in proptest::collection::vec(".{0,60}", 0..4)) {
            let tags = volume(lineage);
            let encoded = tags.encode().unwrap();
            for tag in &encoded {
                let allowed = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:&#".contains(c);
                prop_assert!(tag.chars().all(allowed), "{tag}");
            }
            prop_assert_eq!(VolumeTags::decode(&encoded).unwrap().unwrap(), tags);
        }

        #[test]
        fn any_tags_are_read_or_refused_without_a_panic(tags in proptest::collection::vec("(symphony\\.[a-z.0-9]{0,9}=)?.{0,20}", 0..9)) {
            let _either_is_fine = (GroupTags::decode(&tags).is_ok(), VolumeTags::decode(&tags).is_ok(), SnapshotTags::decode(&tags).is_ok());
        }
    }
}
