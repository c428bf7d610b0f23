//! Keeping the state of the cache, killed before each system call that changes the disk, and with each of them refused once. It is the old one or the
//! new one, whole, and nothing else is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disturb;
    pub mod strace;
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use freshroot::cache::state::read_state;
use freshroot::cache::{Cache, atomic};
use freshroot::formats::state::State;
use support::disturb::{Fault, Point, descriptor, disturb, trace, was_child};
use support::world::{World, kept, open};

fn state(serial: u64) -> State {
    let mut state = State::default();
    state.confirm(&"stable".parse().unwrap(), serial, 1_800_000_000 + serial);
    state.see_time(1_700_000_000 + serial);
    state
}

fn prepare(folder: &Path) {
    let cache = open(folder);
    World::new(1).install(&cache, 1);
    cache.commit_state(&state(1)).unwrap();
}

fn keep(folder: &Path) -> Result<()> {
    Cache::open(folder, Instant::now() + Duration::from_secs(5))?.commit_state(&state(2))
}

fn disturb_keeping(test: &str, faults: &[Fault], least: usize) -> usize {
    let scratch = tempfile::tempdir().unwrap();
    prepare(scratch.path());
    let before = kept(scratch.path());
    disturb(test, scratch.path(), faults, least, &|point: &Point, folder: &Path| {
        let at = format!("{:?} at {} {}", point.fault, point.call, point.index);
        let (found, sentence) = read_state(folder);
        assert!(found == state(1) || found == state(2), "{at}: {found:?}");
        assert_eq!(sentence, None, "{at}");
        keep(folder).unwrap_or_else(|error| panic!("{at}: {error:#}"));
        assert_eq!(read_state(folder), (state(2), None), "{at}");
        let left = atomic::names(folder).unwrap();
        assert!(left.iter().all(|name| !name.ends_with(atomic::NEW)), "{at}: {left:?}");
        assert_eq!(kept(folder), before, "{at}");
    })
}

#[test]
fn a_state_whose_writing_is_killed_is_the_old_or_the_new_one() {
    if !was_child(keep) {
        let test = "a_state_whose_writing_is_killed_is_the_old_or_the_new_one";
        println!("{} kill points", disturb_keeping(test, &[Fault::Kill], 5));
    }
}

#[test]
fn a_disk_that_refuses_the_state_keeps_the_old_one() {
    if !was_child(keep) {
        let faults = [Fault::Error("EIO"), Fault::AlwaysError("ENOSPC")];
        let test = "a_disk_that_refuses_the_state_keeps_the_old_one";
        println!("{} refusals", disturb_keeping(test, &faults, 10));
    }
}

#[test]
fn a_state_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_boot_goes_on() {
    if was_child(keep) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    prepare(scratch.path());
    let (calls, begin) = trace(
        "a_state_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_boot_goes_on",
        scratch.path(),
    );
    let steps: Vec<&str> = calls[begin..]
        .iter()
        .filter_map(|call| match call.name.as_str() {
            "write" if descriptor(&call.line).ends_with("/state.json.new") => Some("write"),
            "fsync" if descriptor(&call.line).ends_with("/state.json.new") => Some("fsync"),
            "rename" | "renameat" | "renameat2" if call.line.contains("/state.json\"") => Some("rename"),
            "fsync" if descriptor(&call.line).ends_with("/cache") => Some("fsync of the folder"),
            _ => None,
        })
        .collect();
    assert_eq!(steps, ["write", "fsync", "rename", "fsync of the folder"]);
}
