//! Answers: a release and its manifest in one file.

use serde::{Deserialize, Serialize};

use super::authorised::{Authorised, Trust, authorise};
use super::envelope::Envelope;
use super::release::ChannelName;
use super::{ANSWER_LIMIT, Refusal, parse_version_1};
use crate::digest::Digest;
use crate::store_path::StorePath;

/// An answer as it came: nothing in it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    version: u64,
    release: Envelope,
    manifest: String,
}

/// What was asked for. An answer must name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The newest release of a channel.
    Channel(ChannelName),
    /// The release that holds a system.
    System(StorePath),
    /// The manifest of this digest, which is then not an answer but the manifest itself.
    Manifest(Digest),
}

impl Question {
    /// The path of the answer below the served folder's URL.
    pub fn path(&self) -> String {
        match self {
            Self::Channel(name) => format!("channels/{name}.json"),
            Self::System(toplevel) => format!("by-system/{}.json", toplevel.hash()),
            Self::Manifest(digest) => format!("manifests/{digest}.json"),
        }
    }
}

impl Answer {
    /// An answer of a release and a manifest's text.
    pub fn new(release: Envelope, manifest: String) -> Self {
        Self {
            version: 1,
            release,
            manifest,
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// Malformed, too long, or of another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        parse_version_1("answer", text_of(bytes)?)
    }

    /// The envelope, as it came.
    pub fn release(&self) -> &Envelope {
        &self.release
    }

    /// The envelope, to be signed.
    pub fn release_mut(&mut self) -> &mut Envelope {
        &mut self.release
    }

    /// The manifest's exact text.
    pub fn manifest(&self) -> &str {
        &self.manifest
    }
}

/// What came back from a server: a manifest's text, and the release that named it where there is one. Nothing in it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The envelope, as it came.
    pub release: Option<Envelope>,
    /// The manifest's exact text.
    pub manifest: String,
}

impl Received {
    /// Reads the body that a server sent for `question`.
    ///
    /// # Errors
    /// Malformed, too long, or of another version.
    pub fn parse(question: &Question, bytes: &[u8]) -> Result<Self, Refusal> {
        match question {
            Question::Manifest(_) => Ok(Self {
                release: None,
                manifest: text_of(bytes)?.to_owned(),
            }),
            Question::Channel(_) | Question::System(_) => {
                let answer = Answer::parse(bytes)?;
                Ok(Self {
                    release: Some(answer.release),
                    manifest: answer.manifest,
                })
            }
        }
    }

    /// Authorises what came as an answer to `question`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn authorise(&self, question: &Question, trust: &Trust) -> Result<Authorised, Refusal> {
        let authorised = authorise(self.release.as_ref(), &self.manifest, trust)?;
        let instead = match question {
            Question::Channel(asked) => match authorised.release() {
                Some(release) if release.channel == *asked => return Ok(authorised),
                Some(release) => format!("channel {asked} was asked for, the answer is of channel {}", release.channel),
                None => format!("channel {asked} was asked for, the answer names none"),
            },
            Question::System(asked) if authorised.manifest().system(asked).is_some() => return Ok(authorised),
            Question::System(asked) => format!("{asked} was asked for, the answer does not hold it"),
            Question::Manifest(asked) if authorised.digest() == *asked => return Ok(authorised),
            Question::Manifest(_) => return Err(Refusal::ManifestMismatch),
        };
        Err(Refusal::NotWhatWasAsked(instead))
    }
}

/// The text of an answer or a manifest, bounded. HTML is named as such: a captive portal or an error page is what it mostly is.
fn text_of(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() as u64 > ANSWER_LIMIT {
        return Err(Refusal::Malformed(format!("the answer is longer than {ANSWER_LIMIT} bytes")));
    }
    if looks_like_html(bytes) {
        return Err(Refusal::Malformed(
            "the answer is an HTML page: a captive portal, a proxy or an error page stands in between".to_owned(),
        ));
    }
    std::str::from_utf8(bytes).map_err(|_| Refusal::Malformed("the answer is not UTF-8".to_owned()))
}

/// Whether `bytes` begin as an HTML page does.
pub fn looks_like_html(bytes: &[u8]) -> bool {
    let start = bytes.trim_ascii_start();
    let head: Vec<u8> = start.iter().take(14).map(u8::to_ascii_lowercase).collect();
    head.starts_with(b"<!doctype html") || head.starts_with(b"<html") || head.starts_with(b"<head")
}
