//! From what the cache holds to what the decision sees. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use crate::decide::{Candidate, ImageState};
use crate::formats::authorised::{Authorised, Authority};
use crate::formats::manifest::Kernel;
use crate::formats::release::ChannelName;
use crate::formats::state::State;
use crate::select::{Target, Wanted};

/// The kernel that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningKernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The store path name of the kernel that the initrd belongs to, if its configuration knows it.
    pub store_name: Option<String>,
}

impl RunningKernel {
    /// Why a system of this manifest's kernel cannot run; nothing if it can. Modules belong to one build of a kernel: the release alone does not tell builds apart.
    pub fn differs_from(&self, wanted: &Kernel) -> Option<String> {
        let differs = self.release != wanted.release || self.store_name.as_ref().is_some_and(|name| *name != wanted.store_name);
        differs.then(|| {
            let running = match &self.store_name {
                Some(name) => format!("{} ({name})", self.release),
                None => self.release.clone(),
            };
            format!(
                "it needs the kernel {} ({}), {running} is running: boot its kernel and initrd, or publish an image for this one",
                wanted.release, wanted.store_name
            )
        })
    }
}

/// One generation as it was observed.
#[derive(Debug, Clone)]
pub struct Observed<'a> {
    /// The proof.
    pub authorised: &'a Authorised,
    /// Its order on this machine.
    pub sequence: u64,
    /// Its image.
    pub image: ImageState,
    /// Why it cannot run here, as was found out in this boot.
    pub unfit: Option<String>,
    /// Why its image could not be had in this boot.
    pub failed: Option<String>,
    /// Why its image is not waited for while something else boots.
    pub slow: Option<String>,
    /// Whether it has no tries left.
    pub spent: bool,
    /// Whether a system that it booted has found it good, at any time.
    pub blessed: bool,
    /// Whether a reset of its channel's floor has withdrawn its release: it is the last of its kind.
    pub withdrawn: bool,
}

/// Whether a generation that was tried so often has no tries left. None are counted where `allowed` is 0.
pub const fn is_spent(tries: u32, allowed: u32) -> bool {
    allowed > 0 && tries >= allowed
}

