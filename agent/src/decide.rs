//! The decision: what to do next, from what has been observed so far. Pure; the table is that of `docs/decisions.md`, row for row.
//!
//! A failed download or a corrupt image is not an exception but a new observation: one decides again, by the same table, until the answer is
//! to boot or to give up. Each step that [`decide`] asks for changes what is observed, so that the loop ends.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::digest::Digest;
use crate::settings::PolicyMode;
use crate::settings::value::show_duration;

/// The state of a generation's image on the cache disk, or in RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageState {
    /// Nothing is there.
    Absent,
    /// Some of its chunks are there.
    Partial,
    /// A whole file of the right size is there, nobody has looked inside.
    Unchecked,
    /// It was verified at this boot.
    Verified,
}

/// An authorised generation, as far as the decision cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The manifest's digest.
    pub manifest: Digest,
    /// Whether it holds the system that is wanted.
    pub wanted: bool,
    /// Why it cannot run here: another kernel, no init. Nothing if it can.
    pub unfit: Option<String>,
    /// Its image.
    pub image: ImageState,
    /// Why its image could not be had at this boot.
    pub failed: Option<String>,
    /// Why its image is not waited for while something else boots: it takes longer than `policy.fetchWait`. What came of it is kept.
    pub slow: Option<String>,
    /// Whether it was booted as often as it may be without being found good: it boots only if nothing else does.
    pub spent: bool,
    /// Whether it was ever found good by the system that it booted.
    pub blessed: bool,
    /// For people: channel and serial, or the toplevel's name.
    pub name: String,
}

impl Candidate {
    /// Whether it could be booted from what is here.
    pub fn bootable(&self) -> bool {
        self.unfit.is_none() && matches!(self.image, ImageState::Unchecked | ImageState::Verified)
    }

    fn fetchable(&self) -> bool {
        self.unfit.is_none() && self.failed.is_none() && matches!(self.image, ImageState::Absent | ImageState::Partial)
    }
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody was asked yet.
    NotAsked,
    /// A valid answer: this candidate is the newest, and it stands in the list.
    Names(Digest),
    /// No valid answer within the limit, and why.
    Failed(String),
}

/// How old the answer is by which what is cached is the newest, and how old it may be without asking (RFC 9111, 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freshness {
    /// `policy.maxAge`; none: it is off.
    pub max_age: Option<Duration>,
    /// The age of the answer; none: it is not known, or another generation than those that are cached was named.
    pub age: Option<Duration>,
}

impl Freshness {
    /// Whether nobody has to be asked yet. What is not known is old: asking costs a moment, and a wrong clock must not keep anybody from it.
    pub fn is_fresh(self) -> bool {
        self.max_age.zip(self.age).is_some_and(|(max_age, age)| age < max_age)
    }

    /// Both figures in words; nothing where age does not matter.
    pub fn words(self) -> Option<String> {
        let max_age = show_duration(self.max_age?);
        Some(match self.age {
            Some(age) => format!(
                "the last answer is {} old, policy.maxAge is {max_age}",
                show_duration(whole_seconds(age))
            ),
            None => format!("it is not known how old the last answer is, policy.maxAge is {max_age}"),
        })
    }
}

const fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_secs())
}

/// All that was observed so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// The policy.
    pub mode: PolicyMode,
    /// Whether one system or manifest is named, and not just a channel: then what is cached cannot be stale.
    pub exact: bool,
    /// Whether there is anybody to ask, and anything to ask for.
    pub askable: bool,
    /// Authorised generations, the best first: those of the wanted channel before others, newest first.
    pub candidates: Vec<Candidate>,
    /// What a server said.
    pub answer: Answer,
    /// How old what is cached is.
    pub freshness: Freshness,
    /// Whether somebody at the keyboard has chosen what is cached, instead of a long download.
    pub cached_chosen: bool,
}

