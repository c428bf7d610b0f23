//! Releases: which manifest a channel holds, since when and until when.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Refusal, check_critical, parse_version_1};
use crate::digest::Digest;
use crate::foreign;

const FIELDS: &[&str] = &["version", "critical", "channel", "serial", "created", "notAfter", "manifest"];

/// A channel's name: 1–64 characters of `A-Z a-z 0-9 . _ -`, no dot first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelName(String);

/// Why a text is not a channel's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAChannel(String);

impl fmt::Display for NotAChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "«{}» is not a channel's name: 1 to 64 of A-Z a-z 0-9 . _ - are expected, no dot first",
            self.0
        )
    }
}

impl std::error::Error for NotAChannel {}

impl ChannelName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChannelName {
    type Err = NotAChannel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=64).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAChannel(foreign::word(text)))
        }
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ChannelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ChannelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A release. `created` and `not_after` are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Always 1.
    pub version: u64,
    /// Fields that a reader must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
    /// The channel that it was published to.
    pub channel: ChannelName,
    /// Grows with every publication to the channel; at least 1.
    pub serial: u64,
    /// When it was signed.
    pub created: u64,
    /// After it, not accepted as a new answer any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
    /// The digest of the manifest's bytes.
    pub manifest: Digest,
}

impl Release {
    /// Reads a payload.
    ///
    /// # Errors
    /// Malformed, of another version, or with a critical field that is not known.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(bytes).map_err(|_| Refusal::Malformed("the release is not UTF-8".to_owned()))?;
        let release: Self = parse_version_1("release", text)?;
        check_critical("release", &release.critical, FIELDS)?;
        if release.serial == 0 {
            return Err(Refusal::Malformed("the release's serial is 0, at least 1 is expected".to_owned()));
        }
        Ok(release)
    }
}
