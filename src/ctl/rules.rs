//! How a pool's rules are written at the prompt: a ratio, and percentages.

use crate::rpc::proto;
use clap::Args;

/// How a pool's space is promised.
#[derive(Debug, Args)]
pub struct RuleArgs {
    /// How much may be promised, as a multiple of what there is: 1.5 promises half as much again, 1 no more than that
    #[arg(long, env = "SYMPHONY_POOL_OVERCOMMIT", value_name = "RATIO", value_parser = ratio, allow_hyphen_values = true)]
    overcommit: Option<u32>,
    /// How full the pool may become before people are told, in percent [default: 80%]
    #[arg(long, env = "SYMPHONY_POOL_WARN_AT", value_name = "PERCENT", value_parser = percent, allow_hyphen_values = true)]
    warn_at: Option<u32>,
    /// How full it may become before it takes no new volumes, snapshots or growth, in percent [default: 95%]
    #[arg(long, env = "SYMPHONY_POOL_REFUSE_AT", value_name = "PERCENT", value_parser = percent, allow_hyphen_values = true)]
    refuse_at: Option<u32>,
}

impl RuleArgs {
    pub fn changes(&self) -> proto::PoolRuleChanges {
        let Self { overcommit, warn_at, refuse_at } = *self;
        proto::PoolRuleChanges { overcommit_percent: overcommit, warn_percent: warn_at, refuse_percent: refuse_at }
    }

    pub fn is_empty(&self) -> bool {
        self.overcommit.or(self.warn_at).or(self.refuse_at).is_none()
    }
}

/// In hundredths.
fn ratio(text: &str) -> Result<u32, String> {
    let fault = || format!("'{text}' is not a ratio: write it as 1.5");
    let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return Err(fault());
    }
    let hundredths = format!("{part:0<2}").parse::<u32>().map_err(|_| fault())?;
    let whole = whole.parse::<u32>().ok().and_then(|whole| whole.checked_mul(100));
    whole.and_then(|whole| whole.checked_add(hundredths)).ok_or_else(fault)
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.trim().strip_suffix('%').unwrap_or(text.trim());
    number.parse().map_err(|_| format!("'{text}' is not a percentage: write it as 80%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_and_percentages_are_understood_as_people_write_them() {
        assert_eq!(["1", "1.5", "1.25", "2.0", "0.9", "100"].map(ratio), [100, 150, 125, 200, 90, 10_000].map(Ok));
        assert_eq!(["80%", "80", " 7% "].map(percent), [80, 80, 7].map(Ok));
    }

    #[test]
    fn anything_else_is_named_with_what_would_do() {
        for text in ["", "-1", "1.", ".5", "1.555", "1,5", "1.5x", "1e3", "99999999999", "50000000", "150%"] {
            assert!(ratio(text).is_err_and(|error| error.contains("as 1.5")), "{text}");
        }
        for text in ["", "-1%", "1.5%", "%", "80%%", "99999999999"] {
            assert!(percent(text).is_err_and(|error| error.contains("as 80%")), "{text}");
        }
    }
}