impl Situation {
    /// What boots of what is here if nothing newer comes. Nothing where only what is confirmed may boot: then there is nothing to hurry for.
    pub fn alternative(&self) -> Option<&Candidate> {
        match self.mode {
            PolicyMode::RequireFresh => None,
            PolicyMode::Offline | PolicyMode::CacheFirst | PolicyMode::Wait => best(&self.candidates),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Ask a server which generation is the newest, or holds the wanted system.
    Ask,
    /// Verify the image of this generation, which is there.
    Verify(Digest),
    /// Fetch the image of this generation, or what is missing of it.
    Fetch(Digest),
    /// Boot this generation: its image is verified.
    Boot(Digest),
    /// Nothing can be booted: what to do about it.
    GiveUp(String),
}

impl Next {
    /// What is done, in a word.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Verify(_) => "verify",
            Self::Fetch(_) => "fetch",
            Self::Boot(_) => "boot",
            Self::GiveUp(_) => "give up",
        }
    }
}

/// A decision: what, by which row of the table, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What to do next.
    pub next: Next,
    /// The row of the table.
    pub rule: &'static str,
    /// A sentence for the console.
    pub reason: String,
}

/// Decides.
pub fn decide(situation: &Situation) -> Decision {
    let best = best(&situation.candidates);
    let selected = match situation.mode {
        // Nothing but what is wanted is confirmed by having been named.
        PolicyMode::RequireFresh => best.filter(|best| best.wanted).or_else(|| first(&situation.candidates)),
        PolicyMode::Offline | PolicyMode::CacheFirst | PolicyMode::Wait => best,
    };
    match (&situation.answer, situation.mode) {
        // What is named exactly and cached cannot be made fresher by asking.
        (Answer::NotAsked, _) if situation.exact && first(&situation.candidates).is_some() => use_best(
            situation,
            selected,
            "selected-cached",
            "the selected system is cached, no request is needed",
        ),
        (Answer::NotAsked, PolicyMode::Offline) => fall_back(situation, "offline", "the policy is offline"),
        // RFC 9111, 4.2: what is fresh need not be validated. A newer one would have its tries left: where these are all used up, somebody is asked after all.
        (Answer::NotAsked, PolicyMode::CacheFirst | PolicyMode::Wait)
            if situation.askable && situation.freshness.is_fresh() && best.is_some_and(|best| best.wanted && !best.spent) =>
        {
            let words = situation.freshness.words().unwrap_or_default();
            use_best(situation, best, "max-age", &format!("{words}: nobody needs to be asked yet"))
        }
        (Answer::NotAsked, PolicyMode::CacheFirst)
            if best.is_some_and(|best| best.wanted && (!situation.askable || !best.spent && situation.freshness.max_age.is_none())) =>
        {
            use_best(
                situation,
                best,
                "cache-first",
                "the policy is cache-first: what is cached boots, and is refreshed later",
            )
        }
        // Bytes are not spent on what has no tries left while something else has.
        (Answer::NotAsked, PolicyMode::CacheFirst | PolicyMode::Wait)
            if situation.exact && known(situation).is_some_and(|known| known.spent) && best.is_some_and(|best| !best.spent) =>
        {
            use_image(
                best,
                "tries-used-up",
                "the selected system is incomplete and has no tries left: another one boots",
            )
        }
        // A manifest that is known and authorised need not be asked for again: only its image is missing.
        (Answer::NotAsked, _) if situation.exact && situation.askable && known(situation).is_some() => fetch(
            situation,
            known(situation),
            "selected-incomplete",
            "the selected system is known, its image is incomplete",
        ),
        (Answer::NotAsked, _) if situation.askable => Decision {
            next: Next::Ask,
            rule: "ask",
            reason: match situation.freshness.words().filter(|_| best.is_some_and(|best| best.wanted)) {
                Some(words) if situation.mode != PolicyMode::RequireFresh => format!("{words}: it is asked before the boot"),
                Some(_) | None => format!("the policy «{}» asks before it boots", policy_name(situation.mode)),
            },
        },
        (Answer::NotAsked, PolicyMode::RequireFresh) => give_up(
            situation,
            "nobody can be asked: no url is configured, or nothing names a channel or a system",
        ),
        (Answer::NotAsked, PolicyMode::CacheFirst | PolicyMode::Wait) => fall_back(situation, "nobody-to-ask", "there is nobody to ask"),
        (Answer::Names(digest), mode) => named(situation, digest, mode),
        (Answer::Failed(why), PolicyMode::RequireFresh) => give_up(situation, why),
        (Answer::Failed(why), PolicyMode::Offline | PolicyMode::CacheFirst | PolicyMode::Wait) => {
            fall_back(situation, "stale-if-error", why)
        }
    }
}

