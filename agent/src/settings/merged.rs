//! The second of the three types: file below command line. Decides what the command line may, and what becomes of a value that cannot be read.
//!
//! The rule for the latter: what weakens trust, decides which system boots, or could touch disks is an error; for the rest the boot goes on with
//! the configured value and a warning, because a slip on a command line must not cost a machine that nobody stands beside.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::fmt;

use super::nearest::nearest;
use super::parsed::ParsedFile;
use super::row::{Guard, Input, Kind, Row};
use super::table::{TABLE, by_kebab};
use super::validated::{Origin, Settings};
use super::value::{cut, switch};
use crate::cmdline::{CommandLine, Param};

/// What the settings of ours begin with on the command line.
pub const PREFIX: &str = "freshroot.";
/// The one word behind [`PREFIX`] that is not a setting: a freshroot has kexeced into this kernel.
pub const KEXECED: &str = "kexec";

/// One value for each setting that was set, and the words of the command line that are no settings.
#[derive(Debug, Default)]
pub struct Merged {
    /// By name, as in the file.
    pub chosen: BTreeMap<&'static str, Chosen>,
    /// Whether `freshroot.kexec` says so.
    pub kexeced: bool,
    /// What was ignored or replaced, and why.
    pub warnings: Vec<String>,
}

/// The value that counts.
#[derive(Debug)]
pub struct Chosen {
    /// Its row.
    pub row: &'static Row,
    /// The value as it came; it was checked.
    pub input: Input,
    /// Where it came from.
    pub origin: Origin,
}

/// A command line that must not be followed, nor passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Offset of the word in bytes, from 0.
    pub position: usize,
    /// The setting and what to do about it.
    pub problem: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the command line at byte {}: {}", self.position, self.problem)
    }
}

impl std::error::Error for Refused {}

/// What becomes of one word of the command line.
#[derive(Debug, PartialEq)]
enum Outcome {
    Take(Input),
    Ignore(String),
    Refuse(String),
}

/// Puts the command line over the file.
///
/// # Errors
/// [`Refused`], with the position.
pub fn merge(file: &ParsedFile, line: &CommandLine) -> Result<Merged, Refused> {
    let mut merged = Merged::default();
    let mut configured = Settings::defaults();
    for (row, value) in &file.values {
        let input = Input::Json(value.clone());
        // Checked while the file was read, so this cannot be refused; were it, the position would be that of no word.
        row.put(&mut configured, &input)
            .map_err(|problem| Refused { position: 0, problem })?;
        let origin = Origin::File;
        merged.chosen.insert(row.name, Chosen { row, input, origin });
    }
    for param in &line.params {
        let Some(key) = param.key.strip_prefix(PREFIX) else { continue };
        // The last one counts; what stands before it was overridden on purpose and is not even looked at.
        if line.last(&param.key).is_some_and(|last| last.position != param.position) {
            continue;
        }
        if key == KEXECED {
            let value = param.value.as_deref().unwrap_or("1");
            merged.kexeced = switch(value).unwrap_or_else(|problem| {
                // The safe side: a kernel that was kexeced into never kexecs again.
                merged.warnings.push(format!("{} is taken for true: {problem}", at(param)));
                true
            });
            continue;
        }
        let Some(row) = by_kebab(key) else {
            merged.warnings.push(unknown(param, key));
            continue;
        };
        match decide(row, param, &configured) {
            Outcome::Take(input) => {
                let origin = Origin::CommandLine { position: param.position };
                merged.chosen.insert(row.name, Chosen { row, input, origin });
            }
            Outcome::Ignore(warning) => merged.warnings.push(warning),
            Outcome::Refuse(problem) => {
                return Err(Refused {
                    position: param.position,
                    problem,
                });
            }
        }
    }
    Ok(merged)
}

/// Decides over one word: first whether it may, then whether it can be read, so that a refused attempt never stops a boot.
fn decide(row: &'static Row, param: &Param, configured: &Settings) -> Outcome {
    let input = match (&param.value, &row.kind) {
        (Some(value), _) => Input::Text(value.clone()),
        (None, Kind::Switch(_)) => Input::Text("1".to_owned()),
        (None, _) => Input::Text(String::new()),
    };
    let mut wanted = configured.clone();
    let read = row.put(&mut wanted, &input);
    let listed = configured.command_line_may.contains(&row.name);
    let unlisted = || {
        Outcome::Ignore(format!(
            "{} is ignored: only a configuration that lists {} in commandLineMay lets the command line set it",
            at(param),
            row.name
        ))
    };
    let severe = match row.guard {
        Guard::Never => {
            return Outcome::Ignore(format!(
                "{} is ignored: {} is set in the configuration file only",
                at(param),
                row.name
            ));
        }
        Guard::Listed if !listed => return unlisted(),
        Guard::ListedIfWeaker(weaker) if !listed && weaker(configured, &wanted) => return unlisted(),
        Guard::Strict | Guard::Listed | Guard::ListedIfWeaker(_) => true,
        Guard::Free => false,
    };
    match read {
        Ok(()) => Outcome::Take(input),
        Err(problem) if severe => Outcome::Refuse(format!("{}: {problem}", param.key)),
        Err(problem) => Outcome::Ignore(format!("{} is ignored, the configured value stays: {problem}", at(param))),
    }
}

fn unknown(param: &Param, key: &str) -> String {
    let names: Vec<String> = TABLE.iter().map(Row::kebab).chain([KEXECED.to_owned()]).collect();
    let meant = nearest(key, names.iter().map(String::as_str));
    let meant = meant.map(|name| format!("; is {PREFIX}{name} meant?")).unwrap_or_default();
    format!("{} is ignored: there is no such setting{meant}", at(param))
}

