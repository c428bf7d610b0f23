//! The step that costs: an image over the network, announced, to the disk or to RAM.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::Acquire;
use crate::boot::ahead::{ahead, cached, missing, tell_and_ask};
use crate::boot::download::Download;
use crate::boot::online::patience;
use crate::boot::ram;
use crate::boot::ticker::Teller;
use crate::cache::room::make_room;
use crate::digest::Digest;
use crate::fetch::image::{FetchError, Patience, fetch_index};
use crate::formats::generation::Generation;
use crate::formats::manifest::Image;
use crate::long_download::Key;
use crate::report::{self, Report};
use crate::verify::BootImage;

impl Acquire<'_> {
    /// Says what a download takes, once, and lets somebody at the keyboard choose.
    pub(super) fn announce(&mut self, digest: Digest, report: &mut Report) -> Option<Key> {
        if self.announced.replace(digest) == Some(digest) {
            return None;
        }
        let entry = self.generations.get(digest).ok()?;
        let image = &entry.known.authorised.manifest().image;
        let caches = self.disk.iter().chain(self.ram.as_ref().map(|store| &store.cache));
        let instead = self
            .situation()
            .alternative()
            .and_then(|one| self.generations.get(one.manifest).ok());
        let instead = instead.map(|entry| cached(entry, self.disk.as_ref(), self.ledger.clock().now()));
        let ahead = ahead(missing(caches, image), instead, &self.online, &self.ledger);
        let countdown = self.settings.policy.countdown;
        let pressed = tell_and_ask(self.root, self.keys, self.deadline, &ahead, countdown, report);
        self.chosen = pressed.or(self.chosen);
        pressed
    }

    /// Fetches what is missing of an image, to the disk, or to RAM where there is none, and gives it with where it is.
    pub(super) fn fetch(&mut self, digest: Digest, report: &mut Report) -> Result<(BootImage, report::Source)> {
        let entry = self.generations.get(digest)?;
        let (generation, image) = (entry.known.generation.clone(), entry.known.authorised.manifest().image.clone());
        let (bootable, alternative) = (self.bootable(), self.has_alternative());
        // Who has chosen the download waits for it.
        let patience = patience(self.settings, alternative && self.chosen != Some(Key::Download));
        let network_limit = patience
            .deadline
            .unwrap_or_else(|| Instant::now() + self.settings.policy.fetch_wait);
        let source = self.online.source(network_limit, report).map_err(anyhow::Error::msg)?;
        // Before anything is removed for it: a server without the image is mostly one without its index.
        let mut caches = self.disk.iter().chain(self.ram.as_ref().map(|store| &store.cache));
        let index = match caches.any(|cache| cache.chunk_index(&image).is_some()) {
            true => None,
            false => Some(fetch_index(&source, &image, patience)?),
        };
        let on_disk = match self.disk.as_ref().filter(|cache| cache.writable()) {
            Some(cache) => {
                // What is known from a medium takes no room in the cache.
                let mut known = self.generations.known();
                known.retain(|known| self.medium.is_none() || cache.has_generation(known.authorised.digest()));
                let protected: Vec<Digest> = bootable
                    .into_iter()
                    .chain([digest])
                    .chain(self.generations.last_blessed())
                    .collect();
                let keep = (self.settings.cache.keep as usize).saturating_sub(1);
                let mut made = make_room(cache, &known, &image, &protected, keep);
                // With nothing that boots, a machine that runs is worth more than generations for another kernel; the blessed one goes last.
                for fewer in [&protected[..], &[digest]].into_iter().filter(|_| bootable.is_none()) {
                    made = made.or_else(|error| {
                        log::warn!("{error:#}; nothing else boots, so that fewer generations are kept");
                        make_room(cache, &known, &image, fewer, 0)
                    });
                }
                made.map_err(|error| report.warn(format!("{error:#}"))).is_ok()
            }
            None => false,
        };
        // With something on the disk that boots, RAM is not spent on what the disk has no room for. Beside a medium alone, RAM is where images are kept.
        anyhow::ensure!(on_disk || !alternative || self.disk.is_none(), "the cache has no room for it");
        let wanted = Wanted {
            generation: &generation,
            image: &image,
            index: index.map(|(_, bytes)| bytes),
            patience,
            network_limit,
        };
        match self.fetch_into(on_disk, &wanted, report) {
            // A disk that takes no writes is as good as none where nothing on it boots.
            Err(error) if on_disk && !alternative && is_of_the_disk(&error) => {
                report.warn(format!("the cache's disk does not take the image, which goes to RAM: {error:#}"));
                self.fetch_into(false, &wanted, report)
            }
            other => other,
        }
    }

    /// Fetches what is missing of an image, to the disk or to RAM.
    fn fetch_into(&mut self, on_disk: bool, wanted: &Wanted<'_>, report: &mut Report) -> Result<(BootImage, report::Source)> {
        let image = wanted.image;
        // What is there of the same image, from an attempt before this one or from a transfer that was too slow, is gone on with.
        if !on_disk && self.ram.as_ref().is_none_or(|store| store.image != image.sha256) {
            self.ram = None;
            self.ram = Some(ram::RamStore::make(self.root, &self.ram_place, image)?);
        }
        let cache = if on_disk {
            self.disk.as_ref()
        } else {
            self.ram.as_ref().map(|store| &store.cache)
        }
        .context("there is nowhere to keep the image")?;
        if let Some(bytes) = &wanted.index {
            cache.commit_chunk_index(image.sha256, bytes)?;
        }
        let source = self.online.source(wanted.network_limit, report).map_err(FetchError::Network)?;
        let image = Download {
            teller: Teller::Consoles(self.root),
            deadline: self.deadline,
            cache,
            source,
            image,
            patience: wanted.patience,
            record: &|| self.ledger.received(self.disk.as_ref(), source.client.received()),
        }
        .run(report)?;
        if let Err(error) = cache.commit_generation(wanted.generation) {
            report.warn(format!("the generation is not kept, its image boots all the same: {error:#}"));
        }
        Ok((image, if on_disk { report::Source::Network } else { report::Source::Ram }))
    }
}

/// What is fetched, and how long that may take.
struct Wanted<'a> {
    generation: &'a Generation,
    image: &'a Image,
    /// The bytes of its chunk index, where no cache has that yet.
    index: Option<Vec<u8>>,
    patience: Patience,
    network_limit: Instant,
}

/// Whether neither the network nor the servers are to blame.
fn is_of_the_disk(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<FetchError>() {
        Some(FetchError::Network(_) | FetchError::Late(_) | FetchError::Contradiction(_)) => false,
        Some(FetchError::Disk(_)) | None => true,
    }
}