/// Candidates for the decision: those that hold what is wanted first; of these, those that were not withdrawn; then by serial
/// within the wanted channel; then the newest acceptance.
pub fn candidates(observed: &[Observed<'_>], wanted: &Wanted, kernel: &RunningKernel) -> Vec<Candidate> {
    let mut order: Vec<&Observed<'_>> = observed.iter().collect();
    order.sort_by_key(|one| {
        std::cmp::Reverse((
            wanted.target.system_of(one.authorised).is_some(),
            !one.withdrawn,
            serial_in(&wanted.target, one.authorised),
            one.sequence,
        ))
    });
    order
        .into_iter()
        .map(|one| Candidate {
            manifest: one.authorised.digest(),
            wanted: wanted.target.system_of(one.authorised).is_some(),
            unfit: one
                .unfit
                .clone()
                .or_else(|| kernel.differs_from(&one.authorised.manifest().kernel))
                .or_else(|| wanted.rules_out(one.authorised)),
            image: one.image.clone(),
            failed: one.failed.clone(),
            slow: one.slow.clone(),
            spent: one.spent,
            blessed: one.blessed,
            name: name_of(one.authorised),
        })
        .collect()
}

fn serial_in(target: &Target, authorised: &Authorised) -> u64 {
    match (target, authorised.release()) {
        (Target::Channel(channel), Some(release)) if release.channel == *channel => release.serial,
        (Target::Channel(_) | Target::System(_) | Target::Manifest(_) | Target::Anything, _) => 0,
    }
}

/// A generation's name for people.
pub fn name_of(authorised: &Authorised) -> String {
    let toplevel = authorised.manifest().default_system().map_or("", |system| system.toplevel.name());
    match authorised.release() {
        Some(release) => format!("{toplevel}, {} serial {}", release.channel, release.serial),
        None => format!("{toplevel}, manifest {}", authorised.digest().short()),
    }
}

/// How old the answer is by which `cached` is the newest of `channel`: none if that is not known, because nothing says when it was valid, the clock (`now`, seconds since 1970) is behind that,
/// or another release than the one that is cached was named meanwhile.
pub fn age_of_answer(cached: &Authorised, channel: &ChannelName, state: &State, now: u64) -> Option<Duration> {
    let release = cached.release().filter(|release| release.channel == *channel)?;
    let confirmed = state.confirmed(channel).filter(|_| release.serial >= state.serial(channel))?;
    now.checked_sub(confirmed).map(Duration::from_secs)
}

/// Whether a new answer for a manifest that is known is to take the place of the old one.
pub fn supersedes(new: &Authorised, old: &Authorised) -> bool {
    let unsigned = |known: &Authorised| *known.authority() == Authority::Unsigned;
    if unsigned(new) && !unsigned(old) {
        return false;
    }
    match (new.release(), old.release()) {
        (Some(new), Some(old)) => new.channel != old.channel || new.serial >= old.serial,
        (Some(_) | None, None) => true,
        (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Digest;
    use crate::formats::authorised::{Trust, authorise};
    use crate::formats::envelope::Envelope;
    use serde_json::json;

    fn generation(name: &str, channel: &str, serial: u64) -> Authorised {
        let manifest = json!({
            "version": 1,
            "systems": [{"name": "default", "toplevel": format!("/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-{name}"), "initKind": "prepare-root"}],
            "kernel": {"storeName": "2c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.6", "release": "6.6.1"},
            "image": {"sha256": Digest::of(name.as_bytes()), "size": 4096, "chunkIndex": {"sha256": Digest::of(b"index"), "size": 60}},
        })
        .to_string();
        let release =
            json!({"version": 1, "channel": channel, "serial": serial, "created": 1, "manifest": Digest::of(manifest.as_bytes())});
        let trust = Trust {
            allow_unsigned: true,
            ..Trust::default()
        };
        authorise(Some(&Envelope::unsigned(release.to_string().as_bytes())), &manifest, &trust).unwrap()
    }

    #[test]
    fn the_age_of_an_answer_is_known_only_of_the_release_that_it_named() {
        let stable: ChannelName = "stable".parse().unwrap();
        let mut state = State::default();
        assert_eq!(
            age_of_answer(&generation("a", "stable", 5), &stable, &state, 1000),
            None,
            "nothing is kept"
        );
        state.confirm(&stable, 5, 1000);
        for (channel, serial, now, age, why) in [
            ("stable", 5, 1060, Some(60), "a minute ago"),
            ("stable", 5, 1000, Some(0), "just now"),
            ("stable", 5, 999, None, "the clock is behind"),
            ("stable", 5, 0, None, "the clock is of 1970"),
            ("stable", 4, 1060, None, "a newer one was named, whose image is not here"),
            ("stable", 6, 1060, Some(60), "a medium brought a newer one"),
            ("other", 5, 1060, None, "nothing was said about it"),
        ] {
            let found = age_of_answer(&generation("a", channel, serial), &stable, &state, now);
            assert_eq!(found, age.map(Duration::from_secs), "{why}");
        }
    }

    fn kernel(release: &str, store_name: Option<&str>) -> RunningKernel {
        RunningKernel {
            release: release.to_owned(),
            store_name: store_name.map(str::to_owned),
        }
    }

    #[test]
    fn release_and_store_name_must_be_those_of_the_running_kernel() {
        let wanted = Kernel {
            store_name: "2c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.6".to_owned(),
            release: "6.6.1".to_owned(),
        };
        assert_eq!(kernel("6.6.1", None).differs_from(&wanted), None);
        assert_eq!(kernel("6.6.1", Some(&wanted.store_name)).differs_from(&wanted), None);
        assert!(kernel("6.6.2", None).differs_from(&wanted).is_some());
        assert!(
            kernel("6.6.1", Some("3c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.6"))
                .differs_from(&wanted)
                .unwrap()
                .contains("6.6.1")
        );
    }

    #[test]
    fn tries_are_used_up_when_as_many_were_made_as_are_allowed() {
        for (tries, allowed, spent) in [
            (0, 0, false),
            (9, 0, false),
            (0, 3, false),
            (2, 3, false),
            (3, 3, true),
            (4, 3, true),
        ] {
            assert_eq!(is_spent(tries, allowed), spent, "{tries} of {allowed}");
        }
    }

    #[test]
    fn the_wanted_channel_comes_first_by_serial_then_the_newest() {
        let (a, b, c) = (
            generation("a", "stable", 2),
            generation("b", "stable", 7),
            generation("c", "testing", 99),
        );
        let observed: Vec<Observed<'_>> = [(&a, 3), (&b, 1), (&c, 9)]
            .map(|(authorised, sequence)| Observed {
                authorised,
                sequence,
                image: ImageState::Absent,
                unfit: None,
                failed: None,
                slow: None,
                spent: false,
                blessed: false,
                withdrawn: false,
            })
            .to_vec();
        let wanted = Wanted {
            target: Target::Channel("stable".parse().unwrap()),
            trust: Trust::default(),
            only: None,
        };
        let found = candidates(&observed, &wanted, &kernel("6.6.1", None));
        let names: Vec<(&str, bool)> = found.iter().map(|one| (one.name.as_str(), one.wanted)).collect();
        assert_eq!(
            names,
            [
                ("b, stable serial 7", true),
                ("a, stable serial 2", true),
                ("c, testing serial 99", false)
            ]
        );
    }

    #[test]
    fn what_a_reset_withdrew_comes_last_and_before_what_is_not_wanted() {
        let (old, mistaken, new, other) = (
            generation("a", "stable", 2),
            generation("b", "stable", 9000),
            generation("c", "stable", 3),
            generation("d", "testing", 1),
        );
        let observed =
            [(&old, 1, false), (&mistaken, 2, true), (&new, 3, false), (&other, 4, false)].map(|(authorised, sequence, withdrawn)| {
                Observed {
                    authorised,
                    sequence,
                    image: ImageState::Unchecked,
                    unfit: None,
                    failed: None,
                    slow: None,
                    spent: false,
                    blessed: false,
                    withdrawn,
                }
            });
        for (target, expected) in [
            (Target::Channel("stable".parse().unwrap()), ["c", "a", "b", "d"]),
            (Target::Anything, ["d", "c", "a", "b"]),
        ] {
            let wanted = Wanted {
                target,
                trust: Trust::default(),
                only: None,
            };
            let found = candidates(&observed, &wanted, &kernel("6.6.1", None));
            let names: Vec<&str> = found.iter().map(|one| &one.name[..1]).collect();
            assert_eq!(names, expected, "{}", wanted.target);
        }
    }

    #[test]
    fn where_others_follow_init_only_its_system_can_be_booted() {
        let (a, b) = (generation("a", "stable", 2), generation("b", "stable", 7));
        let observed: Vec<Observed<'_>> = [&a, &b]
            .map(|authorised| Observed {
                authorised,
                sequence: 1,
                image: ImageState::Unchecked,
                unfit: None,
                failed: None,
                slow: None,
                spent: false,
                blessed: false,
                withdrawn: false,
            })
            .to_vec();
        let system = a.manifest().default_system().unwrap().toplevel.clone();
        for (only, unfit) in [(None, [false, false]), (Some(system.clone()), [false, true])] {
            let wanted = Wanted {
                target: Target::System(system.clone()),
                trust: Trust::default(),
                only,
            };
            let found = candidates(&observed, &wanted, &kernel("6.6.1", None));
            assert_eq!(found.iter().map(|one| one.unfit.is_some()).collect::<Vec<_>>(), unfit);
            let reason = found[1].unfit.clone().unwrap_or_default();
            assert!(
                reason.is_empty() || reason.contains(&format!("init=/nix/.freshroot/init freshroot.system={system}")),
                "{reason}"
            );
        }
    }

    #[test]
    fn an_older_release_of_a_known_manifest_does_not_take_its_place() {
        let (old, new) = (generation("a", "stable", 2), generation("a", "stable", 3));
        assert!(supersedes(&new, &old) && supersedes(&new, &new) && !supersedes(&old, &new));
        assert!(supersedes(&generation("a", "testing", 1), &new), "another channel counts by itself");
    }
}
