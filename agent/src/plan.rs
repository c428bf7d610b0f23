//! The plan: what `boot` would do next and why, from what can be seen without doing anything. No executor is in scope here.
//!
//! It is pure but for one thing: it looks at the cache, through [`read_generations`], [`read_history`], [`read_state`], [`held`] and [`missing`] alone, which open files for
//! reading and change nothing. It may read, never write: [`crate::cache::Cache`], which locks and writes, has no place here.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::allowance;
use crate::cache::state::read_state;
use crate::cache::tries::read_history;
use crate::cache::{Held, held, missing, read_generations};
use crate::candidates::{Observed, RunningKernel, age_of_answer, candidates, is_spent};
use crate::clock::Clock;
use crate::decide::{Answer, Candidate, Decision, Freshness, ImageState, Next, Situation, best, decide, policy_name};
use crate::digest::Digest;
use crate::fetch::hurry::estimate;
use crate::figures;
use crate::floors::Floors;
use crate::formats::state::State;
use crate::http::Budget;
use crate::mode::Mode;
use crate::mount::entry::{MountEntry, MountKind, Need};
use crate::mount::system::{RO_STORE, RW_STORE, STORE, TOPLEVEL_LINK};
use crate::prepare::content::Content;
use crate::prepare::declaration::Declared;
use crate::select::{Target, Wanted, select};
use crate::settings::row::Row;
use crate::settings::table::{TABLE, by_name};
use crate::settings::value::{show_bytes, show_duration};
use crate::settings::{Origin, Settings, Verify};
use crate::stack::luks::{Key, LuksDevice};
use crate::stack::swap::SwapArea;

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
    /// The settings that it follows from.
    because: Vec<Set>,
    /// The figures that it follows from.
    figures: Figures,
}

/// What a decision is counted out from; what is not known, or does not matter, is left out.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    /// Seconds since the last valid answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<u64>,
    /// Bytes that would be fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<u64>,
    /// Bytes a second, as they came last from the first mirror, or as they are limited to.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
    /// Seconds that the transfer takes at that rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<u64>,
    /// Bytes that may be received.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<u64>,
    /// Whether a budget of the day leaves that much, and not one of the boot.
    #[serde(skip)]
    of_the_day: bool,
}

impl Figures {
    /// Line by line.
    fn lines(&self) -> Vec<String> {
        let seconds = |seconds: u64| figures::time(Duration::from_secs(seconds));
        let mut lines = Vec::new();
        if let Some(age) = self.age {
            lines.push(format!("the last answer is {} old", seconds(age)));
        }
        match (self.missing, self.rate, self.estimate) {
            (Some(missing), Some(rate), Some(time)) => lines.push(format!(
                "{} to fetch, {} at {}",
                figures::bytes(missing),
                seconds(time),
                figures::rate(rate)
            )),
            (Some(missing), ..) => lines.push(format!("{} to fetch, at a rate that is not known", figures::bytes(missing))),
            (None, Some(rate), _) => lines.push(format!("the first mirror sends {}", figures::rate(rate))),
            (None, None, _) => {}
        }
        if let Some(budget) = self.budget {
            let span = if self.of_the_day { "today" } else { "in this boot" };
            lines.push(format!("{} may be received {span}", figures::bytes(budget)));
        }
        lines
    }
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
#[derive(Debug, Clone, Serialize)]
struct Set {
    name: &'static str,
    value: String,
    origin: String,
}

/// Plans from settings for one mode, the cache in the folder `cache` (none: nothing is cached), the kernel, the entries to be mounted, and the machine's clock
/// (seconds since 1970).
///
/// # Errors
/// If a key or a channel's name is malformed, or the cache is there and cannot be read.
pub fn plan(
    settings: &Settings,
    mode: Mode,
    cache: Option<&Path>,
    kernel: &RunningKernel,
    entries: &[MountEntry],
    machine: fn() -> u64,
) -> Result<Plan> {
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
            slow: None,
            spent: is_spent(history.tries(one.authorised.digest()), settings.policy.tries),
            blessed: history.is_blessed(one.authorised.digest()),
            withdrawn: floors.is_withdrawn(&one.authorised),
        })
        .collect();
    let clock = Clock {
        machine,
        ..Clock::not_before(floors.time(machine()))
    };
    let candidates = candidates(&observed, &wanted, kernel);
    let of = |digest: Digest| known.iter().find(|one| one.authorised.digest() == digest);
    let age = match &wanted.target {
        Target::Channel(channel) if settings.reset_floor.as_ref() == Some(channel) => None,
        Target::Channel(channel) => {
            best(&candidates).and_then(|best| age_of_answer(&of(best.manifest)?.authorised, channel, floors.state(), clock.now()))
        }
        Target::System(_) | Target::Manifest(_) | Target::Anything => None,
    };
    let situation = Situation {
        mode: settings.policy.mode,
        exact: matches!(wanted.target, Target::System(_) | Target::Manifest(_)),
        askable: !settings.urls.is_empty() && wanted.question().is_some(),
        candidates,
        answer: Answer::NotAsked,
        freshness: Freshness {
            max_age: Some(settings.policy.max_age).filter(|max_age| !max_age.is_zero()),
            age,
        },
        cached_chosen: false,
    };
    let decision = decide(&situation);
    let to_fetch = |digest: Digest| {
        let image = &of(digest)?.authorised.manifest().image;
        Some(cache.map_or(image.size, |folder| missing(folder, image)))
    };
    let explained = Explained {
        settings,
        wanted: &wanted,
        state: floors.state(),
        clock: &clock,
        to_fetch: &to_fetch,
    };
    let without_answer = (decision.next == Next::Ask).then(|| {
        let failed = Situation {
            answer: Answer::Failed("no server gives a valid answer in time".to_owned()),
            ..situation.clone()
        };
        explained.planned(&decide(&failed), &failed)
    });
    Ok(Plan {
        wanted: wanted.target.to_string(),
        policy: policy_name(settings.policy.mode),
        decision: explained.planned(&decision, &situation),
        without_answer,
        cache: kept_in(settings, cache.is_some()),
        generations: situation.candidates.iter().map(seen).collect(),
        mounts: mounts(settings, mode, entries),
        disks: settings.disks.iter().filter(|disk| disk.prepare || disk.grow).map(disk).collect(),
        settings: TABLE
            .iter()
            .filter(|row| settings.origin(row.name) != Origin::Default)
            .map(|row| set(row, settings))
            .collect(),
        warnings,
    })
}

