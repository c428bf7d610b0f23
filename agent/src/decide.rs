//! The decision: what to do next, from what has been observed so far. Pure; the table is that of `docs/decisions.md`, row for row.
//!
//! A failed download or a corrupt image is not an exception but a new observation: one decides again, by the same table, until the answer is
//! to boot or to give up. Each step that [`decide`] asks for changes what is observed, so that the loop ends.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::digest::Digest;
use crate::settings::PolicyMode;

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
        // A newer one would have its tries left: where these are all used up, somebody is asked after all.
        (Answer::NotAsked, PolicyMode::CacheFirst) if best.is_some_and(|best| best.wanted && (!best.spent || !situation.askable)) => {
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
            known(situation),
            "selected-incomplete",
            "the selected system is known, its image is incomplete",
        ),
        (Answer::NotAsked, _) if situation.askable => Decision {
            next: Next::Ask,
            rule: "ask",
            reason: format!("the policy «{}» asks before it boots", policy_name(situation.mode)),
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
        Some(candidate) if candidate.fetchable() => return fetch(Some(candidate), "stale", "a newer generation is published"),
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

fn fetch(candidate: Option<&Candidate>, rule: &'static str, reason: &str) -> Decision {
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
    use proptest::prelude::*;

    fn candidate(number: u8, wanted: bool, image: ImageState) -> Candidate {
        Candidate {
            manifest: digest(number),
            wanted,
            unfit: None,
            image,
            failed: None,
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
                    other => panic!("candidate {other}"),
                }
            }
            candidates.push(candidate);
        }
        let answer = match cells[4].as_str() {
            "not asked" | "nobody to ask" => Answer::NotAsked,
            "names wanted" => Answer::Names(digest(1)),
            "failed" => Answer::Failed("no answer".to_owned()),
            other => panic!("answer {other}"),
        };
        Situation {
            mode,
            exact: cells[1] == "system",
            askable: cells[4] != "nobody to ask",
            candidates,
            answer,
        }
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

    fn any_image() -> impl Strategy<Value = ImageState> {
        prop_oneof![Just(ImageState::Absent), Just(ImageState::Partial), Just(ImageState::Unchecked)]
    }

    prop_compose! {
        fn any_candidate()(number in 0u8..6, wanted: bool, image in any_image(), kernel: bool, spent: bool, blessed: bool) -> Candidate {
            Candidate { unfit: kernel.then(|| "other kernel".to_owned()), spent, blessed, ..candidate(number, wanted, image) }
        }
    }

    fn any_mode() -> impl Strategy<Value = PolicyMode> {
        prop_oneof![
            Just(PolicyMode::Offline),
            Just(PolicyMode::CacheFirst),
            Just(PolicyMode::Wait),
            Just(PolicyMode::RequireFresh)
        ]
    }

    proptest! {
        /// Whatever is there and however each step ends, the loop of decisions ends, boots only what is verified, and fetches nothing that it has.
        #[test]
        fn the_loop_of_decisions_ends_and_boots_only_what_is_verified(
            mode in any_mode(), exact: bool, askable: bool,
            mut candidates in prop::collection::vec(any_candidate(), 0..6),
            fortunes in prop::collection::vec(any::<u8>(), 40),
        ) {
            candidates.sort_by_key(|candidate| candidate.manifest);
            candidates.dedup_by_key(|candidate| candidate.manifest);
            let mut situation = Situation { mode, exact, askable, candidates, answer: Answer::NotAsked };
            let mut ended = false;
            for fortune in fortunes {
                match decide(&situation).next {
                    Next::Ask => {
                        prop_assert!(askable && mode != PolicyMode::Offline);
                        prop_assert_eq!(&situation.answer, &Answer::NotAsked);
                        situation.answer = if fortune % 3 == 0 { Answer::Failed("no answer".to_owned()) } else {
                            let named = candidate(fortune % 6, true, ImageState::Absent);
                            if !situation.candidates.iter().any(|known| known.manifest == named.manifest) {
                                situation.candidates.push(named.clone());
                            }
                            Answer::Names(named.manifest)
                        };
                    }
                    Next::Verify(digest) => {
                        let found = situation.candidates.iter_mut().find(|candidate| candidate.manifest == digest).unwrap();
                        prop_assert_eq!(&found.image, &ImageState::Unchecked);
                        found.image = if fortune % 2 == 0 { ImageState::Verified } else { ImageState::Partial };
                    }
                    Next::Fetch(digest) => {
                        prop_assert!(askable && mode != PolicyMode::Offline);
                        let found = situation.candidates.iter_mut().find(|candidate| candidate.manifest == digest).unwrap();
                        prop_assert!(matches!(found.image, ImageState::Absent | ImageState::Partial) && found.failed.is_none());
                        if fortune % 2 == 0 { found.image = ImageState::Verified } else { found.failed = Some("fetch failed".to_owned()) }
                    }
                    Next::Boot(digest) => {
                        let found = situation.candidates.iter().find(|candidate| candidate.manifest == digest).unwrap();
                        prop_assert_eq!(&found.image, &ImageState::Verified);
                        prop_assert!(found.unfit.is_none());
                        if mode != PolicyMode::RequireFresh && found.spent {
                            let other = situation.candidates.iter().any(|one| !one.spent && one.bootable());
                            prop_assert!(!other, "something with tries left could boot");
                        }
                        if mode == PolicyMode::RequireFresh {
                            let named = matches!(&situation.answer, Answer::Names(newest) if *newest == digest);
                            prop_assert!(named || (exact && found.wanted), "require-fresh boots only what was confirmed");
                        }
                        ended = true;
                        break;
                    }
                    Next::GiveUp(_) => {
                        if mode != PolicyMode::RequireFresh {
                            prop_assert!(!situation.candidates.iter().any(Candidate::bootable), "something could boot");
                        }
                        ended = true;
                        break;
                    }
                }
            }
            prop_assert!(ended, "the loop did not end");
        }
    }
}
