//! Generations: published versions that this machine accepted, with all that is needed to verify them again.

use serde::{Deserialize, Serialize};

use super::authorised::{Authorised, Trust, authorise};
use super::envelope::Envelope;
use super::{Refusal, parse_version_1};
use crate::digest::Digest;

/// A generation as it stands on the cache disk: nothing in it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Always 1.
    pub version: u64,
    /// The release as it came; none if the manifest came by its pin.
    pub release: Option<Envelope>,
    /// The manifest's exact text.
    pub manifest: String,
    /// Grows with each acceptance on this machine.
    pub sequence: u64,
    /// When it was accepted, by this machine's clock: for people.
    pub accepted: u64,
    /// The URL that it came from, without credentials.
    pub source: String,
    /// The answer's entity tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl Generation {
    /// Reads a generation file that is named `<digest>.json`.
    ///
    /// # Errors
    /// Malformed, of another version, or under a name that is not its manifest's digest.
    pub fn parse(text: &str, named: Digest) -> Result<Self, Refusal> {
        let generation: Self = parse_version_1("generation", text)?;
        if generation.digest() == named {
            Ok(generation)
        } else {
            Err(Refusal::ManifestMismatch)
        }
    }

    /// The digest of the manifest's text, which is the generation's name.
    pub fn digest(&self) -> Digest {
        Digest::of(self.manifest.as_bytes())
    }

    /// Authorises the generation again, as at each boot. Serial and expiry do not matter: what was accepted once keeps booting.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn authorise(&self, trust: &Trust) -> Result<Authorised, Refusal> {
        authorise(self.release.as_ref(), &self.manifest, trust)
    }
}
