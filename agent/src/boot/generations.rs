//! The generations that are known: those of the cache, and those that servers have named since.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::cache::state::read_state;
use crate::cache::tries::{History, read_history};
use crate::cache::{Cache, Held, Known};
use crate::candidates::{Observed, RunningKernel, candidates, is_spent, supersedes};
use crate::clock::{Clock, machine};
use crate::decide::{Candidate, ImageState};
use crate::digest::Digest;
use crate::fetch::Source;
use crate::fetch::answer::{Asked, Earlier, Valid, ask};
use crate::floors::Floors;
use crate::formats::authorised::{Authorised, Trust};
use crate::formats::generation::Generation;
use crate::formats::state::State;
use crate::report;
use crate::select::{Target, Wanted};
use crate::settings::{PolicyMode, Settings};
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
    /// Why its image is not waited for while something else boots.
    pub slow: Option<String>,
    /// Its image, ready to be booted.
    pub ready: Option<BootImage>,
    /// Where its image came from, if it was fetched.
    pub fetched: Option<report::Source>,
    /// Its image was taken by its size and turned out to be of no use: its size is not believed again.
    pub doubted: bool,
    /// The cache holds this very generation: not none, nor one of the same manifest with another release.
    pub kept: bool,
}

impl Entry {
    /// `held` is what the cache holds of its image: an image can be there without its generation, when a power cut came in between, or when another
    /// generation has the same one.
    fn new(known: Known, held: Held, kept: bool) -> Self {
        Self {
            known,
            image: match held {
                Held::Whole => ImageState::Unchecked,
                Held::Part => ImageState::Partial,
                Held::Nothing => ImageState::Absent,
            },
            unfit: None,
            failed: None,
            slow: None,
            ready: None,
            fetched: None,
            doubted: false,
            kept,
        }
    }

    fn digest(&self) -> Digest {
        self.known.authorised.digest()
    }

    /// Keeps the generation in the cache, if its image is there whole; else it is written when that is.
    fn keep(&mut self, disk: Option<&Cache>) {
        let whole = matches!(self.image, ImageState::Unchecked | ImageState::Verified);
        if let Some(cache) = disk.filter(|cache| whole && cache.writable())
            // It may be a medium that holds the image.
            && cache.held(&self.known.authorised.manifest().image) == Held::Whole
        {
            match cache.commit_generation(&self.known.generation) {
                Ok(()) => self.kept = true,
                Err(error) => log::warn!("the newer release is not kept: {error:#}"),
            }
        }
    }
}

/// All that is known.
#[derive(Default)]
pub struct Generations {
    entries: Vec<Entry>,
    history: History,
    floors: Floors,
}

impl Generations {
    /// Nothing is known: there is no cache.
    pub fn none(settings: &Settings) -> Self {
        Self {
            floors: under(settings, Floors::default()),
            ..Self::default()
        }
    }

    /// What the cache holds, with sentences about what was odd.
    ///
    /// # Errors
    /// If its folder cannot be read.
    pub fn observe(cache: &Cache, trust: &Trust, settings: &Settings) -> Result<(Self, Vec<String>)> {
        let (known, mut oddities) = cache.generations(trust)?;
        let history = read_history(cache.folder()).unwrap_or_else(|error| {
            oddities.push(format!("tries and blessings are not looked at: {error:#}"));
            History::default()
        });
        let (state, oddity) = read_state(cache.folder());
        oddities.extend(oddity);
        let floors = under(settings, floors(cache, trust, state, &known)?);
        let entries = known.into_iter().map(|known| {
            let held = cache.held(&known.authorised.manifest().image);
            Entry::new(known, held, true)
        });
        let entries = entries.collect();
        Ok((Self { entries, history, floors }, oddities))
    }

    /// The clock that certificates are measured by: not earlier than what has passed for sure.
    pub fn clock(&self) -> Clock {
        Clock::not_before(self.floors.time(machine()))
    }

    /// What the cache remembers beside the generations.
    pub const fn state(&self) -> &State {
        self.floors.state()
    }

    /// The same, to be changed in what no floor goes by, and then kept by [`Generations::remember`].
    pub const fn state_mut(&mut self) -> &mut State {
        self.floors.state_mut()
    }

