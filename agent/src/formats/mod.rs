//! Formats: what is published, and what is kept on the cache disk. Written down in `docs/formats.md`.
//!
//! Everything here is pure: bytes in, values or a named refusal out. [`answer::Answer::authorise`] is the only maker of an
//! [`authorised::Authorised`] manifest.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod answer;
pub mod authorised;
pub mod chunk_index;
pub mod envelope;
pub mod generation;
pub mod key;
pub mod manifest;
pub mod part_map;
pub mod release;
pub mod state;
pub mod tries;

use std::fmt;

use crate::foreign;

/// Largest answer that is read: a manifest with hundreds of systems and deltas fits many times over.
pub const ANSWER_LIMIT: u64 = 1 << 20;

/// Why bytes from outside are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Not of the format: what, and where.
    Malformed(String),
    /// A version that this agent does not know.
    UnknownVersion {
        /// The format's name.
        what: &'static str,
        /// The version that was found.
        version: u64,
    },
    /// A critical field that this agent does not know.
    UnknownCritical {
        /// The format's name.
        what: &'static str,
        /// The field's name.
        field: String,
    },
    /// No signature by a trusted key; the names of the keys that signed.
    UntrustedKey(Vec<String>),
    /// A signature that names a trusted key and does not fit.
    BadSignature(String),
    /// Not signed at all.
    Unsigned,
    /// The manifest is not the one that the release or the pin names.
    ManifestMismatch,
    /// The answer is for another channel or system than the one asked for.
    NotWhatWasAsked(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => f.write_str(what),
            Self::UnknownVersion { what, version } => {
                write!(f, "the {what} has version {version}, this agent knows version 1: update the agent")
            }
            Self::UnknownCritical { what, field } => {
                write!(
                    f,
                    "the {what} demands that the field «{field}» is understood, this agent does not know it: update the agent"
                )
            }
            Self::UntrustedKey(names) => write!(f, "signed by {}, which trustedPublicKeys does not hold", names.join(", ")),
            Self::BadSignature(name) => write!(
                f,
                "the signature by {name} does not fit the release: it was changed, or another key has this name"
            ),
            Self::Unsigned => f.write_str("the release is not signed, and allowUnsigned is not set"),
            Self::ManifestMismatch => f.write_str("the manifest is not the one that was signed or pinned"),
            Self::NotWhatWasAsked(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refusal {}

/// Reads a JSON document whose `version` must be 1; the version is looked at first, so that a newer document is named as such.
fn parse_version_1<'de, T: serde::Deserialize<'de>>(what: &'static str, text: &'de str) -> Result<T, Refusal> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u64,
    }
    let malformed =
        |error: serde_json::Error| Refusal::Malformed(format!("the {what} is malformed: {}", foreign::sentence(&error.to_string())));
    let Version { version } = serde_json::from_str(text).map_err(malformed)?;
    if version != 1 {
        return Err(Refusal::UnknownVersion { what, version });
    }
    serde_json::from_str(text).map_err(malformed)
}

fn check_critical(what: &'static str, critical: &[String], known: &[&str]) -> Result<(), Refusal> {
    match critical.iter().find(|field| !known.contains(&field.as_str())) {
        None => Ok(()),
        Some(field) => Err(Refusal::UnknownCritical {
            what,
            field: foreign::word(field),
        }),
    }
}
