//! Credentials from a file. They go to the servers that are configured, over TLS, and nowhere else: into no log, no report, no message.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A token of an identity provider has some KiB.
const LIMIT: u64 = 32 << 10;

/// The value of `Authorization`.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorization(String);

impl Authorization {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read, or holds something else; never with a word of what it holds.
    pub fn read(path: &Path) -> Result<Self> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(LIMIT).read_to_string(&mut text))
            .with_context(|| format!("reading the credentials in {}", path.display()))?;
        Self::parse(&text).with_context(|| {
            format!(
                "{} is to hold one line, «bearer TOKEN» or «basic USER:PASSWORD», and does not",
                path.display()
            )
        })
    }

    /// `bearer TOKEN` or `basic USER:PASSWORD`, on one line. Lines before it that begin with `#` are left out, and so is what is empty.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (scheme, secret) = lines.next()?.split_once(' ')?;
        let secret = secret.trim_start();
        if lines.next().is_some() || secret.is_empty() || secret.contains(char::is_control) {
            return None;
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            // RFC 6750, 2.1: a token has no spaces.
            secret
                .bytes()
                .all(|byte| byte.is_ascii_graphic())
                .then(|| Self(format!("Bearer {secret}")))
        } else if scheme.eq_ignore_ascii_case("basic") {
            secret.contains(':').then(|| Self(format!("Basic {}", STANDARD.encode(secret))))
        } else {
            None
        }
    }

    /// For the header, and for nothing else.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorization(…)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_is_bearer_or_basic() {
        for (text, value) in [
            ("bearer abc.def\n", Some("Bearer abc.def")),
            ("# for the mirror\n\nBearer  abc\n\n", Some("Bearer abc")),
            ("basic user:pass word\n", Some("Basic dXNlcjpwYXNzIHdvcmQ=")),
            ("BASIC :x", Some("Basic Ong=")),
            ("basic user\n", None),
            ("bearer a b\n", None),
            ("bearer\n", None),
            ("abc\n", None),
            ("digest a:b\n", None),
            ("bearer a\nbearer b\n", None),
            ("", None),
        ] {
            assert_eq!(Authorization::parse(text).as_ref().map(Authorization::expose), value, "{text}");
        }
    }

    #[test]
    fn neither_a_message_nor_a_dump_holds_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        std::fs::write(&path, "hunter2 hunter2\n").unwrap();
        let error = Authorization::read(&path).unwrap_err();
        assert!(!format!("{error:#} {error:?}").contains("hunter2") && format!("{error:#}").contains("credentials"));
        std::fs::write(&path, "bearer hunter2\n").unwrap();
        assert!(!format!("{:?}", Authorization::read(&path).unwrap()).contains("hunter2"));
        assert!(format!("{:#}", Authorization::read(&folder.path().join("none")).unwrap_err()).contains("none"));
    }
}
