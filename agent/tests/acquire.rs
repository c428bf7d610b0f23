//! A cache on a disk that is full, failing or damaged: what is good in it boots all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::fs;
use std::path::Path;

use freshroot::boot::acquire::Acquire;
use freshroot::boot::cache_disk::open_cache;
use freshroot::cache::tries::bless;
use freshroot::cache::{Cache, atomic};
use freshroot::candidates::RunningKernel;
use freshroot::digest::Digest;
use freshroot::formats::key::SecretKey;
use freshroot::mode::Mode;
use freshroot::report::Report;
use freshroot::select::{Wanted, select};
use freshroot::settings::Settings;
use freshroot::verify::BootImage;
use support::world::{World, key, open};

fn kernel() -> RunningKernel {
    RunningKernel {
        release: "6.6.1".to_owned(),
        store_name: None,
    }
}

/// Settings of a machine that asks nobody and allows two tries, and what it wants.
fn offline(verify: &str) -> (Settings, Wanted) {
    let trusted: SecretKey = key();
    let text = format!(
        r#"{{"version": 1, "channel": "stable", "policy": {{"mode": "offline", "tries": 2}}, "verify": "{verify}", "trustedPublicKeys": ["{}"]}}"#,
        trusted.public()
    );
    let settings = Settings::from_sources(Some(("config.json", text.as_bytes())), b"").unwrap();
    let (wanted, _) = select(&settings, Mode::Standalone).unwrap();
    (settings, wanted)
}

/// The next image from the cache in `folder`, and whether the cache can be written.
fn boots(folder: &Path) -> bool {
    let (settings, wanted) = offline("full");
    let mut report = Report::new("test");
    let cache = open_cache(folder).unwrap();
    let writable = cache.writable();
    let mut acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel(), Some(cache), &mut report);
    let acquired = acquire.next(&mut report).unwrap();
    assert!(matches!(acquired.image, BootImage::Verified(_)));
    writable
}

#[test]
fn a_disk_that_takes_no_writes_any_more_boots_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(1);
    world.install(&open(folder.path()), 1);
    // While the cache is open: what stands where the generation would be written, a disk that is full does as well.
    let (settings, wanted) = offline("full");
    let mut report = Report::new("test");
    let cache = open_cache(folder.path()).unwrap();
    let generation = Digest::of(world.manifest.as_bytes());
    fs::create_dir(folder.path().join(format!("generations/{generation}.json.new"))).unwrap();
    let mut acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel(), Some(cache), &mut report);
    let acquired = acquire.next(&mut report).unwrap();
    assert!(matches!(acquired.image, BootImage::Verified(_)), "{:?}", report.warnings);
    assert!(folder.path().join(format!("images/{}.squashfs", world.image.sha256)).exists());
}

#[test]
fn a_cache_that_cannot_be_tidied_up_is_read() {
    let folder = tempfile::tempdir().unwrap();
    World::new(1).install(&open(folder.path()), 1);
    assert!(boots(folder.path()));
    // Stands for a leftover that the disk does not let go.
    fs::create_dir(folder.path().join("reports/x.json.new")).unwrap();
    assert!(!boots(folder.path()), "nothing is written where something is wrong");
}

#[test]
fn a_cache_that_cannot_be_read_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    fs::remove_dir(folder.path().join("generations")).unwrap();
    fs::write(folder.path().join("generations"), "").unwrap();
    let (settings, wanted) = offline("full");
    let mut report = Report::new("test");
    let acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel(), Some(cache), &mut report);
    assert!(acquire.disk().is_none());
    assert!(report.warnings[0].contains("the cache is not used"), "{:?}", report.warnings);
}

#[test]
fn an_image_taken_by_its_size_that_does_not_serve_is_verified_before_it_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    World::new(1).install(&open(folder.path()), 1);
    let (settings, wanted) = offline("size");
    let mut report = Report::new("test");
    let cache = open_cache(folder.path()).unwrap();
    let mut acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel(), Some(cache), &mut report);
    let first = acquire.next(&mut report).unwrap();
    assert!(matches!(first.image, BootImage::Unverified(_)));
    acquire.reject(first, "it could not be mounted");
    let second = acquire.next(&mut report).unwrap();
    assert!(matches!(second.image, BootImage::Verified(_)));
    acquire.reject(second, "it has no init");
    let failure = acquire.next(&mut report).map(|_| ()).unwrap_err();
    assert!(failure.what.contains("it has no init"), "{}", failure.what);
}

#[test]
fn what_was_tried_twice_without_a_blessing_gives_way_and_boots_when_nothing_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (World::new(1), World::new(2));
    old.install(&open(folder.path()), 1);
    new.install(&open(folder.path()), 2);
    let digest = |world: &World| Digest::of(world.manifest.as_bytes());
    let (settings, wanted) = offline("full");
    // One boot: what it boots, and what it warns of.
    let boot = |cache: Option<Cache>| {
        let mut report = Report::new("test");
        let cache = cache.or_else(|| open_cache(folder.path()).ok());
        let mut acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel(), cache, &mut report);
        let acquired = acquire.next(&mut report).unwrap();
        acquire.count_try(&acquired, &mut report);
        (acquired.known.authorised.digest(), report.warnings.join("; "))
    };
    let quiet = |world: &World| (digest(world), String::new());
    assert_eq!([boot(None), boot(None)], [quiet(&new), quiet(&new)]);
    assert_eq!([boot(None), boot(None)], [quiet(&old), quiet(&old)]);
    for _ in 0..2 {
        let (booted, warning) = boot(None);
        assert_eq!(booted, digest(&new), "nothing has tries left");
        assert!(warning.contains("booted 2 times without being blessed"), "{warning}");
    }
    assert_eq!(
        atomic::names(&folder.path().join(format!("tries/{}", digest(&new)))).unwrap(),
        ["1", "2"]
    );
    bless(folder.path(), digest(&old), "test", 0).unwrap();
    assert_eq!([boot(None), boot(None)], [quiet(&old), quiet(&old)]);
    assert_eq!(boot(None).0, digest(&new), "tries count again after a blessing");
    // What cannot be counted boots all the same.
    bless(folder.path(), digest(&new), "test", 0).unwrap();
    let (booted, warning) = boot(Some(Cache::for_reading(folder.path())));
    assert_eq!(booted, digest(&new));
    assert!(warning.contains("not counted as a try"), "{warning}");
}
