//! Selecting: which system this boot is to start, from what the command line and the configuration say. Pure.
//!
//! Selecting is not authorising: a toplevel's hash is made from inputs and says nothing about who built it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::digest::Digest;
use crate::foreign;
use crate::formats::Refusal;
use crate::formats::answer::Question;
use crate::formats::authorised::{Authorised, Trust};
use crate::formats::manifest::System;
use crate::formats::release::NotAChannel;
use crate::mode::Mode;
use crate::settings::{InitWord, Settings};
use crate::store_path::StorePath;

/// What is wanted, and whom this machine believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What names the system.
    pub target: Target,
    /// What authorises it.
    pub trust: Trust,
    /// The only system that can be booted, because somebody else follows `init=` to it.
    pub only: Option<StorePath>,
}

impl Wanted {
    /// The system of a generation that would be booted: what is wanted, or, as a fall-back, its own default.
    pub fn system_of<'a>(&self, authorised: &'a Authorised) -> Option<&'a System> {
        let wanted = self.target.system_of(authorised);
        wanted.or_else(|| authorised.manifest().default_system())
    }

    /// Why a generation cannot be booted, because of what is on the command line; nothing if it can.
    pub fn rules_out(&self, authorised: &Authorised) -> Option<String> {
        let (only, system) = (self.only.as_ref()?, self.system_of(authorised)?);
        (system.toplevel != *only).then(|| {
            format!(
                "init= names {only}, and systemd's stage 1 boots exactly that: with init=/nix/.freshroot/init freshroot.system={only} another system can be fallen back to"
            )
        })
    }

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
/// | `init=` | standalone | systemd, where NixOS's units follow `init=` and nothing else |
/// |---|---|---|
/// | `/nix/.freshroot/init` | selects nothing: the agent's choice is followed | the same |
/// | `/nix/store/X/init` | selects X, unless `freshroot.system=` names another | selects X; nothing else can be booted |
/// | another program | is ignored | is ignored, and will be started by systemd |
/// | none | selects nothing | selects nothing; NixOS's units will fail |
///
/// # Errors
/// If a trusted key or the channel's name is malformed.
pub fn select(settings: &Settings, mode: Mode) -> Result<(Wanted, Vec<String>), Refusal> {
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
            let program = foreign::word(program);
            oddities.push(match mode {
                Mode::Standalone => format!("init={program} names no system (/nix/store/<hash>-<name>/init does): it is ignored"),
                Mode::Systemd => {
                    format!("init={program} names no system, and systemd will start it all the same: write init=/nix/.freshroot/init")
                }
            });
            None
        }
        InitWord::Absent => {
            if mode == Mode::Systemd {
                oddities.push(
                    "there is no init= on the kernel command line, and NixOS's stage 1 finds no system without it: write init=/nix/.freshroot/init"
                        .to_owned(),
                );
            }
            None
        }
        InitWord::Ours => None,
    };
    let system = match (&settings.system, by_init, mode) {
        (Some(system), Some(by_init), _) if system != by_init => {
            let (used, ignored) = match mode {
                Mode::Standalone => (system, by_init),
                Mode::Systemd => (by_init, system),
            };
            oddities.push(format!(
                "freshroot.system= and init= name different systems: {used} is used, {ignored} is ignored"
            ));
            Some(used)
        }
        (Some(system), _, _) => Some(system),
        (None, by_init, _) => by_init,
    };
    let only = match mode {
        Mode::Standalone => None,
        Mode::Systemd => by_init.cloned(),
    };
    let target = match (system, settings.manifest_sha256, &settings.channel) {
        (Some(system), _, _) => Target::System(system.clone()),
        (None, Some(digest), _) => Target::Manifest(digest),
        (None, None, Some(channel)) => Target::Channel(channel.parse().map_err(|error| malformed(&error))?),
        (None, None, None) => Target::Anything,
    };
    if let Some(channel) = &settings.reset_floor {
        oddities.push(match &target {
            Target::Channel(followed) if followed == channel => format!(
                "resetFloor: the next valid answer of channel {channel} is accepted, however old it is; take freshroot.reset-floor away once that was done"
            ),
            Target::System(_) | Target::Manifest(_) => {
                format!("resetFloor names channel {channel}, and this boot is named exactly what to boot: nothing is reset by it")
            }
            Target::Channel(_) | Target::Anything => format!("resetFloor names channel {channel}, which is not followed: nothing is reset"),
        });
    }
    let trust = Trust {
        keys,
        pinned: settings.manifest_sha256,
        allow_unsigned: settings.allow_unsigned,
    };
    Ok((Wanted { target, trust, only }, oddities))
}

