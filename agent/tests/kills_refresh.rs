//! The refresh as it runs in a system, with a real server and all its threads, killed at its writes and renames, and with each of them refused. What is found
//! then boots, the old or the new, and the next refresh goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod boots;
    pub mod disturb;
    pub mod machine;
    pub mod server;
    pub mod strace;
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::fs;
use std::path::Path;

use freshroot::boot::ticker::Teller;
use freshroot::cache::{Cache, Held};
use freshroot::stage_2::fetch::fetch;
use support::boots::old_or_new;
use support::disturb::{Fault, Point, disturb_threads, was_child};
use support::machine::{CACHE, Machine, honest};
use support::world::{SIZE, World, kept, open, present_bytes};

/// What must hold in the system below `root`, whatever the fault was; and the next refresh.
fn check(point: &Point, root: &Path, url: &str) {
    let (old, new) = (World::new(1), World::new(2));
    let at = format!("{:?} at {} {}", point.fault, point.call, point.index);
    let folder = root.join(CACHE);
    let image = format!("images/{}.squashfs", old.image.sha256);
    let unchanged = || {
        assert!(
            kept(&folder).get(&image) == Some(&old.bytes),
            "{at}: the old image is changed or gone"
        )
    };
    unchanged();
    let there = present_bytes(&Cache::for_reading(&folder), &new);
    let booted = old_or_new(&folder, &old, &new).unwrap_or_else(|why| panic!("{at}: {why}"));
    let whole = open(&folder).held(&new.image) == Held::Whole;
    assert!(whole || booted == "old", "{at}: {booted}");
    unchanged();
    // The next refresh is of another server, so that its bytes are counted alone.
    let server = honest(vec![World::new(2)]);
    let config = root.join("etc/freshroot/config.json");
    let text = fs::read_to_string(&config).unwrap().replace(url, &server.url());
    fs::write(&config, text).unwrap();
    let said = fetch(root, Teller::Nobody, None).unwrap_or_else(|error| panic!("{at}: the refresh fails: {error:#}"));
    assert!(said.ends_with("it boots next"), "{at}: {said}");
    let images = server.served().into_iter().filter(|served| served.ask.path.ends_with(".squashfs"));
    let sent: usize = images.map(|served| served.sent).sum();
    assert_eq!(sent, SIZE - there, "{at}: what was recorded is not fetched again");
    assert_eq!(old_or_new(&folder, &old, &new), Ok("new"), "{at}");
    unchanged();
}

fn refresh(root: &Path) -> anyhow::Result<()> {
    fetch(root, Teller::Nobody, None).map(|_| ())
}

fn disturb_refresh(test: &str, faults: &[Fault], least: usize) {
    let server = honest(vec![World::new(2)]);
    let machine = Machine::new(&server.url(), &World::new(1), "quiet");
    let check = |point: &Point, root: &Path| check(point, root, &server.url());
    disturb_threads(test, machine.root.path(), faults, least, &check);
}

#[test]
fn a_refresh_that_is_killed_leaves_what_boots_and_is_gone_on_with() {
    if !was_child(refresh) {
        disturb_refresh("a_refresh_that_is_killed_leaves_what_boots_and_is_gone_on_with", &[Fault::Kill], 50);
    }
}

#[test]
fn a_refresh_that_the_disk_refuses_leaves_what_boots_and_is_gone_on_with() {
    if !was_child(refresh) {
        let faults = [Fault::Error("EIO"), Fault::AlwaysError("ENOSPC"), Fault::Short];
        disturb_refresh(
            "a_refresh_that_the_disk_refuses_leaves_what_boots_and_is_gone_on_with",
            &faults,
            100,
        );
    }
}
