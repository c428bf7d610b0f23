//! Answers: a release and its manifest in one file.

use serde::{Deserialize, Serialize};

use super::authorised::{Authorised, Trust, authorise};
use super::envelope::Envelope;
use super::release::ChannelName;
use super::{ANSWER_LIMIT, Refusal, parse_version_1};
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
}

impl Question {
    /// The path of the answer below the served folder's URL.
    pub fn path(&self) -> String {
        match self {
            Self::Channel(name) => format!("channels/{name}.json"),
            Self::System(toplevel) => format!("by-system/{}.json", toplevel.hash()),
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

    /// Reads an answer. HTML is named as such: a captive portal or an error page is what it mostly is.
    ///
    /// # Errors
    /// Malformed, too long, or of another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() as u64 > ANSWER_LIMIT {
            return Err(Refusal::Malformed(format!("the answer is longer than {ANSWER_LIMIT} bytes")));
        }
        if looks_like_html(bytes) {
            return Err(Refusal::Malformed(
                "the answer is an HTML page: a captive portal, a proxy or an error page stands in between".to_owned(),
            ));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Refusal::Malformed("the answer is not UTF-8".to_owned()))?;
        parse_version_1("answer", text)
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

    /// Authorises the answer as one to `question`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn authorise(&self, question: &Question, trust: &Trust) -> Result<Authorised, Refusal> {
        let authorised = authorise(Some(&self.release), &self.manifest, trust)?;
        match question {
            Question::Channel(asked) => match authorised.release() {
                Some(release) if release.channel == *asked => Ok(authorised),
                Some(release) => Err(Refusal::NotWhatWasAsked(format!(
                    "channel {asked} was asked for, the answer is of channel {}",
                    release.channel
                ))),
                None => Err(Refusal::NotWhatWasAsked(format!(
                    "channel {asked} was asked for, the answer names none"
                ))),
            },
            Question::System(asked) if authorised.manifest().system(asked).is_some() => Ok(authorised),
            Question::System(asked) => Err(Refusal::NotWhatWasAsked(format!(
                "{asked} was asked for, the answer does not hold it"
            ))),
        }
    }
}

/// Whether `bytes` begin as an HTML page does.
pub fn looks_like_html(bytes: &[u8]) -> bool {
    let start = bytes.trim_ascii_start();
    let head: Vec<u8> = start.iter().take(14).map(u8::to_ascii_lowercase).collect();
    head.starts_with(b"<!doctype html") || head.starts_with(b"<html") || head.starts_with(b"<head")
}