fn set(row: &'static Row, settings: &Settings) -> Set {
    Set {
        name: row.name,
        value: shown(row, settings),
        origin: settings.origin(row.name).to_string(),
    }
}

/// What decisions are explained by.
struct Explained<'a> {
    settings: &'a Settings,
    wanted: &'a Wanted,
    state: &'a State,
    clock: &'a Clock,
    /// Bytes that are missing of a generation's image.
    to_fetch: &'a dyn Fn(Digest) -> Option<u64>,
}

impl Explained<'_> {
    fn planned(&self, decision: &Decision, situation: &Situation) -> Planned {
        Planned {
            rule: decision.rule,
            reason: decision.reason.clone(),
            next: self.next(&decision.next, situation),
            because: self.because(decision, situation),
            figures: self.figures(&decision.next, situation),
        }
    }

    fn next(&self, next: &Next, situation: &Situation) -> String {
        let settings = self.settings;
        let name = |digest| {
            let found = situation.candidates.iter().find(|one| one.manifest == digest);
            found.map_or_else(String::new, |one| format!("«{}»", one.name))
        };
        match next {
            Next::Ask => {
                let limit = match situation.alternative() {
                    Some(_) => settings.policy.wait,
                    None => settings.policy.fetch_wait,
                };
                let path = self.wanted.question().map(|question| question.path()).unwrap_or_default();
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
            Next::Fetch(digest) => {
                let limit = match situation.alternative() {
                    Some(_) => format!(", for {} at most", show_duration(settings.policy.fetch_wait)),
                    None => String::new(),
                };
                format!("fetch what is missing of {}{limit}, then boot it", name(*digest))
            }
            Next::Boot(digest) => format!("boot {}", name(*digest)),
            Next::GiveUp(_) => format!(
                "give up; onFailure.action is {}",
                by_name("onFailure.action").map_or_else(String::new, |row| shown(row, settings))
            ),
        }
    }

    /// The settings behind a decision, and where they come from.
    fn because(&self, decision: &Decision, situation: &Situation) -> Vec<Set> {
        let settings = self.settings;
        let mut names = vec!["policy.mode"];
        if situation.freshness.words().is_some() && !situation.exact {
            names.push("policy.maxAge");
        }
        if decision.rule == "tries-used-up" {
            names.push("policy.tries");
        }
        let alternative = situation.alternative().is_some();
        let limits = [
            ("transfer.maxTime", !settings.transfer.max_time.is_zero()),
            ("transfer.rateLimit", settings.transfer.rate_limit > 0),
            ("transfer.budget", settings.transfer.budget > 0),
            ("transfer.budgetPerDay", settings.transfer.budget_per_day > 0),
        ];
        let budgets = limits.into_iter().filter(|(_, set)| *set).map(|(name, _)| name);
        match &decision.next {
            Next::Ask if alternative => names.extend(["policy.wait"]),
            Next::Ask => names.extend(["policy.fetchWait"]),
            Next::Verify(_) => names.push("verify"),
            Next::Fetch(_) if alternative => names.extend(["policy.fetchWait", "policy.countdown"].into_iter().chain(budgets)),
            Next::Fetch(_) => names.extend(budgets),
            Next::Boot(_) => {}
            Next::GiveUp(_) => names.push("onFailure.action"),
        }
        names.into_iter().filter_map(by_name).map(|row| set(row, settings)).collect()
    }

    fn figures(&self, next: &Next, situation: &Situation) -> Figures {
        let missing = match next {
            Next::Fetch(digest) => (self.to_fetch)(*digest),
            Next::Ask | Next::Verify(_) | Next::Boot(_) | Next::GiveUp(_) => None,
        };
        let online = matches!(next, Next::Ask | Next::Fetch(_));
        let rate = self.settings.urls.first().filter(|_| online);
        let rate = rate.and_then(|url| allowance::rate(&self.settings.transfer, self.state, url));
        let budget = allowance::budget(&self.settings.transfer, self.state, self.clock).filter(|_| online);
        Figures {
            age: situation.freshness.age.map(|age| age.as_secs()),
            missing,
            rate,
            estimate: missing.zip(rate).map(|(missing, rate)| estimate(missing, rate).as_secs()),
            budget: budget.map(Budget::bytes),
            of_the_day: matches!(budget, Some(Budget::Day(_))),
        }
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
    let mut mounts = match mode {
        Mode::Standalone => settings.luks.iter().map(unlocked).collect(),
        Mode::Systemd => Vec::new(),
    };
    mounts.extend([
        root,
        format!("squashfs at {RO_STORE} (the image, read-only)"),
        rw_store,
        format!("overlay at {STORE}"),
        format!("symlink {TOPLEVEL_LINK} to the toplevel"),
    ]);
    mounts.extend(entries.iter().map(mount));
    match mode {
        Mode::Standalone => mounts.extend(settings.swap_devices.iter().filter_map(swap)),
        Mode::Systemd => {}
    }
    mounts
}

fn unlocked((name, entry): (&String, &LuksDevice)) -> String {
    let by = match entry.key() {
        Some(Key::File(file)) => format!("by {}", file.display()),
        Some(Key::OnDevice { device, file }) => format!("by {} on {device}", file.display()),
        Some(Key::Device(device)) => format!("by {device}"),
        None => "by its tokens".to_owned(),
    };
    let then = if entry.may_ask() { ", then a passphrase" } else { "" };
    format!("LUKS on {} as /dev/mapper/{name} ({by}{then})", entry.device)
}

/// What is declared of a disk. What is on it is not looked at here.
fn disk(declared: &Declared) -> String {
    let partitions = declared.partitions.iter().map(|partition| {
        let size = partition.size.map_or_else(|| "what is left".to_owned(), show_bytes);
        let content = partition.content.as_ref().map_or_else(|| "nothing".to_owned(), Content::shown);
        format!("{} ({size}, {content})", partition.label)
    });
    let does = match (declared.prepare, declared.grow) {
        (true, true) => "if blank, else the last one grows where the disk is larger",
        (true, false) => "if blank",
        (false, _) => "the last one grows where the disk is larger",
    };
    format!(
        "{}: {}, {} to {}, {does}: {}",
        declared.name,
        declared.device,
        show_bytes(declared.min),
        show_bytes(declared.max),
        partitions.collect::<Vec<_>>().join(", ")
    )
}

fn swap((device, area): (&String, &SwapArea)) -> Option<String> {
    (!area.noauto).then(|| format!("swap on {device}, if it is there"))
}

fn mount(entry: &MountEntry) -> String {
    let what = match entry.kind() {
        MountKind::Device(fs) => format!("{} on {}", fs.name(), entry.device().unwrap_or_default()),
        MountKind::Tmpfs => "tmpfs".to_owned(),
        MountKind::Overlay(layers) => {
            let lower: Vec<String> = layers.lower.iter().map(|path| path.display().to_string()).collect();
            match &layers.upper {
                Some((upper, _)) => format!("overlay of {} with writes to {}", lower.join(", "), upper.display()),
                None => format!("overlay of {}", lower.join(", ")),
            }
        }
        MountKind::Systemds { fs_type } => format!("by systemd: {fs_type} on {}", entry.device().unwrap_or("nothing")),
        MountKind::Symlink { source } => return format!("symlink {} to {}", entry.mount_point().display(), source.display()),
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
    if matches!(entry.kind(), MountKind::Overlay(_)) {
        // Said above.
        details.retain(|detail| !detail.contains("dir="));
    }
    details.extend(
        entry
            .options()
            .subdir
            .iter()
            .map(|folder| format!("the folder {} alone", folder.display())),
    );
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

/// The settings and the figures that a decision follows from.
fn explain(f: &mut fmt::Formatter<'_>, planned: &Planned) -> fmt::Result {
    let because = planned
        .because
        .iter()
        .map(|Set { name, value, origin }| format!("{name} = {value} (from {origin})"));
    for (number, line) in because.chain(planned.figures.lines()).enumerate() {
        let title = if number == 0 { "because:" } else { "" };
        writeln!(f, "{title:<11}{line}")?;
    }
    Ok(())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "wanted:    {}", self.wanted)?;
        writeln!(f, "policy:    {}", self.policy)?;
        writeln!(f, "decision:  {} [{}]", self.decision.reason, self.decision.rule)?;
        writeln!(f, "next:      {}", self.decision.next)?;
        explain(f, &self.decision)?;
        if let Some(otherwise) = &self.without_answer {
            writeln!(
                f,
                "otherwise: {} [{}]\n           {}",
                otherwise.reason, otherwise.rule, otherwise.next
            )?;
            explain(f, otherwise)?;
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
