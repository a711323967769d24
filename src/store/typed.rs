//! Values as JSON: compact, one line, readable with `etcdctl`. What cannot be decoded is named by its key.

use super::{Entry, StoreError};
use serde::{Serialize, de::DeserializeOwned};

/// The value of `entry` as a `T`. [`StoreError::Damaged`] names the key of a value that is none.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, StoreError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Damaged(format!("{} holds no valid {}: {error}", entry.key, short_name::<T>())))
}

/// `value` as it is stored.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::Refused(format!("this {} has no JSON form: {error}", short_name::<T>())))
}

/// `Volume` for `…::model::volume::Volume`.
fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Object, Pool, Service, Session, Timestamp, Volume};
    use crate::store::{Key, Revision};
    use proptest::prelude::*;

    fn entry(value: Vec<u8>) -> Entry {
        Entry { key: Key::raw("/volume/1"), value, revision: Revision(1), lease: None }
    }

    #[test]
    fn a_value_survives_and_a_broken_one_is_named_by_its_key() {
        let time = Timestamp::from_millis(1_790_000_000_123);
        let bytes = encode(&time).unwrap();
        assert_eq!(decode::<Timestamp>(&entry(bytes)), Ok(time));
        let error = decode::<Volume>(&entry(b"{".to_vec())).unwrap_err().to_string();
        assert!(error.contains("/volume/1 holds no valid Volume"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let entry = entry(bytes);
            prop_assert!(decode::<Volume>(&entry).is_err());
            prop_assert!(decode::<Pool>(&entry).is_err());
            prop_assert!(decode::<Service>(&entry).is_err());
            prop_assert!(decode::<Session>(&entry).is_err());
            prop_assert!(decode::<Object>(&entry).is_err());
        }
    }
}
