//! The loop of decisions: observe, decide, do the one thing that was decided, observe again, until an image is ready or nothing can be had.

mod fetching;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;

use super::Stage;
use super::deadline::{Deadline, NO_DEADLINE};
use super::download::verify_cached;
use super::generations::{Entry, Generations};
use super::ledger::Ledger;
use super::medium::Medium;
use super::online::Online;
use super::ram;
use super::ticker::{Teller, while_telling};
use crate::cache::{Cache, Held, Known};
use crate::candidates::{RunningKernel, age_of_answer, name_of};
use crate::clock::machine;
use crate::decide::{Answer, Candidate, Freshness, ImageState, Next, Situation, best, decide};
use crate::digest::Digest;
use crate::fetch::image::FetchError;
use crate::formats::manifest::Image;
use crate::keyboard::Keys;
use crate::long_download::Key;
use crate::report::{self, Failure, Report};
use crate::select::{Target, Wanted};
use crate::settings::{Settings, Verify};
use crate::verify::{BootImage, accept_by_size};

/// What to do when nothing can be had.
const REMEDY: &str = "check the server and the network, that the release is signed by a key of trustedPublicKeys, and that an image for this kernel is published";

/// What is ready to be booted.
pub struct Acquired {
    /// The image.
    pub image: BootImage,
    /// The generation.
    pub known: Known,
    /// Where the image came from.
    pub source: report::Source,
}

/// The state of the loop.
pub struct Acquire<'a> {
    root: &'a Path,
    settings: &'a Settings,
    wanted: &'a Wanted,
    kernel: RunningKernel,
    disk: Option<Cache>,
    ram: Option<ram::RamStore>,
    ram_place: PathBuf,
    stage: Option<&'a Stage>,
    keys: Keys,
    deadline: &'a Deadline,
    medium: Option<Medium>,
    /// An image on the medium was handed out.
    medium_used: bool,
    generations: Generations,
    answer: Answer,
    /// The answer was waited for only as long as there was something else to boot.
    hurried: bool,
    /// The download that was announced, and what somebody has chosen then.
    announced: Option<Digest>,
    chosen: Option<Key>,
    ledger: Ledger,
    online: Online<'a>,
}

impl<'a> Acquire<'a> {
    /// Observes what is cached. A cache that cannot be read is none: what the servers have can still be booted.
    pub fn new(
        root: &'a Path,
        settings: &'a Settings,
        wanted: &'a Wanted,
        kernel: RunningKernel,
        mut disk: Option<Cache>,
        report: &mut Report,
    ) -> Self {
        let observed = disk
            .as_ref()
            .map(|cache| Generations::observe(cache, &wanted.trust, settings))
            .transpose();
        let (generations, oddities) = observed
            .unwrap_or_else(|error| {
                report.warn(format!(
                    "the cache is not used, check its disk with its file system's fsck: {error:#}"
                ));
                disk = None;
                None
            })
            .unwrap_or_else(|| (Generations::none(settings), Vec::new()));
        for sentence in oddities {
            report.warn(sentence);
        }
        let ledger = Ledger::new(settings, generations.state().clone(), generations.clock());
        if ledger.counts_days() && !disk.as_ref().is_some_and(Cache::writable) {
            report
                .warn("transfer.budgetPerDay holds for this boot alone: there is no cache that can be written, on which days are counted");
        }
        let online = Online::new(settings, &ledger);
        Self {
            root,
            settings,
            wanted,
            kernel,
            disk,
            ram: None,
            ram_place: root.join("run/freshroot/ram"),
            stage: None,
            keys: Keys::Nowhere,
            deadline: &NO_DEADLINE,
            medium: None,
            medium_used: false,
            generations,
            answer: Answer::NotAsked,
            hurried: false,
            announced: None,
            chosen: None,
            ledger,
            online,
        }
    }

    /// As a part of `stage`: an image in RAM is kept where that has it, and what an attempt before this one left there is taken up; its deadline is told of
    /// progress, and keys count on its consoles.
    #[must_use]
    pub fn within(mut self, stage: &'a Stage) -> Self {
        self.ram = stage.left();
        if let Some(store) = &self.ram {
            match Generations::observe(&store.cache, &self.wanted.trust, self.settings) {
                Ok((there, _)) => self.generations.join(there),
                Err(error) => log::warn!("what is in RAM already is not looked at: {error:#}"),
            }
            self.generations.look_at(&store.cache);
        }
        Self {
            ram_place: stage.ram(),
            stage: Some(stage),
            deadline: &stage.deadline,
            keys: stage.keys(),
            online: self.online.within(&stage.deadline),
            ..self
        }
    }

