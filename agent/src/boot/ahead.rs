//! Before a long download: what is known of it is said on the consoles and in the log, and for a while a key press chooses.

use std::path::Path;
use std::time::Duration;

use super::deadline::Deadline;
use super::generations::Entry;
use super::ledger::Ledger;
use super::online::Online;
use crate::cache::{self, Cache, reports};
use crate::console::announce;
use crate::formats::manifest::Image;
use crate::keyboard::{Keys, listen};
use crate::long_download::{Ahead, Budget, Cached, Key, key, question};
use crate::report::Report;

/// Bytes of an image that no cache holds.
pub fn missing<'a>(caches: impl IntoIterator<Item = &'a Cache>, image: &Image) -> u64 {
    let missing = caches.into_iter().map(|cache| cache::missing(cache.folder(), image));
    missing.min().unwrap_or(image.size)
}

/// What is known of a generation that could be booted instead.
pub fn cached(entry: &Entry, disk: Option<&Cache>, now: u64) -> Cached {
    let since = entry.known.authorised.release().map(|release| release.created);
    let since = since.unwrap_or(entry.known.generation.accepted);
    Cached {
        // What a medium brought was not accepted at any time.
        age: now.checked_sub(since).filter(|_| since > 0).map(Duration::from_secs),
        starts_in: disk.and_then(|cache| reports::starts_in(cache.folder(), entry.known.authorised.digest())),
    }
}

/// A download of so many bytes.
pub fn ahead(missing: u64, cached: Option<Cached>, online: &Online<'_>, ledger: &Ledger) -> Ahead {
    Ahead {
        missing,
        rate: online.first_mirror().and_then(|url| ledger.rate(url)),
        cached,
        budget: online.budget_left().map(|(budget, left)| Budget {
            setting: budget.setting(),
            left,
        }),
    }
}

/// Says what is ahead, and listens for keys for as long as the setting says. `None`: nobody has chosen.
pub fn tell_and_ask(root: &Path, keys: Keys, deadline: &Deadline, ahead: &Ahead, countdown: Duration, report: &mut Report) -> Option<Key> {
    let sentence = ahead.sentence()?;
    if ahead.short().is_some() {
        report.warn(sentence);
    } else {
        log::info!("{sentence}");
    }
    let limit = ahead.countdown(countdown)?;
    let tell = |left| announce(root, &format!("freshroot: {}\n", question(left)));
    let pressed = deadline.moved_within(limit, || listen(root, keys, limit, key, tell));
    match pressed {
        Some(Key::Cached) => log::info!("a key was pressed: what is cached boots"),
        Some(Key::Download) => log::info!("a key was pressed: it is downloaded, however long it takes"),
        None => {}
    }
    pressed
}
