//! Selecting: which system this boot is to start, from what the command line and the configuration say. Pure.
//!
//! Selecting is not authorising: a toplevel's hash is made from inputs and says nothing about who built it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::digest::Digest;
use crate::formats::Refusal;
use crate::formats::answer::Question;
use crate::formats::authorised::{Authorised, Trust};
use crate::formats::manifest::System;
use crate::settings::{InitWord, Settings};
use crate::store_path::StorePath;

/// What is wanted, and whom this machine believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What names the system.
    pub target: Target,
    /// What authorises it.
    pub trust: Trust,
}

impl Wanted {
    /// What a server would be asked: a pin names the manifest itself. Nothing if nothing is wanted.
    pub fn question(&self) -> Option<Question> {
        match (self.trust.pinned, &self.target) {
            (Some(digest), _) => Some(Question::Manifest(digest)),
            (None, Target::System(toplevel)) => Some(Question::System(toplevel.clone())),
            (None, Target::Channel(channel)) => Some(Question::Channel(channel.clone())),
            (None, Target::Manifest(digest)) => Some(Question::Manifest(*digest)),
            (None, Target::Anything) => None,
        }
    }
}

/// What names the wanted system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// This toplevel.
    System(StorePath),
    /// The default system of the newest release of a channel.
    Channel(crate::formats::release::ChannelName),
    /// The default system of the pinned manifest.
    Manifest(Digest),
    /// Nothing: the newest system that is cached.
    Anything,
}

impl Target {
    /// The system of this manifest that would be booted; none if the manifest does not hold what is wanted.
    pub fn system_of<'a>(&self, authorised: &'a Authorised) -> Option<&'a System> {
        let manifest = authorised.manifest();
        match self {
            Self::System(toplevel) => manifest.system(toplevel),
            Self::Channel(channel) => authorised
                .release()
                .filter(|release| release.channel == *channel)
                .and_then(|_| manifest.default_system()),
            Self::Manifest(digest) => (authorised.digest() == *digest).then(|| manifest.default_system()).flatten(),
            Self::Anything => manifest.default_system(),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System(toplevel) => write!(f, "system {}", toplevel.store_name()),
            Self::Channel(channel) => write!(f, "channel {channel}"),
            Self::Manifest(digest) => write!(f, "manifest {}", digest.short()),
            Self::Anything => f.write_str("any cached system"),
        }
    }
}

/// What the settings want, with sentences about what was odd.
///
/// # Errors
/// If a trusted key or the channel's name is malformed.
pub fn select(settings: &Settings) -> Result<(Wanted, Vec<String>), Refusal> {
    let malformed = |error: &dyn std::fmt::Display| Refusal::Malformed(error.to_string());
    let mut oddities = Vec::new();
    let keys = settings
        .trusted_public_keys
        .iter()
        .map(|key| key.parse().map_err(|error| malformed(&error)))
        .collect::<Result<_, _>>()?;
    let by_init = match &settings.init {
        InitWord::Toplevel(toplevel) => Some(toplevel),
        InitWord::Other(program) => {
            oddities.push(format!(
                "init={program} names no system (/nix/store/<hash>-<name>/init does): it is ignored"
            ));
            None
        }
        InitWord::Absent | InitWord::Ours => None,
    };
    let system = match (&settings.system, by_init) {
        (Some(system), Some(other)) if system != other => {
            oddities.push(format!(
                "freshroot.system= and init= name different systems: {system} is used, {other} is ignored"
            ));
            Some(system)
        }
        (Some(system), _) => Some(system),
        (None, by_init) => by_init,
    };
    let target = match (system, settings.manifest_sha256, &settings.channel) {
        (Some(system), _, _) => Target::System(system.clone()),
        (None, Some(digest), _) => Target::Manifest(digest),
        (None, None, Some(channel)) => Target::Channel(channel.parse().map_err(|error| malformed(&error))?),
        (None, None, None) => Target::Anything,
    };
    let trust = Trust {
        keys,
        pinned: settings.manifest_sha256,
        allow_unsigned: settings.allow_unsigned,
    };
    Ok((Wanted { target, trust }, oddities))
}
