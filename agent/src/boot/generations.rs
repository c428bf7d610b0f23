//! The generations that are known: those of the cache, and those that servers have named since.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::cache::tries::{History, read_history};
use crate::cache::{Cache, Held, Known};
use crate::candidates::{Observed, RunningKernel, accept, candidates, is_spent, supersedes};
use crate::decide::{Candidate, ImageState};
use crate::digest::Digest;
use crate::fetch::Source;
use crate::fetch::answer::{Asked, Earlier, Valid, ask};
use crate::formats::authorised::{Authorised, Trust};
use crate::formats::generation::Generation;
use crate::report;
use crate::select::{Target, Wanted};
use crate::verify::BootImage;

/// A generation as it stands now.
pub struct Entry {
    /// The proof, and what is kept of it.
    pub known: Known,
    /// Its image.
    pub image: ImageState,
    /// Why it cannot run here, as was found out.
    pub unfit: Option<String>,
    /// Why its image could not be had.
    pub failed: Option<String>,
    /// Its image, ready to be booted.
    pub ready: Option<BootImage>,
    /// Where its image came from, if it was fetched.
    pub fetched: Option<report::Source>,
    /// Its image was taken by its size and turned out to be of no use: its size is not believed again.
    pub doubted: bool,
}

impl Entry {
    /// `held` is what the cache holds of its image: an image can be there without its generation, when a power cut came in between, or when another
    /// generation has the same one.
    fn new(known: Known, held: Held) -> Self {
        Self {
            known,
            image: match held {
                Held::Whole => ImageState::Unchecked,
                Held::Part => ImageState::Partial,
                Held::Nothing => ImageState::Absent,
            },
            unfit: None,
            failed: None,
            ready: None,
            fetched: None,
            doubted: false,
        }
    }

    fn digest(&self) -> Digest {
        self.known.authorised.digest()
    }
}

/// All that is known.
#[derive(Default)]
pub struct Generations {
    entries: Vec<Entry>,
    history: History,
}

impl Generations {
    /// What the cache holds, with sentences about what was odd.
    ///
    /// # Errors
    /// If its folder cannot be read.
    pub fn observe(cache: &Cache, trust: &Trust) -> Result<(Self, Vec<String>)> {
        let (known, mut oddities) = cache.generations(trust)?;
        let history = read_history(cache.folder()).unwrap_or_else(|error| {
            oddities.push(format!("tries and blessings are not looked at: {error:#}"));
            History::default()
        });
        let entries = known.into_iter().map(|known| {
            let held = cache.held(&known.authorised.manifest().image);
            Entry::new(known, held)
        });
        let entries = entries.collect();
        Ok((Self { entries, history }, oddities))
    }

    /// When the releases were made, by their signatures: seconds since 1970. It is at least as late.
    pub fn signed(&self) -> impl Iterator<Item = u64> {
        self.entries
            .iter()
            .filter_map(|entry| Some(entry.known.authorised.release()?.created))
    }

