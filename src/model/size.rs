//! Sizes in bytes, as people write them and as machines need them.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A number of bytes. JSON and the wire carry the plain number; people may write `512MiB`, `10G` or `4096`.
///
/// As with LVM, QEMU and Ceph a bare letter counts in powers of 1024 (`10G` is `10GiB`); `10GB` is 10 × 1000³.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

/// Why a text is not a [`ByteSize`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("'{text}' is not a size: write it as 512MiB, 10G or a number of bytes")]
    Malformed { text: String },
    #[error("'{text}' is not a size: it must not be negative")]
    Negative { text: String },
    #[error(
        "'{text}' has an unknown unit '{unit}': use K, M, G, T, P (powers of 1024), KiB…PiB or KB…PB (powers of 1000)"
    )]
    Unit { text: String, unit: String },
    #[error("'{text}' is larger than any device: the limit is {max}", max = ByteSize::MAX)]
    Overflow { text: String },
    #[error("'{text}' is not a whole number of bytes")]
    Fraction { text: String },
}

impl ByteSize {
    pub const ZERO: Self = Self(0);
    /// Offsets in files, in NBD and in the kernel are signed 64-bit numbers.
    pub const MAX: Self = Self(i64::MAX as u64);

    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl std::iter::Sum for ByteSize {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::ZERO, Self::saturating_add)
    }
}

fn unit(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let power = |base: u64, letter: char| "kmgtp".find(letter).and_then(|i| base.checked_pow(i as u32 + 1));
    let mut letters = text.chars();
    match (letters.next(), letters.as_str()) {
        (None, _) | (Some('b'), "") => Some(1),
        (Some(letter), "" | "ib" | "i") => power(1024, letter),
        (Some(letter), "b") => power(1000, letter),
        _ => None,
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(input: &str) -> Result<Self, SizeError> {
        let text = || input.chars().take(80).collect::<String>();
        let trimmed = input.trim();
        if trimmed.starts_with('-') {
            return Err(SizeError::Negative { text: text() });
        }
        let end = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || (number.contains('.') && fraction.is_empty()) {
            return Err(SizeError::Malformed { text: text() });
        }
        let unit = unit(suffix.trim_start())
            .ok_or_else(|| SizeError::Unit { text: text(), unit: suffix.trim_start().chars().take(20).collect() })?;
        // 1.5GiB: scale the digits as one integer, then divide by the power of ten that the point stands for.
        let overflow = || SizeError::Overflow { text: text() };
        let scale = 10u128.checked_pow(u32::try_from(fraction.len()).map_err(|_| overflow())?).ok_or_else(overflow)?;
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| overflow())?;
        let scaled = digits.checked_mul(u128::from(unit)).ok_or_else(overflow)?;
        if scaled % scale != 0 {
            return Err(SizeError::Fraction { text: text() });
        }
        match u64::try_from(scaled / scale) {
            Ok(bytes) if bytes <= Self::MAX.0 => Ok(Self(bytes)),
            _ => Err(overflow()),
        }
    }
}

/// For people: exact where a unit divides it, else with one decimal (`1.5 GiB` is printed as `1.5GiB`).
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let power = (self.0.max(1).ilog2() / 10) as usize;
        let unit = 1u64 << (10 * power);
        if self.0.is_multiple_of(unit) {
            f.pad(&format!("{}{}", self.0 / unit, UNITS[power]))
        } else {
            f.pad(&format!("{:.1}{}", self.0 as f64 / unit as f64, UNITS[power]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_s_spellings_are_understood() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512MiB", 512 << 20),
            ("10G", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5 GiB", 3 << 29),
            ("1k", 1024),
            ("7b", 7),
            ("2Ti", 2 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_names_its_fault() {
        assert!(matches!("-1G".parse::<ByteSize>(), Err(SizeError::Negative { .. })));
        assert!(matches!("10X".parse::<ByteSize>(), Err(SizeError::Unit { .. })));
        assert!(matches!("9999999999999999999999G".parse::<ByteSize>(), Err(SizeError::Overflow { .. })));
        assert!(matches!("8192P".parse::<ByteSize>(), Err(SizeError::Overflow { .. })));
        assert!(matches!("0.3B".parse::<ByteSize>(), Err(SizeError::Fraction { .. })));
        for text in ["", "G", ".5G", "1.", "1..2", "0x10", "1e9", "١G"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in ".{0,40}") {
            let _either_is_fine = text.parse::<ByteSize>().is_ok();
        }

        #[test]
        fn plain_bytes_and_their_display_agree(bytes in 0..=i64::MAX as u64) {
            prop_assert_eq!(bytes.to_string().parse::<ByteSize>(), Ok(ByteSize(bytes)));
            prop_assert!(!ByteSize(bytes).to_string().is_empty());
        }
    }
}
