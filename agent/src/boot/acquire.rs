//! The loop of decisions: observe, decide, do the one thing that was decided, observe again, until an image is ready or nothing can be had.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use super::Stage;
use super::deadline::Deadline;
use super::download::Download;
use super::online::{Online, patience};
use super::ram;
use super::ticker::while_telling;
use crate::cache::room::make_room;
use crate::cache::tries::{History, read_history};
use crate::cache::{Cache, Held, Known};
use crate::candidates::{Observed, RunningKernel, accept, candidates, is_spent, name_of, supersedes};
use crate::decide::{Answer, Candidate, ImageState, Next, Situation, best, decide};
use crate::digest::Digest;
use crate::fetch::Progress;
use crate::fetch::answer::{Asked, Earlier, Valid, ask};
use crate::fetch::image::fetch_index;
use crate::formats::generation::Generation;
use crate::formats::manifest::Image;
use crate::report::{self, Failure, Report};
use crate::select::{Target, Wanted};
use crate::settings::{Settings, Verify};
use crate::verify::{BootImage, accept_by_size, verified_by_digest, verify_image};

/// What to do when nothing can be had.
const REMEDY: &str = "check the server and the network, that the release is signed by a key of trustedPublicKeys, and that an image for this kernel is published";

/// Where nobody ends a boot.
static NO_DEADLINE: Deadline = Deadline::none();

