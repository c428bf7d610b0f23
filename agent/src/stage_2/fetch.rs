//! Refreshing the cache from the running system, over its network.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::bless::mounted_cache;
use super::own_report;
use crate::boot::deadline::Deadline;
use crate::boot::download::{Download, verify_cached};
use crate::boot::generations::Generations;
use crate::boot::ledger::Ledger;
use crate::boot::online::{client, patience};
use crate::boot::ticker::Teller;
use crate::cache::room::make_room;
use crate::cache::{Cache, Held};
use crate::candidates::{RunningKernel, name_of};
use crate::decide::{Candidate, ImageState, best};
use crate::digest::Digest;
use crate::fetch::Source;
use crate::fetch::image::fetch_index;
use crate::fetch::retry::Memory;
use crate::formats::release::ChannelName;
use crate::http::Client;
use crate::mode::Mode;
use crate::report::Report;
use crate::select::{Wanted, select};
use crate::settings::Settings;

/// A boot cannot be going on; another refresh takes longer than anybody wants to wait.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Brings the newest generation of what is configured into the cache of the system below `root`. Says what was done, and what boots next. `reset_floor`
/// counts as the setting `resetFloor` does.
///
/// # Errors
/// If freshroot did not boot this system, its cache cannot be written or has no room, or no server gives a valid answer and the whole image. What was
/// fetched stays, and is gone on with the next time.
pub fn fetch(root: &Path, teller: Teller<'_>, reset_floor: Option<ChannelName>) -> Result<String> {
    let mut settings = Settings::read(root)?;
    if let Some(channel) = reset_floor {
        ensure!(
            settings.channel.as_deref() == Some(channel.as_str()),
            "the channel that is followed here is {}, not {channel}: there is nothing to reset",
            settings.channel.as_deref().unwrap_or("none")
        );
        settings.reset_floor = Some(channel);
    }
    let (selected, oddities) = select(&settings, Mode::Standalone)?;
    for oddity in settings.warnings.iter().chain(&oddities) {
        log::info!("{oddity}");
    }
    if settings.cache.device.is_none() {
        return Ok("no cache.device is configured: images live in RAM, and there is no cache to refresh".to_owned());
    }
    let wanted = selected.for_refresh(&settings)?;
    ensure!(!settings.urls.is_empty(), "nobody can be asked: no url is configured");
    ensure!(wanted.question().is_some(), "nothing names what to fetch: configure a channel");
    let own = own_report(root)?;
    let cache = Cache::open(&mounted_cache(root, &settings)?, Instant::now() + LOCK_WAIT)?;
    let (generations, oddities) = Generations::observe(&cache, &selected.trust, &settings)?;
    for oddity in oddities {
        log::warn!("{oddity}");
    }
    let ledger = Ledger::new(&settings, generations.state().clone(), generations.clock());
    let mut refresh = Refresh {
        settings: &settings,
        ledger,
        teller,
        cache,
        kernel: running_kernel(root, &settings)?,
        running: own.system.map(|system| system.manifest),
        generations,
    };
    refresh.bring(&selected, &wanted)
}

/// The kernel that runs.
fn running_kernel(root: &Path, settings: &Settings) -> Result<RunningKernel> {
    let path = root.join("proc/sys/kernel/osrelease");
    let release = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(RunningKernel {
        release: release.trim().to_owned(),
        store_name: settings.kernel.store_name.clone(),
    })
}

struct Refresh<'a> {
    settings: &'a Settings,
    teller: Teller<'a>,
    cache: Cache,
    kernel: RunningKernel,
    running: Option<Digest>,
    generations: Generations,
    ledger: Ledger,
}

