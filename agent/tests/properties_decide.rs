//! The loop of decisions, driven through whatever can be observed: each step may end as it likes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use freshroot::decide::{Answer, Candidate, Decision, Freshness, ImageState, Next, Situation, decide};
use freshroot::digest::Digest;
use freshroot::fetch::range::first_missing;
use freshroot::settings::PolicyMode;
use proptest::prelude::*;

/// Chunks of each image.
const CHUNKS: usize = 3;
/// Generations that there are in this world.
const GENERATIONS: u8 = 6;
/// Each generation is verified, found damaged, too slow, fetched and rejected at most, and one question is asked and one key pressed.
const STEPS: usize = GENERATIONS as usize * 8 + 4;

fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

fn candidate(number: u8, image: ImageState) -> Candidate {
    Candidate {
        manifest: digest(number),
        wanted: true,
        unfit: None,
        image,
        failed: None,
        slow: None,
        spent: false,
        blessed: false,
        name: format!("g{number}"),
    }
}

prop_compose! {
    fn any_candidate()(
        number in 0..GENERATIONS, wanted: bool, kernel: bool, spent: bool, blessed: bool,
        image in prop_oneof![Just(ImageState::Absent), Just(ImageState::Partial), Just(ImageState::Unchecked)],
    ) -> Candidate {
        Candidate { wanted, unfit: kernel.then(|| "other kernel".to_owned()), spent, blessed, ..candidate(number, image) }
    }
}

prop_compose! {
    fn any_situation()(
        mode in prop_oneof![Just(PolicyMode::Offline), Just(PolicyMode::CacheFirst), Just(PolicyMode::Wait), Just(PolicyMode::RequireFresh)],
        exact: bool, askable: bool,
        mut candidates in prop::collection::vec(any_candidate(), 0..GENERATIONS as usize),
        max_age in prop::option::of(0u64..4), age in prop::option::of(0u64..4),
    ) -> Situation {
        candidates.sort_by_key(|candidate| candidate.manifest);
        candidates.dedup_by_key(|candidate| candidate.manifest);
        let freshness = Freshness { max_age: max_age.map(Duration::from_secs), age: age.map(Duration::from_secs) };
        Situation { mode, exact, askable, candidates, answer: Answer::NotAsked, freshness, cached_chosen: false }
    }
}

/// The machine: what its disk holds, chunk by chunk, and what befell it.
struct Machine {
    situation: Situation,
    /// Chunks by generation; those of a damaged image are not all good.
    chunks: Vec<[bool; CHUNKS]>,
    asked: usize,
    fortunes: std::vec::IntoIter<u8>,
}

impl Machine {
    fn new(situation: Situation, fortunes: Vec<u8>) -> Self {
        let chunks = vec![[false; CHUNKS]; GENERATIONS as usize];
        let mut machine = Self {
            situation,
            chunks,
            asked: 0,
            fortunes: fortunes.into_iter(),
        };
        for number in 0..machine.situation.candidates.len() {
            let candidate = machine.situation.candidates[number].clone();
            let chunks = match candidate.image {
                ImageState::Absent => [false; CHUNKS],
                ImageState::Partial => [true, false, true],
                // Good or not: nobody has looked.
                ImageState::Unchecked | ImageState::Verified => [true, !machine.fortune().is_multiple_of(3), true],
            };
            *machine.chunks(candidate.manifest) = chunks;
        }
        machine
    }

    /// Once they are used up, all goes well.
    fn fortune(&mut self) -> u8 {
        self.fortunes.next().unwrap_or(1)
    }

    fn chunks(&mut self, manifest: Digest) -> &mut [bool; CHUNKS] {
        &mut self.chunks[manifest.as_bytes()[0] as usize]
    }

    fn candidate(&mut self, manifest: Digest) -> &mut Candidate {
        let found = self.situation.candidates.iter_mut().find(|one| one.manifest == manifest);
        found.expect("only what is known is decided for")
    }

    fn ask(&mut self) {
        assert!(self.situation.askable && self.situation.mode != PolicyMode::Offline);
        assert_eq!(self.situation.answer, Answer::NotAsked);
        self.asked += 1;
        assert!(self.asked <= 2, "a question is repeated once at most");
        let fortune = self.fortune();
        self.situation.answer = if fortune.is_multiple_of(3) {
            Answer::Failed("no answer".to_owned())
        } else {
            let named = digest(fortune % GENERATIONS);
            if !self.situation.candidates.iter().any(|known| known.manifest == named) {
                self.situation.candidates.push(candidate(fortune % GENERATIONS, ImageState::Absent));
            }
            Answer::Names(named)
        };
    }

    fn verify(&mut self, manifest: Digest) {
        assert_eq!(
            self.candidate(manifest).image,
            ImageState::Unchecked,
            "what is verified is not verified again"
        );
        let good = self.chunks(manifest).iter().all(|good| *good);
        self.candidate(manifest).image = if good { ImageState::Verified } else { ImageState::Partial };
        // Nobody answered within the short wait, and now there is nothing else: there is more time.
        if matches!(self.situation.answer, Answer::Failed(_)) && self.situation.alternative().is_none() && self.asked == 1 {
            self.situation.answer = Answer::NotAsked;
        }
    }

