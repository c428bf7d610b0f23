//! The refresh from the running system, against a real server: what is asked for, what goes over the wire, what the cache holds afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod machine;
    pub mod record;
    pub mod server;
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use freshroot::boot::cache_disk::open_cache;
use freshroot::boot::ticker::Teller;
use freshroot::cache::Cache;
use freshroot::cache::tries::bless;
use freshroot::formats::envelope::Envelope;
use freshroot::formats::key::SecretKey;
use freshroot::stage_2::fetch::fetch;
use freshroot::verify::verify_image;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use support::machine::{BOOT_ID, Machine, digest, honest, served};
use support::record::Witness;
use support::server::{Ask, Reply, Server, Then};
use support::world::{CHUNK, SIZE, World, kept, key, open, present, release};

/// Names the root of a child that is killed.
const ROOT: &str = "FRESHROOT_TEST_ROOT";

#[test]
fn a_newer_release_is_fetched_once_and_boots_next() {
    let server = honest(vec![World::new(2)]);
    let machine = Machine::new(&server.url(), &World::new(1), "quiet");
    let before = kept(&machine.cache());
    let said = machine.fetch().unwrap();
    assert!(said.contains("nixos-system-2") && said.ends_with("it boots next"), "{said}");
    let after = kept(&machine.cache());
    assert!(
        before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)),
        "what was there is as it was"
    );
    let new = World::new(2);
    assert!(after[&format!("images/{}.squashfs", new.image.sha256)] == new.bytes);
    let (requests, sent) = (server.requests(), server.sent());
    let said = machine.fetch().unwrap();
    assert!(said.contains("nothing to do"), "{said}");
    assert_eq!(server.requests(), requests + 1, "one question, and no image");
    assert!(server.sent() - sent < CHUNK);
}

#[test]
fn what_this_boot_has_selected_does_not_bind_the_refresh_and_is_told() {
    let server = honest(vec![World::new(2)]);
    let line = "freshroot.system=/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-1";
    let machine = Machine::new(&server.url(), &World::new(1), line);
    let said = machine.fetch().unwrap();
    assert!(
        said.contains("nixos-system-2") && said.contains("boots nixos-system-1") && said.contains("command line of this boot selects"),
        "{said}"
    );
    assert_eq!(machine.generations().len(), 2);
}

#[test]
fn a_refresh_that_breaks_off_is_gone_on_with() {
    let files = served(&[World::new(2)]);
    let image = format!("/images/{}.squashfs", World::new(2).image.sha256);
    let path = image.clone();
    let server = Server::new(move |ask: &Ask| match Reply::honest(&files, ask) {
        reply if ask.path == path && ask.nth == 0 => reply.cut(5 * CHUNK, Then::Close),
        _ if ask.path == path && ask.nth < 20 => Reply::none(Then::Close),
        reply => reply,
    });
    let machine = Machine::new(&server.url(), &World::new(1), "quiet");
    let mut failures = 0;
    while let Err(why) = machine.fetch() {
        failures += 1;
        assert!(failures < 30, "{why}");
        assert_eq!(machine.generations().len(), 1, "a generation is there only with its image");
    }
    assert!(failures > 0, "it has to break off once");
    let image_bytes: usize = server
        .served()
        .iter()
        .filter(|served| served.ask.path == image)
        .map(|served| served.sent)
        .sum();
    assert!(image_bytes < SIZE + CHUNK, "{image_bytes} bytes of an image of {SIZE}");
}

#[test]
fn an_older_serial_and_an_expired_or_foreign_release_are_refused_and_nothing_changes() {
    let refused = |world: World, word: &str| {
        let server = honest(vec![world]);
        let machine = Machine::new(&server.url(), &World::new(3), "quiet");
        let before = kept(&machine.cache());
        let why = machine.fetch().unwrap_err();
        assert!(why.contains(word), "{why}");
        assert!(kept(&machine.cache()) == before);
        assert!(server.sent() < CHUNK, "no image was fetched");
    };
    refused(World::new(2), "has accepted 3 already");
    let mut foreign = World::new(4);
    let other = SecretKey::from_seed("test-1", &[9; 32]).unwrap();
    foreign.release = release(&foreign.manifest, 4, &other);
    refused(foreign, "signature");
    let mut expired = World::new(4);
    let payload = serde_json::json!({
        "version": 1, "channel": "stable", "serial": 4, "created": 1, "notAfter": 2, "manifest": digest(&expired),
    });
    expired.release = Envelope::unsigned(payload.to_string().as_bytes());
    expired.release.sign(&key()).unwrap();
    refused(expired, "expired");
}