/// A generation as it stands in this boot.
struct Entry {
    known: Known,
    image: ImageState,
    unfit: Option<String>,
    failed: Option<String>,
    ready: Option<BootImage>,
    fetched: Option<report::Source>,
    /// Its image was taken by its size and turned out to be of no use: its size is not believed again.
    doubted: bool,
}

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
    deadline: &'a Deadline,
    entries: Vec<Entry>,
    history: History,
    answer: Answer,
    /// The answer was waited for only as long as there was something else to boot.
    hurried: bool,
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
        let mut entries = Vec::new();
        let found = disk.as_ref().map(|cache| cache.generations(&wanted.trust)).transpose();
        let found = found.unwrap_or_else(|error| {
            report.warn(format!(
                "the cache is not used, check its disk with its file system's fsck: {error:#}"
            ));
            disk = None;
            None
        });
        if let (Some(cache), Some((known, left_out))) = (&disk, found) {
            for sentence in left_out {
                report.warn(sentence);
            }
            for known in known {
                let image = match cache.held(&known.authorised.manifest().image) {
                    Held::Whole => ImageState::Unchecked,
                    Held::Part => ImageState::Partial,
                    Held::Nothing => ImageState::Absent,
                };
                entries.push(Entry {
                    known,
                    image,
                    unfit: None,
                    failed: None,
                    ready: None,
                    fetched: None,
                    doubted: false,
                });
            }
        }
        let history = disk.as_ref().map(|cache| read_history(cache.folder())).transpose();
        let history = history.unwrap_or_else(|error| {
            report.warn(format!("tries and blessings are not looked at: {error:#}"));
            None
        });
        let signed = entries.iter().filter_map(|entry| Some(entry.known.authorised.release()?.created));
        let online = Online::new(settings, signed);
        Self {
            root,
            settings,
            wanted,
            kernel,
            disk,
            ram: None,
            ram_place: root.join("run/freshroot/ram"),
            deadline: &NO_DEADLINE,
            entries,
            history: history.unwrap_or_default(),
            answer: Answer::NotAsked,
            hurried: false,
            online,
        }
    }

    /// As a part of `stage`: an image in RAM is kept where that has it, and its deadline is told of progress.
    #[must_use]
    pub fn within(self, stage: &'a Stage) -> Self {
        Self {
            ram_place: stage.ram(),
            deadline: &stage.deadline,
            online: self.online.within(&stage.deadline),
            ..self
        }
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
                    let outcome = report.step("verify", |_| self.verify(*digest));
                    if let Ok(BootImage::Unverified(_)) = &outcome {
                        report.warn("the image is NOT verified (verify = size): damage and tampering on the cache disk go unseen");
                    }
                    self.note(*digest, outcome.map(|image| (image, None)), report);
                }
                Next::Fetch(digest) => {
                    let outcome = report.step("fetch", |report| self.fetch(*digest, report));
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
        }
    }

    /// This generation turned out not to run here: the next decision leaves it out. If its image was taken by its size alone, it is verified
    /// first: then it is the image that may be damaged, and can be had anew.
    pub fn reject(&mut self, acquired: Acquired, why: &str) {
        let digest = acquired.known.authorised.digest();
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.known.authorised.digest() == digest) else {
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
        if allowed == 0 {
            return;
        }
        if self.is_spent(manifest) {
            report.warn(format!(
                "{} was booted {allowed} times without being blessed, and nothing else can boot",
                name_of(&acquired.known.authorised)
            ));
            return;
        }
        // A generation that the next boot does not find there is not held against it either.
        match self.disk().filter(|cache| cache.has_generation(manifest)) {
            Some(cache) => match cache.count_try(manifest, &report.boot_id, seconds_now()) {
                Ok(number) => log::info!("this is try {number} of {allowed} until «freshroot bless»"),
                Err(error) => report.warn(format!("this boot is not counted as a try: {error:#}")),
            },
            None => report.warn("this boot is not counted as a try: no cache that can be written holds its generation"),
        }
    }

    /// Ends what was begun: the network is taken down, and the cache may be used by others. An image in RAM stays if it was `booted`, and is
    /// given up otherwise, so that the next try finds the memory free.
    ///
    /// # Errors
    /// If the network could not be taken down as it came up.
    pub fn close(self, booted: bool) -> Result<()> {
        if let Some(store) = self.ram.filter(|_| booted) {
            store.keep();
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
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let observed: Vec<Observed<'_>> = self
            .entries
            .iter()
            .map(|entry| Observed {
                authorised: &entry.known.authorised,
                sequence: entry.known.generation.sequence,
                image: entry.image.clone(),
                unfit: entry.unfit.clone(),
                failed: entry.failed.clone(),
                spent: self.is_spent(entry.known.authorised.digest()),
                blessed: self.history.is_blessed(entry.known.authorised.digest()),
            })
            .collect();
        candidates(&observed, self.wanted, &self.kernel)
    }

    fn is_spent(&self, manifest: Digest) -> bool {
        is_spent(self.history.tries(manifest), self.settings.policy.tries)
    }

    /// What boots of what is here if nothing newer comes.
    fn bootable(&self) -> Option<Digest> {
        best(&self.candidates()).map(|one| one.manifest)
    }

    fn entry(&self, digest: Digest) -> Result<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.known.authorised.digest() == digest)
            .context("the generation is not known")
    }

    fn take(&mut self, digest: Digest) -> Option<Acquired> {
        let entry = self.entries.iter_mut().find(|entry| entry.known.authorised.digest() == digest)?;
        match entry.ready.take() {
            Some(image) => Some(Acquired {
                image,
                known: entry.known.clone(),
                source: entry.fetched.unwrap_or(report::Source::Cache),
            }),
            None => {
                // It was taken once already: it has to be verified again.
                entry.image = ImageState::Unchecked;
                None
            }
        }
    }

    fn note(&mut self, digest: Digest, outcome: Result<(BootImage, Option<report::Source>)>, report: &mut Report) {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.known.authorised.digest() == digest) else {
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
                // A whole image that failed is a partial one from now on; one that could not be fetched is not tried again.
                if entry.image == ImageState::Unchecked {
                    entry.image = ImageState::Partial;
                } else {
                    entry.failed = Some(why);
                }
                // Nobody answered within the time for which there was something to boot: without that, there is more time.
                if self.hurried && matches!(self.answer, Answer::Failed(_)) && self.bootable().is_none() {
                    log::info!("nothing is left to boot: the servers are asked once more, for longer");
                    self.answer = Answer::NotAsked;
                }
            }
        }
    }

    fn ask(&mut self, report: &mut Report) -> Result<Digest, String> {
        let question = self.wanted.question().ok_or("nothing names what to ask for")?;
        let policy = &self.settings.policy;
        self.hurried = self.bootable().is_some();
        let limit = if self.hurried { policy.wait } else { policy.fetch_wait };
        log::info!("asking for {}, at most {} s", self.wanted.target, limit.as_secs());
        self.deadline.waiting_for(limit);
        let deadline = Instant::now() + limit;
        let known: Vec<_> = self.entries.iter().map(|entry| entry.known.authorised.clone()).collect();
        let known: Vec<_> = known.iter().collect();
        let now = seconds_now();
        // What would be refused as an answer is no answer by way of «not modified» either.
        let earlier = self
            .earlier(&question.path())
            .filter(|(_, digest)| known.iter().any(|one| one.digest() == *digest && accept(one, &known, now).is_ok()));
        let source = self.online.source(deadline, report)?;
        let wanted = self.wanted;
        let accepted = |authorised: &crate::formats::authorised::Authorised| {
            if wanted.target.system_of(authorised).is_none() {
                return Err(format!("the answer does not hold {}", wanted.target));
            }
            // Serial and expiry tell a stale channel; a system or a manifest that was named is what it is.
            if matches!(wanted.target, Target::Channel(_)) {
                accept(authorised, &known, now)
            } else {
                Ok(())
            }
        };
        match ask(
            &source,
            &question,
            &wanted.trust,
            earlier.as_ref().map(|(earlier, _)| earlier),
            &accepted,
            deadline,
        )? {
            Asked::NotModified => earlier
                .map(|(_, digest)| digest)
                .ok_or_else(|| "the server says that nothing changed, though nothing was known".to_owned()),
            Asked::Valid(valid) => Ok(self.learn(*valid, now)),
        }
    }

    /// The newest answer to the same question that was accepted, for `If-None-Match`.
    fn earlier(&self, path: &str) -> Option<(Earlier, Digest)> {
        let of_question = self.entries.iter().filter(|entry| entry.known.generation.source.ends_with(path));
        let newest = of_question.max_by_key(|entry| entry.known.generation.sequence)?;
        let etag = newest.known.generation.etag.clone()?;
        Some((
            Earlier {
                source: newest.known.generation.source.clone(),
                etag,
            },
            newest.known.authorised.digest(),
        ))
    }

    /// Takes a valid answer into the list; the newer release of a manifest that is known replaces the older one on the disk too.
    fn learn(&mut self, valid: Valid, now: u64) -> Digest {
        let digest = valid.authorised.digest();
        let sequence = self.entries.iter().map(|entry| entry.known.generation.sequence).max().unwrap_or(0) + 1;
        let generation = Generation {
            version: 1,
            release: valid.received.release,
            manifest: valid.received.manifest,
            sequence,
            accepted: now,
            source: valid.source,
            etag: valid.etag,
        };
        let known = Known {
            generation,
            authorised: valid.authorised,
        };
        match self.entries.iter_mut().find(|entry| entry.known.authorised.digest() == digest) {
            // The proof that is kept stays the stronger one: an answer to a pin, or an old one, would lower the floor, or authorise nothing later.
            Some(entry) if !supersedes(&known.authorised, &entry.known.authorised) => {}
            Some(entry) => {
                entry.known = known;
                if let (Some(cache), ImageState::Unchecked | ImageState::Verified) =
                    (self.disk.as_ref().filter(|cache| cache.writable()), &entry.image)
                    && let Err(error) = cache.commit_generation(&entry.known.generation)
                {
                    log::warn!("the newer release is not kept: {error:#}");
                }
            }
            None => {
                let held = self.disk.as_ref().map(|cache| cache.held(&known.authorised.manifest().image));
                let image = match held {
                    // An image can be there without its generation: a power cut came in between, or another generation has the same one.
                    Some(Held::Whole) => ImageState::Unchecked,
                    Some(Held::Part) => ImageState::Partial,
                    Some(Held::Nothing) | None => ImageState::Absent,
                };
                self.entries.push(Entry {
                    known,
                    image,
                    unfit: None,
                    failed: None,
                    ready: None,
                    fetched: None,
                    doubted: false,
                });
            }
        }
        digest
    }

    fn verify(&self, digest: Digest) -> Result<BootImage> {
        let entry = self.entry(digest)?;
        let image = &entry.known.authorised.manifest().image;
        let cache = self.holder(image).context("no cache holds the image")?;
        let file = cache.open_image(image.sha256)?;
        if self.settings.verify == Verify::Size && !entry.doubted {
            return Ok(BootImage::Unverified(accept_by_size(file, image.size)?));
        }
        let progress = Progress::new(image.size);
        let verify = || match cache.chunk_index(image) {
            Some(index) => verify_image(file, &index, &|done| progress.reach(done)).map_err(|damage| {
                let error = damage.error.map(|error| format!(" ({error})")).unwrap_or_default();
                anyhow::anyhow!(
                    "the cached image is damaged: {} of {} chunks are not what the signed index says{error}",
                    damage.chunks.len(),
                    index.chunks().len()
                )
            }),
            // Without its index, the whole digest on one core does as well.
            None => {
                let follower = crate::verify::Follower::new();
                follower.advance(image.size);
                let found = follower
                    .follow(&file, image.size)
                    .context("reading the cached image")?
                    .context("reading the cached image was given up")?;
                verified_by_digest(file, image.size, found, image.sha256)
            }
        };
        let verified = while_telling(self.root, &|| format!("verifying: {progress}"), || {
            self.deadline.moved_by(&progress, verify)
        })?;
        // The generation may be missing beside an image that a power cut left behind. A disk that is full or failing is no reason against a
        // good image.
        if cache.writable()
            && !cache.has_generation(digest)
            && let Err(error) = cache.commit_generation(&entry.known.generation)
        {
            log::warn!("the generation is not kept, the image boots all the same: {error:#}");
        }
        Ok(BootImage::Verified(verified))
    }

    fn holder(&self, image: &Image) -> Option<&Cache> {
        [self.disk.as_ref(), self.ram.as_ref().map(|store| &store.cache)]
            .into_iter()
            .flatten()
            .find(|cache| cache.held(image) == Held::Whole)
    }

    fn fetch(&mut self, digest: Digest, report: &mut Report) -> Result<(BootImage, report::Source)> {
        let entry = self.entry(digest)?;
        let (generation, image) = (entry.known.generation.clone(), entry.known.authorised.manifest().image.clone());
        let bootable = self.bootable();
        let patience = patience(self.settings, bootable.is_some());
        self.deadline.waiting_for(patience.without_progress);
        let network_limit = patience
            .deadline
            .unwrap_or_else(|| Instant::now() + self.settings.policy.fetch_wait);
        let source = self.online.source(network_limit, report).map_err(anyhow::Error::msg)?;
        // Before anything is removed for it: a server without the image is mostly one without its index.
        let index = match self.disk.as_ref().and_then(|cache| cache.chunk_index(&image)) {
            Some(_) => None,
            None => Some(fetch_index(&source, &image, patience).map_err(|error| anyhow::anyhow!("{error}"))?),
        };
        let on_disk = match self.disk.as_ref().filter(|cache| cache.writable()) {
            Some(cache) => {
                let known: Vec<&Known> = self.entries.iter().map(|entry| &entry.known).collect();
                let protected: Vec<Digest> = bootable.into_iter().chain([digest]).chain(self.history.last_blessed()).collect();
                let keep = (self.settings.cache.keep as usize).saturating_sub(1);
                let made = make_room(cache, &known, &image, &protected, keep).or_else(|error| {
                    // With nothing that boots, a machine that runs is worth more than generations for another kernel.
                    if bootable.is_none() && keep > 0 {
                        log::warn!("{error:#}; nothing else boots, so that fewer generations are kept");
                        make_room(cache, &known, &image, &protected, 0)
                    } else {
                        Err(error)
                    }
                });
                made.map_err(|error| report.warn(format!("{error:#}"))).is_ok()
            }
            None => false,
        };
        // With something on the disk that boots, RAM is not spent on what the disk has no room for.
        anyhow::ensure!(on_disk || bootable.is_none(), "the cache has no room for it");
        if !on_disk {
            self.ram = None;
            self.ram = Some(ram::RamStore::make(self.root, &self.ram_place, &image)?);
        }
        let cache = if on_disk {
            self.disk.as_ref()
        } else {
            self.ram.as_ref().map(|store| &store.cache)
        }
        .context("there is nowhere to keep the image")?;
        if let Some((_, bytes)) = index {
            cache.commit_chunk_index(image.sha256, &bytes)?;
        }
        let source = self.online.source(network_limit, report).map_err(anyhow::Error::msg)?;
        let image = Download {
            root: self.root,
            deadline: self.deadline,
            cache,
            source,
            image: &image,
            patience,
        }
        .run(report)?;
        if let Err(error) = cache.commit_generation(&generation) {
            report.warn(format!("the generation is not kept, its image boots all the same: {error:#}"));
        }
        Ok((image, if on_disk { report::Source::Network } else { report::Source::Ram }))
    }
}

/// This machine's clock.
fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