    fn fetch(&mut self, manifest: Digest) {
        assert!(self.situation.askable && self.situation.mode != PolicyMode::Offline);
        let alternative = self.situation.alternative().is_some();
        let found = self.candidate(manifest);
        assert!(matches!(found.image, ImageState::Absent | ImageState::Partial) && found.failed.is_none() && found.unfit.is_none());
        assert!(
            found.slow.is_none() || !alternative,
            "what is too slow is waited for only where nothing else boots"
        );
        let fortune = self.fortune();
        if alternative && fortune.is_multiple_of(5) {
            self.situation.cached_chosen = true;
            return;
        }
        // So many chunks come, one after the other, of those that the engine asks for.
        for _ in 0..usize::from(fortune / 8) % (CHUNKS + 1) {
            let Some(run) = first_missing(self.chunks(manifest)) else { break };
            let asked = &mut self.chunks(manifest)[run.first..=run.last];
            assert!(asked.iter().all(|there| !there), "what is there is not asked for");
            asked[0] = true;
        }
        let whole = self.chunks(manifest).iter().all(|there| *there);
        let found = self.candidate(manifest);
        match (whole, alternative && fortune.is_multiple_of(2)) {
            (true, _) => found.image = ImageState::Verified,
            (false, true) => (found.image, found.slow) = (ImageState::Partial, Some("it takes too long".to_owned())),
            (false, false) => (found.image, found.failed) = (ImageState::Partial, Some("it broke off".to_owned())),
        }
    }

    /// Whether it boots; otherwise the image turned out not to run here.
    fn boot(&mut self, manifest: Digest) -> bool {
        let situation = self.situation.clone();
        let found = self.candidate(manifest);
        assert_eq!(found.image, ImageState::Verified, "nothing boots that was not verified");
        assert!(found.unfit.is_none());
        if situation.mode == PolicyMode::RequireFresh {
            let named = situation.answer == Answer::Names(manifest);
            assert!(
                named || (situation.exact && found.wanted),
                "require-fresh boots only what was confirmed"
            );
        } else if found.spent {
            let other = situation.candidates.iter().any(|one| !one.spent && one.bootable());
            assert!(!other, "something with tries left could boot");
        }
        if self.fortune().is_multiple_of(4) {
            self.candidate(manifest).unfit = Some("it has no init".to_owned());
            return false;
        }
        true
    }

    /// Decides and acts to the end; the number of steps.
    fn run(&mut self) -> usize {
        for step in 1..=STEPS {
            let Decision { next, reason, .. } = decide(&self.situation);
            assert!(!reason.is_empty());
            match next {
                Next::Ask => self.ask(),
                Next::Verify(manifest) => self.verify(manifest),
                Next::Fetch(manifest) => self.fetch(manifest),
                Next::Boot(manifest) if self.boot(manifest) => return step,
                Next::Boot(_) => {}
                Next::GiveUp(_) => {
                    if self.situation.mode != PolicyMode::RequireFresh {
                        assert!(!self.situation.candidates.iter().any(Candidate::bootable), "something could boot");
                    }
                    return step;
                }
            }
        }
        panic!("the loop did not end: {:?}", self.situation);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is there and however each step ends, the loop of decisions ends, boots only what is verified, and fetches nothing that is there.
    #[test]
    fn the_loop_of_decisions_ends_and_boots_only_what_is_verified(
        situation in any_situation(),
        fortunes in prop::collection::vec(any::<u8>(), 0..STEPS),
    ) {
        Machine::new(situation, fortunes).run();
    }

    /// While an answer is fresh, and where nobody is to be asked, nothing goes over the network; where it is old or of unknown age, somebody is asked.
    #[test]
    fn who_is_asked_is_decided_by_mode_and_age_alone(situation in any_situation()) {
        let fresh = situation.freshness.is_fresh();
        let best = situation.alternative().filter(|best| best.wanted && !best.spent).is_some();
        let asks = decide(&situation).next == Next::Ask;
        match situation.mode {
            _ if situation.exact || !situation.askable => {}
            PolicyMode::Offline => prop_assert!(!asks),
            PolicyMode::CacheFirst => prop_assert_eq!(asks, !best || (situation.freshness.max_age.is_some() && !fresh)),
            PolicyMode::Wait => prop_assert_eq!(asks, !(best && fresh)),
            PolicyMode::RequireFresh => prop_assert!(asks),
        }
    }

    /// A clock that is wrong, and a state that is lost, change whether somebody is asked and never what boots without an answer.
    #[test]
    fn no_age_keeps_anything_from_booting(situation in any_situation(), age in prop::option::of(0u64..4)) {
        let without = |age: Option<u64>| {
            let mut situation = situation.clone();
            situation.freshness.age = age.map(Duration::from_secs);
            if situation.mode != PolicyMode::Offline && situation.askable {
                situation.answer = Answer::Failed("no answer".to_owned());
            }
            decide(&situation).next
        };
        prop_assert_eq!(without(age), without(None));
    }
}