#[test]
fn what_runs_and_what_was_blessed_last_stay_when_room_is_short() {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
        panic!("this test needs root, to mount in a name space of its own: {errno}");
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let server = honest(vec![World::new(5)]);
    // Running is what nobody trusts any more: its image is in use all the same.
    let mut running = World::new(1);
    let other = SecretKey::from_seed("old-1", &[9; 32]).unwrap();
    running.release = release(&running.manifest, 1, &other);
    let machine = Machine::new(&server.url(), &World::new(1), "quiet");
    let cache = machine.cache();
    fs::remove_dir_all(&cache).unwrap();
    // Four images fit, and the fifth does not: a few megabytes are kept free.
    let small = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6200k", "tmpfs"])
        .arg(machine.root.path().join("run/freshroot/cache"))
        .status()
        .unwrap();
    assert!(small.success());
    fs::create_dir(&cache).unwrap();
    for (world, sequence) in [(&running, 1), (&World::new(2), 2), (&World::new(3), 3), (&World::new(4), 4)] {
        world.install(&open(&cache), sequence);
    }
    bless(&cache, digest(&World::new(2)), BOOT_ID, 0).unwrap();
    let said = machine.fetch().unwrap();
    assert!(said.ends_with("it boots next"), "{said}");
    let there = |serial: u64| open(&cache).image_path(World::new(serial).image.sha256).exists();
    assert_eq!([1, 2, 3, 4, 5].map(there), [true, true, false, true, true], "the third one went");
    drop(open(&cache));
}

#[test]
fn an_image_whose_generation_a_power_cut_took_is_verified_and_not_fetched() {
    let server = honest(vec![World::new(2)]);
    let machine = Machine::new(&server.url(), &World::new(1), "quiet");
    let new = World::new(2);
    new.install(&open(&machine.cache()), 2);
    fs::remove_file(machine.cache().join(format!("generations/{}.json", digest(&new)))).unwrap();
    assert!(machine.fetch().unwrap().contains("nothing to do"));
    assert_eq!(machine.generations().len(), 2);
    assert!(server.sent() < CHUNK, "no image was fetched");
}

