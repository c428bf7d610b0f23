//! Store paths: `/nix/store/<hash>-<name>`, as text that was checked.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::str::FromStr;

use crate::foreign;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a store is mounted.
pub const STORE: &str = "/nix/store";
const HASH_LENGTH: usize = 32;
/// Nix refuses longer names (`libstore/path.cc`, `StorePath::MaxPathLen`).
const NAME_LIMIT: usize = 211;

/// The path of one store object: no trailing slash, nothing below it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(String);

/// Why a text is not a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAStorePath(String);

impl fmt::Display for NotAStorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "«{}» is not a store path: {STORE}/<32 characters of Nix's base 32>-<name> is expected",
            self.0
        )
    }
}

impl std::error::Error for NotAStorePath {}

impl StorePath {
    /// The path of a store object named by the first component, `<hash>-<name>`.
    pub fn from_store_name(name: &str) -> Result<Self, NotAStorePath> {
        let refused = || NotAStorePath(foreign::word(name));
        let (hash, rest) = name.split_at_checked(HASH_LENGTH).ok_or_else(refused)?;
        let rest = rest.strip_prefix('-').ok_or_else(refused)?;
        let name_fits = !rest.is_empty() && rest.len() <= NAME_LIMIT && !rest.starts_with('.') && rest.bytes().all(is_name_byte);
        if name_fits && hash.bytes().all(is_hash_byte) {
            Ok(Self(format!("{STORE}/{name}")))
        } else {
            Err(refused())
        }
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `<hash>-<name>`: the first component below the store.
    pub fn store_name(&self) -> &str {
        &self.0[STORE.len() + 1..]
    }

    /// The 32 characters of the hash.
    pub fn hash(&self) -> &str {
        &self.store_name()[..HASH_LENGTH]
    }

    /// The name behind the hash.
    pub fn name(&self) -> &str {
        &self.store_name()[HASH_LENGTH + 1..]
    }
}

/// Nix's base 32 leaves out `e o t u`.
fn is_hash_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'z') && !matches!(byte, b'e' | b'o' | b't' | b'u')
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte)
}

impl FromStr for StorePath {
    type Err = NotAStorePath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_prefix(STORE).and_then(|rest| rest.strip_prefix('/'));
        match name {
            Some(name) => Self::from_store_name(name).map_err(|_| NotAStorePath(foreign::word(text))),
            None => Err(NotAStorePath(foreign::word(text))),
        }
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for StorePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StorePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_store_path_names_its_hash_and_name() {
        let path: StorePath = "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-demo-26.05"
            .parse()
            .unwrap();
        assert_eq!(path.hash(), "0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1");
        assert_eq!(path.name(), "nixos-system-demo-26.05");
        assert_eq!(StorePath::from_store_name(path.store_name()).unwrap(), path);
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for bad in [
            "",
            "/nix/store",
            "/nix/store/",
            "/nix/store/short-x",
            "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1",
            "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-",
            "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-a/b",
            "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-..",
            "/nix/store/0C5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-a",
            "/nix/store/ec5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-a",
            "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhcé-a",
            "nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-a",
        ] {
            assert!(bad.parse::<StorePath>().is_err(), "{bad}");
        }
    }
}
