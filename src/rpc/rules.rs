//! How pools promise their space, between its model and its protobuf form.

use super::proto;
use crate::model::{ByteSize, PoolMetadata, PoolRules};

impl From<PoolRules> for proto::PoolRules {
    fn from(rules: PoolRules) -> Self {
        let PoolRules { overcommit_percent, warn_percent, refuse_percent } = rules;
        Self { overcommit_percent, warn_percent, refuse_percent }
    }
}

impl From<proto::PoolRules> for PoolRules {
    fn from(rules: proto::PoolRules) -> Self {
        let proto::PoolRules { overcommit_percent, warn_percent, refuse_percent } = rules;
        Self { overcommit_percent, warn_percent, refuse_percent }
    }
}

impl From<PoolMetadata> for proto::PoolMetadata {
    fn from(metadata: PoolMetadata) -> Self {
        let PoolMetadata { capacity, used, chunk } = metadata;
        Self { capacity: capacity.as_u64(), used: used.as_u64(), chunk: chunk.as_u64() }
    }
}

impl From<proto::PoolMetadata> for PoolMetadata {
    fn from(metadata: proto::PoolMetadata) -> Self {
        let proto::PoolMetadata { capacity, used, chunk } = metadata;
        let [capacity, used, chunk] = [capacity, used, chunk].map(ByteSize::bytes);
        Self { capacity, used, chunk }
    }
}
