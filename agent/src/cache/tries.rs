//! Boot tries and blessings: which generations were handed over to, and which of them turned out good. See `docs/formats.md`.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Cache, atomic, read_bounded};
use crate::digest::Digest;
use crate::formats::tries::{Blessing, Try};

const TRIES: &str = "tries";
const BLESSED: &str = "blessed";
/// A blessing is a line.
const LIMIT: u64 = 4096;

/// What is known about earlier boots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    tries: BTreeMap<Digest, u32>,
    blessed: BTreeMap<Digest, u64>,
}

impl History {
    /// Tries of a generation since it was blessed last.
    pub fn tries(&self, manifest: Digest) -> u32 {
        self.tries.get(&manifest).copied().unwrap_or(0)
    }

    /// Whether a generation was ever blessed.
    pub fn is_blessed(&self, manifest: Digest) -> bool {
        self.blessed.contains_key(&manifest)
    }

    /// The generation that was blessed last.
    pub fn last_blessed(&self) -> Option<Digest> {
        self.blessed
            .iter()
            .max_by_key(|(_, sequence)| **sequence)
            .map(|(manifest, _)| *manifest)
    }
}

/// What the cache in `folder` holds about earlier boots; changes nothing. What is malformed, or cannot be read, is as if absent.
///
/// # Errors
/// If a folder is there and cannot be read.
pub fn read_history(folder: &Path) -> Result<History> {
    read(folder, &|path, error| {
        log::warn!("{}: {error:#}", path.display());
        Ok(())
    })
}

/// `unreadable` decides about a blessing that the disk does not give.
fn read(folder: &Path, unreadable: &dyn Fn(&Path, anyhow::Error) -> Result<()>) -> Result<History> {
    let mut history = History::default();
    for name in atomic::names(&folder.join(TRIES))? {
        if let Ok(manifest) = name.parse::<Digest>() {
            let count = numbers(&folder.join(TRIES).join(&name))?.len();
            history.tries.insert(manifest, u32::try_from(count).unwrap_or(u32::MAX));
        }
    }
    for name in atomic::names(&folder.join(BLESSED))? {
        let Some(manifest) = name.strip_suffix(".json").and_then(|stem| stem.parse::<Digest>().ok()) else {
            continue;
        };
        let path = folder.join(BLESSED).join(&name);
        let bytes = match read_bounded(&path, LIMIT) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => {
                unreadable(&path, error)?;
                continue;
            }
        };
        match std::str::from_utf8(&bytes)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(Blessing::parse(text)?))
        {
            Ok(blessing) => {
                history.blessed.insert(manifest, blessing.sequence);
            }
            Err(error) => log::info!("{} is left alone: {error:#}", path.display()),
        }
    }
    Ok(history)
}

/// The numbers of the tries in a folder, in order.
fn numbers(folder: &Path) -> Result<Vec<u32>> {
    let mut numbers: Vec<u32> = atomic::names(folder)?.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Marks a generation in the cache `folder` as good, and gives its tries back. Says whether there was anything to do. It needs no lock: the
/// running system alone blesses, what it blesses is not evicted, and a refresh that holds the lock for hours must not keep it from that.
///
/// # Errors
/// Of any step; then it is still as good as it was before.
pub fn bless(folder: &Path, manifest: Digest, boot_id: &str, now: u64) -> Result<bool> {
    // The new one is the last only if it comes after all that are there.
    let history = read(folder, &|_, error| Err(error))?;
    let last = history.last_blessed();
    let newly = last != Some(manifest);
    if newly {
        let blessing = Blessing {
            version: 1,
            sequence: last
                .and_then(|last| history.blessed.get(&last))
                .map_or(1, |sequence| sequence.saturating_add(1)),
            boot_id: boot_id.to_owned(),
            blessed: now,
        };
        let mut bytes = serde_json::to_vec(&blessing).context("writing a blessing as JSON")?;
        bytes.push(b'\n');
        let blessed = folder.join(BLESSED);
        make_folder(&blessed)?;
        atomic::write(&blessed, &format!("{manifest}.json"), &bytes)?;
    }
    let tried = forget_tries(folder, manifest)?;
    Ok(newly || tried)
}

/// Removes the tries of a generation. Says whether there were any.
fn forget_tries(folder: &Path, manifest: Digest) -> Result<bool> {
    let tries = folder.join(TRIES);
    let folder = tries.join(manifest.to_string());
    match fs::remove_dir_all(&folder) {
        Ok(()) => atomic::sync_folder(&tries).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", folder.display())),
    }
}

/// Makes a folder that lasts, if it is not there.
fn make_folder(folder: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => folder.parent().map_or(Ok(()), atomic::sync_folder),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).with_context(|| format!("making the folder {}", folder.display())),
    }
}

