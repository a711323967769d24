//! Identities. Each kind of object has its own type, so that a pool's id cannot be passed where a volume's is meant.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// The text is not a UUID in its usual hyphenated form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a {kind} id: an id looks like 0198c1f2-6c3e-7d1a-9b1f-3f0f5d0a7c11")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new identity; UUID version 7, so that ids sort by the time they were made.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The identity of these sixteen bytes, for callers that bring their own randomness.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The sixteen bytes of this identity.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// The bare UUID, for certificates, which name bearers of every kind.
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.as_hyphenated(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, ":{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError { kind: $kind, text: text.chars().take(80).collect() };
                // Only the hyphenated form, so that an id has one spelling in keys and files.
                if text.len() != uuid::fmt::Hyphenated::LENGTH {
                    return Err(error());
                }
                Uuid::try_parse(text).map(Self).map_err(|_| error())
            }
        }
    };
}

identity!(
    /// One cluster for its whole life.
    ClusterId, "cluster"
);
identity!(
    /// One point-in-time copy of a volume.
    SnapshotId, "snapshot"
);
identity!(
    /// One member, across restarts and changes of address.
    ServiceId, "service"
);
identity!(
    /// One live registration of a block service with a manager.
    SessionId, "session"
);
identity!(PoolId, "pool");
identity!(VolumeId, "volume");
identity!(
    /// One content that volumes are made of.
    ImageId, "image"
);
identity!(
    /// One client's hold on one volume.
    AttachmentId, "attachment"
);
identity!(
    /// One client: an operator, or a user of volumes, with a certificate of its own.
    ClientId, "client"
);
identity!(
    /// One invitation to join.
    TokenId, "token"
);
identity!(
    /// One entry of the record of changes.
    EventId, "event"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        let id = VolumeId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn other_spellings_of_a_uuid_are_refused() {
        for text in ["", "x", "0198c1f26c3e7d1a9b1f3f0f5d0a7c11", "{0198c1f2-6c3e-7d1a-9b1f-3f0f5d0a7c11}"] {
            assert!(text.parse::<VolumeId>().is_err(), "{text}");
        }
    }
}
