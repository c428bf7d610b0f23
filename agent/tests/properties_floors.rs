//! How old an answer may be, for all sequences of answers, losses and clocks; and that none of it keeps a cached generation from booting.
//!
//! The model knows which answers were accepted, and never looks at how floors are kept.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support {
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use freshroot::boot::acquire::Acquire;
use freshroot::boot::cache_disk::open_cache;
use freshroot::candidates::RunningKernel;
use freshroot::clock::BUILT;
use freshroot::digest::Digest;
use freshroot::floors::Floors;
use freshroot::formats::authorised::{Authorised, authorise};
use freshroot::formats::envelope::Envelope;
use freshroot::formats::release::ChannelName;
use freshroot::formats::state::{Claim, State};
use freshroot::mode::Mode;
use freshroot::report::Report;
use freshroot::select::select;
use freshroot::settings::Settings;
use freshroot::verify::BootImage;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select as one_of};
use serde_json::json;
use support::world::{World, key, open, trust};

const DAY: u64 = 24 * 3600;
const CHANNELS: [&str; 2] = ["stable", "testing"];

static MANIFEST: LazyLock<String> = LazyLock::new(|| World::new(1).manifest);

fn channel(number: usize) -> ChannelName {
    CHANNELS[number].parse().unwrap()
}

/// A release that a trusted key signed.
fn signed(of: usize, claim: Claim, not_after: Option<u64>) -> Authorised {
    let payload = json!({
        "version": 1, "channel": CHANNELS[of], "serial": claim.serial, "created": claim.created, "notAfter": not_after,
        "manifest": Digest::of(MANIFEST.as_bytes()),
    });
    let mut envelope = Envelope::unsigned(payload.to_string().as_bytes());
    envelope.sign(&key()).unwrap();
    authorise(Some(&envelope), &MANIFEST, &trust()).unwrap()
}

/// What happens to a machine between two answers.
#[derive(Debug, Clone)]
enum Loss {
    Nothing,
    /// The state is gone, torn, or somebody else's.
    State(Vec<u8>),
    /// A generation is evicted, damaged or deleted.
    Generation(Index),
}

/// A server answers.
#[derive(Debug, Clone)]
struct Step {
    of: usize,
    claim: Claim,
    not_after: Option<u64>,
    machine: u64,
    reset: Option<usize>,
    loss: Loss,
}

fn a_serial() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..12u64, 1 => one_of(vec![1, 9000, u64::MAX - 1, u64::MAX])]
}

fn a_time() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..60u64).prop_map(|days| BUILT + days * DAY),
        1 => one_of(vec![0, 1, BUILT - DAY, BUILT + 400 * DAY, BUILT + 4000 * DAY, u64::MAX]),
    ]
}

/// Numbers that no honest machine writes.
fn any_state() -> impl Strategy<Value = Vec<u8>> {
    let claims = vec((a_serial(), a_time()), 0..4);
    let known = (0..2usize, a_serial(), proptest::option::of(a_time()), claims);
    let sound = (vec(known, 0..3), a_time()).prop_map(|(channels, time)| {
        let mut state = State::default();
        for (of, serial, confirmed, claims) in channels {
            let claims = claims.into_iter().map(|(serial, created)| Claim { serial, created });
            state.reset(&channel(of), Claim { serial: 0, created: 0 }, claims);
            state.see_serial(&channel(of), serial);
            confirmed.into_iter().for_each(|now| state.confirm(&channel(of), 0, now));
        }
        state.see_time(time);
        state.to_bytes().unwrap()
    });
    prop_oneof![1 => vec(any::<u8>(), 0..80), 3 => sound]
}

/// `losing` says what may be lost: 0 nothing, 1 generations, 2 states.
fn a_step(losing: usize, resets: bool) -> impl Strategy<Value = Step> {
    let loss = match losing {
        0 => Just(Loss::Nothing).boxed(),
        1 => prop_oneof![Just(Loss::Nothing), any::<Index>().prop_map(Loss::Generation)].boxed(),
        _ => prop_oneof![Just(Loss::Nothing), vec(any::<u8>(), 0..9).prop_map(Loss::State)].boxed(),
    };
    let reset = if resets {
        proptest::option::weighted(0.3, 0..2usize).boxed()
    } else {
        Just(None).boxed()
    };
    (
        0..2usize,
        a_serial(),
        a_time(),
        proptest::option::of(a_time()),
        a_time(),
        reset,
        loss,
    )
        .prop_map(|(of, serial, created, not_after, machine, reset, loss)| Step {
            of,
            claim: Claim { serial, created },
            not_after,
            machine,
            reset,
            loss,
        })
}