    /// With keys on these consoles, and images in RAM at this place.
    #[must_use]
    pub fn on(self, keys: Keys, ram_place: PathBuf) -> Self {
        Self { keys, ram_place, ..self }
    }

    /// Whether what was selected exactly is cached and has its tries: then nothing that a medium holds can be wanted more.
    pub fn has_what_is_wanted(&self) -> bool {
        let situation = self.situation();
        situation.exact && best(&situation.candidates).is_some_and(|best| best.wanted && !best.spent)
    }

    /// Takes what is on a medium into account, as if a server had answered it.
    pub fn add_medium(&mut self, medium: Medium, report: &mut Report) {
        let learnt = medium.answer(self.wanted).map_err(|error| format!("{error:#}"));
        match learnt.and_then(|known| self.generations.add(known, self.wanted)) {
            Ok(odd) => odd.into_iter().for_each(|sentence| report.warn(sentence)),
            Err(why) => report.warn(format!("the medium has no valid answer: {why}")),
        }
        self.generations.look_at(&medium.images);
        self.medium = Some(medium);
    }

    /// Decides and acts until an image is ready.
    ///
    /// # Errors
    /// If nothing can be booted, and why.
    pub fn next(&mut self, report: &mut Report) -> Result<Acquired, Failure> {
        loop {
            let decision = decide(&self.situation());
            log::info!("decision: {} [{}]: {}", decision.reason, decision.rule, decision.next.verb());
            report.decision = report::Decided {
                rule: decision.rule.to_owned(),
                reason: decision.reason.clone(),
            };
            match &decision.next {
                Next::Ask => {
                    self.answer = match report.step("ask", |report| self.ask(report)) {
                        Ok(digest) => Answer::Names(digest),
                        Err(why) => {
                            report.warn(format!("no valid answer: {why}"));
                            Answer::Failed(why)
                        }
                    };
                }
                Next::Verify(digest) => {
                    let outcome = report.step("verify", |report| self.verify(*digest, report));
                    if let Ok((BootImage::Unverified(_), _)) = &outcome {
                        report.warn("the image is NOT verified (verify = size): damage and tampering on the disk go unseen");
                    }
                    self.note(*digest, outcome, report);
                }
                Next::Fetch(digest) => {
                    if self.announce(*digest, report) == Some(Key::Cached) {
                        continue;
                    }
                    let outcome = report.step("fetch", |report| self.fetch(*digest, report));
                    self.ledger.measured(self.disk.as_ref(), &self.online.rates());
                    self.note(*digest, outcome.map(|(image, source)| (image, Some(source))), report);
                }
                Next::Boot(digest) => {
                    if let Some(acquired) = self.take(*digest) {
                        return Ok(acquired);
                    }
                }
                Next::GiveUp(what) => return Err(Failure::new(format!("nothing can be booted: {what}"), REMEDY)),
            }
            (report.requests, report.bytes.received) = self.online.counted();
            self.ledger.received(self.disk.as_ref(), report.bytes.received);
        }
    }

    /// This generation turned out not to run here: the next decision leaves it out. If its image was taken by its size alone, it is verified
    /// first: then it is the image that may be damaged, and can be had anew.
    pub fn reject(&mut self, acquired: Acquired, why: &str) {
        let digest = acquired.known.authorised.digest();
        let Some(entry) = self.generations.get_mut(digest) else {
            return;
        };
        match acquired.image {
            BootImage::Unverified(_) => {
                entry.image = ImageState::Unchecked;
                entry.doubted = true;
            }
            BootImage::Verified(_) => entry.unfit = Some(why.to_owned()),
        }
    }

