//! How limits are written at the prompt: a number and its unit, or `none`.

use crate::model::ByteSize;
use crate::rpc::proto;
use clap::Args;

/// What to do about each limit of a volume; one at least must be named.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct LimitArgs {
    /// Operations a second, flushes not counted, or none
    #[arg(long, env = "SYMPHONY_VOLUME_IOPS", value_name = "N|none", value_parser = iops, allow_hyphen_values = true)]
    iops: Option<Wanted>,
    /// Bytes a second, read and written together: as 100MiB/s, 1GB, or none
    #[arg(
        long, env = "SYMPHONY_VOLUME_BANDWIDTH", value_name = "SIZE|none", value_parser = bandwidth,
        allow_hyphen_values = true
    )]
    bandwidth: Option<Wanted>,
    /// How much of both an idle volume saves up, as time: 5s lets five seconds' worth pass at once; none is 100ms
    #[arg(long, env = "SYMPHONY_VOLUME_BURST", value_name = "TIME|none", value_parser = burst, allow_hyphen_values = true)]
    burst: Option<Wanted>,
}

/// A limit as the manager counts it; absent: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted(Option<u64>);

impl LimitArgs {
    pub fn request(&self, reference: String) -> proto::SetVolumeRequest {
        let change = |wanted: Option<Wanted>| wanted.map(|Wanted(to)| proto::LimitChange { to });
        let (iops, bandwidth, burst_ms) = (change(self.iops), change(self.bandwidth), change(self.burst));
        proto::SetVolumeRequest { reference, iops, bandwidth, burst_ms }
    }
}

fn wanted(text: &str, number: impl FnOnce(&str) -> Result<u64, String>) -> Result<Wanted, String> {
    match text.trim() {
        "none" => Ok(Wanted(None)),
        text => number(text).map(|number| Wanted(Some(number))),
    }
}

fn iops(text: &str) -> Result<Wanted, String> {
    wanted(text, |text| {
        text.parse().map_err(|_| format!("'{text}' is not a number of operations a second: write it as 500, or none"))
    })
}

fn bandwidth(text: &str) -> Result<Wanted, String> {
    wanted(text, |text| {
        let size = text.strip_suffix("/s").unwrap_or(text).parse::<ByteSize>();
        size.map(ByteSize::as_u64).map_err(|error| format!("{error}, with or without /s, or none"))
    })
}

fn burst(text: &str) -> Result<Wanted, String> {
    wanted(text, |text| {
        let time =
            humantime::parse_duration(text).map_err(|_| format!("'{text}' is not a time: write it as 5s, or none"))?;
        u64::try_from(time.as_millis()).map_err(|_| format!("'{text}' is longer than anybody waits"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_understood_as_people_write_them() {
        assert_eq!(iops("500"), Ok(Wanted(Some(500))));
        for text in ["100MiB/s", "100MiB", "100M", "104857600"] {
            assert_eq!(bandwidth(text), Ok(Wanted(Some(100 << 20))), "{text}");
        }
        assert_eq!((burst("1s 500ms"), burst("2m")), (Ok(Wanted(Some(1500))), Ok(Wanted(Some(120_000)))));
        assert_eq!(
            (iops("none"), bandwidth("none"), burst(" none ")),
            (Ok(Wanted(None)), Ok(Wanted(None)), Ok(Wanted(None)))
        );
    }

    #[test]
    fn anything_else_is_named_with_what_would_do() {
        for text in ["", "-1", "1.5", "10k", "None", "99999999999999999999"] {
            assert!(iops(text).is_err_and(|error| error.contains("none") && error.contains(text)), "{text}");
        }
        for text in ["", "-1M", "10X/s", "1M/h", "9999999999G"] {
            assert!(bandwidth(text).is_err_and(|error| error.contains("/s, or none")), "{text}");
        }
        for text in ["", "-1s", "5", "10 parsecs", "99999999999999y"] {
            assert!(burst(text).is_err(), "{text}");
        }
    }
}
