//! Floors: how old an answer may be. They decide whether an *answer* is accepted, never whether a cached generation boots. Pure.
//!
//! The serial floor of a channel is the highest serial that was accepted: of the state of the cache and of its verified envelopes, so that neither a lost
//! state nor a lost generation lowers it. The time floor is the latest time that has passed for sure: what is signed was signed after the time that it
//! names. The rules stand in `docs/decisions.md`, «How old an answer may be».

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::clock::BUILT;
use crate::formats::authorised::{Authorised, Authority};
use crate::formats::release::{ChannelName, Release};
use crate::formats::state::{Claim, State};
use crate::http::date;

const DAY: u64 = 24 * 3600;
/// How far a publisher's clock may be ahead of a machine's that can be right. Whoever signs a date of next year by mistake must not make all
/// certificates and releases of this year look expired.
const AHEAD: u64 = 7 * DAY;
/// How far a signed time may lie beyond the floor where the machine's clock cannot be right: longer than any machine lies in a drawer.
const UNKNOWN: u64 = 10 * 365 * DAY;

/// A release that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    channel: ChannelName,
    claim: Claim,
    /// By a trusted key. What nobody signed says nothing about time, and is not remembered.
    signed: bool,
}

impl Seen {
    /// Nothing if it does not count: beside a pin, a release may be anybody's.
    fn of(authorised: &Authorised) -> Option<Self> {
        let signed = match authorised.authority() {
            Authority::Signature(_) => true,
            Authority::Unsigned => false,
            Authority::Pin => return None,
        };
        authorised.release().map(|release| Self {
            channel: release.channel.clone(),
            claim: claim(release),
            signed,
        })
    }
}

const fn claim(release: &Release) -> Claim {
    Claim {
        serial: release.serial,
        created: release.created,
    }
}

/// What decides how old an answer may be.
#[derive(Debug, Clone, Default)]
pub struct Floors {
    state: State,
    seen: Vec<Seen>,
    /// The channel whose next answer is accepted in spite of what is known.
    reset: Option<ChannelName>,
    /// Whether this machine's clock counts too: nothing is to boot that is not fresh.
    strict: bool,
}