#[test]
fn who_cannot_be_refreshed_says_so() {
    let server = honest(vec![World::new(2)]);
    let machine = Machine::new(&server.url(), &World::new(1), "quiet");
    let lock = open(&machine.cache());
    let started = Instant::now();
    assert!(machine.fetch().unwrap_err().contains("held by another process"));
    assert!(started.elapsed() < Duration::from_secs(30));
    drop(lock);
    fs::write(machine.root.path().join("proc/sys/kernel/random/boot_id"), "another").unwrap();
    assert!(machine.fetch().unwrap_err().contains("is of another boot"));
    fs::remove_dir_all(machine.root.path().join("run/freshroot/cache")).unwrap();
    fs::write(machine.root.path().join("proc/sys/kernel/random/boot_id"), BOOT_ID).unwrap();
    assert!(machine.fetch().unwrap_err().contains("run/freshroot/cache"));
    machine.write("etc/freshroot/config.json", br#"{"version": 1}"#);
    assert!(
        machine.fetch().unwrap().contains("no cache to refresh"),
        "diskless machines have nothing to do"
    );
    assert_eq!(server.requests(), 0);
}

#[test]
fn row_30_a_boot_beside_a_refresh_reads_what_is_there_or_waits_and_the_refresh_is_gone_on_with() {
    let files = served(&[World::new(2)]);
    let image = format!("/images/{}.squashfs", World::new(2).image.sha256);
    let path = image.clone();
    let server = Server::new(move |ask: &Ask| match Reply::honest(&files, ask) {
        // The refresh gives up after its limits, and goes on where it ended the next time.
        reply if ask.path == path && ask.range().is_none() => reply.cut(5 * CHUNK, Then::Stall),
        _ if ask.path == path && ask.nth == 1 => Reply::new(404, b""),
        reply => reply,
    });
    let machine = Machine::new(&server.url(), &World::new(1), "quiet");
    let witness = Witness::new(&machine.cache(), World::new(2));
    let trust = support::world::trust();
    std::thread::scope(|scope| {
        let refresh = scope.spawn(|| machine.fetch());
        let until = Instant::now() + Duration::from_secs(30);
        while server.requests() < 3 {
            assert!(
                Instant::now() < until && !refresh.is_finished(),
                "the refresh does not ask for the image"
            );
            std::thread::park_timeout(Duration::from_millis(5));
        }
        // Meanwhile somebody else holds the lock: what is there can be read, and nothing is tidied up.
        assert!(Cache::open(&machine.cache(), Instant::now()).is_err(), "the refresh holds the lock");
        let (known, left_out) = Cache::for_reading(&machine.cache()).generations(&trust).unwrap();
        assert_eq!((known.len(), left_out.len()), (1, 0));
        let world = World::new(1);
        let file = Cache::for_reading(&machine.cache()).open_image(world.image.sha256).unwrap();
        assert!(verify_image(file, &world.index, &|_| {}).is_ok());
        // As a boot opens it: it waits, and then it is its own.
        let cache = open_cache(&machine.cache()).unwrap();
        assert!(cache.writable());
        drop(cache);
        let why = refresh.join().unwrap().unwrap_err();
        witness.saw("", Err(&why));
    });
    assert_eq!(present(&open(&machine.cache()), &World::new(2)), 5, "what came is kept");
    let said = machine.fetch().unwrap();
    assert!(said.ends_with("it boots next"), "{said}");
    witness.saw("refreshed", Ok(()));
    let of_image = |served: &&support::server::Served| served.ask.path == image;
    let images: usize = server.served().iter().filter(of_image).map(|served| served.sent).sum();
    witness.received(images as u64, (server.sent() - images) as u64);
    assert_eq!(images, SIZE, "nothing was fetched twice");
}

#[test]
fn row_30_a_refresh_that_is_killed_leaves_the_lock_free_and_its_chunks_to_the_next() {
    if let Some(root) = std::env::var_os(ROOT) {
        let outcome = fetch(Path::new(&root), Teller::Nobody, None);
        panic!("the server stalls, and the child is killed before: {outcome:?}");
    }
    let files = served(&[World::new(2)]);
    let image = format!("/images/{}.squashfs", World::new(2).image.sha256);
    let path = image.clone();
    let server = Server::new(move |ask: &Ask| match Reply::honest(&files, ask) {
        reply if ask.path == path && ask.nth == 0 => reply.cut(5 * CHUNK, Then::Stall),
        reply => reply,
    });
    let machine = Machine::new(&server.url(), &World::new(1), "quiet");
    let witness = Witness::new(&machine.cache(), World::new(2));
    let map = machine.cache().join(format!("partial/{}.map", World::new(2).image.sha256));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "row_30_a_refresh_that_is_killed_leaves_the_lock_free_and_its_chunks_to_the_next",
        ])
        .env(ROOT, machine.root.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // As soon as a chunk is recorded: what the server has sent by then is five.
    let until = Instant::now() + Duration::from_secs(30);
    while fs::metadata(&map).map_or(0, |metadata| metadata.len()) < 60 {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "no chunk came");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let new = World::new(2);
    let cache: Cache = open(&machine.cache());
    let there = present(&cache, &new);
    assert!(there >= 1, "what was recorded is there");
    drop(cache);
    let said = machine.fetch().unwrap();
    assert!(said.ends_with("it boots next"), "{said}");
    witness.saw("refreshed", Ok(()));
    let second: usize = server
        .served()
        .iter()
        .filter(|served| served.ask.path == image)
        .skip(1)
        .map(|served| served.sent)
        .sum();
    assert!(second <= SIZE - there * CHUNK, "{second} bytes after {there} chunks");
    // Of the first, what was under way is lost with it.
    let images = 5 * CHUNK + second;
    witness.received(images as u64, (server.sent() - images) as u64);
    assert!(fs::read(machine.cache().join(format!("images/{}.squashfs", new.image.sha256))).unwrap() == new.bytes);
}