    /// Counts this boot as a try of its generation: the last thing before the hand-over. What cannot be counted boots all the same.
    pub fn count_try(&self, acquired: &Acquired, report: &mut Report) {
        let allowed = self.settings.policy.tries;
        let manifest = acquired.known.authorised.digest();
        // What a medium holds is not the cache's to count.
        if allowed == 0 || acquired.source == report::Source::Medium {
            return;
        }
        if self.generations.is_spent(manifest, allowed) {
            report.warn(format!(
                "{} was booted {allowed} times without being blessed, and nothing else can boot",
                name_of(&acquired.known.authorised)
            ));
            return;
        }
        // A generation that the next boot does not find there is not held against it either.
        match self.disk().filter(|cache| cache.has_generation(manifest)) {
            Some(cache) => match cache.count_try(manifest, &report.boot_id, machine()) {
                Ok(number) => log::info!("this is try {number} of {allowed} until «freshroot bless»"),
                Err(error) => report.warn(format!("this boot is not counted as a try: {error:#}")),
            },
            None => report.warn("this boot is not counted as a try: no cache that can be written holds its generation"),
        }
    }

    /// Ends what was begun: the network is taken down, and the cache may be used by others. An image in RAM or on a medium stays if it was `booted`. Otherwise the
    /// medium is given up, and what is in RAM is left to the next attempt: nothing is fetched twice.
    ///
    /// # Errors
    /// If the network could not be taken down as it came up.
    pub fn close(self, booted: bool) -> Result<()> {
        match (self.ram, self.stage) {
            (Some(store), _) if booted => store.keep(),
            (Some(store), Some(stage)) => stage.leave(store),
            (Some(_) | None, _) => {}
        }
        if let Some(medium) = self.medium.filter(|_| booted && self.medium_used) {
            medium.keep();
        }
        self.online.close()
    }

    /// The cache on the disk, if there is one that can be written.
    pub fn disk(&self) -> Option<&Cache> {
        self.disk.as_ref().filter(|cache| cache.writable())
    }

    fn situation(&self) -> Situation {
        Situation {
            mode: self.settings.policy.mode,
            exact: matches!(self.wanted.target, Target::System(_) | Target::Manifest(_)),
            askable: !self.settings.urls.is_empty() && self.wanted.question().is_some(),
            candidates: self.candidates(),
            answer: self.answer.clone(),
            freshness: self.freshness(),
            cached_chosen: self.chosen == Some(Key::Cached),
        }
    }