impl Refresh<'_> {
    /// Asks, and fetches what is missing. `selected` is what this boot has selected.
    fn bring(&mut self, selected: &Wanted, wanted: &Wanted) -> Result<String> {
        let client = client(self.settings, &self.ledger);
        let brought = self.bring_by(&client, selected, wanted);
        self.ledger.received(Some(&self.cache), client.received());
        brought
    }

    fn bring_by(&mut self, client: &Client, selected: &Wanted, wanted: &Wanted) -> Result<String> {
        let memory = Memory::default();
        let source = Source {
            client,
            mirrors: &self.settings.urls,
            memory: &memory,
        };
        log::info!("asking for {}", wanted.target);
        let deadline = Instant::now() + self.settings.policy.fetch_wait;
        let (newest, odd) = self
            .generations
            .ask(&source, wanted, deadline, Some(&self.cache))
            .map_err(|why| anyhow::anyhow!("no valid answer: {why}"))?;
        if let Some(sentence) = odd {
            log::warn!("{sentence}");
        }
        let did = if self.is_complete(newest)? {
            "is cached already, nothing to do".to_owned()
        } else {
            let completed = self.complete(selected, newest, &source);
            let mirrors = memory.rates().into_iter();
            let rates: Vec<_> = mirrors
                .filter_map(|(number, rate)| Some((self.settings.urls.get(number)?, rate)))
                .collect();
            self.ledger.measured(Some(&self.cache), &rates);
            completed?;
            format!("is fetched ({:.1} MB received)", client.received() as f64 / 1e6)
        };
        let name = name_of(&self.generations.get(newest)?.known.authorised);
        // As the next boot finds it.
        let (generations, _) = Generations::observe(&self.cache, &selected.trust, self.settings)?;
        let candidates = generations.candidates(selected, &self.kernel, self.settings.policy.tries);
        Ok(format!("{name} {did}; {}", next_words(&candidates, newest, selected)))
    }

    /// Whether generation and image are there. An image whose generation is missing was left by a power cut, one whose generation is not authorised by
    /// an earlier key: it is verified, and needs no fetching.
    fn is_complete(&self, manifest: Digest) -> Result<bool> {
        let entry = self.generations.get(manifest)?;
        if entry.image != ImageState::Unchecked {
            return Ok(false);
        }
        if entry.kept {
            return Ok(true);
        }
        match verify_cached(
            self.teller,
            &Deadline::none(),
            &self.cache,
            &entry.known.authorised.manifest().image,
        ) {
            Ok(_) => self.cache.commit_generation(&entry.known.generation).map(|()| true),
            Err(error) => {
                log::warn!("{error:#}");
                Ok(false)
            }
        }
    }

    fn complete(&self, selected: &Wanted, manifest: Digest, source: &Source<'_>) -> Result<()> {
        let entry = self.generations.get(manifest)?;
        let image = &entry.known.authorised.manifest().image;
        // Whatever boots is there already, and runs: there is time.
        let patience = patience(self.settings, false);
        // Before anything is removed for it: a server without the image is mostly one without its index.
        let index = match self.cache.chunk_index(image) {
            Some(_) => None,
            None => Some(fetch_index(source, image, patience)?),
        };
        // What runs, what was good, and what would boot now: whatever comes, these are there.
        let today = self.generations.candidates(selected, &self.kernel, self.settings.policy.tries);
        let stays = [self.running, self.generations.last_blessed(), best(&today).map(|one| one.manifest)];
        let protected: Vec<Digest> = stays.into_iter().flatten().chain([manifest]).collect();
        let keep = (self.settings.cache.keep as usize).saturating_sub(1);
        make_room(&self.cache, &self.generations.known(), image, &protected, keep)?;
        if let Some((_, bytes)) = index {
            self.cache.commit_chunk_index(image.sha256, &bytes)?;
        }
        let download = Download {
            teller: self.teller,
            deadline: &Deadline::none(),
            cache: &self.cache,
            source: *source,
            image,
            patience,
            record: &|| self.ledger.received(Some(&self.cache), source.client.received()),
        };
        download.run(&mut Report::new(""))?;
        // A boot can do with an image that is only open; here it has to be found by the next one.
        ensure!(
            self.cache.held(image) == Held::Whole,
            "the image is fetched and verified, but did not get its place in the cache: see the warnings above, and look at its disk"
        );
        self.cache.commit_generation(&entry.known.generation)
    }
}

/// What boots next from what is cached, if the machine is started as it was this time; and why that is not the newest, if it is not.
fn next_words(candidates: &[Candidate], newest: Digest, selected: &Wanted) -> String {
    let Some(next) = best(candidates) else {
        return "nothing that is cached boots under the running kernel".to_owned();
    };
    if next.manifest == newest {
        return "it boots next".to_owned();
    }
    let why = match candidates.iter().find(|one| one.manifest == newest) {
        Some(Candidate { unfit: Some(why), .. }) => why.clone(),
        Some(Candidate { wanted: false, .. }) => format!("the command line of this boot selects {}", selected.target),
        Some(Candidate { spent: true, .. }) => "it has no tries left".to_owned(),
        Some(_) => "another one comes first".to_owned(),
        None => "it is not authorised by what this boot has selected".to_owned(),
    };
    format!("started as this time, the machine boots {} next: {why}", next.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::formats::authorised::Trust;
    use crate::select::Target;

    fn candidate(number: u8, wanted: bool) -> Candidate {
        Candidate {
            manifest: Digest::from_bytes([number; 32]),
            wanted,
            unfit: None,
            image: ImageState::Unchecked,
            failed: None,
            slow: None,
            spent: false,
            blessed: false,
            name: format!("g{number}"),
        }
    }

    #[test]
    fn the_last_line_says_what_boots_next_and_why_it_is_not_the_newest() {
        let newest = candidate(2, true);
        let selected = Wanted {
            target: Target::Channel("stable".parse().unwrap()),
            trust: Trust::default(),
            only: None,
        };
        let words = |newest: Candidate| next_words(&[newest.clone(), candidate(1, true)], newest.manifest, &selected);
        assert_eq!(words(newest.clone()), "it boots next");
        let unfit = Some("it needs the kernel 6.7".to_owned());
        for (newest, word) in [
            (Candidate { unfit, ..newest.clone() }, "boots g1 next: it needs the kernel 6.7"),
            (
                Candidate {
                    wanted: false,
                    ..newest.clone()
                },
                "this boot selects channel stable",
            ),
            (
                Candidate {
                    spent: true,
                    ..newest.clone()
                },
                "no tries left",
            ),
        ] {
            assert!(words(newest.clone()).contains(word), "{}", words(newest));
        }
        assert!(next_words(&[], newest.manifest, &selected).contains("nothing that is cached boots"));
    }
}
