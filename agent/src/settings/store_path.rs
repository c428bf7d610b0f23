//! Store paths: `/nix/store/<32 characters of nix-base32>-<name>`.
//!
//! The alphabet (no `e`, `o`, `t`, `u`) and the characters of a name are those of Nix's `libstore/path.cc`.

use std::fmt;
use std::str::FromStr;

/// Where every store path lives; other store folders are not supported, by Nix's own binary caches neither.
pub const STORE: &str = "/nix/store";

const HASH_LEN: usize = 32;
/// Nix's own limit for the name part.
const NAME_MAX: usize = 211;

/// A store path that names something directly in the store, such as a toplevel. It selects; it authenticates nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    /// `<hash>-<name>`; the hash is ASCII and [`HASH_LEN`] long.
    base: String,
}

/// Why a text is not a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAStorePath {
    text: String,
    reason: &'static str,
}

impl fmt::Display for NotAStorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "«{}» is not a store path: {}; {STORE}/<32 characters>-<name> is expected",
            self.text, self.reason
        )
    }
}

impl std::error::Error for NotAStorePath {}

impl StorePath {
    /// Reads `<hash>-<name>`, the last part of a store path, as manifests and the initrd's configuration name a kernel.
    pub fn from_base_name(base: &str) -> Result<Self, NotAStorePath> {
        match base_name_problem(base) {
            None => Ok(Self { base: base.to_owned() }),
            Some(reason) => Err(NotAStorePath {
                text: base.chars().take(120).collect(),
                reason,
            }),
        }
    }

    /// The 32 characters of nix-base32 that tell store paths apart.
    pub fn hash(&self) -> &str {
        self.base.split_once('-').map_or("", |(hash, _)| hash)
    }

    /// What follows the hash, such as `nixos-system-demo-26.05`.
    pub fn name(&self) -> &str {
        self.base.split_once('-').map_or("", |(_, name)| name)
    }

    /// `<hash>-<name>`: the name of the entry at the image's root.
    pub fn base_name(&self) -> &str {
        &self.base
    }
}

/// What is wrong with `<hash>-<name>`, if anything is.
fn base_name_problem(base: &str) -> Option<&'static str> {
    let Some((hash, name)) = base.split_once('-') else {
        return Some("there is no «-» after the hash");
    };
    if hash.len() != HASH_LEN {
        return Some("its hash does not have 32 characters");
    }
    if !hash.bytes().all(|b| b"0123456789abcdfghijklmnpqrsvwxyz".contains(&b)) {
        return Some("its hash holds a character that nix-base32 does not have");
    }
    if name.is_empty() {
        return Some("its name is empty");
    }
    if name.len() > NAME_MAX {
        return Some("its name is longer than 211 characters");
    }
    let dots = name.bytes().take_while(|b| *b == b'.').count();
    if (1..=2).contains(&dots) && matches!(name.as_bytes().get(dots), None | Some(b'-')) {
        return Some("its name begins with «.» or «..»");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b)) {
        return Some("its name holds a character other than letters, digits and +-._?=");
    }
    None
}

impl FromStr for StorePath {
    type Err = NotAStorePath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not = |reason| NotAStorePath {
            text: text.chars().take(120).collect(),
            reason,
        };
        let base = text
            .strip_prefix(STORE)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| not("it does not begin with /nix/store/"))?;
        if base.contains('/') {
            return Err(not("it names something inside a store path"));
        }
        match base_name_problem(base) {
            None => Ok(Self { base: base.to_owned() }),
            Some(reason) => Err(not(reason)),
        }
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE}/{}", self.base)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    #[test]
    fn a_store_path_gives_its_hash_and_name() {
        let text = format!("/nix/store/{HASH}-nixos-system-demo-26.05");
        let path: StorePath = text.parse().unwrap();
        assert_eq!(
            (path.hash(), path.name(), path.to_string()),
            (HASH, "nixos-system-demo-26.05", text.clone())
        );
        assert_eq!(StorePath::from_base_name(path.base_name()).unwrap(), path);
    }

    #[test]
    fn what_could_leave_the_store_or_is_no_store_path_is_refused_with_the_reason() {
        let long = "x".repeat(212);
        for (text, reason) in [
            (String::new(), "begin"),
            (format!("/nix/stored/{HASH}-a"), "begin"),
            (format!("/nix/store{HASH}-a"), "begin"),
            (format!("/nix/store/{HASH}"), "no «-»"),
            (format!("/nix/store/{HASH}-"), "empty"),
            (format!("/nix/store/{HASH}-a/init"), "inside"),
            (format!("/nix/store/{HASH}-."), "«..»"),
            (format!("/nix/store/{HASH}-.."), "«..»"),
            (format!("/nix/store/{HASH}-..-x"), "«..»"),
            (format!("/nix/store/{}-a", &HASH[1..]), "32"),
            (format!("/nix/store/{}-a", HASH.replace('a', "e")), "base32"),
            (format!("/nix/store/{HASH}-a b"), "other than"),
            (format!("/nix/store/{HASH}-{long}"), "211"),
            (format!("/nix/store/{HASH}-ä"), "other than"),
        ] {
            let error = text.parse::<StorePath>().unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
        }
        assert!(format!("/nix/store/{HASH}-.hidden").parse::<StorePath>().is_ok());
    }
}
