//! Sizes of tmpfs mounts: «512M», «50%».

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How large a tmpfs may grow, in the words of tmpfs(5): bytes with an optional K, M, G or T (powers of 1024), or a share of the RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsSize(String);

/// Why a text is not the size of a tmpfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotATmpfsSize(String);

impl fmt::Display for NotATmpfsSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "«{}» is not a tmpfs size: write bytes as «512M» or «2G», or a share of the RAM as «50%» (1 to 100)",
            self.0
        )
    }
}

impl std::error::Error for NotATmpfsSize {}

impl FromStr for TmpfsSize {
    type Err = NotATmpfsSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not = || NotATmpfsSize(text.chars().take(40).collect());
        if let Some(percent) = text.strip_suffix('%') {
            return match number(percent) {
                Some(1..=100) => Ok(Self(text.to_owned())),
                Some(_) | None => Err(not()),
            };
        }
        let (digits, shift) = match text.char_indices().next_back() {
            Some((at, 'k' | 'K')) => (&text[..at], 10),
            Some((at, 'm' | 'M')) => (&text[..at], 20),
            Some((at, 'g' | 'G')) => (&text[..at], 30),
            Some((at, 't' | 'T')) => (&text[..at], 40),
            Some(_) | None => (text, 0),
        };
        // Zero means «no limit» to the kernel: a full tmpfs would then take the whole machine down.
        let bytes = number(digits)
            .filter(|&bytes| bytes > 0)
            .and_then(|bytes| bytes.checked_mul(1 << shift));
        if bytes.is_some() { Ok(Self(text.to_owned())) } else { Err(not()) }
    }
}

/// Decimal digits only: `u64::from_str` would take a plus sign.
fn number(digits: &str) -> Option<u64> {
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
}

impl fmt::Display for TmpfsSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TmpfsSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TmpfsSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_with_a_unit_or_a_share() {
        for good in ["1", "4096", "512M", "512m", "2G", "1T", "64k", "1%", "50%", "100%"] {
            assert!(good.parse::<TmpfsSize>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "%",
            "0",
            "0%",
            "101%",
            "-1",
            "+1",
            "1.5G",
            "G",
            "12X",
            "99999999999T",
            "1 G",
            "5%5",
            "ß",
        ] {
            assert!(bad.parse::<TmpfsSize>().is_err(), "{bad}");
        }
    }
}