fn steps(resets: bool) -> impl Strategy<Value = Vec<Step>> {
    (0..3usize).prop_flat_map(move |losing| vec(a_step(losing, resets), 1..14))
}

/// A machine, as far as its cache disk goes.
#[derive(Default)]
struct Machine {
    state: Vec<u8>,
    cached: Vec<Authorised>,
}

impl Machine {
    fn floors(&self, reset: Option<usize>) -> Floors {
        let state = State::parse(&self.state).unwrap_or_default();
        Floors::new(state, &self.cached).under(reset.map(channel), false)
    }

    /// One boot with one answer; says whether it was accepted.
    fn boot(&mut self, step: &Step) -> bool {
        match &step.loss {
            Loss::Nothing => {}
            Loss::State(bytes) => self.state.clone_from(bytes),
            Loss::Generation(_) if self.cached.is_empty() => {}
            Loss::Generation(which) => drop(self.cached.remove(which.index(self.cached.len()))),
        }
        let mut floors = self.floors(step.reset);
        let answer = signed(step.of, step.claim, step.not_after);
        if floors.accept(&answer, step.machine).is_err() {
            return false;
        }
        floors.accepted(&answer, true, step.machine);
        self.state = floors.state().to_bytes().unwrap();
        self.cached.push(answer);
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whether generations are lost, or states: what was accepted once is the least that is accepted again.
    #[test]
    fn accepted_serials_never_go_down_without_a_reset(steps in steps(false)) {
        let mut machine = Machine::default();
        let mut highest = [0; 2];
        for step in &steps {
            let accepted = machine.boot(step);
            prop_assert!(!accepted || step.claim.serial >= highest[step.of], "{:?}", step);
            // And the other way round: what is new enough, and bears no date, is accepted.
            prop_assert!(accepted || step.claim.serial < highest[step.of] || step.not_after.is_some(), "{:?}", step);
            if accepted {
                highest[step.of] = step.claim.serial;
            }
        }
    }

    /// A reset makes what it accepts the newest: nothing older is accepted after it, and what was known and claimed to be newer neither.
    #[test]
    fn after_a_reset_the_floor_is_what_it_accepted(steps in steps(true)) {
        let mut machine = Machine::default();
        let mut floor = [0; 2];
        let mut withdrawn: [BTreeSet<Claim>; 2] = Default::default();
        for step in steps.iter().filter(|step| !matches!(step.loss, Loss::State(_))) {
            let known: Vec<Claim> = machine.cached.iter()
                .filter_map(|one| one.release())
                .filter(|release| release.channel == channel(step.of))
                .map(|release| Claim { serial: release.serial, created: release.created })
                .collect();
            let resets = step.reset == Some(step.of);
            if !machine.boot(step) {
                prop_assert!(step.not_after.is_some() || (!resets && (step.claim.serial < floor[step.of] || withdrawn[step.of].contains(&step.claim))), "{:?}", step);
                continue;
            }
            let least = if resets { 0 } else { floor[step.of] };
            prop_assert!(step.claim.serial >= least, "{:?} below {}", step, least);
            prop_assert!(resets || !withdrawn[step.of].contains(&step.claim), "{:?} was withdrawn", step);
            if resets {
                withdrawn[step.of].extend(known.iter().filter(|claim| claim.is_newer_than(&step.claim)));
                withdrawn[step.of].retain(|claim| claim.is_newer_than(&step.claim));
                // There is room for eight.
                while withdrawn[step.of].len() > 8 {
                    withdrawn[step.of].pop_first();
                }
            }
            // What had no room among the withdrawn counts on.
            let left = machine.floors(None).serial(&channel(step.of));
            prop_assert!(left >= step.claim.serial);
            floor[step.of] = left;
        }
    }

    /// With a clock that is right, no signed date moves the floor more than a week ahead of it, and an honest release is never said to have expired.
    #[test]
    fn no_date_that_was_signed_bricks_a_machine_whose_clock_is_right(steps in vec(a_step(0, false), 1..14), start in 0..400u64) {
        let mut machine = Machine::default();
        let mut now = BUILT + start * DAY;
        let mut seen = 0;
        for mut step in steps {
            (step.machine, seen) = (now, machine.floors(None).time(now).max(seen));
            prop_assert!((BUILT..=now + 7 * DAY).contains(&seen), "{} at {}", seen, now);
            let serial = machine.floors(None).serial(&channel(step.of));
            let honest = signed(step.of, Claim { serial: serial.max(1), created: now }, Some(now + 8 * DAY));
            prop_assert!(machine.floors(None).accept(&honest, now) == Ok(None));
            // And where all dates are honest, whatever the machine's clock says.
            let dates = machine.cached.iter().filter_map(|one| Some(one.release()?.created));
            let clocks = if dates.max().unwrap_or(0) <= now + 7 * DAY { [0, BUILT, now + 40_000 * DAY, u64::MAX] } else { [now; 4] };
            for clock in clocks {
                prop_assert!(machine.floors(None).accept(&honest, clock).is_ok(), "at {}", clock);
            }
            machine.boot(&step);
            now += DAY;
        }
    }

    /// What is remembered of time never goes down without a reset, and no clock of a machine raises it.
    #[test]
    fn the_time_floor_is_of_what_was_signed(steps in vec(a_step(0, false), 1..14)) {
        let mut machine = Machine::default();
        let mut before = 0;
        for step in &steps {
            machine.boot(step);
            let time = State::parse(&machine.state).unwrap_or_default().time();
            let signed = machine.cached.iter().filter_map(|one| Some(one.release()?.created));
            prop_assert!(time == 0 || time == BUILT || signed.clone().any(|created| created == time), "{}", time);
            prop_assert!(time >= before);
            before = time;
        }
    }
}

/// Two generations of one channel, and what a machine may be told.
fn a_cache(folder: &Path) -> [World; 2] {
    let worlds = [World::new(1), World::new(2)];
    worlds[0].install(&open(folder), 1);
    worlds[1].install(&open(folder), 2);
    worlds
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever `state.json` says, and whoever wrote it: a good generation boots, verified, and no other byte than the disk's.
    #[test]
    fn no_state_keeps_a_cached_generation_from_booting(
        state in any_state(), mode in one_of(vec!["offline", "cache-first", "wait"]), reset in proptest::bool::weighted(0.3),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let worlds = a_cache(folder.path());
        fs::write(folder.path().join("state.json"), &state).unwrap();
        let reset = if reset { r#""resetFloor": "stable","# } else { "" };
        let text = format!(
            r#"{{"version": 1, "channel": "stable", {reset} "policy": {{"mode": "{mode}"}}, "trustedPublicKeys": ["{}"]}}"#,
            key().public()
        );
        let settings = Settings::from_sources(Some(("config.json", text.as_bytes())), b"").unwrap();
        let (wanted, _) = select(&settings, Mode::Standalone).unwrap();
        let kernel = RunningKernel { release: "6.6.1".to_owned(), store_name: None };
        let mut report = Report::new("test");
        let cache = open_cache(folder.path()).unwrap();
        let mut acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel, Some(cache), &mut report);
        let acquired = acquire.next(&mut report).map_err(|failure| TestCaseError::fail(failure.what))?;
        prop_assert!(matches!(acquired.image, BootImage::Verified(_)));
        let digest = acquired.known.authorised.digest();
        prop_assert!(worlds.iter().any(|world| Digest::of(world.manifest.as_bytes()) == digest));
        prop_assert_eq!(acquired.known.generation.authorise(&trust()).map(|one| one.digest()), Ok(digest));
        // What cannot be read is said, once.
        let said = report.warnings.iter().filter(|warning| warning.contains("state.json")).count();
        prop_assert_eq!(said, usize::from(State::parse(&state).is_err()));
    }
}