/// The first wanted one that could be booted from what is here, whatever its tries.
fn first(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.iter().find(|candidate| candidate.wanted && candidate.bootable())
}

/// What to boot of what is here, if nothing newer comes: the first that is wanted, else the first at all. If that one has no tries left: another one
/// that has, what is wanted before what is not, and what was blessed before what was not; and if there is none, that one all the same.
pub fn best(candidates: &[Candidate]) -> Option<&Candidate> {
    let bootable = || candidates.iter().filter(|candidate| candidate.bootable());
    let first = first(candidates).or_else(|| bootable().next())?;
    if !first.spent {
        return Some(first);
    }
    bootable()
        .filter(|candidate| !candidate.spent)
        .min_by_key(|candidate| (!candidate.wanted, !candidate.blessed))
        .or(Some(first))
}

fn named(situation: &Situation, digest: &Digest, mode: PolicyMode) -> Decision {
    let candidate = situation.candidates.iter().find(|candidate| candidate.manifest == *digest);
    if let (Some(Candidate { spent: true, name, .. }), PolicyMode::Offline | PolicyMode::CacheFirst | PolicyMode::Wait) = (candidate, mode)
        && let Some(other) = best(&situation.candidates).filter(|other| !other.spent)
    {
        return use_image(
            Some(other),
            "tries-used-up",
            &format!("{name}, the newest generation, has no tries left: an older one boots"),
        );
    }
    let why = match candidate {
        Some(candidate) if candidate.bootable() => return use_image(Some(candidate), "fresh", "the newest generation is cached"),
        Some(candidate) if candidate.fetchable() => return fetch(situation, Some(candidate), "stale", "a newer generation is published"),
        Some(Candidate { unfit: Some(why), .. }) => why.clone(),
        Some(Candidate { failed: Some(why), .. }) => why.clone(),
        Some(Candidate {
            failed: None, unfit: None, ..
        })
        | None => "the generation that the answer names is not there".to_owned(),
    };
    match mode {
        PolicyMode::RequireFresh => give_up(situation, &why),
        PolicyMode::Offline | PolicyMode::CacheFirst | PolicyMode::Wait => fall_back(situation, "stale-if-error", &why),
    }
}

/// The wanted generation that is known and authorised, and whose image could be completed.
fn known(situation: &Situation) -> Option<&Candidate> {
    situation
        .candidates
        .iter()
        .find(|candidate| candidate.wanted && candidate.fetchable())
}

fn use_image(candidate: Option<&Candidate>, rule: &'static str, reason: &str) -> Decision {
    let Some(candidate) = candidate else {
        return Decision {
            next: Next::GiveUp("nothing is cached".to_owned()),
            rule: "nothing",
            reason: reason.to_owned(),
        };
    };
    let next = if candidate.image == ImageState::Verified {
        Next::Boot(candidate.manifest)
    } else {
        Next::Verify(candidate.manifest)
    };
    let spent = if candidate.spent {
        ", which has no tries left, but nothing else can boot"
    } else {
        ""
    };
    Decision {
        next,
        rule,
        reason: format!("{reason} ({}{spent})", candidate.name),
    }
}

/// The image of a candidate, unless something else boots and it takes too long, or somebody has chosen.
fn fetch(situation: &Situation, candidate: Option<&Candidate>, rule: &'static str, reason: &str) -> Decision {
    let instead = candidate.and_then(|candidate| match (situation.cached_chosen, &candidate.slow) {
        (true, _) => Some(("key-pressed", "a key was pressed: what is cached boots".to_owned())),
        (false, Some(why)) => Some(("too-slow", format!("{why}: what is cached boots, and what came is kept"))),
        (false, None) => None,
    });
    if let (Some((rule, reason)), Some(alternative)) = (instead, situation.alternative()) {
        return use_image(Some(alternative), rule, &reason);
    }
    match candidate {
        Some(candidate) => Decision {
            next: Next::Fetch(candidate.manifest),
            rule,
            reason: format!("{reason} ({})", candidate.name),
        },
        None => use_image(None, rule, reason),
    }
}