impl Floors {
    /// From what a cache remembers, and from the generations in it that today's keys authorise, whatever this boot has pinned.
    pub fn new<'a>(state: State, known: impl IntoIterator<Item = &'a Authorised>) -> Self {
        Self {
            state,
            seen: known.into_iter().filter_map(Seen::of).collect(),
            ..Self::default()
        }
    }

    /// With what the settings say: a channel whose floors do not count until an answer is accepted (`resetFloor`), and whether the policy is
    /// `require-fresh`.
    #[must_use]
    pub fn under(self, reset: Option<ChannelName>, strict: bool) -> Self {
        Self { reset, strict, ..self }
    }

    /// What is to be remembered.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// What is to be remembered, to be changed in what no floor goes by.
    pub const fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Whether a release was withdrawn by a reset: it still boots, as the last of its channel.
    pub fn is_withdrawn(&self, authorised: &Authorised) -> bool {
        Seen::of(authorised).is_some_and(|seen| self.state.is_withdrawn(&seen.channel, seen.claim))
    }

    /// The least serial that an answer of a channel may have; 0 if nothing is known.
    pub fn serial(&self, channel: &ChannelName) -> u64 {
        if self.reset.as_ref() == Some(channel) {
            return 0;
        }
        let seen = self.counting().filter(|seen| seen.channel == *channel);
        seen.map(|seen| seen.claim.serial).fold(self.state.serial(channel), u64::max)
    }

    /// Seconds since 1970 that have passed for sure: the latest of this program's build and the signed times, as far as these can be. `machine` is this
    /// machine's clock: it bounds signed times that lie in its future, and is no floor itself.
    pub fn time(&self, machine: u64) -> u64 {
        let remembered = Some(self.state.time()).filter(|time| self.reset.is_none() && *time <= machine.max(BUILT).saturating_add(UNKNOWN));
        let established = BUILT.max(remembered.unwrap_or(0));
        let limit = if machine < BUILT {
            // A clock that is behind this program's build cannot be right, and says nothing about what is too late.
            established.saturating_add(UNKNOWN)
        } else if machine.saturating_add(AHEAD) >= established {
            machine.saturating_add(AHEAD)
        } else {
            // It was set back since.
            established.saturating_add(AHEAD)
        };
        self.counting()
            .filter(|seen| seen.signed && self.reset.as_ref() != Some(&seen.channel))
            .map(|seen| seen.claim.created)
            .filter(|created| *created <= limit)
            .fold(established, u64::max)
    }

    fn counting(&self) -> impl Iterator<Item = &Seen> {
        self.seen.iter().filter(|seen| !self.state.is_withdrawn(&seen.channel, seen.claim))
    }

    /// Whether a verified answer of a channel is accepted; with a sentence if something about it is odd. `machine` is this machine's clock.
    ///
    /// # Errors
    /// Why it is too old, and what to do about it.
    pub fn accept(&self, answer: &Authorised, machine: u64) -> Result<Option<String>, String> {
        let Some(release) = answer.release() else { return Ok(None) };
        let (channel, serial) = (&release.channel, release.serial);
        if self.reset.as_ref() != Some(channel) && self.is_withdrawn(answer) {
            return Err(format!(
                "the server offers serial {serial} of channel {channel}, which freshroot.reset-floor={channel} has withdrawn on this machine: publish anew, or reset again"
            ));
        }
        let floor = self.serial(channel);
        if serial < floor {
            return Err(format!(
                "the server offers serial {serial} of channel {channel}, this machine has accepted {floor} already: an old answer, or an attack; if {floor} was a mistake, publish with a higher serial, or see freshroot.reset-floor={channel}"
            ));
        }
        let Some(end) = release.not_after else { return Ok(None) };
        let what = format!(
            "the release of channel {channel} with serial {serial} expired at {}",
            date::show(end)
        );
        let (passed, clock) = (self.time(machine), date::show(machine));
        if passed > end {
            let why = if passed > BUILT {
                "a release was signed"
            } else {
                "this freshroot was made"
            };
            return Err(format!(
                "{what}, and {why} at {} (this machine's clock says {clock}): publish anew; if that date was a mistake, see freshroot.reset-floor={channel}",
                date::show(passed)
            ));
        }
        if machine <= end {
            return Ok(None);
        }
        let by_clock = format!("{what} by this machine's clock, which says {clock}");
        if self.strict {
            return Err(format!(
                "{by_clock} and counts where policy.mode is require-fresh: set the clock if it is wrong, or publish anew"
            ));
        }
        Ok(Some(format!(
            "{by_clock}; nothing that is signed says that it is so late, so that it is taken: set the clock if it is wrong, or publish anew"
        )))
    }

    /// A release is there that may be used in this boot, and is not remembered: it is on a medium.
    pub fn see(&mut self, authorised: &Authorised) {
        self.seen.extend(Seen::of(authorised));
    }

    /// An answer was accepted, at `machine` by this machine's clock: floors go up by it, and down to it if its channel was to be reset. `asked` says
    /// whether the channel was asked for, and not a system or a manifest by its name.
    pub fn accepted(&mut self, answer: &Authorised, asked: bool, machine: u64) {
        let Some(seen) = Seen::of(answer) else { return };
        if asked && self.reset.as_ref() == Some(&seen.channel) {
            let known = self
                .seen
                .iter()
                .filter(|other| other.channel == seen.channel)
                .map(|other| other.claim);
            self.state.reset(&seen.channel, seen.claim, known);
            self.reset = None;
        }
        let remembered = if seen.signed { seen.claim.serial } else { 0 };
        let channel = seen.channel.clone();
        self.seen.push(seen);
        let passed = self.time(machine);
        if asked {
            self.state.confirm(&channel, remembered, machine.max(passed));
        } else {
            self.state.see_serial(&channel, remembered);
        }
        self.state.see_time(passed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Digest;
    use crate::formats::authorised::{Trust, authorise};
    use crate::formats::envelope::Envelope;
    use crate::formats::key::SecretKey;
    use serde_json::json;

    /// A clock that can be right.
    const NOW: u64 = BUILT + 100 * DAY;

    fn key() -> SecretKey {
        SecretKey::from_seed("k", &[1; 32]).unwrap()
    }

    fn stable() -> ChannelName {
        "stable".parse().unwrap()
    }

    fn text(number: u64) -> String {
        json!({
            "version": 1,
            "systems": [{"name": "default", "toplevel": format!("/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-{number}"), "initKind": "prepare-root"}],
            "kernel": {"storeName": "2c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.6", "release": "6.6.1"},
            "image": {"sha256": Digest::of(b"image"), "size": 4096, "chunkIndex": {"sha256": Digest::of(b"index"), "size": 60}},
        })
        .to_string()
    }

    fn under_trust(channel: &str, serial: u64, created: u64, not_after: Option<u64>, trust: &Trust) -> Authorised {
        let manifest = text(serial);
        let payload = json!({"version": 1, "channel": channel, "serial": serial, "created": created, "notAfter": not_after, "manifest": Digest::of(manifest.as_bytes())});
        let mut envelope = Envelope::unsigned(payload.to_string().as_bytes());
        if !trust.allow_unsigned {
            envelope.sign(&key()).unwrap();
        }
        authorise(Some(&envelope), &manifest, trust).unwrap()
    }

    fn signed(channel: &str, serial: u64, created: u64, not_after: Option<u64>) -> Authorised {
        let trust = Trust {
            keys: vec![key().public()],
            ..Trust::default()
        };
        under_trust(channel, serial, created, not_after, &trust)
    }

    fn unsigned(serial: u64, created: u64) -> Authorised {
        let trust = Trust {
            allow_unsigned: true,
            ..Trust::default()
        };
        under_trust("stable", serial, created, None, &trust)
    }

    fn pinned(serial: u64, created: u64) -> Authorised {
        let trust = Trust {
            pinned: Some(Digest::of(text(serial).as_bytes())),
            ..Trust::default()
        };
        under_trust("stable", serial, created, None, &trust)
    }

    #[test]
    fn the_serial_floor_is_the_highest_of_state_and_verified_envelopes() {
        let mut state = State::default();
        state.confirm(&stable(), 5, 0);
        for (state, known, floor) in [
            (State::default(), vec![], 0),
            (State::default(), vec![signed("stable", 3, 1, None)], 3),
            (State::default(), vec![signed("testing", 3, 1, None)], 0),
            (state.clone(), vec![], 5),
            (state.clone(), vec![signed("stable", 3, 1, None)], 5),
            (state.clone(), vec![signed("stable", 9, 1, None), signed("stable", 3, 1, None)], 9),
            (State::default(), vec![unsigned(4, 1)], 4),
            // Beside a pin, a release may be anybody's.
            (State::default(), vec![pinned(9, NOW)], 0),
        ] {
            let floors = Floors::new(state, &known);
            assert_eq!(floors.serial(&stable()), floor, "{known:?}");
            for (serial, accepted) in [(floor, floor > 0), (floor + 1, true), (floor.saturating_sub(1), false)] {
                if serial > 0 {
                    assert_eq!(
                        floors.accept(&signed("stable", serial, 1, None), NOW).is_ok(),
                        accepted,
                        "{serial} at {floor}"
                    );
                }
            }
        }
    }

    /// Of times: signed, remembered, the machine's → what has passed for sure. As `docs/decisions.md` has it.
    #[test]
    fn the_time_floor_is_the_latest_signed_time_that_can_be() {
        const YEAR: u64 = 365 * DAY;
        for (signed_at, remembered, machine, floor) in [
            (&[][..], 0, NOW, BUILT),
            (&[5], 0, NOW, BUILT),
            // The machine's clock is no floor.
            (&[BUILT + DAY], 0, NOW, BUILT + DAY),
            (&[BUILT + DAY, BUILT + 9 * DAY], 0, NOW, BUILT + 9 * DAY),
            (&[BUILT + DAY], BUILT + 3 * DAY, NOW, BUILT + 3 * DAY),
            // A little ahead of a clock that can be right counts, more does not.
            (&[NOW + 7 * DAY], 0, NOW, NOW + 7 * DAY),
            (&[NOW + 7 * DAY + 1], 0, NOW, BUILT),
            (&[NOW + 7 * DAY + 1, NOW], 0, NOW, NOW),
            (&[NOW + 7 * DAY, NOW + 14 * DAY], 0, NOW, NOW + 7 * DAY),
            // A clock that is behind what was established stays behind.
            (&[NOW + YEAR + DAY], NOW + YEAR, NOW, NOW + YEAR + DAY),
            (&[NOW + 2 * YEAR], NOW + YEAR, NOW, NOW + YEAR),
            // A clock that cannot be right bounds nothing but nonsense.
            (&[BUILT + 3 * YEAR], 0, 0, BUILT + 3 * YEAR),
            (&[BUILT + 11 * YEAR], 0, 0, BUILT),
            (&[u64::MAX], 0, 0, BUILT),
            // What was remembered wrongly is not believed either.
            (&[NOW], u64::MAX, NOW, NOW),
            (&[], u64::MAX, 0, BUILT),
            (&[NOW], 0, u64::MAX, NOW),
        ] {
            let mut state = State::default();
            state.see_time(remembered);
            let known: Vec<_> = signed_at.iter().map(|created| signed("stable", 1, *created, None)).collect();
            assert_eq!(
                Floors::new(state, &known).time(machine),
                floor,
                "{signed_at:?} {remembered} {machine}"
            );
        }
        assert_eq!(Floors::new(State::default(), [&unsigned(1, NOW), &pinned(1, NOW)]).time(NOW), BUILT);
    }

    #[test]
    fn a_release_has_expired_by_what_is_signed_and_only_under_require_fresh_by_the_clock() {
        let known = [signed("stable", 1, BUILT + 5 * DAY, None)];
        for (end, machine, strict, expected) in [
            (None, NOW, false, ""),
            (Some(NOW), NOW, false, ""),
            (Some(NOW), NOW, true, ""),
            (Some(BUILT + 5 * DAY), 0, true, ""),
            (Some(BUILT + 5 * DAY - 1), 0, false, "a release was signed at"),
            (Some(BUILT + 5 * DAY - 1), NOW, true, "publish anew"),
            (Some(BUILT - 1), 0, false, "a release was signed at"),
            (Some(NOW - 1), NOW, false, "warning: by this machine's clock, which says"),
            (Some(NOW - 1), NOW, true, "set the clock if it is wrong"),
            (Some(NOW), u64::MAX, false, "warning: after the year 9999"),
        ] {
            let floors = Floors::new(State::default(), &known).under(None, strict);
            let told = match floors.accept(&signed("stable", 2, 1, end), machine) {
                Ok(None) => String::new(),
                Ok(Some(warning)) => format!("warning: {warning}"),
                Err(why) => why,
            };
            let parts: Vec<&str> = expected.split(": ").collect();
            assert!(parts.iter().all(|part| told.contains(part)), "{end:?} {machine} {strict}: {told}");
            assert_eq!(told.is_empty(), expected.is_empty(), "{told}");
            assert_eq!(told.starts_with("warning"), expected.starts_with("warning"), "{told}");
            assert!(
                told.is_empty() || told.contains("clock"),
                "what is said of time names the clock: {told}"
            );
        }
        let nothing = Floors::default().accept(&signed("stable", 2, 1, Some(5)), 0).unwrap_err();
        assert!(nothing.contains("this freshroot was made at"), "{nothing}");
    }

    /// One machine, one answer after the other.
    fn machine(answers: &[(u64, u64)]) -> Floors {
        let mut floors = Floors::default();
        for (serial, created) in answers {
            floors.accepted(&signed("stable", *serial, *created, None), true, NOW);
        }
        floors
    }

    #[test]
    fn what_is_accepted_is_remembered() {
        let floors = machine(&[(3, BUILT + DAY), (5, BUILT + 2 * DAY)]);
        let state = floors.state();
        assert_eq!(
            (state.serial(&stable()), state.confirmed(&stable()), state.time()),
            (5, Some(NOW), BUILT + 2 * DAY)
        );
        // A clock that cannot be right does not say when that was.
        let mut floors = Floors::default();
        floors.accepted(&signed("stable", 1, BUILT + DAY, None), true, 7);
        assert_eq!(floors.state().confirmed(&stable()), Some(BUILT + DAY));
        // By its name: the serial is seen, and the channel not confirmed. Unsigned: the other way round.
        let mut floors = Floors::default();
        floors.accepted(&signed("stable", 4, 1, None), false, NOW);
        assert_eq!((floors.state().serial(&stable()), floors.state().confirmed(&stable())), (4, None));
        let mut floors = Floors::default();
        floors.accepted(&unsigned(4, NOW), true, NOW);
        assert_eq!(
            (floors.state().serial(&stable()), floors.state().confirmed(&stable())),
            (0, Some(NOW))
        );
        assert_eq!((floors.serial(&stable()), floors.state().time()), (4, BUILT));
        let mut floors = Floors::default();
        floors.accepted(&pinned(4, NOW), true, NOW);
        assert_eq!(*floors.state(), State::default());
    }

    #[test]
    fn a_reset_accepts_the_next_answer_and_makes_it_the_newest() {
        let mistaken = signed("stable", 9000, NOW - DAY, None);
        let known = [
            signed("stable", 11, NOW - 2 * DAY, None),
            mistaken.clone(),
            signed("testing", 8, NOW - DAY, None),
        ];
        let next = signed("stable", 12, NOW, None);
        let mut floors = Floors::new(machine(&[(9000, NOW - DAY)]).state().clone(), &known);
        assert!(floors.accept(&next, NOW).unwrap_err().contains("freshroot.reset-floor=stable"));
        floors = floors.under(Some(stable()), false);
        assert!(floors.accept(&next, NOW).is_ok());
        assert!(floors.accept(&signed("testing", 7, 1, None), NOW).is_err(), "of one channel only");
        // A machine that has not seen an answer yet boots what it booted.
        assert!(!floors.is_withdrawn(&mistaken));
        floors.accepted(&next, true, NOW);
        assert_eq!(floors.state().serial(&stable()), 12);
        assert!(floors.is_withdrawn(&mistaken));
        assert!(!floors.is_withdrawn(&known[0]) && !floors.is_withdrawn(&next) && !floors.is_withdrawn(&known[2]));

        // The boots after it, from what is on the disk.
        let state = State::parse(&floors.state().to_bytes().unwrap()).unwrap();
        let later = Floors::new(state, known.iter().chain([&next]));
        assert_eq!((later.serial(&stable()), later.serial(&"testing".parse().unwrap())), (12, 8));
        assert!(later.accept(&signed("stable", 13, NOW + 1, None), NOW).is_ok());
        assert!(later.accept(&signed("stable", 9001, NOW + 1, None), NOW).is_ok());
        assert!(later.accept(&signed("stable", 11, NOW + 1, None), NOW).is_err());
        let again = later.accept(&mistaken, NOW).unwrap_err();
        assert!(again.contains("has withdrawn"), "{again}");
        assert!(
            later.under(Some(stable()), false).accept(&mistaken, NOW).is_ok(),
            "a second reset takes it back"
        );
    }

    #[test]
    fn a_reset_makes_good_for_a_date_in_the_future() {
        const YEAR: u64 = 365 * DAY;
        // Without a clock, nothing tells that a date is wrong.
        let mistaken = signed("stable", 6, BUILT + 5 * YEAR, None);
        let mut floors = Floors::default();
        floors.accepted(&mistaken, true, 0);
        assert_eq!(floors.time(0), BUILT + 5 * YEAR);
        let right = signed("stable", 7, BUILT + DAY, Some(BUILT + YEAR));
        assert!(floors.accept(&right, 0).unwrap_err().contains("a release was signed at"));
        floors = floors.under(Some(stable()), false);
        assert_eq!(floors.time(0), BUILT);
        floors.accept(&right, 0).unwrap();
        floors.accepted(&right, true, 0);
        let later = Floors::new(floors.state().clone(), [&mistaken, &right]);
        assert_eq!((later.time(0), later.serial(&stable())), (BUILT + DAY, 7));
        assert!(later.accept(&right, 0).is_ok());
    }

    #[test]
    fn what_lies_on_a_medium_counts_for_this_boot_alone() {
        let mut floors = Floors::default();
        floors.see(&signed("stable", 5, 1, None));
        assert_eq!((floors.serial(&stable()), floors.state().serial(&stable())), (5, 0));
    }
}