impl Cache {
    /// Counts a boot try of a generation, so that it lasts whatever happens next. Gives the number of tries with this one.
    ///
    /// # Errors
    /// Of any step. The try may count all the same.
    pub fn count_try(&self, manifest: Digest, boot_id: &str, now: u64) -> Result<u32> {
        let tries = self.folder().join(TRIES);
        let folder = tries.join(manifest.to_string());
        let numbers = numbers(&folder)?;
        if numbers.is_empty() {
            make_folder(&folder)?;
            // A power cut may have come just after it was made.
            atomic::sync_folder(&tries)?;
        }
        let number = numbers.last().map_or(1, |last| last.saturating_add(1));
        let path = folder.join(number.to_string());
        let this = Try {
            version: 1,
            boot_id: boot_id.to_owned(),
            started: now,
        };
        let bytes = serde_json::to_vec(&this).context("writing a try as JSON")?;
        // An empty file counts as much as a full one: so there is no need for a temporary name.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .with_context(|| format!("writing {}", path.display()))?;
        atomic::sync_folder(&folder)?;
        Ok(u32::try_from(numbers.len()).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// Removes what is known about the boots of a generation that goes.
    ///
    /// # Errors
    /// If something stays.
    pub(super) fn forget_boots(&self, manifest: Digest) -> Result<()> {
        forget_tries(self.folder(), manifest)?;
        atomic::remove(&self.folder().join(BLESSED).join(format!("{manifest}.json")))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::{Duration, Instant};

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), Instant::now() + Duration::from_secs(1)).unwrap();
        (folder, cache)
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn tries_count_until_a_blessing_and_again_after_it() {
        let (folder, cache) = cache();
        let (a, b) = (digest("a"), digest("b"));
        let tries = |manifest| read_history(folder.path()).unwrap().tries(manifest);
        assert_eq!(tries(a), 0);
        assert_eq!([cache.count_try(a, "1", 5).unwrap(), cache.count_try(a, "2", 5).unwrap()], [1, 2]);
        assert_eq!((tries(a), tries(b)), (2, 0));
        assert!(bless(folder.path(), a, "2", 5).unwrap());
        assert!(!bless(folder.path(), a, "2", 5).unwrap(), "a second time there is nothing to do");
        assert_eq!(tries(a), 0);
        assert_eq!(cache.count_try(a, "3", 5).unwrap(), 1);
        assert!(read_history(folder.path()).unwrap().is_blessed(a));
        assert!(bless(folder.path(), a, "3", 5).unwrap());
    }

    #[test]
    fn the_last_blessed_one_is_known_without_a_clock() {
        let (folder, _cache) = cache();
        let last = || read_history(folder.path()).unwrap().last_blessed();
        assert_eq!(last(), None);
        for (name, now) in [("a", 900), ("b", 20), ("a", 10)] {
            bless(folder.path(), digest(name), "boot", now).unwrap();
            assert_eq!(last(), Some(digest(name)));
        }
    }

    #[test]
    fn empty_and_torn_tries_count_and_foreign_names_do_not() {
        let (folder, cache) = cache();
        let tries = folder.path().join(TRIES).join(digest("a").to_string());
        fs::create_dir(&tries).unwrap();
        for (name, text) in [("1", ""), ("4", "{\"version\": 1, \"bo"), ("notes", "mine"), ("-1", "")] {
            fs::write(tries.join(name), text).unwrap();
        }
        fs::write(folder.path().join(TRIES).join("foreign"), "").unwrap();
        assert_eq!(read_history(folder.path()).unwrap().tries(digest("a")), 2);
        assert_eq!(cache.count_try(digest("a"), "x", 5).unwrap(), 3);
        assert!(tries.join("5").exists(), "no number is used twice");
    }

    #[test]
    fn a_blessing_that_cannot_be_read_counts_as_absent_and_is_left_alone() {
        let (folder, _cache) = cache();
        let blessed = folder.path().join(BLESSED);
        let name = |of: &str| format!("{}.json", digest(of));
        fs::write(blessed.join(name("a")), "{\"version\": 2, \"sequence\": 9}").unwrap();
        fs::write(blessed.join("notes.json"), "mine").unwrap();
        assert_eq!(read_history(folder.path()).unwrap(), History::default());
        bless(folder.path(), digest("b"), "boot", 5).unwrap();
        assert_eq!(read_history(folder.path()).unwrap().last_blessed(), Some(digest("b")));
        assert!(blessed.join(name("a")).exists());
        fs::write(
            blessed.join(name("b")),
            "{\"version\": 1, \"sequence\": 18446744073709551615, \"bootId\": \"\", \"blessed\": 0}",
        )
        .unwrap();
        assert!(
            bless(folder.path(), digest("c"), "boot", 5).is_ok(),
            "a sequence that cannot grow is no panic"
        );
    }

    #[test]
    fn a_generation_that_goes_takes_its_boots_along() {
        let (folder, cache) = cache();
        cache.count_try(digest("a"), "1", 5).unwrap();
        bless(folder.path(), digest("a"), "1", 5).unwrap();
        cache.count_try(digest("a"), "2", 5).unwrap();
        cache.remove_generation(digest("a"), None).unwrap();
        assert_eq!(read_history(folder.path()).unwrap().tries(digest("a")), 0);
        assert!(!read_history(folder.path()).unwrap().is_blessed(digest("a")));
    }
}