impl Wanted {
    /// What a refresh of the cache from the running system is to bring: the newest release of the channel, where one is configured. What the command
    /// line of this boot has selected says what boots, not what is to be there for later boots; without a channel it is all that there is to ask for.
    ///
    /// # Errors
    /// If the channel's name is malformed.
    pub fn for_refresh(&self, settings: &Settings) -> Result<Self, Refusal> {
        let Some(channel) = &settings.channel else {
            return Ok(self.clone());
        };
        let channel = channel
            .parse()
            .map_err(|error: NotAChannel| Refusal::Malformed(error.to_string()))?;
        Ok(Self {
            target: Target::Channel(channel),
            // A pin authorises one manifest, and asks for it alone.
            trust: Trust {
                pinned: None,
                ..self.trust.clone()
            },
            only: None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a";
    const B: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-b";

    #[test]
    fn a_refresh_follows_the_channel_whatever_this_boot_has_selected() {
        let settings = |file: &str, line: &str| Settings::from_sources(Some(("file", file.as_bytes())), line.as_bytes()).unwrap();
        let refreshed = |file: &str, line: &str| {
            let settings = settings(file, line);
            let (wanted, _) = select(&settings, Mode::Standalone).unwrap();
            wanted.for_refresh(&settings).unwrap()
        };
        let system = "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-a";
        let digest = "ab".repeat(32);
        let channel = r#"{"version": 1, "channel": "stable"}"#;
        let stable = Target::Channel("stable".parse().unwrap());
        for line in [
            String::new(),
            format!("freshroot.system={system}"),
            format!("init={system}/init"),
            format!("freshroot.manifest-sha256={digest}"),
        ] {
            let wanted = refreshed(channel, &line);
            assert_eq!((wanted.target, wanted.trust.pinned), (stable.clone(), None), "{line}");
        }
        let none = r#"{"version": 1}"#;
        assert_eq!(
            refreshed(none, &format!("freshroot.system={system}")).target,
            Target::System(system.parse().unwrap())
        );
        assert_eq!(refreshed(none, "").question(), None);
    }

    #[test]
    fn a_reset_is_said_aloud_and_so_is_one_that_resets_nothing() {
        let system = format!("freshroot.system={A}");
        for (line, words) in [
            ("", "answer of channel stable is accepted, however old"),
            (system.as_str(), "nothing is reset by it"),
            ("freshroot.channel=testing", "which is not followed"),
        ] {
            let file = br#"{"version": 1, "channel": "stable", "resetFloor": "stable"}"#;
            let settings = Settings::from_sources(Some(("file", file)), line.as_bytes()).unwrap();
            let (_, oddities) = select(&settings, Mode::Standalone).unwrap();
            assert!(oddities.len() == 1 && oddities[0].contains(words), "{line}: {oddities:?}");
        }
    }

    #[test]
    fn init_selects_as_far_as_others_follow_it() {
        use Mode::{Standalone, Systemd};
        for (mode, line, target, only, odd) in [
            (Standalone, "init=/nix/.freshroot/init", "any cached system", None, ""),
            (Systemd, "init=/nix/.freshroot/init", "any cached system", None, ""),
            (Standalone, "init=A/init", "system a", None, ""),
            (Systemd, "init=A/init", "system a", Some(A), ""),
            (
                Standalone,
                "init=A/init freshroot.system=B",
                "system b",
                None,
                "B is used, A is ignored",
            ),
            (
                Systemd,
                "init=A/init freshroot.system=B",
                "system a",
                Some(A),
                "A is used, B is ignored",
            ),
            (Systemd, "init=A/init freshroot.system=A", "system a", Some(A), ""),
            (Systemd, "init=/nix/.freshroot/init freshroot.system=B", "system b", None, ""),
            (Standalone, "init=/bin/sh", "any cached system", None, "it is ignored"),
            (Systemd, "init=/bin/sh", "any cached system", None, "systemd will start it"),
            (Standalone, "", "any cached system", None, ""),
            (Systemd, "", "any cached system", None, "there is no init="),
        ] {
            let long = |text: &str| {
                text.replace("A/", &format!("{A}/"))
                    .replace("=A", &format!("={A}"))
                    .replace("=B", &format!("={B}"))
            };
            let settings = Settings::from_sources(None, long(line).as_bytes()).unwrap();
            let (wanted, oddities) = select(&settings, mode).unwrap();
            let seen = wanted.target.to_string();
            assert!(seen.ends_with(target.trim_start_matches("system ")), "{mode} {line}: {seen}");
            assert_eq!(wanted.only.as_ref().map(StorePath::as_str), only, "{mode} {line}");
            let odd = odd.replace("A is", &format!("{A} is")).replace("B is", &format!("{B} is"));
            assert_eq!(oddities.len(), usize::from(!odd.is_empty()), "{mode} {line}: {oddities:?}");
            assert!(
                oddities.iter().all(|sentence| sentence.contains(&odd)),
                "{mode} {line}: {oddities:?}"
            );
        }
    }
}
