//! The plan: what `boot` would do next and why, from what can be seen without doing anything. No executor is in scope here.
//!
//! It is pure but for one thing: it looks at the cache, through [`read_generations`], [`read_history`], [`read_state`] and [`held`] alone, which open files for
//! reading and change nothing. It may read, never write: [`crate::cache::Cache`], which locks and writes, has no place here.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cache::state::read_state;
use crate::cache::tries::read_history;
use crate::cache::{Held, held, read_generations};
use crate::candidates::{Observed, RunningKernel, candidates, is_spent};
use crate::decide::{Answer, Candidate, Decision, ImageState, Next, Situation, decide, policy_name};
use crate::floors::Floors;
use crate::mode::Mode;
use crate::mount::entry::{MountEntry, MountKind, Need};
use crate::mount::system::{RO_STORE, RW_STORE, STORE, TOPLEVEL_LINK};
use crate::prepare::declaration::Declared;
use crate::select::{Target, Wanted, select};
use crate::settings::row::Row;
use crate::settings::table::{TABLE, by_name};
use crate::settings::value::{show_bytes, show_duration};
use crate::settings::{Origin, Settings, Verify};

/// What boot would do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What is wanted.
    wanted: String,
    /// The policy's name.
    policy: &'static str,
    /// The next decision.
    decision: Planned,
    /// The decision if nobody gives a valid answer; none where nobody is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    without_answer: Option<Planned>,
    /// Where images are kept.
    cache: String,
    /// What is cached, the best first.
    generations: Vec<Seen>,
    /// Mounts in order, as they follow once an image is ready.
    mounts: Vec<String>,
    /// Disks that are prepared where they are blank.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disks: Vec<String>,
    /// Settings that are not at their default.
    settings: Vec<Set>,
    /// What is odd.
    warnings: Vec<String>,
}

/// One decision.
#[derive(Debug, Serialize)]
struct Planned {
    rule: &'static str,
    reason: String,
    next: String,
}

/// One cached generation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    name: String,
    manifest: String,
    wanted: bool,
    image: &'static str,
    #[serde(skip_serializing_if = "is_false")]
    blessed: bool,
    /// No tries are left.
    #[serde(skip_serializing_if = "is_false")]
    spent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unfit: Option<String>,
}

/// One setting.
#[derive(Debug, Serialize)]
struct Set {
    name: &'static str,
    value: String,
    origin: String,
}

/// Plans from settings for one mode, the cache in the folder `cache` (none: nothing is cached), the kernel, and the entries to be mounted.
///
/// # Errors
/// If a key or a channel's name is malformed, or the cache is there and cannot be read.
pub fn plan(settings: &Settings, mode: Mode, cache: Option<&Path>, kernel: &RunningKernel, entries: &[MountEntry]) -> Result<Plan> {
    let (wanted, oddities) = select(settings, mode).context("selecting a system")?;
    let mut warnings = settings.warnings.clone();
    warnings.extend(oddities);
    let (known, left_out) = match cache {
        Some(folder) => read_generations(folder, &wanted.trust)?,
        None => (Vec::new(), Vec::new()),
    };
    warnings.extend(left_out);
    // As at a boot: what cannot be read is as if absent.
    let history = cache.map(read_history).transpose().unwrap_or_else(|error| {
        warnings.push(format!("tries and blessings are not looked at: {error:#}"));
        None
    });
    let history = history.unwrap_or_default();
    let (state, oddity) = cache.map(read_state).unwrap_or_default();
    warnings.extend(oddity);
    let floors = Floors::new(state, known.iter().map(|one| &one.authorised));
    let observed: Vec<Observed<'_>> = known
        .iter()
        .map(|one| Observed {
            authorised: &one.authorised,
            sequence: one.generation.sequence,
            image: match cache.map(|folder| held(folder, &one.authorised.manifest().image)) {
                Some(Held::Whole) => ImageState::Unchecked,
                Some(Held::Part) => ImageState::Partial,
                Some(Held::Nothing) | None => ImageState::Absent,
            },
            unfit: None,
            failed: None,
            spent: is_spent(history.tries(one.authorised.digest()), settings.policy.tries),
            blessed: history.is_blessed(one.authorised.digest()),
            withdrawn: floors.is_withdrawn(&one.authorised),
        })
        .collect();
    let situation = Situation {
        mode: settings.policy.mode,
        exact: matches!(wanted.target, Target::System(_) | Target::Manifest(_)),
        askable: !settings.urls.is_empty() && wanted.question().is_some(),
        candidates: candidates(&observed, &wanted, kernel),
        answer: Answer::NotAsked,
    };
    let decision = decide(&situation);
    let without_answer = (decision.next == Next::Ask).then(|| {
        let failed = Situation {
            answer: Answer::Failed("no server gives a valid answer in time".to_owned()),
            ..situation.clone()
        };
        planned(&decide(&failed), settings, &wanted, &failed)
    });
    Ok(Plan {
        wanted: wanted.target.to_string(),
        policy: policy_name(settings.policy.mode),
        decision: planned(&decision, settings, &wanted, &situation),
        without_answer,
        cache: kept_in(settings, cache.is_some()),
        generations: situation.candidates.iter().map(seen).collect(),
        mounts: mounts(settings, mode, entries),
        disks: settings
            .disks
            .iter()
            .filter(|disk| disk.prepare)
            .map(|one| disk(one, mode))
            .collect(),
        settings: TABLE
            .iter()
            .filter(|row| settings.origin(row.name) != Origin::Default)
            .map(|row| Set {
                name: row.name,
                value: shown(row, settings),
                origin: settings.origin(row.name).to_string(),
            })
            .collect(),
        warnings,
    })
}

