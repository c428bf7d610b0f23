//! Counting a boot try, and blessing, killed before each system call that changes the disk, and with each of them refused once. A try that was begun
//! may count or not; none that was there is lost, and a blessing is there or not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disturb;
    pub mod strace;
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use freshroot::cache::Cache;
use freshroot::cache::tries::{bless, read_history};
use freshroot::digest::Digest;
use support::disturb::{Fault, Point, descriptor, disturb, trace, was_child};
use support::world::{World, kept, open};

const FAULTS: [Fault; 3] = [Fault::Error("EIO"), Fault::AlwaysError("ENOSPC"), Fault::Short];

fn digest(serial: u64) -> Digest {
    Digest::of(World::new(serial).manifest.as_bytes())
}

/// Two generations; the old one is blessed, the new one was tried so often.
fn prepare(folder: &Path, tries: usize) {
    let cache = open(folder);
    World::new(1).install(&cache, 1);
    World::new(2).install(&cache, 2);
    bless(folder, digest(1), "earlier", 5).unwrap();
    for _ in 0..tries {
        cache.count_try(digest(2), "earlier", 5).unwrap();
    }
}

fn count(folder: &Path) -> Result<()> {
    let cache = Cache::open(folder, Instant::now() + Duration::from_secs(5))?;
    cache.count_try(digest(2), "this boot", 6).map(|_| ())
}

/// Disturbs counting after so many tries; says how often.
fn disturb_counting(test: &str, tries: u32, faults: &[Fault], least: usize) -> usize {
    let scratch = tempfile::tempdir().unwrap();
    prepare(scratch.path(), tries as usize);
    let before = kept(scratch.path());
    disturb(test, scratch.path(), faults, least, &|point: &Point, folder: &Path| {
        let at = format!("{:?} at {} {}", point.fault, point.call, point.index);
        let found = read_history(folder).unwrap().tries(digest(2));
        assert!(found == tries || found == tries + 1, "{at}: {found} tries");
        let again = open(folder).count_try(digest(2), "the next boot", 7);
        assert_eq!(again.unwrap_or_else(|error| panic!("{at}: {error:#}")), found + 1, "{at}");
        assert_eq!(read_history(folder).unwrap().last_blessed(), Some(digest(1)), "{at}");
        assert_eq!(kept(folder), before, "{at}");
    })
}

fn bless_new(folder: &Path) -> Result<()> {
    bless(folder, digest(2), "this boot", 6).map(|_| ())
}

fn disturb_blessing(test: &str, faults: &[Fault], least: usize) -> usize {
    let scratch = tempfile::tempdir().unwrap();
    prepare(scratch.path(), 3);
    let before = kept(scratch.path());
    disturb(test, scratch.path(), faults, least, &|point: &Point, folder: &Path| {
        let at = format!("{:?} at {} {}", point.fault, point.call, point.index);
        let history = read_history(folder).unwrap();
        let blessed = history.is_blessed(digest(2));
        assert_eq!(history.last_blessed(), Some(digest(if blessed { 2 } else { 1 })), "{at}");
        assert!(
            blessed || history.tries(digest(2)) == 3,
            "{at}: tries went before the blessing was there"
        );
        bless_new(folder).unwrap_or_else(|error| panic!("{at}: {error:#}"));
        let history = read_history(folder).unwrap();
        assert_eq!((history.last_blessed(), history.tries(digest(2))), (Some(digest(2)), 0), "{at}");
        assert!(history.is_blessed(digest(1)), "{at}");
        assert_eq!(kept(folder), before, "{at}");
    })
}

#[test]
fn a_first_try_that_is_killed_counts_or_does_not() {
    if !was_child(count) {
        let count = disturb_counting("a_first_try_that_is_killed_counts_or_does_not", 0, &[Fault::Kill], 6);
        println!("{count} kill points");
    }
}

#[test]
fn another_try_that_is_killed_counts_or_does_not() {
    if !was_child(count) {
        let count = disturb_counting("another_try_that_is_killed_counts_or_does_not", 2, &[Fault::Kill], 5);
        println!("{count} kill points");
    }
}

#[test]
fn a_blessing_that_is_killed_is_there_or_not() {
    if !was_child(bless_new) {
        println!(
            "{} kill points",
            disturb_blessing("a_blessing_that_is_killed_is_there_or_not", &[Fault::Kill], 8)
        );
    }
}

#[test]
fn a_disk_that_refuses_a_try_loses_none() {
    if !was_child(count) {
        println!(
            "{} refusals",
            disturb_counting("a_disk_that_refuses_a_try_loses_none", 2, &FAULTS, 10)
        );
    }
}

#[test]
fn a_disk_that_refuses_a_blessing_keeps_the_old_one() {
    if !was_child(bless_new) {
        println!(
            "{} refusals",
            disturb_blessing("a_disk_that_refuses_a_blessing_keeps_the_old_one", &FAULTS, 16)
        );
    }
}

#[test]
fn a_try_is_on_the_disk_with_its_folders_before_the_boot_goes_on() {
    if was_child(count) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    prepare(scratch.path(), 0);
    let (calls, begin) = trace("a_try_is_on_the_disk_with_its_folders_before_the_boot_goes_on", scratch.path());
    let mut waiting = BTreeSet::new();
    let mut made = 0;
    for call in &calls[begin..] {
        let named = || call.line.split('"').nth(1).unwrap_or_default().to_owned();
        match call.name.as_str() {
            "mkdir" | "mkdirat" if named().contains("/tries/") => {
                waiting.insert("/tries".to_owned());
                made += 1;
            }
            "openat" if call.line.contains("O_EXCL") && named().contains("/tries/") => {
                waiting.extend([format!("/tries/{}", digest(2)), format!("/tries/{}/1", digest(2))]);
                made += 1;
            }
            "fsync" | "fdatasync" => waiting.retain(|path| !descriptor(&call.line).ends_with(path)),
            _ => {}
        }
    }
    assert_eq!(made, 2, "the folder and the file are in the trace");
    assert!(waiting.is_empty(), "the disk was not told to keep {waiting:?}");
}