    /// One of them.
    ///
    /// # Errors
    /// If it is not known.
    pub fn get(&self, manifest: Digest) -> Result<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.digest() == manifest)
            .context("the generation is not known")
    }

    /// One of them, to note what was found out.
    pub fn get_mut(&mut self, manifest: Digest) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.digest() == manifest)
    }

    /// All of them.
    pub fn known(&self) -> Vec<&Known> {
        self.entries.iter().map(|entry| &entry.known).collect()
    }

    /// As the decision sees them, the best first; `tries` are allowed.
    pub fn candidates(&self, wanted: &Wanted, kernel: &RunningKernel, tries: u32) -> Vec<Candidate> {
        let observed: Vec<Observed<'_>> = self
            .entries
            .iter()
            .map(|entry| Observed {
                authorised: &entry.known.authorised,
                sequence: entry.known.generation.sequence,
                image: entry.image.clone(),
                unfit: entry.unfit.clone(),
                failed: entry.failed.clone(),
                spent: self.is_spent(entry.digest(), tries),
                blessed: self.history.is_blessed(entry.digest()),
            })
            .collect();
        candidates(&observed, wanted, kernel)
    }

    /// Whether a generation has no tries left, if so many are allowed.
    pub fn is_spent(&self, manifest: Digest, allowed: u32) -> bool {
        is_spent(self.history.tries(manifest), allowed)
    }

    /// The generation that was blessed last.
    pub fn last_blessed(&self) -> Option<Digest> {
        self.history.last_blessed()
    }

    /// Asks for what is wanted until `deadline`, and learns what a valid answer names, which is given.
    ///
    /// # Errors
    /// Why there is no valid answer.
    pub fn ask(&mut self, source: &Source<'_>, wanted: &Wanted, deadline: Instant, disk: Option<&Cache>) -> Result<Digest, String> {
        let question = wanted.question().ok_or("nothing names what to ask for")?;
        let known = self.authorised();
        let now = seconds_now();
        // What would be refused as an answer is no answer by way of «not modified» either.
        let earlier = self
            .earlier(&question.path())
            .filter(|(_, digest)| known.iter().any(|one| one.digest() == *digest && accept(one, &known, now).is_ok()));
        let accepted = |authorised: &Authorised| acceptable(authorised, wanted, &known, now);
        match ask(
            source,
            &question,
            &wanted.trust,
            earlier.as_ref().map(|(earlier, _)| earlier),
            &accepted,
            deadline,
        )? {
            Asked::NotModified => earlier
                .map(|(_, digest)| digest)
                .ok_or_else(|| "the server says that nothing changed, though nothing was known".to_owned()),
            Asked::Valid(valid) => Ok(self.learn(*valid, now, disk)),
        }
    }

    /// Takes what a medium answers into the list, by the rules for what a server answers. Nothing of it is kept.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn add(&mut self, known: Known, wanted: &Wanted) -> Result<(), String> {
        acceptable(&known.authorised, wanted, &self.authorised(), seconds_now())?;
        if self.get_mut(known.authorised.digest()).is_none() {
            self.entries.push(Entry::new(known, Held::Nothing));
        }
        Ok(())
    }

    /// Images of which `medium` holds all, and the cache does not, need not be fetched.
    pub fn look_at(&mut self, medium: &Cache) {
        for entry in &mut self.entries {
            let missing = matches!(entry.image, ImageState::Absent | ImageState::Partial);
            if missing && medium.held(&entry.known.authorised.manifest().image) == Held::Whole {
                entry.image = ImageState::Unchecked;
            }
        }
    }

    fn authorised(&self) -> Vec<&Authorised> {
        self.entries.iter().map(|entry| &entry.known.authorised).collect()
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
    fn learn(&mut self, valid: Valid, now: u64, disk: Option<&Cache>) -> Digest {
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
        match self.get_mut(digest) {
            // The proof that is kept stays the stronger one: an answer to a pin, or an old one, would lower the floor, or authorise nothing later.
            Some(entry) if !supersedes(&known.authorised, &entry.known.authorised) => {}
            Some(entry) => {
                entry.known = known;
                if let (Some(cache), ImageState::Unchecked | ImageState::Verified) = (disk.filter(|cache| cache.writable()), &entry.image)
                    // It may be a medium that holds the image.
                    && cache.held(&entry.known.authorised.manifest().image) == Held::Whole
                    && let Err(error) = cache.commit_generation(&entry.known.generation)
                {
                    log::warn!("the newer release is not kept: {error:#}");
                }
            }
            None => {
                let held = disk.map_or(Held::Nothing, |cache| cache.held(&known.authorised.manifest().image));
                self.entries.push(Entry::new(known, held));
            }
        }
        digest
    }
}

/// Whether a valid answer is accepted for what is wanted.
fn acceptable(answer: &Authorised, wanted: &Wanted, known: &[&Authorised], now: u64) -> Result<(), String> {
    if wanted.target.system_of(answer).is_none() {
        return Err(format!("the answer does not hold {}", wanted.target));
    }
    // Serial and expiry tell a stale channel; a system or a manifest that was named is what it is.
    match wanted.target {
        Target::Channel(_) => accept(answer, known, now),
        Target::System(_) | Target::Manifest(_) | Target::Anything => Ok(()),
    }
}

/// This machine's clock.
pub fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