fn planned(decision: &Decision, settings: &Settings, wanted: &Wanted, situation: &Situation) -> Planned {
    let name = |digest| {
        situation
            .candidates
            .iter()
            .find(|one| one.manifest == digest)
            .map_or_else(String::new, |one| format!("«{}»", one.name))
    };
    let next = match &decision.next {
        Next::Ask => {
            let something = situation.candidates.iter().any(Candidate::bootable);
            let limit = if something {
                settings.policy.wait
            } else {
                settings.policy.fetch_wait
            };
            let path = wanted.question().map(|question| question.path()).unwrap_or_default();
            let urls: Vec<String> = settings
                .urls
                .iter()
                .map(|url| format!("{}/{path}", crate::http::without_credentials(url)))
                .collect();
            format!(
                "ask {}, at most {}; boot what the answer names",
                urls.join(", then "),
                show_duration(limit)
            )
        }
        Next::Verify(digest) => {
            let how = match settings.verify {
                Verify::Full => "verify every chunk",
                Verify::Size => "compare nothing but the size",
            };
            format!("{how} of {}, then boot it", name(*digest))
        }
        Next::Fetch(digest) => format!("fetch what is missing of {}, then boot it", name(*digest)),
        Next::Boot(digest) => format!("boot {}", name(*digest)),
        Next::GiveUp(_) => format!(
            "give up; onFailure.action is {}",
            by_name("onFailure.action").map_or_else(String::new, |row| shown(row, settings))
        ),
    };
    Planned {
        rule: decision.rule,
        reason: decision.reason.clone(),
        next,
    }
}

fn seen(candidate: &Candidate) -> Seen {
    Seen {
        name: candidate.name.clone(),
        manifest: candidate.manifest.to_string(),
        wanted: candidate.wanted,
        image: match candidate.image {
            ImageState::Absent => "absent",
            ImageState::Partial => "partial",
            ImageState::Unchecked => "cached",
            ImageState::Verified => "verified",
        },
        blessed: candidate.blessed,
        spent: candidate.spent,
        unfit: candidate.unfit.clone(),
    }
}

/// Serde gives a reference.
fn is_false(value: &bool) -> bool {
    !value
}

/// Where images are kept. A cache disk that is configured and not mounted is said: «nothing cached» would be a guess.
fn kept_in(settings: &Settings, seen: bool) -> String {
    match (&settings.cache.device, seen) {
        (Some(device), true) => format!("on {device}"),
        (Some(device), false) => format!("on {device}, where no cache is seen now: a boot looks for the disk first"),
        (None, true | false) => "in RAM: no cache.device is configured, each boot fetches the image anew".to_owned(),
    }
}

/// A value for everybody's eyes: passwords in URLs are left out.
fn shown(row: &Row, settings: &Settings) -> String {
    if row.name == "url" {
        let urls: Vec<String> = settings.urls.iter().map(|url| crate::http::without_credentials(url)).collect();
        return urls.join(" ");
    }
    (row.show)(settings)
}