    /// Keeps the state in the cache. One that cannot be kept is derived again, as far as that goes.
    pub fn remember(&self, disk: Option<&Cache>) {
        if let Some(cache) = disk.filter(|cache| cache.writable())
            && let Err(error) = {
                // What came and how fast is written down meanwhile.
                let mut state = self.floors.state().clone();
                state.take_transfers(read_state(cache.folder()).0);
                cache.commit_state(&state)
            }
        {
            log::warn!("what this boot has learnt is not remembered: {error:#}");
        }
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
                slow: entry.slow.clone(),
                spent: self.is_spent(entry.digest(), tries),
                blessed: self.history.is_blessed(entry.digest()),
                withdrawn: self.floors.is_withdrawn(&entry.known.authorised),
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

    /// Asks for what is wanted until `deadline`, and learns what a valid answer names, which is given; with a sentence if something about it is odd.
    ///
    /// # Errors
    /// Why there is no valid answer.
    pub fn ask(
        &mut self,
        source: &Source<'_>,
        wanted: &Wanted,
        deadline: Instant,
        disk: Option<&Cache>,
    ) -> Result<(Digest, Option<String>), String> {
        let question = wanted.question().ok_or("nothing names what to ask for")?;
        let now = machine();
        // What would be refused as an answer is no answer by way of «not modified» either.
        let earlier = self.earlier(&question.path()).filter(|(_, digest)| {
            let known = self.get(*digest);
            known.is_ok_and(|entry| self.acceptable(&entry.known.authorised, wanted, now).is_ok())
        });
        let asked = ask(
            source,
            &question,
            &wanted.trust,
            earlier.as_ref().map(|(earlier, _)| earlier),
            &|answer| self.acceptable(answer, wanted, now).map(drop),
            deadline,
        )?;
        let authorised = match (&asked, &earlier) {
            (Asked::Valid(valid), _) => valid.authorised.clone(),
            (Asked::NotModified, Some((_, digest))) => {
                let known = self.get(*digest).map_err(|error| error.to_string())?;
                known.known.authorised.clone()
            }
            (Asked::NotModified, None) => return Err("the server says that nothing changed, though nothing was known".to_owned()),
        };
        let odd = self.acceptable(&authorised, wanted, now)?;
        let of_channel = matches!(wanted.target, Target::Channel(_));
        self.floors.accepted(&authorised, of_channel, now);
        self.remember(disk);
        if let Asked::Valid(valid) = asked {
            self.learn(*valid, now, disk);
        }
        Ok((authorised.digest(), odd))
    }

    /// Takes what a medium answers into the list, by the rules for what a server answers. Nothing of it is kept. Gives a sentence if something about it is
    /// odd.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn add(&mut self, known: Known, wanted: &Wanted) -> Result<Option<String>, String> {
        let odd = self.acceptable(&known.authorised, wanted, machine())?;
        self.floors.see(&known.authorised);
        if self.get_mut(known.authorised.digest()).is_none() {
            self.entries.push(Entry::new(known, Held::Nothing, false));
        }
        Ok(odd)
    }

    /// Whether a valid answer is accepted for what is wanted.
    fn acceptable(&self, answer: &Authorised, wanted: &Wanted, now: u64) -> Result<Option<String>, String> {
        if wanted.target.system_of(answer).is_none() {
            return Err(format!("the answer does not hold {}", wanted.target));
        }
        // Serial and expiry tell a stale channel; a system or a manifest that was named is what it is.
        match wanted.target {
            Target::Channel(_) => self.floors.accept(answer, now),
            Target::System(_) | Target::Manifest(_) | Target::Anything => Ok(None),
        }
    }

    /// Takes those into the list that another cache holds, and this one does not.
    pub fn join(&mut self, other: Self) {
        for entry in other.entries {
            if self.get_mut(entry.digest()).is_none() {
                self.entries.push(entry);
            }
        }
    }

    /// Images of which a medium, or RAM, holds all, and the cache does not, need not be fetched.
    pub fn look_at(&mut self, other: &Cache) {
        for entry in &mut self.entries {
            entry.image = match (&entry.image, other.held(&entry.known.authorised.manifest().image)) {
                (ImageState::Absent | ImageState::Partial, Held::Whole) => ImageState::Unchecked,
                (ImageState::Absent, Held::Part) => ImageState::Partial,
                (image, Held::Whole | Held::Part | Held::Nothing) => image.clone(),
            };
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
    fn learn(&mut self, valid: Valid, now: u64, disk: Option<&Cache>) {
        let digest = valid.authorised.digest();
        let sequence = self.entries.iter().map(|entry| entry.known.generation.sequence).max().unwrap_or(0) + 1;
        let mut known = Known {
            generation: Generation {
                version: 1,
                release: valid.received.release,
                manifest: valid.received.manifest,
                sequence,
                accepted: now,
                source: valid.source,
                etag: valid.etag,
            },
            authorised: valid.authorised,
        };
        let Some(position) = self.entries.iter().position(|entry| entry.digest() == digest) else {
            // Beside an image that is whole may lie a generation that nobody authorises any more: it is replaced once the image is verified.
            let held = disk.map_or(Held::Nothing, |cache| cache.held(&known.authorised.manifest().image));
            self.entries.push(Entry::new(known, held, false));
            return;
        };
        let entry = &mut self.entries[position];
        // The proof that is kept stays the stronger one: an answer to a pin, or an old one, would lower the floor, or authorise nothing later.
        if !supersedes(&known.authorised, &entry.known.authorised) && !self.floors.is_withdrawn(&entry.known.authorised) {
            return;
        }
        // While keys are replaced, one mirror may have the signature of the new one already and another may not: what was there is not lost.
        if let (Some(new), Some(old)) = (&mut known.generation.release, &entry.known.generation.release) {
            new.keep_signatures(old);
        }
        entry.known = known;
        entry.kept = false;
        entry.keep(disk);
    }
}

/// What the floors are to go by besides what is known.
fn under(settings: &Settings, floors: Floors) -> Floors {
    floors.under(settings.reset_floor.clone(), settings.policy.mode == PolicyMode::RequireFresh)
}

/// Floors go by what trusted keys have signed, whatever this boot has pinned.
fn floors(cache: &Cache, trust: &Trust, state: State, known: &[Known]) -> Result<Floors> {
    if trust.pinned.is_none() {
        return Ok(Floors::new(state, known.iter().map(|one| &one.authorised)));
    }
    let unpinned = Trust {
        pinned: None,
        ..trust.clone()
    };
    let (known, _) = cache.generations(&unpinned)?;
    Ok(Floors::new(state, known.iter().map(|one| &one.authorised)))
}
