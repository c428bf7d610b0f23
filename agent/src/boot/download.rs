//! One image on its way from the servers into a cache.

use anyhow::{Context as _, Result};

use super::deadline::Deadline;
use super::ledger::RECORD;
use super::ticker::{Teller, every, while_telling};
use crate::cache::part::Part;
use crate::cache::{Cache, Held};
use crate::fetch::image::{FetchError, Patience, fetch_image, fetch_index};
use crate::fetch::{Progress, Source};
use crate::formats::chunk_index::ChunkIndex;
use crate::formats::manifest::Image;
use crate::report::Report;
use crate::verify::{BootImage, Damage, Follower, VerifiedImage, bad_chunks, verified_by_digest, verify_image};

/// Verifies a whole image that the cache holds.
///
/// # Errors
/// How it is damaged, or why it cannot be read.
pub fn verify_cached(teller: Teller<'_>, deadline: &Deadline, cache: &Cache, image: &Image) -> Result<VerifiedImage> {
    let file = cache.open_image(image.sha256)?;
    let progress = Progress::new(image.size);
    let verify = || match cache.chunk_index(image) {
        Some(index) => verify_image(file, &index, &|done| progress.reach(done)).map_err(|damage| {
            let error = damage.error.map(|error| format!(" ({error})")).unwrap_or_default();
            anyhow::anyhow!(
                "the image in {} is damaged: of its {} chunks, {} not what the signed index says{error}",
                cache.folder().display(),
                index.chunks().len(),
                chunk_names(&damage.chunks)
            )
        }),
        // Without its index, the whole digest on one core does as well.
        None => {
            let follower = Follower::new();
            follower.advance(image.size);
            let found = follower
                .follow(&file, image.size)
                .context("reading the cached image")?
                .context("reading the cached image was given up")?;
            verified_by_digest(file, image.size, found, image.sha256)
        }
    };
    while_telling(teller, &|| format!("verifying: {progress}"), || {
        deadline.moved_by(&progress, verify)
    })
}

/// The first few of damaged chunks, by their numbers.
fn chunk_names(chunks: &[u32]) -> String {
    const MOST: usize = 8;
    let first: Vec<String> = chunks.iter().take(MOST).map(ToString::to_string).collect();
    match chunks {
        [] => "one is".to_owned(),
        [one] => format!("number {one} is"),
        [..] if chunks.len() <= MOST => format!("numbers {} are", first.join(", ")),
        [..] => format!("{} ({}, …) are", chunks.len(), first.join(", ")),
    }
}

/// One image on its way into one cache.
pub struct Download<'a> {
    /// Who is told how far it is.
    pub teller: Teller<'a>,
    /// What is moved on while there is progress.
    pub deadline: &'a Deadline,
    /// Where it goes.
    pub cache: &'a Cache,
    /// Where it comes from.
    pub source: Source<'a>,
    /// What it is.
    pub image: &'a Image,
    /// How long it may take.
    pub patience: Patience,
    /// Is called now and then, and at the end: to write down what came.
    pub record: &'a (dyn Fn() + Sync),
}

impl Download<'_> {
    /// Fetches what is missing, verifies the whole, and commits it. That the commit fails is a warning: the image is good all the same.
    ///
    /// # Errors
    /// Those of the network, the servers and the disk; what was fetched stays for the next time.
    pub fn run(&self, report: &mut Report) -> Result<BootImage> {
        let index = self.index()?;
        let damaged = self.demote_corrupt(&index)?;
        let progress = Progress::new(self.image.size);
        let part = Part::open(self.cache, self.image, &index, &|_| {})?;
        let present = index.chunks().iter().zip(part.present()).filter(|(_, present)| **present);
        progress.reuse(present.map(|(chunk, _)| u64::from(chunk.length)).sum());
        report.bytes.reused += progress.reused();
        log::info!(
            "fetching {:.1} MB, {:.1} MB are here already",
            (self.image.size - progress.reused()) as f64 / 1e6,
            progress.reused() as f64 / 1e6
        );
        let fetched = every(RECORD, self.record, || {
            while_telling(self.teller, &|| format!("fetching: {progress}"), || {
                let fetch = || fetch_image(&self.source, self.image, &index, &part, self.patience, &progress);
                self.deadline.moved_by(&progress, fetch)
            })
        });
        (self.record)();
        log::info!("fetched: {progress}");
        let found = match fetched {
            Ok(found) => found,
            Err(error) => {
                if let FetchError::Contradiction(_) = error {
                    part.discard()?;
                }
                return Err(error.into());
            }
        };
        // A disk that could not read a sector mostly takes another one for it when that is written. Mostly.
        if !damaged.is_empty() {
            let Damage { chunks, error } = part.not_given_back(&index, &damaged)?;
            if !chunks.is_empty() {
                part.set_aside(self.cache)?;
                anyhow::bail!(
                    "the disk does not give back what is written to the damaged parts of the image ({}): look at it with smartctl, and replace it",
                    error.unwrap_or_else(|| "other bytes".to_owned())
                );
            }
        }
        // The proof comes before the place: nothing stands among the images that was not verified.
        let verified = verified_by_digest(part.reopen()?, self.image.size, found, self.image.sha256)?;
        if let Err(error) = part.commit(self.cache, &verified) {
            // The image is open and good, whatever its name is: it boots. The next boot finds all of its chunks and fetches none.
            report.warn(format!("the image boots, but did not get its place in the cache: {error:#}"));
        }
        Ok(BootImage::Verified(verified))
    }

    fn index(&self) -> Result<ChunkIndex> {
        if let Some(index) = self.cache.chunk_index(self.image) {
            return Ok(index);
        }
        let (index, bytes) = fetch_index(&self.source, self.image, self.patience)?;
        self.cache.commit_chunk_index(self.image.sha256, &bytes)?;
        Ok(index)
    }

    /// A whole image stands where only a good one may, and was found not to be one: its good chunks become a partial image.
    /// Returns the numbers of the others.
    fn demote_corrupt(&self, index: &ChunkIndex) -> Result<Vec<u32>> {
        if self.cache.held(self.image) != Held::Whole {
            return Ok(Vec::new());
        }
        let file = self.cache.open_image(self.image.sha256)?;
        let all: Vec<u32> = (0..index.chunks().len() as u32).collect();
        let damage = bad_chunks(&file, index, &all, &|_| {});
        log::info!(
            "{} of {} chunks of the damaged image are fetched again",
            damage.chunks.len(),
            all.len()
        );
        Part::from_corrupt(self.cache, self.image, index, &damage.chunks)?;
        Ok(damage.chunks)
    }
}