/// A word of the command line, without its value, as messages name it.
fn at(param: &Param) -> String {
    format!("{} (command line, byte {})", cut(&param.key), param.position)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn merged(json: &str, line: &str) -> Result<Merged, Refused> {
        let file = ParsedFile::parse("config.json", format!("{{\"version\": 1, {json} \"log\": \"info\"}}").as_bytes()).unwrap();
        merge(&file, &CommandLine::parse(line.as_bytes()).unwrap())
    }

    /// What the docs say of each guard and each value, one row each.
    #[test]
    fn a_word_is_taken_ignored_or_refused_by_the_rule_of_the_docs() {
        let pin = |byte: &str| format!("\"manifestSha256\": \"{}\",", byte.repeat(32));
        const MAY: &str = r#""commandLineMay": ["allowUnsigned", "cache.device", "verify"],"#;
        for (json, line, expected) in [
            // Free: taken; unreadable: ignored.
            ("", "freshroot.policy.wait=5s", "policy.wait"),
            ("", "freshroot.network.keep", "network.keep"),
            ("", "freshroot.policy.wait=soon", "ignored, the configured value stays: «soon»"),
            ("", "freshroot.policy.wait", "ignored, the configured value stays: «»"),
            // Strict: taken; unreadable: refused.
            ("", "freshroot.channel=stable", "channel"),
            ("", "freshroot.system=/bin/sh", "refused"),
            ("", "freshroot.manifest-sha256=12", "refused"),
            ("", "freshroot.policy.mode=require-frsh", "refused"),
            // Listed: ignored unless listed, readable or not; listed and unreadable: refused.
            ("", "freshroot.allow-unsigned=1", "only a configuration that lists allowUnsigned"),
            (
                "",
                "freshroot.allow-unsigned=maybe",
                "only a configuration that lists allowUnsigned",
            ),
            (MAY, "freshroot.allow-unsigned", "allowUnsigned"),
            (MAY, "freshroot.allow-unsigned=maybe", "refused"),
            (MAY, "freshroot.cache.device=sda", "refused"),
            // Listed if weaker.
            ("", "freshroot.verify=full", "verify"),
            (r#""verify": "size","#, "freshroot.verify=size", "verify"),
            (r#""verify": "size","#, "freshroot.verify=full", "verify"),
            ("", "freshroot.verify=size", "only a configuration that lists verify"),
            (MAY, "freshroot.verify=size", "verify"),
            ("", "freshroot.verify=none", "refused"),
            ("", &format!("freshroot.manifest-sha256={}", "ab".repeat(32)), "manifestSha256"),
            (
                &pin("ab"),
                &format!("freshroot.manifest-sha256={}", "ab".repeat(32)),
                "manifestSha256",
            ),
            (
                &pin("ab"),
                &format!("freshroot.manifest-sha256={}", "cd".repeat(32)),
                "only a configuration that lists manifestSha256",
            ),
            // Never.
            (MAY, "freshroot.file-systems=x", "in the configuration file only"),
            (MAY, "freshroot.command-line-may=cache.path", "in the configuration file only"),
            // Unknown: a warning with the nearest name.
            ("", "freshroot.polcy.wait=5", "is freshroot.policy.wait meant?"),
            ("", "freshroot.policy.fetchWait=5", "is freshroot.policy.fetch-wait meant?"),
            ("", "freshroot.=", "no such setting"),
            ("", "freshroot.kexec=x", "taken for true"),
            // The last one wins, and what it overrides is not looked at.
            ("", "freshroot.channel=../x freshroot.channel=stable", "channel"),
        ] {
            match merged(json, line) {
                Err(refused) => assert!(expected == "refused", "{line}: {refused}"),
                Ok(Merged { chosen, warnings, .. }) if warnings.is_empty() => {
                    let name = chosen
                        .values()
                        .find(|chosen| matches!(chosen.origin, Origin::CommandLine { .. }))
                        .unwrap();
                    assert_eq!(name.row.name, expected, "{line}");
                }
                Ok(Merged { chosen, warnings, .. }) => {
                    assert!(warnings.len() == 1 && warnings[0].contains(expected), "{line}: {warnings:?}");
                    assert!(chosen.values().all(|chosen| chosen.origin == Origin::File), "{line}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_names_position_and_word() {
        let refused = merged("", "quiet freshroot.system=/bin/sh").unwrap_err();
        assert_eq!(refused.position, 6);
        assert!(
            refused
                .to_string()
                .starts_with("the command line at byte 6: freshroot.system: «/bin/sh»"),
            "{refused}"
        );
    }

    #[test]
    fn every_setting_that_weakens_trust_or_writes_to_disks_needs_to_be_listed() {
        for name in [
            "trustedPublicKeys",
            "allowUnsigned",
            "resetFloor",
            "http.caFile",
            "cache.device",
            "cache.fsType",
            "cache.options",
            "cache.path",
            "store.rwDevice",
        ] {
            let row = crate::settings::table::by_name(name).unwrap();
            assert!(matches!(row.guard, Guard::Listed), "{name}");
        }
    }

    #[test]
    fn the_kexec_word_is_off_only_where_it_says_so() {
        for (line, expected) in [
            ("", false),
            ("freshroot.kexec", true),
            ("freshroot.kexec=1", true),
            ("freshroot.kexec=0", false),
            ("freshroot.kexec=maybe", true),
        ] {
            assert_eq!(merged("", line).unwrap().kexeced, expected, "{line}");
        }
    }
}