/// The best of what is cached, and by its own rule if that is not the first because the first has no tries left.
fn use_best(situation: &Situation, best: Option<&Candidate>, rule: &'static str, reason: &str) -> Decision {
    match (first(&situation.candidates), best) {
        (Some(first), Some(best)) if first.manifest != best.manifest => use_image(
            Some(best),
            "tries-used-up",
            &format!("{reason}, but {} has no tries left: another one boots", first.name),
        ),
        (Some(_) | None, best) => use_image(best, rule, reason),
    }
}

/// What is cached: the wanted first, then whatever boots under this kernel.
fn fall_back(situation: &Situation, rule: &'static str, why: &str) -> Decision {
    match best(&situation.candidates) {
        Some(candidate) if candidate.wanted => use_best(situation, Some(candidate), rule, &format!("{why}: what is cached boots")),
        Some(candidate) if first(&situation.candidates).is_some() => use_best(situation, Some(candidate), rule, why),
        Some(candidate) => use_image(
            Some(candidate),
            rule,
            &format!("{why}: what is wanted cannot boot from the cache, another system does"),
        ),
        None => give_up(situation, why),
    }
}

fn give_up(situation: &Situation, why: &str) -> Decision {
    let mut told = vec![why.to_owned()];
    for candidate in &situation.candidates {
        let reasons = [&candidate.unfit, &candidate.failed];
        let reason = reasons.into_iter().flatten().next();
        let state = match (reason, &candidate.image) {
            (Some(reason), _) if told.contains(reason) => continue,
            (Some(reason), _) => reason.clone(),
            (None, ImageState::Absent) => "its image is not cached".to_owned(),
            (None, ImageState::Partial) => "its image is incomplete".to_owned(),
            (None, ImageState::Unchecked | ImageState::Verified) => "the policy does not allow it without an answer".to_owned(),
        };
        told.push(format!("{}: {state}", candidate.name));
    }
    if situation.candidates.is_empty() {
        told.push("no generation is cached".to_owned());
    }
    let what = told.join("; ");
    Decision {
        next: Next::GiveUp(what.clone()),
        rule: "nothing-bootable",
        reason: what,
    }
}