fn mounts(settings: &Settings, mode: Mode, entries: &[MountEntry]) -> Vec<String> {
    let root = match mode {
        Mode::Standalone => format!("tmpfs at / (size {})", settings.root.tmpfs_size),
        Mode::Systemd => "by systemd: /".to_owned(),
    };
    let rw_store = match &settings.store.rw_device {
        Some(device) => format!("{device} at {RW_STORE}"),
        None => format!("tmpfs at {RW_STORE} (size {})", settings.store.tmpfs_size),
    };
    let mut mounts = vec![
        root,
        format!("squashfs at {RO_STORE} (the image, read-only)"),
        rw_store,
        format!("overlay at {STORE}"),
        format!("symlink {TOPLEVEL_LINK} to the toplevel"),
    ];
    mounts.extend(entries.iter().map(mount));
    mounts
}

/// What is declared of a disk. What is on it is not looked at here.
fn disk(declared: &Declared, mode: Mode) -> String {
    let partitions = declared.partitions.iter().map(|partition| {
        let size = partition.size.map_or_else(|| "what is left".to_owned(), show_bytes);
        let content = partition.content.as_ref().map_or("nothing", |content| content.format.name());
        format!("{} ({size}, {content})", partition.label)
    });
    let what = format!(
        "{}: {}, {} to {}, if blank: {}",
        declared.name,
        declared.device,
        show_bytes(declared.min),
        show_bytes(declared.max),
        partitions.collect::<Vec<_>>().join(", ")
    );
    match mode {
        Mode::Standalone => what,
        Mode::Systemd => format!("{what}; not in systemd's stage 1: run «freshroot prepare» before it is needed"),
    }
}

fn mount(entry: &MountEntry) -> String {
    let what = match entry.kind() {
        MountKind::Device(fs) => format!("{} on {}", fs.name(), entry.device().unwrap_or_default()),
        MountKind::Tmpfs => "tmpfs".to_owned(),
        MountKind::Systemds { fs_type } => format!("by systemd: {fs_type} on {}", entry.device().unwrap_or("nothing")),
        MountKind::Bind { source, recursive: false } => format!("bind of {}", source.display()),
        MountKind::Bind { source, recursive: true } => format!("bind of {} and what is mounted below it", source.display()),
    };
    let mut details: Vec<String> = entry
        .options()
        .file_system
        .iter()
        .map(|option| match &option.value {
            Some(value) => format!("{}={value}", option.key),
            None => option.key.clone(),
        })
        .collect();
    match entry.need() {
        Need::Required => {}
        Need::Degraded => details.push("the boot goes on without it, as degraded".to_owned()),
        Need::Optional => details.push("the boot goes on without it".to_owned()),
    }
    let details = if details.is_empty() {
        String::new()
    } else {
        format!(" ({})", details.join(", "))
    };
    format!("{what} at {}{details}", entry.mount_point().display())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "wanted:    {}", self.wanted)?;
        writeln!(f, "policy:    {}", self.policy)?;
        writeln!(f, "decision:  {} [{}]", self.decision.reason, self.decision.rule)?;
        writeln!(f, "next:      {}", self.decision.next)?;
        if let Some(Planned { rule, reason, next }) = &self.without_answer {
            writeln!(f, "otherwise: {reason} [{rule}]\n           {next}")?;
        }
        writeln!(f, "cache:     {}", self.cache)?;
        if self.generations.is_empty() {
            writeln!(f, "cached:    nothing")?;
        }
        for (number, seen) in self.generations.iter().enumerate() {
            let title = if number == 0 { "cached:" } else { "" };
            let wanted = if seen.wanted { "wanted, " } else { "" };
            let blessed = if seen.blessed { ", blessed" } else { "" };
            let spent = if seen.spent { ", no tries left" } else { "" };
            writeln!(f, "{title:<11}{} ({wanted}image {}{blessed}{spent})", seen.name, seen.image)?;
            if let Some(unfit) = &seen.unfit {
                writeln!(f, "           cannot boot: {unfit}")?;
            }
        }
        for (number, mount) in self.mounts.iter().enumerate() {
            let title = if number == 0 { "mounts:" } else { "" };
            writeln!(f, "{title:<11}{mount}")?;
        }
        for (number, disk) in self.disks.iter().enumerate() {
            let title = if number == 0 { "prepares:" } else { "" };
            writeln!(f, "{title:<11}{disk}")?;
        }
        for (number, Set { name, value, origin }) in self.settings.iter().enumerate() {
            let title = if number == 0 { "settings:" } else { "" };
            writeln!(f, "{title:<11}{name} = {value} (from {origin})")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning:   {warning}")?;
        }
        Ok(())
    }
}
