//! Points in time, as stored and shown.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

/// Wall-clock time in milliseconds since 1970, written as RFC 3339 in UTC. Only ever shown or compared for age;
/// no decision about correctness rests on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(u64);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a time as in 2026-01-31T12:00:00Z")]
pub struct ParseTimestampError(String);

impl Timestamp {
    pub const EPOCH: Self = Self(0);
    /// 9999-12-31T23:59:59Z, the last time RFC 3339 can write.
    const MAX_MILLIS: u64 = 253_402_300_799_000;

    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(Self::MAX_MILLIS))
    }

    /// Times before 1970 count as 1970.
    pub fn from_system(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(Self::MAX_MILLIS))
    }

    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `self` was at `now`; zero if it lies ahead.
    pub fn age(self, now: Timestamp) -> Duration {
        Duration::from_millis(now.0.saturating_sub(self.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(self.0);
        write!(f, "{}", humantime::format_rfc3339_millis(time))
    }
}

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, ParseTimestampError> {
        let error = || ParseTimestampError(text.chars().take(40).collect());
        humantime::parse_rfc3339(text).map(Self::from_system).map_err(|_| error())
    }
}

impl TryFrom<String> for Timestamp {
    type Error = ParseTimestampError;

    fn try_from(text: String) -> Result<Self, ParseTimestampError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> String {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_its_text() {
        let time = Timestamp::from_millis(1_790_000_000_123);
        assert_eq!(time.to_string().parse(), Ok(time));
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert_eq!(Timestamp::from_millis(u64::MAX).to_string(), "9999-12-31T23:59:59.000Z");
    }
}