/// The policy's name, as it is configured.
pub fn policy_name(mode: PolicyMode) -> &'static str {
    match mode {
        PolicyMode::Offline => "offline",
        PolicyMode::CacheFirst => "cache-first",
        PolicyMode::Wait => "wait",
        PolicyMode::RequireFresh => "require-fresh",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn candidate(number: u8, wanted: bool, image: ImageState) -> Candidate {
        Candidate {
            manifest: digest(number),
            wanted,
            unfit: None,
            image,
            failed: None,
            slow: None,
            spent: false,
            blessed: false,
            name: format!("g{number}"),
        }
    }

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    /// `docs/decisions.md`, between the two markers.
    fn documented() -> Vec<Vec<String>> {
        let text = include_str!("../../docs/decisions.md");
        let table = text.split("<!-- table -->").nth(1).unwrap();
        table
            .lines()
            .filter(|line| line.starts_with('|'))
            .skip(2)
            .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
            .collect()
    }

    /// One row's situation, read from its words.
    fn situation(cells: &[String]) -> Situation {
        let mode = match cells[0].as_str() {
            "offline" => PolicyMode::Offline,
            "cache-first" => PolicyMode::CacheFirst,
            "wait" => PolicyMode::Wait,
            "require-fresh" => PolicyMode::RequireFresh,
            other => panic!("policy {other}"),
        };
        let image = |word: &str| match word {
            "absent" => ImageState::Absent,
            "partial" => ImageState::Partial,
            "unchecked" => ImageState::Unchecked,
            "verified" => ImageState::Verified,
            other => panic!("image {other}"),
        };
        let mut candidates = Vec::new();
        for (number, wanted, cell) in [(1, true, &cells[2]), (2, false, &cells[3])] {
            let mut words = cell.split(", ");
            let first = words.next().unwrap();
            if first == "–" {
                continue;
            }
            let mut candidate = candidate(number, wanted, image(first));
            for word in words {
                match word {
                    "other kernel" => candidate.unfit = Some("other kernel".to_owned()),
                    "spent" => candidate.spent = true,
                    "blessed" => candidate.blessed = true,
                    "fetch failed" => candidate.failed = Some("fetch failed".to_owned()),
                    "too slow" => candidate.slow = Some("too slow".to_owned()),
                    other => panic!("candidate {other}"),
                }
            }
            candidates.push(candidate);
        }
        let mut words = cells[4].split(", ");
        let first = words.next().unwrap();
        let answer = match first {
            "not asked" | "nobody to ask" => Answer::NotAsked,
            "names wanted" => Answer::Names(digest(1)),
            "failed" => Answer::Failed("no answer".to_owned()),
            other => panic!("answer {other}"),
        };
        let mut situation = Situation {
            mode,
            exact: cells[1] == "system",
            askable: first != "nobody to ask",
            candidates,
            answer,
            freshness: Freshness::default(),
            cached_chosen: false,
        };
        let aged = |age: Option<u64>| Freshness {
            max_age: Some(Duration::from_secs(3600)),
            age: age.map(Duration::from_secs),
        };
        for word in words {
            match word {
                "fresh" => situation.freshness = aged(Some(3599)),
                "old" => situation.freshness = aged(Some(3600)),
                "of unknown age" => situation.freshness = aged(None),
                "key pressed" => situation.cached_chosen = true,
                other => panic!("answer {other}"),
            }
        }
        situation
    }

    #[test]
    fn the_table_in_the_docs_holds_row_for_row() {
        let rows = documented();
        assert!(rows.len() >= 30, "the table was not found");
        for cells in rows {
            let decision = decide(&situation(&cells));
            let next = match decision.next {
                Next::Ask => "ask".to_owned(),
                Next::Verify(digest) => format!("verify {}", if digest.as_bytes()[0] == 1 { "wanted" } else { "other" }),
                Next::Fetch(digest) => format!("fetch {}", if digest.as_bytes()[0] == 1 { "wanted" } else { "other" }),
                Next::Boot(digest) => format!("boot {}", if digest.as_bytes()[0] == 1 { "wanted" } else { "other" }),
                Next::GiveUp(_) => "give up".to_owned(),
            };
            assert_eq!(
                (next.as_str(), decision.rule),
                (cells[5].as_str(), cells[6].as_str()),
                "row {cells:?}"
            );
        }
    }

    #[test]
    fn giving_up_says_why_each_generation_does_not_serve() {
        let mut other = candidate(2, false, ImageState::Unchecked);
        other.unfit = Some("it needs kernel 6.6".to_owned());
        let situation = Situation {
            mode: PolicyMode::Wait,
            exact: false,
            askable: true,
            candidates: vec![candidate(1, true, ImageState::Partial), other],
            answer: Answer::Failed("connection refused".to_owned()),
            freshness: Freshness::default(),
            cached_chosen: false,
        };
        let Next::GiveUp(what) = decide(&situation).next else {
            panic!("it boots")
        };
        assert_eq!(what, "connection refused; g1: its image is incomplete; g2: it needs kernel 6.6");
    }

    #[test]
    fn of_those_with_tries_left_the_wanted_come_first_and_of_these_the_blessed() {
        let one = |number, wanted, spent, blessed| Candidate {
            spent,
            blessed,
            ..candidate(number, wanted, ImageState::Unchecked)
        };
        let (bad, good) = ((true, false), (false, true));
        let plain = (false, false);
        for (candidates, expected) in [
            // The newest has its tries: it is not passed over because it was not blessed yet.
            (vec![(true, plain), (true, good)], 0),
            (vec![(true, bad), (true, plain), (true, good)], 2),
            (vec![(true, bad), (true, plain), (true, plain)], 1),
            (vec![(true, bad), (true, plain), (false, good)], 1),
            (vec![(true, bad), (false, plain), (false, good)], 2),
            // A generation that was blessed once and fails now has no right before others.
            (vec![(true, (true, true)), (true, plain)], 1),
            (vec![(true, bad), (true, bad), (false, bad)], 0),
            (vec![(false, plain), (true, plain)], 1),
            (vec![(false, bad), (true, bad)], 1),
        ] {
            let list: Vec<Candidate> = candidates
                .iter()
                .zip(0..)
                .map(|((wanted, (spent, blessed)), number)| one(number, *wanted, *spent, *blessed))
                .collect();
            assert_eq!(best(&list).unwrap().manifest, digest(expected), "{candidates:?}");
        }
        assert_eq!(best(&[]), None);
    }
}