    fn freshness(&self) -> Freshness {
        let age = match &self.wanted.target {
            // A floor is reset by an answer: somebody has to be asked.
            Target::Channel(channel) if self.settings.reset_floor.as_ref() == Some(channel) => None,
            Target::Channel(channel) => best(&self.candidates()).and_then(|best| {
                let entry = self.generations.get(best.manifest).ok()?;
                age_of_answer(
                    &entry.known.authorised,
                    channel,
                    self.generations.state(),
                    self.ledger.clock().now(),
                )
            }),
            Target::System(_) | Target::Manifest(_) | Target::Anything => None,
        };
        Freshness {
            max_age: Some(self.settings.policy.max_age).filter(|max_age| !max_age.is_zero()),
            age,
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.generations.candidates(self.wanted, &self.kernel, self.settings.policy.tries)
    }

    /// What boots of what is here, whatever the policy says.
    fn bootable(&self) -> Option<Digest> {
        best(&self.candidates()).map(|one| one.manifest)
    }

    /// Whether something may be booted if nothing newer comes.
    fn has_alternative(&self) -> bool {
        self.situation().alternative().is_some()
    }

    fn take(&mut self, digest: Digest) -> Option<Acquired> {
        let entry = self.generations.get_mut(digest)?;
        match entry.ready.take() {
            Some(image) => {
                let source = entry.fetched.unwrap_or(report::Source::Cache);
                self.medium_used = source == report::Source::Medium;
                Some(Acquired {
                    image,
                    known: entry.known.clone(),
                    source,
                })
            }
            None => {
                // It was taken once already: it has to be verified again.
                entry.image = ImageState::Unchecked;
                None
            }
        }
    }

    fn note(&mut self, digest: Digest, outcome: Result<(BootImage, Option<report::Source>)>, report: &mut Report) {
        let Some(entry) = self.generations.get_mut(digest) else {
            return;
        };
        match outcome {
            Ok((image, fetched)) => {
                entry.image = ImageState::Verified;
                entry.ready = Some(image);
                entry.fetched = fetched.or(entry.fetched);
            }
            Err(error) => {
                let why = format!("{error:#}");
                report.warn(format!("{}: {why}", name_of(&entry.known.authorised)));
                // Nothing is wrong with it: where nothing else boots after all, it is gone on with.
                if matches!(error.downcast_ref(), Some(FetchError::Late(_))) {
                    (entry.image, entry.slow) = (ImageState::Partial, Some(why));
                    return;
                }
                // A whole image that failed is a partial one from now on; one that could not be fetched is not tried again.
                if entry.image == ImageState::Unchecked {
                    entry.image = ImageState::Partial;
                } else {
                    entry.failed = Some(why);
                }
                // Nobody answered within the time for which there was something to boot: without that, there is more time.
                if self.hurried && matches!(self.answer, Answer::Failed(_)) && !self.has_alternative() {
                    log::info!("nothing is left to boot: the servers are asked once more, for longer");
                    self.hurried = false;
                    self.answer = Answer::NotAsked;
                }
            }
        }
    }

    fn ask(&mut self, report: &mut Report) -> Result<Digest, String> {
        let policy = &self.settings.policy;
        self.hurried = self.has_alternative();
        let limit = if self.hurried { policy.wait } else { policy.fetch_wait };
        log::info!("asking for {}, at most {} s", self.wanted.target, limit.as_secs());
        let deadline = Instant::now() + limit;
        let source = self.online.source(deadline, report)?;
        let begun = Instant::now();
        let line = || {
            let (target, elapsed, limit) = (&self.wanted.target, begun.elapsed().as_secs(), limit.as_secs());
            format!("waiting for an answer about {target} for {elapsed} s, at most {limit} s")
        };
        let answer = while_telling(Teller::Consoles(self.root), &line, || {
            let ask = || self.generations.ask(&source, self.wanted, deadline, self.disk.as_ref());
            self.deadline.moved_within(limit, ask)
        });
        if let Some(medium) = &self.medium {
            self.generations.look_at(&medium.images);
        }
        answer.map(|(digest, odd)| {
            odd.into_iter().for_each(|sentence| report.warn(sentence));
            digest
        })
    }

    /// The image from whoever holds a good copy: a medium may have one where the cache's is damaged.
    fn verify(&self, digest: Digest, report: &mut Report) -> Result<(BootImage, Option<report::Source>)> {
        let entry = self.generations.get(digest)?;
        let image = &entry.known.authorised.manifest().image;
        let mut damaged = None;
        for (cache, source) in self.holders(image) {
            if let Some(error) = damaged.take() {
                report.warn(format!("{}: {error:#}", name_of(&entry.known.authorised)));
            }
            match self.verify_in(cache, entry) {
                Ok(image) => return Ok((image, source)),
                Err(error) => damaged = Some(error),
            }
        }
        Err(damaged.unwrap_or_else(|| anyhow::anyhow!("no cache holds the image")))
    }

    fn verify_in(&self, cache: &Cache, entry: &Entry) -> Result<BootImage> {
        let authorised = &entry.known.authorised;
        let image = &authorised.manifest().image;
        if self.settings.verify == Verify::Size && !entry.doubted {
            let file = cache.open_image(image.sha256)?;
            return Ok(BootImage::Unverified(accept_by_size(file, image.size)?));
        }
        let verified = verify_cached(Teller::Consoles(self.root), self.deadline, cache, image)?;
        // The generation may be missing beside an image that a power cut left behind, or be one that today's keys did not authorise. A disk that is full
        // or failing is no reason against a good image.
        if cache.writable()
            && !entry.kept
            && let Err(error) = cache.commit_generation(&entry.known.generation)
        {
            log::warn!("the generation is not kept, the image boots all the same: {error:#}");
        }
        Ok(BootImage::Verified(verified))
    }

    /// Who holds the whole image, the nearest first, and where an image from there comes from if not from the cache.
    fn holders(&self, image: &Image) -> impl Iterator<Item = (&Cache, Option<report::Source>)> {
        let ram = self.ram.as_ref().map(|store| (&store.cache, Some(report::Source::Ram)));
        let medium = self.medium.as_ref().map(|medium| (&medium.images, Some(report::Source::Medium)));
        let all = [self.disk.as_ref().map(|cache| (cache, None)), ram, medium];
        all.into_iter().flatten().filter(|(cache, _)| cache.held(image) == Held::Whole)
    }
}
