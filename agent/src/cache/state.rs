//! The state of the cache: `state.json`. See `docs/formats.md`, «State».

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Cache, atomic, read_bounded};
use crate::formats::state::{STATE_LIMIT, State};

const NAME: &str = "state.json";

/// The state of the cache in `folder`; changes nothing. What cannot be read, or is none of ours, is as if absent, and a sentence says so. A file that
/// is not there needs no words: each cache begins without one.
pub fn read_state(folder: &Path) -> (State, Option<String>) {
    let path = folder.join(NAME);
    let read = || match read_bounded(&path, STATE_LIMIT)? {
        Some(bytes) => Ok(State::parse(&bytes)?),
        None => Ok(State::default()),
    };
    let oddity = |error: anyhow::Error| format!("{} counts as absent, and is written anew: {error:#}", path.display());
    match read() {
        Ok(state) => (state, None),
        Err(error) => (State::default(), Some(oddity(error))),
    }
}

impl Cache {
    /// Keeps the state. One that says the same is not written again: a disk of flash wears.
    ///
    /// # Errors
    /// If it cannot be written; what was there then stays.
    pub fn commit_state(&self, state: &State) -> Result<()> {
        let bytes = state.to_bytes().context("writing the state as JSON")?;
        let there = read_bounded(&self.folder().join(NAME), STATE_LIMIT);
        if there.is_ok_and(|there| there.as_deref() == Some(&bytes)) {
            return Ok(());
        }
        atomic::write(self.folder(), NAME, &bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::time::{Duration, Instant};

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), Instant::now() + Duration::from_secs(1)).unwrap();
        (folder, cache)
    }

    fn state(serial: u64) -> State {
        let mut state = State::default();
        state.confirm(&"stable".parse().unwrap(), serial, 5);
        state
    }

    #[test]
    fn what_is_kept_is_found_again_and_written_once() {
        let (folder, cache) = cache();
        assert_eq!(read_state(folder.path()), (State::default(), None));
        cache.commit_state(&state(3)).unwrap();
        assert_eq!(read_state(folder.path()), (state(3), None));
        let file = || fs::metadata(folder.path().join(NAME)).unwrap().ino();
        let first = file();
        cache.commit_state(&state(3)).unwrap();
        assert_eq!(file(), first, "the same is not written again");
        cache.commit_state(&state(4)).unwrap();
        assert_eq!(read_state(folder.path()), (state(4), None));
    }

    // faults.md, row 22.
    #[test]
    fn what_is_no_state_counts_as_absent_with_one_sentence_and_is_replaced() {
        for (bytes, word) in [
            (&b""[..], "malformed"),
            (b"{\"version\":1,\"chan", "malformed"),
            (b"\xff\xfe\0", "UTF-8"),
            (b"<html>", "malformed"),
            (b"{\"version\":2}", "has version 2"),
            (&[b' '; 65 << 10], "longer than"),
        ] {
            let (folder, cache) = cache();
            fs::write(folder.path().join(NAME), bytes).unwrap();
            let (found, sentence) = read_state(folder.path());
            let sentence = sentence.unwrap();
            assert_eq!(found, State::default(), "{sentence}");
            assert!(
                sentence.contains(word) && sentence.contains(NAME) && !sentence.contains('\n'),
                "{sentence}"
            );
            cache.commit_state(&state(1)).unwrap();
            assert_eq!(read_state(folder.path()), (state(1), None));
        }
        let (folder, cache) = cache();
        fs::create_dir(folder.path().join(NAME)).unwrap();
        assert!(read_state(folder.path()).1.is_some());
        assert!(cache.commit_state(&state(1)).is_err());
    }

    #[test]
    fn what_an_interrupted_write_left_goes() {
        let (folder, cache) = cache();
        let leftover = folder.path().join(format!("{NAME}{}", atomic::NEW));
        fs::write(&leftover, "torn").unwrap();
        drop(cache);
        let _cache = Cache::open(folder.path(), Instant::now() + Duration::from_secs(1)).unwrap();
        assert!(!leftover.exists());
    }
}
